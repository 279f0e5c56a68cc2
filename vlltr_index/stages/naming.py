"""A benchmark's class names against the classes that a workspace has: by name, else by alias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlltr_index.corpus.names import ClassNames
from vlltr_index.rows import one_of
from vlltr_index.schemas.tables import CLASSES

if TYPE_CHECKING:
    from vlltr_index.transaction import Transaction

__all__ = ["known_names", "note_aliases"]


def known_names(tx: Transaction, names: ClassNames | None) -> ClassNames | None:
    """`names` as the workspace has them: a class that it knows by an alias alone goes by its name there.

    Folders of ImageNet, for one, are named by WordNet ids; who has ingested them has classes of that name.

    Raises:
        UnknownClassError: If a name fits two of the workspace's classes equally well.
    """
    if names is None:
        return None
    table = tx.class_table()
    result = []
    for name, aliases in zip(names.names, names.aliases, strict=True):
        found = table.find(name)
        if found is None:
            ids = {i for i in map(table.find, aliases) if i is not None}
            found = ids.pop() if len(ids) == 1 else None
            name = name if found is None else table.names[found]
        result.append(name)
    return replace(names, names=tuple(result))


def note_aliases(
    tx: Transaction, given: ClassNames | None, used: ClassNames | None, classes: Mapping[str, int | None]
) -> None:
    """Give classes the other names that their benchmark has for them, unless another class goes by one.

    Args:
        tx: The open transaction.
        given: Names and aliases as the benchmark has them.
        used: What `known_names` made of them.
        classes: The class of each name of `used` that occurred.
    """
    if given is None or used is None:
        return
    table = tx.class_table()
    wanted: dict[int, list[str]] = {}
    for name, shown, aliases in zip(given.names, used.names, given.aliases, strict=True):
        class_id = classes.get(shown)
        new = [a for a in (name, *aliases) if table.find(a) is None]
        if class_id is not None and new:
            wanted[class_id] = new
    if not wanted:
        return
    rows: list[dict[str, Any]] = tx.table("classes", where=one_of("class_id", list(wanted))).to_pylist()
    for row in rows:
        row["aliases"] = [*row["aliases"], *wanted[row["class_id"]]]
    tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))
