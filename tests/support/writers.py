"""What other processes do in the tests of concurrent and killed writers; imports no pytest."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from tests.support.objects import put
from tests.support.tablerows import anchor_rows, class_rows, sentence_rows
from vlltr_index.store.snapshot import Commit, History
from vlltr_index.store.storage import write_lock
from vlltr_index.store.workspace import Workspace


def add_anchors(path: Path, start: Barrier, rounds: int, size: int) -> None:
    """Commit `rounds` times, each time `size` anchors with new keys."""
    workspace = Workspace.open(path)
    start.wait()
    for _ in range(rounds):
        with workspace.transaction("select", timeout=120) as tx:
            first = tx.next_id("anchors", size)
            tx.upsert("anchors", anchor_rows(range(first, first + size)))


STEPS = (
    "class changed",
    "object half written",
    "tables tagged",
    "commit written beside",
    "commit published",
)
"""The moments at which `write_in_steps` stops and waits."""


def write_in_steps(path: Path, pipe: Connection) -> None:
    """One transaction; says each of `STEPS` through the pipe and goes on when answered."""
    workspace = Workspace.open(path)

    def stop(step: str) -> None:
        pipe.send(step)
        pipe.recv()

    _stop_in_append(stop)
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([0, 1, 7], name="changed"))
        stop("class changed")
        tx.upsert("sentences", sentence_rows(range(5)))
        tx.delete("classes", "class_id = 1")

        def build(folder: Path) -> None:
            (folder / "head.bin").write_bytes(b"x" * 100)
            stop("object half written")
            (folder / "head.json").write_text("{}")

        tx.set(head=put(workspace, "heads", build))


def _stop_in_append(stop: Any) -> None:
    append, link = History.append, os.link

    def slow_append(self: History, commit: Commit) -> None:
        stop("tables tagged")
        append(self, commit)
        stop("commit published")

    def slow_link(temporary: Path, final: Path) -> None:
        stop("commit written beside")
        link(temporary, final)

    History.append = slow_append  # type: ignore[method-assign]  # this process only
    os.link = slow_link  # type: ignore[assignment]  # the same


def hold_lock_with_child(path: Path, pipe: Connection) -> None:
    """Take the lock, fork a child that outlives this process, and wait to be killed."""
    with write_lock(path, "train cvlp"):
        child = os.fork()
        if child == 0:
            pipe.recv()  # until the test is over
            os._exit(0)
        pipe.send(child)
        pipe.recv()
