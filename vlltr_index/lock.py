"""One writer at a time: a lock on a file that the system lets go of when its holder dies."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlltr_index.errors import LockedError, UsageError
from vlltr_index.storage_errors import write_error

__all__ = ["write_lock", "writer"]

_log = logging.getLogger(__name__)

_PAUSE = 0.05  # seconds between two tries
_held: dict[tuple[str, int], int] = {}  # (path, thread) -> file descriptor


def _let_go_in_child() -> None:
    """A forked worker must not keep its parent's lock alive."""
    for handle in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def write_lock(path: Path, command: str, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Args:
        path: The lock file; made if it is not there, never removed.
        command: What others who wait are told.
        timeout: Seconds to wait; default: as long as it takes.

    Raises:
        LockedError: If another process still holds it after `timeout` seconds.
        WorkspaceError: If the file cannot be written, for example on a full disk.
        UsageError: If this thread holds it already: it would wait for itself.
    """
    key = (str(path.resolve()), threading.get_ident())
    if key in _held:
        raise UsageError(
            f"{command}: this program is already writing to {path.parent}", "End that transaction first."
        )
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_error(path.parent, error) from None
    taken = False
    try:
        _wait(handle, path, timeout)
        _held[key] = handle
        taken = True
        _sign(handle, path, command)
        yield
    finally:
        if not taken:
            os.close(handle)
        elif _held.pop(key, None) is not None:  # else this is a forked child: the lock is its parent's
            os.ftruncate(handle, 0)
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _sign(handle: int, path: Path, command: str) -> None:
    """Write into the lock file who holds it."""
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"process": os.getpid(), "command": command}).encode(), 0)
    except OSError as error:
        raise write_error(path.parent, error) from None


def _wait(handle: int, path: Path, timeout: float | None) -> None:
    start, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(handle)
        if timeout is not None and time.monotonic() - start >= timeout:
            raise LockedError(
                f"{holder} is writing to {path.parent}",
                "Wait until it is done, or stop it, and run this again.",
            )
        if not told:
            _log.warning("waiting for %s, which is writing to %s", holder, path.parent)
            told = True
        time.sleep(_PAUSE)


def writer(path: Path) -> str | None:
    """Who holds the lock file `path` now, in words; None if nobody does."""
    if not path.exists():
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(handle)
    finally:
        os.close(handle)
    return None


def _holder(handle: int) -> str:
    try:
        facts = json.loads(os.pread(handle, 4096, 0))
        return f"`vlltr {facts['command']}` (process {facts['process']})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
