"""Take corrections back: pictures of the workspace get the classes that a file gives them (`vlltr images relabel`)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlltr_index.classes.change import USUAL, ChangeOptions, ChangeReport, Edit, change, usable
from vlltr_index.classes.editing import NewClass, with_trained_note, write_classes
from vlltr_index.classes.effect import Effect
from vlltr_index.data.decoding import content_hash
from vlltr_index.data.files import require
from vlltr_index.data.labelled import KINDS, Labelled, disputes, export_in, read_labelled
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.errors import InputError, MissingStepError, UnknownClassError
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.schemas.tables import IMAGES
from vlltr_index.store.tables import one_of
from vlltr_index.wording import preview

if TYPE_CHECKING:
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_ROWS = 256  # rows of images, which may hold their bytes, that are written at once
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
        same: How many pictures were of the class already that the file gives them.
        left_out: What cannot be used, with its place in the file and the reason; among it what was not found.
        not_found: How many of these are pictures that the workspace does not have.
        classes_added: Classes made for names that there were none of.
    """

    source: str = ""
    relabelled: list[Relabelled] = field(default_factory=list)
    same: int = 0
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
    options: ChangeOptions = USUAL,
) -> RelabelReport:
    """Give pictures of the workspace, in all splits, the classes that a file says, in one commit and without training.

    A picture is that at the path in the file, or else those of the same content as the file there. The new class
    stays, also when its source is read again, until the source itself names another class for that picture than before.

    Args:
        workspace: The workspace; where a head is trained, anchors and statistics follow.
        path: See `data.labelled.read_labelled`; or a folder that FiftyOne wrote.
        list_root: The folder that paths are relative to; default: the file's own.
        label_names: A file of the names of numeric labels: see `data.names.read_class_names`.
        create_classes: Make classes for names that there are none of; they get the recipe's prompts.
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
    run = _Relabelling(listing, list_root or listing.parent, names, create_classes)
    command = f"images relabel {path}"
    if workspace.history.last().head is None:
        with workspace.transaction(command, dry_run=options.dry_run) as tx:
            notes = run.edit(tx).notes
        changed = options.dry_run or tx.result_commit != tx.commit
        report = ChangeReport(
            command=command,
            dry_run=options.dry_run,
            notes=notes,
            classes=[],
            effect=Effect(),
            changed=changed,
        )
    else:
        report = with_trained_note(change(workspace, command, run.edit, options))
    return RelabelReport(
        **vars(report),
        source=str(path),
        relabelled=run.relabelled,
        same=run.same,
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
    """

    def __init__(self, listing: Path, root: Path, names: ClassNames | None, create_classes: bool) -> None:
        self._listing = listing
        self._root = root
        self._names = names
        self._create_classes = create_classes
        self.relabelled: list[Relabelled] = []
        self.same = 0
        self.left_out: list[str] = []
        self.not_found = 0
        self.made: list[str] = []

    def edit(self, tx: Transaction) -> Edit:
        """Write the classes of the file's pictures."""
        stored = _Stored(tx, self._root)
        found = list(self._found(stored))
        if not found:
            example = f", for example {self.left_out[0]}" if self.left_out else ""
            raise InputError(
                f"no picture that {self._listing} names can be relabelled{example}",
                "Name the folder that its paths are relative to: --root DIR",
            )
        table = tx.class_table()
        ids = self._class_ids(table, found)
        new = [name for name, class_id in ids.items() if class_id is None]
        self.made = new
        fresh = dict(enumerate(map(NewClass, new), tx.next_id("classes", len(new)))) if new else {}
        texts = write_classes(tx, fresh) if fresh else None
        ids |= {one.name: i for i, one in fresh.items()}
        wanted = {key: ids[row.class_name or ""] for key, row in found}
        moved = {key: i for key, i in wanted.items() if i is not None and stored.by_id[key]["class_id"] != i}
        self.same = len(wanted) - len(moved)
        names = tx.class_table().names
        for key, class_id in moved.items():
            before = stored.by_id[key]["class_id"]
            now = names[class_id]
            was = None if before is None else names[before]
            self.relabelled.append(Relabelled(stored.by_id[key]["uri"], was, now))
        touched = {*moved.values(), *fresh, *(stored.by_id[key]["class_id"] for key in moved)} - {None}
        lacking = _write(tx, moved)
        return Edit(touched, sentences=texts, images=lacking, images_changed=bool(moved))

    def _found(self, stored: _Stored) -> Iterator[tuple[str, Labelled]]:
        """Yield the id of each stored picture that the file gives a class, with what it says; note all others."""
        pairs = list[tuple[str, Labelled]]()
        for row in read_labelled(self._listing, self._root, self._names):
            why = row.why or ("" if row.class_name else "no class")
            if why:
                self._leave_out(row, why)
                continue
            keys, why = stored.find(row)
            if why:
                self.not_found += 1
                self._leave_out(row, why)
            pairs += [(key, row) for key in keys]
        disputed = disputes(pairs)
        for key, row in pairs:
            if key in disputed:
                self._leave_out(row, disputed[key])
            else:
                yield key, row

    def _leave_out(self, row: Labelled, why: str) -> None:
        self.left_out.append(f"{row.where}: {row.entry}: {why}" if row.entry else f"{row.where}: {why}")

    def _class_ids(self, table: ClassTable, found: Sequence[tuple[str, Labelled]]) -> dict[str, int | None]:
        """Return the class of each name; None for one that is to be made."""
        first = {row.class_name: row.where for _, row in reversed(found) if row.class_name is not None}
        ids = {name: table.find(name) for name in first}
        unknown = [name for name, class_id in ids.items() if class_id is None]
        if unknown and not self._create_classes:
            hint = "Mend the file, or make classes of these names: --create-classes"
            if len(unknown) == 1:
                try:
                    table.lookup(unknown[0])
                except UnknownClassError as error:
                    hint = f"{(error.hint or '').partition('List all')[0]}{hint}"
            listed = ", ".join(f"{name!r} ({first[name]})" for name in unknown[:10])
            more = f" and {len(unknown) - 10:,} more" if len(unknown) > 10 else ""
            raise UnknownClassError(f"no class is called {listed}{more}", hint)
        return ids


class _Stored:
    """The pictures of a workspace, to be found by path or content."""

    def __init__(self, tx: Transaction, root: Path) -> None:
        self._root = root.resolve()
        rows = tx.table("images", _FACTS).to_pylist()
        if not rows:
            raise MissingStepError(
                "the workspace has no pictures to relabel", "Run: vlltr ingest images PATH --split train"
            )
        self.by_id: dict[str, dict[str, Any]] = {row["image_id"]: row for row in rows}

    def find(self, row: Labelled) -> tuple[list[str], str]:
        """Return the ids of the pictures that a row of a file means, or none, and why there is none."""
        full = os.path.normpath(os.path.join(self._root, row.entry))
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


def _write(tx: Transaction, moved: dict[str, int]) -> pa.Table:
    """Write the classes of images by their ids, and return the rows of those that may lack a vector."""
    lacking = [IMAGES.empty_table()]
    keys = sorted(moved)
    for start in range(0, len(keys), _ROWS):
        rows = tx.table("images", where=one_of("image_id", keys[start : start + _ROWS])).to_pylist()
        unlabelled = [row for row in rows if row["class_id"] is None and row["split"] == "train"]
        for row in rows:
            row["class_id"] = moved[row["image_id"]]
        tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES))
        lacking.append(pa.Table.from_pylist(unlabelled, schema=IMAGES))
    return usable(pa.concat_tables(lacking))
