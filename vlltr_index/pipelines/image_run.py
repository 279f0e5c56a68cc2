"""Steps of an ingestion of images: list the source, match it with what is stored, and write what is decided."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.data.decoding import Probe
from vlltr_index.data.grouping import AUTO, Grouping, likely_groups
from vlltr_index.data.image_readers import holds_images
from vlltr_index.data.objects import is_address
from vlltr_index.errors import UsageError
from vlltr_index.pipelines.image_plan import Facts, Name, Notes, Placed, Plan, Seen, Stored
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.schemas.tables import IMAGES
from vlltr_index.store import ingestion
from vlltr_index.store.origins import IngestedSource
from vlltr_index.wording import have, plural, preview

if TYPE_CHECKING:
    from vlltr_index.data.names import ClassNames
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction

_ROWS = 1000
_BYTES = 64 * 2**20
_STORED = ("image_id", "uri", "content_hash", "class_id", "split", "group")
_PROBED = ("width", "height", "problem", "taken", "thumbnail")


@dataclass(frozen=True)
class Listing:
    """What a source lists.

    Attributes:
        path: Its path or address.
        items: Its images, without their bytes, and what is left out.
        read: Reads the items again with their bytes, of a table that holds its images; else None.
    """

    path: Path | str
    items: Sequence[ImageRecord | Skipped] = ()
    read: Callable[[], Iterator[ImageRecord | Skipped]] | None = None

    @property
    def has_class_folders(self) -> bool:
        """Whether it is a folder of class folders."""
        return is_address(self.path) or Path(self.path).is_dir()

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The images alone."""
        return [item for item in self.items if isinstance(item, ImageRecord)]

    @cached_property
    def labels(self) -> dict[str, Counter[str]]:
        """By class name in order of appearance, how many images there are of each split."""
        labels: dict[str, Counter[str]] = defaultdict(Counter)
        for one in self.images:
            if one.class_name is not None:
                labels[one.class_name][one.split] += 1
        return labels

    def with_bytes(self) -> Iterable[ImageRecord | Skipped]:
        """Return the items with the bytes that no file of their own has."""
        return self.items if self.read is None else self.read()


def list_images(path: Path | str, read: Callable[..., Iterator[ImageRecord | Skipped]]) -> Listing:
    """List the images of a source without opening them; `read` is `read_images` with its arguments."""
    items = list(read(with_data=False))
    again = partial(read, with_data=True) if holds_images(path) else None
    return Listing(path, items, again)


def group_images(
    listing: Listing, grouping: Grouping, seen: Iterable[Seen | Skipped], *, is_asked: bool
) -> dict[Name, str]:
    """Return the group of each image of a source that has one; by time there are none before they are `seen`.

    Raises:
        UsageError: If a grouping that was asked for puts no training image into a group.
    """
    if grouping.how == "seconds" and not seen:
        return {}
    taken = {one.name: one.found.taken for one in seen if isinstance(one, Seen) and one.found is not None}
    names = [(one.split, one.source) for one in listing.images]
    found = grouping.groups(listing.images, [taken.get(name) for name in names], listing.has_class_folders)
    groups = {name: group for name, group in zip(names, found, strict=True) if group is not None}
    images = sum(splits["train"] for splits in listing.labels.values())
    if is_asked and grouping != AUTO and images and not groups:
        raise UsageError(
            f"--group {grouping} puts none of the {plural(images, 'picture')} of {listing.path} into a group",
            "Say it another way, see vlltr ingest images --help, or leave it to --group auto.",
        )
    return groups


def stored_images(tx: Transaction) -> tuple[dict[str, Stored], dict[str, Probe]]:
    """Return the images of the workspace by id without suffix, and what was found in readable ones by content hash."""
    stored: dict[str, Stored] = {}
    probes: dict[str, Probe] = {}
    for batch in tx.scan("images", [*_STORED, *_PROBED], batch_rows=8192):
        for values in zip(*batch.to_pydict().values(), strict=True):
            one = Stored(*values[: len(_STORED)])
            stored[one.key.partition("-")[0]] = one
            found = Probe(one.content, *values[len(_STORED) :])
            if found.problem is None and one.content is not None:
                probes[one.content] = found
    return stored, probes


