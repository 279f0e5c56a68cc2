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

__all__ = ["Taxonomy", "circle", "load_taxonomy", "rename_node", "taxonomy_of"]

Taxonomy = Mapping[str, Taxon]
"""By name: a class's, or that of what lies above classes. There is no circle."""


def load_taxonomy(snapshot: Snapshot) -> Taxonomy:
    """The tree of a commit; empty where there is none."""
    rows = snapshot.table("taxonomy").to_pylist()
    return taxonomy_of((Taxon(**row) for row in rows), snapshot.class_table()) if rows else {}


def taxonomy_of(taxa: Iterable[Taxon], classes: ClassTable) -> Taxonomy:
    """The tree of these nodes; one that bears a class's name, or else its alias, goes by that class's name.

    Neither case nor blanks tell names apart.
    """
    rows = {taxon.name: taxon for taxon in taxa}
    nodes = {t.parent: Taxon(t.parent, None) for t in rows.values() if t.parent is not None} | rows
    spelled, shown = {folded(name): name for name in nodes}, dict[str, str]()
    called = [(classes.names[i], classes.names[i]) for i in classes.ids]
    called += [(alias, classes.names[i]) for i in classes.ids for alias in classes.aliases.get(i, ())]
    for alias, name in called:
        own = alias if alias in nodes else spelled.get(folded(alias))
        if own is not None and name not in shown.values():
            shown.setdefault(own, name)
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


def rename_node(tx: Transaction, old: str, new: str) -> None:
    """Let a class that is called otherwise now keep its place, unless the tree has one for its new name."""
    rows = tx.table("taxonomy").to_pylist()
    names = {folded(row[key]) for row in rows for key in ("name", "parent") if row[key] is not None}
    if (same := folded(old)) in names and folded(new) not in names - {same}:
        moved = [
            {k: new if k != "rank" and v and folded(v) == same else v for k, v in r.items()} for r in rows
        ]
        tx.replace("taxonomy", pa.Table.from_pylist(moved, schema=tx.schema("taxonomy")))
