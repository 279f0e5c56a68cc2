"""`vlltr_index.store.tables.Store`: append as `vlltr embed` does, upsert by key, and vectors into a tensor."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from benchmarks.speed.clock import Clock
from benchmarks.speed.harness import Arrays
from benchmarks.speed.store.common import folder, head, schema, table, whole
from vlltr_index.store.tables import Store


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Rows as Arrow; for reading, a table that holds them."""
    rows = table(inputs, values)
    place = folder()
    store = Store(place)
    if values["what"] == "read":
        store.create("t", schema(values["dim"]), "text_hash")
        store.upsert("t", rows, "text_hash")
    return values, rows, store, place


def run(state: Any) -> Arrays:
    """Write all rows into a new table, or read them all."""
    values, rows, store, place = state
    first = [rows["text_hash"][0].as_py()]
    clock = Clock()
    if values["what"] != "read":
        store.create("t", schema(values["dim"]), "text_hash")
        if values["what"] == "write":
            store.append("t", rows)
        else:
            store.upsert("t", rows, "text_hash")
        took = clock.read()
        vectors = store.vectors("t", "text_hash", first)
        all_of_it = whole(place)
        store.drop("t")
        shutil.rmtree(place / "t.lance", ignore_errors=True)
        return {"head": head(vectors[0]), "whole": all_of_it, "_extra": took}
    vectors = torch.cat([part for _, part in store.vector_batches("t", "text_hash")])
    took = clock.read()
    some = store.vectors("t", "text_hash", first)
    return {"head": head(some[0]), "_extra": {**took, "rows": len(vectors)}}
