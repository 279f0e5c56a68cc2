"""The table of how honest the figure is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.kept import read

_MISS = 2 / 0.05  # what a point outside of a 95 % interval costs in its score (Gneiting and Raftery 2007)


def parts() -> Mapping[str, str]:
    """Return the part of the page."""
    kinds = read("honest_figure")
    if not kinds:
        return {}
    lines = [
        "Of each draw the figure of `fit`, less the accuracy on new units, in points: mean and its 95 % interval."
        " *Covered*: intervals that hold the accuracy of the folds' own models. *Score*: the interval score in points,"
        " less is better; beside it that of a plain bootstrap over pictures. *Units*: found, of 100 that there are.",
        "",
        "| collection | draws | accuracy | less the folds' own, a picture | a class | less the final model's, a picture"
        " | covered, a picture | a class | score | bootstrap: covered | score | units |",
        "|" + " --- |" * 12,
    ]
    return {
        "results/honest_figure.md": "\n".join(lines + [_line(name, kinds[name]) for name in kinds]) + "\n"
    }


def _line(name: str, kind: Mapping[str, Any]) -> str:
    draws = list(kind["draws"].values())
    picture = np.array([one["picture"] for one in draws])
    alike = np.array([one["class"] for one in draws])
    folds = np.array([one["truth of folds"] for one in draws])
    final = np.array([one["truth of final"] for one in draws])
    found = sum(one["units found"] for one in draws) / sum(one["units"] for one in draws)
    cells = [
        name,
        f"{len(draws)}",
        f"{100 * picture[:, 0].mean():.1f}",
        _bias(picture[:, 0] - folds[:, 0]),
        _bias(alike[:, 0] - folds[:, 1]),
        _bias(picture[:, 0] - final[:, 0]),
        _covered(picture[:, 1:3], folds[:, 0]),
        _covered(alike[:, 1:3], folds[:, 1]),
        _score(picture[:, 1:3], folds[:, 0]),
        _covered(picture[:, 3:5], folds[:, 0]),
        _score(picture[:, 3:5], folds[:, 0]),
        f"{100 * found:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _bias(errors: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    spread = 1.96 * errors.std(ddof=1) / len(errors) ** 0.5
    return f"{100 * errors.mean():+.1f} ± {100 * spread:.1f}"


def _covered(ends: Sequence[Any], truth: Sequence[Any]) -> str:
    low, high = np.array(ends).T
    return f"{100 * ((low <= truth) & (truth <= high)).mean():.0f} %"


def _score(ends: Sequence[Any], truth: Sequence[Any]) -> str:
    low, high = np.array(ends).T
    score = high - low + _MISS * ((low - truth).clip(0) + (truth - high).clip(0))
    return f"{100 * score.mean():.1f}"
