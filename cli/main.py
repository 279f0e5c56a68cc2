"""`vlltr`: the group, its global options, and how errors leave the program."""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from vlltr_index.cli.context import Context
from vlltr_index.errors import MissingStepError, VlltrError
from vlltr_index.version import VERSION

__all__ = ["COMMANDS", "main", "vlltr"]

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module of vlltr_index.cli, what `vlltr --help` says), in the order of a first session
    "quickstart": ("quickstart", "Run the whole method on the data set that ships with the package."),
    "fit": ("fit", "Make a model of a folder of pictures: all of the commands below in one."),
    "init": ("workspace", "Make a workspace."),
    "ingest": ("ingest", "Bring in images and text."),
    "import": ("import_", "Bring in checkpoints of the VL-LTR release."),
    "train": ("train", "Train the encoder (cvlp), the head (lgr), both (all), or a baseline."),
    "embed": ("stages", "Embed sentences and images with the workspace's encoder."),
    "select": ("stages", "Select each class's anchor sentences (AnSS)."),
    "index": ("stages", "Build the FAISS index over the anchors."),
    "predict": ("predict", "Recognise images and name the sentences behind each answer."),
    "explain": ("predict", "Show why an image is, or is not, of a class."),
    "evaluate": ("evaluate", "Measure accuracy on a split: overall, many, medium, few."),
    "report": ("report", "Write one HTML file: accuracy, gains, confusions, explained predictions."),
    "classes": ("classes", "List, show, add, remove, rename and merge classes, without retraining."),
    "sentences": ("sentences", "Give a class more sentences, or take some away."),
    "images": ("images", "Give a class more training images, or take some away."),
    "refit": ("refit", "Train the head again over all classes that have images by now."),
    "export": ("export", "Write a folder to share: the model, or the tables."),
    "search": ("search", "Find images by a text, and sentences by an image or a text."),
    "ui": ("ui.command", "Serve a page to recognise pictures, take answers apart, and add classes."),
    "status": ("workspace", "Show what exists, what is stale, and the next command."),
    "doctor": ("doctor", "Look whether versions, device and workspace are in order."),
    "history": ("history", "List the workspace's commits."),
    "rollback": ("history", "Go back to an earlier commit, in a new one."),
    "diff": ("history", "Show what differs between two commits."),
    "prune": ("history", "Give up old commits and the files that only they needed."),
    "completion": ("doctor", "Print the script that completes commands with Tab."),
}

_LONG = {"embed", "fit", "quickstart", "train"}  # worth a look at what else the machine does
_ELSEWHERE = "Choose a folder that you may write to."
_MENDS = {
    errno.ENOSPC: "Free some space there, then run the same command again.",
    errno.EDQUOT: "Free some space there, then run the same command again.",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A link there leads back to itself: remove it.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that defines `cmd_name`."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            raise click.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)
        module = import_module(f"vlltr_index.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; where it lacks a step, say which one comes first of all."""
        try:
            return super().invoke(ctx)
        except MissingStepError as error:
            hint = error.hint or ""
            first = ctx.obj.first_step() if hint.startswith("Run: vlltr ") else None
            if first is None or first in hint:
                raise
            raise MissingStepError(error.message, f"{hint}\nBefore that: {first}") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from their stored summaries: `--help` imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "-w", "--workspace", metavar="DIR|URI", help="The workspace; default: the nearest folder upward."
)
@click.option("--json", "as_json", is_flag=True, help="Write results to stdout as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors only.")
@click.option("-v", "--verbose", is_flag=True, help="More detail on stderr.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    envvar="VLLTR_THREADS",
    help="Threads for the mathematics; default: one a core, and fewer where other programs keep cores busy.",
)
@click.version_option(VERSION, prog_name="vlltr")
@click.pass_context
def vlltr(
    ctx: click.Context,
    workspace: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    threads: int | None,
) -> None:
    """Long-tailed image recognition that knows its classes through text (VL-LTR)."""
    # Read when torch is loaded. Threads that wait by spinning take the core from those that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is None and ctx.invoked_subcommand in _LONG and "OMP_NUM_THREADS" not in os.environ:
        threads = _free_cores()
        os.environ["VLLTR_FREE_CORES"] = str(threads)  # for one process: several share them
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    ctx.obj = Context(workspace=workspace, as_json=as_json, quiet=quiet, goes_on=ctx.obj is True)
    ctx.call_on_close(ctx.obj.end_progress)
    logger = logging.getLogger("vlltr_index")
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.addHandler(_Echo())


def _free_cores() -> int:
    """Cores that no other program uses just now, at least one: a thread beside a busy program holds up all others."""
    import psutil

    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    busy: list[float] = psutil.cpu_percent(0.2, percpu=True)
    return max(1, round(sum(1 - busy[core] / 100 for core in mine if core < len(busy))))


class _Echo(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line: errors raised on purpose leave as a message and an exit code, never a traceback."""
    try:
        code = vlltr.main(args=argv, prog_name="vlltr", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if (
            int(os.environ.get("WORLD_SIZE") or "1") == 1
        ):  # of several processes the one that started them says it
            click.echo("Stopped. Run the same command again to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VlltrError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; what foresaw it has said what mends it
            raise
        click.echo(f"Error: {str(error).partition('. Including')[0]}", err=True)
        click.echo("Free memory of the GPU (nvidia-smi shows who holds it), or use --device cpu.", err=True)
        sys.exit(1)
    except (OSError, MemoryError) as error:
        _say_what_the_machine_lacks(error)
        sys.exit(1)


def _say_what_the_machine_lacks(error: OSError | MemoryError) -> None:
    """The last word on what no command foresees: a full disk, a folder that cannot be written, too little memory."""
    if isinstance(error, MemoryError):
        click.echo(f"Error: there is not enough memory: {str(error) or 'none is left'}", err=True)
        return
    where = f": {error.filename}" if error.filename is not None else ""
    click.echo(f"Error: {error.strerror or error}{where}", err=True)
    hint = _MENDS.get(error.errno or 0)
    if hint is not None:
        click.echo(hint, err=True)
    with suppress(OSError):
        sys.stdout.flush()  # fails again where stdout is what is full, and is then given up
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
