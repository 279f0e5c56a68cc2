"""Commands that run one after the other as if they had been typed, for `vlltr quickstart` and `vlltr fit`."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlltr_index.cli.context import Context

__all__ = ["Step", "run_step"]


@dataclass(frozen=True)
class Step:
    """One command, why it is run, and whether it is run again each time (it only shows something)."""

    title: str
    args: tuple[str, ...]
    shows: bool = False
    again: bool = False  # the same command as an earlier step, with more to do

    @property
    def key(self) -> str:
        """What tells it from other steps."""
        return shlex.join(self.args) + (" (again)" if self.again else "")


def run_step(context: Context, folder: Path, step: Step, place: str, note: str = "") -> tuple[float, Any]:
    """Print a step and run it on the workspace `folder`; the seconds it took, and what the command returned.

    With --json it prints to stderr.
    """
    from vlltr_index.cli.main import vlltr

    args = step.args if step.args[0] == "init" else ("-w", str(folder), *step.args)
    context.say(f"\n{place} {step.title}{note}\n$ {shlex.join(('vlltr', *args))}")
    options = ["--quiet"] if context.quiet or context.as_json else []
    started = time.monotonic()
    with redirect_stdout(sys.stderr if context.as_json else sys.stdout):
        result = vlltr.main(args=[*options, *args], prog_name="vlltr", standalone_mode=False, obj=True)
    seconds = time.monotonic() - started
    context.say(f"({seconds:.1f} s)")
    return seconds, result
