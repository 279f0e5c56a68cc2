"""LGR: logits of all classes for images whose features are there, M = 64 anchors a class, nothing retrieved.

`release` projects all anchors for every batch; `release keys kept` does so once.
"""

from __future__ import annotations

from typing import Any

from benchmarks.speed.goals import Goal, at_least, ratio
from benchmarks.speed.harness import Case
from benchmarks.speed.lgr_common import agree, inputs
from benchmarks.speed.peak import Work

__all__ = ["CASES", "COMPETITORS", "agree", "inputs"]

COMPETITORS = ("release", "release_keys_kept", "ours")


def _case(batch: int, classes: int, dim: int, portion: float, rounds: int) -> Case:
    values = {"classes": classes, "anchors": 64, "dim": dim, "batch": batch}
    parts = {"release": portion, "release_keys_kept": portion} if portion < 1 else {}
    return Case(f"B = {batch}, C = {classes:,}, D = {dim:,}", values, parts, rounds)


CASES = (
    _case(128, 1_000, 512, 1, 3),
    _case(128, 1_000, 1_024, 1, 2),
    _case(1, 1_000, 512, 1, 10),
    _case(1, 1_000, 1_024, 1, 5),
    _case(128, 8_142, 512, 1 / 8, 1),
    _case(1, 8_142, 512, 1 / 4, 3),
)


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found."""
    faster, part = ratio(rows, "release", "ours", gpu)
    wanted = 10 if values["batch"] == 1 else 3.5 if values["dim"] == 512 else 5
    return [at_least("faster than the release's formulation", faster, wanted, " x", part)]


def least(values: dict[str, Any]) -> Work:
    """Two products with all anchors: one for attention, one for the attended anchors or the cosine."""
    anchors = values["classes"] * values["anchors"]
    return Work(
        2.0 * 2 * values["batch"] * anchors * values["dim"],
        2 * 4.0 * anchors * values["dim"],
        "products with the anchors",
    )
