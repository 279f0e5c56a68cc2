"""Growth: what each step costs as classes, sentences and images become more.

The exponent is the slope of a line through the costs on logarithmic scales: 1 is proportional, 0 is constant. Small
sizes are flattened by fixed costs. The index of the most classes is of kind `ivf`, the others need no building.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.harness import Arrays, Case

COMPETITORS = ("ours",)
_SENTENCES = (1_000, 4_000, 16_000)
_CLASSES = (250, 1_000, 4_000)


def _case(step: str, axis: str, sizes: tuple[int, ...]) -> Case:
    return Case(f"{step} by {axis}", {"step": step, "axis": axis, "sizes": list(sizes)}, rounds=1)


CASES = (
    _case("ingest text", "sentences", _SENTENCES),
    _case("ingest images", "images", (100, 400, 1_600)),
    _case("write vectors", "sentences", (4_000, 16_000, 64_000)),
    _case("select", "sentences", _SENTENCES),
    _case("select", "images", (500, 2_000, 8_000)),
    _case("index", "classes", _CLASSES),
    _case("retrieve one image", "classes", _CLASSES),
    _case("LGR step", "classes", _CLASSES),
    _case("classes add", "classes", (30, 120, 480)),
)


def inputs(values: dict[str, Any]) -> Arrays:
    """Everything is made by the competitor, size by size."""
    return {"seed": np.zeros(1, dtype=np.int64)}


def agree(case: Case, answers: dict[str, Arrays]) -> dict[str, float]:
    """There is nothing to compare with."""
    return {}


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def part(kept: Mapping[str, Any]) -> list[str]:
    """The table for the page."""
    lines = ["| step | by | sizes | processor seconds | exponent |", "|" + " --- |" * 5]
    for case in CASES:
        if case.name in kept:
            row = kept[case.name]["rows"]["ours"]
            values = case.values
            sizes = ", ".join(f"{n:,}" for n in values["sizes"])
            seconds = ", ".join(f"{s:.3g}" for s in row["each"])
            slope = exponent(values["sizes"], row["each"])
            lines.append(f"| {values['step']} | {values['axis']} | {sizes} | {seconds} | {slope:.2f} |")
    return [*lines, ""]


def draw(kept: Mapping[str, Any], path: Path) -> None:
    """Cost against size, both logarithmic, one small plot for each thing that grows."""
    from matplotlib import pyplot

    axes_of = ("classes", "sentences", "images")
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
    for axis, what in zip(axes, axes_of, strict=True):
        shown = [c for c in CASES if c.values["axis"] == what and c.name in kept]
        for number, case in enumerate(shown):
            row = kept[case.name]["rows"]["ours"]
            sizes = case.values["sizes"]
            each = row["each"]
            label = f"{case.values['step']}: {exponent(sizes, each):.2f}"
            axis.plot(sizes, each, marker="osD^v"[number], label=label, linewidth=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(what)
        if shown:
            axis.legend(fontsize=7)
    axes[0].set_ylabel("processor seconds")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
