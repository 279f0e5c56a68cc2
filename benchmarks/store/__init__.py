"""Store: writing sentence vectors into LanceDB, and scanning them into a tensor.

Goal: 0.8 of the bare library's rate in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.clusters import around, centres
from benchmarks.harness import Arrays, Case, Disagreement

COMPETITORS = ("bare", "lists", "ours")
CASES = (
    Case(
        "write 127,000 x 512", {"what": "write", "rows": 127_000, "dim": 512}, {}, 3, {"lists": "reads only"}
    ),
    Case("read 127,000 x 512", {"what": "read", "rows": 127_000, "dim": 512}, {"lists": 1 / 8}, 3),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Vectors of sentences."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1_000, values["rows"])
    return {"vectors": around(rng, centres(rng, 1_000, values["dim"]), labels)}


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """The same sum of each of the first rows, and as many rows.

    Raises:
        Disagreement: If they differ.
    """
    ours = answers["ours"]["head"]
    for name, answer in answers.items():
        if answer["head"].shape != ours.shape or np.abs(answer["head"] - ours).max() > 0:
            raise Disagreement(f"{name}: other vectors came back")
    return {"largest difference": 0.0}
