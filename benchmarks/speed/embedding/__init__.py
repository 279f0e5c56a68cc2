"""Embedding: images and sentences through the product's pipeline, against the bare model on tensors in memory.

Images are 800 x 600 JPEG files; sentences are of all lengths. The bare model gets tensors in memory, its sentences
padded to 77 tokens, as open_clip's tokenizer gives them; ours are sorted and trimmed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("bare", "ours")
CASES = (
    Case("128 images, ViT-B-32", {"what": "images", "number": 128, "model": "ViT-B-32"}, rounds=1),
    Case("500 sentences, ViT-B-32", {"what": "sentences", "number": 500, "model": "ViT-B-32"}, rounds=1),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Seeds; files and sentences are made from them by both."""
    return {"seed": np.zeros(1, dtype=np.int64)}


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Cosines of the vectors both gave.

    Raises:
        Disagreement: If a vector differs. JPEG files go through one decoder on both sides.
    """
    bare = answers["bare"]["vectors"]
    ours = answers["ours"]["vectors"]
    cosine = (bare * ours).sum(1) / (np.linalg.norm(bare, axis=1) * np.linalg.norm(ours, axis=1))
    if float(cosine.min()) < 0.9999:
        raise Disagreement(f"the cosine of a vector with itself is {cosine.min():.5f}")
    return {"smallest cosine": float(cosine.min())}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found."""
    rate = ratio(rows, "bare", "ours", gpu)[0]
    return [at_least("of the bare model's rate", rate, 0.9, " x")]
