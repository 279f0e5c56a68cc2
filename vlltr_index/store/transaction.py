"""One command's writes: all of them in one commit, or none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.errors import InputError
from vlltr_index.schemas.tables import CLASS_STATS, KEYS, class_stats
from vlltr_index.store.arrow import conform, last_per_key, one_of
from vlltr_index.store.history import Commit, History, Info
from vlltr_index.store.snapshot import Snapshot, table_gone
from vlltr_index.version import VERSION

if TYPE_CHECKING:
    from vlltr_index.store.tables import Store

__all__ = ["Transaction", "put_back"]


_NUMBERED = frozenset({"classes", "anchors"})  # tables whose key is a number that is never used again
_FIELDS = frozenset({"text_fp", "image_fp", "checkpoint", "head", "fusion", "index", "selection_id"})
_PART = 1000  # rows compared with what is there at once
_COMPACT_FROM = 32  # writes to one table that are worth merging before the commit


def put_back(store: Store, last: Commit) -> list[str]:
    """Undo what a writer left that did not commit; returns the names of the tables it had touched."""
    names, touched = store.names(), []
    if gone := sorted(last.tables.keys() - set(names)):
        raise table_gone(last.id, gone[0], store.uri)
    for name in names:
        if name not in KEYS:
            continue  # vectors are caches: what is there is right
        if name not in last.tables:
            store.drop(name)
            touched.append(name)
            continue
        version = store.version(name)
        # p: the same rows, merged by prune or put back
        if version != last.tables[name] and store.tags(name).get(f"p{last.id}") != version:
            store.tag(name, store.restore(name, last.tables[name]), f"p{last.id}")
            touched.append(name)
    return touched


class Transaction(Snapshot):
    """Reads of the newest state, and writes that become one commit at the end.

    Made by `Workspace.transaction`.

    Attributes:
        commit: The commit this one starts from; `set` and `note` show only in `result_commit`.
        result_commit: After the end: the commit that was made, or the last one if nothing changed.
    """

    def __init__(self, store: Store, history: History, command: str, base: Commit) -> None:
        super().__init__(store, base)
        self.command = command
        self.result_commit = base
        self._history = history
        self._tables = set(base.tables)
        self._writes: dict[str, int] = {}
        self._fields: dict[str, Any] = {}
        self._info = base.info
        self._next = dict(base.info.next)
        self._known: dict[str, set[Any]] = {}
        self._following: dict[int, int] | None = None  # class -> the next sentence's position
        self._state_of: int | None = None

    def has(self, name: str) -> bool:
        """Whether the table is there now."""
        super().has(name)
        return name in self._tables

    def _version(self, name: str) -> int | None:
        return None

    def _wrote(self, name: str) -> None:
        self._writes[name] = self._writes.get(name, 0) + 1
        if name == "classes":
            self._classes = None

    def _ready(self, name: str, schema: pa.Schema) -> None:
        """Make the table if it is not there yet, anew if the encoder's width is another now."""
        if not self.has(name):
            self.store.create(name, schema, KEYS[name])
            self._tables.add(name)
        elif self.store.schema(name).equals(schema):
            return
        else:
            self.store.remake(name, schema, KEYS[name])
            self._known.pop(name, None)
        self._wrote(name)

    def _schema_for(self, name: str, rows: pa.Table) -> pa.Schema:
        """The columns to write: sums have the width of the rows, so that a new encoder can write its own."""
        self.has(name)
        field = rows.schema.field("sum") if name == CLASS_STATS and "sum" in rows.schema.names else None
        if field is not None and pa.types.is_fixed_size_list(field.type):
            return class_stats(field.type.list_size)
        return self.schema(name)

    def upsert(self, name: str, rows: pa.Table) -> int:
        """Write rows by the table's key; rows that are there already, and equal, are not written.

        Args:
            name: One of `schemas.tables.KEYS`.
            rows: Of equal keys the last counts.

        Returns:
            How many rows were new or different.

        Raises:
            InputError: If the rows do not fit the table.
        """
        return sum(
            self._upsert_part(name, rows.slice(start, _PART)) for start in range(0, rows.num_rows, _PART)
        )

    def _upsert_part(self, name: str, part: pa.Table) -> int:
        schema, key = self._schema_for(name, part), KEYS[name]
        rows = last_per_key(conform(part, schema, name), key)
        self._ready(name, schema)
        known = self._keys(name)
        is_known = pa.array([k in known for k in rows.column(key).to_pylist()], pa.bool_())
        new = rows.filter(pc.invert(is_known))
        changed = self._changed(name, rows.filter(is_known))
        if new.num_rows:
            new = self._placed(name, new)
            self.store.append(name, new)
            known.update(new.column(key).to_pylist())
            self._used(name, new)
            self._wrote(name)
        if changed.num_rows:
            self.store.upsert(name, changed, key)
            self._wrote(name)
        return int(new.num_rows + changed.num_rows)

    def _keys(self, name: str) -> set[Any]:
        if name not in self._known:
            found: set[Any] = set()
            for batch in self.scan(name, [KEYS[name]], batch_rows=8192):
                found.update(batch.column(0).to_pylist())
            self._known[name] = found
        return self._known[name]

    def _changed(self, name: str, rows: pa.Table) -> pa.Table:
        """Those of `rows`, whose keys are all there, that differ from what is there."""
        if not rows.num_rows:
            return rows
        key = KEYS[name]
        stored = self.table(name, where=one_of(key, rows.column(key).to_pylist()))
        stored = stored.take(pc.index_in(rows.column(key), value_set=stored.column(key).combine_chunks()))
        if name == "sentences":  # a sentence keeps the place it came in at
            rows = _with_positions(rows, stored["position"])
        return rows.filter(pc.invert(_same_rows(rows, stored)))

    def _placed(self, name: str, rows: pa.Table) -> pa.Table:
        """New sentences numbered within their class, after those that are there; other rows as they are."""
        if name != "sentences":
            return rows
        if self._following is None:
            stored = self.table(name, ["class_id", "position"]).group_by("class_id")
            last = stored.aggregate([("position", "max")]).to_pylist()
            self._following = {row["class_id"]: row["position_max"] + 1 for row in last}
        following, positions = self._following, []
        for owner in rows["class_id"].to_pylist():
            positions.append(following.get(owner, 0))
            following[owner] = positions[-1] + 1
        return _with_positions(rows, pa.array(positions, pa.int32()))

    def delete(self, name: str, where: str) -> int:
        """Delete the rows for which `where` holds (literals through `arrow.quote`); returns how many."""
        if not self.has(name):
            return 0
        gone = self.store.delete(name, where)
        if gone:
            self._known.pop(name, None)
            self._following = None
            self._wrote(name)
        return gone

    def replace(self, name: str, rows: pa.Table) -> bool:
        """Make `rows` all that the table holds; False if it held just that.

        Raises:
            InputError: If the rows do not fit the table, or two have one key.
        """
        schema, key = self._schema_for(name, rows), KEYS[name]
        rows = conform(rows, schema, name)
        if last_per_key(rows, key).num_rows != rows.num_rows:
            raise InputError(f"two rows for table {name} have the same {key}")
        if self.has(name) and self.schema(name).equals(schema):
            stored = self.table(name)
            if stored.num_rows == rows.num_rows:
                order = pc.index_in(rows.column(key), value_set=stored.column(key).combine_chunks())
                if not order.null_count and pc.all(_same_rows(rows, stored.take(order))).as_py() is not False:
                    return False
        self.delete(name, "true")
        if not rows.num_rows:
            return True
        self._ready(name, schema)
        self.store.append(name, rows)
        self._known.pop(name, None)
        self._used(name, rows)
        self._wrote(name)
        return True

    def _used(self, name: str, rows: pa.Table) -> None:
        if name in _NUMBERED:
            top = pc.max(rows.column(KEYS[name])).as_py() + 1
            self._next[name] = max(self._next.get(name, 0), top)

    def next_id(self, name: str, count: int = 1) -> int:
        """The first of `count` numbers for new rows of `classes` or `anchors` that no row has, or ever had."""
        first = self._next.get(name, 0)
        self._next[name] = first + count
        return first

    def set(self, **fields: Any) -> None:
        """Set fields of the commit: text_fp, image_fp, checkpoint, head, fusion, index, selection_id."""
        self._fields.update(fields)

    def note(self, **facts: Any) -> None:
        """Set fields of the commit's `Info`, which are handed on to later commits."""
        self._info = Info.model_validate({**dict(self._info), **facts})

    def go_back(self, target: Commit) -> None:
        """Make rows, fields and facts what they were at `target`; numbers given out since then stay taken.

        The vectors are caches, and stay.

        Raises:
            WorkspaceError: If one of its tables' versions is gone.
        """
        now = self.commit.tables
        for name in sorted(now.keys() | target.tables.keys()):
            if name not in target.tables:
                self.delete(name, "true")
            elif now.get(name) != target.tables[name]:
                self.store.restore(name, target.tables[name])
                self._tables.add(name)
                self._known.pop(name, None)
                self._wrote(name)
        self._following = None
        self._fields = {name: getattr(target, name) for name in _FIELDS}
        self._info = target.info
        self.note(next=self._next)
        self._state_of = target.state

    def finish(self) -> Commit:
        """Commit, if anything changed; called by `Workspace.transaction`."""
        base = self.commit
        if self._writes:
            self.note(next=self._next)
        values = {
            **{name: getattr(base, name) for name in _FIELDS},
            **self._fields,
            "info": self._info,
            "id": base.id + 1,
            "parent": base.id or None,
            "command": self.command,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "program_version": VERSION,
            "state_of": self._state_of,
            "tables": {},
        }
        commit = Commit.model_validate(values)
        if not self._writes and _facts(commit) == _facts(base):
            return base
        commit = commit.model_copy(update={"tables": self._tagged(commit.id)})
        self._history.append(commit)
        self.result_commit = commit
        return commit

    def _tagged(self, commit_id: int) -> dict[str, int]:
        versions = {}
        for name in sorted(self._tables):
            if name == "sentences" and name in self._writes:
                self.store.index_text(name, "text")
            if self._writes.get(name, 0) >= _COMPACT_FROM:
                self.store.optimize(name)
            versions[name] = self.store.version(name)
            self.store.tag(name, versions[name], f"c{commit_id}")
        return versions


def _with_positions(rows: pa.Table, positions: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Sentences with other positions."""
    at = rows.schema.get_field_index("position")
    return rows.set_column(at, rows.schema.field(at), positions)


def _facts(commit: Commit) -> dict[str, Any]:
    return commit.model_dump(mode="json", include={*_FIELDS, "info"})


def _same_rows(left: pa.Table, right: pa.Table) -> pa.Array:
    """Whether each row of two tables of one schema and length is equal; null equals null."""
    same = pa.array([True] * left.num_rows, pa.bool_())
    for name in left.schema.names:
        a, b = left.column(name).combine_chunks(), right.column(name).combine_chunks()
        if pa.types.is_nested(a.type):
            pairs = zip(a.to_pylist(), b.to_pylist(), strict=True)
            equal = pa.array([x == y for x, y in pairs], pa.bool_())
        else:
            both_null = pc.and_(pc.is_null(a), pc.is_null(b))
            equal = pc.or_(pc.fill_null(pc.equal(a, b), False), both_null)
        same = pc.and_(same, equal)
    return same
