"""`vlltr evaluate`."""

from __future__ import annotations

from dataclasses import asdict

import click

from vlltr_index.cli.context import Context, pass_context


@click.command("evaluate")
@click.option("--split", default="test", show_default=True)
@click.option(
    "--retrieval", type=click.Choice(["faiss", "exhaustive"]), default="exhaustive", show_default=True
)
@click.option("--at", type=int, metavar="ID", help="Evaluate this commit.")
@click.option(
    "--bootstrap", default=1000, show_default=True, type=click.IntRange(1), help="Draws for the intervals."
)
@pass_context
def evaluate_command(context: Context, split: str, retrieval: str, at: int | None, bootstrap: int) -> None:
    """Measure accuracy on a split: overall, many, medium, few (the release's bounds), with 95 % intervals.

    Rows: both branches fused, each branch alone, and the image-only baseline if it was trained.
    """
    from vlltr_index.cli.render import evaluation_table
    from vlltr_index.stages.evaluate import evaluate

    workspace = context.open()
    with context.progress() as progress:
        report = evaluate(
            workspace, split, retrieval=retrieval, at=at, bootstrap=bootstrap, progress=progress
        )
    if context.as_json:
        context.emit(asdict(report))
        return
    context.console().print(evaluation_table(report))
