"""What all commands share: the global options, the workspace, output and progress."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.terminal import confirm, draw_progress, echo, write_line
from vlltr_index.errors import VlltrError

if TYPE_CHECKING:
    from rich.table import Table

    from vlltr_index.pipelines.plan import StepEvent
    from vlltr_index.pipelines.status import StatusReport
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace


@dataclass
class Context:
    """Global options, and what commands share: the workspace, output and progress."""

    workspace: str | None = None
    as_json: bool = False
    quiet: bool = False
    opened: Workspace | None = None
    _drawing: ExitStack = field(default_factory=ExitStack)
    _draw: Progress | None = None

    def open(self) -> Workspace:
        """Open the workspace named by `-w`, or the nearest one upward."""
        from vlltr_index.store.workspace import Workspace

        self.opened = Workspace.open(self.workspace) if self.workspace else Workspace.find()
        device = self.opened.recipe.device
        if device != "auto":
            os.environ.setdefault("VLLTR_DEVICE", device)
        return self.opened

    def run(self, work: Callable[..., Any], *args: Any, **how: Any) -> None:
        """Call `work` on the workspace, with progress, and show its report."""
        self.show(work(self.open(), *args, progress=self.progress, **how))

    def status(self) -> StatusReport | None:
        """Return the status of the opened workspace, or None if it cannot be read."""
        from vlltr_index.pipelines.status import status

        with suppress(VlltrError):
            return None if self.opened is None else status(self.opened)
        return None

    def say_next(self) -> None:
        """Print the next command for the opened workspace."""
        if self.quiet or self.as_json:
            return
        found = self.status()
        if found is not None:
            self.say(f"Next: {found.next}")

    def show(self, record: Any, lines: Iterable[str | Table] | None = None, always: bool = False) -> None:
        """Print one result: as JSON if requested, else as `lines` (default: `report_lines(record)`).

        Under `-q` the lines are left out, unless they are the command's result: `always` says so, or that it was a dry
        run.
        """
        self.end_progress()
        if lines is None:
            self._remark(record)
        if self.as_json:
            from pydantic_core import to_jsonable_python

            value = to_jsonable_python(record)
            echo(*json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).split("\n"))
        elif always or not self.quiet or getattr(record, "dry_run", False):
            from vlltr_index.cli.render import report_lines

            for line in report_lines(record) if lines is None else lines:
                write_line(line)

    def step(self, event: StepEvent) -> None:
        """Print a step of a plan: at its beginning title and command, at its end the report and the time.

        Where stdout carries JSON, it goes to stderr, and of the reports only those that are a command's result.
        """
        step = event.step
        place = f"[{event.number}/{event.total}]" if event.number else "[0]"
        if event.state == "begins":
            self.say("", f"{place} {step.title}", f"$ {shlex.join(('vlltr', *step.argv))}")
        elif event.state in ("done before", "left out"):
            self.say(f"{place} {step.title}: {event.state}")
        else:
            self._show_report(event.report)
            self.say(f"({event.seconds:.1f} s)")

    def _show_report(self, report: Any) -> None:
        """Print the report of a step, without the lines that name the next command."""
        from vlltr_index.cli.render import is_result, report_lines

        self.end_progress()
        brief = self.quiet or self.as_json
        if brief and not is_result(report):
            return
        if not brief:
            self._remark(report)
        for line in report_lines(report):
            if not (isinstance(line, str) and line.startswith("Next: ")):
                write_line(line, err=self.as_json)

    def _remark(self, report: Any) -> None:
        """Print what is said before a report."""
        from vlltr_index.cli.render import remarks

        for remark in remarks(report):
            self.say(remark)

    def say(self, *lines: str) -> None:
        """Print lines for people: to stdout, or to stderr if stdout carries JSON; nothing under `-q`."""
        self.end_progress()
        if not self.quiet:
            echo(*lines, err=self.as_json)

    def progress(self, step: str, done: int, total: int | None) -> None:
        """Draw progress on stderr: bars in a terminal, plain lines elsewhere; not under `-q`."""
        if self.quiet:
            return
        if self._draw is None:
            self._draw = draw_progress(self._drawing)
        self._draw(step, done, total)

    def agreement(self, yes: bool) -> Callable[[str], None] | None:
        """Return what asks whether what is gone is to be removed; None where there is no terminal to ask at."""
        if yes:
            return lambda question: None
        return self._confirm if sys.stdin.isatty() else None

    def _confirm(self, question: str) -> None:
        """Ask, with no progress drawn over the answer."""
        self.end_progress()
        confirm(question)

    def end_progress(self) -> None:
        """Stop drawing progress, and leave what is drawn."""
        self._drawing.close()
        self._draw = None


pass_context = click.make_pass_decorator(Context)
