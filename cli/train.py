"""Commands `vlltr train` and `refit`, and those around them: `embed`, `select`, `index`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import (
    actors_option,
    device_option,
    engine_option,
    plan_device_option,
    set_option,
)
from vlltr_index.cli.render import baseline_line, report_lines
from vlltr_index.cli.terminal import table
from vlltr_index.errors import PeerError, UsageError, VlltrError
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.records import IndexKind

if TYPE_CHECKING:
    from rich.table import Table

    from vlltr_index.anchors.planning import IndexPlan
    from vlltr_index.pipelines.embed import EngineName
    from vlltr_index.pipelines.training import TrainReport
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.store.workspace import Workspace

_GRACE = 5.0  # seconds that a failed process waits for the launcher to end it


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every training command takes, but for the device."""
    for option in (
        set_option,
        click.option(
            "--recipe", metavar="NAME", help="Take this recipe's section; `all`: take it as a whole."
        ),
        click.option("--resume/--restart", default=True, help="Go on from an interrupted run."),
        click.option(
            "--processes",
            default=1,
            type=click.IntRange(1),
            metavar="N",
            help="Train with N processes on this machine, a GPU each where there are GPUs.",
        ),
    ):
        function = option(function)
    return function


def _recipe(workspace: Workspace, recipe: str | None, overrides: tuple[str, ...], part: str = "") -> Recipe:
    """Return the recipe to train by: from another recipe only the section `part` is taken, or all without `part`."""
    from vlltr_index.schemas.recipes import load_recipe, override

    chosen = load_recipe(recipe) if recipe else workspace.recipe
    return override(chosen, overrides, (part,) if part else ())


def _number(name: str, default: int) -> int:
    """Read a number that a launcher of processes sets in the environment."""
    return int(os.environ.get(name) or default)


def _threads() -> int:
    """Return the threads that this process may use: the first number of OMP_NUM_THREADS, else the number of cores."""
    from vlltr_index.data.decoding import cores

    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else len(cores())


