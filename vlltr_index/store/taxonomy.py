"""What lies above the classes: the table `taxonomy`, read by the names that classes have now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.schemas.records import Taxon
from vlltr_index.store.snapshot import folded

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import ClassTable, Snapshot
    from vlltr_index.store.transaction import Transaction


Taxonomy = Mapping[str, Taxon]
"""By name: a class's, or that of what lies above classes. There is no circle."""


def load_taxonomy(snapshot: Snapshot) -> Taxonomy:
    """The tree of a commit; empty where there is none."""
    rows = snapshot.answering("taxonomy").to_pylist()
    return taxonomy_of((Taxon(**row) for row in rows), snapshot.class_table()) if rows else {}


def taxonomy_of(taxa: Iterable[Taxon], classes: ClassTable) -> Taxonomy:
    """The tree of these nodes; one that bears a class's name, or else its alias, goes by that class's name.

    Neither case nor blanks tell names apart.
    """
    rows = {taxon.name: taxon for taxon in taxa}
    nodes = {t.parent: Taxon(t.parent, None) for t in rows.values() if t.parent is not None} | rows
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


def circle(taxonomy: Taxonomy, names: Iterable[str]) -> list[str]:
    """The first names that lie below each other in a round, each below the next, among those above `names`."""
    done: set[str] = set()
    for name in names:
        path = {name: 0}
        while name not in done and name in taxonomy and (above := taxonomy[name].parent) is not None:
            if above in path:
                return list(path)[path[above] :]
            path[above] = len(path)
            name = above
        done.update(path)
    return []


def rename_node(tx: Transaction, old: str, new: str) -> bool:
    """Let a class that is called otherwise keep its place; whether the tree has one for its new name, which it gets."""
    rows = tx.table("taxonomy").to_pylist()
    names = {folded(row[key]) for row in rows for key in ("name", "parent") if row[key] is not None}
    if (same := folded(old)) in names and folded(new) not in names - {same}:
        moved = [
            {k: new if k != "rank" and v and folded(v) == same else v for k, v in r.items()} for r in rows
        ]
        tx.replace("taxonomy", pa.Table.from_pylist(moved, schema=tx.schema("taxonomy")))
    return folded(new) in names - {same}


def merge_nodes(tx: Transaction, kept: str, gone: str) -> None:
    """Put what lies below a class below the one that it was merged into, or where that lies below it, a step up.

    Without a place of its own that one gets the other's by its alias.
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
