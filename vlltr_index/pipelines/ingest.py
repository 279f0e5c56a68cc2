"""Bring images and sentences into a workspace (`vlltr ingest`): one commit a command; a second run adds what is new."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.data.decoding import Probe
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.data.text import class_prompts
from vlltr_index.data.text_readers import is_release_corpus, names_beside, read_text
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, SentenceRecord, Skipped
from vlltr_index.schemas.tables import IMAGES
from vlltr_index.store import ingestion
from vlltr_index.store.tables import one_of
from vlltr_index.wording import many, some

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_ROWS = 1000
_BYTES = 64 * 2**20
_EXAMPLES = 10  # of each kind of note


@dataclass(frozen=True)
class IngestReport:
    """Report of an ingestion; `notes` has at most ten examples of each kind of entry left out or kept aside."""

    kind: str  # "images" | "sentences"
    source: str
    added: int
    unchanged: int  # there before; sentences: the same text in the same class
    classes_added: int
    classes: int
    prompts: int  # sentences made from class names; where text came in, they count as added
    skipped: int
    notes: list[str]
    updated: int = 0  # images whose file, class or address changed
    splits: dict[str, int] = field(default_factory=dict)  # images of this source that are in, by split
    quarantined: int = 0  # images kept with the reason why they cannot be used
    unknown_class: int = 0  # images left out because no class has that name
    duplicates_across_splits: int = 0  # images of the splits brought in whose very bytes are in another too
    duplicates_in: list[str] = field(default_factory=list)  # those splits
    next_step: str | None = None


def ingest_images(
    workspace: Workspace,
    path: Path | str,
    split: str | None = None,
    *,
    list_root: Path | None = None,
    label_names: Path | None = None,
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
        workspace: The workspace to write to.
        path: See `data.image_readers.read_images`.
        split: Split of the images. Split `train` makes classes of new names; images of other splits need a class.
        list_root: What the paths of a list are relative to; default: its own folder.
        label_names: A file of the names of numeric labels: see `data.names.read_class_names`.
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
    given = read_class_names(label_names) if label_names is not None else None
    command = f"ingest images {path}" + (f" --split {split}" if split else "")
    command += f" --store {store}" if store else ""
    command += "" if hold_out is None else f" --hold-out {hold_out:g}"
    with workspace.transaction(command) as tx:
        before = len(tx.class_table())
        names = given and ingestion.known_names(tx, given)
        labels, out = _listed(read_images(path, split, list_root, names, with_data=False), hold_out or 0.0)
        fresh = {name for name, where in labels.items() if create_classes or "train" in where}
        classes = ingestion.resolve_classes(tx, list(labels), lambda name: name in fresh)
        if given and names:
            ingestion.note_aliases(tx, given, names, classes)
        total = sum(map(Counter.total, labels.values()))
        images = (
            replace(item, split="test") if isinstance(item, ImageRecord) and item.source in out else item
            for item in read_images(path, split, list_root, names, with_data=True)
        )
        run = _ImageRun(
            tx=tx,
            classes=classes,
            side=store,
            moves=hold_out is not None,
            total=total,
            progress=progress,
        )
        run.take(images)
        run.compare(names, labels)
        mute = _classes_without_text(tx)[0].intersection(classes.values())
        return run.report(str(path), before, write_prompts(tx, mute))


def _listed(
    items: Iterator[ImageRecord | Skipped], share: float
) -> tuple[dict[str, Counter[str]], frozenset[str]]:
    """Count the images of each class by split, in order of appearance, and choose the sources to hold out: at most
    `share` of each class's images, in the order of a hash of their group or source, whole groups only."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item in items:
        if isinstance(item, ImageRecord) and item.class_name is not None:
            labels[item.class_name][item.split] += 1
            if share:
                unit = hashlib.sha256(os.fsencode(item.group or item.source)).hexdigest()
                of[item.class_name].append((unit, item.source))
    held: list[str] = []
    for images in map(sorted, of.values()):
        last = min(round(share * len(images)), len(images) - 1)
        # Move back to the start of a group, so that none is split.
        while 0 < last < len(images) and images[last - 1][0] == images[last][0]:
            last -= 1
        held += [source for _, source in images[:last]]
    return labels, frozenset(held)


