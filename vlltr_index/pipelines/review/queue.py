"""The list of training pictures to look at: labels that may be wrong, and near duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlltr_index.embedding.loading import run_folder
from vlltr_index.pipelines.review.held_out import HeldOutLabels, Moved, held_out_labels
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

Reason = Literal["two classes", "label", "look alike", "two splits", "copies", "unknown", "teaches"]
"""Why a picture is listed: its file is in two classes; its label may be wrong; it is a near duplicate of one in
another class; of one in another split; of one in its class; no class stands for it; its label would teach much."""
REASONS: tuple[Reason, ...] = (
    "two classes", "label", "look alike", "two splits", "copies", "unknown", "teaches"
)  # fmt: skip
"""In the order in which looking pays."""
WORTH_A_LOOK = 0.1
"""Probability of a wrong label from which on it is listed."""


@dataclass(frozen=True)
class Beside:
    """A picture that another is to be compared with."""

    picture: str
    image_id: str | None = None
    class_name: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Entry:
    """A picture to look at.

    Attributes:
        picture: Its path, or the row of a file.
        reason: Why.
        image_id: Its id; None: the workspace does not have it.
        class_name: Its class as it is.
        split: Its split.
        wrong: The probability that its label is wrong, by models that were fitted without it; None: it is not known, or
            less than `WORTH_A_LOOK`.
        likely: The likeliest classes with their probabilities, best first.
        beside: Its near duplicates, or the others of its group.
    """

    picture: str
    reason: Reason
    image_id: str | None = None
    class_name: str | None = None
    split: str | None = None
    wrong: float | None = None
    likely: tuple[tuple[str, float], ...] = ()
    beside: tuple[Beside, ...] = ()

    @property
    def verdict(self) -> str | None:
        """How probably the label is wrong, in words that follow `The label`; None where that is not known."""
        if self.wrong is None:
            return None
        percent = round(100 * self.wrong)
        return f"{'is probably' if percent >= 50 else 'may be'} wrong ({percent}%)"

    @property
    def suggested(self) -> str | None:
        """The class of what is nearly the same, or else the likeliest one, but its own; None where none is in doubt."""
        if self.reason in ("two splits", "copies", "unknown"):
            return None
        names = [*(one.class_name for one in self.beside), *(name for name, _ in self.likely)]
        return next((name for name in names if name and name != self.class_name), None)


@dataclass(frozen=True)
class Review:
    """A list of pictures to look at.

    Attributes:
        entries: The pictures, those first that pay most; as many as were asked for.
        counts: How many there are of each reason, also those that were not asked for.
        pictures: How many pictures were examined.
        wrong: The sum of the probabilities that a label is wrong, of those that nobody confirmed; a rough figure, which
            is not zero of clean labels where the answers are often wrong, and too low where many labels are.
        notes: What has to be known about the list.
        moved: How the answers to pictures of unchanged labels moved since the list before.
    """

    entries: tuple[Entry, ...]
    counts: dict[str, int]
    pictures: int
    wrong: int = 0
    notes: tuple[str, ...] = ()
    moved: Moved | None = None


def review(workspace: Workspace, top: int | None = None, progress: Progress | None = None) -> Review:
    """List training pictures whose label may be wrong, and near duplicates, in the order in which looking pays.

    First one file in two classes; then labels by the probability that they are wrong, down to `WORTH_A_LOOK`; then near
    duplicates in two classes that nothing speaks against; then those in two splits, which make figures too good; then
    those within a class. Left out is what a person has confirmed.

    Args:
        workspace: With labelled and embedded images, and a head.
        top: How many at most; default: all.
        progress: Called while answers are made.

    Raises:
        MissingStepError: There is no training image with a label, or none is embedded, or there is no head.
        WorkspaceError: The answers cannot be kept.
    """
    snapshot = workspace.snapshot()
    kept = held_out_labels(snapshot, run_folder(workspace) / "review", progress)
    there = _Listing(snapshot, kept)
    entries = there.entries()
    return Review(
        entries=tuple(entries[:top]),
        counts={reason: n for reason in REASONS if (n := sum(one.reason == reason for one in entries))},
        pictures=len(kept.answers),
        wrong=there.wrong(),
        notes=tuple(_notes(kept)),
        moved=kept.facts.moved,
    )


def _notes(kept: HeldOutLabels) -> Iterator[str]:
    """Say what has to be known about the answers."""
    if not len(kept.answers):
        yield "No label is judged: train lgr could hold out no image. Near duplicates are listed."
    if kept.facts.learned:
        some = plural(kept.facts.learned, "picture was", "pictures were")
        yield (
            f"{some} not held out of stage 1: where it learned from the label, the answer is not honest, and a wrong"
            " label may not be noticed."
        )


class _Listing:
    """The pictures of a commit, with what is kept of them and what a person said."""

    def __init__(self, snapshot: Snapshot, kept: HeldOutLabels) -> None:
        columns = ["image_id", "uri", "class_id", "split"]
        self._rows = {row["image_id"]: row for row in snapshot.table("images", columns).to_pylist()}
        self._names = snapshot.class_table().names
        self._answers = {row["image_id"]: row for row in kept.answers.to_pylist()}
        said = snapshot.table("reviewed").to_pylist()
        self._said: dict[str, int] = {row["image_id"]: row["class_id"] for row in said}
        self._kept = kept
        self._partners = defaultdict[str, list[str]](list)
        for one, other in kept.alike:
            self._partners[one].append(other)
            self._partners[other].append(one)
        self._lot_of = {image_id: lot for lot in kept.copies for image_id in lot}
        self._listed = set[str]()  # pictures of the entries so far

    def entries(self) -> list[Entry]:
        """Return all entries in their order; each picture is in one of them."""
        found = [*self._two_classes(), *self._labels(), *self._look_alikes(), *self._copies()]
        return sorted(found, key=lambda one: (REASONS.index(one.reason), -(one.wrong or 0.0)))

    def wrong(self) -> int:
        """Add up the probabilities that a label is wrong, of those that nobody confirmed."""
        left: list[float] = [one["wrong"] for key, one in self._answers.items() if not self._confirmed(key)]
        return round(sum(left))

    def _two_classes(self) -> Iterator[Entry]:
        """Yield each lot of one content in several classes: its most doubtful picture and the others."""
        for lot in self._kept.copies:
            if len({self._rows[one]["class_id"] for one in lot}) > 1 and not all(map(self._confirmed, lot)):
                first, *others = sorted(lot, key=self._doubt)
                yield self._entry(first, "two classes", others)

    def _labels(self) -> Iterator[Entry]:
        """Yield the pictures whose label may be wrong, with what is nearly the same."""
        for image_id in sorted(self._answers, key=self._doubt):
            doubtful = self._answers[image_id]["wrong"] >= WORTH_A_LOOK and not self._confirmed(image_id)
            if doubtful and image_id not in self._listed:
                alike = [*self._lot_of.get(image_id, ()), *self._partners[image_id]]
                yield self._entry(image_id, "label", self._unlisted(alike, image_id))

    def _look_alikes(self) -> Iterator[Entry]:
        """Yield the other near duplicates in different classes."""
        for pair in self._kept.alike:
            first, _ = sorted(pair, key=self._doubt)
            others = self._unlisted(self._partners[first], first)
            if first not in self._listed and others and not all(map(self._confirmed, [first, *others])):
                yield self._entry(first, "look alike", others)

    def _copies(self) -> Iterator[Entry]:
        """Yield the other lots of near duplicates within a class."""
        for lot in self._kept.copies:
            if self._listed.isdisjoint(lot) and not all(map(self._confirmed, lot)):
                first, *others = sorted(lot, key=self._doubt)
                splits = {self._rows[one]["split"] for one in lot}
                yield self._entry(first, "two splits" if len(splits) > 1 else "copies", others)

    def _unlisted(self, image_ids: Sequence[str], but: str) -> list[str]:
        """Return those pictures, each once, that are in no entry yet."""
        return [one for one in dict.fromkeys(image_ids) if one not in self._listed and one != but]

    def _confirmed(self, image_id: str) -> bool:
        """Say whether a person said that a picture is of the class that it is of."""
        owner: int = self._rows[image_id]["class_id"]
        return self._said.get(image_id) == owner

    def _doubt(self, image_id: str) -> tuple[bool, float, str]:
        """Return a sort key: pictures that nobody confirmed first, those of the most doubtful labels."""
        answer = self._answers.get(image_id)
        return self._confirmed(image_id), -answer["wrong"] if answer else 0.0, image_id

    def _entry(self, image_id: str, reason: Reason, others: Sequence[str]) -> Entry:
        self._listed.update([image_id, *others])
        row = self._rows[image_id]
        answer = self._answers.get(image_id)
        likely = zip(answer["likely"], answer["chances"], strict=True) if answer else ()
        return Entry(
            picture=row["uri"],
            reason=reason,
            image_id=image_id,
            class_name=self._names[row["class_id"]],
            split=row["split"],
            wrong=answer["wrong"] if answer and answer["wrong"] >= WORTH_A_LOOK else None,
            likely=tuple((self._names[owner], chance) for owner, chance in likely),
            beside=tuple(map(self._beside, others)),
        )

    def _beside(self, image_id: str) -> Beside:
        row: dict[str, Any] = self._rows[image_id]
        return Beside(row["uri"], image_id, self._names[row["class_id"]], row["split"])
