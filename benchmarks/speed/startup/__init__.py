"""Start-up: how long a command takes from the shell to its end.

`bare`: a click program with as many commands; one that imports lancedb and reads one table; open_clip with the same
forward pass. `vlltr predict` also imports lancedb (0.9 s of a processor), reads anchors, head and index, and takes the
digest of the weights (0.3 s).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.speed.goals import Goal, at_most, ratio
from benchmarks.speed.harness import Arrays, Case, Disagreement

COMPETITORS = ("bare", "ours")
CASES = (
    Case("vlltr --help", {"what": "help"}, rounds=10),
    Case("vlltr classes list, 1,000 classes", {"what": "list", "classes": 1_000}, rounds=3),
    Case("vlltr predict, one image, cold, ViT-B-32", {"what": "predict", "model": "ViT-B-32"}, rounds=2),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Random weights are drawn from this seed."""
    return {"seed": np.zeros(1, dtype=np.int64)}


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """Both programs ended well; lists have as many lines, features of the image are the same.

    Raises:
        Disagreement: If they are not.
    """
    bare, ours = (answers[name]["facts"] for name in COMPETITORS)
    if bare.shape != ours.shape:
        raise Disagreement(f"the answers have shapes {bare.shape} and {ours.shape}")
    worst = float(np.abs(bare - ours).max())
    if worst > 1e-4:
        raise Disagreement(f"the answers differ by {worst:.2g}")
    return {"largest difference": worst}


def goals(values: dict[str, Any], rows: dict[str, Any], gpu: bool) -> list[Goal]:
    """What was wanted beside what was found."""
    wanted = {"help": 2.0, "list": 1.5, "predict": 1.3}[values["what"]]
    return [at_most("time of the bare program", ratio(rows, "ours", "bare", gpu)[0], wanted, " x")]
