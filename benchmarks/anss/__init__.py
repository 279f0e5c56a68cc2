"""AnSS: the loss of every sentence against the score images of all classes.

Goals: 15 times the release's loop on a CPU, within 1.3 times the bare products, 512 MiB beside the inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.clusters import around, centres
from benchmarks.harness import Arrays, Case, Disagreement

COMPETITORS = ("release", "matmul", "gemm", "ours")
TOLERANCE = 1e-3
SCALE = 100.0
CASES = (
    Case(
        "20,000 sentences x 10,000 images, D = 512",
        {"classes": 250, "sentences": 20_000, "images": 10_000, "dim": 512},
        {"release": 1 / 8},
    ),
    Case(
        "ImageNet-LT: 127,000 x 38,000, D = 512",
        {"classes": 1_000, "sentences": 127_000, "images": 38_000, "dim": 512},
        {"release": 1 / 200, "matmul": 1 / 8},
        rounds=2,
    ),
    Case(
        "iNaturalist 2018: 651,000 x 240,000, D = 512",
        {"classes": 8_142, "sentences": 651_000, "images": 240_000, "dim": 512},
        {"release": 1 / 8_000, "matmul": 1 / 160, "gemm": 1 / 40, "ours": 1 / 40},
        rounds=1,
    ),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Sentences and images of every class, images long-tailed within 1 to 50 a class."""
    rng = np.random.default_rng(0)
    classes, dim = values["classes"], values["dim"]
    centre = centres(rng, classes, dim)
    image_labels = np.sort(rng.integers(0, classes, values["images"]))
    text_labels = rng.permutation(np.arange(values["sentences"]) % classes)
    return {
        "images": around(rng, centre, image_labels),
        "image_labels": image_labels.astype(np.int64),
        "texts": around(rng, centre, text_labels, spread=1.5),
        "text_labels": text_labels.astype(np.int64),
    }


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Largest difference of a loss to the product's, over the sentences both scored.

    Raises:
        Disagreement: Above the tolerance.
    """
    ours = answers["ours"]["losses"]
    result = {}
    for name, answer in answers.items():
        if name in ("ours", "gemm"):
            continue
        both = min(len(ours), len(answer["losses"]))
        worst = float(np.abs(ours[:both] - answer["losses"][:both]).max())
        if worst > TOLERANCE:
            raise Disagreement(f"{name}: a loss differs by {worst:.2g}, more than {TOLERANCE}")
        result[name] = worst
    return result
