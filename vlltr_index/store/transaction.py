"""One command's writes, committed together or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.errors import InputError, WorkspaceError
from vlltr_index.schemas.tables import CLASS_STATS, KEYS, class_stats
from vlltr_index.store.rows import conform, last_per_key
from vlltr_index.store.snapshot import Commit, History, Info, Snapshot, State
from vlltr_index.store.tables import GONE, one_of
from vlltr_index.version import VERSION

if TYPE_CHECKING:
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.model import ModelRecord
    from vlltr_index.store.objects import Objects
    from vlltr_index.store.snapshot import Reader
    from vlltr_index.store.tables import Store

_NUMBERED = frozenset({"classes", "anchors"})  # tables whose key is a number that is never reused
_ALL = "true"  # a condition that holds for all rows
_PART = 1000  # rows that are compared with the stored ones, or deleted, at once
_ASKED = 8  # how often a table is asked for a few keys before all are read
_COMPACT_FROM = 32  # number of writes to a table from which it is compacted before the commit


def put_back(store: Store, last: Commit, force: bool = False) -> list[str]:
    """Undo what a writer left without a commit; return the names of the tables that it had touched.

    Args:
        store: The tables.
        last: The newest commit.
        force: Do so even if there are signs of a later commit.

    Raises:
        WorkspaceError: If a table of the commit is gone, or another would be undone that bears the tag of a later one.
    """
    names = store.names()
    touched = []
    there = {name for name in names if name in KEYS and store.exists(name)}
    if gone := sorted(last.tables.keys() - there):
        raise WorkspaceError(
            f"commit {last.id} names the table {gone[0]!r}, which is gone from {store.uri} or does not open",
            GONE,
        )
    for name in names:
        if name not in KEYS:
            continue  # vectors are caches outside the commits
        if name not in there:
            store.drop(name)  # it was only half made
            touched.append(name)
        elif name not in last.tables or store.version(name) != last.tables[name]:
            tags = store.tags(name)
            if not force:
                _check_tags(store, last, name, tags)
            if _undo(store, last, name, tags):
                touched.append(name)
    return touched


def _undo(store: Store, last: Commit, name: str, tags: Mapping[str, int]) -> bool:
    """Restore a table to the commit's version; say whether it had another content."""
    if name in last.tables:
        if tags.get(f"p{last.id}") == store.version(name):  # the same rows, merged by prune or put back
            return False
        restored = store.restore(name, last.tables[name])
        store.sync(name)  # before the tag that lets a writer continue from it
        store.tag(name, restored, f"p{last.id}")
        return True
    if any(map(_commit_of, tags)):  # a commit may name it, so it is emptied in a new version
        return store.delete(name, "true") > 0
    store.drop(name)
    return True


def check_tags(store: Store, last: Commit) -> None:
    """Check that no table has the tag of a commit that must be later than `last`.

    Raises:
        WorkspaceError: If one does.
    """
    for name in store.names():
        if name in KEYS and store.exists(name):
            _check_tags(store, last, name, store.tags(name))


def _check_tags(store: Store, last: Commit, name: str, tags: Iterable[str]) -> None:
    newest = max(map(_commit_of, tags), default=0)
    if newest <= last.id + 1:  # a killed writer may have tagged the next number
        return
    there = f"the newest in its history is commit {last.id}" if last.id else "no commit is in its history"
    on = f"go on from it: vlltr rollback {last.id}" if last.id else "make a new workspace: vlltr init DIR"
    raise WorkspaceError(
        f"commit {newest} is gone: table {name!r} in {store.uri} bears its tag, and {there}",
        f"Bring the folder history back from a backup, or {on}",
    )


def newest_tag(store: Store) -> int:
    """Return the highest commit number among the tables' tags."""
    tags = (store.tags(name) for name in store.names() if name in KEYS and store.exists(name))
    return max((_commit_of(tag) for found in tags for tag in found), default=0)


