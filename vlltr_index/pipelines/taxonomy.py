"""Bring in the tree of names above the classes (`vlltr ingest classes`), in one commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.data.names import ClassNames
from vlltr_index.data.taxonomy import read_taxonomy
from vlltr_index.data.text import folded
from vlltr_index.errors import InputError, UnknownClassError
from vlltr_index.schemas.records import Taxon
from vlltr_index.schemas.tables import TAXONOMY
from vlltr_index.store.ingestion import known_names, note_aliases
from vlltr_index.store.taxonomy import Taxonomy, load_taxonomy, misplaced
from vlltr_index.wording import plural, preview

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace


@dataclass(frozen=True)
class TaxonomyReport:
    """Report of an ingestion of a taxonomy.

    Attributes:
        source: The file.
        nodes: Names in the tree now, classes among them.
        changed: How many of them are new, or have another parent or rank.
        classes: Classes of the workspace.
        placed: How many of them have a parent.
        unknown: How many names of the file are no class and have nothing below them; they may be added as classes.
        notes: Examples of such names, and of classes without a parent.
    """

    source: str
    nodes: int
    changed: int
    classes: int
    placed: int
    unknown: int
    notes: list[str]


def ingest_classes(workspace: Workspace, path: Path) -> TaxonomyReport:
    """Bring in the parents of classes; a name that has a parent already gets the file's.

    Names are compared without regard to case and blanks. A name or alias of a class stands for that class; other
    names may be those of classes to add. No class is made. Aliases in the file are added to the classes.

    Args:
        workspace: The workspace to write to.
        path: See `data.taxonomy.read_taxonomy`.

    Raises:
        InputError: If the file cannot be used or has no class in it, or a name has two parents or ranks, or lies below
            itself.
    """
    given = read_taxonomy(path)
    with workspace.transaction(f"ingest classes {path}") as tx:
        classes = tx.class_table()
        before = load_taxonomy(tx)
        taxa = _named(tx, given, before)
        tree: Taxonomy = {**before, **{taxon.name: taxon for taxon in taxa}}
        if wrong := misplaced(tree, tree):
            names, why = wrong
            first = next((tree[name].where for name in names if name in tree and tree[name].where), str(path))
            raise InputError(f"{first}: {why}", "Give one of them another parent.")
        own = {classes.names[i] for i in classes.ids}
        parents = {taxon.parent for taxon in tree.values()}
        unknown = [taxon.name for taxon in taxa if taxon.name not in own | parents]
        if not own.intersection(taxon.name for taxon in taxa):
            names = unknown or [taxon.name for taxon in taxa]
            try:
                classes.lookup(names[0])
            except UnknownClassError as error:  # the hint names close ones
                raise InputError(f"no name in {path} is a class: {preview(names)}", error.hint) from None
        rows = [{key: getattr(taxon, key) for key in TAXONOMY.names} for taxon in taxa]
        changed = tx.upsert("taxonomy", pa.Table.from_pylist(rows, schema=TAXONOMY))
        tree = load_taxonomy(tx)
    flat = sorted(name for name in own if name not in tree or tree[name].parent is None)
    notes = []
    if unknown:
        no = plural(len(unknown), "name is no class and has", "names are no classes and have")
        notes.append(f"{no} nothing below: {preview(unknown)}.")
    if flat:
        notes.append(f"{plural(len(flat), 'class has', 'classes have')} no parent: {preview(flat)}")
    return TaxonomyReport(
        source=str(path),
        nodes=len(tree),
        changed=changed,
        classes=len(own),
        placed=len(own) - len(flat),
        unknown=len(unknown),
        notes=notes,
    )


def _named(tx: Transaction, given: Sequence[Taxon], before: Taxonomy) -> list[Taxon]:
    """Resolve records to the names that classes and the tree have, one a name; aliases are added to the classes.

    Raises:
        InputError: If two records of one name do not say the same.
    """
    classes = tx.class_table()
    claims = Counter(folded(alias) for taxon in given for alias in taxon.aliases)
    claims.update({folded(name) for taxon in given for name in (taxon.name, taxon.parent) if name})
    claims.update(map(folded, before))
    aliases = tuple(tuple(a for a in taxon.aliases if claims[folded(a)] == 1) for taxon in given)
    names = ClassNames(tuple(taxon.name for taxon in given), aliases)
    used = known_names(tx, names)
    spelled = {folded(name): name for name in before}

    def one(name: str) -> str:
        found = classes.find(name)
        return spelled.setdefault(folded(name), name) if found is None else classes.names[found]

    found: dict[str, Taxon] = {}
    for taxon, shown in zip(given, used.names, strict=True):
        new = replace(taxon, name=one(shown), parent=taxon.parent and one(taxon.parent))
        first = found.setdefault(new.name, new)
        for what, mine, other in (("parent", new.parent, first.parent), ("rank", new.rank, first.rank)):
            if mine != other:
                also = "" if taxon.name == new.name else f" (which is {new.name!r})"
                raise InputError(
                    f"{taxon.where}: {taxon.name!r}{also} has the {what} {mine or 'none'!r}, and {other or 'none'!r} in"
                    f" {first.where}",
                    "Keep one of the two lines, or call one of them otherwise.",
                )
    note_aliases(tx, names, used, {name: classes.find(name) for name in used.names})
    return list(found.values())
