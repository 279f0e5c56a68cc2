"""Decide what becomes of each image in an ingestion: a pure function from what is there to what is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vlltr_index.data.decoding import Probe
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.store import ingestion
from vlltr_index.store.origins import Origin

EXAMPLES = 10  # of each kind of note
_ASIDE = "kept aside: "

Name = tuple[str, str]
"""The split and the source of an image, as they are listed; they name one image of a source."""


@dataclass
class Notes:
    """Counts of the entries left out, and the first few notes of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            self.lines.append(line)

    def quarantine(self, uri: str, problem: str) -> None:
        self.add("quarantined", f"{_ASIDE}{uri}: {problem}")

    def skip(self, item: Skipped) -> None:
        self.add("skipped", f"left out: {item.where}: {item.why}")


class Seen(NamedTuple):
    """An image of a source without its bytes, and what was found in it; None if no class has its name."""

    record: ImageRecord
    found: Probe | None

    @property
    def name(self) -> Name:
        """What names it in its source."""
        return self.record.split, self.record.source

    @property
    def content(self) -> str | None:
        """The hash of its content; None if it was not looked at, or cannot be read."""
        return None if self.found is None else self.found.content_hash


class Stored(NamedTuple):
    """What the workspace has of an image; `key` is its id with the suffix of the stored size."""

    key: str
    uri: str
    content: str | None
    class_id: int | None
    split: str
    group: str | None


@dataclass(frozen=True)
class Facts:
    """What an ingestion of images decides by.

    Attributes:
        seen: What the source has now.
        stored: The images of the workspace by id, without the suffix of the stored size.
        classes: Class ids by the source's names; None: unknown.
        names: The workspace's names by class id.
        groups: The group of each image of the source that has one.
        side: The shorter side of the images that the workspace keeps; None: it keeps none.
        has_bytes: Whether the source is a table that holds its images, whose bytes are kept.
        share: What is held out; if given, an image stored in the other split changes over.
        regroups: Whether an image without a group now loses the one that it had.
        before: What the source gave before, by the id of the image; found by `match`, as is what follows.
        elsewhere: Ids of images that other sources gave.
        respelt: Class names that the source writes in another case than before, with those before.
        past: With `sync` ids of images of before, by the name of the image now; else None.
        of_content: One of these by content hash.
        held: The sources of images that go to split `test`.
        files: The file behind each URI of images that are stored under another URI than their source gives them now;
            None for a file that is gone.
    """

    seen: Sequence[Seen | Skipped]
    stored: Mapping[str, Stored]
    classes: Mapping[str, int | None]
    names: Mapping[int, str]
    groups: Mapping[Name, str] = field(default_factory=dict)
    side: int | None = None
    has_bytes: bool = False
    share: float | None = None
    regroups: bool = False
    before: Mapping[str, Origin] = field(default_factory=dict)
    elsewhere: AbstractSet[str] = frozenset()
    respelt: Mapping[str, str] = field(default_factory=dict)
    past: Mapping[Name, str] | None = None
    of_content: Mapping[str | None, str] = field(default_factory=dict)
    held: AbstractSet[str] = frozenset()
    files: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def images(self) -> list[Seen]:
        """The images that the source has now."""
        return [one for one in self.seen if isinstance(one, Seen)]


class Placed(NamedTuple):
    """An image to write: its name, its record with split and group, what was found in it, and what its row has."""

    name: Name
    record: ImageRecord
    found: Probe
    image_id: str
    uri: str
    class_id: int | None


