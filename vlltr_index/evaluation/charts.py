"""The four charts of the report, as lists of SVG shapes; the page's style sheet gives colours to their classes.

Charts are 400 units wide with text of size 12, so that they are legible at the width of a phone. The shapes are no
markup: the page's template writes the elements, and escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from vlltr_index.evaluation.metrics import AccuracyReport, ReliabilityBin
from vlltr_index.evaluation.records import Curves, GroupGain
from vlltr_index.wording import plural

_WIDTH = 400.0
_LETTER = 6.3  # mean width of a letter at size 12
_WIDE = 8.0  # ratio of losses above which the scale is logarithmic
_Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Shape:
    """An SVG element; `title` is its tooltip."""

    tag: str
    attributes: dict[str, str | float]
    text: str = ""
    title: str = ""


@dataclass
class Chart:
    """A drawing, with a description for screen readers; coordinates are rounded to a tenth."""

    description: str
    height: float
    width: float = _WIDTH
    shapes: list[Shape] = field(default_factory=list)

    def add(self, tag: str, kind: str, text: str = "", title: str = "", **attributes: str | float) -> None:
        """Add a shape with the CSS class `kind`."""
        values: dict[str, str | float] = {}
        for name, value in attributes.items():
            values[name.replace("_", "-")] = round(value, 1) if isinstance(value, float) else value
        if kind:
            values["class"] = kind
        self.shapes.append(Shape(tag, values, text, title))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> None:
        """Add a straight line."""
        self.add("line", kind, title=title, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Add a text with the baseline `y`."""
        self.add("text", kind, text, x=x, y=y, text_anchor=anchor)

    def bar(self, x: float, y: float, width: float, height: float, kind: str, title: str) -> None:
        """Add a rectangle."""
        self.add("rect", f"bar {kind}", title=title, x=x, y=y, width=max(width, 0.5), height=max(height, 0.5))

    def curve(self, series: int, points: Sequence[tuple[float, float]]) -> None:
        """Add a line through points."""
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.add("path", f"curve s{series} d{series}", d=path)

    def mark(self, series: int, at: tuple[float, float], size: float = 4.0, title: str = "") -> None:
        """Add the mark of a series, which has its own shape (circle, square, triangle, diamond) beside its colour."""
        x, y = at
        top = size * 1.25
        side = size * 1.15
        r = size * 1.3
        path = (
            f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z",
            f"M{x - size:.1f} {y - size:.1f}h{2 * size}v{2 * size}h{-2 * size}z",
            f"M{x:.1f} {y - top:.1f}l{side:.1f} {2 * size:.1f}h{-2 * side:.1f}z",
            f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z",
        )[series % 4]
        self.add("path", f"mark s{series}", title=title, d=path)

    def legend(self, names: Sequence[str], x: float = 4, y: float = 14) -> float:
        """Add a legend, in rows from `y` down; return the baseline of the last row."""
        left = x
        for series, name in enumerate(names):
            wide = 30 + _text_width(name)
            if left > x and left + wide > self.width + 10:
                left = x
                y = y + 17
            self.mark(series, (left + 5, y - 4))
            self.text(left + 14, y, _fitted(name, self.width - left - 14), "ink")
            left += wide
        return y

    def rows(
        self, y: _Scale, ticks: Sequence[float], left: float, right: float, signed: bool = False
    ) -> None:
        """Add horizontal lines with their values on the left; with `signed`, the line at zero is the axis."""
        for tick in ticks:
            axis = signed and abs(tick) < 1e-9
            self.line(left, y(tick), right, y2=y(tick), kind="axis" if axis else "grid")
            label = f"{tick:+g}" if signed and tick else f"{tick:g}"
            self.text(left - 5, y(tick) + 4, label, kind="small", anchor="end")


def accuracy_chart(rows: Mapping[str, AccuracyReport]) -> Chart:
    """Draw the top-1 accuracy of a few rows by class size, with values and 95 % intervals."""
    found = {name: row.top1 for name, row in rows.items()}
    shots = list(next(iter(found.values())))
    every = [interval for top1 in found.values() for interval in top1.values()]
    ticks = _nice_ticks(100 * min(i.low for i in every), min(100.0, 100 * max(i.high for i in every)))
    line = 15.0
    left = 66.0
    right = _WIDTH - 44
    chart = Chart(
        "Top-1 accuracy by class size with 95 % intervals; the table below has the same numbers.", 0
    )
    y = chart.legend(list(found)) + 14
    bottom = y + len(shots) * (len(found) * line + 12)
    chart.height = bottom + 36
    x = _scale(ticks[0], ticks[-1], left, right)
    for tick in ticks:
        chart.line(x(tick), y, x(tick), y2=bottom, kind="grid")
        chart.text(x(tick), bottom + 16, f"{tick:g}", kind="small", anchor="middle")
    y += 4
    for shot in shots:
        chart.text(4, y + (len(found) * line) / 2 + 5, shot, "ink strong")
        for series, (name, top1) in enumerate(found.items()):
            y += line
            if shot in top1:
                value = 100 * top1[shot].value
                low = 100 * top1[shot].low
                high = 100 * top1[shot].high
                label = f"{name}, {shot}: {value:.1f} % ({low:.1f} to {high:.1f})"
                chart.line(x(low), y - 5, x(high), y2=y - 5, kind=f"whisker s{series}", title=label)
                chart.mark(series, (x(value), y - 5), title=label)
                chart.text(x(high) + 8, y - 1, f"{value:.1f}", "small")
        y += 12
        chart.line(4, y - 4, _WIDTH - 4, y2=y - 4, kind="grid")
    chart.text(
        (left + right) / 2, bottom + 32, "top-1 accuracy, % (95 % interval)", kind="small", anchor="middle"
    )
    return chart


