"""`vlltr ingest`: images and sentences into the workspace, one commit a command; again adds only what is new."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.data.decoding import Probe
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.data.prompts import class_prompts
from vlltr_index.data.release_texts import is_release_corpus, names_beside
from vlltr_index.data.text_readers import read_text
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, SentenceRecord, Skipped
from vlltr_index.schemas.tables import IMAGES
from vlltr_index.store.ingestion import (
    file_of,
    image_id,
    image_row,
    is_gone,
    known_names,
    note_aliases,
    probe_all,
    resolve_classes,
    sentence_rows,
    with_stored_bytes,
)
from vlltr_index.store.tables import one_of
from vlltr_index.wording import many, some

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = ["IngestReport", "ingest_images", "ingest_text", "write_prompts"]

_ROWS = 1000
_BYTES = 64 * 2**20
_EXAMPLES = 10  # of each kind of note


@dataclass(frozen=True)
class IngestReport:
    """What an ingestion did. `notes` are examples of what was left out or kept aside, ten at most of each kind."""

    kind: str  # "images" | "sentences"
    source: str
    added: int
    updated: int  # images whose file, class or address changed
    unchanged: int  # there before; sentences: the same text in the same class
    classes_added: int
    classes: int
    splits: dict[str, int] = field(default_factory=dict)  # images of this source that are in, by split
    prompts: int = 0  # sentences made from class names; where text came in, they count as added
    quarantined: int = 0  # images kept with the reason why they cannot be used
    skipped: int = 0
    unknown_class: int = 0  # images left out because no class has that name
    duplicates_across_splits: int = 0  # images of the splits brought in whose very bytes are in another too
    duplicates_in: list[str] = field(default_factory=list)  # those splits
    notes: list[str] = field(default_factory=list)
    next_step: str | None = None

    def lines(self) -> list[str]:
        """The report for people."""
        by_split = ", ".join(f"{name} {count:,}" for name, count in sorted(self.splits.items()))
        same = "there before" if self.kind == "images" else "repeated or there before"
        counts = [(self.added, "added"), (self.updated, "updated"), (self.unchanged, same)]
        said = ", ".join(f"{count:,} {what}" for count, what in counts if count or what == "added")
        lines = [f"{self.source}: {self.kind} {said}" + (f" ({by_split})" if by_split else "") + "."]
        if self.prompts:
            made = (
                many(self.prompts, "prompt was", "prompts were")
                if self.kind == "images"
                else many(self.prompts, "of them is a prompt", "of them are prompts")
            )
            lines.append(f"{made} made from the class names.")
        lines.append(f"Classes: {self.classes:,}, {self.classes_added:,} of them new.")
        if self.quarantined:
            kept = many(self.quarantined, "image cannot be read; it is", "images cannot be read; they are")
            lines.append(f"{kept} kept aside with the reason.")
        if self.skipped:
            lines.append(f"{many(self.skipped, 'entry was', 'entries were')} left out.")
        if self.unknown_class:
            out = many(self.unknown_class, "image was", "images were")
            lines.append(f"{out} left out: the workspace has no class of that name.")
        if self.duplicates_across_splits:
            twice = many(self.duplicates_across_splits, "image is", "images are")
            lines.append(
                f"Warning: {twice} in more than one split, byte for byte: {', '.join(self.duplicates_in)}."
            )
        lines += [f"  {note}" for note in self.notes]
        return [*lines, f"Next: {self.next_step}"] if self.next_step else lines


def ingest_images(
    workspace: Workspace,
    path: Path | str,
    split: str | None = None,
    *,
    list_root: Path | None = None,
    label_names: Path | ClassNames | Sequence[str] | None = None,
    create_classes: bool = False,
    store: int | None = None,
    hold_out: float | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring in the images of a folder, list, JSON or Parquet file; each is decoded in full once.

    Files stay where they are, and Parquet rows are copied into the workspace; with `store` the workspace keeps all
    images, reduced. An image that cannot be read is stored with its problem, and the run goes on. Classes of the source
    that have no sentence get their prompts.

    Args:
        workspace: Where to.
        path: See `data.image_readers.read_images`.
        split: Names of classes are made from split `train`; images of other splits need a class that is there.
        list_root: What the paths of a list are relative to; default: its own folder.
        label_names: Names of numeric labels, or a file of them: see `data.names.read_class_names`.
        create_classes: Make classes for unknown names in every split.
        store: The shorter side, in pixels, of the images that the workspace keeps; smaller ones are kept as they are.
            Training and embedding see these from then on, not the files. An image that came in before with another
            side, or none, is replaced, and has no vectors yet.
        hold_out: The share of each class's images that goes to split `test` instead of `train`, drawn by their names,
            groups as a whole; images that came in otherwise before change over. 0: all are for training.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        InputError: If the source cannot be used, or all of its images are of unknown classes.
        UsageError: If the split is missing or is no name for one, or images of another than `train` are held out.
    """
    if hold_out is not None and (split != "train" or not 0.0 <= hold_out < 1.0):
        raise UsageError("a share from 0 to 0.9 is held out of the training split", "Say so: --split train")
    given = read_class_names(label_names) if isinstance(label_names, Path) else label_names
    given = given if given is None or isinstance(given, ClassNames) else ClassNames.of(given)
    command = f"ingest images {path}" + (f" --split {split}" if split else "")
    command += f" --store {store}" if store else ""
    command += "" if hold_out is None else f" --hold-out {hold_out:g}"
    with workspace.transaction(command) as tx:
        before = len(tx.class_table())
        names = known_names(tx, given)
        out = _held_out(read_images(path, split, list_root, names, with_data=False), hold_out or 0.0)

        def images(with_data: bool) -> Iterator[ImageRecord | Skipped]:
            for item in read_images(path, split, list_root, names, with_data=with_data):
                if isinstance(item, ImageRecord) and item.source in out:
                    item = replace(item, split="test")
                yield item

        labels = _labels(images(with_data=False))
        fresh = {name for name, where in labels.items() if create_classes or "train" in where}
        classes = resolve_classes(tx, list(labels), lambda name: name in fresh)
        note_aliases(tx, given, names, classes)
        total = sum(map(Counter.total, labels.values()))
        run = _ImageRun(tx, classes, store, hold_out is not None, total, progress)
        run.take(images(with_data=True))
        run.compare(names, labels)
        mute = set(_classes_without_text(tx)[0]).intersection(classes.values())
        return run.report(str(path), before, write_prompts(workspace, tx, mute))