def look(
    listing: Listing,
    classes: Mapping[str, int | None],
    known: Mapping[str, Probe],
    progress: Progress | None,
) -> list[Seen | Skipped]:
    """Decode each image of a source, but for those of unknown classes.

    Args:
        listing: The source's.
        classes: Class ids by name; None: unknown.
        known: What was found before, by content hash.
        progress: Called with the step's name, what is done, and the total.
    """
    seen: list[Seen | Skipped] = []
    total = len(listing.images)
    done = 0
    for part in _parts(listing.with_bytes()):
        records = [item for item in part if isinstance(item, ImageRecord)]
        used = [one for one in records if one.class_name is None or classes[one.class_name] is not None]
        probes = dict(zip(map(id, used), ingestion.probe_all(used, known), strict=True))
        for item in part:
            if isinstance(item, Skipped):
                seen.append(item)
            else:
                seen.append(Seen(replace(item, data=None), probes.get(id(item))))
        done += len(records)
        if progress and records:
            progress("ingest images", done, total)
    return seen


def _parts(items: Iterable[ImageRecord | Skipped]) -> Iterator[list[ImageRecord | Skipped]]:
    """Yield the items of a source in parts of bounded size."""
    part: list[ImageRecord | Skipped] = []
    size = 0
    for one in items:
        part.append(one)
        size += len(one.data or b"") if isinstance(one, ImageRecord) else 0
        if len(part) >= _ROWS or size >= _BYTES:
            yield part
            part = []
            size = 0
    yield part


def match(facts: Facts, source: IngestedSource, *, sync: bool, is_train: bool) -> Facts:
    """Find out what a source gave before, which of its images these are, which go to split `test`, and what is moved.

    Args:
        facts: What the source has now, and the workspace.
        source: What it gave before; with `sync` it takes over images of other sources that are its own now.
        sync: Whether what the source does not have any more is removed.
        is_train: Whether the images were asked for as those of split `train`.
    """
    past = _match(facts, source, ("train", "test") if is_train else ()) if sync else None
    facts = replace(
        facts,
        before=source.before,
        elsewhere=source.elsewhere,
        respelt=source.respelt,
        past=past,
        of_content={facts.stored[i].content: i for i in (past or {}).values()},
    )
    return replace(facts, held=_held_out(facts, is_train), files=_files_of(facts))


def _match(facts: Facts, source: IngestedSource, also: Sequence[str]) -> dict[Name, str]:
    """Find out which of the source's images before each of its images is; it may be in splits `also`, too.

    Images that another source gave, and whose files are gone, are its own where it has them now; so are all of a source
    that moved here.
    """
    stored = facts.stored
    lost = {i for i in source.elsewhere & stored.keys() if ingestion.is_gone(stored[i].uri)}
    there = [i for i in source.before.keys() | lost if i in stored]
    before = {i: stored[i].content for i in sorted(there, key=lambda i: stored[i].uri)}
    found = match_images(before, [one for one in facts.images if one.found is not None], also)
    taken = lost.intersection(found.values())
    source.take_over(taken | source.moved_here(taken))
    return found


def match_images(
    before: Mapping[str, str | None], images: Iterable[Seen], also: Sequence[str] = ()
) -> dict[Name, str]:
    """Say which of the images that a source gave before each one that it has now is.

    It is that of the same content at the same path; else one of the same content, since it was moved; else the one at
    the same path, since it was changed. Each is taken once.

    Args:
        before: Content hash by image id without the suffix of the side; of equal contents the first is taken first.
        images: Those that the source has now; of the same name the first counts.
        also: Splits that an image may have been put into instead of its own.

    Returns:
        By its name the id of each one that was there before.
    """
    left = dict(before)
    found: dict[Name, str] = {}
    listed = {one.name: one for one in reversed([*images])}
    for name in listed:
        same = [i for i in _at_its_path(listed[name], also) if i in left and left[i] == listed[name].content]
        if same:
            found[name] = same[0]
            del left[same[0]]
    of_content = defaultdict[str | None, list[str]](list)
    for i, content in reversed(left.items()):
        if content is not None:
            of_content[content].append(i)
    rest = sorted(listed.keys() - found.keys())
    for name in rest:
        if of_content[listed[name].content]:
            found[name] = of_content[listed[name].content].pop()
            del left[found[name]]
    for name in rest:
        there = [i for i in _at_its_path(listed[name], also) if i in left]
        if there and name not in found:
            found[name] = there[0]
            del left[there[0]]
    return found


def _at_its_path(one: Seen, also: Sequence[str]) -> list[str]:
    """Return the ids that an image may have by its path."""
    splits = (one.record.split, *also)
    paths = (one.record.source, one.record.uri)
    return [ingestion.image_id(split, path) for split in splits for path in paths]


