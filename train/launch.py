"""Starting several training processes on this machine, and ending all of them together."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import start_processes

from vlltr_index.errors import PeerError, UsageError, VlltrError
from vlltr_index.train.distributed import TIMEOUT, leave

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from vlltr_index.schemas.records import Progress

__all__ = ["launch"]

_log = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_GRACE = 3.0  # seconds in which the others may end by themselves after one has failed
_PATIENCE = 10.0  # seconds between asking a process to end and ending it

T = TypeVar("T")


@dataclass(frozen=True)
class _Start:
    """What a process is told when it starts."""

    processes: int
    port: int
    threads: int
    level: int  # of the program's log
    work: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass
class _Outcome:
    """What the processes have said so far: the first one's result, and failures as (when, rank, what)."""

    result: Any = None
    failures: list[tuple[float, int, VlltrError | str]] = field(default_factory=list)
    done: set[int] = field(
        default_factory=set
    )  # who has said how it ended; what its exit does is of no interest
    warned: set[str] = field(default_factory=set)

    def well(self, rank: int) -> bool:
        """Whether a process has done its work."""
        return rank in self.done and all(failed != rank for _, failed, _ in self.failures)


def launch(processes: int, work: Callable[..., T], *args: Any, progress: Progress | None = None) -> T:
    """Run `work(*args, progress)` in several processes that form a group; returns what the first one gives.

    Each process has a GPU of its own where there are GPUs, else the cores are shared out (OMP_NUM_THREADS, where it is
    set, is each one's number of threads). The first that fails, or Ctrl-C, ends all. The program must be importable: a
    script that calls this needs `if __name__ == "__main__":`.

    Args:
        processes: How many.
        work: A function of a module, so that a new process finds it; its last argument is a progress callback.
        args: Anything that can be pickled.
        progress: Called here with the first process's progress.

    Raises:
        UsageError: If there are fewer GPUs than processes, or this is one of several processes already.
        VlltrError: What `work` raised in one of them; or a process was killed.
        RuntimeError: If one of them failed otherwise; with its traceback.
    """
    _check(processes)
    # The store lives here, on a port that the system chose: no second program can take it in between.
    store = _store(0, is_master=True, wait_for_workers=False)
    pipes = [mp.get_context("spawn").Pipe(duplex=False) for _ in range(processes)]
    start = _Start(processes, store.port, _threads(processes), _log.getEffectiveLevel(), work, args)
    context = start_processes(
        _process, (start, [w for _, w in pipes]), processes, join=False, start_method="spawn"
    )
    for _, writer in pipes:
        writer.close()
    outcome = _Outcome()
    try:
        ended = _follow(context.processes, [r for r, _ in pipes], outcome, progress)
    finally:
        _end(context.processes, _GRACE)
    died = {rank: code for rank, code in ended.items() if rank not in outcome.done}
    if died or outcome.failures:
        raise _failure(died, outcome, processes)
    result: T = outcome.result
    return result


def _store(port: int, **options: Any) -> Any:
    return dist.TCPStore(_HOST, port, **options)  # type: ignore[attr-defined]  # torch lists it nowhere


def _check(processes: int) -> None:
    if int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise UsageError(
            f"this was started as one of {os.environ['WORLD_SIZE']} processes (WORLD_SIZE) and cannot start more",
            "Leave --processes away, or start it without torchrun.",
        )
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > gpus:
        raise UsageError(
            f"--processes {processes}: each takes a GPU of its own, and there {'is' if gpus == 1 else 'are'} {gpus}",
            f"Use --processes {gpus}." if gpus > 1 else "Leave --processes away.",
        )


def _threads(processes: int) -> int:
    own = os.environ.get("OMP_NUM_THREADS", "")
    if own.isdecimal() and int(own):
        return int(own)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


class _Forward(logging.Handler):
    """Sends log records to the process that started this one."""

    def __init__(self, outbox: Connection) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.send(("log", record.name, record.levelno, record.getMessage()))


def _process(rank: int, start: _Start, outboxes: Sequence[Connection]) -> None:
    """The life of one process."""
    for other, outbox in enumerate(outboxes):
        if other != rank:
            outbox.close()
    mine = outboxes[rank]
    logger = logging.getLogger("vlltr_index")
    logger.setLevel(start.level if rank == 0 else max(start.level, logging.WARNING))
    logger.addHandler(_Forward(mine))
    try:
        _meet(rank, start)
        progress = (lambda *done: mine.send(("progress", *done))) if rank == 0 else None
        result = start.work(*start.args, progress)
        mine.send(("result", rank, result if rank == 0 else None))
        leave()
    except VlltrError as error:
        mine.send(("failure", time.monotonic(), rank, error))
        sys.exit(error.exit_code)
    except Exception:
        mine.send(("failure", time.monotonic(), rank, traceback.format_exc()))
        sys.exit(1)


