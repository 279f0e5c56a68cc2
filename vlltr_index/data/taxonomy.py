"""Readers of trees of classes: CSV, TSV or Parquet with name and parent, and iNaturalist's categories.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlltr_index.data.files import read_rows, require
from vlltr_index.data.names import read_categories
from vlltr_index.data.text import clean_name, folded
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import Taxon

_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
_FORMATS = (
    "Give a .csv, .tsv or .parquet with the columns name and parent (and rank, and aliases with ; between, if you have"
    " them), or iNaturalist's categories.json."
)


def read_taxonomy(path: Path) -> list[Taxon]:
    """Read a tree of classes: one record for each name; a parent without a record is a root.

    Of iNaturalist's categories.json the seven ranks are read. If a name occurs in two places there (Prunella is a genus
    of birds and one of plants), the second gets its parent in brackets.

    Raises:
        InputError: The file is missing, empty or malformed; the message names the line.
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
    """Make a record from a row of a table; aliases are a list, or text with semicolons between them."""
    parent = row.get("parent") or ""
    rank = row.get("rank") or ""
    aliases = row.get("aliases") or ""
    names = map(str, aliases) if isinstance(aliases, list) else str(aliases).split(";")
    return Taxon(
        name=clean_name(str(row["name"] or ""), where),
        parent=clean_name(str(parent), where) if str(parent).strip() else None,
        rank=str(rank).strip() or None,
        aliases=tuple(clean_name(name, where) for name in names if name.strip()),
        where=where,
    )


def _categories(path: Path) -> Iterator[Taxon]:
    """Yield the nodes of iNaturalist's categories, each once; equal names below different parents are two nodes."""
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
            if folded(name) in taken and not species:
                name = f"{name} ({parent})"
            common = str(row.get("common_name") or "").strip() if species else ""
            called[names[:depth]] = name
            taken.add(folded(name))
            yield Taxon(name=name, parent=parent, rank=rank, aliases=(common,) if common else (), where=where)
