"""The four charts of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from vlltr_index.evaluation.drawing import (
    WIDTH,
    Canvas,
    Chart,
    Scale,
    fitted,
    log_ticks,
    nice_ticks,
    text_width,
)
from vlltr_index.evaluation.metrics import AccuracyReport, ReliabilityBin
from vlltr_index.evaluation.records import Curves, GroupGain

__all__ = ["accuracy_chart", "gain_chart", "loss_chart", "reliability_chart"]

_WIDE = 8.0  # losses further apart than this are drawn on a logarithmic scale


def accuracy_chart(rows: Mapping[str, AccuracyReport]) -> Chart:
    """Top-1 accuracy of a few rows by class size: a mark with its 95 % interval and its value."""
    found = {name: row.top1 for name, row in rows.items()}
    shots = list(next(iter(found.values())))
    every = [interval for top1 in found.values() for interval in top1.values()]
    ticks = nice_ticks(100 * min(i.low for i in every), min(100.0, 100 * max(i.high for i in every)))
    line, left = 15.0, 66.0
    canvas = Canvas(0)
    top = canvas.legend(list(found), 4, 14) + 14
    x = Scale(ticks[0], ticks[-1], left, WIDTH - 44)
    canvas.height = top + len(shots) * (len(found) * line + 12) + 36
    for tick in ticks:
        canvas.line(x(tick), top, x(tick), canvas.height - 36, "grid")
        canvas.text(x(tick), canvas.height - 20, f"{tick:g}", "small", "middle")
    y = top + 4
    for shot in shots:
        canvas.text(4, y + (len(found) * line) / 2 + 5, shot, "ink strong")
        for series, (name, top1) in enumerate(found.items()):
            y += line
            if shot not in top1:
                continue
            part = top1[shot]
            low, high = x(100 * part.low), x(100 * part.high)
            said = f"{name}, {shot}: {100 * part.value:.1f} % ({100 * part.low:.1f} to {100 * part.high:.1f})"
            canvas.line(low, y - 5, high, y - 5, f"whisker s{series}", said)
            canvas.mark(series, x(100 * part.value), y - 5, title=said)
            canvas.text(high + 8, y - 1, f"{100 * part.value:.1f}", "small")
        y += 12
        canvas.line(4, y - 4, WIDTH - 4, y - 4, "grid")
    canvas.text(
        (left + WIDTH - 44) / 2, canvas.height - 4, "top-1 accuracy, % (95 % interval)", "small", "middle"
    )
    return canvas.chart(
        "Top-1 accuracy by class size with 95 % intervals; the table below has the same numbers."
    )


def gain_chart(groups: Sequence[GroupGain], against: str) -> Chart:
    """Gain over another row, a bar a group of classes, the largest classes left."""
    values = [100 * g.gain.value for g in groups]
    spans = [100 * v for g in groups for v in (g.gain.low, g.gain.high)]
    ticks = nice_ticks(min(0.0, *values, *spans), max(0.0, *values, *spans))
    canvas = Canvas(290)
    left, right, top, bottom = 36.0, WIDTH - 6, 40.0, 236.0
    y = Scale(ticks[0], ticks[-1], bottom, top)
    step = (right - left) / len(groups)
    for tick in ticks:
        canvas.line(left, y(tick), right, y(tick), "axis" if abs(tick) < 1e-9 else "grid")
        canvas.text(left - 5, y(tick) + 4, f"{tick:+g}" if tick else "0", "small", "end")
    for number, (group, value) in enumerate(zip(groups, values, strict=True)):
        x = left + number * step
        said = _group_said(group)
        wide = min(step * 0.8, 34)
        place = (x + (step - wide) / 2, min(y(value), y(0)), wide, abs(y(value) - y(0)))
        canvas.rect(*place, "bar up" if value >= 0 else "bar down", said)
        middle = x + step / 2
        canvas.line(middle, y(100 * group.gain.low), middle, y(100 * group.gain.high), "error", said)
    _shot_labels(canvas, groups, left, step, top, bottom)
    canvas.text(
        (left + right) / 2, 284, "training images of a class, largest classes left", "small", "middle"
    )
    return canvas.chart(
        f"Gain in points of accuracy over {against}, classes ordered by falling size, {len(groups)} bars with 95 % "
        "intervals."
    )


def _group_said(group: GroupGain) -> str:
    who = group.first if group.classes == 1 else f"{group.classes} classes, {group.first} to {group.last}"
    gain = group.gain
    return (
        f"{who}: {100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}), "
        f"{group.largest} to {group.smallest} training images, {gain.images} images"
    )


def _shot_labels(
    canvas: Canvas, groups: Sequence[GroupGain], left: float, step: float, top: float, bottom: float
) -> None:
    """Names of the sizes above, their training images below; a line where one ends. Narrow ones take turns in rows."""
    at, free = left, [0.0, 0.0]
    for shot, part in groupby(groups, key=lambda g: g.shot):
        members = list(part)
        end = at + len(members) * step
        if at > left:
            canvas.line(at, top - 26, at, bottom + 8, "divider")
        most, least = members[0].largest, members[-1].smallest
        numbers = f"{most}" if most == least else f"{most}–{least}"
        wide = max(1.2 * text_width(shot), text_width(numbers, 11)) + 8  # the name is bold
        middle = min(max((at + end) / 2, wide / 2), WIDTH - wide / 2)
        row = 0 if middle - wide / 2 >= free[0] else 1
        free[row] = middle + wide / 2
        canvas.text(middle, top - 25 + 15 * row, shot, "ink strong", "middle")
        canvas.text(middle, bottom + 16 + 14 * row, numbers, "small", "middle")
        at = end


def loss_chart(curves: Curves) -> Chart:
    """Means of the loss parts by epoch, each line with its name at its end."""
    canvas = Canvas(240)
    names = list(curves.values)
    room = min(120.0, max(text_width(name) for name in names) + 16)
    every = [v for values in curves.values.values() for v in values]
    logarithmic = min(every) > 0 and max(every) > _WIDE * min(every)
    ticks = log_ticks(min(every), max(every)) if logarithmic else nice_ticks(min(0.0, *every), max(every))
    last = max(curves.epochs)
    left, right, top, bottom = 42.0, WIDTH - room, 12.0, 200.0
    x = Scale(min(1.0, last - 1) if last > 1 else 0.0, last, left, right)
    y = Scale(ticks[0], ticks[-1], bottom, top, logarithmic)
    for tick in ticks:
        canvas.line(left, y(tick), right, y(tick), "grid")
        canvas.text(left - 5, y(tick) + 4, f"{tick:g}", "small", "end")
    for epoch in _epoch_ticks(last):
        canvas.text(x(epoch), bottom + 16, f"{epoch:g}", "small", "middle")
    ends = _apart([y(curves.values[name][-1]) for name in names], 13, top, bottom)
    for series, name in enumerate(names):
        points = [(x(e), y(v)) for e, v in zip(curves.epochs, curves.values[name], strict=True)]
        canvas.curve(points, f"s{series % 5} d{series % 5}")
        step = -(-len(points) // 10)
        for place in {*range(0, len(points), step), len(points) - 1}:
            said = f"{name}, epoch {curves.epochs[place]:g}: {curves.values[name][place]:.3f}"
            canvas.mark(series, points[place][0], points[place][1], 3.2, said)
        canvas.line(points[-1][0] + 5, points[-1][1], right + 11, ends[series], "leader")
        canvas.text(right + 13, ends[series] + 4, fitted(name, room - 13), "ink")
    label = "epoch; logarithmic scale of losses" if logarithmic else "epoch"
    canvas.text((left + right) / 2, 236, label, "small", "middle")
    return canvas.chart(f"{curves.title}: mean loss by epoch of {', '.join(names)}.")


def _epoch_ticks(last: float) -> list[float]:
    if last <= 8:
        return [float(n) for n in range(1, int(last) + 1)]
    return [1.0, *(t for t in nice_ticks(0, last) if 1 < t <= last)]


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near those wanted, in the same order, at least `gap` from each other."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    floor = low
    for i in order:
        placed[i] = floor = max(placed[i], floor)
        floor += gap
    ceiling = max(high, low + gap * (len(order) - 1))
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed


def reliability_chart(rows: Mapping[str, Sequence[ReliabilityBin]], errors: Mapping[str, float]) -> Chart:
    """Accuracy by confidence: on the diagonal a probability means what it says. Below: how sure the first row is."""
    canvas = Canvas(400)
    left, right, top = 42.0, WIDTH - 10, 14.0
    names = [f"{name}, ECE {100 * errors[name]:.1f}" for name in rows]
    top = canvas.legend(names, 4, 14) + 14
    bottom, floor = top + 250, top + 310
    canvas.height = floor + 40
    x, y = Scale(0, 100, left, right), Scale(0, 100, bottom, top)
    for tick in (0, 20, 40, 60, 80, 100):
        canvas.line(left, y(tick), right, y(tick), "grid")
        canvas.text(left - 5, y(tick) + 4, str(tick), "small", "end")
        canvas.text(x(tick), floor + 16, str(tick), "small", "middle")
    canvas.line(x(0), y(0), x(100), y(100), "ideal")
    for series, (name, found) in enumerate(rows.items()):
        points = [(x(100 * b.confidence), y(100 * b.accuracy)) for b in found]
        canvas.curve(points, f"s{series} d{series}")
        for (px, py), part in zip(points, found, strict=True):
            said = f"{name}: {part.images} images, {100 * part.confidence:.0f} % sure, "
            said += f"{100 * part.accuracy:.0f} % right"
            canvas.mark(series, px, py, 3.6, said)
    first = next(iter(rows.values()))
    most = max(b.images for b in first)
    for part in first:
        tall = 40 * part.images / most
        canvas.rect(x(100 * part.confidence) - 6, floor - tall, 12, tall, "bar up", f"{part.images} images")
    canvas.line(left, floor, right, floor, "axis")
    canvas.text(left, floor - 46, f"images of {next(iter(rows))} (tallest: {most:,})", "small")
    canvas.text((left + right) / 2, floor + 34, "confidence, %", "small", "middle")
    canvas.text(left + 4, top - 2 + 14, "right, %", "small")
    return canvas.chart("Accuracy by confidence of the answer, with the number of images below.")