def _meet(rank: int, start: _Start) -> None:
    os.environ |= {"WORLD_SIZE": str(start.processes), "RANK": str(rank)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(start.processes), "LOCAL_RANK": str(rank)}
    os.environ |= {
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(start.port),
        "OMP_NUM_THREADS": str(start.threads),
    }
    torch.set_num_threads(start.threads)
    from accelerate import PartialState

    store = _store(start.port, is_master=False)
    PartialState(store=store, rank=rank, world_size=start.processes, timeout=TIMEOUT)


def _follow(
    processes: Sequence[BaseProcess],
    inboxes: Sequence[Connection],
    outcome: _Outcome,
    progress: Progress | None,
) -> dict[int, int]:
    """Take in messages until all have ended, or a little longer than one has not ended well; who has ended, and how."""
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    boxes, ended, until = dict(enumerate(inboxes)), dict[int, int](), float("inf")
    while running and time.monotonic() < until:
        left = None if until == float("inf") else until - time.monotonic()
        ready = wait([*boxes.values(), *running], timeout=left)
        for rank in [r for r, box in boxes.items() if box in ready]:
            if not _read(boxes[rank], outcome, progress):
                del boxes[rank]
        for sentinel in [s for s in running if s in ready]:
            rank = running.pop(sentinel)
            processes[rank].join()
            box = boxes.pop(rank, None)
            while box is not None and box.poll() and _read(box, outcome, progress):
                pass  # its last words, before it is judged
            ended[rank] = processes[rank].exitcode or 0
            if not outcome.well(rank):
                until = min(until, time.monotonic() + _GRACE)  # the others may still say how they ended
    return ended


def _read(box: Connection, outcome: _Outcome, progress: Progress | None) -> bool:
    """Take in one message; False where the other end is closed."""
    try:
        _take(box.recv(), outcome, progress)
    except (EOFError, ConnectionResetError):
        return False
    return True


def _take(message: tuple[Any, ...], outcome: _Outcome, progress: Progress | None) -> None:
    kind, *rest = message
    if kind == "progress" and progress is not None:
        progress(*rest)
    elif kind == "log":
        name, level, text = rest
        if level < logging.WARNING or text not in outcome.warned:  # each process warns of what it sees
            outcome.warned.add(text)
            logging.getLogger(name).log(level, "%s", text)
    elif kind == "result":
        rank, result = rest
        outcome.done.add(rank)
        outcome.result = result if rank == 0 else outcome.result
    elif kind == "failure":
        when, rank, what = rest
        outcome.done.add(rank)
        outcome.failures.append((when, rank, what))


def _end(processes: Sequence[BaseProcess], grace: float) -> None:
    """Wait a little, then ask whoever is still there to end, then end it."""
    for step, patience in ((None, grace), ("terminate", _PATIENCE), ("kill", _PATIENCE)):
        until = time.monotonic() + patience
        alive = [process for process in processes if process.is_alive()]
        for process in alive:
            if step is not None:
                getattr(process, step)()
        for process in alive:
            process.join(max(0.0, until - time.monotonic()))


def _failure(died: dict[int, int], outcome: _Outcome, processes: int) -> Exception:
    """What the others follow from: an error that was raised, one that ended without a word, or another failure."""
    own = [f for f in outcome.failures if not isinstance(f[2], PeerError)]
    raised = [f for f in own if isinstance(f[2], VlltrError)]
    if died and not raised:
        rank, code = next(iter(died.items()))
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        for _, other, what in own:  # as a rule because it lost the one that ended
            _log.info("training process %d of %d failed:\n%s", other + 1, processes, what)
        return VlltrError(
            f"training process {rank + 1} of {processes} {how}",
            "If memory ran out: a smaller batch_size or fewer processes. The same command goes on from the last epoch.",
        )
    _, rank, what = min(raised or own or outcome.failures, key=lambda f: f[0])
    if isinstance(what, VlltrError):
        return what
    return RuntimeError(f"training process {rank + 1} of {processes} failed:\n{what}")
