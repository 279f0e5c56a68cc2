"""LanceDB's own index over the anchors' table, refined."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import lancedb
import pyarrow as pa
import torch
from lancedb.index import IvfPq
from torch import Tensor

from benchmarks.speed.harness import Arrays
from benchmarks.speed.retrieval.common import State


class _Table:
    """The interface of the product's indexes over a LanceDB table."""

    kind = "lancedb ivf_pq"

    def __init__(self, table: Any, keys: Tensor, dim: int) -> None:
        self.table = table
        self.keys = keys
        self.dim = dim
        self.size = len(keys)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores = torch.full((len(queries), k), float("-inf"))
        keys = torch.full((len(queries), k), -1)
        for i, query in enumerate(queries.numpy()):
            search = self.table.search(query).distance_type("cosine").nprobes(32).refine_factor(4)
            found = search.select(["key", "_distance"]).limit(k).to_arrow()
            scores[i, : found.num_rows] = 1 - torch.from_numpy(found["_distance"].to_numpy().copy())
            keys[i, : found.num_rows] = torch.from_numpy(found["key"].to_numpy().copy())
        return scores, keys


def prepare(inputs: Arrays, values: dict[str, Any]) -> State:
    """Fill a table, build its index."""
    state = State(inputs, values)
    start = time.perf_counter()
    dim = values["dim"]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(state.unit.numpy().ravel()), dim)
    rows = pa.table({"key": pa.array(state.keys.numpy()), "vector": vectors})
    table = lancedb.connect(tempfile.mkdtemp(prefix="vlltr-retrieval-")).create_table("anchors", data=rows)
    table.create_index("vector", config=IvfPq(distance_type="cosine"))
    state.use(_Table(table, state.keys, dim), time.perf_counter() - start)
    new = rows.slice(0, 64).set_column(0, "key", pa.array(range(len(state.keys), len(state.keys) + 64)))

    def change() -> None:
        table.add(new)
        table.delete(f"key >= {len(state.keys)}")

    state.change = change
    return state


def run(state: State) -> Arrays:
    """Score the queries."""
    return state.measure()
