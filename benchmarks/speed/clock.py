"""Two clocks: seconds that passed, and seconds that a processor worked for this process and the ones it started."""

from __future__ import annotations

import resource
import time

__all__ = ["Clock"]


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._cpu = _cpu()
        self._wall = time.perf_counter()

    def read(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds` since then; of processes that were started, those that have ended."""
        wall = time.perf_counter() - self._wall
        return {"seconds": wall, "cpu_seconds": _cpu() - self._cpu}


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)
