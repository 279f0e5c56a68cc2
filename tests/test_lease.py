"""The lock in object storage: who holds it, who waits, and what happens to who dies or comes too late."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from typing import Any

import pytest

from vlltr_index import lease as lease_module
from vlltr_index.errors import LockedError, UsageError, WorkspaceError
from vlltr_index.lease import lease_holder, lease_lock

ADDRESS = "s3://birds/w"


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Lock:
    """A lock object in memory."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.number = 0
        self.puts = 0
        self.is_down = False
        self.loses_answers = False
        self.many = threading.Event()

    def get(self) -> tuple[bytes, Any] | None:
        """What is there."""
        return None if self.content is None else (self.content, self.number)

    def put(self, data: bytes, version: Any) -> Any | None:
        """Write if it is that version."""
        self.puts += 1
        if self.puts > 4:
            self.many.set()
        if self.is_down:
            raise WorkspaceError("the storage is down")
        if version != (None if self.content is None else self.number):
            return None
        self.content, self.number = data, self.number + 1
        return None if self.loses_answers else self.number

    def written_by(self, **facts: Any) -> None:
        """Put what another process wrote."""
        self.content, self.number = json.dumps(facts).encode(), self.number + 1


OTHER = {"owner": "x", "command": "embed", "process": 7, "host": "far", "taken_at": "2026-01-01", "lease": 60}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time for the module."""
    made = Clock()
    monkeypatch.setattr(lease_module, "time", made)
    return made


def test_the_holder_is_named_and_lets_go(clock: Clock) -> None:
    """While the block runs the object says who; afterwards it is nobody's, and can be taken at once."""
    lock = Lock()
    assert lease_holder(lock) is None
    for command in ("embed", "select"):
        with lease_lock(lock, ADDRESS, command) as still_held:
            still_held()
            said = lease_holder(lock)
            assert said is not None
            assert said.startswith(
                f"`vlltr {command}` (process {os.getpid()} on {socket.gethostname()}, since 2"
            )
        assert lease_holder(lock) is None
    assert clock.now == 0


def test_who_waits_is_told_for_whom(clock: Clock) -> None:
    """With a timeout, the holder's command, process and host are in the error."""
    lock = Lock()
    lock.written_by(**OTHER)
    with pytest.raises(LockedError) as error, lease_lock(lock, ADDRESS, "select", timeout=5):
        pass
    assert str(error.value) == (
        "`vlltr embed` (process 7 on far, since 2026-01-01) is writing to s3://birds/w\n"
        "Wait until it is done, or stop it, and run this again. If it was killed, its lock runs out by itself in 60 "
        "seconds."
    )
    assert lease_holder(lock) == "`vlltr embed` (process 7 on far, since 2026-01-01)"


def test_a_lock_that_is_not_renewed_is_taken_over(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """After a whole lease by the clock of who waits, whatever the times in the object say."""
    lock = Lock()
    lock.written_by(**OTHER)
    with lease_lock(lock, ADDRESS, "select") as still_held:
        still_held()
        assert clock.now == 60
    holder = "`vlltr embed` (process 7 on far, since 2026-01-01)"
    assert [r.getMessage() for r in caplog.records] == [
        f"waiting for {holder}, which is writing to s3://birds/w",
        f"took over the lock of {holder}, which no longer renews it",
    ]


def test_a_lock_that_is_renewed_is_not(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each renewal starts the lease anew."""
    lock = Lock()
    lock.written_by(**OTHER)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now in (50, 100):
            lock.written_by(**OTHER, renewed=clock.now)

    monkeypatch.setattr(clock, "sleep", sleep)
    with lease_lock(lock, ADDRESS, "select"):
        assert clock.now == 160


@pytest.mark.parametrize(
    ("content", "waits"), [(b"garbage", 60), (b"[]", 60), (b'{"owner": "x", "lease": 1e12}', 600), (b"{}", 0)]
)
def test_an_odd_lock_object_does_not_lock_for_ever(clock: Clock, content: bytes, waits: float) -> None:
    """What cannot be read has a holder nobody knows, for no longer than any other."""
    lock = Lock()
    lock.content = content
    with lease_lock(lock, ADDRESS, "select"):
        assert clock.now == waits


def test_a_holder_that_comes_too_late_stops(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It stops trusting its lock before anybody may take it over, and says so."""
    lock = Lock()
    with lease_lock(lock, ADDRESS, "embed") as still_held:
        clock.now = 45
        still_held()
        clock.now = 45.1
        with pytest.raises(LockedError) as error:
            still_held()
    assert str(error.value) == (
        "`vlltr embed` was too late to renew its lock on s3://birds/w\n"
        "Nothing was committed. Look at the network, and run the same command again."
    )


def test_a_holder_renews_and_notices_that_it_lost(caplog: pytest.LogCaptureFixture) -> None:
    """The thread beside the block writes again and again; once the lock is another's, it leaves that alone."""
    lock = Lock()
    with lease_lock(lock, ADDRESS, "embed", lease=0.06) as still_held:
        assert lock.many.wait(60)
        lock.written_by(**OTHER)
        with pytest.raises(LockedError, match="was too late to renew"):
            for _ in iter(still_held, "never"):
                pass
    assert lease_holder(lock) == "`vlltr embed` (process 7 on far, since 2026-01-01)"


def test_an_answer_that_was_lost_is_no_loss(clock: Clock) -> None:
    """Where the write arrived and its answer did not, the object says whose it is."""
    lock = Lock()
    lock.loses_answers = True
    with lease_lock(lock, ADDRESS, "embed", timeout=0) as still_held:
        still_held()


def test_a_lock_that_cannot_be_removed_is_reported(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The block's own outcome stands; others are told how long they will wait."""
    lock = Lock()
    with caplog.at_level(logging.WARNING), lease_lock(lock, ADDRESS, "embed"):
        lock.is_down = True
    assert [r.getMessage() for r in caplog.records] == [
        "the lock on s3://birds/w runs out in 60 s: it could not be removed: the storage is down"
    ]


def test_a_transaction_inside_another_is_refused(clock: Clock) -> None:
    """It would wait for itself."""
    lock = Lock()
    with (
        lease_lock(lock, ADDRESS, "a"),
        pytest.raises(UsageError, match="b: this program is already writing to s3://birds/w"),
        lease_lock(lock, ADDRESS, "b"),
    ):
        pass
    with lease_lock(lock, ADDRESS, "c", timeout=0):
        pass


def test_a_forked_child_leaves_its_parents_lock_alone(clock: Clock) -> None:
    """A child that runs out of the block does not let go."""
    lock = Lock()

    def fork_inside() -> int:
        with lease_lock(lock, ADDRESS, "a"):
            return os.fork()

    child = fork_inside()
    if child == 0:
        os._exit(lock.puts)  # of the child's own copy
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert lock.puts == 2
