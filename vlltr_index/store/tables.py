"""The only lancedb import: tables by name, upsert by key, scans into tensors, versions and tags.

It takes more than a second, so it is done where a table is opened: answers need none.

A table is opened once, at each version that is asked for; what is opened at none reads the newest. No handle outlives a
fork.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlltr_index.errors import (
    FREE_SPACE,
    InputError,
    MissingFileError,
    MissingStepError,
    VlltrError,
    WorkspaceError,
    reason,
    system_code,
    write_error,
)
from vlltr_index.schemas.tables import (
    CLASS_STATS,
    COMMITTED,
    KEYS,
    class_stats,
    image_vectors,
    sentence_vectors,
)
from vlltr_index.store.checksums import CHECKSUM, checksums, covered, total, with_checksum, wrong_row
from vlltr_index.store.durability import give_up, keep, remove_versions, sweep, sync_changed
from vlltr_index.store.rows import conform, last_per_key

if TYPE_CHECKING:
    import torch

GONE = (
    "Bring that folder back from a backup, or make a new workspace (vlltr init DIR) and run there again what "
    "`vlltr history` lists."
)
"""What to do where a table is gone."""
_MOST_OPEN = 64  # tables
_MOST_TABLES = 1_000_000
_BATCH = 8192  # rows a scan hands out at once, at most
_FEW = 2000  # keys that are worth a filter instead of a scan
_ROWS, _SECONDS = 4096, 30.0  # `appending` writes so many rows, or so long after the last time
_KEY_MARK = b"lance-schema:unenforced-primary-key:position"
_NEVER = timedelta(days=36500)  # LanceDB's own limit, a week, fails where an older version is tagged
_MARGIN = timedelta(seconds=10)  # LanceDB refuses where a tagged version looks old, and the clock moves on
_ANEW = "make a new workspace (vlltr init DIR) and run there again what `vlltr history` lists."
_MENDS = dict.fromkeys(KEYS, _ANEW) | {"sentence_scores": "make all of its rows again: vlltr select"}


def quote(value: str) -> str:
    """Quote `value` as an SQL string literal for a `where`.

    Raises:
        InputError: If it is not valid Unicode or holds a null character.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"not valid Unicode text: {value!r}") from None
    if "\0" in value:
        raise InputError(f"text with a null character: {value!r}")
    return "'" + value.replace("'", "''") + "'"


def one_of(column: str, values: Iterable[str | int]) -> str:
    """Return a `where` that holds for the rows whose `column` is one of `values`."""
    items = ", ".join(quote(v) if isinstance(v, str) else str(int(v)) for v in values)
    return f"{column} IN ({items})" if items else "false"