def _commit_of(tag: str) -> int:
    """Return the number of the commit that a tag belongs to, or 0 if it belongs to none."""
    number = tag.removeprefix("c")
    return int(number) if tag != number and number.isdigit() else 0


class Transaction(Snapshot):
    """Reads of the newest state, and writes that become one commit at the end.

    Made by `Workspace.transaction`.

    Attributes:
        commit: The commit this one starts from; `set` and `note` show only in `result_commit`.
        result_commit: After the end: the commit that was made, or the last one if nothing changed.
        touched: By table, the keys of the rows that were written or deleted; None: any may have been.
    """

    def __init__(
        self,
        store: Store,
        history: History,
        command: str,
        base: Commit,
        *,
        objects: Objects,
        recipe: Recipe,
        reader: Reader,
        number: int | None = None,
    ) -> None:
        super().__init__(store, base, objects, recipe=recipe, reader=reader)
        self.command = command
        self.result_commit = base
        self._history = history
        self._number = number  # if given, of a commit that is made even without changes
        self._tables = set(base.tables)
        self._writes = Counter[str]()
        self.touched: dict[str, set[Any] | None] = {}
        self._state = _state(base)
        self._next = Counter(base.info.next)
        self._asked = Counter[str]()
        self._known: dict[str, set[Any]] = {}
        self._following: dict[int, int] = {}  # class -> the next sentence's position
        self._state_of: int | None = None

    @property
    def record(self) -> ModelRecord:
        """What the model of the commit before is made of, but with the rows of now, which no part holds yet, and with
        the merged classes and the offsets that were noted."""
        now = {"parts": (), "merged": self.state.info.merged, "offsets": self.state.info.offsets}
        return super().record.model_copy(update=now)

    @property
    def before(self) -> Snapshot:
        """The commit that this one starts from."""
        return Snapshot(self.store, self.commit, self.objects, recipe=self.recipe, reader=self._reader)

    def answering(self, name: str) -> pa.Table:
        """Return the rows of a table as the command has left them so far."""
        return self.table(name)

    def has(self, name: str) -> bool:
        """Say whether the table exists now."""
        super().has(name)
        return name in self._tables

    def _version(self, name: str) -> int | None:
        return None

    def _wrote(self, name: str, keys: pa.ChunkedArray | None = None, all_new: bool = False) -> None:
        """Record a write to rows with these keys (None: to any rows); with `all_new`, rows may have been removed."""
        before = self.touched.get(name, set())
        self.touched[name] = None if keys is None or before is None else before.union(keys.to_pylist())
        self._writes[name] += 1
        self._tables.add(name)
        self._checksums.pop(name, None)  # its rows are this command's
        self._classes = None
        if all_new:
            self._known.pop(name, None)
            self._following = {}

    def _ready(self, name: str, schema: pa.Schema) -> None:
        """Make the table if it does not exist yet, or make it again if its schema changed."""
        if not self.has(name) and not self.store.exists(name):
            self.store.create(name, schema, KEYS[name])
        elif self.store.schema(name) != schema:
            self.store.remake(name, schema, KEYS[name])
        else:
            return
        self._wrote(name, all_new=True)

    def _conform(self, name: str, rows: pa.Table) -> pa.Table:
        """Return `rows` in the table's columns; for class statistics the width is taken from the rows."""
        self.has(name)
        new_width = name == CLASS_STATS
        schema = class_stats(rows.field("sum").type.list_size) if new_width else self.schema(name)
        return conform(rows, schema, name)

    def upsert(self, name: str, rows: pa.Table) -> int:
        """Write rows by the table's key; rows that are there already, and equal, are not written.

        Args:
            name: One of `schemas.tables.KEYS`.
            rows: Of equal keys the last counts.

        Returns:
            How many rows were new or different.

        Raises:
            InputError: If the rows do not fit the table.
            WorkspaceError: If rows that have checksums are not those that were written.
        """
        key = KEYS[name]
        rows = last_per_key(self._conform(name, rows), key)
        if not rows.num_rows:
            return 0
        self._check(name)
        self._ready(name, rows.schema)
        known = self._keys_among(name, rows[key].to_pylist())
        is_known = pa.array([k in known for k in rows[key].to_pylist()], pa.bool_())
        new = rows.filter(pc.invert(is_known))
        old = rows.filter(is_known)
        count = new.num_rows
        for start in range(0, old.num_rows, _PART):
            changed = self._changed(name, old.slice(start, _PART))
            if changed.num_rows:
                count += changed.num_rows
                self.store.upsert(name, changed, key)
                self._wrote(name, changed[key])
        if new.num_rows:
            known.update(new[key].to_pylist())
            self._append(name, self._numbered(new) if name == "sentences" else new)
        return int(count)

    def _keys_among(self, name: str, keys: Sequence[Any]) -> set[Any]:
        """Return at least those of some keys that the table has; a command that writes much reads all of them once."""
        self._asked[name] += 1
        if name not in self._known:
            if len(keys) <= _PART and self._asked[name] <= _ASKED:
                return set(self.table(name, [KEYS[name]], one_of(KEYS[name], keys))[KEYS[name]].to_pylist())
            self._known[name] = self.store.keys(name, KEYS[name])
        return self._known[name]

    def _changed(self, name: str, rows: pa.Table) -> pa.Table:
        """Return those of `rows`, whose keys all exist, that differ from the stored rows."""
        key = KEYS[name]
        keys = rows[key].to_pylist()
        stored = {row[key]: row for row in self.table(name, where=one_of(key, keys)).to_pylist()}
        if name == "sentences":  # a stored sentence keeps its position
            rows = _with_positions(rows, [stored[k]["position"] for k in keys])
        return rows.filter(pa.array([row != stored[row[key]] for row in rows.to_pylist()], pa.bool_()))

    def _numbered(self, rows: pa.Table) -> pa.Table:
        """Number new sentences within their class, after the stored ones."""
        owners = rows["class_id"].to_pylist()
        if missing := set(owners) - self._following.keys():
            where = one_of("class_id", missing) if len(missing) <= _PART else None
            last = self.table("sentences", ["class_id", "position"], where).group_by("class_id")
            last = last.aggregate([("position", "max")]).to_pylist()
            self._following |= dict.fromkeys(missing, 0)
            self._following |= {row["class_id"]: row["position_max"] + 1 for row in last}
        positions = []
        for owner in owners:
            positions.append(self._following[owner])
            self._following[owner] += 1
        return _with_positions(rows, positions)

    def _append(self, name: str, rows: pa.Table) -> None:
        self.store.append(name, rows)
        self._wrote(name, rows[KEYS[name]])
        if name in _NUMBERED:
            self._next[name] = max(self._next[name], pc.max(rows[KEYS[name]]).as_py() + 1)

    def delete(self, name: str, where: str) -> int:
        """Delete the rows for which `where` holds (literals through `tables.quote`); return how many."""
        if not self.has(name):
            return 0
        gone = None if where == _ALL else self.table(name, [KEYS[name]], where)[KEYS[name]]
        count = self.store.delete(name, where)
        if count:
            self._wrote(name, gone, all_new=True)
        return count

    def delete_any(self, name: str, column: str, values: Collection[str]) -> int:
        """Delete the rows whose `column` has one of some values, a thousand at a time; return how many."""
        ordered = sorted(values)
        parts = (ordered[start : start + _PART] for start in range(0, len(ordered), _PART))
        return sum(self.delete(name, one_of(column, part)) for part in parts)

    def replace(self, name: str, rows: pa.Table) -> bool:
        """Make `rows` all that the table holds, which mends it; False if it held just that.

        Raises:
            InputError: If the rows do not fit the table, or two have one key.
        """
        key = KEYS[name]
        rows = self._conform(name, rows)
        if last_per_key(rows, key).num_rows != rows.num_rows:
            raise InputError(f"two rows for table {name} have the same {key}")
        with suppress(WorkspaceError):  # damaged: all is written anew
            if self.table(name).sort_by(key).equals(rows.sort_by(key)):
                return False
        self.delete(name, _ALL)
        if rows.num_rows:
            self._ready(name, rows.schema)
            self._append(name, rows)
            self._known.pop(name, None)
        return True

    def next_id(self, name: str, count: int = 1) -> int:
        """Reserve `count` ids for new rows of `classes` or `anchors`, never used before; return the first."""
        self._next[name] += count
        return self._next[name] - count

    def set(self, **fields: Any) -> None:
        """Set fields of the commit: text_fp, image_fp, checkpoint, head, fusion, index, selection_id."""
        self._state.update(fields)

    def note(self, **facts: Any) -> None:
        """Set fields of the commit's `Info`, which are handed on to later commits."""
        self._state["info"] = Info.model_validate({**dict(self._state["info"]), **facts})

    def go_back(self, target: Commit) -> None:
        """Restore rows, fields and facts as they were at `target`; ids given out since then are not reused.

        The vectors are caches, and stay.

        Raises:
            WorkspaceError: If one of its tables' versions is gone.
        """
        now = self.commit.tables
        for name in sorted(now.keys() | target.tables.keys()):
            if name not in target.tables:
                self.delete(name, _ALL)
            elif now.get(name) != target.tables[name]:
                self.store.restore(name, target.tables[name])
                self._wrote(name, all_new=True)
                if name in target.checksums:
                    self._checksums[name] = target.checksums[name]
        self._state = _state(target)
        self.note(next=self._next)
        self._state_of = target.state

    @property
    def state(self) -> State:
        """The new commit's content beside its tables."""
        return State.model_validate(self._state)

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._writes) or self.state != State.model_validate(_state(self.commit))

    @property
    def goes_back(self) -> bool:
        """Whether the new commit has an earlier one's state."""
        return self._state_of is not None

    def finish(self) -> Commit:
        """Commit, if anything changed; called by `Workspace.transaction`."""
        base = self.commit
        if self._writes:
            self.note(next=self._next)
        if not self.changed and self._number is None:
            return base
        number = self._number or base.id + 1
        tables = self._tagged(number)
        self.result_commit = Commit(
            **self._state,
            id=number,
            parent=base.id or None,
            command=self.command,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            program_version=VERSION,
            state_of=self._state_of if self.changed or self.goes_back else base.state,
            tables=tables,
            checksums=self._checksums_now(tables),
        )
        self._history.append(self.result_commit)
        return self.result_commit

    def _tagged(self, commit_id: int) -> dict[str, int]:
        versions = {}
        for name in sorted(self._tables):
            if name == "sentences" and name in self._writes:
                self.store.index_text(name, "text")
            if self._writes[name] >= _COMPACT_FROM:
                self.store.optimize(name)
            versions[name] = self.store.version(name)
            self.store.tag(name, versions[name], f"c{commit_id}")
        return versions

    def _checksums_now(self, versions: Mapping[str, int]) -> dict[str, int]:
        """Return the sums of the tables that have one, of those that were written anew."""
        found = dict(self._checksums)
        for name in sorted(self._tables - found.keys()):
            total = self.store.checksum(name)
            if total is not None:
                found[name] = total
                self.store.take_for_checked(name, versions[name])
        return found


def _state(commit: Commit) -> dict[str, Any]:
    return {name: getattr(commit, name) for name in State.model_fields}


def _with_positions(rows: pa.Table, positions: list[int]) -> pa.Table:
    """Return sentences with other positions."""
    at = rows.schema.get_field_index("position")
    return rows.set_column(at, rows.field(at), pa.array(positions, pa.int32()))
