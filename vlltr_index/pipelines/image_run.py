"""One ingestion of images: what a source lists, what it gave before, and the rows that come of it."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from vlltr_index.data.decoding import Probe
from vlltr_index.data.grouping import AUTO, Grouping, LikelyGroups, likely_groups
from vlltr_index.errors import InputError
from vlltr_index.heads.bursts import AT_ONCE, bursts, folder_of
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.schemas.tables import IMAGES
from vlltr_index.store import ingestion
from vlltr_index.store.origins import Listed, Origin, Source, match_images
from vlltr_index.wording import have, plural, preview

if TYPE_CHECKING:
    from vlltr_index.data.names import ClassNames
    from vlltr_index.pipelines.removal import Agreed
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction

_ROWS = 1000
_BYTES = 64 * 2**20
EXAMPLES = 10  # of each kind of note
_ASIDE = "kept aside: "


@dataclass
class Listing:
    """What a source lists.

    Attributes:
        labels: By class name in order of appearance, how many images there are of each split.
        images: With `sync`, the images with the hashes of their contents.
        groups: By its split and source, the group of each image that has one.
        likely: Groups that the names suggest, where none are said of a folder of class folders.
    """

    labels: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    images: list[Listed] = field(default_factory=list)
    groups: dict[tuple[str, str], str] = field(default_factory=dict)
    likely: LikelyGroups | None = None

    @classmethod
    def of(
        cls,
        items: Iterable[ImageRecord | Skipped],
        sync: bool,
        grouping: Grouping = AUTO,
        class_folders: bool = False,
    ) -> Listing:
        """List the images of a source; with `sync`, and to group them by time, their bytes are read.

        `class_folders` is as for `Grouping.groups`.
        """
        found = cls()
        listed: list[ImageRecord] = []
        taken: list[float | None] = []
        for part in _parts(item for item in items if isinstance(item, ImageRecord)):
            taken += ingestion.times_taken(part) if grouping.how == "seconds" else [None] * len(part)
            contents = ingestion.content_hashes(part) if sync else ()
            for one, content in zip(part, contents, strict=False):
                found.images.append(
                    Listed(one.source, one.uri, split=one.split, label=one.class_name, content=content)
                )
            listed += (replace(one, uri="", data=None) for one in part)
        for one, group in zip(listed, grouping.groups(listed, taken, class_folders), strict=True):
            if group is not None:
                found.groups[one.split, one.source] = group
            if one.class_name is not None:
                found.labels[one.class_name][one.split] += 1
        if class_folders and not found.groups:
            found.likely = likely_groups(listed)
        return found

    def dealt(
        self, items: Iterable[ImageRecord | Skipped], held: Callable[[str], bool]
    ) -> Iterator[ImageRecord | Skipped]:
        """Yield the items of the source with their groups; images whose sources are `held` out are of split `test`."""
        for item in items:
            if isinstance(item, Skipped):
                yield item
            else:
                split = "test" if held(item.source) else item.split
                yield replace(item, split=split, group=self.groups.get((item.split, item.source)))


def _parts(records: Iterable[ImageRecord]) -> Iterator[list[ImageRecord]]:
    """Yield images in parts of bounded size."""
    part: list[ImageRecord] = []
    size = 0
    for one in records:
        part.append(one)
        size += len(one.data or b"")
        if len(part) >= _ROWS or size >= _BYTES:
            yield part
            part = []
            size = 0
    yield part


@dataclass
class Notes:
    """Counts of the entries left out, and the first few notes of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            self.lines.append(line)

    def skip(self, item: Skipped) -> None:
        self.add("skipped", f"left out: {item.where}: {item.why}")


class _Stored(NamedTuple):
    """What the workspace has of an image; `key` is its id with the suffix of the stored size."""

    key: str
    uri: str
    content: str | None
    class_id: int | None
    split: str
    group: str | None


