"""One writer at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.support.writers import hold_lock_with_child
from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.store.storage import write_lock


def test_a_waiting_writer_comes_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a timeout it waits, says so once, and goes on when the first is done."""
    waiting, order = threading.Event(), []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waiting.set()

    def second() -> None:
        with write_lock(tmp_path / "lock", "embed"):
            order.append("second")

    handler = Heard()
    logging.getLogger("vlltr_index.store.storage").addHandler(handler)
    try:
        thread = threading.Thread(target=second)
        with write_lock(tmp_path / "lock", "select"):
            thread.start()
            assert waiting.wait(20)
            order.append("first")
        thread.join()
    finally:
        logging.getLogger("vlltr_index.store.storage").removeHandler(handler)
    assert order == ["first", "second"]
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith(f"waiting for `vlltr select` (process {os.getpid()} on ")
    assert said.endswith(f"), which is writing to {tmp_path}")


def test_a_transaction_inside_another_is_refused(tmp_path: Path) -> None:
    """It would wait for itself for ever."""
    with (
        write_lock(tmp_path / "lock", "a"),
        pytest.raises(UsageError, match="b: this program is already writing to"),
        write_lock(tmp_path / "lock", "b"),
    ):
        pass
    with write_lock(tmp_path / "lock", "c", timeout=0):
        pass


def test_a_killed_writer_lets_go_though_its_worker_lives(tmp_path: Path) -> None:
    """A forked worker that outlives a killed writer does not keep the lock."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold_lock_with_child, args=(tmp_path / "lock", theirs))
    process.start()
    child = ours.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    os.kill(child, 0)  # still there
    with write_lock(tmp_path / "lock", "embed", timeout=10):
        pass
    os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The folder and the system's reason are in the message."""
    (tmp_path / "lock").mkdir()
    with pytest.raises(WorkspaceError) as error, write_lock(tmp_path / "lock", "embed"):
        pass
    assert error.value.message.startswith(f"{tmp_path} cannot be written: ")
