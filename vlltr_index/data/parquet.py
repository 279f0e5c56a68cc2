"""Images out of Parquet files, those of Hugging Face's `datasets` too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlltr_index.data.names import ClassNames
from vlltr_index.data.text import check_split, clean_name
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, Skipped

__all__ = ["read_parquet"]

_ROWS = 64  # decoded at once


def read_parquet(
    path: Path, split: str | None, names: ClassNames | None, with_data: bool
) -> Iterator[ImageRecord | Skipped]:
    """Stream the rows of a Parquet file; see `read_images`.

    `image` is binary or a struct with `bytes`; `label` is text, or a number whose name comes from `names` or else
    from the file's own metadata. A row is identified by `source` where that is different for every row, else by
    its number. Text in `group` says which images are held out together.

    Raises:
        InputError: If it is not a Parquet file, a column is missing or of another type, or no row is of that split.
        UsageError: If neither a column `split` nor an argument says which split the rows belong to.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from _rows(path, file, split, names, with_data)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}", "Write the file again.") from None


def _rows(
    path: Path, file: pq.ParquetFile, split: str | None, names: ClassNames | None, with_data: bool
) -> Iterator[ImageRecord | Skipped]:
    schema = file.schema_arrow
    _check_columns(path, schema)
    if split is None and "split" not in schema.names:
        raise UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")
    names = names or _own_names(schema)
    named = _has_own_sources(file, schema)
    columns = [c for c in ("image", "label", "split", "source", "group") if c in schema.names]
    if not with_data:
        columns.remove("image")
    if not named and "source" in columns:
        columns.remove("source")
    base, found = 0, 0
    for batch in file.iter_batches(_ROWS if with_data else 8192, columns=columns):
        for item in _batch(path, batch, base, split, names, with_data):
            found += 1
            yield item
        base += batch.num_rows
    if not found:
        raise InputError(_nothing(path, file, split), "Choose one of them: --split NAME" if base else None)


def _check_columns(path: Path, schema: pa.Schema) -> None:
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise InputError(
            f"{path}: no column {' and no column '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, schema.names))}",
            "Name the columns image (encoded bytes) and label (and split, source, group, if you have them).",
        )
    image, label = schema.field("image").type, schema.field("label").type
    inner = (
        image.field("bytes").type
        if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
        else image
    )
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(
            f"{path}: the column 'image' holds {image}, expected binary, or a struct with bytes",
            "Store each image as the bytes of a PNG or JPEG file.",
        )
    value = label.value_type if pa.types.is_dictionary(label) else label
    if not (_is_text(value) or pa.types.is_integer(value)):
        raise InputError(
            f"{path}: the column 'label' holds {label}, expected text or whole numbers",
            "Store class names as text.",
        )
    for name in {"split", "source", "group"} & set(schema.names):
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not _is_text(value):
            raise InputError(
                f"{path}: the column {name!r} holds {kind}, expected text", f"Store {name} as text."
            )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _own_names(schema: pa.Schema) -> ClassNames | None:
    """Names of the numeric labels, as Hugging Face's `datasets` writes them into the metadata."""
    try:
        facts: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = facts["info"]["features"]["label"]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    return ClassNames.of(clean_name(name, "the file's own label names") for name in names)


def _has_own_sources(file: pq.ParquetFile, schema: pa.Schema) -> bool:
    """Whether `source` tells the rows of each split apart."""
    if "source" not in schema.names:
        return False
    keys = [name for name in ("split", "source") if name in schema.names]
    table = file.read(columns=keys)
    if table.column("source").null_count:
        return False
    return bool(table.group_by(keys).aggregate([]).num_rows == table.num_rows)


def _batch(
    path: Path,
    batch: pa.RecordBatch,
    base: int,
    split: str | None,
    names: ClassNames | None,
    with_data: bool,
) -> Iterator[ImageRecord | Skipped]:
    batch = batch.append_column("row", pa.array(range(base, base + batch.num_rows), pa.int64()))
    if "split" in batch.schema.names and split is not None:
        batch = batch.filter(pc.fill_null(pc.equal(batch.column("split").cast(pa.string()), split), False))
    uri = str(path.resolve())
    for row in batch.to_pylist():
        where = f"{uri}#{row['row']}"
        data = row.get("image")
        data = data.get("bytes") if isinstance(data, dict) else data
        if with_data and data is None:
            yield Skipped(where, "the row has no image bytes")
            continue
        own = row.get("split", split)
        if not own:
            yield Skipped(where, "the row names no split")
            continue
        source = row.get("source") or f"{path.name}#{row['row']}"
        name, group = _class(row["label"], names, where), row.get("group") or None
        yield ImageRecord(source, where, name, check_split(own), data, group)


def _class(label: str | int | None, names: ClassNames | None, where: str) -> str | None:
    """The class name of a row's label; null and negative numbers stand for none."""
    if label is None or (isinstance(label, int) and label < 0):
        return None
    if isinstance(label, int):
        return names.name(label, where) if names is not None else str(label)
    return clean_name(label, where)


def _nothing(path: Path, file: pq.ParquetFile, split: str | None) -> str:
    if split is None or "split" not in file.schema_arrow.names or not file.metadata.num_rows:
        return f"{path} has no rows"
    there = sorted(str(s) for s in set(file.read(columns=["split"]).column("split").to_pylist()))
    return f"{path} has no row of split {split!r}; it has {', '.join(there[:20])}"
