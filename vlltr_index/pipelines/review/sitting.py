"""A sitting: decisions on a list of pictures, each kept in a file as it is made, until all become one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from vlltr_index.classes import ChangeOptions, ChangeReport, Decisions
from vlltr_index.classes.change import open_change
from vlltr_index.classes.deciding import edit_of
from vlltr_index.data.text import folded
from vlltr_index.data.writing import sync
from vlltr_index.embedding.loading import run_folder
from vlltr_index.errors import InputError, WorkspaceError, reason, write_error
from vlltr_index.wording import plural, preview

if TYPE_CHECKING:
    from vlltr_index.pipelines.review.queue import Beside, Entry
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

_FILE = "sitting.jsonl"


class Decision(BaseModel):
    """What a person decided of one entry.

    Attributes:
        entry: The entry, see `key_of`.
        labels: Names of classes by the ids of pictures.
        added: Names of classes by the paths of pictures that the workspace does not have.
        removed: Ids of pictures that go.
        makes: The class that is made for it, if there was none of that name.
        undone: Whether it takes back what was decided of the entry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: str
    labels: dict[str, str] = {}
    added: dict[str, str] = {}
    removed: tuple[str, ...] = ()
    makes: str | None = None
    undone: bool = False

    @property
    def skips(self) -> bool:
        """Whether nothing is decided."""
        return not (self.labels or self.added or self.removed)


def key_of(entry: Entry) -> str:
    """Return what an entry is known by: why it is listed, and the id of its picture, or its path."""
    return f"{entry.reason}: {entry.image_id or entry.picture}"


def pictures_of(entry: Entry) -> list[Entry | Beside]:
    """Return what is known of an entry's pictures, its own first."""
    return [entry, *entry.beside]


def ids_of(entry: Entry) -> list[str]:
    """Return the ids of an entry's pictures, its own first; of those that the workspace does not have, their paths."""
    return [one.image_id or os.path.abspath(one.picture) for one in pictures_of(entry)]


