"""Bring images and sentences into a workspace (`vlltr ingest`): one commit a command.

A second run adds what is new; with `sync` it makes the rows of that source what the source is now.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from vlltr_index.data.grouping import AUTO, Grouping
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.data.text import class_prompts, sentence_id, text_hash
from vlltr_index.data.text_readers import is_release_corpus, names_beside, read_text
from vlltr_index.errors import InputError, UsageError
from vlltr_index.heads.bursts import AT_ONCE, bursts, folder_of
from vlltr_index.pipelines.bare_classes import classes_without_text, tell_of_bare_classes, tell_of_names
from vlltr_index.pipelines.image_plan import EXAMPLES, Facts, Notes, Placed, Plan, counted, decide
from vlltr_index.pipelines.image_run import (
    Listing,
    group_images,
    list_images,
    look,
    match,
    remarks,
    stored_images,
    write,
)
from vlltr_index.pipelines.removal import Agreed, remove_sentences, retire, without_images
from vlltr_index.schemas.records import SentenceRecord, Skipped
from vlltr_index.store import ingestion
from vlltr_index.store.class_rows import rename
from vlltr_index.store.origins import IngestedSource, Origin
from vlltr_index.wording import option_words, plural, preview

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_NAMED = 3  # copies of one picture
_TOLD = ["sentence_id", "text_hash", "class_id", "source", "source_ref"]


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
    in_two_classes: int = 0  # images whose very bytes are in another class too
    moved: int | None = None  # with `sync`: rows of another class than when the source was read before
    gone: int = 0  # rows removed because the source has them no more
    corrected: int = 0  # images that stay in the class they were corrected to, not the source's
    overruled: int = 0  # corrected images that the source moved or changed since: its class counts
    removed: int = 0  # with `sync`: rows that stay removed, as they were by hand, though the source has them
    grouping: str = "auto"  # how it was told which images belong together
    groups: int = 0  # of images of this source
    mixed_groups: int = 0  # of these, groups with images of several classes
    grouped: int = 0  # images that have one
    in_bursts: int = 0  # without a group, taken within two seconds of another of their folder and class
    dry_run: bool = False
    next_step: str | None = None  # none after a dry run


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
    follow_links: bool | None = None,
    group: str | None = None,
    sync: bool = False,
    agree: Callable[[str], None] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring in the images of a folder, list, JSON or Parquet file; each is decoded in full once.

    Files stay where they are, and Parquet rows are copied into the workspace; with `store` the workspace keeps all
    images, reduced. An image that cannot be read is stored with its problem, and the run goes on. Classes of the source
    that have no sentence get their prompts. An image that was put into another class by hand stays there until the
    source itself names another class for it than before.

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
            groups, bursts and near duplicates as a whole; images that came in otherwise before change over. 0: all are
            for training. With `sync` an image that was dealt before, and a copy of it, keep their split.
        follow_links: Read pictures behind links that leave the folder. Default: as it was last said for this source,
            else no.
        group: Which images belong together, and are held out together: `folder` (below the class folder), `column:NAME`
            of a table, `name:REGEX` (its first group, or all that it finds, in the file's name), `seconds:N` (taken at
            most so long after the one before in the same folder), or `auto` (a table's column `group`, else images are
            compared). Default: as it was last said for this source, else `auto`.
        sync: Remove the images that this source gave before and gives no more, all where it is no more, and take those
            that it moved for the same: they keep their group, and their vectors. What came another way stays, and what
            was removed by hand stays removed. A class that nothing is left of but prompts is retired.
        agree: Called with a question where more than a third of the source's images is gone; it raises if the answer is
            no. None: that is an error.
        dry_run: Report what would be done; commit nothing.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        InputError: If the source cannot be used, or all of its images are of unknown classes.
        UsageError: If the split is missing or is no name for one, or images of another than `train` are held out; or
            `group` is no such way, or puts no image into a group; or much is gone, and nobody agreed.
    """
    if hold_out is not None and (split != "train" or not 0.0 <= hold_out <= 0.9):
        raise UsageError("a share from 0 to 0.9 is held out of the training split", "Say so: --split train")
    given = read_class_names(label_names) if label_names is not None else None
    options = option_words(split=split, store=store, hold_out=hold_out, group=group, sync=sync)
    with workspace.transaction(f"ingest images {path} {shlex.join(options)}".rstrip(), dry_run=dry_run) as tx:
        before = tx.class_table()
        names = given and ingestion.known_names(tx, given)
        source = IngestedSource(tx, "images", path, split)
        grouping, regroups = _grouping(tx, source, group)

        read = partial(read_images, path, split, list_root, names, classes=before)
        read = partial(read, group_column=grouping.column, follow_links=_follows(tx, source, follow_links))
        listing = Listing(path) if sync and source.is_gone else list_images(path, read)
        groups = group_images(listing, grouping, (), is_asked=group is not None)
        classes, renamed = _classes(tx, source, listing, sync=sync, create_all=create_classes)
        if given and names:
            ingestion.note_aliases(tx, given, names, classes)
        stored, probes = stored_images(tx)
        seen = look(listing, classes, probes, progress)
        if grouping.how == "seconds":
            groups = group_images(listing, grouping, seen, is_asked=group is not None)

        facts = Facts(
            seen=seen,
            groups=groups,
            stored=stored,
            classes=classes,
            names=tx.class_table().names,
            side=store,
            has_bytes=listing.read is not None,
            share=hold_out,
            regroups=regroups,
        )
        plan = decide(match(facts, source, sync=sync, is_train=split == "train"))
        asked = Agreed(agree, dry_run).check(source, plan.missing, plan.given, "images") if sync else []

        write(tx, plan, listing, store, progress)
        source.write(plan.origins.values())
        plan.notes.lines = [*renamed, *plan.notes.lines, *asked, *remarks(listing, groups, names)]
        report = _image_report(tx, plan, source, before, workspace.address)
        if dry_run:
            report = replace(report, dry_run=True, next_step=None)
        return replace(report, source=str(path), grouping=str(grouping))


