"""Steps of a plan: library calls, each beside the command that does the same (`fit`, `quickstart`, `train all`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

R = TypeVar("R")  # the report of a step


@dataclass(frozen=True)
class Step(Generic[R]):
    """One step of a plan.

    Attributes:
        title: What it does, in a few words.
        argv: The words of its command, after `vlltr`.
        call: The library's function with its arguments; it returns the step's report.
        shows: Whether a plan that goes on where it was runs the step again: it changes nothing, and shows a result.
    """

    title: str
    argv: tuple[str, ...]
    call: Callable[[], R]
    shows: bool = False


@dataclass(frozen=True)
class StepEvent:
    """The beginning or the end of a step, or that it was done before or is left out.

    Attributes:
        step: The step.
        number: Its number in the plan, from 1; 0 makes the workspace.
        total: How many steps the plan has.
        state: What happened to it.
        report: What its function returned; None if it has not ended.
        seconds: The time it took; 0 if it has not ended.
    """

    step: Step[Any]
    number: int
    total: int
    state: Literal["begins", "ended", "done before", "left out"]
    report: Any = None
    seconds: float = 0.0


OnStep = Callable[[StepEvent], None]


class Runner:
    """Runs the steps of a plan one after the other, and tells `on_step` of each."""

    def __init__(self, on_step: OnStep | None, total: int, number: int = 1) -> None:
        self._on_step = on_step
        self._total = total
        self._number = number

    def run(self, step: Step[R]) -> R:
        """Run the next step, and return its report."""
        self._tell(step, "begins")
        started = time.monotonic()
        report = step.call()
        self._tell(step, "ended", report, time.monotonic() - started)
        self._number += 1
        return report

    def skip(self, step: Step[Any]) -> None:
        """Pass over the next step, which was done before."""
        self._tell(step, "done before")
        self._number += 1

    def leave_out(self, step: Step[Any]) -> None:
        """Pass over the next step, which cannot be run on this data."""
        self._tell(step, "left out")
        self._number += 1

    def _tell(
        self,
        step: Step[Any],
        state: Literal["begins", "ended", "done before", "left out"],
        report: Any = None,
        seconds: float = 0.0,
    ) -> None:
        if self._on_step is not None:
            event = StepEvent(
                step=step,
                number=self._number,
                total=self._total,
                state=state,
                report=report,
                seconds=seconds,
            )
            self._on_step(event)


@dataclass(frozen=True)
class StepMaker:
    """Makes the steps of a plan on one workspace.

    Attributes:
        workspace: What they run on.
        name: How their commands name it.
        device: The device that their commands name; None: none.
        progress: Called with the step's name, what is done, and the total.
    """

    workspace: Workspace
    name: str
    device: str | None
    progress: Progress | None

    @property
    def on_device(self) -> tuple[str, ...]:
        """The option `--device` of commands that compute."""
        return () if self.device is None else ("--device", self.device)

    def step(
        self, title: str, words: tuple[str, ...], work: Callable[..., R], *args: Any, **how: Any
    ) -> Step[R]:
        """Return the step that calls `work` on the workspace, with progress; `words` are those of its command."""
        call = partial(work, self.workspace, *args, progress=self.progress, **how)
        return Step(title, self.argv(*words), call)

    def argv(self, *words: str) -> tuple[str, ...]:
        """Return the words of a command on the workspace."""
        return ("-w", self.name, *words)
