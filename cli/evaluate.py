"""`vlltr evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, pass_context

if TYPE_CHECKING:
    from vlltr_index.heads.fusion import Rule


@click.command("evaluate")
@click.option("--split", default="test", show_default=True)
@click.option(
    "--retrieval", type=click.Choice(["faiss", "exhaustive"]), default="exhaustive", show_default=True
)
@click.option("--at", type=click.IntRange(1), metavar="ID", help="Evaluate this commit.")
@click.option(
    "--bootstrap",
    default=1000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Draws for the intervals.",
)
@click.option(
    "--against",
    metavar="ROW",
    help="Report the paired difference to this row; default: image-only + logit adjustment, where it is there.",
)
@click.option(
    "--crops",
    default=1,
    show_default=True,
    type=int,
    help="Crops of each image: 1, or 5 (centre and corners).",
)
@click.option(
    "--rule",
    type=click.Choice(["ours", "paper", "logits"]),
    help="Fuse the branches by this rule; default: the workspace's.",
)
@pass_context
def evaluate_command(
    context: Context,
    split: str,
    retrieval: str,
    at: int | None,
    bootstrap: int,
    against: str | None,
    crops: int,
    rule: Rule | None,
) -> None:
    """Measure accuracy on a split: overall, many, medium, few (the release's bounds), with 95 % intervals.

    Rows: both branches fused, each branch alone, and every baseline that was trained. ECE is the expected calibration
    error, for rows that give probabilities.
    """
    from vlltr_index.cli.render import difference_lines, evaluation_notes, evaluation_table
    from vlltr_index.data.text import check_split
    from vlltr_index.pipelines.evaluate import evaluate

    check_split(split)
    workspace = context.open()
    with context.progress() as progress:
        report = evaluate(
            workspace,
            split,
            retrieval=retrieval,
            at=at,
            bootstrap=bootstrap,
            progress=progress,
            against=against,
            crops=crops,
            rule=rule,
        )
    if context.as_json:
        context.emit(report)
        return
    context.console().print(evaluation_table(report))
    for line in difference_lines(report):
        click.echo(line)
    for line in evaluation_notes(report):
        context.say(line)
