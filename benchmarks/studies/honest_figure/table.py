"""The table of how honest the figure is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.kept import read
from vlltr_index.evaluation.metrics import accuracy_report

_RESAMPLES = 2000
_SIZES = {"2 to 3": 3, "4 to 7": 7, "8 to 15": 15, "16 or more": 10**9}
"""Names of the sizes of classes, by their most groups."""
_MISS = 2 / 0.05  # what a point outside of a 95 % interval costs in its score (Gneiting and Raftery 2007)


def parts() -> Mapping[str, str]:
    """Return the part of the page."""
    kinds = read("honest_figure")
    if not kinds:
        return {}
    lines = [
        "Reported accuracy less accuracy on new groups, in points: mean over draws and its 95% interval. The *folds'*"
        " models answered for the reported accuracy; the *final* model is fitted on all images. *Coverage*: share of"
        " 95% intervals that contain the accuracy of the folds' models. *Score*: interval score in points, lower is"
        " better; next to it that of a plain bootstrap over images. *Groups*: found, of 100 that exist.",
        "",
        "| collection | draws | accuracy | less the folds' models | balanced | less the final model | balanced"
        " | coverage | balanced | score | bootstrap: coverage | score | groups |",
        "|" + " --- |" * 13,
    ]
    lines += [_line(name, kinds[name]) for name in kinds]
    return {"results/honest_figure.md": "\n".join([*lines, "", *_by_size(kinds)]) + "\n"}


def _by_size(kinds: Mapping[str, Any]) -> list[str]:
    """Return the table of the bias by the number of groups of a class."""
    biases = dict[
        str, list[list[list[float]]]
    ]()  # by size and draw: of each class, less the folds', less the final
    for kind in kinds.values():
        for draw in kind["draws"].values():
            of_draw = dict[str, list[list[float]]]()
            for size, *bias in _class_biases(draw):
                name = next(name for name, most in _SIZES.items() if size <= most)
                of_draw.setdefault(name, []).append(bias)
            for name, some in of_draw.items():
                biases.setdefault(name, []).append(some)
    lines = [
        "Reported accuracy of a class less its accuracy on new groups, by the number of its groups that"
        " were found, over all collections: mean over draws of the mean over classes, and its 95% interval.",
        "",
        "| groups of the class | classes | less the folds' models | less the final model |",
        "| --- | --- | --- | --- |",
    ]
    for name in _SIZES:
        if name in biases:
            means = np.array([np.mean(some, axis=0) for some in biases[name]])
            cells = [f"{sum(map(len, biases[name])):,}", *(_bias(errors) for errors in means.T)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _class_biases(draw: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """Return for each class its groups, and its reported accuracy less that of the folds' and of the final model."""
    rows = torch.tensor(draw["answers"])
    found = []
    for label, (folds, final) in enumerate(draw["truth by class"]):
        own = rows[rows[:, 1] == label]
        if len(own):
            reported = float(own[own[:, 3] == label, 4].sum() / own[:, 4].sum())
            found.append((len(own[:, 0].unique()), reported - folds, reported - final))
    return found


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
        _bias(alike[:, 0] - final[:, 1]),
        _covered(picture[:, 1:], folds[:, 0]),
        _covered(alike[:, 1:], folds[:, 1]),
        _score(picture[:, 1:], folds[:, 0]),
        _covered(bootstrap, folds[:, 0]),
        _score(bootstrap, folds[:, 0]),
        f"{100 * found / sum(one['units'] for one in draws):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _figures(answers: Sequence[Sequence[int]]) -> tuple[list[float], list[float], tuple[float, float]]:
    """Return accuracy and balanced accuracy with their intervals, and the interval of a plain bootstrap."""
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
    return f"{100 * ((low <= truth) & (truth <= high)).mean():.0f}%"


def _score(ends: Sequence[Any], truth: Sequence[Any]) -> str:
    low, high = np.array(ends).T
    score = high - low + _MISS * ((low - truth).clip(0) + (truth - high).clip(0))
    return f"{100 * score.mean():.1f}"
