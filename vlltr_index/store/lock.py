"""One writer at a time: a lock on a file that the system lets go of when its holder dies."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from vlltr_index.errors import LockedError, UsageError, write_error

__all__ = ["in_words", "signature", "write_lock", "writer"]

_log = logging.getLogger(__name__)


@contextmanager
def write_lock(path: Path, command: str, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; `<path>.json` beside it says who does.

    Args:
        path: The lock file; made if it is not there, never removed.
        command: What others who wait are told.
        timeout: Seconds to wait; default: as long as it takes.

    Raises:
        LockedError: If another process still holds it after `timeout` seconds.
        WorkspaceError: If the file cannot be written, for example on a full disk.
        UsageError: If this thread holds it already: it would wait for itself.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if timeout != 0:
                _log.warning("waiting for %s, which is writing to %s", _holder(path), path.parent)
            lock.acquire(timeout=-1 if timeout is None else timeout)
        _beside(path).write_bytes(signature(command))
    except Timeout:
        raise LockedError(
            f"{_holder(path)} is writing to {path.parent}",
            "Wait until it is done, or stop it, and run this again.",
        ) from None
    except RuntimeError as error:
        raise UsageError(
            f"{command}: this program is already writing to {path.parent}", "End that transaction first."
        ) from error
    except OSError as error:
        lock.release()
        raise write_error(path.parent, error) from error
    try:
        yield
    finally:
        _beside(path).unlink(missing_ok=True)
        lock.release()


def writer(path: Path) -> str | None:
    """Who holds the lock file `path` now, in words; None if nobody does."""
    if not path.is_file():
        return None
    try:
        with FileLock(path, timeout=0):
            return None
    except Timeout:
        return _holder(path)
    except OSError:  # it may not be written, so nobody writes
        return None


def signature(command: str) -> bytes:
    """What a holder writes beside its lock: its command, process and host, and since when it holds it."""
    facts = {"command": command, "process": os.getpid(), "host": socket.gethostname()}
    return json.dumps({**facts, "since": datetime.now(UTC).isoformat(timespec="seconds")}).encode()


def in_words(signed: bytes) -> str:
    """Who wrote a signature, and how long it has held the lock."""
    try:
        facts = json.loads(signed)
        age = datetime.now(UTC).replace(microsecond=0) - datetime.fromisoformat(facts["since"])
        return f"`vlltr {facts['command']}` (process {facts['process']} on {facts['host']}, for {age})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _holder(path: Path) -> str:
    try:
        return in_words(_beside(path).read_bytes())
    except FileNotFoundError:  # it has only just taken the lock
        return "another process"
