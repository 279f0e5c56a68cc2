"""Steps of a plan: in order, told of one by one, and made for one workspace."""

from __future__ import annotations

from typing import Any

import click
import pytest

from vlltr_index.cli.commands import COMMANDS
from vlltr_index.cli.main import vlltr
from vlltr_index.pipelines import plan
from vlltr_index.pipelines.plan import Command, Runner, Step, StepEvent, StepMaker
from vlltr_index.store.workspace import Workspace


def test_a_runner_tells_of_each_step() -> None:
    """Its beginning, its end with the report, that it was done before or is left out; an error leaves out the end."""
    events: list[StepEvent] = []
    runner = Runner(events.append, 4)
    assert runner.run(Step("One", ("one",), lambda: 7)) == 7
    runner.pass_over(Step("Two", ("two",), lambda: 8), "done before")
    runner.pass_over(Step("Three", ("three",), lambda: 9), "left out")

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
    """The function gets what the command's line names, what it does not name, the workspace, and progress."""
    told: list[str] = []

    def work(space: Workspace, size: int, **how: Any) -> str:
        how.pop("progress")("work", 1, None)
        return f"{space.recipe.name} {size} {how}"

    maker = StepMaker(workspace, "my birds", "cpu", lambda step, done, total: told.append(step))
    step = maker.step(
        "Work", Command("do work", work), 3, untyped={"config": 1}, from_="x", hold_out=0.5, sync=True, dry_run=False,
        resume=False, group=None,
    )  # fmt: skip
    options = ("--from", "x", "--hold-out", "0.5", "--sync", "--restart", "--device", "cpu")
    assert step.argv == ("-w", "my birds", "do", "work", "3", *options)
    given = {"from_": "x", "hold_out": 0.5, "sync": True, "dry_run": False, "resume": False, "config": 1}
    assert step.call() == f"test 3 {given}"
    assert told == ["work"]
    plain = StepMaker(workspace, "w", "cpu", None).step("Work", Command("work", work, computes=False))
    assert plain.argv == ("-w", "w", "work")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plans_have_commands_of_the_program() -> None:
    """They call the functions that these call, and say which of them take `--device` and `--processes`."""
    commands = [one for one in vars(plan).values() if isinstance(one, Command)]
    assert len(commands) == 11
    for one in commands:
        word, *below = one.name.split()
        path = f"{one.call.__module__}.{one.call.__name__}".removeprefix("vlltr_index.")
        assert path in COMMANDS[word].calls, one
        command = vlltr.get_command(click.Context(vlltr), word)
        assert command is not None
        if isinstance(command, click.Group):
            command = command.commands[below[0]]
        options = {name for parameter in command.params for name in parameter.opts}
        assert one.computes == ("--device" in options), one
        assert not one.is_shared or "--processes" in options, one
