"""Define the group `vlltr` with its options, what all commands share, and the handling of errors."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vlltr_index.errors import FREE_SPACE, MissingStepError, VlltrError
from vlltr_index.version import VERSION
from vlltr_index.wording import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vlltr_index.pipelines.status import StatusReport
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module of vlltr_index.cli, what `vlltr --help` says), in the order of a first session
    "quickstart": ("fit", "Run the whole method on the data set that ships with the package."),
    "fit": ("fit", "Make a model of a folder of pictures: all of the commands below in one."),
    "init": ("workspace", "Make a workspace."),
    "ingest": ("ingest", "Bring in images and text."),
    "import": ("workspace", "Bring in checkpoints of the VL-LTR release."),
    "train": ("train", "Train the encoder (cvlp), the head (lgr), both (all), or a baseline."),
    "embed": ("train", "Embed sentences and images with the workspace's encoder."),
    "select": ("train", "Select each class's anchor sentences (AnSS)."),
    "index": ("train", "Build the FAISS index over the anchors."),
    "predict": ("predict", "Recognise images and name the sentences behind each answer."),
    "explain": ("predict", "Show why an image is, or is not, of a class."),
    "evaluate": ("evaluate", "Measure accuracy on a split: overall, many, medium, few."),
    "report": ("evaluate", "Write one HTML file: accuracy, gains, confusions, explained predictions."),
    "classes": ("classes", "List, show, add, remove, rename and merge classes, without retraining."),
    "sentences": ("classes", "Give a class more sentences, or take some away."),
    "images": ("classes", "Give a class more training images, or take some away."),
    "refit": ("train", "Train the head again over all classes that have images by now."),
    "export": ("workspace", "Write a folder to share: the model, or the tables."),
    "search": ("search", "Find images by a text, and sentences by an image or a text."),
    "ui": ("ui.server", "Serve a page to recognise pictures, take answers apart, and add classes."),
    "status": ("workspace", "Show what exists, what is stale, and the next command."),
    "doctor": ("workspace", "Look whether versions, device and workspace are in order."),
    "history": ("workspace", "List the workspace's commits."),
    "rollback": ("workspace", "Go back to an earlier commit, in a new one."),
    "diff": ("workspace", "Show what differs between two commits."),
    "prune": ("workspace", "Give up old commits and the files that only they needed."),
    "completion": ("workspace", "Print the script that completes commands with Tab."),
}

_LONG = {"embed", "fit", "quickstart", "train"}  # long commands, for which free cores are counted first
_MENDS = {
    errno.ENOSPC: FREE_SPACE,
    errno.EROFS: "Choose a folder that you may write to.",
    errno.EACCES: "Mend its permissions, or choose another place.",
    errno.EAGAIN: "Allow more memory and processes: ulimit -v, ulimit -u.",
}
_PLAIN_EVERY = 10.0  # seconds between two plain lines of one step


def echo(text: str, err: bool = False) -> None:
    """Write a line to stdout or stderr, with control characters made harmless to the terminal."""
    click.echo(shown(text), err=err)


def confirm(question: str) -> None:
    """Ask a question on stderr; the command ends unless the answer is yes."""
    click.confirm(shown(question), abort=True, err=True)


def ask(question: str) -> str:
    """Ask on stderr for a text, which may be empty."""
    return str(click.prompt(shown(question), default="", show_default=False, err=True)).strip()


@dataclass
class Context:
    """Global options, and what commands share: the workspace, output and progress."""

    workspace: str | None = None
    as_json: bool = False
    quiet: bool = False
    goes_on: bool = False  # whether the command is one of several, so that the next one need not be named
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
        if self.quiet or self.as_json or self.goes_on:
            return
        found = self.status()
        if found is not None:
            self.say(f"Next: {found.next}")

    def console(self, stderr: bool = False) -> Console:
        """Return a rich console; results go to stdout, everything else to stderr."""
        from rich.console import Console

        # Names of classes may look like markup, so it is switched off.
        made = partial(Console, stderr=stderr, highlight=False, markup=False, emoji=False)
        console = made()
        return console if console.is_terminal else made(width=140)

    def width(self) -> int | None:
        """Return the columns of the terminal that results go to, or None for a file or a pipe."""
        console = self.console()
        return console.width if console.is_terminal else None

    def show(self, record: Any, lines: Iterable[str | Table] | None = None, always: bool = False) -> None:
        """Print one result: as JSON if requested, else as `lines` (default: `report_lines(record)`).

        Under `-q` the lines are left out, unless `always` is set because they are the command's result. If the command
        is one of several (`goes_on`), lines that name the next one are left out.
        """
        self.end_progress()
        if self.as_json:
            from pydantic_core import to_jsonable_python

            value = to_jsonable_python(record)
            echo(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True))
        elif always or not self.quiet:
            from vlltr_index.cli.render import report_lines

            for line in report_lines(record) if lines is None else lines:
                if not isinstance(line, str):
                    self.console().print(line)
                elif not (self.goes_on and line.startswith("Next: ")):
                    echo(line)

    def say(self, message: str) -> None:
        """Print a line for people: to stdout, or to stderr if stdout carries JSON; nothing under `-q`."""
        self.end_progress()
        if not self.quiet:
            echo(message, err=self.as_json)

    def progress(self, step: str, done: int, total: int | None) -> None:
        """Draw progress on stderr: bars in a terminal, plain lines elsewhere; not under `-q`."""
        if self.quiet:
            return
        if self._draw is None:
            console = self.console(stderr=True)
            self._draw = _bars(console, self._drawing) if console.is_terminal else _plain(console)
        self._draw(step, done, total)

    def end_progress(self) -> None:
        """Stop drawing progress, and leave what is drawn."""
        self._drawing.close()
        self._draw = None


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
            tasks[step] = bars.add_task(shown(step))
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
    if width is None or len(before) + len(text) <= width:
        return [before + text]
    from textwrap import wrap

    first, *rest = wrap(text, max(24, width - len(before)))
    return [before + first, *(" " * len(before) + line for line in rest)]


class _Place(click.ParamType[Path]):
    """A path as the user typed it, with `~` expanded."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand `~`; the library checks whether the path exists."""
        if not str(value):  # as of an unset variable; it would be the current folder
            self.fail("the path is empty", param, ctx)
        return Path(os.path.expanduser(value))


