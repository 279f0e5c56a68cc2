"""One writer at a time in object storage: a lock object whose holder renews it, and loses it by not doing so.

Clocks of two machines are never compared. Who waits takes the lock over once the object has not changed for a whole
lease by its own clock; the holder stops trusting the lock earlier than that, by its own clock too.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from vlltr_index.errors import LockedError, UsageError, WorkspaceError
from vlltr_index.storage import StillHeld

__all__ = ["LEASE", "LockObject", "lease_holder", "lease_lock"]

_log = logging.getLogger(__name__)

LEASE = 60.0  # seconds that a lock outlives its holder
_LONGEST = 600.0  # seconds: what a lock object may ask for
_TRUSTED = 0.75  # of the lease, counted from the last renewal: how long the holder may write
_RENEWALS = 6  # a lease
_PAUSE = 0.5  # seconds between two tries
_held: set[tuple[str, int]] = set()  # (address, thread)
os.register_at_fork(after_in_child=_held.clear)


class LockObject(Protocol):
    """One object in storage that is only written on conditions."""

    def get(self) -> tuple[bytes, Any] | None:
        """Its content and what names this version; None where there is no such object."""

    def put(self, data: bytes, version: Any) -> Any | None:
        """Write it if it still is that version, None: if there is none; the new version, None if not written."""


class _Lease:
    """The lock as its holder sees it."""

    def __init__(self, lock: LockObject, address: str, facts: dict[str, Any]) -> None:
        self.lock, self.address, self.facts = lock, address, facts
        self.version: Any = None
        self.trusted_until = 0.0
        self.lost = False
        self.renewed = 0

    def take(self, version: Any) -> bool:
        """Write the lock over `version`; whether it is ours now."""
        begun = time.monotonic()
        data = json.dumps({**self.facts, "renewed": self.renewed}, sort_keys=True).encode()
        got = self.lock.put(data, version)
        if got is None:  # also where the answer to an earlier try was lost
            there = self.lock.get()
            if there is None or _facts(there[0]).get("owner") != self.facts["owner"]:
                return False
            got = there[1]
        self.version = got
        self.trusted_until = begun + self.facts["lease"] * _TRUSTED
        return True

    def renew(self, stop: threading.Event) -> None:
        """Renew until told to stop, or until it is another's."""
        while not stop.wait(self.facts["lease"] / _RENEWALS):
            self.renewed += 1
            try:
                self.lost = not self.take(self.version)
            except WorkspaceError as error:
                _log.debug("the lock on %s was not renewed: %s", self.address, error)
            if self.lost:
                return

    def check(self) -> None:
        if self.lost or time.monotonic() > self.trusted_until:
            raise LockedError(
                f"`vlltr {self.facts['command']}` was too late to renew its lock on {self.address}",
                "Nothing was committed. Look at the network, and run the same command again.",
            )

    def let_go(self) -> None:
        try:
            self.lock.put(b"{}", self.version)
        except WorkspaceError as error:
            _log.warning(
                "the lock on %s runs out in %d s: it could not be removed: %s",
                self.address,
                self.facts["lease"],
                error.message,
            )


@contextmanager
def lease_lock(
    lock: LockObject, address: str, command: str, timeout: float | None = None, lease: float = LEASE
) -> Iterator[StillHeld]:
    """Hold the lock object while the block runs.

    Args:
        lock: The object; made if it is not there, never removed.
        address: The workspace's.
        command: What others who wait are told.
        timeout: Seconds to wait; default: as long as it takes.
        lease: Seconds after which others may take it if it is not renewed.

    Raises:
        LockedError: If another process still holds it after `timeout` seconds.
        WorkspaceError: If the object cannot be read or written.
        UsageError: If this thread holds it already: it would wait for itself.
    """
    key, process = (address, threading.get_ident()), os.getpid()
    if key in _held:
        raise UsageError(
            f"{command}: this program is already writing to {address}", "End that transaction first."
        )
    facts = {
        "owner": uuid.uuid4().hex,
        "command": command,
        "process": process,
        "host": socket.gethostname(),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "lease": lease,
    }
    ours = _Lease(lock, address, facts)
    _wait(ours, timeout)
    _held.add(key)
    stop = threading.Event()
    renewing = threading.Thread(target=ours.renew, args=(stop,), name="vlltr-lease", daemon=True)
    renewing.start()
    try:
        yield ours.check
    finally:
        if os.getpid() == process:  # else this is a forked child: the lock is its parent's
            stop.set()
            renewing.join()
            _held.discard(key)
            if not ours.lost:
                ours.let_go()


def _wait(ours: _Lease, timeout: float | None) -> None:
    start, told = time.monotonic(), False
    seen: tuple[Any, float] = (None, start)  # the version, and when it was first seen
    while True:
        there = ours.lock.get()
        now = time.monotonic()
        if there is None:
            if ours.take(None):
                return
            continue
        content, version = there
        facts = _facts(content)
        if version != seen[0]:
            seen = (version, now)
        is_over = now - seen[1] >= _lease_of(facts)
        if not facts.get("owner") or is_over:
            if ours.take(version):
                if is_over:
                    _log.warning("took over the lock of %s, which no longer renews it", _words(facts))
                return
            continue
        if timeout is not None and now - start >= timeout:
            raise LockedError(
                f"{_words(facts)} is writing to {ours.address}",
                "Wait until it is done, or stop it, and run this again. If it was killed, its lock runs out by itself "
                f"in {_lease_of(facts):g} seconds.",
            )
        if not told:
            _log.warning("waiting for %s, which is writing to %s", _words(facts), ours.address)
            told = True
        time.sleep(_PAUSE)


def lease_holder(lock: LockObject) -> str | None:
    """Who holds the lock object, in words, or held it when it was killed; None if nobody does."""
    there = lock.get()
    facts = _facts(there[0]) if there is not None else {}
    return _words(facts) if facts.get("owner") else None


def _facts(content: bytes) -> dict[str, Any]:
    """What a lock object says; one that cannot be read has an owner nobody knows."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        facts = None
    return facts if isinstance(facts, dict) else {"owner": "?"}


def _lease_of(facts: dict[str, Any]) -> float:
    lease = facts.get("lease")
    return min(float(lease), _LONGEST) if isinstance(lease, int | float) and lease > 0 else LEASE


def _words(facts: dict[str, Any]) -> str:
    if not {"command", "process", "host", "taken_at"} <= facts.keys():
        return "another process"
    text = f"`vlltr {facts['command']}` (process {facts['process']} on {facts['host']}, since {facts['taken_at']})"
    return "".join(c for c in text if c.isprintable())
