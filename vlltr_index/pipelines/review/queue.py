"""The list of training pictures to look at: labels that are probably wrong, and near duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlltr_index.pipelines.review.held_out import HeldOutLabels, Moved, held_out_labels
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

Reason = Literal["two classes", "label", "look alike", "two splits", "copies", "unknown", "teaches"]
"""Why a picture is listed: its file is in two classes; its label is probably wrong; it is a near duplicate of one in
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
        wrong: The probability that its label is wrong, by models that were fitted without it; None: not known.
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
    def suggested(self) -> str | None:
        """The likeliest class but its own; None where no class stands for it."""
        if self.reason == "unknown":
            return None
        return next((name for name, _ in self.likely if name != self.class_name), None)


@dataclass(frozen=True)
class Review:
    """A list of pictures to look at.

    Attributes:
        entries: The pictures, those first that pay most; as many as were asked for.
        counts: How many there are of each reason, also those that were not asked for.
        pictures: How many pictures were examined.
        wrong: How many labels are estimated to be wrong.
        notes: What has to be known about the list.
        moved: How the answers to other pictures moved since labels were changed last.
    """

    entries: tuple[Entry, ...]
    counts: dict[str, int]
    pictures: int
    wrong: int = 0
    notes: tuple[str, ...] = ()
    moved: Moved | None = None


def review(workspace: Workspace, top: int | None = None, progress: Progress | None = None) -> Review:
    """List training pictures whose label is probably wrong, and near duplicates, in the order in which looking pays.

    First one file in two classes; then labels by the probability that they are wrong, down to `WORTH_A_LOOK`; then near
    duplicates in two classes that nothing speaks against; then those in two splits, which make figures too good; then
    those within a class. Left out is what a person has confirmed.

    Args:
        workspace: With labelled and embedded images; no head is needed.
        top: How many at most; default: all.
        progress: Called while answers are made.

    Raises:
        MissingStepError: There is no training image with a label, or none is embedded.
        WorkspaceError: The answers cannot be kept.
    """
    kept = held_out_labels(workspace, progress)
    snapshot = workspace.snapshot()
    there = _Pictures(snapshot, kept)
    entries = [*there.copies(), *there.labels(), *there.look_alikes()]
    entries.sort(key=lambda one: (REASONS.index(one.reason), -(one.wrong or 0.0)))
    return Review(
        entries=tuple(entries[:top]),
        counts={reason: n for reason in REASONS if (n := sum(one.reason == reason for one in entries))},
        pictures=len(kept.answers),
        wrong=kept.facts.wrong,
        notes=tuple(_notes(kept)),
        moved=kept.facts.moved,
    )


def _notes(kept: HeldOutLabels) -> Iterator[str]:
    """Say what has to be known about the answers."""
    if kept.facts.learned:
        some = plural(kept.facts.learned, "picture was", "pictures were")
        yield (
            f"{some} in stage 1's training, with the label that it has: answers for these are not honest, and a wrong"
            " label of theirs may not be noticed."
        )


class _Pictures:
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
        self._listed = set[str]()  # pictures of entries that bear on their labels

    def copies(self) -> Iterator[Entry]:
        """Yield each lot of one content, or of near duplicates in a class: its most doubtful picture and the others."""
        for lot in self._kept.copies:
            if all(map(self._confirmed, lot)):
                continue
            reason: Reason = "copies"
            if len({self._rows[one]["class_id"] for one in lot}) > 1:
                reason = "two classes"
                self._listed.update(lot)
            elif len({self._rows[one]["split"] for one in lot}) > 1:
                reason = "two splits"
            first, *others = sorted(lot, key=self._doubt)
            yield self._entry(first, reason, others)

    def labels(self) -> Iterator[Entry]:
        """Yield the pictures whose label is probably wrong, with their near duplicates in other classes."""
        for image_id in sorted(self._answers, key=self._doubt):
            doubtful = self._answers[image_id]["wrong"] >= WORTH_A_LOOK and not self._confirmed(image_id)
            if doubtful and image_id not in self._listed:
                yield self._entry(image_id, "label", self._partners[image_id])
                self._listed.update([image_id, *self._partners[image_id]])

    def look_alikes(self) -> Iterator[Entry]:
        """Yield the other near duplicates in different classes, each picture once."""
        for pair in self._kept.alike:
            first, _ = sorted(pair, key=self._doubt)
            others = [one for one in self._partners[first] if one not in self._listed]
            if first in self._listed or not others or all(map(self._confirmed, [first, *others])):
                continue
            yield self._entry(first, "look alike", others)
            self._listed.update([first, *others])

    def _confirmed(self, image_id: str) -> bool:
        """Say whether a person said that a picture is of the class that it is of."""
        owner: int = self._rows[image_id]["class_id"]
        return self._said.get(image_id) == owner

    def _doubt(self, image_id: str) -> tuple[bool, float, str]:
        """Return a sort key: pictures that nobody confirmed first, those of the most doubtful labels."""
        answer = self._answers.get(image_id)
        return self._confirmed(image_id), -answer["wrong"] if answer else 0.0, image_id

    def _entry(self, image_id: str, reason: Reason, others: Sequence[str]) -> Entry:
        row = self._rows[image_id]
        answer = self._answers.get(image_id)
        likely = zip(answer["likely"], answer["chances"], strict=True) if answer else ()
        return Entry(
            picture=row["uri"],
            reason=reason,
            image_id=image_id,
            class_name=self._names[row["class_id"]],
            split=row["split"],
            wrong=answer["wrong"] if answer else None,
            likely=tuple((self._names[owner], chance) for owner, chance in likely),
            beside=tuple(map(self._beside, others)),
        )

    def _beside(self, image_id: str) -> Beside:
        row: dict[str, Any] = self._rows[image_id]
        return Beside(row["uri"], image_id, self._names[row["class_id"]], row["split"])
