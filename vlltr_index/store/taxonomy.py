"""What lies above the classes: the table `taxonomy`, read by the names that classes have now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.schemas.records import Taxon

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
    """The tree of these nodes; one that bears a class's name, or else its alias, goes by that class's name."""
    rows = {taxon.name: taxon for taxon in taxa}
    nodes = {t.parent: Taxon(t.parent, None) for t in rows.values() if t.parent is not None} | rows
    shown: dict[str, str] = {}
    for class_id in classes.ids:
        name = classes.names[class_id]
        own = next((n for n in (name, *classes.aliases.get(class_id, ())) if n in nodes), name)
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
    names = {row[key] for row in rows for key in ("name", "parent")}
    if old in names and new not in names:
        moved = [{k: new if k != "rank" and v == old else v for k, v in row.items()} for row in rows]
        tx.replace("taxonomy", pa.Table.from_pylist(moved, schema=tx.schema("taxonomy")))