def gain_chart(groups: Sequence[GroupGain], against: str) -> Chart:
    """Draw the gain over another row, with one bar per group of classes, the largest classes on the left."""
    spans = [100 * v for g in groups for v in (g.gain.value, g.gain.low, g.gain.high)]
    ticks = _nice_ticks(min(0.0, *spans), max(0.0, *spans))
    chart = Chart(
        f"Gain in points of accuracy over {against}, classes ordered by falling size, {len(groups)} bars with 95 % "
        "intervals.",
        290,
    )
    left = 36.0
    right = _WIDTH - 6
    top = 40.0
    bottom = 236.0
    y = _scale(ticks[0], ticks[-1], bottom, top)
    step = (right - left) / len(groups)
    wide = min(step * 0.8, 34)
    chart.rows(y, ticks, left, right, signed=True)
    for number, group in enumerate(groups):
        middle = left + (number + 0.5) * step
        value = 100 * group.gain.value
        low = 100 * group.gain.low
        high = 100 * group.gain.high
        who = group.first if group.classes == 1 else f"{group.classes} classes, {group.first} to {group.last}"
        label = (
            f"{who}: {value:+.1f} points ({low:+.1f} to {high:+.1f}), "
            f"{group.largest} to {group.smallest} training images, {plural(group.gain.images, 'image')}"
        )
        chart.bar(
            x=middle - wide / 2,
            y=min(y(value), y(0)),
            width=wide,
            height=abs(y(value) - y(0)),
            kind="up" if value >= 0 else "down",
            title=label,
        )
        chart.line(middle, y(low), middle, y2=y(high), kind="error", title=label)
    _shot_labels(chart, groups, left, step=step, top=top, bottom=bottom)
    chart.text(
        (left + right) / 2,
        284,
        "training images of a class, largest classes left",
        kind="small",
        anchor="middle",
    )
    return chart


def _shot_labels(
    chart: Chart, groups: Sequence[GroupGain], left: float, step: float, top: float, bottom: float
) -> None:
    """Add names of sizes above and training images below, with dividers; narrow ones alternate between two rows."""
    at = left
    free = [0.0, 0.0]
    for shot, part in groupby(groups, key=lambda g: g.shot):
        members = list(part)
        end = at + len(members) * step
        if at > left:
            chart.line(at, top - 26, at, y2=bottom + 8, kind="divider")
        most = members[0].largest
        least = members[-1].smallest
        numbers = f"{most}" if most == least else f"{most}–{least}"
        wide = max(1.2 * _text_width(shot), _text_width(numbers, 11)) + 8  # the name is bold
        middle = min(max((at + end) / 2, wide / 2), _WIDTH - wide / 2)
        row = 0 if middle - wide / 2 >= free[0] else 1
        free[row] = middle + wide / 2
        chart.text(middle, top - 25 + 15 * row, shot, kind="ink strong", anchor="middle")
        chart.text(middle, bottom + 16 + 14 * row, numbers, kind="small", anchor="middle")
        at = end