class Sitting:
    """Decisions on one list; safe for several threads and processes, such as two tabs in which a page is open.

    Args:
        workspace: The workspace.
        listed: The entries of the list.
    """

    def __init__(self, workspace: Workspace, listed: Sequence[Entry] = ()) -> None:
        self.workspace = workspace
        self._listed = listed
        self._open: tuple[int, list[Entry]] = (
            -1,
            [],
        )  # a commit, and the entries that it leaves to be decided

    def entries(self) -> list[Entry]:
        """Return the entries that the newest commit leaves to be decided."""
        commit = self._newest()
        known, entries = self._open
        if known != commit:
            entries = still_open(self.workspace.snapshot(commit), self._listed)
            self._open = (commit, entries)
        return entries

    def left(self) -> list[Entry]:
        """Return the entries without a decision.

        Their classes are those that are decided of their pictures, and pictures that go are left out.
        """
        while True:
            commit = self._newest()
            entries = self.entries()
            decided = self.decided()
            if commit == self._newest():  # otherwise a save may have removed the decisions on these entries
                break
        settled = Settled.by(decided.values())
        found = (settled.entry(one) for one in entries if key_of(one) not in decided)
        return [one for one in found if one is not None]

    def next(self, shown: Entry | None = None) -> Entry | None:
        """Return the entry to decide on; None at the end.

        Args:
            shown: The entry that is shown. It stays, with what is decided of its pictures, until it has a decision.
        """
        left = self.left()
        if shown is not None:
            left = [one for one in left if key_of(one) == key_of(shown)] or left
        return left[0] if left else None

    def decided(self) -> dict[str, Decision]:
        """Return the decisions that are kept, by entry, in the order in which they were made."""
        found = dict[str, Decision]()
        for one in _read(self._path):
            found.pop(one.entry, None)
            if not one.undone:
                found[one.entry] = one
        return found

    def decide(self, decision: Decision, shown: Entry) -> None:
        """Keep a decision; it is durable when this returns.

        Args:
            decision: What was decided.
            shown: The entry as it was shown.

        Raises:
            InputError: The entry has a decision, or is not what was shown.
            WorkspaceError: It cannot be kept.
        """
        with self._alone():
            if shown not in self.left():
                raise InputError(
                    "this picture was decided on or changed since it was shown",
                    "Decide on what is shown now.",
                )
            _append(self._path, decision)

    def undo(self) -> Entry | None:
        """Take back the last decision on this list, and return what is shown then; None if there is no decision.

        Raises:
            WorkspaceError: That cannot be kept.
        """
        with self._alone():
            listed = {key_of(one): one for one in self.entries()}
            made = [key for key in self.decided() if key in listed]
            if not made:
                return None
            _append(self._path, Decision(entry=made[-1], undone=True))
            return self.next(listed[made[-1]])

    def save(self, recognizer: Recognizer | None = None) -> ChangeReport | None:
        """Make one commit of all decisions, of whatever list; None if there is nothing to write.

        Decisions on pictures that are gone, or for classes that are gone, are left out with a note.

        Args:
            recognizer: Of the same workspace; it answers by the commit afterwards.

        Raises:
            InputError: As for `classes.decide`.
            WorkspaceError: The decisions cannot be read or removed.
        """
        with self._alone():
            made = [one for one in self.decided().values() if not one.skips]
            if not made:
                self._path.unlink(missing_ok=True)
                return None

            command = f"review: {plural(len(made), 'decision')}"
            options = ChangeOptions(recognizer=recognizer)
            with open_change(self.workspace, command, options, needs_head=False) as change:
                decisions, lost = _together(change.tx, made)
                done = edit_of(change.tx, decisions)
                done.notes += lost
                change.finish(done)
            self._path.unlink()
        return change.report

    @property
    def _path(self) -> Path:
        return self.workspace.path / "runs" / _FILE

    def _newest(self) -> int:
        return self.workspace.history.ids()[-1]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes from deciding meanwhile.

        The workspace's own lock is another one, so that a decision does not wait for `embed` or `ingest`.

        Raises:
            WorkspaceError: The system refuses to write the lock file.
        """
        path = run_folder(self.workspace) / _FILE
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire()
        except OSError as error:
            raise write_error(path, error) from error
        try:
            yield
        finally:
            lock.release()


@dataclass(frozen=True)
class Settled:
    """What decisions make of pictures.

    Attributes:
        labels: Names of classes by the ids of pictures.
        gone: Pictures that go, by id, and those that get a first class, by path.
    """

    labels: Mapping[str, str]
    gone: Set[str]

    @classmethod
    def by(cls, decided: Iterable[Decision]) -> Settled:
        """Make it from decisions in their order."""
        labels = dict[str, str]()
        gone = set[str]()
        for one in decided:
            labels |= one.labels
            gone |= {*one.removed, *one.added}
        return cls(labels, gone)

    def entry(self, entry: Entry) -> Entry | None:
        """Return an entry as these decisions, on other entries, leave it; None if nothing is left to decide."""
        ids = ids_of(entry)
        if self.gone.isdisjoint(ids) and self.labels.keys().isdisjoint(ids):
            return entry
        own, *others = ids
        beside = tuple(
            replace(other, class_name=self.labels.get(picture, other.class_name))
            for picture, other in zip(others, entry.beside, strict=True)
            if picture not in self.gone
        )
        if own in self.gone or (others and not beside):
            return None
        return replace(entry, class_name=self.labels.get(own, entry.class_name), beside=beside)


def still_open(snapshot: Snapshot, entries: Sequence[Entry]) -> list[Entry]:
    """Return those entries of a list that a commit leaves as they were listed, and that nobody has confirmed."""
    names = snapshot.class_table().names
    rows = snapshot.table("images", ["image_id", "uri", "class_id"], "class_id IS NOT NULL").to_pylist()
    class_of = {row["image_id"]: row["class_id"] for row in rows}
    labelled = {row["uri"] for row in rows}
    said = {row["image_id"]: row["class_id"] for row in snapshot.table("reviewed").to_pylist()}

    def as_listed(one: Entry | Beside) -> bool:
        if one.image_id is None:
            return one.picture not in labelled and os.path.realpath(one.picture) not in labelled
        return names.get(class_of.get(one.image_id, -1)) == one.class_name

    def confirmed(one: Entry | Beside) -> bool:
        return one.image_id is not None and said.get(one.image_id) == class_of[one.image_id]

    found = []
    for entry in entries:
        asked = pictures_of(entry) if entry.reason != "label" else [entry]
        if all(map(as_listed, pictures_of(entry))) and not all(map(confirmed, asked)):
            found.append(entry)
    return found


def _together(snapshot: Snapshot, made: Sequence[Decision]) -> tuple[Decisions, list[str]]:
    """Put decisions together, without those on what is gone; also say what these are."""
    table = snapshot.class_table()
    rows = snapshot.table("images", ["image_id", "uri", "class_id"]).to_pylist()
    there = {row["image_id"] for row in rows}
    labelled = {row["uri"] for row in rows if row["class_id"] is not None}
    made_names = {folded(one.makes): one.makes for one in reversed(made) if one.makes is not None}
    labels = dict[str, str]()
    added = dict[Path, str]()
    removed = list[str]()
    lost = list[str]()
    missing = 0
    for one in made:
        names = {*one.labels.values(), *one.added.values()}
        spelled = {
            name: name if table.find(name) is not None else made_names.get(folded(name)) for name in names
        }
        if gone := sorted(name for name, found in spelled.items() if found is None):
            lost.append(f"there is no class {preview(gone)} any more")
            continue
        missing += sum(image_id not in there for image_id in (*one.labels, *one.removed))
        labels |= {
            image_id: spelled[name] or name for image_id, name in one.labels.items() if image_id in there
        }
        for path, name in one.added.items():
            if not os.path.isfile(path):
                lost.append(f"{path} is no file any more")
            elif os.path.realpath(path) in labelled:
                lost.append(f"{path} has a class already")
            else:
                added[Path(path)] = spelled[name] or name
        removed += [image_id for image_id in one.removed if image_id in there]
    for image_id in removed:
        labels.pop(image_id, None)
    if missing:
        lost.append(f"{plural(missing, 'picture is', 'pictures are')} not there any more")
    return Decisions(labels, added, removed), [f"Left out: {why}." for why in lost]


def _read(path: Path) -> list[Decision]:
    """Read the decisions in a file; a line that was cut off by a kill is none."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WorkspaceError(
            f"{path} cannot be read: {reason(error)}", "Take it away, or mend it."
        ) from error
    for line in lines:
        try:
            found.append(Decision.model_validate_json(line))
        except ValidationError:
            continue
    return found


def _append(path: Path, decision: Decision) -> None:
    """Write a decision to the end of a file, durably."""
    new = not path.exists()
    line = json.dumps(decision.model_dump(mode="json", exclude_defaults=True), ensure_ascii=True)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # what a kill cut off before it is a line by itself
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
