"""Take corrections back: pictures of the workspace get the classes that a file gives them (`vlltr images relabel`)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlltr_index.classes.change import USUAL, ChangeOptions, Edit, open_change
from vlltr_index.classes.deciding import Decisions, write_decisions
from vlltr_index.classes.report import ChangeReport
from vlltr_index.data.decoding import content_hash
from vlltr_index.data.files import require
from vlltr_index.data.image_readers import NAME_ROOT, ListedFolder
from vlltr_index.data.labelled import KINDS, MEND_ROWS, NO_CLASS, Labelled, disputes, export_in, read_labelled
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.errors import InputError, MissingStepError, UnknownClassError
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.wording import preview

if TYPE_CHECKING:
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_FACTS = ["image_id", "uri", "content_hash", "class_id", "split"]


@dataclass(frozen=True)
class Relabelled:
    """A picture with another class than before."""

    image: str
    before: str | None
    now: str


@dataclass(frozen=True)
class RelabelReport(ChangeReport):
    """Report of a file of corrections.

    Attributes:
        source: The file.
        relabelled: The pictures whose class changed.
        same: How many pictures were of the class already that the file gives them, which confirms it.
        unsaid: How many rows name no class.
        added_images: How many pictures were taken in.
        left_out: What cannot be used, with its place in the file and the reason; among it what was not found.
        not_found: How many of these are pictures that the workspace does not have.
        classes_added: Classes made for names that there were none of.
    """

    source: str = ""
    relabelled: list[Relabelled] = field(default_factory=list)
    same: int = 0
    unsaid: int = 0
    added_images: int = 0
    left_out: list[str] = field(default_factory=list)
    not_found: int = 0
    classes_added: list[str] = field(default_factory=list)


def relabel_images(
    workspace: Workspace,
    path: Path,
    *,
    list_root: Path | None = None,
    label_names: Path | None = None,
    create_classes: bool = False,
    add: bool = False,
    options: ChangeOptions = USUAL,
) -> RelabelReport:
    """Give pictures of the workspace, in all splits, the classes that a file says, in one commit and without training.

    A picture is that at the path in the file, or else those of the same content as the file there. The new class
    stays, also when its source is read again, until the source itself names another class for that picture than before.
    A class that a picture has already is confirmed by it: `review` does not ask again.

    Args:
        workspace: The workspace; where a head is trained, anchors and statistics follow.
        path: See `data.labelled.read_labelled`; or a folder that FiftyOne wrote.
        list_root: The folder that paths are relative to; default: the file's own.
        label_names: A file of the names of numeric labels: see `data.names.read_class_names`.
        create_classes: Make classes for names that there are none of; they get the recipe's prompts.
        add: Take in pictures that the workspace does not have, as training images. They must lie in `list_root`, and no
            link may lead out of it.
        options: See there.

    Raises:
        InputError: If the file cannot be read, or nothing in it can be used.
        UnknownClassError: If it names classes that do not exist, without `create_classes`.
    """
    listing = export_in(path) or require(path)
    if listing.suffix.lower() not in KINDS:
        raise InputError(
            f"{path}: unknown kind of file of corrections {listing.suffix!r}",
            f"Expected one that names pictures and classes: {', '.join(KINDS)}",
        )
    names = None if label_names is None else read_class_names(label_names)
    run = _Relabelling(listing, list_root or listing.parent, names, create_classes=create_classes, add=add)
    with open_change(workspace, f"images relabel {path}", options, needs_head=False) as change:
        change.finish(run.edit(change.tx))
    return RelabelReport(
        **vars(change.report),
        source=str(path),
        relabelled=run.relabelled,
        same=run.same,
        unsaid=run.unsaid,
        added_images=run.added,
        left_out=run.left_out,
        not_found=run.not_found,
        classes_added=run.made,
    )


class _Relabelling:
    """One reading of a file of corrections.

    Args:
        listing: The file.
        root: The folder that its paths are relative to.
        names: Names of numeric labels.
        create_classes: Whether classes are made for unknown names.
        add: Whether pictures that the workspace does not have are taken in.
    """

    def __init__(
        self, listing: Path, root: Path, names: ClassNames | None, *, create_classes: bool, add: bool
    ) -> None:
        self._listing = listing
        self._root = root.resolve()
        self._names = names
        self._create_classes = create_classes
        self._add = add
        self._new: list[tuple[str, Labelled]] = []  # the path of each picture that is to be taken in
        self.added = 0
        self.relabelled: list[Relabelled] = []
        self.same = 0
        self.unsaid = 0
        self.left_out: list[str] = []
        self.not_found = 0
        self.made: list[str] = []

    def edit(self, tx: Transaction) -> Edit:
        """Write the classes of the file's pictures."""
        stored = _Stored(tx, self._root, empty=self._add)
        classes = tx.class_table()
        found = list(self._undisputed(list(self._found(stored, classes))))
        new = list(self._undisputed(self._new))
        if not found and not new:
            self._refuse()
        self._check_names(classes, [*found, *new])
        decisions = Decisions(
            labels={key: row.class_name or "" for key, row in found},
            added={Path(path): row.class_name or "" for path, row in new},
        )
        done, edit = write_decisions(tx, decisions)
        self.relabelled = [
            Relabelled(stored.by_id[key]["uri"], before, now) for key, (before, now) in done.moved.items()
        ]
        self.same = done.confirmed
        self.added = len(decisions.added) - len(done.skipped)
        self.left_out += done.skipped
        self.made = done.classes
        return edit

    def _found(self, stored: _Stored, classes: ClassTable) -> Iterator[tuple[str, Labelled]]:
        """Yield the id of each stored picture that the file gives a class, with what it says; note all others."""
        folder = ListedFolder(self._root)
        for row in read_labelled(self._listing, self._root, self._names, classes=classes):
            why = row.why or ("" if row.class_name else NO_CLASS)
            if why == NO_CLASS:
                self.unsaid += 1
                continue
            if why:
                self._leave_out(row, why)
                continue
            path, misplaced = folder.place(row) if self._add else ("", "")
            keys, why = stored.find(row, path)
            if keys:
                yield from ((key, row) for key in keys)
            elif self._add and not misplaced:
                self._new.append((path, row))
            else:
                self.not_found += 1
                self._leave_out(row, misplaced or why)

    def _undisputed(self, pairs: list[tuple[str, Labelled]]) -> Iterator[tuple[str, Labelled]]:
        """Yield the pictures that rows give one class, and note each other once."""
        disputed = disputes(pairs)
        noted = set[str]()
        for key, row in pairs:
            if key not in disputed:
                yield key, row
            elif key not in noted:
                noted.add(key)
                self._leave_out(row, disputed[key])

    def _refuse(self) -> NoReturn:
        """Say why nothing in the file can be used."""
        if self.left_out:
            hint = MEND_ROWS
            if self.not_found:
                hint = NAME_ROOT + ("" if self._add else "; or take new pictures in: --add")
            example = self.left_out[0]
            raise InputError(
                f"no picture that {self._listing} names can be relabelled, for example {example}", hint
            )
        if self.unsaid:
            raise InputError(
                f"no row of {self._listing} names a class",
                "Write the class of each picture that you looked at into the column class.",
            )
        raise InputError(f"{self._listing} has no row", "Write a path and a class into it for each picture.")

    def _leave_out(self, row: Labelled, why: str) -> None:
        self.left_out.append(f"{row.where}: {row.entry}: {why}" if row.entry else f"{row.where}: {why}")

    def _check_names(self, table: ClassTable, found: Sequence[tuple[str, Labelled]]) -> None:
        """Refuse names that there is no class of, unless classes are to be made."""
        first = {row.class_name: row.where for _, row in reversed(found) if row.class_name is not None}
        unknown = [name for name in first if table.find(name) is None]
        if not unknown or self._create_classes:
            return
        hint = "Mend the file, or make classes of these names: --create-classes"
        if len(unknown) == 1:
            try:
                table.lookup(unknown[0])
            except UnknownClassError as error:
                hint = f"{(error.hint or '').partition('List all')[0]}{hint}"
        listed = ", ".join(f"{name!r} ({first[name]})" for name in unknown[:10])
        more = f" and {len(unknown) - 10:,} more" if len(unknown) > 10 else ""
        raise UnknownClassError(f"no class is called {listed}{more}", hint)


