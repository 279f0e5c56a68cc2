"""`vlltr evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.context import Context, at_option, crops_option, device_option, pass_context

if TYPE_CHECKING:
    from vlltr_index.evaluation.metrics import EvaluationReport


@click.command("evaluate")
@click.option("--split", default="test", show_default=True)
@click.option(
    "--retrieval", type=click.Choice(["faiss", "exhaustive"]), default="exhaustive", show_default=True
)
@at_option("Evaluate this commit.")
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
    help="Report the paired difference to this row; default: image-only + logit adjustment, or the best baseline.",
)
@crops_option
@click.option(
    "--rule",
    type=click.Choice(["ours", "paper", "logits"]),
    help="Fuse the branches by this rule; default: the workspace's.",
)
@device_option
@pass_context
def evaluate_command(context: Context, /, split: str, **how: Any) -> EvaluationReport:
    """Measure accuracy on a split: overall, many, medium, few (the release's bounds), with 95 % intervals.

    Rows: both branches fused, each branch alone, and every baseline that was trained. ECE is the expected calibration
    error, for rows that give probabilities. Where classes have parents, accuracy by rank follows.
    """
    from vlltr_index.cli.render import difference_lines, evaluation_table, rank_tables
    from vlltr_index.data.text import check_split
    from vlltr_index.pipelines.evaluate import evaluate

    check_split(split)
    report = evaluate(context.open(), split, progress=context.progress, **how)
    tables = [evaluation_table(report), *rank_tables(report)]
    context.show(report, [*tables, *difference_lines(report)], always=True)
    for name, note in report.notes.items():
        context.say(f"{name}: {note}")
    return report
