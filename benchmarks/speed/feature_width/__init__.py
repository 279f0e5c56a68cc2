"""The closed-form fits of `vlltr train lgr`: five folds and all images, with each shrinkage, at any number of features.

Each fit has texts, and answers for the images that it was fitted without. `dense` computes with D x D matrices in every
fit. The goals are those of few images in many dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.clusters import around, centres
from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("dense", "ours")
FITS = 6
"""Sets of images that are fitted: without each of five folds, and all. `dense` fits the first of them alone."""
_PART = {"dense": 1 / FITS}
CASES = (
    Case("31 classes, 350 images, D = 1,280", {"classes": 31, "images": 350, "dim": 1280}, _PART, rounds=1),
    Case("200 classes, 4,000 images, D = 768", {"classes": 200, "images": 4000, "dim": 768}, _PART, rounds=1),
    Case(
        "200 classes, 4,000 images, D = 1,536", {"classes": 200, "images": 4000, "dim": 1536}, _PART, rounds=1
    ),
)
_AGREEMENT = 1e-8


def inputs(values: dict[str, Any]) -> Arrays:
    """Unit features around class centres, each class with as many images or one more, and texts that tell of these."""
    rng = np.random.default_rng(0)
    centre = centres(rng, values["classes"], values["dim"])
    labels = np.sort(np.arange(values["images"]) % values["classes"])
    features = around(rng, centre, labels, spread=1.5).astype(np.float64)
    return {
        "features": features / np.linalg.norm(features, axis=1, keepdims=True),
        "labels": labels.astype(np.int64),
        "texts": around(rng, centre, np.arange(values["classes"]), spread=1.0).astype(np.float64),
    }


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Both give the same log-likelihoods, less those of the first class, for the images that `dense` answers for.

    Raises:
        Disagreement: If they differ by more than 1e-8 of the largest.
    """
    one, other = (answers[name]["log_likelihoods"] for name in COMPETITORS)
    other = other[: len(one)]
    expected = one - one[:, :1]
    apart = float(np.abs(expected - (other - other[:, :1])).max() / np.abs(expected).max())
    if not apart < _AGREEMENT:
        raise Disagreement(f"{case.name}: log-likelihoods differ by {apart} of the largest")
    return {"dense": apart}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """With fewer images than dimensions ten times as fast; otherwise faster."""
    faster, part = ratio(rows, "dense", "ours", gpu)
    wanted = 10 if values["images"] < values["dim"] else 1
    return [at_least("faster than with D x D matrices", faster, wanted, " x", part)]
