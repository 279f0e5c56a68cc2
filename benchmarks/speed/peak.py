"""What the machine can do at most by processor time (by the clock on a GPU): multiply matrices, and read memory.

They are kept by the name of the processor or GPU, and the page takes its bounds from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.kept import keep
from benchmarks.speed.clock import Clock
from benchmarks.speed.harness import machine

__all__ = ["Work", "keep_rates", "least_seconds", "measure"]

_log = logging.getLogger(__name__)
_SIDE = 1536
_FLOATS = 2**26
_REPEATS = 7


@dataclass(frozen=True)
class Work:
    """What a task cannot do without.

    Attributes:
        operations: Multiplications and additions of float32 numbers.
        bytes: Read from or written to memory, each once.
        what: Which ones these are, in words.
    """

    operations: float
    bytes: float
    what: str


def measure() -> dict[str, float]:
    """`gemm_gflops` (a square float32 product) and `read_gib_s` (the sum of 256 MiB), the best of seven each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.rand(2, _SIDE, _SIDE, device=device)
    line = torch.rand(_FLOATS, device=device)
    product = _best(lambda: torch.mm(a, b))
    return {
        "gemm_gflops": round(2 * _SIDE**3 / product / 1e9, 1),
        "read_gib_s": round(4 * _FLOATS / _best(line.sum) / 2**30, 2),
    }


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):
        clock = Clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = clock.read()
        seconds.append(took["seconds" if torch.cuda.is_available() else "cpu_seconds"])
    return min(seconds[1:])


def least_seconds(work: Work, peak: dict[str, float]) -> tuple[float, float]:
    """Seconds that the operations take at the measured rate, and that the bytes do."""
    return work.operations / peak["gemm_gflops"] / 1e9, work.bytes / peak["read_gib_s"] / 2**30


def keep_rates() -> None:
    """Measure this machine and keep its rates."""
    here = machine()
    rates = {**measure(), "threads": torch.get_num_threads()}
    keep("peak", here["gpu"] or here["cpu"], rates)
    _log.info("%s", rates)
