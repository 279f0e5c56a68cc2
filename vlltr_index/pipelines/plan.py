"""Plans of several commands (`fit`, `quickstart`, `train all`): what each prints, and what it calls, from one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from vlltr_index.anchors.selection import select
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.train_baseline import train_baseline, train_baseline_stage
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.train.distributed import by_first, world
from vlltr_index.wording import option_words

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

R = TypeVar("R")  # the report of a step
State = Literal["begins", "ended", "done before", "left out"]


@dataclass(frozen=True)
class Command(Generic[R]):
    """A command of `vlltr`, and the function that it calls.

    Attributes:
        name: Its words: `ingest images`.
        call: Takes the workspace, the command's arguments by position, its options by name, and `progress`.
        computes: Whether it takes `--device`.
        is_shared: Whether all of several processes do it, and it takes `--processes`; else the first does.
    """

    name: str
    call: Callable[..., R]
    computes: bool = True
    is_shared: bool = False


INGEST_TEXT = Command("ingest text", ingest_text, computes=False)
INGEST_IMAGES = Command("ingest images", ingest_images, computes=False)
TRAIN_CVLP = Command("train cvlp", train_cvlp_stage, is_shared=True)
TRAIN_LGR = Command("train lgr", train_lgr_stage, is_shared=True)
TRAIN_FC = Command("train baseline fc", train_baseline_stage, is_shared=True)
TRAIN_BASELINE = Command("train baseline", train_baseline)
EMBED = Command("embed", embed)
SELECT = Command("select", select)
INDEX = Command("index", index_anchors, computes=False)
EVALUATE = Command("evaluate", evaluate)
REPORT = Command("report", write_report)


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
    state: State
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

    def pass_over(self, step: Step[Any], why: State) -> None:
        """Pass over the next step: it was done before, or cannot be run on this data."""
        self._tell(step, why)
        self._number += 1

    def _tell(self, step: Step[Any], state: State, report: Any = None, seconds: float = 0.0) -> None:
        if self._on_step is not None:
            self._on_step(StepEvent(step, self._number, self._total, state, report, seconds))


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

    def step(
        self,
        title: str,
        command: Command[R],
        *arguments: object,
        untyped: Mapping[str, object] | None = None,
        shows: bool = False,
        **options: object,
    ) -> Step[R]:
        """Return the step that runs a command.

        Args:
            title: What it does, in a few words.
            command: The command.
            arguments: Its arguments by position.
            untyped: What its function takes and its line does not name: settings of the recipe, who answers a question.
            shows: See `Step`.
            options: Its options; None: not given.
        """
        given = {name: value for name, value in options.items() if value is not None}
        words = [*command.name.split(), *map(str, arguments), *option_words(**given)]
        call: Callable[[], R] = partial(
            command.call, self.workspace, *arguments, **given, **(untyped or {}), progress=self.progress
        )
        if command.computes and self.device is not None:
            words += ["--device", self.device]
        if command.is_shared and world()[1] > 1:
            words += ["--processes", str(world()[1])]
        else:
            call = by_first(call)
        return Step(title, ("-w", self.name, *words), call, shows)
