"""Commands `vlltr evaluate` and `vlltr report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import FILE, at_option, crops_option, device_option

_against_option = click.option(
    "--against",
    metavar="ROW",
    help="Compare with this row of `vlltr evaluate`; default: image-only + logit adjustment, or the best baseline.",
)


@click.command("evaluate")
@click.option("--split", default="test", help="Which images.")
@click.option("--retrieval", type=click.Choice(["faiss", "exhaustive"]), default="exhaustive")
@at_option
@click.option("--bootstrap", default=1000, type=click.IntRange(1), help="Draws for the intervals.")
@_against_option
@crops_option
@click.option(
    "--rule", type=click.Choice(["ours", "paper", "logits"]), help="Fuse the branches by this rule."
)
@device_option
@pass_context
def evaluate_command(context: Context, /, split: str, **how: Any) -> None:
    """Measure accuracy on a split: overall, many, medium, few (the release's bounds), with 95 % intervals.

    Rows: both branches fused, each branch alone, and every baseline that was trained. ECE is the expected calibration
    error, for rows that give probabilities. Where classes have parents, accuracy by rank follows.
    """
    from vlltr_index.data.text import check_split
    from vlltr_index.pipelines.evaluate import evaluate

    check_split(split)
    context.show(evaluate(context.open(), split, progress=context.progress, **how), always=True)


@click.command("report")
@click.option("--out", type=FILE, help="Where to; default: reports/ in the workspace.")
@click.option("--split", default="test", help="Which images to evaluate.")
@_against_option
@device_option
@pass_context
def report_command(context: Context, out: Path | None, split: str, against: str | None) -> None:
    """Write the report of the newest commit as one HTML file, to be opened in any browser, without network.

    Accuracy by class size, gain over the baseline, loss curves, reliability, confusions and explained predictions with
    their nearest sentences, worst classes, anchors and quarantined images. A part that is not there names the command
    that brings it.
    """
    from vlltr_index.pipelines.report import write_report

    context.show(write_report(context.open(), out, split, against, progress=context.progress), always=True)