def _held_out(items: Iterator[ImageRecord | Skipped], share: float) -> frozenset[str]:
    """Sources of a share of each class's images, at most, in the order of a hash of their group or source."""
    of: dict[str, list[tuple[str, str]]] = {}
    for item in items if share else ():
        if isinstance(item, ImageRecord) and item.class_name is not None:
            unit = hashlib.sha256(os.fsencode(item.group or item.source)).hexdigest()
            of.setdefault(item.class_name, []).append((unit, item.source))
    held: list[str] = []
    for images in of.values():
        last = min(round(share * len(images)), len(images) - 1)
        images.sort()
        while 0 < last < len(images) and images[last - 1][0] == images[last][0]:  # within a group
            last -= 1
        held += [source for _, source in images[:last]]
    return frozenset(held)


def _labels(items: Iterator[ImageRecord | Skipped]) -> dict[str, Counter[str]]:
    """How many images of each class a source has in each split, in order of appearance."""
    found: dict[str, Counter[str]] = {}
    for item in items:
        if isinstance(item, ImageRecord) and item.class_name is not None:
            found.setdefault(item.class_name, Counter())[item.split] += 1
    return found


class _ImageRun:
    """One ingestion of images."""

    def __init__(
        self,
        tx: Transaction,
        classes: dict[str, int | None],
        side: int | None,
        moves: bool,
        total: int,
        progress: Progress | None,
    ) -> None:
        self._tx, self._classes, self._side, self._total, self._progress = tx, classes, side, total, progress
        self._moves = moves  # whether an image leaves the other one of `train` and `test`
        self._notes = _Notes()
        self._splits: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()  # images of classes that are not there, by name
        self._added = self._updated = self._done = 0
        self._seen: set[str] = set()
        self._stored: dict[str, tuple[str, str | None, str]] = {}  # id without side -> uri, content hash, id
        self._replaced: list[str] = []  # ids of images that were kept at another side
        self._probes: dict[str, Probe] = {}  # of readable images, by content hash
        columns = ["image_id", "uri", "content_hash", "width", "height", "problem"]
        for batch in tx.scan("images", columns, batch_rows=8192):
            for key, uri, content, width, height, problem in zip(
                *(batch.column(c).to_pylist() for c in columns), strict=True
            ):
                self._stored[key.partition("-")[0]] = (uri, content, key)
                if problem is None and content is not None:
                    self._probes[content] = Probe(content, width, height, None)

    def take(self, items: Iterator[ImageRecord | Skipped]) -> None:
        """Store all images of a source."""
        part: list[ImageRecord] = []
        size = 0
        for item in items:
            if isinstance(item, Skipped):
                self._notes.skip(item)
            elif item.class_name is not None and self._classes[item.class_name] is None:
                self._unknown[item.class_name] += 1
                self._done += 1
            else:
                part.append(item)
                size += len(item.data or b"")
            if len(part) >= _ROWS or size >= _BYTES:
                self._write(part)
                part, size = [], 0
        self._write(part)
        for start in range(0, len(self._replaced), _ROWS):
            self._tx.delete("images", one_of("image_id", self._replaced[start : start + _ROWS]))
        if not self._splits and self._unknown:
            raise InputError(
                f"none of the {self._unknown.total():,} images is of a class that the workspace knows; "
                f"theirs are, for example, {_counted(self._unknown)}",
                "Bring in the training images or the texts first, or make the classes now: --create-classes",
            )
        if not self._splits:
            raise InputError(
                f"no image was taken: {self._notes.lines[0]}", "Mend the source and run the command again."
            )

    def compare(self, names: ClassNames | None, labels: dict[str, Counter[str]]) -> None:
        """Note the named classes of which the source has no image, and labels that are bare numbers."""
        if names is None:
            numbers = [name for name in labels if name.isascii() and name.isdecimal()]
            if numbers and len(numbers) == len(labels):
                self._notes.lines.append(
                    f"the labels are numbers, so classes are called {some(numbers)}; name them: --names FILE"
                )
            return
        empty = [name for name in names.names if name not in labels]
        if empty:
            self._notes.lines.append(
                f"{len(empty):,} of the {len(names):,} named classes have no image here: {some(empty)}"
            )

    def _write(self, records: list[ImageRecord]) -> None:
        probes = probe_all(records, self._probes)
        pairs = list(zip(records, probes, strict=True))
        if self._side is not None:
            pairs = with_stored_bytes(records, probes, self._side)
        rows, added = [], 0
        for record, found in pairs:
            class_id = self._classes[record.class_name] if record.class_name else None
            row = image_row(record, found, class_id, self._side)
            stored = self._identify(row, record)
            if row["image_id"] in self._seen:
                self._notes.skip(Skipped(record.uri, "named before in this source"))
                continue
            self._seen.add(row["image_id"])
            rows.append(row)
            self._splits[record.split] += 1
            added += stored is None
            if stored is not None and stored != row["image_id"]:
                self._replaced.append(stored)
            other = image_id("train" if record.split == "test" else "test", record.source)
            if self._moves and other in self._stored and self._stored[other][0] == record.uri:
                self._replaced.append(self._stored[other][2])
            if found.problem is not None:
                self._notes.add("quarantined", f"kept aside: {record.uri}: {found.problem}")
        if rows:
            self._added += added
            self._updated += self._tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES)) - added
        self._done += len(records)
        if self._progress:
            self._progress("ingest images", self._done, max(self._total, self._done))

    def _identify(self, row: dict[str, Any], record: ImageRecord) -> str | None:
        """Settle a row's key and address; returns the key that the image is stored under, if it is.

        The same name with other bytes, while the file it stood for is still there, is another image: it goes by its
        full address. The same name and bytes elsewhere is the same image: it keeps the address it has.
        """
        stored = self._stored.get(image_id(record.split, record.source))
        if stored is not None and stored[0] != record.uri:
            if stored[1] == row["content_hash"]:
                if record.data is not None or not is_gone(stored[0]):
                    row["uri"] = stored[0]
            elif file_of(stored[0]) != file_of(record.uri) and not is_gone(stored[0]):
                row["image_id"] = image_id(record.split, record.uri, self._side)
                stored = self._stored.get(image_id(record.split, record.uri))
        return None if stored is None else stored[2]

    def report(self, source: str, classes_before: int, prompts: int) -> IngestReport:
        """What was done."""
        counts, total = self._notes.counts, self._splits.total()
        if self._unknown:
            self._notes.add("unknown", f"no class of the name {_counted(self._unknown)}")
        classes = len(self._tx.class_table())
        shared, between = _shared(self._tx, self._splits)
        return IngestReport(
            kind="images",
            source=source,
            added=self._added,
            updated=self._updated,
            unchanged=total - self._added - self._updated,
            classes_added=classes - classes_before,
            classes=classes,
            splits=dict(self._splits),
            prompts=prompts,
            quarantined=counts["quarantined"],
            skipped=counts["skipped"],
            unknown_class=self._unknown.total(),
            duplicates_across_splits=shared,
            duplicates_in=between,
            notes=self._notes.lines,
            next_step=_next_step(self._tx),
        )