class _Stored:
    """The pictures of a workspace, to be found by path or content.

    Args:
        tx: The open transaction.
        root: The folder, resolved, that paths are relative to.
        empty: Whether there may be none.
    """

    def __init__(self, tx: Transaction, root: Path, empty: bool) -> None:
        self._root = root
        rows = tx.table("images", _FACTS).to_pylist()
        if not rows and not empty:
            raise MissingStepError(
                "the workspace has no pictures to relabel", "Run: vlltr ingest images PATH --split train"
            )
        self.by_id: dict[str, dict[str, Any]] = {row["image_id"]: row for row in rows}

    def find(self, row: Labelled, path: str = "") -> tuple[list[str], str]:
        """Return the ids of the pictures that a row of a file means, or none, and why there is none.

        Args:
            row: The row.
            path: Where its picture lies, if that is known.
        """
        full = path or os.path.normpath(os.path.join(self._root, row.entry))
        found = self._by("uri").get(full) or self._by("uri").get(row.entry)
        if found:
            return found, ""
        here = (os.path.join(self._root, name) for name in row.names)
        content = next(filter(None, map(_content, (full, *here))), None)
        if content is not None:
            same = self._by("content_hash").get(content, [])
            return same, "" if same else "the workspace has it neither by its path nor by its content"
        for name in row.names:
            called = self._by_name.get(name, [])
            if len({self.by_id[key]["content_hash"] for key in called}) > 1:
                listed = preview(self.by_id[key]["uri"] for key in called)
                return [], f"several pictures of the workspace are called {name}: {listed}"
            if called:
                return called, ""
        return [], "the workspace has no picture of this path, and there is no such file"

    def _by(self, column: str) -> dict[str, list[str]]:
        return self._indexed[column]

    @cached_property
    def _indexed(self) -> dict[str, dict[str, list[str]]]:
        """Ids by path, and by content."""
        found: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in ("uri", "content_hash")}
        for key, row in self.by_id.items():
            for column, ids in found.items():
                if row[column] is not None:
                    ids[row[column]].append(key)
        return found

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Ids by the name of the file alone."""
        found = defaultdict[str, list[str]](list)
        for key, row in self.by_id.items():
            found[row["uri"].rpartition("/")[2]].append(key)
        return found


def _content(path: str) -> str | None:
    """Return the hash of a file's content; None if there is no such file."""
    return content_hash(ImageRecord(path, path, None, ""))
