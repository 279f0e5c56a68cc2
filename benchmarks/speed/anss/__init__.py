"""AnSS: the loss of every sentence against the score images of all classes.

`release`: the release's loop, written anew; `matmul`: one product, then logsumexp; `gemm`: the bare products in chunks,
thrown away. Where the loop takes only 14 times the bare products, no exact method can be 15 times as fast as it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.clusters import around, centres
from benchmarks.speed.goals import Goal, at_least, at_most, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement
from benchmarks.speed.peak import Work

COMPETITORS = ("release", "matmul", "gemm", "ours")
TOLERANCE = 1e-3
SCALE = 100.0
CASES = (
    Case(
        "20,000 sentences x 10,000 images, D = 512",
        {"classes": 250, "sentences": 20_000, "images": 10_000, "dim": 512},
        {"release": 1 / 16},
        rounds=1,
    ),
    Case(
        "ImageNet-LT: 127,000 x 38,000, D = 512",
        {"classes": 1_000, "sentences": 127_000, "images": 38_000, "dim": 512},
        {"release": 1 / 1_000, "matmul": 1 / 64, "gemm": 1 / 3, "ours": 1 / 3},
        rounds=1,
    ),
    Case(
        "iNaturalist 2018: 651,000 x 240,000, D = 512",
        {"classes": 8_142, "sentences": 651_000, "images": 240_000, "dim": 512},
        {"release": 1 / 40_000, "matmul": 1 / 1_280, "gemm": 1 / 20, "ours": 1 / 20},
        rounds=1,
    ),
)


def inputs(values: dict[str, Any], shuffled: bool = False) -> Arrays:
    """Sentences and images of every class, some 40 images a class; by class, or in no order."""
    rng = np.random.default_rng(0)
    classes = values["classes"]
    dim = values["dim"]
    centre = centres(rng, classes, dim)
    image_labels = rng.integers(0, classes, values["images"])
    image_labels = image_labels if shuffled else np.sort(image_labels)
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


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found."""
    loop, part = ratio(rows, "release", "ours", gpu)
    bare, both = ratio(rows, "ours", "gemm", gpu)
    return [
        at_least("faster than the release's loop", loop, 50 if gpu else 15, " x", part),
        at_most("time of the bare products", bare, 1.3, " x", both),
        at_most("memory beside the inputs", rows["ours"]["peak_extra_mib"], 512, " MiB"),
    ]


def least(values: dict[str, Any]) -> Work:
    """All products of sentences with images; inputs read once a chunk of 1,024 sentences."""
    n = values["sentences"]
    m = values["images"]
    dim = values["dim"]
    return Work(2.0 * n * m * dim, 4.0 * dim * (n + m * -(-n // 32_768)), "products of sentences and images")
