"""Trees of classes from files: CSV, TSV or Parquet with name and parent, and iNaturalist's categories.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlltr_index.data.files import read_delimited, require
from vlltr_index.data.names import read_json_file
from vlltr_index.data.text import clean_name
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import Taxon

__all__ = ["read_taxonomy"]

_INAT = ("kingdom", "phylum", "class", "order", "family", "genus")
_COLUMNS = ("name", "parent", "rank", "aliases")
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
    require(path)
    kind = path.suffix.lower()
    if kind == ".json":
        found = list(_categories(path))
    elif kind in (".csv", ".tsv"):
        found = list(_delimited(path, "\t" if kind == ".tsv" else ","))
    elif kind == ".parquet":
        found = list(_parquet(path))
    else:
        raise InputError(f"{path}: unknown format {path.suffix!r} of a tree of classes", _FORMATS)
    if not found:
        raise InputError(f"{path} names no class", _FORMATS)
    return found


def _delimited(path: Path, delimiter: str) -> Iterator[Taxon]:
    for where, row in read_delimited(path, delimiter, _check_columns, "names", "Mend this line."):
        yield _taxon(row, where)


def _check_columns(path: Path, columns: list[str]) -> None:
    if not {"name", "parent"} <= set(columns):
        raise InputError(
            f"{path}: no columns name and parent; it has {', '.join(map(repr, columns)) or 'none'}", _FORMATS
        )
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"{path}: the column {twice[0]!r} stands twice", "Keep one of them.")


def _parquet(path: Path) -> Iterator[Taxon]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}", "Write the file again.") from None
    _check_columns(path, table.column_names)
    columns = [name for name in _COLUMNS if name in table.column_names]
    for number, row in enumerate(table.select(columns).to_pylist()):
        texts = {k: "" if v is None else str(v) for k, v in row.items()}
        if isinstance(row.get("aliases"), list):
            texts["aliases"] = ";".join(map(str, row["aliases"]))
        yield _taxon(texts, f"{path}#{number}")


def _taxon(row: dict[str, str], where: str) -> Taxon:
    parent, rank = row["parent"].strip(), row.get("rank", "").strip()
    aliases = [a.strip() for a in row.get("aliases", "").split(";") if a.strip()]
    return Taxon(
        clean_name(row["name"], where),
        clean_name(parent, where) if parent else None,
        rank or None,
        tuple(clean_name(a, where) for a in aliases),
        where,
    )


def _categories(path: Path) -> Iterator[Taxon]:
    value = read_json_file(path, _FORMATS)
    rows = value.get("categories") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise InputError(f"{path} holds no list of categories", _FORMATS)
    called: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for n, row in enumerate(rows):
        where = f"{path}: category {n}"
        given = [row.get(key) for key in (*_INAT, "name")] if isinstance(row, dict) else []
        names = [clean_name(name, where) for name in given if isinstance(name, str)]
        if len(names) <= len(_INAT):
            raise InputError(f"{where} lacks one of {', '.join(_INAT)} and name", _FORMATS)
        yield from _path(tuple(names), row, where, called, taken)


def _path(
    path: tuple[str, ...],
    row: dict[str, Any],
    where: str,
    called: dict[tuple[str, ...], str],
    taken: set[str],
) -> Iterator[Taxon]:
    """The nodes of one path that were not there before; those below a name that stands twice are other nodes."""
    for depth, rank in enumerate((*_INAT, "species"), 1):
        if path[:depth] in called:
            continue
        parent, name = called.get(path[: depth - 1]), path[depth - 1]
        if name.casefold() in taken and depth <= len(_INAT):
            name = f"{name} ({parent})"
        common = row.get("common_name") if depth > len(_INAT) else None
        aliases = (common,) if isinstance(common, str) and common.strip() else ()
        called[path[:depth]] = name
        taken.add(name.casefold())
        yield Taxon(name, parent, rank, aliases, where)
