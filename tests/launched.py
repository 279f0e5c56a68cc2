"""What the processes of `launch` do in tests; a module of its own that imports little, so that they start fast."""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vlltr_index.errors import VlltrError
from vlltr_index.train.distributed import by_first, world


def work(marks: Path, what: str, progress: Callable[..., None] | None) -> tuple[int, int]:
    """Leave a mark, report progress, fail as `what` says, and give a number of the first process."""
    rank, processes = world()
    (marks / f"{what}-{rank}").touch()
    if progress is not None:
        progress("work", 1, 2)
    if what.startswith("untidy"):
        atexit.register(os.abort)  # as a library's threads may do to a process that has said all
    if what == "slow":
        if rank == 1:
            atexit.register(os.abort)
            return 11, processes
        time.sleep(6)  # longer than the others have once one has failed
        return 10, processes
    if what == "busy" and rank == 0 and progress is not None:
        for done in range(300):
            progress("work", done, 300)
            time.sleep(0.1)
    if what == "busy":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "bug" and rank == 0:
        raise ValueError("the real bug")
    if what in ("silent", "bug") and rank == 1:
        os._exit(3)
    if what == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("one", "untidy-one") and rank == 1:
        raise VlltrError("the second one's trouble", "its remedy")
    if what == "crash":
        by_first(lambda: {}["a bug"])
    return by_first(lambda: rank + 10), processes
