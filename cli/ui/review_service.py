"""What the tab Review does with a workspace, apart from Gradio: make the list, show an entry, decide, save.

A visitor names nothing: what comes from a browser is a key, positions in what was shown, and a class's name.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from vlltr_index.data.text import clean_name, folded
from vlltr_index.data.writing import write_file
from vlltr_index.embedding.loading import run_folder
from vlltr_index.errors import InputError, UsageError, VlltrError
from vlltr_index.evaluation.records import Thumbnail
from vlltr_index.evaluation.report import SIDE, environment
from vlltr_index.pipelines.review.files import sources_of, thumbnail_of
from vlltr_index.pipelines.review.folder import review_folder
from vlltr_index.pipelines.review.queue import Beside, Entry, Review, review
from vlltr_index.pipelines.review.sitting import Decision, Sitting, key_of, pictures_of
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.classes import ChangeReport
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

Act = Literal["confirm", "correct", "skip", "keep", "add"]
"""What can be decided: all labels shown are right; the class of the large picture; nothing; the large picture stays and
its near duplicates go; the class of a group."""

_KEPT = "listed.json"
_LARGE = 480  # pixels of the picture
_BESIDE = 12  # near duplicates that are shown, and decided on
_GROUP = 24  # pictures of a group
_KEYS = 9  # classes with a key
_MOST = 2000  # entries of training pictures, and as many of pictures without labels
_AWAY = 5.0  # seconds that the making of a list gets to stop in

_ACTS: dict[str, tuple[Act, ...]] = {
    "two classes": ("confirm", "correct", "skip"),
    "label": ("confirm", "correct", "skip"),
    "look alike": ("confirm", "correct", "skip"),
    "two splits": ("confirm", "correct", "skip"),
    "copies": ("confirm", "correct", "skip", "keep"),
    "unknown": ("add", "skip"),
    "teaches": ("correct", "skip"),
}


@dataclass(frozen=True)
class Choice:
    """A class with a key.

    Attributes:
        number: The key.
        name: Its name.
        chance: Its probability; None: it is not among the likeliest.
    """

    number: int
    name: str
    chance: float | None


@dataclass(frozen=True)
class Shown:
    """An entry as it is shown.

    Attributes:
        entry: The entry, with as many pictures as are shown.
        place: Which of its pictures is large.
        acts: What can be decided.
        choices: Classes with a key.
        thumbnails: Its pictures, the entry's own first.
        more: How many others belong to it.
    """

    entry: Entry
    place: int
    acts: tuple[Act, ...]
    choices: tuple[Choice, ...]
    thumbnails: tuple[Thumbnail, ...]
    more: int

    @property
    def pictures(self) -> list[tuple[Entry | Beside, Thumbnail]]:
        """Its pictures with what is known of them."""
        return list(zip(pictures_of(self.entry), self.thumbnails, strict=True))

    @property
    def beside(self) -> list[tuple[int, Entry | Beside, Thumbnail]]:
        """Those that are small, with their places, in turn after the large one."""
        listed = [(place, *both) for place, both in enumerate(self.pictures)]
        return listed[self.place + 1 :] + listed[: self.place]


@dataclass(frozen=True)
class Counts:
    """How far the list is.

    Attributes:
        left: Entries without a decision.
        decided: Entries that were decided on, without those that were skipped, and not saved yet.
        skipped: Entries that were skipped.
    """

    left: int
    decided: int
    skipped: int


@dataclass
class _Making:
    """A list that is being made."""

    state: tuple[str, int, int | None] = ("", 0, None)  # step, what is done, and the total
    stopped: bool = False
    thread: threading.Thread | None = None


class _Stopped(Exception):
    """The page ends while a list is made."""


class ReviewService:
    """The list of one workspace, shared by all tabs of a page; safe for several threads.

    Args:
        workspace: The workspace.
        folders: Pictures without labels, as for `review_folder`; they are listed first.
        read_only: Show the list, and refuse every decision.
        recognizer: Of the same workspace; it answers by what was saved.
    """

    def __init__(
        self,
        workspace: Workspace,
        folders: Sequence[str] = (),
        read_only: bool = False,
        recognizer: Recognizer | None = None,
    ) -> None:
        self.workspace = workspace
        self.folders = tuple(folders)
        self.read_only = read_only
        self.error: VlltrError | None = None  # why the last list could not be made
        self._recognizer = recognizer
        self._guard = threading.RLock()
        self._making: _Making | None = None
        self._list: Review | None = None
        self._number = 0  # of the list
        self._sitting = Sitting(workspace)  # the decisions on the list
        self._read()

    # The list.

    @property
    def found(self) -> Review | None:
        """The list; None: there is none yet."""
        return self._list

    @property
    def number(self) -> int:
        """How many lists there were."""
        return self._number

    def progress(self) -> tuple[str, int, int | None] | None:
        """Return step, what is done and the total of the list that is being made; None: none is."""
        making = self._making
        return making.state if making else None

    def make(self) -> None:
        """Begin to make the list again, unless that is under way; not on a page for reading only, for it is kept."""
        if self.read_only:
            return
        with self._guard:
            if self._making is None:
                self._making = making = _Making()
                self.error = None
                making.thread = threading.Thread(target=self._make, args=(making,), daemon=True)
                making.thread.start()

    def wait(self) -> None:
        """Wait until no list is being made."""
        making = self._making
        if making is not None and making.thread is not None:
            making.thread.join()

    def close(self) -> None:
        """Stop making a list."""
        making = self._making
        if making is not None and making.thread is not None:
            making.stopped = True
            making.thread.join(_AWAY)

    def _make(self, making: _Making) -> None:
        """Make the list, and keep it."""

        def progress(step: str, done: int, total: int | None) -> None:
            if making.stopped:
                raise _Stopped
            making.state = (step, done, total)

        error: VlltrError | None = None
        made = None
        try:
            made = self._listed(progress)
            self._keep(made)
        except _Stopped:
            return
        except VlltrError as raised:
            error = raised
        except Exception:  # what it says may name files, so visitors do not see it
            _log.exception("the list could not be made")
            error = VlltrError("the list could not be made", "What went wrong is in the server's output.")
        with self._guard:
            self.error = error
            if made is not None:
                self._list = made
                self._sitting = Sitting(self.workspace, made.entries)
                self._number += 1
            self._making = None

    def _listed(self, progress: Any) -> Review:
        """Return the list: pictures without labels first."""
        training = review(self.workspace, _MOST, progress)
        if not self.folders:
            return training
        found = review_folder(self.workspace, self.folders, _MOST, progress)
        return replace(
            training,
            entries=(*found.entries, *training.entries),
            counts=found.counts | training.counts,
            pictures=found.pictures + training.pictures,
            notes=(*found.notes, *training.notes),
        )

    def _facts(self) -> dict[str, Any]:
        """Return what a kept list must have been made of."""
        return {"format": 1, "folders": list(self.folders), "from": os.getcwd() if self.folders else ""}

    def _keep(self, made: Review) -> None:
        """Write the list, so that another start of the page goes on with it."""
        place = run_folder(self.workspace) / _KEPT
        write_file(place, json.dumps(self._facts() | {"review": asdict(made)}).encode())

    def _read(self) -> None:
        """Read the list that was kept."""
        try:
            kept = json.loads((self.workspace.path / "runs" / _KEPT).read_bytes())
            if {key: kept.get(key) for key in self._facts()} == self._facts():
                self._list = TypeAdapter(Review).validate_python(kept["review"])
                self._sitting = Sitting(self.workspace, self._list.entries)
                self._number = 1
        except (OSError, ValueError, KeyError, AttributeError, ValidationError, RecursionError):
            return

    # What is shown.

    def next(self, shown: Entry | None = None) -> Entry | None:
        """Return the entry to show: the one that is shown as long as it has no decision; None at the end."""
        return self._sitting.next(shown)

    def at(self, place: int) -> tuple[int, Entry | None]:
        """Return the entry at a position of the list, and its position: the nearest one that there is."""
        entries = self._sitting.entries()
        place = max(0, min(place, len(entries) - 1))
        return place, entries[place] if entries else None

    def counts(self) -> Counts:
        """Count the entries of the list, and all decisions that are kept."""
        decided = self._sitting.decided()
        skipped = sum(one.skips for one in decided.values())
        return Counts(len(self._sitting.left()), len(decided) - skipped, skipped)

    def show(self, entry: Entry, place: int = 0) -> Shown:
        """Return an entry with its pictures, of which the one at `place` is large."""
        shown = _cut(entry)
        pictures = pictures_of(shown)
        sources = sources_of(self.workspace.snapshot(), pictures)
        sides = [_LARGE if number == place else SIDE for number in range(len(pictures))]
        thumbnails = map(thumbnail_of, pictures, repeat(sources), sides)
        acts = _ACTS[entry.reason]
        if entry.image_id is None and not all(map(os.path.isfile, _paths(shown))):
            acts = ("skip",)
        more = len(entry.beside) - len(shown.beside)
        return Shown(shown, place, acts, choices_of(shown), tuple(thumbnails), more)

    def names(self) -> list[str]:
        """Return the names of all classes, those that saving makes too, in alphabetical order."""
        table = self.workspace.snapshot().class_table()
        names = {table.names[i] for i in table.ids} | set(self._coming().values())
        return sorted(names, key=str.casefold)

    # Decisions.

    def decide(
        self,
        entry: Entry,
        act: str,
        name: str = "",
        dropped: Sequence[int] = (),
        place: int = 0,
    ) -> str:
        """Keep a decision; it is durable when this returns.

        Args:
            entry: What it is shown as.
            act: One of `Act`.
            name: With `correct` and `add`: the class.
            dropped: With `add`: positions of pictures that are left out, from 0.
            place: Which of its pictures is large.

        Returns:
            What was decided, in a sentence.

        Raises:
            InputError: It has a decision or is not what is shown, the name cannot be a class's, or the entry cannot be
                decided so.
            UsageError: The page is for reading only.
        """
        if self.read_only:
            raise UsageError("this page is for reading only", "Start it without --read-only.")
        if act not in _ACTS[entry.reason]:
            raise InputError("that cannot be decided of this entry", "Take one of the keys that are shown.")
        decision = Decision(entry=key_of(entry))
        pictures = pictures_of(_cut(entry))
        large = pictures[place]
        said = "Skipped."
        if act == "confirm":
            labels = {str(one.image_id): str(one.class_name) for one in pictures}
            decision = decision.model_copy(update={"labels": labels})
            said = f"Confirmed: {entry.class_name!r}."
            if entry.beside:
                said = f"Confirmed: the labels of {plural(len(labels), 'picture')}; all stay."
        elif act == "keep":
            gone = tuple(str(one.image_id) for one in pictures if one is not large)
            labels = {str(large.image_id): str(large.class_name)}
            decision = decision.model_copy(update={"removed": gone, "labels": labels})
            going = plural(len(gone), "near duplicate goes", "near duplicates go")
            said = f"Kept one, as {large.class_name!r}; {going}."
        elif act in ("correct", "add"):
            named, makes = self._class(name)
            if large.image_id is not None:
                given: dict[str, dict[str, str]] = {"labels": {large.image_id: named}}
            else:
                given = {"added": dict.fromkeys(_added(pictures, dropped), named)}
            decision = decision.model_copy(update={"makes": makes, **given})
            new = ", a class that saving makes" if makes else ""
            count = len(decision.labels) + len(decision.added)
            said = f"Now {named!r}{new}: {plural(count, 'picture')}."
        self._sitting.decide(decision, entry)
        return said

    def undo(self) -> Entry | None:
        """Take back the last decision on the list, and return what is shown then; None if there is no decision."""
        if self.read_only:
            raise UsageError("this page is for reading only", "Start it without --read-only.")
        return self._sitting.undo()

    def save(self) -> tuple[ChangeReport | None, int | None]:
        """Make one commit of all decisions.

        Returns:
            Its report, None if there was nothing; and the commit before it, None if none was made.

        Raises:
            UsageError: The page is for reading only.
        """
        if self.read_only:
            raise UsageError("this page is for reading only", "Start it without --read-only.")
        history = self.workspace.history
        newest = history.ids()[-1]
        report = self._sitting.save(self._recognizer)
        if report is None or not report.changed:
            return report, None
        since = (history.read(number) for number in history.ids() if number > newest)
        return report, next(one.parent for one in since if one.command == report.command)

    def _class(self, given: str) -> tuple[str, str | None]:
        """Return the class that a name means, and the same if saving makes it."""
        name = clean_name(given, "the class")
        table = self.workspace.snapshot().class_table()
        found = table.find(name)
        if found is not None:
            return table.names[found], None
        name = self._coming().get(folded(name), name)
        return name, name

    def _coming(self) -> dict[str, str]:
        """Return the names of classes that saving makes, by what they are compared by."""
        made = [one.makes for one in self._sitting.decided().values() if one.makes is not None]
        return {folded(name): name for name in reversed(made)}


def choices_of(entry: Entry) -> tuple[Choice, ...]:
    """Return the classes that have a key: the likeliest, and those of its pictures where they differ.

    Where two labels are compared theirs come first.
    """
    chances = dict(entry.likely)
    own = dict.fromkeys(one.class_name for one in pictures_of(entry) if one.class_name is not None)
    named = list(own) if len(own) > 1 else []
    both = [*chances, *named] if entry.reason == "label" else [*named, *chances]
    each = list(dict.fromkeys(both))[:_KEYS]
    return tuple(Choice(number, name, chances.get(name)) for number, name in enumerate(each, 1))


def _cut(entry: Entry) -> Entry:
    """Return an entry with those pictures beside it that are shown."""
    return replace(entry, beside=entry.beside[: _GROUP - 1 if entry.reason == "unknown" else _BESIDE])


def _paths(entry: Entry) -> list[str]:
    return [one.picture for one in pictures_of(entry)]


def _added(pictures: Sequence[Entry | Beside], dropped: Sequence[int]) -> list[str]:
    """Return the files of a group but those that are dropped."""
    kept = [one.picture for place, one in enumerate(pictures) if place not in dropped]
    if not kept:
        raise InputError("no picture is left of the group", "Take one back, or skip it.")
    if not all(map(os.path.isfile, kept)):
        raise InputError(
            "a picture is no file here", "Only pictures in files of this machine can get a class here."
        )
    return list(map(os.path.abspath, kept))


def review_piece(name: str, *values: Any) -> str:
    """Render the macro `name` of the tab's template with some values; all texts are escaped."""
    return str(getattr(_macros(), name)(*values))


@cache
def _macros() -> Any:
    return environment("vlltr_index.cli.ui").get_template("review.html").module