@dataclass
class _Notes:
    """Counts of the entries left out, and the first few notes of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _EXAMPLES:
            self.lines.append(line)

    def skip(self, item: Skipped) -> None:
        self.add("skipped", f"left out: {item.where}: {item.why}")


@dataclass
class _ImageRun:
    """State of one ingestion of images."""

    tx: Transaction
    classes: dict[str, int | None]
    side: int | None
    moves: bool  # whether an image stored in the other split of `train` and `test` is moved to the new one
    total: int
    progress: Progress | None
    notes: _Notes = field(default_factory=_Notes)
    splits: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)  # images of unknown classes, by class name
    added: int = 0
    updated: int = 0
    seen: set[str] = field(default_factory=set)
    # Id, URI and content hash of each stored image, by its id without the suffix of the stored size.
    stored: dict[str, tuple[str, str, str | None]] = field(default_factory=dict)
    replaced: list[str] = field(
        default_factory=list
    )  # ids of rows to delete: stored at another size or moved
    probes: dict[str, Probe] = field(default_factory=dict)  # of readable images, by content hash

    def __post_init__(self) -> None:
        columns = ["image_id", "uri", "content_hash", "width", "height", "problem"]
        for batch in self.tx.scan("images", columns, batch_rows=8192):
            for key, uri, content, width, height, problem in zip(*batch.to_pydict().values(), strict=True):
                self.stored[key.partition("-")[0]] = (key, uri, content)
                if problem is None and content is not None:
                    self.probes[content] = Probe(content, width, height, None)

    def take(self, items: Iterator[ImageRecord | Skipped]) -> None:
        """Store all images of a source, in parts of bounded size."""
        part: list[ImageRecord] = []
        size = 0
        for item in items:
            if isinstance(item, Skipped):
                self.notes.skip(item)
            elif item.class_name is not None and self.classes[item.class_name] is None:
                self.unknown[item.class_name] += 1
            else:
                part.append(item)
                size += len(item.data or b"")
            if len(part) >= _ROWS or size >= _BYTES:
                self._write(part)
                part = []
                size = 0
        self._write(part)
        for start in range(0, len(self.replaced), _ROWS):
            self.tx.delete("images", one_of("image_id", self.replaced[start : start + _ROWS]))
        if not self.splits and self.unknown:
            raise InputError(
                f"none of the {self.unknown.total():,} images is of a class that the workspace knows; "
                f"theirs are, for example, {_counted(self.unknown)}",
                "Bring in the training images or the texts first, or make the classes now: --create-classes",
            )
        if not self.splits:
            raise InputError(
                f"no image was taken: {self.notes.lines[0]}", "Mend the source and run the command again."
            )

    def compare(self, names: ClassNames | None, labels: dict[str, Counter[str]]) -> None:
        """Note the named classes that have no image in the source, or that all labels are bare numbers."""
        if names is not None:
            empty = [name for name in names.names if name not in labels]
            told = f"{len(empty):,} of the {len(names):,} named classes have no image here: {some(empty)}"
        else:
            empty = list(labels) if all(name.isascii() and name.isdecimal() for name in labels) else []
            told = f"the labels are numbers, so classes are called {some(empty)}; name them: --names FILE"
        if empty:
            self.notes.lines.append(told)

    def _write(self, records: list[ImageRecord]) -> None:
        probes = ingestion.probe_all(records, self.probes)
        pairs = list(zip(records, probes, strict=True))
        if self.side is not None:
            pairs = ingestion.with_stored_bytes(records, probes, self.side)
        rows = []
        added = 0
        for record, found in pairs:
            class_id = self.classes[record.class_name] if record.class_name else None
            row = ingestion.image_row(record, found, class_id, self.side)
            stored = self._identify(row, record)
            if row["image_id"] in self.seen:
                self.notes.skip(Skipped(record.uri, "named before in this source"))
                continue
            self.seen.add(row["image_id"])
            rows.append(row)
            self.splits[record.split] += 1
            added += stored is None
            if stored is not None and stored != row["image_id"]:
                self.replaced.append(stored)
            other = self.stored.get(
                ingestion.image_id("train" if record.split == "test" else "test", record.source)
            )
            if self.moves and other is not None and other[1] == record.uri:
                self.replaced.append(other[0])
            if found.problem is not None:
                self.notes.add("quarantined", f"kept aside: {record.uri}: {found.problem}")
        self.added += added
        self.updated += self.tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES)) - added
        if self.progress:
            done = self.splits.total() + self.unknown.total()
            self.progress("ingest images", done, max(self.total, done))

    def _identify(self, row: dict[str, Any], record: ImageRecord) -> str | None:
        """Set a row's id and URI, and return the id that the image is stored under, or None if it is new.

        The same name with other bytes, while the stored file still exists, is another image: its id is made from its
        full URI. The same name and bytes at another place is the same image: it keeps its stored URI.
        """
        key, uri, content = self.stored.get(
            ingestion.image_id(record.split, record.source), (None, record.uri, None)
        )
        if uri == record.uri:
            return key
        if content == row["content_hash"]:
            if record.data is not None or not ingestion.is_gone(uri):
                row["uri"] = uri
        elif ingestion.file_of(uri) != ingestion.file_of(record.uri) and not ingestion.is_gone(uri):
            row["image_id"] = ingestion.image_id(record.split, record.uri, self.side)
            key = self.stored.get(ingestion.image_id(record.split, record.uri), (None,))[0]
        return key

    def report(self, source: str, classes_before: int, prompts: int) -> IngestReport:
        """Return the report of the ingestion."""
        if self.unknown:
            self.notes.add("unknown", f"no class of the name {_counted(self.unknown)}")
        classes = len(self.tx.class_table())
        shared = _shared(self.tx, self.splits)
        return IngestReport(
            kind="images",
            source=source,
            added=self.added,
            updated=self.updated,
            unchanged=self.splits.total() - self.added - self.updated,
            classes_added=classes - classes_before,
            classes=classes,
            splits=dict(self.splits),
            prompts=prompts,
            quarantined=self.notes.counts["quarantined"],
            skipped=self.notes.counts["skipped"],
            unknown_class=self.unknown.total(),
            duplicates_across_splits=len(shared),
            duplicates_in=sorted(set().union(*shared)),
            notes=self.notes.lines,
            next_step=_next_step(self.tx),
        )


def _counted(names: Counter[str]) -> str:
    shown = [f"{name!r} ({count:,})" for name, count in names.most_common(3)]
    return ", ".join(shown) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _shared(tx: Transaction, given: Iterable[str]) -> list[set[str]]:
    """Return, for each image content found in several splits of which one is `given`, the set of its splits."""
    rows = tx.table("images", ["content_hash", "split"])
    splits = defaultdict[str | None, set[str]](set)
    for content, split in zip(rows["content_hash"].to_pylist(), rows["split"].to_pylist(), strict=True):
        splits[content].add(split)
    splits.pop(None, None)
    return [found for found in splits.values() if len(found) > 1 and not found.isdisjoint(given)]


def _next_step(tx: Transaction) -> str | None:
    """Return the next command to run if classes lack text, else None."""
    mute, bare = map(len, _classes_without_text(tx))
    if mute:
        return f"vlltr ingest text PATH   ({many(mute, 'class has', 'classes have')} no sentence yet)"
    told = f"{many(bare, 'class has', 'classes have')} no text but prompts"
    return f"vlltr ingest text PATH, or without text: vlltr embed   ({told})" if bare else None


def write_prompts(tx: Transaction, class_ids: Iterable[int]) -> int:
    """Give classes the recipe's prompts, but for sentences that are there; how many are new."""
    names = tx.class_table().names
    known = set(tx.table("sentences", ["sentence_id"])["sentence_id"].to_pylist())
    asked = {i: class_prompts(names[i], tx.recipe.prompts) for i in sorted(class_ids)}
    return tx.upsert("sentences", ingestion.sentence_rows(asked, known.__contains__))


