"""lancedb alone: `table.add`, and a scan straight into a tensor."""

from __future__ import annotations

import shutil
from typing import Any

import lancedb
import pyarrow as pa
import torch

from benchmarks.speed.clock import Clock
from benchmarks.speed.harness import Arrays
from benchmarks.speed.store.common import folder, head, schema, table, whole


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Rows as Arrow; for reading, a table that holds them."""
    rows = table(inputs, values)
    place = folder()
    database = lancedb.connect(place)
    if values["what"] == "read":
        database.create_table("t", schema=schema(values["dim"])).add(rows)
    return values, rows, database, place


def run(state: Any) -> Arrays:
    """Write all rows into a new table, or read them all."""
    values, rows, database, place = state
    clock = Clock()
    if values["what"] != "read":
        made = database.create_table("t", schema=schema(values["dim"]))
        if values["what"] == "write":
            made.add(rows)
        else:
            merge = made.merge_insert("text_hash").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)
        took = clock.read()
        first = made.search().where(f"text_hash = '{rows['text_hash'][0].as_py()}'").to_arrow()["vector"]
        answer = head(first[0].as_py())
        all_of_it = whole(place)
        database.drop_table("t")
        shutil.rmtree(place / "t.lance", ignore_errors=True)
        return {"head": answer, "whole": all_of_it, "_extra": took}
    column = database.open_table("t").to_arrow()["vector"]
    parts = [torch.from_dlpack(chunk.flatten()).view(-1, values["dim"]) for chunk in column.chunks]
    vectors = torch.cat(parts)
    took = clock.read()
    assert isinstance(column, pa.ChunkedArray)
    return {"head": head(vectors[0]), "_extra": took}
