"""Rendering: progress, tables, predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vlltr_index.recognition.in_words import rather_than
from vlltr_index.schemas.records import ClassScore, Prediction, Progress, SentenceShare, by_group

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vlltr_index.anchors.planning import IndexPlan
    from vlltr_index.evaluation.metrics import EvaluationReport

__all__ = [
    "broken",
    "difference_lines",
    "evaluation_table",
    "explanation_lines",
    "percent",
    "plan_lines",
    "prediction_lines",
    "rank_tables",
    "show_progress",
    "table",
]

_INDENT = " " * 11
_SILENT = "the text has no weight in this head (vlltr train lgr says why): no sentence decided anything"
_PLAIN_EVERY = 10.0  # seconds between two plain lines of one step


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Yield a progress callback that draws on `console`, a bar a step; plain lines where it is no terminal."""
    if not console.is_terminal:
        yield _plain(console)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, rate="")
            speed = next(t.speed for t in bars.tasks if t.id == tasks[step])
            bars.update(tasks[step], completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield report


def _plain(console: Console) -> Progress:
    started: dict[str, float] = {}
    shown: dict[str, float] = {}

    def report(step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        started.setdefault(step, now)
        last = total is not None and done >= total
        if not last and now - shown.get(step, started[step]) < _PLAIN_EVERY:
            return
        if last and shown.get(step) == float("inf"):
            return
        shown[step] = float("inf") if last else now
        rate = done / (now - started[step]) if now > started[step] else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if total is not None and rate and not last else ""
        so_far = f"{done:,}/{total:,}" if total is not None else f"{done:,}"
        console.print(f"{step}: {so_far}" + (f" ({rate:,.0f}/s{left})" if rate else ""), markup=False)

    return report


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A rich table whose first `left` columns are text and the others numbers."""
    from rich import box
    from rich.table import Table as RichTable

    result = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for position, name in enumerate(columns):
        text = position < left  # in a narrow terminal texts are broken, numbers never
        result.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in rows:
        result.add_row(*row)
    return result


def prediction_lines(prediction: Prediction, width: int | None = None, covered: bool = False) -> list[str]:
    """A prediction for people: classes with what images and text gave, and under each its sentences, by share.

    Args:
        prediction: What the recognizer says of one image.
        width: Columns to break lines at; none: a sentence a line, however long.
        covered: Whether the answer is that of a rank (`--coverage`).
    """
    if prediction.problem is not None:
        return [f"{prediction.image}: not read: {prediction.problem}"]
    lines, silent = [prediction.image], _silent(prediction.classes)
    closest = (
        f"(closest: {', '.join(f'{s.name} {percent(s.probability)} %' for s in prediction.classes[:3])})"
    )
    answer = prediction.answer
    if prediction.known is False:
        return [*lines, f"  none of these {closest}"]
    if covered and answer is None:
        return [*lines, f"  no answer at any rank {closest}"]
    if answer is not None:
        lines += [f"  {percent(answer.probability):>5} %  {answer.node} ({answer.rank})   {closest}"]
        lines += [] if silent else _said(by_group(answer.sentences), width)
        return lines + _notes(prediction.classes, silent, width)
    for score in prediction.classes:
        lines += _head(score, width)
        lines += [] if silent else _said(score.folded, width)
        for near in score.neighbours:
            lines.append(f"{_INDENT}near {near.cosine:.3f}  {near.uri}")
    return lines + _notes(prediction.classes, silent, width)


def _said(groups: Sequence[Sequence[SentenceShare]], width: int | None) -> list[str]:
    """Groups of sentences with their per cent; without those that speak against the answer."""
    lines: list[str] = []
    for first, *others in groups:
        share = first.percent + sum(s.percent for s in others)
        if round(share) > 0:
            more = f" (and {len(others)} like it)" if others else ""
            lines += broken(f"{_INDENT}{round(share):3d} %  ", f"{first.text}{more}  [{first.source}]", width)
    return lines


def _head(score: ClassScore, width: int | None) -> list[str]:
    """A class, and what images and text gave of its score as a bar: beside it, or below where it is too narrow."""
    head = f"  {percent(score.probability):>5} %  {score.name}"
    sides = {"image": score.image_part, "text": score.text_part}
    against = " and ".join(name for name, part in sides.items() if part < 0)
    bar = against and f"{against} against it"
    share = round(100 * score.image_share)
    drawn = "█" * round(share / 10) + "░" * (10 - round(share / 10))
    if min(sides.values()) > 0:
        bar = f"image {share} % {drawn} text {100 - share} %"
    elif max(sides.values()) > 0:
        bar = f"{drawn} {'image' if share else 'text'} alone" + (bar and f", {bar}")
    if bar and width is not None and len(head) + len(bar) + 3 > width:
        return [head, _INDENT + bar]
    return [f"{head}   {bar}".rstrip()]


def _notes(scores: Sequence[ClassScore], silent: bool, width: int | None) -> list[str]:
    """What the numbers are, what a prompt is, or that no sentence decided."""
    sentences, notes = [s for score in scores for s in score.sentences], []
    if sentences and silent:
        notes.append(_SILENT)
    elif sentences:
        notes.append("%: how much of the class's text score the sentence gave")
    if any(s.source == "prompt" for s in sentences) and not silent:
        notes.append("[prompt]: a sentence made of the class's name alone")
    if any(score.neighbours for score in scores):
        notes.append("near: a training picture of the class, and its cosine")
    return broken("  ", "; ".join(notes), width) if notes else []


def broken(before: str, text: str, width: int | None) -> list[str]:
    """`text` after `before`, broken at `width` columns with the rest below its beginning."""
    if width is None or len(before) + len(text) <= width:
        return [before + text]
    from textwrap import wrap

    first, *rest = wrap(text, max(24, width - len(before)))
    return [before + first, *(" " * len(before) + line for line in rest)]


def _parts(score: ClassScore) -> str:
    """What both sides gave: parts of the log-odds against the next best class, or of the probability."""
    if score.unit == "log-odds":
        total = score.image_part + score.text_part
        return f"log-odds {total:+.2f} = image side {score.image_part:+.2f}, text {score.text_part:+.2f}"
    return f"image branch {percent(score.image_part)} + text branch {percent(score.text_part)}"


def _silent(scores: Sequence[ClassScore]) -> bool:
    """Whether the text has no weight, so that no sentence decided."""
    return not any(score.text_part or score.unit != "log-odds" for score in scores)


def explanation_lines(image: str, scores: Sequence[ClassScore], width: int | None = None) -> list[str]:
    """One class, or two side by side, with all their anchor sentences, broken at `width` columns."""
    lines = [image]
    if len(scores) == 2:
        lines += broken("  ", rather_than(*scores), width)
    for score in scores:
        lines += _head(score, width)
        lines += broken(_INDENT, f"{_parts(score)}; cosine {score.cosine:.3f}", width)
        lines.append(f"{_INDENT}    %   share  effect  attention")
        for s in score.sentences:
            numbers = f"{s.percent:5.1f}  {s.share:+.3f}  {s.effect:+.3f}  {s.attention:.3f}  "
            lines += broken(_INDENT + numbers, f"{s.text}  [{s.source}]", width)
    said = (
        "share: points of the cosine, which all shares add up to; effect: what it loses without the sentence"
    )
    return lines + broken("  ", said, width) + (broken("  ", _SILENT, width) if _silent(scores) else [])


def evaluation_table(report: EvaluationReport) -> Table:
    """Rows by bin with 95 % intervals."""
    bins = [b for b in ("overall", "many", "medium", "few", "few5", "new") if b in report.rows["vl-ltr"].top1]
    rows = []
    for name, row in report.rows.items():
        cells = [
            f"{percent(row.top1[b].value)} ±{50 * (row.top1[b].high - row.top1[b].low):.1f}" for b in bins
        ]
        top5 = percent(row.top5["overall"].value) if "overall" in row.top5 else "-"
        rows.append([name, *cells, top5, percent(report.calibration_error.get(name))])
    title = (
        f"Top-1 on {report.split}: {report.images:,} images, {report.classes:,} classes;"
        f" {report.convention} bounds (many >= 100, few <= 20)"
    )
    return table(title, ["", *bins, "top-5", "ECE"], rows)


def rank_tables(report: EvaluationReport) -> list[Table]:
    """Accuracy by rank, where classes have parents."""
    if not report.ranks:
        return []
    first = next(iter(report.ranks.values()))["summed"]
    rows = [
        [
            rank,
            how,
            *(percent(top1[b].value if b in top1 else None) for b in first),
            f"{top1['overall'].images:,}",
        ]
        for rank, ways in report.ranks.items()
        for how, top1 in ways.items()
    ]
    title = "By rank: of the best class, and of the most probable name with all that it holds"
    return [table(title, ["rank", "", *first, "images"], rows, left=2)]


def difference_lines(report: EvaluationReport) -> list[str]:
    """The paired difference to another row, a bin a line; nothing where there is no such row."""
    if not report.differences:
        return []
    lines = [f"vl-ltr less {report.against}, in points [95 % of the paired bootstrap]"]
    for name, d in report.differences.items():
        lines.append(f"  {name:<8} {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]")
    return lines


def plan_lines(plan: IndexPlan) -> list[str | Table]:
    """The kind of index that would be built, what each kind costs, and where the figures come from."""
    if not plan.costs:
        return [f"Would build no index: {plan.reason}."]
    rows = [
        [
            ("no index: every class is scored" if cost.kind == "none" else cost.kind) + " *" * cost.beyond,
            _size(cost.memory_mib),
            _size(cost.disk_mib),
            _time(cost.build_seconds),
            _time(cost.one_image_seconds),
            _time(cost.batch_seconds),
        ]
        for cost in plan.costs
    ]
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
