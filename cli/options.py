"""Options and kinds of arguments that several commands share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vlltr_index.errors import InputError, PriorError

if TYPE_CHECKING:
    from vlltr_index.data.frequencies import Frequencies
    from vlltr_index.schemas.options import Prior


class _Place(click.ParamType[Path]):
    """A path as the user typed it, with `~` expanded."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand `~`; the library checks whether the path exists."""
        if not str(value):  # as of an unset variable; it would be the current folder
            self.fail("the path is empty", param, ctx)
        return Path(os.path.expanduser(value))


def _compute_on(context: click.Context, parameter: click.Parameter, device: str | None) -> str | None:
    """Set the device that this process, and processes that it starts, compute on; return its name."""
    if device is not None:
        from vlltr_index.tensors import choose_device

        choose_device(device)
        os.environ["VLLTR_DEVICE"] = device
    return device


PATH = _Place("path")
FILE = _Place("file")
DIR = _Place("dir")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value; repeatable."
)
group_option = click.option(
    "--group",
    metavar="HOW",
    help="What is held out together: folder, column:NAME, name:REGEX, path:REGEX, seconds:N (by EXIF) or auto; it is"
    " remembered.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would happen; commit nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
at_option = click.option("--at", type=click.IntRange(1), metavar="ID", help="As of this commit.")
crops_option = click.option("--crops", default=1, help="Crops of each image: 1, or 5 (centre and corners).")
prior_option = click.option(
    "--prior",
    default="balanced",
    metavar="PRIOR|FILE",
    help="How common the classes are: balanced (all equally), training (as there), estimated (as the images themselves"
    " tell, in a pass before), or a file with the columns class and weight, and for predict also place, month or both.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Compute in this process, or by Ray Data here or on a cluster (RAY_ADDRESS).",
)
actors_option = click.option(
    "--actors", type=click.IntRange(1), help="Models on Ray; default: one a GPU or CPU."
)
_device = partial(
    click.option,
    "--device",
    metavar="NAME",
    callback=_compute_on,
    help="auto, cpu, cuda or cuda:N; default: VLLTR_DEVICE, else the recipe's.",
)
device_option = _device(expose_value=False)
plan_device_option = _device()  # gives the command its value, to be named in the commands of its steps


def read_prior(told: str) -> Prior:
    """Return what `--prior` says, a file's weights if it names one."""
    prior, frequencies = read_prior_and_frequencies(told)
    if frequencies is not None and frequencies.situated:
        raise click.UsageError(f"--prior {told}: weights by place and month are for vlltr predict alone")
    return prior


def read_prior_and_frequencies(told: str) -> tuple[Prior, Frequencies | None]:
    """Return what `--prior` says, and of a file all that it tells."""
    from vlltr_index.data.frequencies import read_frequencies
    from vlltr_index.schemas.options import PRIORS

    if told in PRIORS:
        return cast("Prior", told), None
    if not os.path.splitext(told)[1]:
        raise click.UsageError(f"--prior {told}: give {', '.join(PRIORS)}, or a file such as frequencies.csv")
    click.get_current_context().with_resource(_naming(told))
    found = read_frequencies(Path(os.path.expanduser(told)))
    return found.weights, found


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Put the file of a prior in front of what does not fit in it, which is told only once the model is there."""
    try:
        yield
    except PriorError as error:
        raise InputError(f"{file}: {error.message}", error.hint) from None


def global_options() -> list[click.Option]:
    """Return the options of `vlltr` itself that may stand behind a command as well; help shows them in front alone."""
    return [
        click.Option(["-w", "--workspace"], callback=_choose_workspace, expose_value=False, hidden=True),
        click.Option(["--json"], is_flag=True, callback=_write_json, expose_value=False, hidden=True),
        click.Option(["-q", "--quiet"], is_flag=True, callback=_be_quiet, expose_value=False, hidden=True),
        click.Option(
            ["--threads"],
            type=click.IntRange(1),
            callback=_use_threads,
            is_eager=True,  # before a device is looked for, which loads torch
            expose_value=False,
            hidden=True,
        ),
    ]


def _choose_workspace(context: click.Context, parameter: click.Parameter, place: str | None) -> None:
    if place is not None and context.obj is not None:
        context.obj.workspace = place


def _write_json(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given and context.obj is not None:
        context.obj.as_json = True


def _be_quiet(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given and context.obj is not None:
        context.obj.quiet = True
        logging.getLogger("vlltr_index").setLevel(logging.WARNING)


def _use_threads(context: click.Context, parameter: click.Parameter, number: int | None) -> None:
    if number is not None:
        os.environ["OMP_NUM_THREADS"] = str(number)
        os.environ.pop("VLLTR_FREE_CORES", None)
