"""AnSS, later: the loss of every sentence after new images or sentences came, from the terms kept of each sentence.

`again` scores all anew. 20,000 sentences and 10,000 images are there already, D = 512; every sentence has to meet a new
image. The bounds beside the goals were set after measuring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed import anss
from benchmarks.speed.goals import Goal, at_most, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("again", "ours")
TOLERANCE = 1e-3
_THERE = {"classes": 250, "sentences": 20_000, "images": 10_000, "dim": 512}
CASES = tuple(
    Case(name, {**_THERE, "new_images": images, "new_sentences": sentences}, {}, 1)
    for name, images, sentences in (
        ("100 more images", 100, 0),
        ("1,000 more images", 1_000, 0),
        ("200 more sentences", 0, 200),
        ("2,000 more sentences", 0, 2_000),
    )
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Those that were there, and the new ones at the end."""
    more = {**values, "sentences": values["sentences"] + values["new_sentences"]}
    return anss.inputs({**more, "images": values["images"] + values["new_images"]}, shuffled=True)


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Largest difference of a loss.

    Raises:
        Disagreement: Above the tolerance.
    """
    worst = float(np.abs(answers["again"]["losses"] - answers["ours"]["losses"]).max())
    if worst > TOLERANCE:
        raise Disagreement(f"a loss differs by {worst:.2g}, more than {TOLERANCE}")
    return {"losses": worst}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """A tenth of all anew for reading what is there, and twice the share of what is new."""
    kind = "images" if values["new_images"] else "sentences"
    share = values[f"new_{kind}"] / values[kind]
    found, part = ratio(rows, "ours", "again", gpu)
    return [at_most("time of scoring all anew", found, 0.1 + 2 * share, " x", part)]
