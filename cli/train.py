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

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.errors import PeerError, UsageError, VlltrError
from vlltr_index.schemas.records import BASELINES
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.pipelines.training import TrainReport
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace


_log = logging.getLogger("vlltr_index.cli.train")
_GRACE = 5.0  # seconds
_STARTED = "VLLTR_STARTED"  # set for the processes that `--processes` starts


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value; repeatable."
        ),
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
    workspace: Workspace,
    name: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    part: str,
) -> Recipe:
    from vlltr_index.schemas.recipes import load_recipe, override

    values = [f"{part}.seed={seed}"] if seed is not None else []
    recipe = load_recipe(name) if name else workspace.recipe
    if name and part and recipe.encoder != workspace.recipe.encoder and _speaks():
        _log.warning(
            "of recipe %s only the section [%s] is used: the encoder stays %s, as in vlltr.toml"
            " (vlltr train all --recipe %s takes it as a whole)",
            recipe.name,
            part,
            workspace.recipe.encoder.model,
            name,
        )
    return override(recipe, (*overrides, *values), (part,) if part else ())


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

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UsageError(
            f"--processes {processes}: each takes a GPU of its own, and there {'is' if gpus == 1 else 'are'} {gpus}",
            f"Use --processes {gpus}." if gpus > 1 else "Leave --processes away.",
        )
    os.environ[_STARTED] = "1"
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
def _training(context: Context) -> Iterator[Progress]:
    """Progress of a training command, and a quiet end where another process says what was wrong."""
    from vlltr_index.train.distributed import leave, world

    if not _speaks():
        context.quiet, context.as_json = True, False
        logging.getLogger("vlltr_index").setLevel(logging.WARNING)
    try:
        with context.progress() as progress:
            yield progress
    except PeerError as error:
        raise click.exceptions.Exit(error.exit_code) from None
    except RuntimeError:
        if world()[1] > 1:
            time.sleep(
                _GRACE
            )  # where it lost another one, the launcher ends this one meanwhile, and says why
        raise
    leave()


@click.group("train")
def train_command() -> None:
    """Train the encoder (cvlp), the head (lgr), both, or a baseline."""


