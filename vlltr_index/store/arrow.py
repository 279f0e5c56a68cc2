"""Rows before they are written, and the text of conditions: checks that need no database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.errors import InputError

__all__ = ["conform", "last_per_key", "one_of", "quote"]


def quote(value: str) -> str:
    """`value` as an SQL string literal for a `where`, safe whatever it holds.

    Raises:
        InputError: If it is not valid Unicode or holds a null character.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"not valid Unicode text: {value!r}") from None
    if "\0" in value:
        raise InputError(f"text with a null character: {value!r}")
    return "'" + value.replace("'", "''") + "'"


def one_of(column: str, values: Iterable[str | int]) -> str:
    """A `where` that holds for the rows whose `column` is one of `values`."""
    items = ", ".join(quote(v) if isinstance(v, str) else str(int(v)) for v in values)
    return f"{column} IN ({items})" if items else "false"


def conform(data: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`data` with exactly the columns and types of `schema`; nullable columns may be left out.

    Raises:
        InputError: If a column is unknown, missing, of another type, null where it must not be, or a vector
            holds something that is not a finite number; `what` names the table in the message.
    """
    unknown = [n for n in data.schema.names if n not in schema.names]
    if unknown:
        raise InputError(f"table {what} has no column {', '.join(map(repr, unknown))}; it has {schema.names}")
    columns = []
    for field in schema:
        if field.name in data.schema.names:
            column = data.column(field.name)
        elif field.nullable:
            column = pa.nulls(data.num_rows, field.type)
        else:
            raise InputError(f"column {field.name!r} of table {what} is missing")
        columns.append(_column(column, field, what))
    return pa.Table.from_arrays(columns, schema=schema)


def _column(column: Any, field: pa.Field, what: str) -> Any:
    try:
        column = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(
            f"column {field.name!r} of table {what} holds {field.type}, got {column.type}: {error}"
        ) from None
    if column.null_count and not field.nullable:
        raise InputError(
            f"column {field.name!r} of table {what} may not be null; {column.null_count} rows are"
        )
    if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type):
        values = pc.list_flatten(column)
        if values.null_count or not np.isfinite(values.to_numpy()).all():
            raise InputError(
                f"column {field.name!r} of table {what} has a vector that is not all finite numbers"
            )
    return column


def last_per_key(rows: pa.Table, key: str) -> pa.Table:
    """`rows` without those whose `key` comes again further down: what writing them one by one would leave."""
    keys = rows.column(key)
    if pc.count_distinct(keys).as_py() == rows.num_rows:
        return rows
    numbered = pa.table({"key": keys, "at": np.arange(rows.num_rows)})
    last = numbered.group_by("key", use_threads=False).aggregate([("at", "max")])
    return rows.take(last.column("at_max").combine_chunks().sort())
