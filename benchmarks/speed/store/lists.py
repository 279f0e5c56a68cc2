"""lancedb through Python lists, as many programs read it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.clock import Clock
from benchmarks.speed.harness import Arrays
from benchmarks.speed.store import bare
from benchmarks.speed.store.common import head


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The same table."""
    return bare.prepare(inputs, values)


def run(state: Any) -> Arrays:
    """Every number becomes a Python object on the way."""
    _, _, database, _ = state
    clock = Clock()
    vectors = torch.tensor(database.open_table("t").to_arrow()["vector"].to_pylist())
    return {"head": head(vectors[0]), "_extra": clock.read()}
