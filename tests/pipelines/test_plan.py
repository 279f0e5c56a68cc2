"""Steps of a plan: in order, told of one by one, and made for one workspace."""

from __future__ import annotations

import pytest

from vlltr_index.pipelines.plan import Runner, Step, StepEvent, StepMaker
from vlltr_index.schemas.records import Progress
from vlltr_index.store.workspace import Workspace


def test_a_runner_tells_of_each_step() -> None:
    """Its beginning, its end with the report, that it was done before or is left out; an error leaves out the end."""
    events: list[StepEvent] = []
    runner = Runner(events.append, 4)
    assert runner.run(Step("One", ("one",), lambda: 7)) == 7
    runner.skip(Step("Two", ("two",), lambda: 8))
    runner.leave_out(Step("Three", ("three",), lambda: 9))

    def fail() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        runner.run(Step("Four", ("four",), fail))
    found = [(event.number, event.total, event.step.title, event.state, event.report) for event in events]
    assert found == [
        (1, 4, "One", "begins", None),
        (1, 4, "One", "ended", 7),
        (2, 4, "Two", "done before", None),
        (3, 4, "Three", "left out", None),
        (4, 4, "Four", "begins", None),
    ]
    assert Runner(None, 1).run(Step("One", ("one",), lambda: 7)) == 7


def test_a_step_has_its_arguments(workspace: Workspace) -> None:
    """The workspace, those given, and progress; the command names the workspace as it was named."""
    told: list[str] = []

    def work(space: Workspace, size: int, *, progress: Progress, name: str) -> str:
        progress(name, 1, None)
        return f"{space.recipe.name} {size}"

    maker = StepMaker(workspace, "my birds", "cpu", lambda step, done, total: told.append(step))
    step = maker.step("Work", ("work", *maker.on_device), work, 3, name="x")
    assert step.argv == ("-w", "my birds", "work", "--device", "cpu")
    assert step.call() == "test 3"
    assert told == ["x"]
    assert StepMaker(workspace, "", None, None).on_device == ()
