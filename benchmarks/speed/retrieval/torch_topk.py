"""Exact search by torch: one product, then topk."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.harness import Arrays
from benchmarks.speed.retrieval.common import State, built


def prepare(inputs: Arrays, values: dict[str, Any]) -> State:
    """Build the index."""
    return built(inputs, values, "torch")


def run(state: State) -> Arrays:
    """Score the queries."""
    return state.measure()
