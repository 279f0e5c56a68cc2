"""Changes of the class list that clients ask for, one after the other, by the functions that the commands call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import HTTPException

from vlltr_index.classes import ChangeOptions, ChangeReport
from vlltr_index.errors import LockedError

if TYPE_CHECKING:
    from vlltr_index.cli.serve.follower import Follower
    from vlltr_index.store.workspace import Workspace

_MOST_WAITING = 8  # changes
_PATIENCE = 5.0  # seconds to wait for another process that writes


@dataclass(frozen=True)
class Changed(ChangeReport):
    """The report of a change with what the command warns of, and the commit that holds it; None if nothing changed."""

    commit: int | None = None


class Writer:
    """Changes a workspace; its coroutines run in one event loop.

    Args:
        workspace: With a trained head.
        follower: Of the same workspace; it answers by a change as soon as that is made.
    """

    def __init__(self, workspace: Workspace, follower: Follower) -> None:
        self._workspace = workspace
        self._follower = follower
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "write")

    async def make(self, change: Callable[..., ChangeReport], *given: object, **named: object) -> Changed:
        """Make a change, also if its client goes meanwhile; return its report.

        Args:
            change: A function of `vlltr_index.classes`; it gets the workspace, what is given, and options.
            given: Its arguments by position.
            named: Its arguments by name.

        Raises:
            HTTPException: 429 if too many changes wait, 503 if another process is writing.
            VlltrError: As for `change`.
        """
        if self._waiting >= _MOST_WAITING:
            raise HTTPException(429, "Too many changes wait.", {"Retry-After": "5"})
        self._waiting += 1
        made = asyncio.get_running_loop().run_in_executor(self._thread, self._make, change, given, named)
        made.add_done_callback(self._done)
        return await asyncio.shield(made)

    def _done(self, made: asyncio.Future[Changed]) -> None:
        self._waiting -= 1
        made.exception()

    def _make(
        self, change: Callable[..., ChangeReport], given: tuple[object, ...], named: dict[str, object]
    ) -> Changed:
        history = self._workspace.history
        newest = history.ids()[-1]
        try:
            report = change(
                self._workspace,
                *given,
                options=ChangeOptions(recognizer=self._follower.recognizer, timeout=_PATIENCE),
                **named,
            )
        except LockedError:
            raise HTTPException(
                503, "Another process is writing to the workspace.", {"Retry-After": "5"}
            ) from None
        self._follower.look()
        # Other processes may have committed, too.
        made = [i for i in history.ids() if i > newest and history.read(i).command == report.command]
        told = [report.warning] if report.warning else []
        return Changed(**{**vars(report), "notes": report.notes + told}, commit=made[0] if made else None)

    def close(self) -> None:
        """Make the changes that wait, and end."""
        self._thread.shutdown()
