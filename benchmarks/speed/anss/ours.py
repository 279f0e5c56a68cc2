"""`vlltr_index.anchors.anss.score_sentences`, as `vlltr select` calls it."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.anss import SCALE
from benchmarks.speed.anss.common import tensors, wait
from benchmarks.speed.harness import Arrays
from vlltr_index.anchors.anss import score_sentences


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """As they come: normalising is part of the work."""
    return tensors(inputs, values)


def run(state: Any) -> Arrays:
    """All sentences."""
    losses = score_sentences(*state, SCALE).loss
    wait()
    return {"losses": losses.cpu().numpy()}
