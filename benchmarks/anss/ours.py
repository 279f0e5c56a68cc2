"""`vlltr_index.anchors.anss.sentence_losses`, as `vlltr select` calls it."""

from __future__ import annotations

from typing import Any

from benchmarks.anss import SCALE
from benchmarks.anss.common import tensors, wait
from benchmarks.harness import Arrays
from vlltr_index.anchors.anss import sentence_losses


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """As they come: normalising is part of the work."""
    return tensors(inputs, values)


def run(state: Any) -> Arrays:
    """All sentences."""
    losses = sentence_losses(*state, SCALE)
    wait()
    return {"losses": losses.cpu().numpy()}
