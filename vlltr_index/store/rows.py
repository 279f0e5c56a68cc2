"""Rows as Arrow, made to fit a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.errors import InputError


def conform(data: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """Return `data` with exactly the columns and types of `schema`; nullable columns may be left out.

    Raises:
        InputError: If a column is unknown, missing, of another type, null where it must not be, or a vector
            holds something that is not a finite number; `what` names the table in the message.
    """
    for field in schema:
        if field.nullable and field.name not in data.column_names:
            data = data.append_column(field, pa.nulls(data.num_rows, field.type))
    try:
        if unknown := set(data.column_names) - set(schema.names):
            raise KeyError(f"it has no column {min(unknown)!r}")
        rows = data.select(schema.names).cast(schema)
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"rows do not fit table {what}: {error.args[0]}") from None
    for field in schema:
        is_vector = pa.types.is_fixed_size_list(field.type)
        if is_vector and not np.isfinite(pc.list_flatten(rows[field.name]).to_numpy()).all():
            raise InputError(
                f"column {field.name!r} of table {what} has a vector that is not all finite numbers"
            )
    return rows


def last_per_key(rows: pa.Table, key: str) -> pa.Table:
    """Return `rows` with only the last row of each `key`, as if they were written one by one."""
    last = {value: at for at, value in enumerate(rows[key].to_pylist())}
    return rows if len(last) == rows.num_rows else rows.take(sorted(last.values()))
