"""`vlltr train cvlp`, `lgr`, `all`, `baseline`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.context import Context, device_option, pass_context, set_option
from vlltr_index.errors import PeerError, UsageError, VlltrError
from vlltr_index.schemas.records import BASELINES

if TYPE_CHECKING:
    from vlltr_index.pipelines.training import TrainReport
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.store.workspace import Workspace


_log = logging.getLogger("vlltr_index.cli.train")
_GRACE = 5.0  # seconds
_STARTED = "VLLTR_STARTED"  # set for the processes that `--processes` starts


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        set_option,
        device_option,
        click.option(
            "--recipe",
            metavar="NAME",
            help="Use this recipe's section for the step alone; `all` takes the recipe as a whole.",
        ),
        click.option("--seed", type=int, help="The seed of the run."),
        click.option(
            "--resume/--restart", default=True, help="Go on from an interrupted run of the same settings."
        ),
        click.option(
            "--processes",
            default=1,
            show_default=True,
            type=click.IntRange(1),
            metavar="N",
            help="Train with N processes on this machine, a GPU each where there are GPUs.",
        ),
    ):
        function = option(function)
    return function


def _recipe(
    workspace: Workspace, recipe: str | None, overrides: tuple[str, ...], seed: int | None, part: str = ""
) -> Recipe:
    """What to train by: of another recipe the section `part` alone counts, or all where none is named."""
    from vlltr_index.schemas.recipes import load_recipe, override

    chosen = load_recipe(recipe) if recipe else workspace.recipe
    if part and chosen.encoder != workspace.recipe.encoder and _speaks():
        _log.warning(
            "of recipe %s only the section [%s] is used: the encoder stays %s, as in vlltr.toml"
            " (vlltr train all --recipe %s takes it as a whole)",
            chosen.name,
            part,
            workspace.recipe.encoder.model,
            recipe,
        )
    seeds = [f"{one}.seed={seed}" for one in ([part] if part else ["cvlp", "lgr"]) if seed is not None]
    return override(chosen, (*overrides, *seeds), (part,) if part else ())


def _speaks() -> bool:
    """Whether this process talks to the user: of several, the first does."""
    return int(os.environ.get("WORLD_SIZE") or "1") == 1 or int(os.environ.get("RANK") or "0") == 0


def _shared_out(processes: int) -> bool:
    """Run this very command in so many processes by torch's launcher; False for one, and in one of them.

    Raises:
        UsageError: If there are fewer GPUs than processes.
        VlltrError: If one of them was killed.
    """
    if processes == 1 or _STARTED in os.environ:
        return False
    if int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise UsageError(
            f"this was started as one of {os.environ['WORLD_SIZE']} processes (WORLD_SIZE) and cannot start more",
            "Leave --processes away, or start it without torchrun.",
        )
    import torch
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = 0 if os.environ.get("VLLTR_DEVICE") == "cpu" else torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UsageError(
            f"--processes {processes}: each takes a GPU of its own, and there {'is' if gpus == 1 else 'are'} {gpus}",
            f"Use --processes {gpus}." if gpus > 1 else "Leave --processes away.",
        )
    os.environ[_STARTED] = "1"
    if (free := os.environ.pop("VLLTR_FREE_CORES", None)) is not None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(free) // processes))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        1, 1, processes, run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, signals_to_handle="SIGTERM,SIGHUP", local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    logging.disable(logging.CRITICAL)  # what went wrong is said by the processes, or below
    try:
        elastic_launch(config, sys.executable)("-m", "vlltr_index.cli", *sys.argv[1:])
    except SignalException as error:
        raise click.exceptions.Exit(128 + error.sigval.value) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise click.exceptions.Exit(failure.exitcode) from None
        raise VlltrError(
            f"training process {rank + 1} of {processes} was ended by {signal.Signals(-failure.exitcode).name}",
            "If memory ran out: a smaller batch_size or fewer processes. The same command goes on from the last epoch.",
        ) from None
    finally:
        del os.environ[_STARTED]
        logging.disable(logging.NOTSET)
    return True


@contextmanager
def _training(context: Context) -> Iterator[None]:
    """A run of a training command, which ends quietly where another process says what was wrong."""
    from vlltr_index.train.distributed import leave, world

    if not _speaks():
        context.quiet, context.as_json = True, False
        logging.getLogger("vlltr_index").setLevel(logging.WARNING)
    try:
        yield
    except PeerError as error:
        raise click.exceptions.Exit(error.exit_code) from None
    except RuntimeError:
        if world()[1] > 1:
            time.sleep(
                _GRACE
            )  # where it lost another one, the launcher ends this one meanwhile, and says why
        raise
    leave()


def _stage(
    context: Context,
    part: str,
    train: Callable[..., TrainReport],
    following: str,
    processes: int,
    resume: bool,
    **given: Any,
) -> None:
    """Train by the section `part` of the recipe, in one process or several, and show what came of it."""
    workspace = context.open()
    config = getattr(_recipe(workspace, part=part, **given), part)
    if getattr(config, "live", True) and _shared_out(processes):
        return
    with _training(context):
        report = train(workspace, config, context.progress, resume=resume)
    after = "vlltr embed" if getattr(config, "tune", "head") != "head" else following
    context.show(report, [*report.lines(), f"Next: {after}"])


@click.group("train")
def train_command() -> None:
    """Train the encoder (cvlp), the head (lgr), both, or a baseline."""


@train_command.command("cvlp")
@_options
@pass_context
def cvlp(context: Context, /, **given: Any) -> None:
    """Stage 1: class-wise visual-linguistic pre-training of the encoder."""
    from vlltr_index.pipelines.train_cvlp import train_cvlp_stage

    _stage(context, "cvlp", train_cvlp_stage, "vlltr embed", **given)


@train_command.command("lgr")
@_options
@pass_context
def lgr(context: Context, /, **given: Any) -> None:
    """Stage 2: the language-guided recognition head, on stored vectors.

    With `--set lgr.tune=visual`, or `lora` for low-rank adapters, the visual tower learns too; run `vlltr embed` after
    it. With mixup or cutmix images pass the tower in every step, frozen or not.
    """
    from vlltr_index.pipelines.train_lgr import train_lgr_stage

    _stage(context, "lgr", train_lgr_stage, "vlltr index", **given)


@train_command.command("all")
@_options
@pass_context
def everything(context: Context, /, processes: int, resume: bool, **given: Any) -> None:
    """Both stages and what lies between: cvlp, embed, select, lgr, index.

    A recipe, and every value set, becomes the workspace's own: vlltr.toml says so from then on. A recipe is taken as a
    whole, with its encoder, prompts and fusion.
    """
    from vlltr_index.pipelines.train_all import adopt_recipe, train_all
    from vlltr_index.train.distributed import meet

    workspace = context.open()
    chosen = _recipe(workspace, **given)
    if _shared_out(processes):
        return
    with _training(context):
        meet()
        if adopt_recipe(workspace, chosen):
            context.say(
                f"Recipe {chosen.name} is the workspace's own now: {workspace.storage.at('vlltr.toml')}"
            )
        reports = train_all(workspace, chosen, context.progress, resume=resume)
    following = "Trained, embedded, selected and indexed. Next: vlltr evaluate --split test"
    context.show(reports, [*reports["train lgr"].notes, following])


@train_command.command("baseline")
@click.argument("name", type=click.Choice(["fc", *BASELINES, "rest"]))
@_options
@pass_context
def baseline(context: Context, /, name: str, processes: int, resume: bool, **given: Any) -> None:
    """A baseline with the same encoder and budget; `vlltr evaluate` shows each as a row.

    `fc` trains the same visual tower with a linear layer under cross-entropy. The others are made from stored
    vectors, `rest` makes them all. From fc's tower: `ncm` (nearest class mean; without fc of the workspace's encoder),
    `crt` (classifier trained again on balanced classes), `tau-norm`, `lws` (a learned scale a class). From the
    workspace's encoder: `discriminant` (linear, with a shrunk covariance), `zero-shot` (prompt ensemble), `knn` (votes
    of the nearest sentences), `tip-adapter` (a cache of at most 16 images a class). What they choose from is in the
    recipe's section `baselines`; split val chooses, never test.
    """
    from vlltr_index.pipelines.baselines import train_baseline, train_baseline_stage

    following = "vlltr evaluate --split test"
    if name == "fc":
        _stage(context, "baseline", train_baseline_stage, following, processes, resume, **given)
        return
    if processes > 1:
        raise click.UsageError(f"baseline {name} is made in one process; --processes is for fc")
    workspace = context.open()
    config = _recipe(workspace, part="baselines", **given).baselines
    made = {}
    for one in BASELINES if name == "rest" else (name,):
        for row in train_baseline(workspace, one, config, context.progress):
            made[row.label] = {"settings": row.settings, "note": row.note}
            chosen = ", ".join(f"{key} {value}" for key, value in row.settings.items())
            context.say(": ".join(filter(None, (row.label, "; ".join(filter(None, (chosen, row.note)))))))
    context.show(made, [f"Next: {following}"])
