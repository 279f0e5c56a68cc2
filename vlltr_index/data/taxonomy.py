"""Trees of classes from files: CSV, TSV or Parquet with name and parent, and iNaturalist's categories.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlltr_index.data.files import read_rows, require
from vlltr_index.data.names import read_categories
from vlltr_index.data.text import clean_name
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import Taxon

_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
_FORMATS = (
    "Give a .csv, .tsv or .parquet with the columns name and parent (and rank, and aliases with ; between, if you have"
    " them), or iNaturalist's categories.json."
)


def read_taxonomy(path: Path) -> list[Taxon]:
    """Read what lies below what: one record a name, a parent that has no line of its own is a root.

    Of iNaturalist's categories.json the seven ranks are taken. A name that stands in two places there (Prunella is a
    genus of birds and one of plants) gets its parent in brackets in the second one.

    Raises:
        InputError: If the file is missing, empty, or malformed, naming the line.
    """
    kind = require(path).suffix.lower()
    if kind == ".json":
        found = list(_categories(path))
    elif kind in (".csv", ".tsv", ".parquet"):
        rows = read_rows(path, ("name", "parent"), ("rank", "aliases"))
        found = [_taxon(row, where) for where, row in rows]
    else:
        raise InputError(f"{path}: unknown format {kind!r} of a tree of classes", _FORMATS)
    if not found:
        raise InputError(f"{path} names no class", _FORMATS)
    return found


def _taxon(row: dict[str, Any], where: str) -> Taxon:
    parent, rank, aliases = (row.get(key) or "" for key in ("parent", "rank", "aliases"))
    names = map(str, aliases) if isinstance(aliases, list) else str(aliases).split(";")
    return Taxon(
        clean_name(str(row["name"] or ""), where),
        clean_name(str(parent), where) if str(parent).strip() else None,
        str(rank).strip() or None,
        tuple(clean_name(name, where) for name in names if name.strip()),
        where,
    )


def _categories(path: Path) -> Iterator[Taxon]:
    """The nodes of each path that were not there before; those below a name that stands twice are other nodes."""
    called: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for number, row in enumerate(read_categories(path, dict[str, Any])):
        where = f"{path}: category {number}"
        names = tuple(clean_name(str(row.get(key) or ""), where) for key in (*_RANKS[:-1], "name"))
        for depth, rank in enumerate(_RANKS, 1):
            if names[:depth] in called:
                continue
            parent = called.get(names[: depth - 1])
            name = names[depth - 1]
            species = depth == len(_RANKS)
            if name.casefold() in taken and not species:
                name = f"{name} ({parent})"
            common = str(row.get("common_name") or "").strip() if species else ""
            called[names[:depth]] = name
            taken.add(name.casefold())
            yield Taxon(name, parent, rank, (common,) if common else (), where)