def _held_out(facts: Facts, is_train: bool) -> AbstractSet[str]:
    """Return the sources of the images that go to split `test`: a share that is drawn, or those of before."""
    if facts.share == 0.0:
        return frozenset()
    if facts.share is None and facts.past is None and is_train:
        dealt = {i for i, one in facts.before.items() if one.dealt == "test" and i in facts.stored}
        names = [one.record.source for one in facts.images]
        return {name for name in names if ingestion.image_id("test", name) in dealt}
    kept = {}
    past = {name: i for (_, name), i in (facts.past or {}).items()}
    for one in facts.images:
        was = past.get(one.record.source) or facts.of_content.get(one.content, "")
        before = facts.before.get(was)
        if before is not None and before.dealt is not None:
            split = before.dealt if facts.share else facts.stored[was].split
            kept[one.record.source] = split == "test"
    if facts.share is None and not any(kept.values()):
        return frozenset()
    from vlltr_index.pipelines.hold_out import draw

    images = [
        (replace(one.record, group=facts.groups.get(one.name)), one.found)
        for one in facts.images
        if one.record.class_name is not None and one.found is not None
    ]
    return draw(images, facts.share or 0.0, kept)


def _files_of(facts: Facts) -> dict[str, str | None]:
    """Return the files of images that are stored under another URI than their source gives them now, by URI."""
    files: dict[str, str | None] = {}
    for one in facts.images:
        uri = one.record.uri
        for split in {one.record.split, "train", "test"}:
            there = facts.stored.get(ingestion.image_id(split, one.record.source))
            if there is not None and there.uri != uri:
                files[uri] = ingestion.file_of(uri)
                files[there.uri] = None if ingestion.is_gone(there.uri) else ingestion.file_of(there.uri)
    return files


def write(tx: Transaction, plan: Plan, listing: Listing, side: int | None, progress: Progress | None) -> None:
    """Write the images of a plan in parts of bounded size, and delete those that are replaced or gone.

    Args:
        tx: The open transaction.
        plan: What is written. Images that cannot be reduced are noted in it, and how many rows are updated.
        listing: The source's.
        side: The shorter side of the images that the workspace keeps; None: those of tables are kept as they are.
        progress: Called with the step's name, what is done, and the total, where images are reduced.

    Raises:
        InputError: If no image of the source is left that can be read.
    """
    left = {one.name: one for one in plan.images.values()}
    changed = 0
    for part in _parts(listing.with_bytes()):
        placed = [
            one._replace(record=replace(one.record, data=item.data))
            for item in part
            if isinstance(item, ImageRecord)
            and (one := left.pop((item.split, item.source), None)) is not None
        ]
        if side is not None:
            placed = _reduce(placed, side, plan.notes)
            if progress:
                progress("store images", len(plan.images) - len(left), len(plan.images))
        rows = [
            ingestion.image_row(one.image_id, replace(one.record, uri=one.uri), one.found, one.class_id)
            for one in placed
        ]
        changed += tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES))
    if plan.images:
        plan.check()
    plan.counts["updated"] = changed - plan.counts["added"] - plan.counts["moved"]
    tx.delete_any("images", "image_id", plan.delete)


def _reduce(placed: Sequence[Placed], side: int, notes: Notes) -> list[Placed]:
    """Return images with their bytes, reduced to `side`; note those that cannot be reduced."""
    pairs = ingestion.with_stored_bytes([one.record for one in placed], [one.found for one in placed], side)
    reduced = []
    for one, (record, found) in zip(placed, pairs, strict=True):
        if found.problem is not None and found.problem != one.found.problem:
            notes.quarantine(record.uri, found.problem)
        reduced.append(one._replace(record=record, found=found))
    return reduced


def remarks(listing: Listing, groups: Mapping[Name, str], names: ClassNames | None) -> list[str]:
    """Say which groups the names of images suggest, which named classes have no image, and where labels are numbers."""
    said = []
    likely = likely_groups(listing.images) if listing.has_class_folders and not groups else None
    if likely is not None:
        said.append(
            f"by their names {likely.pictures:,} pictures are in {plural(likely.groups, 'group')} of several; if each"
            f" shows one thing, say so, else figures are too good: --group {shlex.quote(str(likely.grouping))}"
        )
    labels = listing.labels
    if names is not None:
        empty = [name for name in names.names if name not in labels]
        some = f"{len(empty):,} of the {len(names):,} named classes {have(len(empty))}"
        told = f"{some} no image here: {preview(empty)}"
    else:
        empty = list(labels) if all(name.isascii() and name.isdecimal() for name in labels) else []
        told = f"the labels are numbers, so classes are called {preview(empty)}; name them: --names FILE"
    return [*said, told] if empty else said
