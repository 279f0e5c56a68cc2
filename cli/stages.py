"""`vlltr embed`, `select`, `index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import (
    Context,
    actors_option,
    check_engine,
    device_option,
    engine_option,
    pass_context,
    set_option,
)
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.pipelines.embed import EngineName


@click.command("embed")
@click.option(
    "--views", type=click.IntRange(1), help="Stored views of a training image; default: the recipe's."
)
@click.option("--force", is_flag=True, help="Take an encoder whose weights changed; select and train again.")
@engine_option
@actors_option
@device_option
@pass_context
def embed_command(
    context: Context,
    views: int | None,
    force: bool,
    engine: EngineName,
    actors: int | None,
) -> None:
    """Embed every sentence and image that has no vector yet; an interrupted run goes on where it was.

    Either engine computes the same vectors, and goes on where the other one was.
    """
    from vlltr_index.pipelines.embed import embed

    check_engine(engine, actors)
    report = embed(context.open(), views, context.progress, force, engine, actors)
    lines = [
        f"Embedded {many(report.sentences, 'sentence')} ({report.sentences_before:,} there before) and"
        f" {many(report.images, 'image vector')} ({report.images_before:,} there before)."
    ]
    if report.truncated:
        cut = many(report.truncated, "sentence was", "sentences were")
        lines.append(f"{cut} longer than the encoder's context of {report.context} tokens, and cut there.")
    if report.unreadable:
        unread = many(report.unreadable, "image")
        lines.append(f"{unread} could not be read again: kept aside with the reason.")
    context.show(report, lines)
    context.say_next()


@click.command("select")
@set_option
@device_option
@pass_context
def select_command(context: Context, overrides: tuple[str, ...]) -> None:
    """Score each sentence against the class image sets and keep the best of each class as anchors (AnSS)."""
    from vlltr_index.anchors.selection import select
    from vlltr_index.schemas.recipes import override

    workspace = context.open()
    report = select(workspace, override(workspace.recipe, overrides, ("select",)).select, context.progress)
    classes = many(report.classes, "class", "classes")
    lines = [
        f"Selected {many(report.anchors, 'anchor')} of {many(report.sentences, 'sentence')} for {classes}"
        f" ({report.mode}, {many(report.images, 'image')})."
    ]
    if report.classes_without_images:
        bare = many(report.classes_without_images, "class has", "classes have")
        lines.append(f"{bare} no training image: sentences there go by text alone.")
    if report.classes_without_sentences:
        silent = many(report.classes_without_sentences, "class has", "classes have")
        lines.append(f"{silent} no sentence, and no anchor: they are told by their images alone.")
    context.show(report, lines)
    context.say_next()


@click.command("index")
@click.option(
    "--kind", type=click.Choice(["auto", "torch", "flat", "ivf", "hnsw"]), default="auto", show_default=True
)
@click.option(
    "--plan", "plan_only", is_flag=True, help="Only say which kind would be built, and what each costs."
)
@click.option(
    "--classes", type=click.IntRange(1, 10**9), help="Plan for so many classes; needs no workspace."
)
@click.option("--anchors", type=click.IntRange(1, 10**6), help="Plan for so many anchors a class.")
@click.option("--width", type=click.IntRange(1, 10**5), help="Plan for vectors of this width; default: 512.")
@pass_context
def index_command(
    context: Context, kind: str, plan_only: bool, classes: int | None, anchors: int | None, width: int | None
) -> None:
    """Build the index over the anchors; its kind goes by their number."""
    sizes = (classes, anchors, width)
    if any(sizes) and not (plan_only and classes and anchors):
        raise click.UsageError("a plan wants --plan, --classes and --anchors; --width may stand beside them")
    if plan_only:
        from vlltr_index.anchors.planning import plan_index
        from vlltr_index.cli.render import plan_lines
        from vlltr_index.pipelines.build_index import plan_for

        plan = (
            plan_index(classes * anchors, width or 512) if classes and anchors else plan_for(context.open())
        )
        context.show(plan, plan_lines(plan))
        return
    from vlltr_index.pipelines.build_index import index_anchors

    report = index_anchors(context.open(), kind, context.progress)
    what = f"an index of kind {report.kind}" if report.anchors else "no index"
    context.show(report, [f"Built {what}: {report.reason}."])
    context.say_next()