@dataclass
class ImageRun:
    """State of one ingestion of images; images go by their id without the suffix of the stored size."""

    tx: Transaction
    source: Source
    classes: dict[str, int | None]
    side: int | None
    asked: str | None  # split that was asked for
    share: float | None  # that is held out; if given, an image stored in the other split changes over
    total: int
    progress: Progress | None
    notes: Notes = field(default_factory=Notes)
    splits: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)  # images of unknown classes, by class name
    counts: Counter[str] = field(default_factory=Counter)  # of the report's kinds of images
    seen: set[str] = field(default_factory=set)
    stored: dict[str, _Stored] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)  # keys of rows to delete: stored at another size or moved
    probes: dict[str, Probe] = field(default_factory=dict)  # of readable images, by content hash
    past: dict[tuple[str, str], str] | None = None  # with `sync`: by split and source, which image it was
    of_content: dict[str | None, str] = field(default_factory=dict)  # one of these images by content hash
    origins: dict[str, Origin] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)  # URIs of images that are there and cannot be used now
    left: set[int] = field(default_factory=set)  # classes that an image went from
    grouping: Grouping = AUTO
    grouped_before: Grouping = AUTO  # when the source was read before
    groups: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # the classes of each
    grouped: int = 0  # images that have one
    alone: list[tuple[float, str, int | None]] = field(
        default_factory=list
    )  # time, folder and class without group

    def __post_init__(self) -> None:
        columns = [
            "image_id",
            "uri",
            "content_hash",
            "class_id",
            "split",
            "group",
            "width",
            "height",
            "problem",
            "taken",
            "thumbnail",
        ]
        for batch in self.tx.scan("images", columns, batch_rows=8192):
            rows = zip(*batch.to_pydict().values(), strict=True)
            for key, uri, content, class_id, split, group, *decoded in rows:
                self.stored[key.partition("-")[0]] = _Stored(
                    key, uri, content=content, class_id=class_id, split=split, group=group
                )
                found = Probe(content, *decoded)
                if found.problem is None and content is not None:
                    self.probes[content] = found

    def bring_in(
        self,
        listing: Listing,
        read: Callable[[], Iterator[ImageRecord | Skipped]] | None,
        agreed: Agreed | None,
    ) -> None:
        """Store the images of the source, and what it gave.

        Args:
            listing: What it lists.
            read: Reads its items with their bytes; None: it is no more.
            agreed: Who is asked where much is gone; None: what is gone from the source stays.
        """
        if agreed is not None:
            self.match(listing)
        if read is not None:
            held = self.held_out(listing, read())
            self.take(listing.dealt(read(), held))
        if agreed is not None:
            self.remove_gone(agreed)
        self.write_origins()
        if listing.likely is not None:
            self.notes.lines.append(_of_likely(listing.likely))

    def match(self, listing: Listing) -> None:
        """Find out which of the source's images before each of its images is.

        Images that another source gave, and whose files are gone, are its own where it has them now; so are all of a
        source that moved here.
        """
        listed = {(one.split, one.source): one for one in reversed(listing.images)}
        known = [one for one in listed.values() if one.label is None or self.classes[one.label] is not None]
        given = self.source.elsewhere & self.stored.keys()
        lost = {i for i in given if ingestion.is_gone(self.stored[i].uri)}
        there = (i for i in self.source.before.keys() | lost if i in self.stored)
        before = {i: self.stored[i].content for i in sorted(there, key=lambda i: self.stored[i].uri)}
        found = match_images(before, known, ("train", "test") if self.asked == "train" else ())
        taken = lost.intersection(found.values())
        self.source.take_over(taken | self.source.moved_here(taken))
        self.past = {(one.split, one.source): i for one, i in found.items()}
        self.of_content = {self.stored[i].content: i for i in found.values()}

    def held_out(self, listing: Listing, items: Iterable[ImageRecord | Skipped]) -> Callable[[str], bool]:
        """Choose the sources of the images that go to split `test` instead of `train`.

        The `items` of the source are looked at only where images are drawn.
        """
        if self.share == 0.0:
            return _none
        if self.share is None and self.past is None and self.asked == "train":
            return self._was_held_out
        past = {source: i for (_, source), i in (self.past or {}).items()}
        kept = {}
        for one in listing.images:
            was = past.get(one.source) or self.of_content.get(one.content) or ""
            before = self.source.before.get(was)
            if before is not None and before.dealt is not None:
                split = before.dealt if self.share else self.stored[was].split
                kept[one.source] = split == "test"
        if self.share is None and not any(kept.values()):
            return _none
        from vlltr_index.pipelines.hold_out import draw

        drawn = draw(list(self._looked_at(listing.dealt(items, _none))), self.share or 0.0, kept)
        return drawn.__contains__

    def _was_held_out(self, source: str) -> bool:
        """Say whether an image of that name was dealt to split `test` before, and is there."""
        i = ingestion.image_id("test", source)
        return i in self.stored and i in self.source.before and self.source.before[i].dealt == "test"

    def _looked_at(self, items: Iterable[ImageRecord | Skipped]) -> Iterator[tuple[ImageRecord, Probe]]:
        """Yield the images of known classes without their bytes, and what is found in them, which is kept."""
        for part in _parts(item for item in items if isinstance(item, ImageRecord) and self._knows(item)):
            for one, found in zip(part, ingestion.probe_all(part, self.probes), strict=True):
                if found.problem is None and found.content_hash is not None:
                    self.probes[found.content_hash] = found
                yield replace(one, data=None), found

    def _knows(self, record: ImageRecord) -> bool:
        """Say whether an image is of a class of the workspace."""
        return record.class_name is not None and self.classes[record.class_name] is not None

    def take(self, items: Iterator[ImageRecord | Skipped]) -> None:
        """Store all images of a source, in parts of bounded size.

        Raises:
            InputError: If not one is of a known class and can be read.
        """
        for part in _parts(self._usable(items)):
            self._write(part)
        if not self.splits and self.unknown:
            raise InputError(
                f"none of the {self.unknown.total():,} images is of a class that the workspace knows; "
                f"theirs are, for example, {counted(self.unknown)}",
                "Bring in the training images or the texts first, or make the classes now: --create-classes",
            )
        readable = self.splits.total() - self.notes.counts["quarantined"]
        if not readable and not self.counts["removed"]:
            example = self.notes.lines[0].removeprefix(_ASIDE)
            raise InputError(f"no image was taken: {example}", "Mend the source and run the command again.")
        self._delete(self.replaced)

    def _usable(self, items: Iterator[ImageRecord | Skipped]) -> Iterator[ImageRecord]:
        """Yield the images of known classes, and note the others."""
        for item in items:
            if isinstance(item, Skipped):
                self.notes.skip(item)
                self.unusable.update([item.ref] if item.ref else [])
            elif self._was_removed(item):
                self.counts["removed"] += 1
                self.notes.add("removed", f"stays removed, as it was by hand: {item.uri}")
            elif item.class_name is not None and self.classes[item.class_name] is None:
                self.unknown[item.class_name] += 1
            else:
                yield item

    def _was_removed(self, item: ImageRecord) -> bool:
        """Say whether an image, or its class, was removed by hand since the source gave it; it stays known, then."""
        if self.past is None or (self.asked or item.split, item.source) in self.past:
            return False
        places = [(split, name) for name in self._names(item) for split in ("train", "test", item.split)]
        ids = {ingestion.image_id(*place): place for place in places}
        before = next((i for i in ids if i in self.source.before and i not in self.stored), None)
        if before is None:
            return False
        origin = self.source.before[before]
        if not self._same_label(item.class_name, origin.label):
            return False
        key = ingestion.image_id(ids[before][0], item.source)
        self.origins[key] = origin._replace(row_key=key, label=item.class_name)
        if origin.class_id is not None:
            self.left.add(origin.class_id)
        return True

    def _names(self, item: ImageRecord) -> list[str]:
        """Return the name of an image in the source, and that before its class folder was written in another case."""
        label = item.class_name or ""
        old = self.source.respelt.get(label)
        if old is None or not item.source.startswith(f"{label}/"):
            return [item.source]
        return [item.source, f"{old}{item.source.removeprefix(label)}"]

    def _same_label(self, label: str | None, before: str | None) -> bool:
        """Say whether the source gives an image the class name that it gave before, be it in another case."""
        return label == before or (label is not None and self.source.respelt.get(label) == before)

    def _delete(self, keys: set[str]) -> None:
        """Delete rows, but for those that were written in this run."""
        self.tx.delete_any("images", "image_id", keys - self.seen)

    def compare(self, names: ClassNames | None, labels: dict[str, Counter[str]]) -> None:
        """Note the named classes that have no image in the source, or that all labels are bare numbers."""
        if names is not None:
            empty = [name for name in names.names if name not in labels]
            some = f"{len(empty):,} of the {len(names):,} named classes {have(len(empty))}"
            told = f"{some} no image here: {preview(empty)}"
        else:
            empty = list(labels) if all(name.isascii() and name.isdecimal() for name in labels) else []
            told = f"the labels are numbers, so classes are called {preview(empty)}; name them: --names FILE"
        if empty:
            self.notes.lines.append(told)

    def _write(self, records: list[ImageRecord]) -> None:
        probes = ingestion.probe_all(records, self.probes)
        pairs = list(zip(records, probes, strict=True))
        if self.side is not None:
            pairs = ingestion.with_stored_bytes(records, probes, self.side)
        rows = []
        known = self.counts["added"] + self.counts["moved"]
        for record, found in pairs:
            row = ingestion.image_row(record, found, None, self.side)
            stored = self._identify(row, record)
            if row["image_id"] in self.seen:
                self.notes.skip(Skipped(record.uri, "named before in this source"))
                continue
            self.seen.add(row["image_id"])
            rows.append(row)
            self.splits[record.split] += 1
            self._place(row, record, stored)
            self._note_group(row)
            if stored is not None and stored != row["image_id"]:
                self.replaced.add(stored)
            other = self._in_other_split(record)
            if other is not None and other.uri == record.uri:
                self.replaced.add(other.key)
            if found.problem is not None:
                self.notes.add("quarantined", f"{_ASIDE}{record.uri}: {found.problem}")
        known = self.counts["added"] + self.counts["moved"] - known
        self.counts["updated"] += self.tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES)) - known
        if self.progress:
            done = self.splits.total() + self.unknown.total()
            self.progress("ingest images", done, max(self.total, done))

    def _in_other_split(self, record: ImageRecord) -> _Stored | None:
        """Return the image of that name in the other split of `train` and `test`, if such change over."""
        if self.share is None:
            return None
        return self.stored.get(
            ingestion.image_id("train" if record.split == "test" else "test", record.source)
        )

    def _place(self, row: dict[str, Any], record: ImageRecord, stored: str | None) -> None:
        """Set a row's class and group, by what the source gave for it before, and count it."""
        label = record.class_name
        class_id = None if label is None else self.classes[label]
        row["class_id"] = class_id
        mine = row["image_id"].partition("-")[0]
        was: str | None = mine
        if self.past is not None:
            was = self.past.get((self.asked or record.split, record.source))
            is_new = was is None and (stored is None or mine in self.source.before)
        else:
            is_new = stored is None
            if mine not in self.source.before and (other := self._in_other_split(record)) is not None:
                was = other.key.partition("-")[0]
        self.counts["added"] += is_new
        before = self.source.before.get(was or "")
        there = self.stored.get(was or self.of_content.get(row["content_hash"], ""))
        if there is not None and (before is not None or was is None):
            row["group"] = record.group if self._regroups else record.group or there.group
        if there is not None and before is not None:
            self._judge(row, label, before, there)
            if self.past is not None and was not in (mine, *self.source.elsewhere):
                self.replaced.add(there.key)
        dealt = record.split if self.share else before and before.dealt
        self.origins[mine] = Origin(mine, label, class_id, dealt)

    @property
    def _regroups(self) -> bool:
        """Whether an image without a group now loses the one that it had."""
        return self.grouping != AUTO or self.grouped_before != AUTO

    def _note_group(self, row: dict[str, Any]) -> None:
        """Note the group of a row, or when and where it was taken if it has none."""
        if row["group"] is not None:
            owners = self.groups[row["group"]]
            if row["class_id"] is not None:
                owners.add(row["class_id"])
            self.grouped += 1
        elif row["taken"] is not None:
            self.alone.append((row["taken"], folder_of(row["uri"]), row["class_id"]))

    @property
    def in_bursts(self) -> int:
        """How many images without a group were taken right before or after another one of their folder and class."""
        taken = [time for time, *_ in self.alone]
        return sum(
            of is not None for of in bursts(taken, [tuple(place) for _, *place in self.alone], AT_ONCE)
        )

    def _judge(self, row: dict[str, Any], label: str | None, before: Origin, there: _Stored) -> None:
        """Decide between the class that an image is in and the one that the source gives it now."""
        names = self.tx.class_table().names
        given = row["class_id"]
        if there.class_id == given:
            return
        now = "none" if there.class_id is None else repr(names[there.class_id])
        same = self._same_label(label, before.label)
        if same and there.content == row["content_hash"]:
            row["class_id"] = there.class_id
            self.counts["corrected"] += 1
            self.notes.add(
                "corrected", f"stays in {now} as corrected, though its source says {label!r}: {row['uri']}"
            )
            return
        self.counts["moved"] += self.past is not None
        self.left.update([] if there.class_id is None else [there.class_id])
        if there.class_id != before.class_id:
            self.counts["overruled"] += 1
            what = "another picture" if same else f"moved to {label!r}"
            self.notes.add("overruled", f"corrected to {now} before, and {what} since: {row['uri']}")

    def remove_gone(self, agreed: Agreed) -> None:
        """Remove the images that the source gave before and does not have now.

        Raises:
            UsageError: If that is more than a third, and nobody agreed.
        """
        there = {i: self.stored[i] for i in self.source.before if i in self.stored}
        matched = set((self.past or {}).values())
        left = {i: one for i, one in there.items() if i not in matched}
        gone = {i: one for i, one in left.items() if not self._is_unusable(one.uri)}
        self.origins |= {i: self.source.before[i] for i in left.keys() - gone.keys() - self.origins.keys()}
        self.notes.lines += agreed.check(self.source, len(gone), len(there), "images")
        gone = {i: one for i, one in gone.items() if i not in self.source.elsewhere}
        self.counts["gone"] = len(gone)
        self._note_lost_corrections(gone)
        self.left.update(one.class_id for one in gone.values() if one.class_id is not None)
        self._delete({one.key for one in gone.values()})

    def _note_lost_corrections(self, gone: Mapping[str, _Stored]) -> None:
        """Note the gone images that were corrected by hand: if they come back, it is in the class of their source."""
        names = self.tx.class_table().names
        for i, one in gone.items():
            if one.class_id is not None and one.class_id != self.source.before[i].class_id:
                corrected = f"corrected to {names[one.class_id]!r} before, and gone with its correction"
                self.notes.add("lost", f"{corrected}: {one.uri}")

    def _is_unusable(self, uri: str) -> bool:
        """Say whether the source lists an image, or a folder above it, that cannot be used now."""
        parts = uri.split("/")
        return any("/".join(parts[:count]) in self.unusable for count in range(1, len(parts) + 1))

    def write_origins(self) -> None:
        """Write what the source gave, without `sync` beside what it gave before, and how its images are grouped."""
        if self.grouping != self.grouped_before:
            groupings = self.tx.commit.info.groupings
            self.tx.note(groupings={**groupings, self.source.address: str(self.grouping)})
        kept = {} if self.past is not None else self.source.before
        replaced = {key.partition("-")[0] for key in self.replaced}
        self.source.write(
            one for i, one in (kept | self.origins).items() if i in self.origins or i not in replaced
        )

    def _identify(self, row: dict[str, Any], record: ImageRecord) -> str | None:
        """Set a row's id and URI, and return the id that the image is stored under, or None if it is new.

        The same name with other bytes, while the stored file still exists, is another image: its id is made from its
        full URI. The same name and bytes at another place is the same image: it keeps its stored URI.
        """
        there = self.stored.get(ingestion.image_id(record.split, record.source))
        if there is None:
            return None
        if there.uri == record.uri:
            return there.key
        if there.content == row["content_hash"]:
            if record.data is not None or not ingestion.is_gone(there.uri):
                row["uri"] = there.uri
        elif ingestion.file_of(there.uri) != ingestion.file_of(record.uri) and not ingestion.is_gone(
            there.uri
        ):
            row["image_id"] = ingestion.image_id(record.split, record.uri, self.side)
            there = self.stored.get(ingestion.image_id(record.split, record.uri))
        return None if there is None else there.key


def _none(source: str) -> bool:
    """Hold nothing out."""
    return False


def _of_likely(likely: LikelyGroups) -> str:
    """Say which groups the names suggest, and how to hold them out together."""
    return (
        f"by their names {likely.pictures:,} pictures are in {plural(likely.groups, 'group')} of several; if each shows"
        f" one thing, say so, else figures are too good: --group {shlex.quote(str(likely.grouping))}"
    )


def counted(names: Counter[str]) -> str:
    shown = [f"{name!r} ({count:,})" for name, count in names.most_common(3)]
    return ", ".join(shown) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