def _follows(tx: Transaction, source: IngestedSource, wanted: bool | None) -> bool:
    """Say whether the links of a source are followed: as is wanted, which is noted, or as was wanted last."""
    followed = tx.commit.info.followed
    before = source.address in followed
    if wanted is None or wanted == before:
        return before
    tx.note(followed=sorted({*followed} ^ {source.address}))
    return wanted


def _grouping(tx: Transaction, source: IngestedSource, asked: str | None) -> tuple[Grouping, bool]:
    """Return how the images of a source are grouped: as is asked, which is noted, or as it was asked last.

    Return also whether an image without a group now loses the one that it had.
    """
    groupings = tx.commit.info.groupings
    last = Grouping.parse(groupings.get(source.address, "auto"))
    grouping = last if asked is None else Grouping.parse(asked)
    if grouping != last:
        tx.note(groupings={**groupings, source.address: str(grouping)})
    return grouping, grouping != AUTO or last != AUTO


def _classes(
    tx: Transaction, source: IngestedSource, listing: Listing, *, sync: bool, create_all: bool
) -> tuple[dict[str, int | None], list[str]]:
    """Return the class ids of a source's names, and notes on classes that are renamed as in the source.

    New classes are made of names that have training images, or of all.
    """
    labels = listing.labels
    removed = source.removed(source.respell(labels)) if sync else set[str]()
    fresh = {name for name, where in labels.items() if create_all or "train" in where} - removed
    classes = ingestion.resolve_classes(tx, labels, fresh, source.classes)
    return classes, _follow_case(tx, source, classes, fresh)


def _follow_case(
    tx: Transaction, source: IngestedSource, classes: Mapping[str, int | None], may_rename: Collection[str]
) -> list[str]:
    """Rename the classes whose names a source writes in another case than before; return a note on each.

    A class that was renamed by hand, or has its name from another source, keeps it.
    """
    notes = []
    names = tx.class_table().names
    for new, old in list(source.respelt.items()):
        class_id = classes[new]
        if class_id != source.classes.get(old):  # another class has that very name
            del source.respelt[new]
        elif class_id is not None and names[class_id] == old and new in may_rename:
            rename(tx, class_id, new)
            notes.append(f"class {old!r} is renamed to {new!r}, as in the source")
    return notes


