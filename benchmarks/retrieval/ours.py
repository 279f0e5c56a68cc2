"""The kind that `vlltr index` picks by itself; beside it the cost of anchors that came and went since."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.harness import Arrays
from benchmarks.retrieval.common import State, built
from vlltr_index.nearest import WithDelta


def prepare(inputs: Arrays, values: dict[str, Any]) -> State:
    """Build the index."""
    return built(inputs, values, "auto")


def run(state: State) -> Arrays:
    """Score the queries."""
    answer = state.measure()
    assert state.answers is not None
    base = state.answers.__dict__["_index"]
    start = time.perf_counter()
    new = F.normalize(torch.randn(64, state.unit.shape[1], generator=torch.Generator().manual_seed(0)), dim=1)
    WithDelta(base, new, torch.arange(64) + len(state.keys), state.keys[:64])
    answer["_extra"]["add_and_remove_64_seconds"] = time.perf_counter() - start  # type: ignore[call-overload] # a dict
    return answer
