"""Commands `vlltr evaluate` and `vlltr report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.main import (
    FILE,
    Context,
    at_option,
    crops_option,
    device_option,
    pass_context,
    percent,
    table,
)

if TYPE_CHECKING:
    from rich.table import Table

    from vlltr_index.evaluation.metrics import EvaluationReport

_BINS = ("overall", "many", "medium", "few", "few5", "new")
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
def evaluate_command(context: Context, /, split: str, **how: Any) -> EvaluationReport:
    """Measure accuracy on a split: overall, many, medium, few (the release's bounds), with 95 % intervals.

    Rows: both branches fused, each branch alone, and every baseline that was trained. ECE is the expected calibration
    error, for rows that give probabilities. Where classes have parents, accuracy by rank follows.
    """
    from vlltr_index.data.text import check_split
    from vlltr_index.pipelines.evaluate import evaluate

    check_split(split)
    report = evaluate(context.open(), split, progress=context.progress, **how)
    tables = [evaluation_table(report), *_rank_tables(report)]
    context.show(report, [*tables, *difference_lines(report)], always=True)
    for name, note in report.notes.items():
        context.say(f"{name}: {note}")
    return report


def evaluation_table(report: EvaluationReport) -> Table:
    """Return a table of rows by bin, with 95 % intervals."""
    bins = [b for b in _BINS if b in report.rows["vl-ltr"].top1]
    rows = []
    for name, row in report.rows.items():
        values = [row.top1[b] for b in bins]
        cells = [f"{percent(one.value)} ±{50 * (one.high - one.low):.1f}" for one in values]
        top5 = percent(row.top5["overall"].value) if "overall" in row.top5 else "-"
        rows.append([name, *cells, top5, percent(report.calibration_error.get(name))])
    title = (
        f"Top-1 on {report.split}: {report.images:,} images, {report.classes:,} classes;"
        f" {report.convention} bounds (many >= 100, few <= 20)"
    )
    return table(title, ["", *bins, "top-5", "ECE"], rows)


def _rank_tables(report: EvaluationReport) -> list[Table]:
    """Return a table of accuracy by rank, if classes have parents."""
    rows = []
    bins = list[str]()
    for rank, ways in report.ranks.items():
        bins = bins or list(ways["summed"])
        for how, top1 in ways.items():
            cells = [percent(top1[b].value if b in top1 else None) for b in bins]
            rows.append([rank, how, *cells, f"{top1['overall'].images:,}"])
    title = "By rank: of the best class, and of the most probable name with all that it holds"
    return [table(title, ["rank", "", *bins, "images"], rows, left=2)] if rows else []


def difference_lines(report: EvaluationReport) -> list[str]:
    """Return the paired difference to another row, one line a bin; none if there is no such row."""
    if not report.differences:
        return []
    lines = [f"vl-ltr less {report.against}, in points [95 % of the paired bootstrap]"]
    for name, d in report.differences.items():
        lines.append(f"  {name:<8} {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]")
    return lines


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

    done = write_report(context.open(), out, split, against, progress=context.progress)
    if done.top1:
        said = ", ".join(f"{shot} {percent(value.value)}" for shot, value in done.top1.items())
        context.say(f"{done.images:,} images of split {split}, top-1 accuracy in %: {said}")
    for part in done.missing:
        context.say(f"Not in it: {part.why}. {part.mend}")
    context.show(done, [f"Wrote {done.path} ({done.bytes / 2**20:.1f} MiB)."], always=True)
