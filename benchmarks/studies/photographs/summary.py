"""From the results of draws to what is kept of a setting: each row's means, and the method's lead over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.intervals import over_classes
from benchmarks.studies.photographs.rules import RULE_NAMES
from benchmarks.studies.side_by_side.driver import AFTER, BEFORE
from benchmarks.studies.side_by_side.figures import MEASURES, addition, by_class
from benchmarks.studies.side_by_side.worker import IMAGE_PART, METHOD, PROTOTYPES
from benchmarks.study import Results

__all__ = [
    "ENCODERS",
    "PERMUTED",
    "PREVIOUS",
    "RANDOM",
    "ROWS",
    "RULES",
    "TEXTS",
    "TRUE",
    "gathered",
    "summary",
    "unit_name",
]

ENCODERS = ("vlltr-photo", "timm:tf_efficientnet_lite0")
RULES = "rules"
"""The side of the baselines."""
TRUE = "true"
TEXTS = {TRUE: "true", "none": "none", "permuted": "swapped", "random": "random"}
"""Kinds of texts, by what `with_texts` calls them."""
PREVIOUS, PERMUTED, RANDOM = "method, previous version", "permuted texts", "random texts"
ROWS = {
    METHOD: (AFTER, TRUE, METHOD),
    PREVIOUS: (BEFORE, TRUE, METHOD),
    IMAGE_PART: (AFTER, TRUE, IMAGE_PART),
    "without text": (AFTER, "none", METHOD),
    PROTOTYPES: (AFTER, TRUE, PROTOTYPES),
    PERMUTED: (AFTER, "permuted", METHOD),
    RANDOM: (AFTER, "random", METHOD),
    **{name: (RULES, TRUE, name) for name in RULE_NAMES},
}
"""Rows of the tables: the side, the texts and the measured row that each comes from."""
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By row and seed: the measures (`row`), processor seconds or None, and added classes by how they were added."""


def unit_name(encoder: str, setting: str, texts: str) -> str:
    """Return the name of a setting in files."""
    return f"{encoder}, {setting}, {texts}"


def gathered(by_side: Mapping[str, Results], encoder: str, setting: str) -> dict[str, Any]:
    """Return the rows of one encoder and setting, each with the draws that the method has, by seed.

    A row that lacks one of these draws, or failed on it, is left out; there is none at all without the method.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row, (side, texts, measured) in ROWS.items():
        unit = by_side[side].get(unit_name(encoder, setting, texts), {"draws": {}})
        for seed, result in unit["draws"].items():
            if measured in result.get("rows", {}):
                rows.setdefault(row, {})[seed] = _one(result, side, measured)
    seeds = sorted(rows.get(METHOD, {}))
    return {
        row: {seed: some[seed] for seed in seeds} for row, some in rows.items() if some.keys() >= set(seeds)
    }


def _one(result: Mapping[str, Any], side: str, measured: str) -> dict[str, Any]:
    row = result["rows"][measured]
    if side == RULES:
        return {"row": row, "seconds": row["seconds"], "added": result["added by rule"].get(measured, {})}
    own = measured == METHOD
    found = {"row": row, "seconds": result["seconds"] if own else None}
    shares = ("known_accepted", "unknown_accepted") if own else ()
    return found | {
        "added": result.get("added", {}) if own else {},
        **{name: result[name] for name in shares if result.get(name) is not None},
    }


def summary(rows: Rows, names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return for each row its mean measures, and the method's lead in balanced accuracy and NLL.

    Args:
        rows: The draws of all are the same, in one order.
        names: The names of the classes of each draw, the added ones last.
    """
    classes = {
        row: [by_class(one["row"], some) for one, some in zip(draws.values(), names, strict=True)]
        for row, draws in rows.items()
    }
    found: dict[str, Any] = {"draws": len(names), "rows": {}}
    for row, draws in rows.items():
        kept: dict[str, Any] = {
            measure: round(fmean(one["row"][measure] for one in draws.values()), 6) for measure in MEASURES
        }
        seconds = [one["seconds"] for one in draws.values() if one["seconds"] is not None]
        kept["seconds"] = round(fmean(seconds), 3) if seconds else None
        kept["ahead"] = _lead(classes[METHOD], classes[row], 0)
        kept["NLL less"] = _lead(classes[METHOD], classes[row], 1)
        for share in ("known_accepted", "unknown_accepted"):
            values = [one[share] for one in draws.values() if share in one]
            if values:
                kept[share] = round(fmean(values), 6)
        found["rows"][row] = kept | {"added": _added(draws), "found": _found(draws, names)}
    return found


_ByClass = Sequence[Mapping[str, Sequence[float]]]


def _lead(method: _ByClass, row: _ByClass, place: int) -> list[float]:
    """Return the mean difference of the method less a row, with its interval."""
    gap = over_classes(
        [
            {name: value[place] - theirs[name][place] for name, value in mine.items()}
            for mine, theirs in zip(method, row, strict=True)
        ]
    )
    return [round(value, 6) for value in (gap.mean, gap.low, gap.high)]


def _added(draws: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return by way of adding: what existing classes lose, at most too, the share found, and all classes' accuracy."""
    each: dict[str, list[dict[str, float]]] = {}
    for one in draws.values():
        for how, after in one["added"].items():
            each.setdefault(how, []).append(addition(one["row"]["classes"], after["classes"]))
    return {
        how: {name: round(fmean(one[name] for one in some), 6) for name in ("lost", "found", "all")}
        | {"worst": max(one["lost"] for one in some), "draws": len(some)}
        for how, some in each.items()
    }


def _found(draws: Mapping[str, Mapping[str, Any]], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return by way of adding the test images of each added class and those found, over the draws that added it."""
    found: dict[str, dict[str, list[int]]] = {}
    for one, some in zip(draws.values(), names, strict=True):
        first = len(one["row"]["classes"])
        for how, after in one["added"].items():
            for name, pair in list(zip(some, after["classes"], strict=False))[first:]:
                total = found.setdefault(how, {}).setdefault(name, [0, 0])
                total[0] += pair[0]
                total[1] += pair[1]
    return found
