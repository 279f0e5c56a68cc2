"""All sentences against all images, anew."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.anss import SCALE
from benchmarks.speed.anss.common import tensors, wait
from benchmarks.speed.harness import Arrays
from vlltr_index.anchors.anss import score_sentences


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Old and new together."""
    return tensors(inputs, {**values, "sentences": len(inputs["texts"])})


def run(state: Any) -> Arrays:
    """Everything."""
    losses = score_sentences(*state, SCALE).loss
    wait()
    return {"losses": losses.cpu().numpy()}
