"""The classes of a commit by number, name and alias."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

from vlltr_index.data.text import folded
from vlltr_index.errors import UnknownClassError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ClassTable:
    """Names and aliases of classes.

    Attributes:
        names: Name of every class, retired ones too, by class_id.
        aliases: Other names, by class_id.
        retired: Ids of the classes that were removed; they are never used again.
    """

    names: dict[int, str]
    aliases: dict[int, tuple[str, ...]]
    retired: frozenset[int] = frozenset()

    @classmethod
    def from_arrow(cls, table: pa.Table) -> ClassTable:
        """Build from rows of the table `classes`."""
        import pyarrow.compute as pc

        ids = table["class_id"].to_pylist()
        aliased = table.filter(pc.greater(pc.list_value_length(table["aliases"]), 0))
        aliases: dict[int, tuple[str, ...]] = dict.fromkeys(ids, ())
        aliases |= zip(
            aliased["class_id"].to_pylist(), map(tuple, aliased["aliases"].to_pylist()), strict=True
        )
        return cls(
            dict(zip(ids, table["name"].to_pylist(), strict=True)),
            aliases,
            frozenset(table["class_id"].filter(table["retired_at"].is_valid()).to_pylist()),
        )

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Ids of the classes that are not retired, ascending."""
        return tuple(sorted(self.names.keys() - self.retired))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    @cached_property
    def _spelled(self) -> dict[tuple[int, str], list[int]]:
        """Class ids by exact name (0), exact alias (1), folded name (2), folded alias (3)."""
        found = defaultdict[tuple[int, str], list[int]](list)
        for i in self.ids:
            name = self.names[i]
            aliases = self.aliases.get(i, ())
            spelled = {(0, name), (2, folded(name))}
            spelled |= {(level, key) for alias in aliases for level, key in ((1, alias), (3, folded(alias)))}
            for key in spelled:
                found[key].append(i)
        return dict(found)

    def find(self, name: str) -> int | None:
        """Return the id of the class of that name or alias, or None; case matters only where it decides.

        Raises:
            UnknownClassError: If two classes fit equally well.
        """
        for key in enumerate((name, name, folded(name), folded(name))):
            found = self._spelled.get(key, ())
            if len(found) > 1:
                these = " or ".join(f"{self.names[i]!r} (class {i})" for i in found)
                merging = shlex.join(["vlltr", "classes", "merge", *(self.names[i] for i in found[:2])])
                raise UnknownClassError(
                    f"class name {name!r} may mean {these}",
                    f"Give the name as it is written there. If they are one class: {merging}",
                )
            if found:
                return found[0]
        return None

    def lookup(self, name: str) -> int:
        """Return the id of the class of that name or alias.

        Raises:
            UnknownClassError: If there is none, with close names, or if two fit equally well.
        """
        found = self.find(name)
        if found is not None:
            return found
        shown = {key: self.names[ids[0]] for (level, key), ids in self._spelled.items() if level > 1}
        close = list(dict.fromkeys(shown[s] for s in get_close_matches(folded(name), list(shown), n=3)))
        hint = f"Did you mean {', '.join(map(repr, close))}? " if close else ""
        hint += (
            "List all: vlltr classes list" if self.ids else "There are no classes yet: vlltr ingest text PATH"
        )
        raise UnknownClassError(f"no class {name!r}", hint)
