"""LGR: one training step, forward, backward and optimizer, B = 128 images, M = 64 anchors a class.

`release`: the release's head, written anew.
"""

from __future__ import annotations

from typing import Any

from benchmarks.speed.goals import Goal, at_least, at_most, memory, ratio
from benchmarks.speed.harness import Case
from benchmarks.speed.lgr_common import agree, anchors_mib, inputs
from benchmarks.speed.peak import Work

__all__ = ["CASES", "COMPETITORS", "agree", "inputs"]

COMPETITORS = ("release", "ours")


def _case(classes: int, dim: int, portion: float, rounds: int) -> Case:
    values = {"classes": classes, "anchors": 64, "dim": dim, "batch": 128}
    return Case(f"C = {classes:,}, D = {dim:,}", values, {"release": portion} if portion < 1 else {}, rounds)


CASES = (
    _case(1_000, 512, 1, 3),
    _case(1_000, 1_024, 1, 2),
    _case(8_142, 512, 1 / 8, 2),
    _case(8_142, 1_024, 1 / 16, 1),
)


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found; memory with the anchors."""
    held = anchors_mib(values)
    faster, part = ratio(rows, "release", "ours", gpu)
    wanted = 7 if values["dim"] == 512 else 12
    theirs = memory(rows["release"], held * rows["release"]["portion"]) / rows["release"]["portion"]
    mine = memory(rows["ours"], held)
    found = [
        at_least("faster than the release's formulation", faster, wanted, " x", part),
        at_most("memory, anchors included, of the release's", mine / theirs, 0.2, " x", part),
    ]
    if values["classes"] > 8_000:
        found.append(at_most("memory, anchors included", mine, 4096, " MiB"))
    return found


def least(values: dict[str, Any]) -> Work:
    """[q'; I] E^T and both of its gradients, without the step's softmax and its quadratic form."""
    anchors = values["classes"] * values["anchors"]
    products = 2.0 * 2 * values["batch"] * anchors * values["dim"]
    return Work(
        2 * products, 4.0 * anchors * values["dim"] * 2, "products with the anchors, forward and backward"
    )
