"""The same fits with D x D matrices: eigenvectors of both covariances and of the texts' for each shrinkage.

Every class has images and a text that is read by its vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.feature_width import ours
from benchmarks.speed.harness import Arrays
from vlltr_index.heads import moments as images
from vlltr_index.heads import plda_fit
from vlltr_index.heads.moments import Moments, inverse_root, shrunk
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.text_prior import weighted_mean

_LEAST_SPREAD = 0.02
_TIE_BREAK = 1e-6
_RIDGES = tuple(10.0**n for n in range(-2, 5))
_FOLDS = 5


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The same inputs; the fits are replaced by those below."""
    images.row_span = lambda rows: None
    plda_fit.fit_model = fit_model
    return ours.prepare(inputs, values)


def run(state: Any) -> Arrays:
    """Fit, and compute the log-likelihoods of other images."""
    return ours.run(state)


def fit_model(moments: Moments, prototypes: Tensor, shrinkage: float) -> PLDA:
    """Fit the model as `plda_fit.fit_model` does, with all matrices [D, D]."""
    n = moments.counts.double()
    weights = n / (n + 2.0)
    means = moments.sums / n[:, None]
    centre = weighted_mean(means, weights)
    text_centre = weighted_mean(prototypes, weights)
    whitening = inverse_root(shrunk(moments.within, moments.freedom, shrinkage))
    noise = whitening @ moments.sampling @ whitening
    seen = (means - centre) @ whitening
    text_map, residuals, r2 = _fit_texts((prototypes - text_centre) @ whitening, seen, weights)
    share = weights / weights.sum()

    def between(rows: Tensor) -> Tensor:
        covariance = (share[:, None] * rows).T @ rows - (share / n).sum() * noise
        return shrunk(covariance, len(rows), shrinkage)

    about_texts = between(residuals)
    about_centre = between(seen)
    rotation = torch.linalg.eigh(about_texts + _TIE_BREAK * about_centre)[1]
    spread = (rotation.T @ about_texts @ rotation).diagonal().clamp(min=_LEAST_SPREAD)
    blank = torch.maximum((rotation.T @ about_centre @ rotation).diagonal(), spread) if r2 else spread
    mapped = whitening @ text_map @ rotation
    shared = SharedGaussian(
        centre, whitening @ rotation, spread, blank, text_centre, text_map=mapped, text_r2=r2
    )
    return PLDA(shared, moments.counts, moments.sums, plda_fit.predict(shared, prototypes))


def _fit_texts(text: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Choose the map [D, D] from centred texts to class means on classes left out, with its residuals and R^2."""
    folds = torch.arange(len(text)) % _FOLDS
    alone = torch.zeros_like(seen)
    predicted = torch.zeros(1 + len(_RIDGES), *seen.shape, dtype=seen.dtype)
    for fold in range(_FOLDS):
        out = folds == fold
        kept = torch.where(out, 0.0, weights)
        x0 = weighted_mean(text, kept)
        y0 = weighted_mean(seen, kept)
        alone[out] = seen[out] - y0
        for which, mapped in enumerate(_maps(text - x0, seen - y0, kept)):
            predicted[which][out] = (text[out] - x0) @ mapped
    left = (weights[:, None] * (alone - predicted).square()).sum((1, 2))
    best = int(left.argmin())
    r2 = float(1.0 - left[best] / (weights[:, None] * alone.square()).sum())
    if r2 <= 0.0:
        return torch.zeros_like(text.T @ text), seen, 0.0
    chosen = _maps(text - weighted_mean(text, weights), seen - weighted_mean(seen, weights), weights)[best]
    return chosen, alone - predicted[best], r2


def _maps(text: Tensor, seen: Tensor, weights: Tensor) -> list[Tensor]:
    """Fit a multiple of the identity, and beside it a ridge regression of the rest of each strength."""
    weighted = weights[:, None] * text
    identity = torch.eye(text.shape[1], dtype=text.dtype) * (weighted * seen).sum() / (weighted * text).sum()
    values, vectors = torch.linalg.eigh(weighted.T @ text)
    toward = vectors.T @ (weighted.T @ (seen - text @ identity))
    ridges = [identity + vectors @ (toward / (values + ridge * values.mean())[:, None]) for ridge in _RIDGES]
    return [identity, *ridges]