def _compute_on(context: click.Context, parameter: click.Parameter, device: str | None) -> None:
    """Set the device that this process, and processes that it starts, compute on."""
    if device is not None:
        from vlltr_index.tensors import choose_device

        choose_device(device)
        os.environ["VLLTR_DEVICE"] = device


PATH = _Place("path")
FILE = _Place("file")
DIR = _Place("dir")
pass_context = click.make_pass_decorator(Context)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value; repeatable."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would happen; commit nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
at_option = click.option("--at", type=click.IntRange(1), metavar="ID", help="As of this commit.")
crops_option = click.option("--crops", default=1, help="Crops of each image: 1, or 5 (centre and corners).")
engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Compute in this process, or by Ray Data here or on a cluster (RAY_ADDRESS).",
)
actors_option = click.option(
    "--actors", type=click.IntRange(1), help="Models on Ray; default: one a GPU or CPU."
)
device_option = click.option(
    "--device",
    metavar="NAME",
    expose_value=False,
    callback=_compute_on,
    help="auto, cpu, cuda or cuda:N; default: VLLTR_DEVICE, else the recipe's.",
)


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List all commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that defines `cmd_name`."""
        if cmd_name in COMMANDS:
            module = import_module(f"vlltr_index.cli.{COMMANDS[cmd_name][0]}")
            command: click.Command = getattr(module, f"{cmd_name}_command")
            return command
        if ctx.resilient_parsing:
            return None
        raise click.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if a step is missing, add to the error the step that comes first of all."""
        try:
            return super().invoke(ctx)
        except MissingStepError as error:
            hint = error.hint or ""
            found = ctx.obj.status() if hint.startswith("Run: vlltr ") else None
            if found is None or not found.stale or found.next in hint:
                raise
            raise MissingStepError(error.message, f"{hint}\nBefore that: {found.next}") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from their stored summaries: `--help` imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.option("-w", "--workspace", metavar="DIR|URI", help="Which; default: the nearest folder upward.")
