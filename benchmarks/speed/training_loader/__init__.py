"""Training on photographs: an epoch through the product's loader, of files, of what `--store` keeps, and of tensors.

Photographs are 800 x 600 JPEG files, with RandAugment; kept ones have side 256. `loader alone` is an epoch without the
model. Processor time counts the workers' too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("bare", "decoding", "ours")
CASES = (
    Case(
        "160 photographs, ViT-B-32, B = 16",
        {"number": 160, "model": "ViT-B-32", "batch": 16, "side": 256},
        rounds=2,
    ),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """The photographs are drawn from this seed."""
    return {"seed": np.zeros(1, dtype=np.int64)}


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """The epoch's mean loss is the same on tensors as on what they were made from: both saw the same pixels.

    Raises:
        Disagreement: If a loss differs.
    """
    losses = {name: float(answers[name]["loss"][0]) for name in ("bare", "ours")}
    worst = max(losses.values()) - min(losses.values())
    if worst > 1e-6:
        raise Disagreement(f"losses: {losses}")
    return {"largest difference of a loss": worst}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found."""
    return [
        at_least(
            "of the rate on tensors, from what is kept",
            ratio(rows, "bare", "ours", gpu)[0],
            0.9,
            " x",
        )
    ]
