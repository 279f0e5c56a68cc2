"""Reading a workspace at exactly one commit, and its classes by number, name and alias."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

from vlltr_index.errors import MissingStepError, UnknownClassError, UsageError, WorkspaceError
from vlltr_index.schemas.tables import CLASS_STATS, COMMITTED, KEYS, class_stats
from vlltr_index.store.history import Commit

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.store.tables import Store

__all__ = ["ClassTable", "Snapshot", "folded", "table_gone"]


def folded(name: str) -> str:
    """A name as it is compared where neither case nor blanks matter."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


@dataclass(frozen=True)
class ClassTable:
    """Names and aliases of classes.

    Attributes:
        names: Name of every class, retired ones too, by class_id.
        aliases: Other names, by class_id.
        retired: The classes that were removed; their numbers are never used again.
    """

    names: dict[int, str]
    aliases: dict[int, tuple[str, ...]]
    retired: frozenset[int] = frozenset()

    @classmethod
    def from_arrow(cls, rows: pa.Table) -> ClassTable:
        """Read rows of the table `classes`."""
        ids: list[int] = rows.column("class_id").to_pylist()
        names = dict(zip(ids, rows.column("name").to_pylist(), strict=True))
        aliases = {i: tuple(a) for i, a in zip(ids, rows.column("aliases").to_pylist(), strict=True)}
        gone = zip(ids, rows.column("retired_at").to_pylist(), strict=True)
        return cls(names, aliases, frozenset(i for i, at in gone if at is not None))

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Numbers of the classes that are not retired, ascending."""
        return tuple(sorted(self.names.keys() - self.retired))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    @cached_property
    def _levels(self) -> tuple[dict[str, list[int]], ...]:
        """Class numbers by exact name, exact alias, folded name, folded alias; the first that knows wins."""
        levels: tuple[dict[str, list[int]], ...] = ({}, {}, {}, {})
        for i in self.ids:
            for level, keys in enumerate(self._spellings(i)):
                for key in keys:
                    levels[level].setdefault(key, []).append(i)
        return levels

    def _spellings(self, class_id: int) -> tuple[set[str], ...]:
        name, aliases = self.names[class_id], self.aliases.get(class_id, ())
        return {name}, set(aliases), {folded(name)}, {folded(a) for a in aliases}

    def find(self, name: str) -> int | None:
        """The class of that name or alias, None if there is none; case does not matter unless it decides.

        Raises:
            UnknownClassError: If two classes fit equally well.
        """
        exact, alias, plain, plain_alias = self._levels
        for level, key in ((exact, name), (alias, name), (plain, folded(name)), (plain_alias, folded(name))):
            found = level.get(key, [])
            if len(found) == 1:
                return found[0]
            if found:
                these = " or ".join(f"{self.names[i]!r} (class {i})" for i in found)
                raise UnknownClassError(
                    f"class name {name!r} may mean {these}", "Give the name as it is written there."
                )
        return None

    def lookup(self, name: str) -> int:
        """The class of that name or alias.

        Raises:
            UnknownClassError: If there is none, with close names, or if two fit equally well.
        """
        found = self.find(name)
        if found is not None:
            return found
        shown = {s: self.names[i] for i in self.ids for level in self._spellings(i)[2:] for s in level}
        close = list(dict.fromkeys(shown[s] for s in get_close_matches(folded(name), list(shown), n=3)))
        hint = f"Did you mean {', '.join(map(repr, close))}? " if close else ""
        hint += (
            "List all: vlltr classes list" if self.ids else "There are no classes yet: vlltr ingest text PATH"
        )
        raise UnknownClassError(f"no class {name!r}", hint)


def table_gone(commit_id: int, name: str, uri: str) -> WorkspaceError:
    """What to say where a table that a commit names is not there: its files were deleted."""
    return WorkspaceError(
        f"commit {commit_id} names the table {name!r}, which is gone from {uri}",
        "Bring that folder back from a backup, or make a new workspace (vlltr init DIR) and run there again what "
        "`vlltr history` lists.",
    )


class Snapshot:
    """The committed tables as one commit names them; writers after it change nothing here.

    Attributes:
        store: The tables, for the vectors: those are caches outside the commits.
        commit: The commit; `history.NOTHING` where nothing has been committed.
    """

    def __init__(self, store: Store, commit: Commit) -> None:
        self.store = store
        self.commit = commit
        self._classes: ClassTable | None = None

    def _version(self, name: str) -> int | None:
        """The version to read, None for the newest."""
        return self.commit.tables.get(name)

    def has(self, name: str) -> bool:
        """Whether the commit has that table.

        Raises:
            UsageError: If `name` is not the name of a committed table.
        """
        if name not in KEYS:
            raise UsageError(f"no committed table {name!r}; there are {', '.join(KEYS)}")
        return name in self.commit.tables

    def schema(self, name: str) -> pa.Schema:
        """The table's columns, whether it is there or not."""
        if name == CLASS_STATS:
            if self.has(name):
                with self._there(name):
                    return self.store.schema(name, self._version(name))
            return class_stats(self.commit.info.dim)
        self.has(name)  # refuses unknown names
        return COMMITTED[name]

    def table(self, name: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """A committed table's rows, in no order to rely on; no rows where it has not been written yet.

        Args:
            name: One of `schemas.tables.KEYS`.
            columns: Which, and in what order; default all.
            where: SQL condition; literals through `arrow.quote`.
        """
        if self.has(name):
            with self._there(name):
                return self.store.read(name, columns, where, self._version(name))
        empty = self.schema(name).empty_table()
        return empty if columns is None else empty.select(list(columns))

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_rows: int = 1024,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a committed table's rows, for tables that hold image bytes."""
        if self.has(name):
            with self._there(name):
                yield from self.store.scan(name, columns, where, self._version(name), batch_rows)

    def full_text(self, name: str, column: str, words: str, where: str, limit: int) -> pa.Table:
        """Keys of a committed table's rows whose text has the words; see `Store.full_text`."""
        with self._there(name):
            return self.store.full_text(name, column, words, KEYS[name], limit, where, self._version(name))

    def count(self, name: str, where: str | None = None) -> int:
        """How many rows a committed table has (for which `where` holds)."""
        if not self.has(name):
            return 0
        with self._there(name):
            return self.store.count(name, where, self._version(name))

    @contextmanager
    def _there(self, name: str) -> Iterator[None]:
        """Say which commit needs the table where its files are gone."""
        try:
            yield
        except MissingStepError:
            if name not in self.commit.tables:
                raise
            raise table_gone(self.commit.id, name, self.store.uri) from None

    def class_table(self) -> ClassTable:
        """The classes by number, name and alias."""
        if self._classes is None:
            self._classes = ClassTable.from_arrow(
                self.table("classes", ["class_id", "name", "aliases", "retired_at"])
            )
        return self._classes
