"""The table of how honest the figure is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.kept import read
from vlltr_index.evaluation.metrics import accuracy_report

_RESAMPLES = 2000
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
    figures = [_figures(one["answers"]) for one in draws]
    picture, alike, bootstrap = (np.array(rows) for rows in zip(*figures, strict=True))
    folds = np.array([one["truth of folds"] for one in draws])
    final = np.array([one["truth of final"] for one in draws])
    found = sum(len({unit for unit, *_ in one["answers"]}) for one in draws)
    cells = [
        name,
        f"{len(draws)}",
        f"{100 * picture[:, 0].mean():.1f}",
        _bias(picture[:, 0] - folds[:, 0]),
        _bias(alike[:, 0] - folds[:, 1]),
        _bias(picture[:, 0] - final[:, 0]),
        _covered(picture[:, 1:], folds[:, 0]),
        _covered(alike[:, 1:], folds[:, 1]),
        _score(picture[:, 1:], folds[:, 0]),
        _covered(bootstrap, folds[:, 0]),
        _score(bootstrap, folds[:, 0]),
        f"{100 * found / sum(one['units'] for one in draws):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _figures(answers: Sequence[Sequence[int]]) -> tuple[list[float], list[float], tuple[float, float]]:
    """Return the accuracy a picture and a class with their intervals, and the interval of a plain bootstrap."""
    rows = torch.tensor(answers)
    units, labels, folds, best, _ = rows.repeat_interleave(rows[:, -1], 0).T
    counts = torch.bincount(labels)  # the bins by class size are not looked at
    report = accuracy_report(best, labels, counts, units=units, models=folds)
    by_picture = report.top1["overall"]
    drawn = np.random.default_rng(0).binomial(len(best), by_picture.value, _RESAMPLES) / len(best)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = ([one.value, one.low, one.high] for one in (by_picture, report.balanced))
    return *found, (float(low), float(high))


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
