"""A command that ends at a chosen moment, as a process that is killed there ends; imports no pytest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

WRITES = ("create", "remake", "append", "upsert", "delete", "tag", "restore")
"""Methods of the store that write."""


def okapi(picture: Path) -> Any:
    """The class that is added."""
    from vlltr_index.classes import NewClass

    return NewClass("okapi", ("It is an animal.", "It has stripes."), images=(picture,))


def around(call: Callable[..., Any], step: Callable[[], None]) -> Callable[..., Any]:
    """The same call, with a step before and after it."""

    @wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        step()
        result = call(*args, **kwargs)
        step()
        return result

    return wrapped


@contextmanager
def moments(reach: Callable[[int], None]) -> Iterator[None]:
    """Call `reach` with 0, 1, ... before and after each write to a table, and around the writing of the commit."""
    from vlltr_index.store.tables import Store

    numbers = iter(range(10_000))

    def step() -> None:
        reach(next(numbers))

    with (
        mock.patch.multiple(Store, **{name: around(getattr(Store, name), step) for name in WRITES}),
        mock.patch.object(os, "link", around(os.link, step)),
    ):
        yield


@contextmanager
def kill_at(moment: int) -> Iterator[None]:
    """Die by SIGKILL at moment number `moment`."""

    def reach(now: int) -> None:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    with moments(reach):
        yield


def add_until(path: Path, picture: Path, moment: int) -> None:
    """Add a class, and die by SIGKILL at moment number `moment`."""
    from vlltr_index.classes import add_classes
    from vlltr_index.store.workspace import Workspace

    with kill_at(moment):
        add_classes(Workspace.open(path), [okapi(picture)])
