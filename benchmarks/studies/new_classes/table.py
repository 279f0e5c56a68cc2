"""The table of `new_classes`, from its kept results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.datasets.files import DATA
from benchmarks.intervals import clustered
from benchmarks.studies.paired import Bits, unpack
from benchmarks.studies.workspaces import by_data
from benchmarks.study import Results, table

__all__ = ["frozen_name", "page"]

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


def page(results: Results) -> str:
    """Return the tables of the data sets that were measured."""
    tables = {}
    for data in DATA:
        found = [result for unit, result in results.items() if unit.startswith(f"{data}/")]
        runs = [result for result in found if "rows" in result]
        if runs:
            tables[data] = _generated(runs, [result for result in found if "row" in result])
        frozen = [result for unit, result in results.items() if unit.startswith(f"{frozen_name(data)}/")]
        if frozen:
            told = f"### The shipped encoder as it is, no stage 1\n\n{_generated(frozen)}"
            tables[data] = "\n".join([tables[data], told] if data in tables else [told])
    return by_data(tables)


def frozen_name(data: str) -> str:
    """Return the first part of the names of results beside an encoder that no stage 1 trained."""
    return f"{data}-frozen"


def _generated(runs: Sequence[Result], oracles: Sequence[Result] = ()) -> str:
    """Return the figures of the final classes (until then, of those for development), and of the old ones."""
    group = next(group for group in GROUPS if any(run["group"] == group for run in runs))
    mine, theirs = ([one for one in some if one["group"] == group] for some in (runs, oracles))
    return _table(mine, theirs, f"{len(set(mine[0]['labels']))} {GROUPS[group]}")


def _table(runs: Sequence[Result], oracles: Sequence[Result], label: str) -> str:
    first = runs[0]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    before = float(np.mean([run["old_before"] / run["old_images"] for run in runs]))
    lines = [
        f"**{label}**, added at once; data set `{first['dataset'][:16]}`, seeds {seeds}, torch"
        f" {first['versions']['torch']}, {first['machine']['threads']} thread. Per cent among all classes, mean over"
        f" seeds and draws of the images (range of the draws); the old classes have {100 * before:.1f} before.",
        "",
    ]
    named = {
        row: [_figures(run, r) for run in runs for r in _draws(run["rows"], row).values()] for row in ORDER
    }
    for one in oracles:
        name = f"oracle, seed {one['seed']}: trained with them, {ORACLE[one['images']]}"
        named[name] = [_figures(one, one["row"])]
    head = ["known of each class", "top-1", "top-5", "old classes beside them", "change"]
    lines += table(head, [_line(name, values, before) for name, values in named.items() if values])
    return "\n".join([*lines, *_oracle_gaps(runs, oracles), *_gains(runs)]) + "\n"


def _draws(rows: dict[str, Any], name: str) -> dict[str, Any]:
    return {label: row for label, row in rows.items() if re.sub(r", draw \d+", "", label) == name}


def _right(run: Result, row: Result, key: str = "right") -> Bits:
    return unpack(row[key], len(run["labels"]))


def _figures(run: Result, row: Result) -> list[float]:
    """Return the shares of new images that are right and in the top five, and of old ones that are right."""
    return [float(_right(run, row).mean()), row["top5"], row["old"] / run["old_images"]]


def _line(name: str, values: Sequence[Sequence[float]], before: float) -> list[str]:
    right, top5, old = np.mean(values, axis=0)
    shown = f"{100 * right:.1f}"
    if len(values) > 1:
        ones = [v[0] for v in values]
        shown += f" ({100 * min(ones):.1f}-{100 * max(ones):.1f})"
    return [name, shown, f"{100 * top5:.1f}", f"{100 * old:.1f}", f"{100 * (old - before):+.1f}"]


def _oracle_gaps(runs: Sequence[Result], oracles: Sequence[Result]) -> list[str]:
    """Return what is lost against a model that was trained with the same images."""
    lines = []
    for one in oracles:
        same = [run for run in runs if run["seed"] == one["seed"]]
        row = _draws(same[0]["rows"], ORACLE[one["images"]]) if same else {}
        mine = next((r for label, r in row.items() if label.endswith("draw 0")), None)
        if mine is not None:
            gap = clustered(_right(same[0], mine) - _right(one, one["row"]), np.asarray(one["labels"]))
            lines.append(
                f"- {ORACLE[one['images']]} less the oracle, seed {one['seed']}, the same images: {gap.shown()}."
            )
    return ["", *lines] if lines else []


def _gains(runs: Sequence[Result]) -> list[str]:
    """Return each row beside the method before, the old classes losing as many images as they did then."""
    rows = []
    labels = np.asarray(runs[0]["labels"])
    for name in ("text", "text + 1 image", "text + 5 images"):
        now = []
        then = []
        lost = []
        for run in runs:
            for label, row in _draws(run["before"].get("rows", {}), name).items():
                now.append(_right(run, run["rows"][label], "right_at_equal_loss"))
                then.append(_right(run, row))
                lost.append((run["before"]["old_before"] - row["old"]) / run["old_images"])
        if now:
            gap = clustered(np.mean(now, axis=0) - np.mean(then, axis=0), labels)
            means = [f"{100 * np.mean(values):.1f}" for values in (lost, then, now)]
            rows.append([name, *means, gap.shown()])
    if not rows:
        return []
    commit = runs[0]["before"].get("commit", "710832f")
    return [
        "",
        f"Beside the method before (commit {commit}), the old classes losing as much; top-1 of the new classes, and the"
        " paired gain with its 95 % interval:",
        "",
        *table(["known of each class", "old classes lose", "before", "now", "gain"], rows),
    ]
