"""The table of `benchmarks.new_classes`, from its committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.long_tailed import GLYPHS, RESULTS
from benchmarks.long_tailed_table import NAMES, bits, command, shown_gap
from benchmarks.page import put

__all__ = ["generated", "write"]

TITLE = "new classes from text and images"
GROUPS = {"final": "for final figures", "dev": "for development"}
ORDER = (
    "text",
    "name",
    "random words",
    "1 image",
    "text + 1 image",
    "5 images",
    "text + 5 images",
    "text + 5 images, refit",
    "text prototypes",
    "Tip-Adapter, 1 image",
    "Tip-Adapter, 5 images",
)
ORACLE = {1: "text + 1 image", 5: "text + 5 images"}  # what the rows of the oracle are compared with
Result = dict[str, Any]


def write(data: str) -> None:
    """Write the generated part of docs/results.md."""
    pattern = "new_classes-[0-9o]*.json" if data == GLYPHS else f"new_classes-{data}-*.json"
    found = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob(pattern))]
    runs = [result for result in found if "before" in result]
    if not runs:
        raise SystemExit(
            "no results; run: python -m benchmarks.new_classes run --workspace DIR --seed 0 --group dev"
        )
    put(
        command("new_classes", data),
        f"{NAMES[data]}: {TITLE}",
        generated(runs, [result for result in found if "row" in result]),
    )


def generated(runs: Sequence[Result], oracles: Sequence[Result] = ()) -> str:
    """Top-1 and top-5 of the final classes (until then, of those for development), and what the old ones have left."""
    group = next(group for group in GROUPS if any(run["group"] == group for run in runs))
    mine, theirs = ([one for one in some if one["group"] == group] for some in (runs, oracles))
    return _table(mine, theirs, f"{len(set(mine[0]['labels']))} {GROUPS[group]}")


def _table(runs: Sequence[Result], oracles: Sequence[Result], label: str) -> str:
    first = runs[0]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    before = float(np.mean([bits(run["old_before"]).mean() for run in runs]))
    lines = [
        f"**{label}**, added at once; data set `{first['dataset'][:16]}`, seeds {seeds}, torch"
        f" {first['versions']['torch']}, {first['machine']['threads']} thread. Per cent among all classes, mean over"
        f" seeds and draws of the images (range of the draws); the old classes have {100 * before:.1f} before.",
        "",
        "| known of each class | top-1 | top-5 | old classes beside them | change |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in ORDER:
        lines += _line(row, [r for run in runs for r in _draws(run["rows"], row).values()], before)
    for one in oracles:
        lines += _line(
            f"oracle, seed {one['seed']}: trained with them, {ORACLE[one['images']]}", [one["row"]], before
        )
    return "\n".join([*lines, *_oracle_gaps(runs, oracles), *_gains(runs)]) + "\n"


def _draws(rows: dict[str, Any], name: str) -> dict[str, Any]:
    return {label: row for label, row in rows.items() if re.sub(r", draw \d+", "", label) == name}


def _line(name: str, rows: Sequence[Result], before: float) -> list[str]:
    if not rows:
        return []
    values = [[float(bits(row[key]).mean()) for key in ("right", "top5", "old")] for row in rows]
    right, top5, old = np.mean(values, axis=0)
    shown = f"{100 * right:.1f}"
    if len(values) > 1:
        ones = [v[0] for v in values]
        shown += f" ({100 * min(ones):.1f}-{100 * max(ones):.1f})"
    return [f"| {name} | {shown} | {100 * top5:.1f} | {100 * old:.1f} | {100 * (old - before):+.1f} |"]


def _oracle_gaps(runs: Sequence[Result], oracles: Sequence[Result]) -> list[str]:
    """What is lost against a model that was trained with the same images."""
    lines = []
    for one in oracles:
        same = [run for run in runs if run["seed"] == one["seed"]]
        row = _draws(same[0]["rows"], ORACLE[one["images"]]) if same else {}
        mine = next((r for label, r in row.items() if label.endswith("draw 0")), None)
        if mine is not None:
            gap = shown_gap(bits(mine["right"]) - bits(one["row"]["right"]), np.asarray(one["labels"]))
            lines.append(
                f"- {ORACLE[one['images']]} less the oracle, seed {one['seed']}, the same images: {gap}."
            )
    return ["", *lines] if lines else []


def _gains(runs: Sequence[Result]) -> list[str]:
    """Each row beside the method before, the old classes losing as many images as they did then."""
    lines, labels = [], np.asarray(runs[0]["labels"])
    for name in ("text", "text + 1 image", "text + 5 images"):
        now, then, lost = [], [], []
        for run in runs:
            for label, row in _draws(run["before"].get("rows", {}), name).items():
                now.append(bits(run["rows"][label]["right_at_equal_loss"]))
                then.append(bits(row["right"]))
                lost.append(bits(run["before"]["old_before"]).mean() - bits(row["old"]).mean())
        if now:
            gap = shown_gap(np.mean(now, axis=0) - np.mean(then, axis=0), labels)
            cells = [f"{100 * np.mean(lost):.1f}", *(f"{100 * np.mean(v):.1f}" for v in (then, now)), gap]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if not lines:
        return []
    return [
        "",
        "Beside the method before (commit 710832f), the old classes losing as much; top-1 of the new classes, and the"
        " paired gain with its 95 % interval:",
        "",
        "| known of each class | old classes lose | before | now | gain |",
        "| --- | --- | --- | --- | --- |",
        *lines,
    ]