def _counted(names: Counter[str]) -> str:
    shown = [f"{name!r} ({count:,})" for name, count in names.most_common(3)]
    return ", ".join(shown) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _shared(tx: Transaction, given: Iterable[str]) -> tuple[int, list[str]]:
    """How many different images of the splits `given` are, byte for byte, in another split too, and in which."""
    rows = tx.table("images", ["content_hash", "split"])
    pairs = (
        rows.filter(pc.is_valid(rows.column("content_hash")))
        .group_by(["content_hash", "split"])
        .aggregate([])
    )
    mine = pc.is_in(pairs["split"], pa.array(sorted(given), pa.string()))
    ours = pairs.filter(mine)["content_hash"]
    splits = (
        pairs.filter(pc.is_in(pairs["content_hash"], ours))
        .group_by("content_hash")
        .aggregate([("split", "list")])
    )
    shared = [found for found in splits["split_list"].to_pylist() if len(found) > 1]
    return len(shared), sorted({split for found in shared for split in found})


def _next_step(tx: Transaction) -> str | None:
    """The command that brings text, where classes lack it."""
    mute, bare = map(len, _classes_without_text(tx))
    if mute:
        return f"vlltr ingest text PATH   ({many(mute, 'class has', 'classes have')} no sentence yet)"
    if bare:
        told = f"{many(bare, 'class has', 'classes have')} no text but prompts"
        return f"vlltr ingest text PATH, or without text: vlltr embed   ({told})"
    return None


