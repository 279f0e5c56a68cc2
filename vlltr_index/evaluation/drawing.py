"""Charts as lists of SVG shapes: geometry here, colours and dashes in the page's style sheet, by class.

Charts are 400 units wide with text of 12, so that they can be read at the width of a phone. Nothing here is markup:
the page's template writes the elements, and escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["WIDTH", "Canvas", "Chart", "Scale", "Shape", "fitted", "log_ticks", "nice_ticks", "text_width"]

WIDTH = 400.0
_LETTER = 6.3  # mean width of a letter at size 12
_MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, slots=True)
class Shape:
    """One SVG element; `title` is what a pointer over it shows."""

    tag: str
    attributes: dict[str, str | float]
    text: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing and what it shows in words, for those who do not see it."""

    width: float
    height: float
    description: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from values to places, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` stands."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)


@dataclass
class Canvas:
    """Collects shapes; coordinates are rounded to a tenth."""

    height: float
    width: float = WIDTH
    shapes: list[Shape] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> None:
        """A straight line."""
        self._add("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind}, title=title)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        """A rectangle."""
        place = {"x": x, "y": y, "width": max(width, 0.5), "height": max(height, 0.5)}
        self._add("rect", {**place, "class": kind}, title=title)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """A text whose baseline is `y`."""
        self._add("text", {"x": x, "y": y, "class": kind, "text-anchor": anchor}, text)

    def curve(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._add("path", {"d": path, "class": f"curve {kind}"})

    def mark(self, series: int, x: float, y: float, size: float = 4.0, title: str = "") -> None:
        """The mark of a series: its shape tells it as well as its colour."""
        kind = f"mark s{series}"
        match _MARKS[series % len(_MARKS)]:
            case "circle":
                self._add("circle", {"cx": x, "cy": y, "r": size, "class": kind}, title=title)
            case "square":
                self.rect(x - size, y - size, 2 * size, 2 * size, kind, title)
            case "triangle":
                top, side = size * 1.25, size * 1.15
                path = f"M{x:.1f} {y - top:.1f}l{side:.1f} {2 * size:.1f}h{-2 * side:.1f}z"
                self._add("path", {"d": path, "class": kind}, title=title)
            case _:
                r = size * 1.3
                path = f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
                self._add("path", {"d": path, "class": kind}, title=title)

    def legend(self, names: Sequence[str], x: float, y: float) -> float:
        """Marks with names, in rows from `y` down; returns where the last row stands."""
        left = x
        for series, name in enumerate(names):
            wide = 16 + text_width(name) + 14
            if left > x and left + wide > self.width + 10:
                left, y = x, y + 17
            self.mark(series, left + 5, y - 4)
            self.text(left + 14, y, fitted(name, self.width - left - 14), "ink")
            left += wide
        return y

    def chart(self, description: str) -> Chart:
        """What was drawn."""
        return Chart(self.width, self.height, description, tuple(self.shapes))

    def _add(self, tag: str, attributes: dict[str, str | float], text: str = "", title: str = "") -> None:
        rounded = {k: round(v, 1) if isinstance(v, float) else v for k, v in attributes.items() if v != ""}
        self.shapes.append(Shape(tag, rounded, text, title))


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a text is."""
    return len(text) * _LETTER * size / 12


def fitted(text: str, width: float, size: float = 12.0) -> str:
    """`text`, cut with an ellipsis where it is wider."""
    letters = max(1, int(width / (_LETTER * size / 12)))
    return text if len(text) <= letters else text[: max(1, letters - 1)].rstrip() + "…"


def log_ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives times powers of ten that cover `low` to `high`, both positive; powers alone if many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in every]
    below = [t for t in ticks if t <= low * (1 + 1e-9)]
    above = [t for t in ticks if t >= high * (1 - 1e-9)]
    return [t for t in ticks if below[-1] <= t <= above[0]]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover `low` to `high`, both ends included."""
    span = high - low if high > low else max(abs(high), 1.0)
    step = 10 ** math.floor(math.log10(span / about))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]