def _image_report(
    tx: Transaction, plan: Plan, source: IngestedSource, before: ClassTable, address: str
) -> IngestReport:
    """Retire classes of which nothing is left, make prompts, and return the report."""
    notes = plan.notes
    retired = retire(tx, plan.left) if plan.facts.past is not None else []
    classes = tx.class_table()
    given = plan.facts.classes.values()
    mute, bare = classes_without_text(tx)
    prompts = write_prompts(tx, mute.intersection(given))
    if prompts:
        mute.difference_update(given)
    tell_of_names(tx, before, bare, address, notes)
    if len(before) < len(classes) > len(bare):
        tell_of_bare_classes(tx, bare, notes, prompted=prompts > 0)
    if retired:
        notes.lines.append(f"retired, as nothing is left of it: {preview(retired)}")
    if emptied := without_images(tx, plan.left):
        notes.lines.append(f"no picture left of: {preview(emptied)}")
    if plan.unknown:
        notes.add("unknown", f"no class of the name {counted(plan.unknown)}")
    images = plan.images.values()
    splits = Counter(one.record.split for one in images)
    alone = [one for one in images if one.record.group is None]
    groups = defaultdict[str | None, set[int | None]](set)
    for one in images:
        if one.record.group is not None:
            groups[one.record.group].add(one.class_id)
    copies = _copies(tx, splits)
    shared = [found for copy in copies if len(found := {one.split for one in copy}) > 1]
    mixed = [copy for copy in copies if len({one.class_id for one in copy} - {None}) > 1]
    _name_copies(copies, classes.names, source.address, notes)
    counts = plan.counts
    return IngestReport(
        kind="images",
        source=source.address,
        added=counts["added"],
        updated=counts["updated"],
        unchanged=len(images) - sum(counts[kind] for kind in ("added", "updated", "moved")),
        classes_added=len(classes) + len(retired) - len(before),
        classes=len(classes),
        splits=dict(splits),
        prompts=prompts,
        quarantined=notes.counts["quarantined"],
        skipped=notes.counts["skipped"],
        unknown_class=plan.unknown.total(),
        duplicates_across_splits=len(shared),
        duplicates_in=sorted(set().union(*shared)),
        in_two_classes=len(mixed),
        moved=None if plan.facts.past is None else counts["moved"],
        gone=counts["gone"],
        corrected=counts["corrected"],
        overruled=counts["overruled"],
        removed=counts["removed"],
        groups=len(groups),
        mixed_groups=sum(len(owners - {None}) > 1 for owners in groups.values()),
        grouped=len(images) - len(alone),
        in_bursts=_in_bursts(alone),
        notes=notes.lines,
        next_step=_next_step(len(mute), len(bare)),
    )


def _in_bursts(images: Iterable[Placed]) -> int:
    """Count images that were taken right before or after another one of their folder and class."""
    timed = [one for one in images if one.found.taken is not None]
    places = [(folder_of(one.uri), one.class_id) for one in timed]
    alike = bursts([one.found.taken for one in timed], places, AT_ONCE)
    return sum(of is not None for of in alike)


class _Copy(NamedTuple):
    """One of several images of one content."""

    uri: str
    split: str
    class_id: int | None


def _copies(tx: Transaction, given: Container[str]) -> list[list[_Copy]]:
    """Return the images of each content that several images have, one of them of the `given` splits, by their URIs."""
    of_content = defaultdict[str, set[_Copy]](set)
    for row in tx.table("images", ["content_hash", *_Copy._fields]).to_pylist():
        content = row.pop("content_hash")
        if content is not None:
            of_content[content].add(_Copy(**row))
    return [
        sorted(copies, key=lambda one: (one.uri, one.split))
        for copies in of_content.values()
        if len(copies) > 1 and any(one.split in given for one in copies)
    ]


def _name_copies(copies: list[list[_Copy]], names: Mapping[int, str], address: str, notes: Notes) -> None:
    """Name pictures of one content that several splits or classes have; count those that one class has twice."""
    apart = [copy for copy in copies if len({one[1:] for one in copy}) > 1]
    for copy in sorted(apart, key=len):
        first = {one[1:]: one for one in reversed(copy)}  # of each split and class, named before the others
        told = [
            f"{one.uri.removeprefix(f'{address}/')} ({one.split}"
            + (f", {names[one.class_id]!r})" if one.class_id is not None else ")")
            for one in sorted(copy, key=lambda one: one is not first[one[1:]])
        ]
        more = f" and {len(told) - _NAMED:,} more" if len(told) > _NAMED else ""
        notes.add("copies", f"one picture, byte for byte: {', '.join(told[:_NAMED])}{more}")
    if len(apart) > EXAMPLES:
        notes.lines.append(f"and {plural(len(apart) - EXAMPLES, 'picture')} more of that kind")
    same = len(copies) - len(apart)
    if same:
        notes.lines.append(
            f"several times in one class, byte for byte: {plural(same, 'picture')}, each counts once"
        )


