"""Read and edit the tree above the classes (table `taxonomy`), by the current names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.data.text import folded
from vlltr_index.schemas.records import Taxon

if TYPE_CHECKING:
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction

_DEEPEST = 100  # levels; biology has some 30

Taxonomy = Mapping[str, Taxon]
"""Nodes by name: classes, and names above them. There are no cycles."""


def load_taxonomy(snapshot: Snapshot) -> Taxonomy:
    """Read the tree of a commit; empty if there is none."""
    return taxonomy_of(snapshot.answering("taxonomy"), snapshot.class_table())


def taxonomy_of(table: pa.Table, classes: ClassTable) -> Taxonomy:
    """Build the tree of rows of the table `taxonomy`; a node named like a class, or like its alias, gets its name.

    Names are compared without regard to case and blanks.
    """
    rows = {taxon.name: taxon for taxon in (Taxon(**row) for row in table.to_pylist())}
    nodes = {t.parent: Taxon(t.parent, None) for t in rows.values() if t.parent is not None} | rows
    if not nodes:
        return {}
    spelled = {folded(name): name for name in nodes}
    shown = dict[str, str]()
    taken = set[str]()
    called = [(classes.names[i], classes.names[i]) for i in classes.ids]
    called += [(alias, classes.names[i]) for i in classes.ids for alias in classes.aliases.get(i, ())]
    for alias, name in called:
        own = alias if alias in nodes else spelled.get(folded(alias))
        if own is not None and own not in shown and name not in taken:
            shown[own] = name
            taken.add(name)
    return {
        shown.get(name, name): Taxon(
            shown.get(name, name), taxon.parent and shown.get(taxon.parent, taxon.parent), taxon.rank
        )
        for name, taxon in nodes.items()
    }


def misplaced(taxonomy: Taxonomy, names: Iterable[str]) -> tuple[list[str], str] | None:
    """Return names of which one lies below itself, or too deep, and this in words; None if all are well placed."""
    for name in names:
        path = [name]
        while path[-1] in taxonomy and (above := taxonomy[path[-1]].parent) is not None:
            if above in path:
                ring = path[path.index(above) :]
                return ring, f"{ring[0]!r} would lie below itself: {' < '.join([*ring, ring[0]])}"
            path.append(above)
            if len(path) > _DEEPEST:
                return path, f"{name!r} lies below more than {_DEEPEST - 1} others"
    return None


def rename_node(tx: Transaction, old: str, new: str) -> bool:
    """Rename a class's node in the tree; say whether the tree had a node of the new name already, which is kept."""
    rows = tx.table("taxonomy").to_pylist()
    names = {folded(row[key]) for row in rows for key in ("name", "parent") if row[key] is not None}
    same = folded(old)
    taken = folded(new) in names - {same}
    if same in names and not taken:
        for row in rows:
            for key in ("name", "parent"):
                if row[key] and folded(row[key]) == same:
                    row[key] = new
        tx.replace("taxonomy", pa.Table.from_pylist(rows, schema=tx.schema("taxonomy")))
    return taken


def merge_nodes(tx: Transaction, kept: str, gone: str) -> None:
    """Move the children of the class `gone` below `kept`, or, if `kept` lies below `gone`, up to the parent of
    `gone`.

    If `kept` has no node of its own, nothing is written: it has the node of `gone` by its alias.
    """
    rows = tx.table("taxonomy").to_pylist()
    old = folded(gone)
    parents = {folded(row["name"]): row["parent"] for row in rows}
    if folded(kept) not in parents:
        return
    node: str | None = kept
    while node is not None and folded(node) != old:
        node = parents.get(folded(node))
    target = kept if node is None else parents.get(old)
    moved = [
        {**row, "parent": target} if row["parent"] and folded(row["parent"]) == old else row
        for row in rows
        if folded(row["name"]) != old
    ]
    tx.replace("taxonomy", pa.Table.from_pylist(moved, schema=tx.schema("taxonomy")))
