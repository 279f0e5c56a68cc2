"""LGR: one training step, forward, backward and optimizer, B = 128 images, M = 64 anchors a class.

Goals: 7 times the release's formulation at D = 512 and 12 times at D = 1,024, with a fifth of its memory or less;
iNaturalist's 8,142 classes within 4 GiB.
"""

from __future__ import annotations

from benchmarks.harness import Case
from benchmarks.lgr_common import agree, inputs

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