def _shared_out(processes: int) -> bool:
    """Run this same command in several processes by torch's launcher; False for one process, and inside of one.

    Raises:
        UsageError: If there are fewer GPUs than processes.
        VlltrError: If one of them was killed.
    """
    if processes == 1 or _number("WORLD_SIZE", 1) > 1:
        return False
    import torch
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = 0 if os.environ.get("VLLTR_DEVICE") == "cpu" else torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UsageError(
            f"--processes {processes}: each takes a GPU of its own, and there are {gpus}",
            "Use fewer, or leave --processes away.",
        )
    os.environ["OMP_NUM_THREADS"] = str(max(1, _threads() // processes))
    config = LaunchConfig(
        1, 1, processes, run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, signals_to_handle="SIGTERM,SIGHUP", local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    logging.disable(logging.CRITICAL)  # errors are printed by the processes, or raised below
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
        logging.disable(logging.NOTSET)
    return True


@contextmanager
def _training(context: Context) -> Iterator[None]:
    """Wrap a training run, which ends quietly if another process reports the error."""
    from vlltr_index.train.distributed import leave, world

    if _number("RANK", 0):  # of several processes only the first prints
        context.quiet = True
        context.as_json = False
        logging.getLogger("vlltr_index").setLevel(logging.WARNING)
    try:
        yield
    except PeerError as error:
        leave()
        raise click.exceptions.Exit(error.exit_code) from None
    except VlltrError:
        leave()  # else the group's threads may be running still when the interpreter ends, which aborts it
        raise
    except RuntimeError:
        if (
            world()[1] > 1
        ):  # if another process failed first, the launcher ends this one meanwhile and says why
            time.sleep(_GRACE)
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
    """Train by the section `part` of the recipe, in one process or several, and show the report."""
    workspace = context.open()
    config = getattr(_recipe(workspace, part=part, **given), part)
    if getattr(config, "live", True) and _shared_out(processes):
        return
    with _training(context):
        report = train(workspace, config, context.progress, resume=resume)
    after = "vlltr embed" if getattr(config, "tune", "head") != "head" else following
    context.show(report, [*report_lines(report), f"Next: {after}"])


@click.group("train")
def train_command() -> None:
    """Train the encoder (cvlp), the head (lgr), both, or a baseline."""


@train_command.command("cvlp")
@_options
@device_option
@pass_context
def cvlp(context: Context, /, **given: Any) -> None:
    """Stage 1: class-wise visual-linguistic pre-training of the encoder."""
    from vlltr_index.pipelines.train_cvlp import train_cvlp_stage

    _stage(context, "cvlp", train_cvlp_stage, "vlltr embed", **given)


@train_command.command("lgr")
@_options
@device_option
@pass_context
def lgr(context: Context, /, **given: Any) -> None:
    """Stage 2: fit the PLDA and the language-guided recognition head on stored vectors.

    Parameters are chosen by models that were fitted without the images they answer; `evaluate`, `report` and `review`
    use these models. Attention and linear classifier are trained only after stage 1, for the protocols paper and
    release, or with `--set lgr.train=true`. With `--set lgr.tune=visual`, or `lora` for low-rank adapters, the visual
    tower is trained, too; run `vlltr embed` after it. With mixup or cutmix, images pass the tower in every step.
    """
    from vlltr_index.pipelines.train_lgr import train_lgr_stage

    _stage(context, "lgr", train_lgr_stage, "vlltr index", **given)


@train_command.command("all")
@_options
@plan_device_option
@pass_context
def everything(context: Context, /, processes: int, resume: bool, device: str | None, **given: Any) -> None:
    """Both stages and what lies between: cvlp, embed, select, lgr, index.

    A recipe, and every value set, becomes the workspace's own: vlltr.toml says so from then on. A recipe is taken as a
    whole, with its encoder, prompts and fusion.
    """
    from vlltr_index.pipelines.train_all import train_all

    workspace = context.open()
    chosen = _recipe(workspace, **given)
    if _shared_out(processes):
        return
    with _training(context):
        reports = train_all(
            workspace,
            chosen,
            context.progress,
            resume=resume,
            device=device,
            on_step=context.step,
        )
    context.show(reports, ["Trained, embedded, selected and indexed. Next: vlltr evaluate"])


_BASELINE_HELP = f"""A baseline with the same encoder and budget; `vlltr evaluate` shows each as a row.

`fc` trains the visual tower with a linear layer under cross-entropy. The others are fitted on stored vectors; `rest`
fits all that the encoder allows.

{"; ".join(f"`{name}`: {facts.help}" for name, facts in BASELINES.items())}.

The recipe's section `baselines` has the settings to choose from. Split val chooses, or held-back training images, never
test. `logistic` chooses C on folds of the training images.
"""


@train_command.command("baseline", help=_BASELINE_HELP)
@click.argument("name", type=click.Choice(["fc", *BASELINES, "rest"]))
@_options
@device_option
@pass_context
def baseline(context: Context, /, name: str, processes: int, resume: bool, **given: Any) -> None:
    """Train a baseline and commit it."""
    from vlltr_index.pipelines.train_baseline import (
        absent_baselines,
        possible_baselines,
        train_baseline,
        train_baseline_stage,
    )

    following = "vlltr evaluate"
    if name == "fc":
        _stage(
            context, "baseline", train_baseline_stage, following, processes=processes, resume=resume, **given
        )
        return
    if processes > 1:
        raise click.UsageError(f"baseline {name} is made in one process; --processes is for fc")
    workspace = context.open()
    config = _recipe(workspace, part="baselines", **given).baselines
    if name == "rest":
        for one, why in absent_baselines(workspace.snapshot()).items():
            context.say(f"{one} is absent: {why}")
    made = {}
    for one in possible_baselines(workspace) if name == "rest" else (name,):
        row = train_baseline(workspace, one, config, context.progress)
        made[row.label] = {"settings": row.settings, "note": row.note}
        context.say(baseline_line(row))
    context.show(made, [f"Next: {following}"])


@click.command("refit")
@set_option
@device_option
@pass_context
def refit_command(context: Context, overrides: tuple[str, ...]) -> None:
    """Fit the head again on stored vectors, with all classes that have images.

    Use it when many classes with images were added, or existing classes got more images: they become base classes,
    which have no offset. Takes seconds to minutes. The encoder, the anchors and the index stay.
    """
    from vlltr_index.pipelines.train_lgr import refit

    context.run(refit, _recipe(context.open(), None, overrides, "lgr").lgr)


@click.command("embed")
@click.option("--views", type=click.IntRange(1), help="Views of a training image; default: the recipe's.")
@click.option("--force", is_flag=True, help="Take an encoder whose weights changed; select and train again.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images encoded at once; fewer take less memory. Default: 64.",
)
@engine_option
@actors_option
@device_option
@pass_context
def embed_command(
    context: Context,
    views: int | None,
    force: bool,
    batch_size: int | None,
    engine: EngineName,
    actors: int | None,
) -> None:
    """Embed every sentence and image that has no vector yet; an interrupted run goes on where it was.

    Either engine computes the same vectors, and goes on where the other one was.
    """
    from vlltr_index.pipelines.embed import embed

    if batch_size is not None and engine == "ray":
        raise UsageError("--batch-size is for --engine local", "Leave one of them out.")
    report = embed(
        context.open(),
        views,
        context.progress,
        force,
        engine=engine,
        actors=actors,
        batch_size=batch_size,
    )
    context.show(report)
    context.say_next()


@click.command("select")
@set_option
@device_option
@pass_context
def select_command(context: Context, overrides: tuple[str, ...]) -> None:
    """Score each sentence against the class image sets and keep the best of each class as anchors (AnSS)."""
    from vlltr_index.anchors.selection import select

    workspace = context.open()
    config = _recipe(workspace, None, overrides, "select").select
    context.show(select(workspace, config, context.progress))
    context.say_next()


@click.command("index")
@click.option("--kind", type=click.Choice(["auto", *get_args(IndexKind)]), default="auto")
@click.option("--plan", "plan_only", is_flag=True, help="Only say what would be built, and what each costs.")
@click.option("--classes", type=click.IntRange(1, 10**9), help="Plan for so many; needs no workspace.")
@click.option("--anchors", type=click.IntRange(1, 10**6), help="Plan for so many anchors a class.")
@click.option("--width", type=click.IntRange(1, 10**5), help="Plan for vectors of this width; default: 512.")
@pass_context
def index_command(
    context: Context, kind: str, plan_only: bool, classes: int | None, anchors: int | None, width: int | None
) -> None:
    """Build the index over the anchors; its kind goes by their number."""
    from vlltr_index.anchors.planning import plan_index
    from vlltr_index.pipelines.build_index import index_anchors, plan_for

    if (classes or anchors or width) and not (plan_only and classes and anchors):
        raise click.UsageError("a plan wants --plan, --classes and --anchors; --width may stand beside them")
    if plan_only:
        size = (classes or 0) * (anchors or 0)
        plan = plan_index(size, width or 512) if size else plan_for(context.open())
        context.show(plan, _plan_lines(plan))
        return
    context.show(index_anchors(context.open(), kind, context.progress))
    context.say_next()


def _plan_lines(plan: IndexPlan) -> list[str | Table]:
    """Return the kind of index that would be built, the costs of each kind, and the source of the figures."""
    if not plan.costs:
        return [f"Would build no index: {plan.reason}."]
    rows = []
    for cost in plan.costs:
        kind = "no index: every class is scored" if cost.kind == "none" else cost.kind
        sizes = [_size(mib) for mib in (cost.memory_mib, cost.disk_mib)]
        times = [_time(t) for t in (cost.build_seconds, cost.one_image_seconds, cost.batch_seconds)]
        rows.append([f"{kind} *" if cost.beyond else kind, *sizes, *times])
    columns = ["kind", "memory", "disk", "build", "one image", "128 images"]
    lines: list[str | Table] = [
        f"Would build an index of kind {plan.kind}: {plan.reason}.",
        table(f"{plan.anchors:,} anchors of width {plan.dim:,}", columns, rows),
        f"Reckoned from times of a processor, measured on {plan.measured_on}.",
    ]
    if any(cost.beyond for cost in plan.costs):
        lines.append("* larger than what was measured.")
    return lines


def _size(mib: float) -> str:
    return f"{mib:,.0f} MiB" if mib < 10_000 else f"{mib / 1024:,.0f} GiB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:,.0f} ms"
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