def loss_chart(curves: Curves) -> Chart:
    """Draw the means of the loss parts by epoch, with the name of each line at its end."""
    names = list(curves.values)
    last = max(curves.epochs)
    chart = Chart(f"{curves.title}: mean loss by epoch of {', '.join(names)}.", 240)
    room = min(120.0, max(map(_text_width, names)) + 16)
    every = [v for values in curves.values.values() for v in values]
    logarithmic = min(every) > 0 and max(every) > _WIDE * min(every)
    ticks = _log_ticks(min(every), max(every)) if logarithmic else _nice_ticks(min(0.0, *every), max(every))
    left = 42.0
    right = _WIDTH - room
    top = 12.0
    bottom = 200.0
    x = _scale(min(1.0, last - 1) if last > 1 else 0.0, last, left, right)
    y = _scale(ticks[0], ticks[-1], bottom, end=top, logarithmic=logarithmic)
    chart.rows(y, ticks, left, right)
    epochs: list[float] = list(range(1, int(last) + 1))
    if last > 8:
        epochs = [1, *(t for t in _nice_ticks(0, last) if 1 < t <= last)]
    for epoch in epochs:
        chart.text(x(epoch), bottom + 16, f"{epoch:g}", kind="small", anchor="middle")
    ends = _apart([y(curves.values[name][-1]) for name in names], 13, top, bottom)
    for series, (name, end) in enumerate(zip(names, ends, strict=True)):
        points = [(x(e), y(v)) for e, v in zip(curves.epochs, curves.values[name], strict=True)]
        chart.curve(series % 5, points)
        for place in {*range(0, len(points), -(-len(points) // 10)), len(points) - 1}:
            label = f"{name}, epoch {curves.epochs[place]:g}: {curves.values[name][place]:.3f}"
            chart.mark(series, points[place], 3.2, label)
        chart.line(points[-1][0] + 5, points[-1][1], right + 11, y2=end, kind="leader")
        chart.text(right + 13, end + 4, _fitted(name, room - 13), "ink")
    label = "epoch; logarithmic scale of losses" if logarithmic else "epoch"
    chart.text((left + right) / 2, 236, label, kind="small", anchor="middle")
    return chart


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as possible, in the same order, so that they are at least `gap` apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    ceiling = max(high, low + gap * (len(order) - 1))
    for i in order:
        placed[i] = max(placed[i], low)
        low = placed[i] + gap
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def reliability_chart(rows: Mapping[str, Sequence[ReliabilityBin]], errors: Mapping[str, float]) -> Chart:
    """Draw the accuracy by confidence, with the ideal diagonal, and below a histogram of the first row's confidence."""
    chart = Chart("Accuracy by confidence of the answer, with the number of images below.", 0)
    left = 42.0
    right = _WIDTH - 10
    named = [f"{name}, ECE {100 * errors[name]:.1f}" if name in errors else name for name in rows]
    top = chart.legend(named) + 14
    bottom = top + 250
    floor = top + 310
    chart.height = floor + 40
    x = _scale(0, 100, left, right)
    y = _scale(0, 100, bottom, top)
    ticks = range(0, 101, 20)
    chart.rows(y, ticks, left, right)
    for tick in ticks:
        chart.text(x(tick), floor + 16, str(tick), kind="small", anchor="middle")
    chart.line(x(0), y(0), x(100), y2=y(100), kind="ideal")
    for series, (name, found) in enumerate(rows.items()):
        points = [(x(100 * b.confidence), y(100 * b.accuracy)) for b in found]
        chart.curve(series, points)
        for point, b in zip(points, found, strict=True):
            shares = f"{100 * b.confidence:.0f} % sure, {100 * b.accuracy:.0f} % right"
            label = f"{name}: {shares} ({plural(b.images, 'image')})"
            chart.mark(series, point, 3.6, label)
    name, first = next(iter(rows.items()))
    most = max(b.images for b in first)
    for b in first:
        tall = 40 * b.images / most
        chart.bar(
            x(100 * b.confidence) - 6,
            floor - tall,
            12,
            height=tall,
            kind="up",
            title=plural(b.images, "image"),
        )
    chart.line(left, floor, right, y2=floor, kind="axis")
    chart.text(left, floor - 46, f"images of {name} (tallest: {most:,})", "small")
    chart.text((left + right) / 2, floor + 34, "confidence, %", kind="small", anchor="middle")
    chart.text(left + 4, top + 12, "right, %", "small")
    return chart


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool = False) -> _Scale:
    """Make a map from values to positions, linear or logarithmic."""
    by: _Scale = math.log if logarithmic else float
    span = (by(high) - by(low)) or 1.0
    return lambda value: start + (by(value) - by(low)) / span * (end - start)


def _text_width(text: str, size: float = 12.0) -> float:
    """Estimate the width of a text."""
    return len(text) * _LETTER * size / 12


def _fitted(text: str, width: float) -> str:
    """Return the text, cut with an ellipsis if it is wider than `width`."""
    letters = max(1, int(width / _LETTER))
    return text if len(text) <= letters else text[: max(1, letters - 1)].rstrip() + "…"


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, for small ranges also times 2 and 5, that cover `low` to `high`, both positive."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    every = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in every]
    below = [t for t in ticks if t <= low * (1 + 1e-9)]
    above = [t for t in ticks if t >= high * (1 - 1e-9)]
    return [t for t in ticks if below[-1] <= t <= above[0]]


def _nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers that cover `low` to `high`, both ends included."""
    span = high - low if high > low else max(abs(high), 1.0)
    step: float = 10 ** math.floor(math.log10(span / 5))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]
