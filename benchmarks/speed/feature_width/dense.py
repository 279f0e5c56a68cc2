"""The same fits with D x D matrices: eigenvectors of both covariances and of the texts' for each shrinkage.

Every class has images and a text that is read by its vector.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_LEAST_LEFT = 0.05
_RIDGES = tuple(10.0**n for n in range(-2, 5))


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The same inputs; the fits are replaced by those below."""
    images.row_span = lambda rows: None
    plda_fit.fit_plda = fit_plda
    return ours.prepare(inputs, values)


def run(state: Any) -> Arrays:
    """Fit, and compute the log-likelihoods of other images."""
    return ours.run(state)


def fit_plda(moments: Moments, prototypes: Tensor, shrinkage: float) -> PLDA:
    """Fit the model as `plda_fit.fit_plda` does, with all matrices [D, D]."""
    n = moments.counts.double()
    weights = n / (n + 2.0)
    means = moments.sums / n[:, None]
    centre = weighted_mean(means, weights)
    text_centre = weighted_mean(prototypes, weights)
    whitening = inverse_root(shrunk(moments.within, moments.freedom, shrinkage))
    noise = whitening @ moments.sampling @ whitening
    seen = (means - centre) @ whitening
    text_map, residuals, predicts = _fit_texts((prototypes - text_centre) @ whitening, seen, weights)
    share = weights / weights.sum()
    sampling = (share / n).sum() * noise
    covariance = (share[:, None] * residuals).T @ residuals - sampling
    apart = (seen - weighted_mean(seen, weights)) / (1.0 - share)[:, None]
    left = covariance.trace() / ((share @ apart.square()).sum() - sampling.trace())
    spread, rotation = torch.linalg.eigh(shrunk(covariance, len(residuals), shrinkage))
    mapped = whitening @ text_map @ rotation
    shared = SharedGaussian(
        centre,
        basis=whitening @ rotation,
        spread=spread.clamp(min=_LEAST_SPREAD),
        text_centre=text_centre,
        text_map=mapped,
        text_r2=1.0 - float(left.clamp(min=_LEAST_LEFT)) if predicts else 0.0,
    )
    return PLDA(shared, moments.counts, moments.sums, plda_fit.predict(shared, prototypes))


def _fit_texts(text: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Choose the map [D, D] from centred texts to class means.

    Each class is left out by itself.

    Returns:
        The map, the residuals of left-out classes, and whether texts predict anything.
    """
    x = text - weighted_mean(text, weights)
    y = seen - weighted_mean(seen, weights)
    alone = y / (1.0 - weights / weights.sum())[:, None]
    maps, residuals = zip(*_maps(x, y, weights), strict=True)
    left = torch.stack([(weights[:, None] * rows.square()).sum() for rows in residuals])
    best = int(left.argmin())
    if left[best] >= (weights[:, None] * alone.square()).sum():
        return torch.zeros_like(maps[0]), seen, False
    return maps[best], residuals[best], True


def _maps(x: Tensor, y: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Fit a multiple of the identity, and with it a ridge regression of the rest of each strength.

    Yields each map [D, D] with the residuals [C, D] of left-out classes.
    """
    share = weights / weights.sum()
    multiple = _multiple(x, y, weights)
    of_others = x.new_tensor([_multiple_without(x, y, weights, one) for one in range(len(x))])[:, None]
    weighted = weights[:, None] * x
    identity = torch.eye(x.shape[1], dtype=x.dtype)
    yield multiple * identity, (y - of_others * x) / (1.0 - share)[:, None]
    values, vectors = torch.linalg.eigh(weighted.T @ x)
    for ridge in _RIDGES:
        inverse = vectors / (values + ridge * values.mean()) @ vectors.T
        hat = x @ inverse @ weighted.T
        missed = y - hat @ y - of_others * (x - hat @ x)
        mapped = multiple * identity + inverse @ weighted.T @ (y - multiple * x)
        yield mapped, missed / (1.0 - hat.diagonal() - share)[:, None]


def _multiple(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Fit a of a I, which maps centred texts to class means."""
    return float((weights @ (x * y)).sum() / (weights @ x.square()).sum())


def _multiple_without(x: Tensor, y: Tensor, weights: Tensor, one: int) -> float:
    """Fit a of a I without a class."""
    rest = weights.clone()
    rest[one] = 0.0
    return _multiple(x - weighted_mean(x, rest), y - weighted_mean(y, rest), rest)
