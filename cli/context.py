"""What every command shares: the workspace, how results leave, and progress on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vlltr_index.schemas.records import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vlltr_index.pipelines.status import StatusReport
    from vlltr_index.store.workspace import Workspace

__all__ = [
    "Context",
    "actors_option",
    "at_option",
    "check_engine",
    "crops_option",
    "device_option",
    "dry_run_option",
    "engine_option",
    "existing",
    "pass_context",
    "set_option",
    "yes_option",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass
class Context:
    """The global options, and the few things commands do with them."""

    workspace: str | None = None
    as_json: bool = False
    quiet: bool = False
    goes_on: bool = False  # one of several commands: the next one comes by itself
    opened: Workspace | None = None
    _drawing: ExitStack = field(default_factory=ExitStack)
    _draw: Progress | None = None

    def open(self) -> Workspace:
        """The workspace named by `-w`, or the nearest one upward."""
        from vlltr_index.store.workspace import Workspace

        self.opened = Workspace.open(self.workspace) if self.workspace else Workspace.find()
        if (device := self.opened.recipe.device) != "auto":
            os.environ.setdefault("VLLTR_DEVICE", device)
        return self.opened

    def first_step(self) -> str | None:
        """The command that the opened workspace needs first of all, as `vlltr status` has it; None: it has all."""
        found = self._status()
        return found.next if found is not None and found.stale else None

    def say_next(self) -> None:
        """Tell people the command that comes next for the opened workspace, as `vlltr status` has it."""
        if not (self.quiet or self.as_json or self.goes_on) and (found := self._status()) is not None:
            self.say(f"Next: {found.next}")

    def _status(self) -> StatusReport | None:
        from vlltr_index.errors import VlltrError
        from vlltr_index.pipelines.status import status

        try:
            return None if self.opened is None else status(self.opened)
        except VlltrError:  # what is wrong with it is for the next command to say
            return None

    def console(self, stderr: bool = False) -> Console:
        """A rich console; results go to stdout, everything else to stderr."""
        from rich.console import Console

        console = Console(stderr=stderr, highlight=False)
        return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=140)

    def width(self) -> int | None:
        """Columns of the terminal that results go to; none where they go to a file or a pipe."""
        console = self.console()
        return console.width if console.is_terminal else None

    def show(self, record: Any, lines: Iterable[str | Table] | None = None, always: bool = False) -> None:
        """One result: as JSON where that was asked for, else as `lines`, default `record.lines()`, for people.

        Under `-q` the lines are left out, unless they are what was asked for (`always`). Where other commands follow
        by themselves, the next one is not told.
        """
        self.end_progress()
        if self.as_json:
            click.echo(json.dumps(record, ensure_ascii=False, indent=2, sort_keys=True, default=_plain))
        elif always or not self.quiet:
            for line in record.lines() if lines is None else lines:
                if not isinstance(line, str):
                    self.console().print(line)
                elif not (self.goes_on and line.startswith("Next: ")):
                    click.echo(line)

    def say(self, message: str) -> None:
        """A line for people: on stdout, or on stderr where stdout carries JSON; not under `-q`."""
        self.end_progress()
        if not self.quiet:
            click.echo(message, err=self.as_json)

    def progress(self, step: str, done: int, total: int | None) -> None:
        """Draw progress on stderr: bars in a terminal, plain lines elsewhere; not under `-q`."""
        if self.quiet:
            return
        if self._draw is None:
            from vlltr_index.cli.render import show_progress

            self._draw = self._drawing.enter_context(show_progress(self.console(stderr=True)))
        self._draw(step, done, total)

    def end_progress(self) -> None:
        """Leave what was drawn of the progress as it stands."""
        self._drawing.close()
        self._draw = None


def _plain(value: Any) -> Any:
    """What JSON makes of a report, and of a configuration inside it."""
    from pydantic import BaseModel

    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


pass_context = click.make_pass_decorator(Context)


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value; repeatable."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would happen; commit nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
crops_option = click.option(
    "--crops",
    default=1,
    show_default=True,
    type=int,
    help="Crops of each image: 1, or 5 (centre and corners).",
)

engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Compute in this process, or by Ray Data here or on a cluster (RAY_ADDRESS).",
)
actors_option = click.option(
    "--actors", type=click.IntRange(1), help="Models that Ray holds; default: one a GPU, or else one a CPU."
)


def check_engine(engine: str, actors: int | None) -> None:
    """See that `--actors` stands with `--engine ray` alone."""
    if actors is not None and engine != "ray":
        raise click.UsageError("--actors is for --engine ray")


def _compute_on(context: click.Context, parameter: click.Parameter, device: str | None) -> None:
    """Let this process, and those that it starts, compute on `device`."""
    if device is not None:
        from vlltr_index.tensors import choose_device

        choose_device(device)
        os.environ["VLLTR_DEVICE"] = device


device_option = click.option(
    "--device",
    metavar="NAME",
    expose_value=False,
    callback=_compute_on,
    help="auto, cpu, cuda or cuda:N; default: VLLTR_DEVICE, else the recipe's.",
)


def at_option(help: str) -> Callable[[_Command], _Command]:
    """`--at ID`: work on another commit than the newest."""
    return click.option("--at", type=click.IntRange(1), metavar="ID", help=help)


def existing(path: str) -> Path:
    """A path as the user typed it, with `~` expanded."""
    return Path(path).expanduser()