def _fitting(data: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`conform`, and beside each row its checksum, where the table has them."""
    rows = conform(data, _plain(schema), what)
    if CHECKSUM not in schema.names:
        return rows
    batches = rows.select(covered(what, schema)).to_batches(_BATCH)
    sums = pa.chunked_array([pa.array(checksums(batch)) for batch in batches])
    return rows.append_column(schema.field(CHECKSUM), sums)


class Store:
    """Tables in the folder (or other LanceDB address) `uri`.

    In a folder, what is written to a table of vectors, or any other that no commit names, is durable when the method
    returns.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self._folder = None if "://" in self.uri else Path(self.uri)
        self._db: Any = None
        self._pid = -1
        self._opened: dict[tuple[str, int | None], Any] = {}
        self._checked: set[tuple[str, int]] = set()

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self.uri,)

    @property
    def _connection(self) -> Any:
        if self._pid != os.getpid():  # a connection does not survive a fork
            import lancedb

            self._db = lancedb.connect(self.uri, read_consistency_interval=timedelta(0))
            self._pid = os.getpid()
            self._opened = {}
        return self._db

    def _open(self, name: str, version: int | None = None) -> Any:
        key = name, version
        with self._explained(f"table {name!r}", "opened"):
            connection = self._connection
        table = self._opened.get(key)
        if table is None:
            with self._explained(f"table {name!r}", "opened"):
                try:
                    table = connection.open_table(name, version=version)
                except ValueError:  # no such table, or no such version
                    if version is None or not self.exists(name):
                        raise MissingFileError(f"there is no table {name!r} in {self.uri}", GONE) from None
                    raise
                found = list(table.schema.names)
                columns = _columns(name)
            if columns not in (None, found):
                raise WorkspaceError(
                    f"table {name!r} in {self.uri} has the columns {found}, and this program expects {columns}",
                    "Its files may have been taken for another's: bring them back from a backup, or make a new "
                    "workspace: vlltr init DIR",
                )
            # Never changed in place: other threads read it.
            self._opened = {**(self._opened if len(self._opened) < _MOST_OPEN else {}), key: table}
        return table

    def _forget(self, name: str) -> None:
        """Drop the cached handles of a table, so that it is opened again."""
        self._opened = {key: table for key, table in self._opened.items() if key[0] != name}
        self._checked = {key for key in self._checked if key[0] != name}

    def sync(self, name: str) -> None:
        """Make all of a table durable; in object storage there is nothing to do."""
        if self._folder is not None:
            try:
                sync_changed(self._folder / f"{name}.lance", None)
            except OSError as error:
                raise write_error(self._folder, error) from error

    def _keep(self, name: str) -> None:
        """Make a table that no commit names durable in its current version."""
        if self._folder is not None and name not in KEYS:
            try:
                keep(self._folder, name, self.version(name))
            except OSError as error:
                raise write_error(self._folder, error) from error

    @contextmanager
    def _explained(self, subject: str, what: str) -> Iterator[None]:
        """Turn LanceDB's errors in the block into a `WorkspaceError` about the subject."""
        try:
            yield
        except (VlltrError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # LanceDB raises what it likes, and a panic in Rust is no Exception
            mend = (
                "Look at the disk, its permissions or the network; bring damaged files back from a backup, or make a "
                "new workspace: vlltr init DIR"
            )
            raise WorkspaceError(
                f"{subject} in {self.uri} cannot be {what}: {reason(error)}",
                FREE_SPACE if system_code(error) == errno.ENOSPC else mend,
            ) from error

    @contextmanager
    def _table(self, name: str, what: str = "read", version: int | None = None) -> Iterator[Any]:
        table = self._open(name, version)
        with self._explained(f"table {name!r}", what):
            yield table

    def names(self) -> list[str]:
        """List the names of all tables, sorted; half-made ones are included."""
        with self._explained("the list of tables", "read"):
            return sorted(self._connection.list_tables(limit=_MOST_TABLES).tables)

    def exists(self, name: str) -> bool:
        """Say whether the table exists and opens; a writer killed while making it leaves only a name."""
        try:
            return bool(self._open(name).version)
        except MissingStepError:
            return False
        except VlltrError:
            raise
        except Exception:  # LanceDB raises what it likes where another process dropped the table
            self._forget(name)
            return name in self.names()

    def create(self, name: str, schema: pa.Schema, key: str | None = None) -> None:
        """Make an empty table if it does not exist; a half-made one is made again.

        Raises:
            WorkspaceError: If a table of that name has other columns, or the name has other characters than letters,
                digits, '_', '-' and '.'.
        """
        if not self.exists(name):
            with self._explained(f"table {name!r}", "made"):
                self._connection.create_table(name, schema=with_checksum(name, schema), exist_ok=True)
        with self._table(name, "written") as table:
            if not (found := _plain(table.schema)).equals(_plain(schema)):
                raise WorkspaceError(
                    f"table {name!r} in {self.uri} has the columns {', '.join(map(str, found))};"
                    f" this program expects {', '.join(map(str, _plain(schema)))}",
                    "Make a new workspace: vlltr init DIR",
                )
            if key is not None and _KEY_MARK not in (table.schema.field(key).metadata or {}):
                table.set_unenforced_primary_key([key])
        self._keep(name)

    def remake(self, name: str, schema: pa.Schema, key: str) -> None:
        """Make the table empty, with other columns, in a new version: the old versions stay as they are."""
        self._forget(name)
        with self._explained(f"table {name!r}", "written"):
            table = self._connection.create_table(name, schema=with_checksum(name, schema), mode="overwrite")
            table.set_unenforced_primary_key([key])

    def drop(self, name: str) -> None:
        """Remove a table and all its versions, if it is there."""
        self._forget(name)
        with self._explained(f"table {name!r}", "removed"):
            self._connection.drop_table(name, ignore_missing=True)
        if self._folder is not None:
            give_up(self._folder, name)

    def schema(self, name: str, version: int | None = None) -> pa.Schema:
        """Return the table's schema, without LanceDB's own metadata and without checksums."""
        with self._table(name, version=version) as table:
            return _plain(table.schema)

    def append(self, name: str, data: pa.Table) -> None:
        """Add rows without looking at keys.

        Raises:
            InputError: If the rows do not fit the table.
        """
        if data.num_rows:
            with self._table(name, "written") as table:
                table.add(_fitting(data, table.schema, name))
            self._keep(name)

    @contextmanager
    def appending(self, name: str) -> Iterator[Callable[[pa.Table], None]]:
        """Yield an `append` that collects rows and writes many at a time, since readers open a file for each write.

        A run that is killed loses those of half a minute at most.
        """
        waiting = list[pa.Table]()
        since = time.monotonic()

        def append(rows: pa.Table) -> None:
            nonlocal since
            waiting.extend([rows] if rows.num_rows else [])
            if waiting and (sum(map(len, waiting)) >= _ROWS or time.monotonic() - since > _SECONDS):
                self.append(name, pa.concat_tables(waiting))
                waiting.clear()
                since = time.monotonic()

        try:
            yield append
        finally:
            if waiting:
                self.append(name, pa.concat_tables(waiting))

    def upsert(self, name: str, data: pa.Table, key: str) -> None:
        """Write rows by `key`: replace the row that has it, else insert; of equal keys the last counts.

        Raises:
            InputError: If the rows do not fit the table.
        """
        if data.num_rows:
            with self._table(name, "written") as table:
                rows = last_per_key(_fitting(data, table.schema, name), key)
                table.merge_insert(key).when_matched_update_all().when_not_matched_insert_all().execute(rows)
            self._keep(name)

    def delete(self, name: str, where: str) -> int:
        """Delete the rows for which `where` holds (literals through `quote`); returns how many there were."""
        if self.count(name, where) == 0:
            return 0
        with self._table(name, "written") as table:
            gone = int(table.delete(where).num_deleted_rows)
        self._keep(name)
        return gone

    def count(self, name: str, where: str | None = None, version: int | None = None) -> int:
        """Count the rows (for which `where` holds)."""
        with self._table(name, version=version) as table:
            return int(table.count_rows(where))

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        version: int | None = None,
        batch_rows: int = _BATCH,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a table's rows, in no particular order.

        Raises:
            WorkspaceError: If the table's files are damaged.
        """
        with self._table(name, version=version) as table:
            query = table.search().where(where) if where else table.search()
            batches = iter(query.select(list(columns or _plain(table.schema).names)).to_batches(batch_rows))
        while True:  # what happens between two batches is the caller's
            with self._explained(f"table {name!r}", "read"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def read(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Read a table's rows as one Arrow table, with `columns` in their order."""
        schema = self.schema(name, version)
        if columns is not None:
            schema = pa.schema([schema.field(c) for c in columns])
        batches = [b.select(schema.names) for b in self.scan(name, columns, where, version)]
        return pa.Table.from_batches(
            [pa.RecordBatch.from_arrays(b.columns, schema=schema) for b in batches], schema
        )

    def keys(self, name: str, column: str) -> set[Any]:
        """Return all values of a column; an empty set if there is no such table."""
        if not self.exists(name):
            return set()
        return {key for batch in self.scan(name, [column]) for key in batch.column(0).to_pylist()}

    def vector_batches(
        self, name: str, key_column: str, where: str | None = None
    ) -> Iterator[tuple[pa.Array, torch.Tensor]]:
        """Stream keys [b] and vectors float32 [b, D] of the column `vector`, unnormalised, without copying.

        Do not write into the vectors: the memory is Arrow's.

        Raises:
            WorkspaceError: If a row of a cache is not the one that was written.
        """
        from torch.utils.dlpack import from_dlpack

        for batch in self._checked_rows(name, list({key_column, "vector"}), where):
            if batch.num_rows:
                vectors = from_dlpack(batch["vector"].flatten())
                yield batch[key_column], vectors.view(batch.num_rows, -1)

    def _checked_rows(
        self, name: str, columns: Sequence[str] = (), where: str | None = None, version: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Stream some columns, and where rows have a checksum, it and what it is over, once they are compared."""
        with self._table(name, version=version) as table:
            schema = table.schema
        over = covered(name, schema) if CHECKSUM in schema.names else ()
        wanted = [*columns, *over, CHECKSUM] if over else columns
        for batch in self.scan(name, list(dict.fromkeys(wanted)), where, version):
            if over and (at := wrong_row(batch, over)) is not None:
                key = batch[over[0]].cast(pa.binary())[at].as_py().decode(errors="replace")
                raise self._damaged(name, f"the row {key!r} is not the one that was written")
            yield batch

    def _damaged(self, name: str, what: str) -> WorkspaceError:
        mend = _MENDS.get(name, "remove it, and make all of its vectors again: vlltr embed")
        return WorkspaceError(
            f"table {name!r} in {self.uri} is damaged: {what}",
            f"Bring its folder {name}.lance back from a backup, or {mend}",
        )

    def check(self, name: str, checksum: int, version: int | None = None) -> None:
        """See that the rows are those that were written, once for each version.

        Args:
            name: A table whose rows have checksums.
            checksum: What `checksum` gave.
            version: Of the table; default: the newest.

        Raises:
            WorkspaceError: If a row was changed, or is missing, or was brought back.
        """
        key = name, self.version(name) if version is None else version
        if key in self._checked:
            return
        rows = self._checked_rows(name, version=version)
        if total(batch[CHECKSUM] for batch in rows) != checksum:
            raise self._damaged(name, "rows are missing, or there are others than were written")
        self.take_for_checked(*key)

    def take_for_checked(self, name: str, version: int) -> None:
        """Compare a version of a table no more: the rows that this process did not write were compared before."""
        self._checked = self._checked | {(name, version)}  # never changed in place: other threads read it

    def checksum(self, name: str) -> int | None:
        """Compute the sum of the rows' checksums, below 2**53; None: they have none."""
        with self._table(name) as table:
            if CHECKSUM not in table.schema.names:
                return None
        return total(batch[CHECKSUM] for batch in self.scan(name, [CHECKSUM]))

    def vectors(self, name: str, key_column: str, keys: Sequence[str]) -> torch.Tensor:
        """Read vectors into one tensor float32 [n, D], unnormalised as stored.

        Args:
            name: A table with a key column and a fixed-size list column `vector`.
            key_column: Name of the key column.
            keys: Rows wanted, in this order, repeats allowed.

        Raises:
            MissingStepError: If a key has no vector, or there is no such table.
        """
        import torch

        if not keys:
            width = self.schema(name).field("vector").type.list_size if self.exists(name) else 0
            return torch.empty(0, width)
        place = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        found = torch.zeros(len(place), dtype=torch.bool)
        if self.exists(name):
            out = torch.empty(len(place), self.schema(name).field("vector").type.list_size)
            few = len(place) <= _FEW and len(place) * 4 < self.count(name)
            where = one_of(key_column, place) if few else None
            for names, vectors in self.vector_batches(name, key_column, where):
                at = torch.tensor([place.get(key, -1) for key in names.to_pylist()])
                wanted = at >= 0
                out[at[wanted]] = vectors[wanted]
                found[at[wanted]] = True
        if missing := int((~found).sum()):
            raise MissingStepError(
                f"{missing:,} of {len(place):,} vectors are not in {name}", "Make them: vlltr embed"
            )
        return out if len(place) == len(keys) else out[torch.tensor([place[key] for key in keys])]

    def version(self, name: str) -> int:
        """Return the number of the newest version."""
        with self._table(name) as table:
            return int(table.version)

    def tags(self, name: str) -> dict[str, int]:
        """Return the version of each tag; a file is read for each.

        Raises:
            WorkspaceError: If the file of one is damaged.
        """
        with self._table(name, "asked for its tags") as table:
            return {tag: int(facts["version"]) for tag, facts in table.tags.list().items()}

    def tag(self, name: str, version: int, tag: str) -> None:
        """Tag a version, so that it is not cleaned away; an existing tag is moved."""
        with self._table(name, "written") as table:
            try:
                table.tags.update(tag, version)
            except RuntimeError:  # there is none
                table.tags.create(tag, version)

    def untag(self, name: str, *tags: str) -> None:
        """Remove existing tags."""
        with self._table(name, "written") as table:
            for tag in tags:
                table.tags.delete(tag)

    def restore(self, name: str, version: int) -> int:
        """Make an old version's rows the newest again; return the number of the new version.

        Raises:
            WorkspaceError: If the version was cleaned away.
        """
        self._forget(name)  # through a handle that is behind, rows of another writer would be lost
        with self._table(name, f"put back to version {version}") as table:
            table.restore(version)
            return int(table.version)

    def optimize(self, name: str) -> None:
        """Merge small fragments, which makes a new version."""
        with self._table(name, "merged") as table:
            table.optimize(cleanup_older_than=_NEVER)
        self._keep(name)

    def clean(self, name: str) -> None:
        """Compact the table, then remove all untagged versions except the newest, and unused files.

        In object storage those after the oldest tagged one stay, and what is older than that by a few seconds alone. No
        other process may write meanwhile.
        """
        self.optimize(name)
        tagged = set(self.tags(name).values())
        age = _NEVER
        if self._folder is not None:
            remove_versions(self._folder, name, {self.version(name), *tagged})
            self._forget(name)
        with self._table(name, "cleaned") as table:
            if self._folder is None:
                kept = [v["timestamp"] for v in table.list_versions() if v["version"] in tagged]
                now = datetime.now()  # LanceDB's times have no zone
                age = now - min(kept, default=now) + _MARGIN
            table.optimize(cleanup_older_than=age, delete_unverified=True)
        self._keep(name)
        if self._folder is not None:
            sweep(self._folder, name)

    def index_text(self, name: str, column: str) -> None:
        """Make the full-text index of a text column if there is none; `optimize` adds later rows to it."""
        from lancedb.index import FTS

        with self._table(name, "indexed") as table:
            if not table.list_indices():
                table.create_index(column, config=FTS())

    def full_text(
        self,
        name: str,
        column: str,
        words: str,
        key: str,
        limit: int,
        where: str = "true",
        version: int | None = None,
    ) -> pa.Table:
        """Return the `key` of rows whose text has any of the words, with its BM25 `_score`; best first, ties by `key`.

        Rows that are not in the index yet are searched one by one.
        """
        from lancedb.query import MatchQuery

        with self._table(name, version=version) as table:
            query = table.search(MatchQuery(words, column)).select([key, "_score"])
            found = query.limit(limit).where(where).to_arrow()
        return found.sort_by([("_score", "descending"), (key, "ascending")])


def fuse_rankings(key: str, one: pa.Table, other: pa.Table) -> pa.Table:
    """Fuse two rankings, best first, by LanceDB's reciprocal rank fusion; the score is in `_relevance_score`.

    Args:
        key: The column that says which rows are the same.
        one: Of a row that is in both rankings, this one is taken.
        other: May lack columns of `one`; they are null in its rows.
    """
    from lancedb.rerankers import RRFReranker

    ranked = [ranking.rename_columns({key: "_rowid"}) for ranking in (one, other)]
    return RRFReranker().rerank_hybrid("", *ranked).rename_columns({"_rowid": key})


def _columns(name: str) -> list[str] | None:
    """Return the columns of a workspace's table, with the checksum, or None if it is none of these."""
    kinds = {
        CLASS_STATS: class_stats,
        "sentence_vectors_": sentence_vectors,
        "sentence_readings_": sentence_vectors,
        "content_vectors_": image_vectors,
    }
    schema = COMMITTED.get(name) or next(
        (kind(1) for start, kind in kinds.items() if name.startswith(start)), None
    )
    return None if schema is None else list(with_checksum(name, schema).names)


def _plain(schema: pa.Schema) -> pa.Schema:
    """`schema` without metadata and without the checksum."""
    return pa.schema([pa.field(f.name, f.type, f.nullable) for f in schema if f.name != CHECKSUM])
