"""FAISS, cells with compressed vectors, the best looked at again uncompressed."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.harness import Arrays
from benchmarks.speed.retrieval.common import State


class _Compressed:
    """The interface of the product's indexes over a FAISS index of another kind."""

    kind = "ivf_pq"

    def __init__(self, index: Any, keys: Tensor) -> None:
        self.index = index
        self.keys = keys
        self.dim = index.d
        self.size = index.ntotal

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, rows = self.index.search(queries.numpy(), k)
        return torch.from_numpy(scores), self.keys[torch.from_numpy(rows)]


def prepare(inputs: Arrays, values: dict[str, Any]) -> State:
    """Train and fill."""
    import faiss

    state = State(inputs, values)
    start = time.perf_counter()
    unit = state.unit.numpy()
    size, dim = unit.shape
    cells = 1 << int(math.log2(4 * math.sqrt(size)))
    index = faiss.index_factory(dim, f"IVF{cells},PQ64x4fsr,RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(unit)
    index.add(unit)
    index.k_factor = 4
    faiss.extract_index_ivf(index).nprobe = max(32, cells // 32)
    return state.use(_Compressed(index, state.keys), time.perf_counter() - start)


def run(state: State) -> Arrays:
    """Score the queries."""
    return state.measure()