@click.option("--json", "as_json", is_flag=True, help="Write results to stdout as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors only.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    envvar="VLLTR_THREADS",
    help="Threads for the mathematics; default: one a core, and fewer where other programs keep cores busy.",
)
@click.version_option(VERSION, prog_name="vlltr")
@click.pass_context
def vlltr(ctx: click.Context, /, threads: int | None, **options: Any) -> None:
    """Long-tailed image recognition that knows its classes through text (VL-LTR)."""
    # Must be set before torch is loaded. Threads that spin while they wait take cores from those they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is None and ctx.invoked_subcommand in _LONG and "OMP_NUM_THREADS" not in os.environ:
        threads = _free_cores()
        os.environ["VLLTR_FREE_CORES"] = str(threads)  # of this machine; several processes share them
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    ctx.obj = Context(**options, goes_on=ctx.obj is True)
    ctx.call_on_close(ctx.obj.end_progress)
    logger = logging.getLogger("vlltr_index")
    logger.setLevel(logging.WARNING if options["quiet"] else logging.INFO)
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.addHandler(_Echo())


def _free_cores() -> int:
    """Count the cores that no other program uses now, at least one; a thread on a busy core delays all others."""
    import psutil

    from vlltr_index.data.decoding import cores

    busy: list[float] = psutil.cpu_percent(0.2, percpu=True)
    return max(1, round(sum(1 - busy[core] / 100 for core in cores() if core < len(busy))))


class _Echo(logging.Handler):
    """Log handler that writes to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{shown(self.format(record))}\n")


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; errors raised on purpose become a message and an exit code, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what its encoding lacks is shown as a number
            stream.reconfigure(errors="backslashreplace")
    try:
        code = vlltr.main(args=argv, prog_name="vlltr", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.Abort, KeyboardInterrupt) as error:
        # Without a cause, the abort is a confirmation that was declined.
        if isinstance(error, click.Abort) and error.__cause__ is None:
            echo("Nothing was changed. With --yes there is no question.", err=True)
            sys.exit(1)
        if int(os.environ.get("WORLD_SIZE") or "1") == 1:  # of several processes only the launcher prints it
            echo("Stopped. Run the same command again to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        told = StringIO()
        error.show(told)
        echo(told.getvalue().removesuffix("\n"), err=True)
        sys.exit(error.exit_code)
    except (VlltrError, OSError, MemoryError, RuntimeError) as error:
        found = _in_words(error)
        if found is None:
            raise
        for line in filter(None, found):
            echo(line, err=True)
        try:
            sys.stdout.flush()
        except OSError:  # stdout itself is full, so it is discarded
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(getattr(error, "exit_code", 1))


def _in_words(error: Exception) -> tuple[str, str | None] | None:
    """Return an error's message and hint if a person can mend it, else None."""
    if isinstance(error, VlltrError):
        return f"Error: {error.message}", error.hint
    if isinstance(error, MemoryError):
        return f"Error: there is not enough memory: {str(error) or 'none is left'}", None
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        return f"Error: {error.strerror or error}{where}", _MENDS.get(error.errno or 0)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; compared by name, so that torch is not imported
        mend = "Free memory of the GPU (nvidia-smi shows who holds it), or use --device cpu."
        return f"Error: {str(error).partition('. Including')[0]}", mend
    if str(error) == "can't start new thread":
        return "Error: no more threads can be started here", _MENDS[errno.EAGAIN]
    return None
