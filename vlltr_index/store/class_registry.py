"""The classes of a workspace by number, name and alias."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

from vlltr_index.errors import UnknownClassError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ClassTable"]


def _fold(name: str) -> str:
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
        return {name}, set(aliases), {_fold(name)}, {_fold(a) for a in aliases}

    def find(self, name: str) -> int | None:
        """The class of that name or alias, None if there is none; case does not matter unless it decides.

        Raises:
            UnknownClassError: If two classes fit equally well.
        """
        exact, alias, folded, folded_alias = self._levels
        for level, key in ((exact, name), (alias, name), (folded, _fold(name)), (folded_alias, _fold(name))):
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
        close = list(dict.fromkeys(shown[s] for s in get_close_matches(_fold(name), list(shown), n=3)))
        hint = f"Did you mean {', '.join(map(repr, close))}? " if close else ""
        hint += (
            "List all: vlltr classes list" if self.ids else "There are no classes yet: vlltr ingest text PATH"
        )
        raise UnknownClassError(f"no class {name!r}", hint)
