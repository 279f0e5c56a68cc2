"""What the tables need of a measured draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.studies.side_by_side.worker import METHOD

__all__ = ["MEASURES", "addition", "by_class", "compact", "recall", "recalls"]

MEASURES = ("accuracy", "balanced", "nll", "ece")


def compact(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one side of a draw: of each row its measures, and of each addition three shares."""
    if "failed" in result:
        return {"failed": result["failed"]}
    found: dict[str, Any] = {
        "rows": {
            name: {measure: round(row[measure], 6) for measure in MEASURES if measure in row}
            for name, row in result["rows"].items()
        },
        "seconds": result["seconds"],
    }
    for name in ("known_accepted", "unknown_accepted"):
        if name in result:
            found[name] = result[name]
    if "added" in result:
        existing = result["rows"][METHOD]["classes"]
        found["added"] = {how: addition(existing, one["classes"]) for how, one in result["added"].items()}
    return found


def addition(existing: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return what existing classes lose, the share found of added ones, and balanced accuracy over all.

    Args:
        existing: For each existing class its test images and those recognised, before classes were added.
        after: The same of all classes, afterwards; the added ones come last.
    """
    first = len(existing)
    return {
        "lost": round(recall(existing) - recall(after[:first]), 6),
        "found": round(recall(after[first:]), 6),
        "all": round(recall(after), 6),
    }


def recall(classes: Sequence[Sequence[float]]) -> float:
    """Return the mean share recognised of the classes that have test images."""
    return float(np.mean([row[1] / row[0] for row in classes if row[0]]))


def by_class(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[float]]:
    """Return for each class by name its recall and its mean NLL in a measured row."""
    return {
        name: [round(hits / count, 6), round(nll / count, 6)]
        for name, (count, hits, nll) in zip(names, row["classes"], strict=False)
        if count
    }


def recalls(classes: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, float]:
    """Return the recall of each class that has test images, by name."""
    return {name: round(row[1] / row[0], 6) for name, row in zip(names, classes, strict=False) if row[0]}
