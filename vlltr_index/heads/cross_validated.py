"""Answers of the generative model for images that it was fitted without, in closed form: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.heads.dealing import answerable, deal_units
from vlltr_index.heads.moments import Moments, unit_correlation
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import fit_model
from vlltr_index.heads.units import number_observations
from vlltr_index.heads.weighing import (
    SHRINKAGES,
    Covariances,
    fit_temperature,
    image_weights,
    item_nll,
    plainest_covariances,
)
from vlltr_index.tensors import unit_rows

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

_FOLDS = 5
_JUDGED = 2000  # images, about, on which covariances and temperature are chosen


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """Held-out answers.

    Attributes:
        asked: Int64 [M], positions of the images that were held out of a fold in which their class had others.
        log_probabilities: Float32 [M, C], of all classes as equally common.
    """

    asked: Tensor
    log_probabilities: Tensor


def cross_validate(
    features: Tensor,
    labels: Tensor,
    units: Sequence[str],
    prototypes: Tensor,
    progress: Progress | None = None,
) -> CrossValidated:
    """Answer for images by generative models that were fitted without their fold, one of five; units stay whole.

    Covariances and temperature are chosen on the held-out images, each class counted alike, as `train lgr` does.

    Args:
        features: Float [N, D], unnormalised.
        labels: Int64 [N], 0 to C - 1.
        units: The unit of each image, see `units_of`.
        prototypes: Float [C, D], mean of each class's normalised sentences; a row of zeros is a class without text.
        progress: Called after each fold.
    """
    images = unit_rows(features).float()
    classes = len(prototypes)
    fold = deal_units(labels, units, _FOLDS)
    asked = answerable(labels, fold)
    observations = number_observations(labels, units)
    correlation = unit_correlation(images, labels, observations, classes)
    fitted = list[tuple[Tensor, dict[float | None, PLDA]]]()
    for number in range(_FOLDS):
        out = (asked & (fold == number)).nonzero()[:, 0]
        if len(out):
            rest = fold != number
            numbered = observations[rest].unique(return_inverse=True)[1]
            moments = Moments.of(images[None, rest], labels[rest], numbered, classes, correlation)
            fitted.append((out, _models(moments, prototypes)))
        if progress:
            progress("answers", number + 1, _FOLDS)
    if not fitted:
        return CrossValidated(torch.empty(0, dtype=torch.int64), torch.empty(0, classes))
    step = -(-int(asked.sum()) // _JUDGED)
    some = [(out[::step], models) for out, models in fitted]
    places = torch.cat([out for out, _ in some])
    judged = labels[places]
    counts = torch.bincount(labels, minlength=classes)
    weights = image_weights(judged, counts, observations[places], power=1.0)

    def costs(covariances: Covariances) -> Tensor:
        level = _likelihoods(some, images, covariances)
        losses = item_nll(fit_temperature(level, judged, weights) * level, judged)
        return torch.stack([losses, (level.argmax(1) != judged).double()])

    chosen = plainest_covariances(costs, weights, observations[places])
    factor = fit_temperature(_likelihoods(some, images, chosen), judged, weights)
    answers = (factor * _likelihoods(fitted, images, chosen)).log_softmax(1)
    places = torch.cat([out for out, _ in fitted])
    order = places.argsort()
    return CrossValidated(places[order], answers[order])


_Fitted = Sequence[tuple[Tensor, dict[float | None, PLDA]]]


def _likelihoods(fitted: _Fitted, images: Tensor, covariances: Covariances) -> Tensor:
    """Return the log-likelihoods of each fold's images, by their positions, under its model: [M, C]."""
    parts = ((out, covariances.noisy(models[covariances.shrinkage])) for out, models in fitted)
    return torch.cat([model.log_likelihoods(images[out]) for out, model in parts])


def _models(moments: Moments, prototypes: Tensor) -> dict[float | None, PLDA]:
    """Fit one generative model for each shrinkage."""
    return {shrinkage: fit_model(moments, prototypes, shrinkage) for shrinkage in SHRINKAGES}
