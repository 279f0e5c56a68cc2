"""Head training: one epoch over ImageNet-LT's 115,800 training images, on stored vectors and through the encoder.

C = 1,000, M = 64, B = 128. The head's work is the same in both. No goal was set beforehand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.clusters import around, centres
from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("encoder", "ours")
IMAGES = 115_846
_VALUES = {"images": IMAGES, "classes": 1_000, "anchors": 64, "dim": 512, "batch": 128, "model": "ViT-B-16"}
CASES = (Case("ImageNet-LT, ViT-B-16 at 224", _VALUES, {"encoder": 32 / IMAGES, "ours": 1_280 / IMAGES}, 1),)


def inputs(values: dict[str, Any]) -> Arrays:
    """Anchors, stored vectors with their labels, and one batch of pixels."""
    rng = np.random.default_rng(0)
    centre = centres(rng, values["classes"], values["dim"])
    labels = rng.integers(0, values["classes"], 10 * values["batch"])
    labels[: values["classes"]] = np.arange(values["classes"])
    owner = np.repeat(np.arange(values["classes"]), values["anchors"])
    return {
        "anchors": around(rng, centre, owner, spread=1.5),
        "features": around(rng, centre, labels),
        "labels": labels.astype(np.int64),
        "pixels": rng.standard_normal((32, 3, 224, 224), dtype=np.float32),
    }


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Both trained: their losses are finite. They see different features, so there is no more to compare.

    Raises:
        Disagreement: If a loss is not a number.
    """
    losses = {name: float(answer["loss"][0]) for name, answer in answers.items()}
    if not all(np.isfinite(v) for v in losses.values()):
        raise Disagreement(f"losses: {losses}")
    return {}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """Stored vectors have to be worth storing; no figure was set beforehand."""
    faster, part = ratio(rows, "encoder", "ours", gpu)
    return [at_least("faster than through the encoder", faster, 1, " x", part)]