def _next_step(mute: int, bare: int) -> str | None:
    """Return the next command to run if classes lack text, else None; numbers as by `classes_without_text`."""
    if mute:
        return f"vlltr ingest text PATH   ({plural(mute, 'class has', 'classes have')} no sentence yet)"
    told = f"{plural(bare, 'class has', 'classes have')} no text but prompts"
    return f"vlltr ingest text PATH, or without text: vlltr embed   ({told})" if bare else None


def write_prompts(tx: Transaction, class_ids: Iterable[int]) -> int:
    """Give classes the recipe's prompts, but for sentences that are there; how many are new."""
    names = tx.class_table().names
    known = set(tx.table("sentences", ["sentence_id"])["sentence_id"].to_pylist())
    asked = {i: class_prompts(names[i], tx.recipe.templates) for i in sorted(class_ids)}
    return tx.upsert("sentences", ingestion.sentence_rows(asked, known))


def ingest_text(
    workspace: Workspace,
    path: Path,
    *,
    label_names: Path | None = None,
    prompts: bool | None = None,
    sync: bool = False,
    agree: Callable[[str], None] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring in sentences, make classes for unknown names, and add every class's prompts.

    Args:
        workspace: The workspace to write to.
        path: See `data.text_readers.read_text`.
        label_names: A file of the names of a release corpus's class numbers; default: the one beside it.
        prompts: Whether every class of the workspace gets the recipe's prompts; default: yes.
        sync: Remove the sentences that this source gave before and gives no more, all where it is no more. What came
            another way stays, and what was removed by hand stays removed. A class that nothing is left of but prompts
            is retired.
        agree: Called with a question where classes with more than a third of the source's sentences have no text in it
            any more; it raises if the answer is no. None: that is an error.
        dry_run: Report what would be done; commit nothing.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        InputError: If the source cannot be used, or holds no sentence.
        UsageError: If much is gone, and nobody agreed.
    """
    names = _corpus_names(path, label_names)
    notes = Notes()
    lost = _Lost()
    with workspace.transaction(f"ingest text {path}" + (" --sync" if sync else ""), dry_run=dry_run) as tx:
        used = names and ingestion.known_names(tx, names)
        before = tx.class_table()
        source = IngestedSource(tx, "sentences", path)
        is_gone = sync and source.is_gone
        found, unusable = ({}, set()) if is_gone else _read_sentences(path, used, notes, progress)
        there = {row["sentence_id"]: row for row in tx.table("sentences", _TOLD).to_pylist()}
        struck = _take_struck(source, found, there) if sync else {}
        classes = ingestion.resolve_classes(tx, found, found, source.classes)
        if names and used:
            ingestion.note_aliases(tx, names, used, classes)
        owned = _by_class(found, classes)
        rows = ingestion.sentence_rows(owned, there)
        tx.upsert("sentences", rows)
        if sync:
            given = {sentence_id(i, text_hash(one.text)) for i, records in owned.items() for one in records}
            source.take_over(source.moved_here(given))
        origins = _origins(source, owned, there, unusable) | struck
        if sync:
            agreed = Agreed(agree, dry_run)
            left = [row for i, row in there.items() if i not in origins]
            lost = _lose(tx, source, left, new=rows, told=owned.keys(), agreed=agreed, notes=notes)
        source.write((origins if sync else source.before | origins).values())
        table = tx.class_table()
        wanted = prompts is not False
        made = write_prompts(tx, table.ids) if wanted else 0
        bare = classes_without_text(tx)[1]
        tell_of_bare_classes(tx, bare, notes, wanted)
        tell_of_names(tx, before, bare, workspace.address, notes)
    if lost.retired:
        notes.lines.append(f"retired, as nothing is left of it: {preview(lost.retired)}")
    return IngestReport(
        kind="sentences",
        source=str(path),
        added=rows.num_rows + made - lost.moved,
        unchanged=sum(map(len, owned.values())) - rows.num_rows,
        classes_added=len(table) + len(lost.retired) - len(before),
        classes=len(table),
        prompts=made,
        skipped=notes.counts["skipped"],
        notes=notes.lines,
        moved=lost.moved if sync else None,
        gone=lost.gone,
        removed=len(struck),
        dry_run=dry_run,
    )


def _take_struck(
    source: IngestedSource, found: dict[str, list[SentenceRecord]], there: Collection[str]
) -> dict[str, Origin]:
    """Take sentences that were removed by hand, and whole classes, out of what a source gives now.

    Args:
        source: The source.
        found: Its sentences by class name.
        there: Ids of the sentences that the workspace has.

    Returns:
        What the source gave for these sentences, by their ids.
    """
    gone = source.removed(found)
    removed = {(one.label, one.row_key): i for i, one in source.before.items() if i not in there}
    taken = dict[str, Origin]()
    for name, records in list(found.items()):
        keys = [removed.get((name, text_hash(one.text))) for one in records]
        taken |= {key: source.before[key] for key in keys if key is not None}
        found[name] = [one for one, key in zip(records, keys, strict=True) if key is None]
        if name in gone or not found[name]:
            del found[name]
    return taken


def _by_class(
    found: Mapping[str, list[SentenceRecord]], classes: Mapping[str, int | None]
) -> dict[int, list[SentenceRecord]]:
    """Collect the sentences of each class, which may have several names."""
    owned: dict[int, list[SentenceRecord]] = defaultdict(list)
    for name, records in found.items():
        class_id = classes[name]
        assert class_id is not None  # every name may make a class
        owned[class_id] += records
    return owned


def _origins(
    source: IngestedSource,
    owned: Mapping[int, list[SentenceRecord]],
    there: Mapping[str, dict[str, Any]],
    unusable: Collection[str],
) -> dict[str, Origin]:
    """Return what the source gives now, by sentence id.

    Sentences that were there before by hand are not among them; those of files that cannot be used now are.
    """
    origins = {i: one for i, one in source.before.items() if i in there and _file(there[i]) in unusable}
    for class_id, records in owned.items():
        for one in records:
            hashed = text_hash(one.text)
            key = sentence_id(class_id, hashed)
            ours = key in source.before or key in source.elsewhere
            if key not in there or ours or there[key]["source"] == one.source:
                origins[key] = Origin(hashed, one.class_name, class_id)
    return origins


@dataclass(frozen=True)
class _Lost:
    """Sentences that a source gives no more: how many are of another class now, and of none."""

    moved: int = 0
    gone: int = 0
    retired: list[str] = field(default_factory=list)


def _lose(
    tx: Transaction,
    source: IngestedSource,
    there: list[dict[str, Any]],
    *,
    new: pa.Table,
    told: Collection[int],
    agreed: Agreed,
    notes: Notes,
) -> _Lost:
    """Remove those of the rows `there` that the source gave before, and classes of which nothing is left.

    Args:
        tx: The open transaction.
        source: The source.
        there: Rows that were there before and that it does not give now.
        new: Rows that it gives anew.
        told: The classes that it tells of now.
        agreed: Who is asked.
        notes: The report's.

    Raises:
        UsageError: If much is gone, and nobody agreed.
    """
    left = [row for row in there if row["sentence_id"] in source.before]
    lost = [row for row in left if row["sentence_id"] not in source.elsewhere]
    came = Counter(new["text_hash"].to_pylist())
    moved = (came & Counter(row["text_hash"] for row in lost)).total()
    silent = [row for row in left if row["class_id"] not in told and row["text_hash"] not in came]
    notes.lines += agreed.check(source, len(silent), len(source.before), "sentences")
    remove_sentences(tx, [row["sentence_id"] for row in lost])
    return _Lost(moved, len(lost) - moved, retire(tx, {row["class_id"] for row in lost}))


def _file(row: dict[str, Any]) -> str:
    """Return the file of a sentence below its source."""
    return str(row["source_ref"]).partition("#")[0]


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
    path: Path, names: ClassNames | None, notes: Notes, progress: Progress | None
) -> tuple[dict[str, list[SentenceRecord]], set[str]]:
    """Read the sentences of a source, by class name; return also the files that are there and cannot be used now."""
    unusable = set[str]()
    found: dict[str, list[SentenceRecord]] = defaultdict(list)
    read = 0
    for item in read_text(path, names):
        if isinstance(item, Skipped):
            notes.skip(item)
            unusable.update([item.ref] if item.ref else [])
            continue
        found[item.class_name].append(item)
        read += 1
        if progress and read % 10_000 == 0:
            progress("read sentences", read, None)
    if not found:
        example = f" ({notes.lines[0]})" if notes.lines else ""
        raise InputError(f"{path} holds no sentence{example}", "Give every class a sentence or more.")
    if progress:
        progress("read sentences", read, read)
    return found, unusable
