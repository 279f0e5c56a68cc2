"""The table of `benchmarks.new_classes`, from its committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import put

__all__ = ["generated", "write"]

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m benchmarks.new_classes table"
GROUPS = {"dev": "100 for development", "final": "100 for final figures"}
ORDER = (
    "text",
    "name",
    "random words",
    "1 image",
    "text + 1 image",
    "random words + 1 image",
    "5 images",
    "text + 5 images",
    "random words + 5 images",
    "text + 5 images, refit",
    "text prototypes",
    "imprinting alone, 1 image",
    "imprinting alone, 5 images",
    "Tip-Adapter, 1 image",
    "Tip-Adapter, 5 images",
)


def write() -> None:
    """Write the generated part of docs/results.md."""
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("new_classes-*.json"))]
    put(COMMAND, "Glyphs-LT: new classes from text and images", generated(runs))


def generated(runs: Sequence[dict[str, Any]]) -> str:
    """A table for each group: top-1 and top-5 of the new classes among all, and what the old ones have left."""
    parts = []
    for group, label in GROUPS.items():
        mine = [run for run in runs if run["group"] == group]
        if mine:
            parts.append(_table(mine, label))
    return "\n".join(parts)


def _table(runs: Sequence[dict[str, Any]], label: str) -> str:
    first = runs[0]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    before = float(np.mean([_share(run["old_before"]) for run in runs]))
    lines = [
        f"**{label}**, added at once to the trained workspace; data set `{first['dataset'][:16]}`, seeds {seeds}, torch"
        f" {first['versions']['torch']}, {first['machine']['threads']} thread. Top-1 and top-5 in per cent among all"
        f" classes, mean over seeds and draws of the images, with the draws' range; the old classes have"
        f" {100 * before:.1f} before.",
        "",
        "| known of each class | top-1 | top-5 | old classes beside them | change |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in ORDER:
        lines += _line(runs, row, before)
    return "\n".join(lines) + "\n"


def _line(runs: Sequence[dict[str, Any]], row: str, before: float) -> list[str]:
    values: list[list[float]] = []
    for run in runs:
        values += [
            [_share(bits[key]) for key in ("right", "top5", "old")]
            for name, bits in run["rows"].items()
            if re.sub(r", draw \d+", "", name) == row
        ]
    if not values:
        return []
    right, top5, old = np.mean(values, axis=0)
    shown = f"{100 * right:.1f}"
    if len(values) > 1:
        ones = [v[0] for v in values]
        shown += f" ({100 * min(ones):.1f}-{100 * max(ones):.1f})"
    return [f"| {row} | {shown} | {100 * top5:.1f} | {100 * old:.1f} | {100 * (old - before):+.1f} |"]


def _share(bits: str) -> float:
    return bits.count("1") / len(bits)
