"""Write to the terminal: lines, questions, tables, and the progress of a command."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import click

from vlltr_index.wording import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vlltr_index.schemas.records import Progress

_PLAIN_EVERY = 10.0  # seconds between two plain lines of one step


def echo(*lines: str, err: bool = False) -> None:
    """Write lines to stdout or stderr; what cannot be seen in one, such as a line feed in a name, is escaped."""
    click.echo(_block(lines), err=err)


def _block(lines: Iterable[str]) -> str:
    """Put lines together, each escaped."""
    return "\n".join(map(shown, lines))


def confirm(*question: str) -> None:
    """Ask a question of one or more lines on stderr; the command ends unless the answer is yes."""
    click.confirm(_block(question), abort=True, err=True)


def ask(*question: str) -> str:
    """Ask on stderr, in one or more lines, for a text, which may be empty."""
    return str(click.prompt(_block(question), default="", show_default=False, err=True)).strip()


def open_console(stderr: bool = False) -> Console:
    """Return a rich console; results go to stdout, everything else to stderr."""
    from rich.console import Console

    # Names of classes may look like markup, so it is switched off.
    made = partial(Console, stderr=stderr, highlight=False, markup=False, emoji=False)
    console = made()
    return console if console.is_terminal else made(width=140)


def terminal_width() -> int | None:
    """Return the columns of the terminal that results go to, or None for a file or a pipe."""
    console = open_console()
    return console.width if console.is_terminal else None


def write_line(line: str | Table, err: bool = False) -> None:
    """Write a line or a table to stdout or stderr."""
    if isinstance(line, str):
        echo(line, err=err)
    else:
        open_console(stderr=err).print(line)


def draw_progress(drawing: ExitStack) -> Progress:
    """Return a function that draws progress on stderr: bars in a terminal, until `drawing` is closed; else lines."""
    console = open_console(stderr=True)
    return _bars(console, drawing) if console.is_terminal else _plain(console)


def _bars(console: Console, drawing: ExitStack) -> Progress:
    """Return a function that draws one bar a step, until `drawing` is closed."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=30), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    bars = drawing.enter_context(progress.Progress(*columns, console=console))
    tasks = {}

    def draw(step: str, done: int, total: int | None) -> None:
        if step not in tasks:
            tasks[step] = bars.add_task(shown(step), total=total)
        bars.update(tasks[step], completed=done, total=total)

    return draw


def _plain(console: Console) -> Progress:
    """Return a function that prints one line a step now and then, and one at its end."""
    due: dict[str, float] = {}

    def draw(step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        ended = total is not None and done >= total
        if ended or now >= due.setdefault(step, now + _PLAIN_EVERY):
            due[step] = now + _PLAIN_EVERY
            console.print(f"{shown(step)}: {done:,}" + ("" if total is None else f"/{total:,}"))

    return draw


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """Make a rich table whose first `left` columns are text and the others numbers."""
    from rich import box
    from rich.table import Table as RichTable

    result = RichTable(title=shown(title), box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for position, name in enumerate(columns):
        text = position < left  # in a narrow terminal text is wrapped, numbers are not
        result.add_column(shown(name), justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        result.add_row(*map(shown, row))
    return result


def percent(value: float | None) -> str:
    """Format a fraction as a percentage with one decimal, or None as a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def broken(before: str, text: str, width: int | None) -> list[str]:
    """Wrap `text` after `before` at `width` columns, with later lines indented to its beginning."""
    text = shown(text)
    if width is None or len(before) + len(text) <= width:
        return [before + text]
    from textwrap import wrap

    first, *rest = wrap(text, max(24, width - len(before)))
    return [before + first, *(" " * len(before) + line for line in rest)]
