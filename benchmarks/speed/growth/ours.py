"""Every step of the product, at each of a case's sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.speed.clock import Clock
from benchmarks.speed.growth import steps
from benchmarks.speed.harness import Arrays


def prepare(inputs: Arrays, values: dict[str, Any]) -> list[Callable[[], object]]:
    """What to time, at each size."""
    make = steps.MAKERS[values["step"], values["axis"]]
    return [make(size) for size in values["sizes"]]


def run(state: list[Callable[[], object]]) -> Arrays:
    """Each once; where that is short, until a tenth of a second has passed."""
    each = []
    for work in state:
        clock = Clock()
        times = 0
        end = time.perf_counter() + 0.1
        while times == 0 or time.perf_counter() < end:
            work()
            times += 1
        each.append(clock.read()["cpu_seconds"] / times)
    return {"each": np.array(each), "_extra": {"each": each}}  # type: ignore[dict-item] # the harness takes it out