def write_prompts(
    workspace: Workspace,
    tx: Transaction,
    class_ids: Iterable[int],
    known: Callable[[str], bool] | None = None,
) -> int:
    """Give classes the recipe's prompts, but for sentences that are `known` by their id; how many are new."""
    names = tx.class_table().names
    asked = {i: class_prompts(names[i], workspace.recipe.prompts) for i in sorted(class_ids)}
    return tx.upsert("sentences", sentence_rows(asked, known))


def _classes_without_text(tx: Transaction) -> tuple[list[int], list[int]]:
    """The classes that have no sentence, and those that have none but prompts or none at all."""
    rows = tx.table("sentences", ["class_id", "source"])
    told = rows.filter(pc.not_equal(rows.column("source"), "prompt"))
    ids = set(tx.class_table().ids)
    mute, bare = (sorted(ids - set(pc.unique(part.column("class_id")).to_pylist())) for part in (rows, told))
    return mute, bare


def ingest_text(
    workspace: Workspace,
    path: Path,
    *,
    source: str | None = None,
    label_names: Path | ClassNames | None = None,
    prompts: bool | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring in sentences, make classes for new names, and give every class its prompts.

    Args:
        workspace: Where to.
        path: See `data.text_readers.read_text`.
        source: Name of the source for sentences that do not bring one; default: the name of the folder or file.
        label_names: Names of a release corpus's class numbers; default: the file beside it.
        prompts: Whether every class of the workspace gets the recipe's prompts; default: yes.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        InputError: If the source cannot be used, or holds no sentence.
    """
    names = _corpus_names(path, label_names)
    with workspace.transaction(f"ingest text {path}") as tx:
        used = known_names(tx, names)
        notes = _Notes()
        found = _read_sentences(path, source, used, notes, progress)
        return _write_text(workspace, tx, str(path), found, prompts is not False, notes, (names, used))


def _corpus_names(path: Path, given: Path | ClassNames | None) -> ClassNames | None:
    """The names of a release corpus's class numbers.

    Raises:
        InputError: If there are none, or they are given for another kind of source.
    """
    numbered = path.is_dir() and is_release_corpus(path)
    if given is None:
        return names_beside(path) if numbered else None
    if not numbered and path.exists():
        raise InputError(
            f"{path} names its classes itself: --names is for a folder of desc_<class number>.txt",
            f"Leave it out: vlltr ingest text {path}",
        )
    return read_class_names(given) if isinstance(given, Path) else given


def _read_sentences(
    path: Path, source: str | None, names: ClassNames | None, notes: _Notes, progress: Progress | None
) -> dict[str, list[SentenceRecord]]:
    """The sentences of a source by class name."""
    found: dict[str, list[SentenceRecord]] = {}
    read = 0
    for item in read_text(path, source, names):
        if isinstance(item, Skipped):
            notes.skip(item)
            continue
        found.setdefault(item.class_name, []).append(item)
        read += 1
        if progress and read % 10_000 == 0:
            progress("read sentences", read, None)
    if not found:
        example = notes.lines[0] if notes.lines else ""
        raise InputError(f"{path} holds no sentence ({example})", "Give every class a sentence or more.")
    if progress:
        progress("read sentences", read, read)
    return found


def _write_text(
    workspace: Workspace,
    tx: Transaction,
    source: str,
    found: dict[str, list[SentenceRecord]],
    prompts: bool,
    notes: _Notes,
    names: tuple[ClassNames | None, ClassNames | None],
) -> IngestReport:
    before = len(tx.class_table())
    classes = resolve_classes(tx, list(found), lambda name: True)
    note_aliases(tx, *names, classes)
    known: set[str] = set()
    for batch in tx.scan("sentences", ["sentence_id"], batch_rows=8192):
        known.update(batch.column(0).to_pylist())
    owned: dict[int, list[SentenceRecord]] = {}
    for name, records in found.items():
        class_id = classes[name]
        assert class_id is not None  # every name may make a class
        owned.setdefault(class_id, []).extend(records)
    rows = sentence_rows(owned, known.__contains__)
    tx.upsert("sentences", rows)
    known.update(rows.column("sentence_id").to_pylist())
    table = tx.class_table()
    made = write_prompts(workspace, tx, table.ids, known.__contains__) if prompts else 0
    given = sum(map(len, owned.values()))
    _, bare = _classes_without_text(tx)
    if bare:
        notes.lines.append(
            f"{len(bare):,} of {len(table):,} classes have no text{' but prompts' if prompts else ''}: "
            + some(table.names[i] for i in bare)
        )
    return IngestReport(
        kind="sentences",
        source=source,
        added=rows.num_rows + made,
        updated=0,
        unchanged=given - rows.num_rows,
        classes_added=len(table) - before,
        classes=len(table),
        prompts=made,
        skipped=notes.counts["skipped"],
        notes=notes.lines,
    )


@dataclass
class _Notes:
    """Counts of what was left out, and the first few of each kind in words."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _EXAMPLES:
            self.lines.append(line)

    def skip(self, item: Skipped) -> None:
        self.add("skipped", f"left out: {item.where}: {item.why}")
