"""Define the program `vlltr`: its global options, its start and its end."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from io import TextIOWrapper
from typing import Any, NoReturn

import click

from vlltr_index.cli.commands import LazyGroup
from vlltr_index.cli.context import Context
from vlltr_index.cli.errors import error_lines, usage_lines
from vlltr_index.cli.terminal import echo
from vlltr_index.errors import VlltrError
from vlltr_index.version import VERSION

_LONG = {"embed", "fit", "quickstart", "train"}  # long commands, for which free cores are counted first


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
    """Long-tailed image recognition that knows its classes through text (VL-LTR).

    -w, --json, -q and --threads may also stand behind the command.
    """
    # Must be set before torch is loaded. Threads that spin while they wait take cores from those they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before huggingface_hub is: a line for each retry hides the error at the end.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if threads is None and ctx.invoked_subcommand in _LONG and "OMP_NUM_THREADS" not in os.environ:
        threads = _free_cores()
        os.environ["VLLTR_FREE_CORES"] = str(threads)  # of this machine; several processes share them
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    ctx.obj = Context(**options)
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
        lines = [record.getMessage()]
        if record.exc_info:
            lines += "".join(traceback.format_exception(*record.exc_info)).splitlines()
        echo(*lines, err=True)


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
        echo(*usage_lines(error), err=True)
        sys.exit(error.exit_code)
    except (VlltrError, OSError, MemoryError, RuntimeError) as error:
        found = error_lines(error)
        if found is None:
            raise
        for line in filter(None, found):
            echo(line, err=True)
        try:
            sys.stdout.flush()
        except OSError:  # stdout itself is full, so it is discarded
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(getattr(error, "exit_code", 1))
