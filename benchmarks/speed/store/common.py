"""What the competitors of the store share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.speed.harness import Arrays

SCHEMA_DIM = 512


def keys(rows: int) -> list[str]:
    """Keys of the length of ours, in no order."""
    import hashlib

    return [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(rows)]


def schema(dim: int) -> pa.Schema:
    """A key and a vector."""
    return pa.schema(
        [
            pa.field("text_hash", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def table(inputs: Arrays, values: dict[str, Any]) -> pa.Table:
    """All rows as Arrow."""
    rows = max(1, round(values["rows"] * values["portion"]))
    vectors = np.ascontiguousarray(inputs["vectors"][:rows])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), values["dim"])
    return pa.Table.from_arrays([pa.array(keys(rows)), column], schema=schema(values["dim"]))


def folder() -> Path:
    """A new place for a database."""
    return Path(tempfile.mkdtemp(prefix="vlltr-store-"))


def head(vectors: Any) -> Any:
    """The vectors of the smallest keys, whatever order they came in."""
    return np.asarray(vectors, dtype=np.float32)


def whole(place: Path) -> Any:
    """How many rows the table "t" has, and the sum of all its numbers: read by lancedb itself, a batch at a time."""
    import lancedb

    rows = 0
    total = 0.0
    for batch in lancedb.connect(place).open_table("t").search().select(["vector"]).to_batches(4_096):
        values = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
        rows = rows + batch.num_rows
        total = total + float(values.astype(np.float64).sum())
    return np.array([rows, total])