def _classes_without_text(tx: Transaction) -> tuple[set[int], set[int]]:
    """Return the ids of classes without any sentence, and of classes with no sentence but prompts."""
    rows = tx.table("sentences", ["class_id", "source"])
    told = rows.filter(pc.not_equal(rows["source"], "prompt"))
    ids = set(tx.class_table().ids)
    mute = ids.difference(pc.unique(rows["class_id"]).to_pylist())
    bare = ids.difference(pc.unique(told["class_id"]).to_pylist())
    return mute, bare


def ingest_text(
    workspace: Workspace,
    path: Path,
    *,
    label_names: Path | None = None,
    prompts: bool | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring in sentences, make classes for unknown names, and add every class's prompts.

    Args:
        workspace: The workspace to write to.
        path: See `data.text_readers.read_text`.
        label_names: A file of the names of a release corpus's class numbers; default: the one beside it.
        prompts: Whether every class of the workspace gets the recipe's prompts; default: yes.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        InputError: If the source cannot be used, or holds no sentence.
    """
    names = _corpus_names(path, label_names)
    notes = _Notes()
    with workspace.transaction(f"ingest text {path}") as tx:
        used = names and ingestion.known_names(tx, names)
        before = len(tx.class_table())
        found = _read_sentences(path, used, notes, progress)
        classes = ingestion.resolve_classes(tx, list(found), lambda name: True)
        if names and used:
            ingestion.note_aliases(tx, names, used, classes)
        known = set(tx.table("sentences", ["sentence_id"])["sentence_id"].to_pylist())
        owned: dict[int, list[SentenceRecord]] = defaultdict(list)
        for name, records in found.items():
            class_id = classes[name]
            assert class_id is not None  # every name may make a class
            owned[class_id] += records
        rows = ingestion.sentence_rows(owned, known.__contains__)
        tx.upsert("sentences", rows)
        table = tx.class_table()
        wanted = prompts is not False
        made = write_prompts(tx, table.ids) if wanted else 0
        bare = sorted(_classes_without_text(tx)[1])
    if bare:
        notes.lines.append(
            f"{len(bare):,} of {len(table):,} classes have no text{' but prompts' if wanted else ''}: "
            + some(table.names[i] for i in bare)
        )
    return IngestReport(
        kind="sentences",
        source=str(path),
        added=rows.num_rows + made,
        unchanged=sum(map(len, owned.values())) - rows.num_rows,
        classes_added=len(table) - before,
        classes=len(table),
        prompts=made,
        skipped=notes.counts["skipped"],
        notes=notes.lines,
    )


def _corpus_names(path: Path, given: Path | None) -> ClassNames | None:
    """Return the names of a release corpus's class numbers, or None if the source names its classes itself.

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
    return read_class_names(given)


def _read_sentences(
    path: Path, names: ClassNames | None, notes: _Notes, progress: Progress | None
) -> dict[str, list[SentenceRecord]]:
    """Read the sentences of a source, by class name."""
    found: dict[str, list[SentenceRecord]] = defaultdict(list)
    read = 0
    for item in read_text(path, names):
        if isinstance(item, Skipped):
            notes.skip(item)
            continue
        found[item.class_name].append(item)
        read += 1
        if progress and read % 10_000 == 0:
            progress("read sentences", read, None)
    if not found:
        example = notes.lines[0] if notes.lines else ""
        raise InputError(f"{path} holds no sentence ({example})", "Give every class a sentence or more.")
    if progress:
        progress("read sentences", read, read)
    return found