@dataclass
class Plan:
    """What an ingestion of images writes and reports; images go by their id without the suffix of the stored size.

    Attributes:
        facts: What it is decided by.
        images: Images to write, by the keys of their rows.
        delete: Keys of rows to delete: stored at another size, in another split, moved, or gone from the source.
        given: How many images the source gave before.
        missing: How many of these it does not have any more, also those that another source gave.
        origins: What the source gives, by the id of the image.
        left: Classes that an image went from.
        unknown: Images of unknown classes, by class name.
        counts: Images of each kind that the report has.
        notes: Of the report.
    """

    facts: Facts
    images: dict[str, Placed] = field(default_factory=dict)
    delete: set[str] = field(default_factory=set)
    given: int = 0
    missing: int = 0
    origins: dict[str, Origin] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    unknown: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    notes: Notes = field(default_factory=Notes)

    def take(self, one: Seen) -> None:
        """Decide on an image of the source."""
        facts = self.facts
        split = "test" if one.record.source in facts.held else one.record.split
        record = replace(one.record, split=split, group=facts.groups.get(one.name))
        if facts.past is not None and one.name not in facts.past and self._was_removed(record):
            self.counts["removed"] += 1
            self.notes.add("removed", f"stays removed, as it was by hand: {record.uri}")
        elif one.found is None:
            self.unknown[record.class_name or ""] += 1
        else:
            self._place(one.name, record, one.found)

    def _was_removed(self, record: ImageRecord) -> bool:
        """Say whether an image, or its class, was removed by hand since the source gave it; it stays known, then."""
        facts = self.facts
        label = record.class_name or ""
        names = [record.source]
        if label in facts.respelt and record.source.startswith(f"{label}/"):
            names.append(f"{facts.respelt[label]}{record.source.removeprefix(label)}")
        splits = ("train", "test", record.split)
        ids = {ingestion.image_id(split, name): split for name in names for split in splits}
        was = next((i for i in ids if i in facts.before and i not in facts.stored), None)
        if was is None or not self._same_label(record.class_name, facts.before[was].label):
            return False
        origin = facts.before[was]
        key = ingestion.image_id(ids[was], record.source)
        self.origins[key] = origin._replace(row_key=key, label=record.class_name)
        if origin.class_id is not None:
            self.left.add(origin.class_id)
        return True

    def _same_label(self, label: str | None, before: str | None) -> bool:
        """Say whether the source gives an image the class name that it gave before, be it in another case."""
        return label == before or (label is not None and self.facts.respelt.get(label) == before)

    def _place(self, name: Name, record: ImageRecord, found: Probe) -> None:
        """Decide on the id, the class and the group of an image that is used."""
        facts = self.facts
        image_id, uri, stored = self._identify(record, found)
        if image_id in self.images:
            self.notes.skip(Skipped(record.uri, "named before in this source"))
            return
        mine = image_id.partition("-")[0]
        other = self._in_other_split(record)
        was: str | None = mine
        if facts.past is not None:
            was = facts.past.get(name)
            is_new = was is None and (stored is None or mine in facts.before)
        else:
            is_new = stored is None
            if mine not in facts.before and other is not None:
                was = other.key.partition("-")[0]
        self.counts["added"] += is_new
        before = facts.before.get(was or "")
        there = facts.stored.get(was or facts.of_content.get(found.content_hash, ""))
        class_id = None if record.class_name is None else facts.classes[record.class_name]
        dealt = record.split if facts.share else before and before.dealt
        self.origins[mine] = Origin(mine, record.class_name, class_id, dealt)
        if there is not None and (before is not None or was is None) and not facts.regroups:
            record = replace(record, group=record.group or there.group)
        placed = Placed(name, record, found, image_id, uri, class_id)
        if there is not None and before is not None:
            placed = self._judge(placed, before, there)
            if facts.past is not None and was != mine and was not in facts.elsewhere:
                self.delete.add(there.key)
        self.images[image_id] = placed
        if stored is not None:
            self.delete.add(stored)
        if other is not None and other.uri == record.uri:
            self.delete.add(other.key)
        if found.problem is not None:
            self.notes.quarantine(record.uri, found.problem)

    def _identify(self, record: ImageRecord, found: Probe) -> tuple[str, str, str | None]:
        """Return an image's id and URI, and the id that it is stored under, or None if it is new.

        The same name with other bytes, while the stored file still exists, is another image: its id is made from its
        full URI. The same name and bytes at another place is the same image: it keeps its stored URI.
        """
        facts = self.facts
        image_id = ingestion.image_id(record.split, record.source, facts.side)
        there = facts.stored.get(ingestion.image_id(record.split, record.source))
        if there is None or there.uri == record.uri:
            return image_id, record.uri, None if there is None else there.key
        file = facts.files[there.uri]
        if there.content == found.content_hash:
            is_kept = facts.has_bytes or (facts.side is not None and found.width is not None)
            return image_id, there.uri if is_kept or file is not None else record.uri, there.key
        if file is not None and file != facts.files[record.uri]:
            image_id = ingestion.image_id(record.split, record.uri, facts.side)
            there = facts.stored.get(ingestion.image_id(record.split, record.uri))
        return image_id, record.uri, None if there is None else there.key

    def _in_other_split(self, record: ImageRecord) -> Stored | None:
        """Return the image of that name in the other split of `train` and `test`, if such change over."""
        if self.facts.share is None:
            return None
        split = "train" if record.split == "test" else "test"
        return self.facts.stored.get(ingestion.image_id(split, record.source))

    def _judge(self, placed: Placed, before: Origin, there: Stored) -> Placed:
        """Decide between the class that an image is in and the one that the source gives it now."""
        if there.class_id == placed.class_id:
            return placed
        label = placed.record.class_name
        now = "none" if there.class_id is None else repr(self.facts.names[there.class_id])
        same = self._same_label(label, before.label)
        if same and there.content == placed.found.content_hash:
            self.counts["corrected"] += 1
            told = f"stays in {now} as corrected, though its source says {label!r}: {placed.uri}"
            self.notes.add("corrected", told)
            return placed._replace(class_id=there.class_id)
        self.counts["moved"] += self.facts.past is not None
        if there.class_id is not None:
            self.left.add(there.class_id)
        if there.class_id != before.class_id:
            self.counts["overruled"] += 1
            what = "another picture" if same else f"moved to {label!r}"
            self.notes.add("overruled", f"corrected to {now} before, and {what} since: {placed.uri}")
        return placed

    def check(self) -> None:
        """Refuse a source of which no image is taken.

        Raises:
            InputError: If not one is of a known class and can be read.
        """
        if not self.images and self.unknown:
            raise InputError(
                f"none of the {self.unknown.total():,} images is of a class that the workspace knows; "
                f"theirs are, for example, {counted(self.unknown)}",
                "Bring in the training images or the texts first, or make the classes now: --create-classes",
            )
        readable = len(self.images) - self.notes.counts["quarantined"]
        if not readable and not self.counts["removed"]:
            example = self.notes.lines[0].removeprefix(_ASIDE)
            raise InputError(f"no image was taken: {example}", "Mend the source and run the command again.")

    def give_up(self, past: Mapping[Name, str]) -> None:
        """Decide on the images that the source gave before and does not have now; `past` has those that it has."""
        facts = self.facts
        unusable = {item.ref for item in facts.seen if isinstance(item, Skipped) and item.ref}
        given = {i: facts.stored[i] for i in facts.before if i in facts.stored}
        left = given.keys() - past.values()
        missing = {i for i in left if not _is_below(given[i].uri, unusable)}
        self.origins |= {i: facts.before[i] for i in left - missing - self.origins.keys()}
        self.given = len(given)
        self.missing = len(missing)
        gone = [i for i in given if i in missing and i not in facts.elsewhere]
        self.counts["gone"] = len(gone)
        for i in gone:
            one = given[i]
            self.delete.add(one.key)
            if one.class_id is None:
                continue
            self.left.add(one.class_id)
            if one.class_id != facts.before[i].class_id:  # if it comes back, it is in the class of its source
                corrected = f"corrected to {facts.names[one.class_id]!r} before, and gone with its correction"
                self.notes.add("lost", f"{corrected}: {one.uri}")


def decide(facts: Facts) -> Plan:
    """Decide what becomes of each image of a source, and of those that it gave before.

    Raises:
        InputError: If it has images, and not one is of a known class and can be read.
    """
    plan = Plan(facts)
    for item in facts.seen:
        if isinstance(item, Skipped):
            plan.notes.skip(item)
        else:
            plan.take(item)
    if facts.seen:
        plan.check()
    if facts.past is not None:
        plan.give_up(facts.past)
    else:  # what the source gave before stays known
        replaced = {key.partition("-")[0] for key in plan.delete}
        plan.origins = {i: one for i, one in facts.before.items() if i not in replaced} | plan.origins
    plan.delete -= plan.images.keys()
    return plan


def _is_below(uri: str, places: AbstractSet[str]) -> bool:
    """Say whether an image, or a folder above it, is one of some places."""
    parts = uri.split("/")
    return any("/".join(parts[:count]) in places for count in range(1, len(parts) + 1))


def counted(names: Counter[str]) -> str:
    shown = [f"{name!r} ({count:,})" for name, count in names.most_common(3)]
    return ", ".join(shown) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
