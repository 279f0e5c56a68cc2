"""Store: writing sentence vectors into LanceDB, and scanning them into a tensor.

`bare`: lancedb alone (`table.add`, upsert, scan); `lists`: lancedb through Python lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.clusters import around, centres
from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement
from benchmarks.speed.peak import Work

COMPETITORS = ("bare", "lists", "ours")
_SIZE = {"rows": 127_000, "dim": 512}
_READS = {"lists": "reads only"}
CASES = (
    Case("write 127,000 x 512", {"what": "write", **_SIZE}, {}, 8, _READS),
    Case("write by key, 127,000 x 512", {"what": "upsert", **_SIZE}, {}, 3, _READS),
    Case("read 127,000 x 512", {"what": "read", **_SIZE}, {"lists": 1 / 8}, 3),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Vectors of sentences."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1_000, values["rows"])
    return {"vectors": around(rng, centres(rng, 1_000, values["dim"]), labels)}


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """The same vector of one key; of what was written as many rows, with the same sum of all numbers.

    Raises:
        Disagreement: If they differ.
    """
    ours = answers["ours"]["head"]
    for name, answer in answers.items():
        if answer["head"].shape != ours.shape or np.abs(answer["head"] - ours).max() > 0:
            raise Disagreement(f"{name}: other vectors came back")
        if "whole" in answer and not np.allclose(answer["whole"], answers["ours"]["whole"], rtol=1e-9):
            raise Disagreement(f"{name}: rows and sum are {answer['whole']}, ours {answers['ours']['whole']}")
    return {"largest difference": 0.0}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found."""
    return [at_least("of bare lancedb's rate", ratio(rows, "bare", "ours", gpu)[0], 0.8, " x")]


def least(values: dict[str, Any]) -> Work:
    """The vectors, once."""
    return Work(0.0, 4.0 * values["rows"] * values["dim"], "the vectors")