@train_command.command("cvlp")
@_options
@pass_context
def cvlp(
    context: Context,
    processes: int,
    resume: bool,
    seed: int | None,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Stage 1: class-wise visual-linguistic pre-training of the encoder."""
    from vlltr_index.pipelines.train_cvlp import train_cvlp_stage

    workspace = context.open()
    chosen = _recipe(workspace, recipe, overrides, seed, "cvlp")
    if _shared_out(processes):
        return
    with _training(context) as progress:
        report = train_cvlp_stage(workspace, chosen.cvlp, progress, resume=resume)
    _show(context, report, "vlltr embed")


@train_command.command("lgr")
@_options
@pass_context
def lgr(
    context: Context,
    processes: int,
    resume: bool,
    seed: int | None,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Stage 2: the language-guided recognition head, on stored vectors.

    With `--set lgr.tune=visual`, or `lora` for low-rank adapters, the visual tower learns too; run `vlltr embed` after
    it. With mixup or cutmix images pass the tower in every step, frozen or not.
    """
    from vlltr_index.pipelines.train_lgr import train_lgr_stage

    workspace = context.open()
    chosen = _recipe(workspace, recipe, overrides, seed, "lgr")
    config = chosen.lgr
    if config.live and _shared_out(processes):
        return
    with _training(context) as progress:
        report = train_lgr_stage(workspace, config, progress, resume=resume)
    _show(context, report, "vlltr embed" if config.tune != "head" else "vlltr index")


@train_command.command("all")
@_options
@pass_context
def everything(
    context: Context,
    processes: int,
    resume: bool,
    seed: int | None,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Both stages and what lies between: cvlp, embed, select, lgr, index.

    A recipe, and every value set, becomes the workspace's own: vlltr.toml says so from then on. A recipe is taken as a
    whole, with its encoder, prompts and fusion.
    """
    from vlltr_index.pipelines.train_all import adopt_recipe, train_all
    from vlltr_index.train.distributed import meet

    workspace = context.open()
    chosen = _recipe(workspace, recipe, overrides, None, "")
    if seed is not None:
        from vlltr_index.schemas.recipes import override

        chosen = override(chosen, (f"cvlp.seed={seed}", f"lgr.seed={seed}"))
    if _shared_out(processes):
        return
    with _training(context) as progress:
        meet()
        if adopt_recipe(workspace, chosen):
            context.say(
                f"Recipe {chosen.name} is the workspace's own now: {workspace.storage.at('vlltr.toml')}"
            )
        reports = train_all(workspace, chosen, progress, resume=resume)
    if context.as_json:
        context.emit(reports)
    for note in reports["train lgr"].notes:
        context.say(note)
    context.say("Trained, embedded, selected and indexed. Next: vlltr evaluate --split test")


@train_command.command("baseline")
@click.argument("name", type=click.Choice(["fc", *BASELINES, "rest"]))
@_options
@pass_context
def baseline(
    context: Context,
    name: str,
    processes: int,
    resume: bool,
    seed: int | None,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> None:
    """A baseline with the same encoder and budget; `vlltr evaluate` shows each as a row.

    `fc` trains the same visual tower with a linear layer under cross-entropy. The others are made from stored
    vectors, `rest` makes them all. From fc's tower: `ncm` (nearest class mean), `crt` (classifier trained again on
    balanced classes), `tau-norm`, `lws` (a learned scale a class). From the workspace's encoder: `discriminant`
    (linear, with a shrunk covariance), `zero-shot` (prompt ensemble), `knn` (votes of the nearest sentences),
    `tip-adapter` (a cache of at most 16 images a class). What they choose from is in the recipe's section `baselines`;
    split val chooses, never test.
    """
    workspace = context.open()
    if name != "fc":
        if processes > 1:
            raise click.UsageError(f"baseline {name} is made in one process; --processes is for fc")
        _from_vectors(context, workspace, name, _recipe(workspace, recipe, overrides, seed, "baselines"))
        return
    from vlltr_index.pipelines.baselines import train_baseline_stage

    chosen = _recipe(workspace, recipe, overrides, seed, "baseline")
    if _shared_out(processes):
        return
    with _training(context) as progress:
        report = train_baseline_stage(workspace, chosen.baseline, progress, resume=resume)
    _show(context, report, "vlltr evaluate --split test")


def _from_vectors(context: Context, workspace: Workspace, name: str, recipe: Recipe) -> None:
    """Make one baseline on stored vectors, or all of them, and say what was chosen."""
    from vlltr_index.pipelines.baselines import train_baseline

    made = {}
    for one in BASELINES if name == "rest" else (name,):
        with context.progress() as progress:
            rows = train_baseline(workspace, one, recipe.baselines, progress)
        for row in rows:
            made[row.label] = {"settings": row.settings, "note": row.note}
            chosen = ", ".join(f"{key} {value}" for key, value in row.settings.items())
            context.say(": ".join(filter(None, (row.label, "; ".join(filter(None, (chosen, row.note)))))))
    if context.as_json:
        context.emit(made)
    context.say("Next: vlltr evaluate --split test")


def _show(context: Context, report: TrainReport, following: str) -> None:
    epochs = f", {report.epochs} epochs" if report.epochs else ""
    again = " (resumed)" if report.resumed else ""
    lines = [
        f"Trained {report.what} on {many(report.images, 'image')} of {many(report.classes, 'class', 'classes')}"
        f"{epochs}{again}: {report.digest[:16]}"
    ]
    if report.held_images or report.held_classes:
        classes = f" and {many(report.held_classes, 'class', 'classes')}" if report.held_classes else ""
        lines.append(
            f"Kept out, so that train lgr weighs its parts on what this stage never saw:"
            f" {many(report.held_images, 'image')}{classes} (cvlp.hold_out, cvlp.hold_out_classes)"
        )
    context.show(report, [*lines, *report.notes, f"Next: {following}"])
