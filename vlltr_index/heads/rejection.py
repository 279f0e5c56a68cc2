"""Images of no known class: how well an image fits the classes, as the sum of two scores."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vlltr_index.heads.plda import PLDA
from vlltr_index.tensors import full_precision

ACCEPTED = 0.95
"""Share of held-out groups of known classes that the threshold accepts."""
FEWEST_GROUPS = 20
"""Held-out groups below which there is no threshold."""
_LARGEST = 1e9
_NO_SPREAD = 1e-9
RatioWeight = Annotated[float, Field(ge=0.0, le=_LARGEST)]


def fit_parts(model: PLDA, features: Tensor) -> Tensor:
    """Compute how well images fit the classes of a model, float [B, 2].

    The parts are the largest log-likelihood, which images of another kind miss by far, and its ratio to the likelihood
    under a class of which nothing is known, N(g, Sigma + Lambda_0), which tells related classes better.

    Args:
        model: The PLDA.
        features: Float [B, D], normalised.
    """
    shared = model.shared
    best = model.log_likelihoods(features).amax(1)
    with full_precision(features.device):
        apart = shared.coordinates(features)
    unknown = shared.log_density(apart, (1.0 + shared.blank).to(apart))
    return torch.stack([best, best - unknown], 1)


def ratio_weight(parts: Tensor) -> float:
    """Return the weight of the second part that gives both the same spread, by parts [M, 2] of held-out images."""
    first, second = parts.double().std(0, correction=0).tolist()
    return min(first / second, _LARGEST) if second > _NO_SPREAD else 0.0


def fit_scores(parts: Tensor, weight: float) -> Tensor:
    """Return the weighted sum of the parts, [B, 2]: [B]."""
    return parts[:, 0] + weight * parts[:, 1]


def threshold(scores: Tensor, groups: Tensor) -> float | None:
    """Return the score that 95% of held-out images reach, groups counting alike; None below 20 groups.

    Args:
        scores: Float [M].
        groups: Int64 [M], the group of each image.
    """
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    if len(sizes) < FEWEST_GROUPS:
        return None
    order = scores.argsort()
    below = (1.0 / sizes[group][order].double()).cumsum(0)
    first = int(torch.searchsorted(below, (1.0 - ACCEPTED) * len(sizes), right=True))
    return float(scores[order[min(first, len(scores) - 1)]])
