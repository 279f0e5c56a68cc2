"""What each source gave a workspace, by which a later reading tells what moved in it, what is gone and what is new."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, KeysView
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.data.objects import is_address
from vlltr_index.data.text import folded, sentence_id
from vlltr_index.schemas.tables import ORIGINS
from vlltr_index.store.tables import quote

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction


class Origin(NamedTuple):
    """What a source gave for a row when it was last read; see `schemas.tables.ORIGINS`."""

    row_key: str
    label: str | None
    class_id: int | None
    dealt: str | None = None


class IngestedSource:
    """A source of images or sentences in an open transaction, and what it gave before.

    Args:
        tx: The open transaction.
        kind: Which rows it gives.
        place: Its path or address.
        split: The split that was asked for; the same folder may be read for several.

    Attributes:
        address: Its address, or its path in full.
        before: What it gave before, by the id of the row (of an image without the suffix of its side), also where the
            row is gone.
        classes: By its name, the class that it gave last.
        respelt: By the name of a class that it writes in another case than before, the name before; see `respell`.
    """

    def __init__(
        self,
        tx: Transaction,
        kind: Literal["images", "sentences"],
        place: Path | str,
        split: str | None = None,
    ) -> None:
        self._tx = tx
        self._kind = kind
        self.address = str(place).rstrip("/") if is_address(place) else str(Path(place).resolve())
        self._name = _name(kind, self.address, split)
        rows = tx.table("origins", where=f"source LIKE '{kind} %'")
        own = pc.equal(rows["source"], self._name)
        self._ids = set(rows.filter(own)["origin_id"].to_pylist())
        self.before = dict(self._by_row(rows.filter(own)))
        self._others = defaultdict[str, list[dict[str, Any]]](list)  # of other sources, by the id of the row
        others = rows.filter(pc.invert(own))
        for (key, _), row in zip(self._by_row(others), others.to_pylist(), strict=True):
            self._others[key].append(row)
        used = set(tx.class_table().ids)
        given = ((one.label, one.class_id) for one in self.before.values())
        self.classes = {label: i for label, i in given if label is not None and i is not None and i in used}
        self.respelt: dict[str, str] = {}

    def _by_row(self, rows: pa.Table) -> Iterator[tuple[str, Origin]]:
        """Yield what was given, by the id of the row."""
        columns = (rows[name].to_pylist() for name in Origin._fields)
        for values in zip(*columns, strict=True):
            one = Origin(*values)
            yield one.row_key if self._kind == "images" else sentence_id(one.class_id or 0, one.row_key), one

    @property
    def is_gone(self) -> bool:
        """Whether it gave something before, and its place is no more."""
        return bool(self.before) and _has_gone(self._name)

    @property
    def elsewhere(self) -> KeysView[str]:
        """Ids of the rows that other sources gave."""
        return self._others.keys()

    def respell(self, names: Collection[str]) -> Collection[str]:
        """Find those of its class names that replace one of before, which differs by case alone; return all names."""
        before = {one.label for one in self.before.values() if one.label is not None}
        left = {folded(label): label for label in sorted(before.difference(names))}
        for name in names:
            if name not in before and folded(name) in left:
                self.respelt[name] = old = left.pop(folded(name))
                if old in self.classes:
                    self.classes[name] = self.classes[old]
        return names

    def removed(self, names: Iterable[str]) -> set[str]:
        """Return those of its class names whose class was removed since it gave it."""
        table = self._tx.class_table()
        given = {one.label for one in self.before.values()}.difference(self.classes)
        there = (name for name in names if table.find(name) is None)
        return {name for name in there if self.respelt.get(name, name) in given}

    def moved_here(self, found: Collection[str]) -> set[str]:
        """Return the ids of all rows of those sources that are gone, and two thirds of whose rows are `found` here."""
        given = defaultdict[str, set[str]](set)
        for key, rows in self._others.items():
            for row in rows:
                given[row["source"]].add(key)
        moved = [
            keys
            for name, keys in given.items()
            if 3 * len(keys.intersection(found)) >= 2 * len(keys) and _has_gone(name)
        ]
        return set[str]().union(*moved)

    def take_over(self, keys: Collection[str]) -> None:
        """Make rows this source's that others gave and do not have any more."""
        for key in keys:
            for row in self._others.pop(key, ()):
                self._ids.add(row["origin_id"])
                self.before.setdefault(key, Origin(*(row[name] for name in Origin._fields)))

    def write(self, origins: Iterable[Origin]) -> None:
        """Make `origins` all that is known of this source."""
        rows: dict[str, dict[str, Any]] = {}
        for one in origins:
            named = f"{self._name}\0{one.label}\0{one.row_key}"
            key = hashlib.sha256(named.encode()).hexdigest()[:32]
            rows[key] = {"origin_id": key, "source": self._name, **one._asdict()}
        self._tx.delete_any("origins", "origin_id", self._ids - rows.keys())
        self._tx.upsert("origins", pa.Table.from_pylist(list(rows.values()), schema=ORIGINS))


def gave(
    snapshot: Snapshot, kind: Literal["images", "sentences"], place: Path, split: str | None = None
) -> bool:
    """Say whether a workspace has something of a source."""
    name = _name(kind, str(place.resolve()), split)
    return snapshot.count("origins", f"source = {quote(name)}") > 0


def places(snapshot: Snapshot, kind: Literal["images", "sentences"]) -> list[str]:
    """Return the addresses or paths of the sources that gave a workspace something."""
    rows = snapshot.table("origins", ["source"], f"source LIKE '{kind} %'")
    return sorted(name.removeprefix(f"{kind} ") for name in pc.unique(rows["source"]).to_pylist())


def _name(kind: str, address: str, split: str | None) -> str:
    """Return the name of a source in the table."""
    return " ".join(filter(None, (kind, split, address)))


def _has_gone(name: str) -> bool:
    """Say whether the place of a source is gone; False for object storage, where it is not checked."""
    return "://" not in name and not Path(name[name.index(os.sep) :]).exists()
