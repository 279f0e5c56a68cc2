"""Commands `vlltr evaluate` and `vlltr report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import FILE, at_option, crops_option, device_option, prior_option, read_prior

_against_option = click.option(
    "--against",
    metavar="ROW",
    help="Compare with this row of `vlltr evaluate`; default: image-only + logit adjustment, or the best baseline.",
)
_split_option = click.option(
    "--split",
    help="Which images; default: test, or cross-validation if test has no image: training images, each answered by a"
    " model that was fitted without it.",
)


@click.command("evaluate")
@_split_option
@click.option("--retrieval", type=click.Choice(["faiss", "exhaustive"]), default="exhaustive")
@at_option
@_against_option
@crops_option
@click.option(
    "--rule", type=click.Choice(["ours", "paper", "logits"]), help="Fuse the branches by this rule."
)
@prior_option
@device_option
@pass_context
def evaluate_command(context: Context, /, split: str | None, prior: str, **how: Any) -> None:
    """Measure accuracy: overall, many, medium, few (the release's bounds), with 95 % intervals.

    Rows: both branches fused, each branch alone, and every baseline that was trained. What is said below the table
    counts each class alike; with another --prior, each picture. Where classes have parents, accuracy by rank follows.
    `vlltr report` and --json also have top-5, few5 (at most 5 training images) and the expected calibration error,
    which counts likewise.
    """
    from vlltr_index.data.text import check_split
    from vlltr_index.pipelines.evaluate import evaluate

    if split is not None:
        check_split(split)
    workspace = context.open()
    report = evaluate(workspace, split, progress=context.progress, prior=read_prior(prior), **how)
    context.show(report, always=True)


@click.command("report")
@click.option("--out", type=FILE, help="Where to; default: reports/ in the workspace.")
@_split_option
@_against_option
@prior_option
@device_option
@pass_context
def report_command(
    context: Context, out: Path | None, split: str | None, against: str | None, prior: str
) -> None:
    """Write the report of the newest commit as one HTML file, to be opened in any browser, without network.

    Accuracy by class size, gain over the baseline, loss curves, reliability, confusions and explained predictions with
    their nearest sentences, worst classes, anchors and quarantined images. A part that is not there names the command
    that brings it.
    """
    from vlltr_index.pipelines.report import write_report

    known = read_prior(prior)
    made = write_report(context.open(), out, split, against, prior=known, progress=context.progress)
    context.show(made, always=True)
