"""Stage 2 without training: everything that `vlltr train lgr` fits in closed form for an encoder without a text tower.

The folds, the covariances, the text prior by words, the weights, the offsets and rejection. `dense` is the computation
with D x D matrices in every fit. The goals are those of few images in many dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.clusters import around, centres
from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("dense", "ours")
CASES = (
    Case("31 classes, 350 images, D = 1,280", {"classes": 31, "images": 350, "dim": 1280}, rounds=1),
    Case("200 classes, 4,000 images, D = 768", {"classes": 200, "images": 4000, "dim": 768}, rounds=1),
    Case("200 classes, 4,000 images, D = 1,536", {"classes": 200, "images": 4000, "dim": 1536}, rounds=1),
)
QUERIES = 64
_AGREEMENT = 1e-4  # of log-likelihoods, which differ between classes by tens to hundreds


def inputs(values: dict[str, Any]) -> Arrays:
    """Features around class centres, each class with as many images or one more, and features of other images."""
    rng = np.random.default_rng(0)
    centre = centres(rng, values["classes"], values["dim"])
    labels = np.sort(np.arange(values["images"]) % values["classes"])
    asked = rng.integers(0, values["classes"], QUERIES)
    return {
        "features": around(rng, centre, labels, spread=1.5),
        "labels": labels.astype(np.int64),
        "queries": around(rng, centre, asked, spread=1.5),
    }


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Both fit the same model: the log-likelihoods of other images, less those of the first class, are the same.

    Raises:
        Disagreement: If they differ by more than 1e-4.
    """
    one, other = (answers[name]["log_likelihoods"] for name in COMPETITORS)
    apart = float(np.abs((one - one[:, :1]) - (other - other[:, :1])).max())
    if not apart < _AGREEMENT:
        raise Disagreement(f"{case.name}: log-likelihoods differ by {apart}")
    return {"dense": apart}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """With fewer images than dimensions ten times as fast; otherwise faster."""
    faster, part = ratio(rows, "dense", "ours", gpu)
    wanted = 10 if values["images"] < values["dim"] else 1
    return [at_least("faster than with D x D matrices", faster, wanted, " x", part)]
