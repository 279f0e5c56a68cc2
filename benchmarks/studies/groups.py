"""Pictures of a unit that are answered together, beside what is simpler: each alone, a vote, the mean of answers.

    python -m benchmarks groups run
    python -m benchmarks groups table

The kinds of collections are those of `honest_figure`; vectors of the shipped encoder, which suits drawings on plain
ground alone; the generative model is fitted by `train lgr`'s own function, without texts. Asked are whole new units.
*Density of the mean* asks the generative model for the mean of the pictures' vectors, its variance falling as they are
independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.collections.units import CLASSES, KINDS, Picture, drawn_units
from benchmarks.intervals import normal
from benchmarks.kept import draws_of
from benchmarks.studies.vectors import features_of, fitted
from benchmarks.study import Results, Setting, Study, table
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.pooling import log_means, unit_means, worths
from vlltr_index.heads.weighing import item_nll
from vlltr_index.tensors import unit_rows

COLLECTIONS = tuple(name for name in KINDS if name != "single")
ALONE, VOTE, MEAN, PRODUCT, DENSITY, TOGETHER = (
    "each picture", "vote", "mean of answers", "product of answers", "density of the mean", "together"
)  # fmt: skip
_TOP = (ALONE, VOTE, TOGETHER, DENSITY, PRODUCT)
_LIKELY = (ALONE, MEAN, TOGETHER, DENSITY, PRODUCT)
_SEEDS = range(20)
_NEW = 16
_NOTHING = 1e-7


def settings() -> list[Setting]:
    """Return the kinds of collections."""
    return [Setting(name, _SEEDS, partial(measured, name)) for name in COLLECTIONS]


def measured(name: str, number: int) -> dict[str, Any]:
    """Return what each row has right in one draw, and how alike the images of a unit were found to be."""
    learned, fresh = drawn_units(KINDS[name], number, _NEW)
    features, labels, units = _stacked(learned)
    model, parts = fitted(features, labels, CLASSES, units)
    asked, answers, units = _stacked(fresh)
    units = units.unique(return_inverse=True)[1]
    worth = worths(units, parts.correlation)[:, None]
    sizes = torch.bincount(units)[:, None]
    truth = torch.empty(len(sizes), dtype=torch.int64).scatter_(0, units, answers)
    images = unit_rows(asked).double()
    weight = parts.weights.generative
    alone = (weight * model.log_likelihoods(images)).log_softmax(1)
    mean = log_means(alone, units)
    votes = unit_means(one_hot(alone.argmax(1), CLASSES).double(), units)
    density = weight * _density_of_means(model, unit_means(images, units), worth)
    rows = {
        ALONE: (alone, answers),
        VOTE: ((votes + 1e-3 * mean.exp()).clamp(min=_NOTHING).log(), truth),
        MEAN: (mean, truth),
        PRODUCT: (sizes * unit_means(alone, units), truth),
        DENSITY: (density, truth),
        TOGETHER: (worth * mean, truth),
    }
    found = {row: _measures(scores, of) for row, (scores, of) in rows.items()}
    return {"correlation": parts.correlation, "pictures": len(fresh), "units": len(truth), **found}


def _density_of_means(model: PLDA, means: Tensor, worth: Tensor) -> Tensor:
    """Compute log N(x; m_c, 1 / worth + v_c - 1), up to a constant, of mean features x [U, D]: [U, C]."""
    shared = model.shared
    z = shared.coordinates(means)[:, None]
    middle, variance = model.posterior
    width = variance + (1.0 / worth[:, :, None] - 1.0)
    return -0.5 * ((z - middle).square() / width + width.log()).sum(2)


def _stacked(pictures: Sequence[Picture]) -> tuple[Tensor, Tensor, Tensor]:
    """Return features [N, D], classes and units, int64 [N]."""
    labels, units, files = zip(*pictures, strict=True)
    return features_of(files), torch.tensor(labels), torch.tensor(units)


def _measures(scores: Tensor, labels: Tensor) -> list[float]:
    """Return accuracy, calibration error and NLL."""
    sure, best = scores.softmax(1).max(1)
    right = best == labels
    values = (
        float(right.double().mean()),
        expected_calibration_error(sure, right),
        float(item_nll(scores, labels).mean()),
    )
    return [round(value, 4) for value in values]


def generated(results: Results) -> str:
    """Return the tables of accuracies and of likelihoods as Markdown."""
    found = {name: draws_of(results[name]) for name in COLLECTIONS if name in results}
    lines = [
        "Top-1 in per cent, of new units, or of their pictures where each is answered by itself; means over draws, and"
        " the smallest and largest correlation that was fitted. *Together* names what the mean of answers names.",
        "",
        *table(
            ["collection", "draws", "pictures a unit", "correlation", *_TOP],
            [_accuracies(name, draws) for name, draws in found.items()],
        ),
        "",
        "NLL / ECE in points. *Gain*: NLL of *together* less that of the mean of answers on the same draws, with its"
        " 95 % interval; below 0 is better.",
        "",
        *table(
            ["collection", *_LIKELY, "gain"], [_likelihoods(name, draws) for name, draws in found.items()]
        ),
    ]
    return "\n".join(lines) + "\n"


def _accuracies(name: str, draws: Sequence[dict[str, Any]]) -> list[str]:
    size = np.mean([draw["pictures"] / draw["units"] for draw in draws])
    alike = sorted(draw["correlation"] for draw in draws)
    top = [f"{100 * np.mean([draw[row][0] for draw in draws]):.1f}" for row in _TOP]
    return [name, str(len(draws)), f"{size:.1f}", f"{alike[0]:.2f} to {alike[-1]:.2f}", *top]


def _likelihoods(name: str, draws: Sequence[dict[str, Any]]) -> list[str]:
    means = [np.mean([draw[row] for draw in draws], axis=0) for row in _LIKELY]
    gain = normal([draw[TOGETHER][2] - draw[MEAN][2] for draw in draws])
    return [name, *(f"{loss:.2f} / {100 * error:.1f}" for _, error, loss in means), gain.shown(3, 1.0)]


STUDY = Study({"results/groups.md": generated}, settings)
