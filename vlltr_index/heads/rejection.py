"""None of these: how well an image fits the known classes, as the sum of three scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.tensors import full_precision

_MOST = 20_000
_NO_SPREAD = 1e-3  # half precision rounds cosines by as much
_LARGEST = 1e9
_Factor = Annotated[float, Field(ge=0.0, le=_LARGEST)]


@dataclass(frozen=True)
class FitWeights:
    """Weights of `fit_parts` beside the largest log-likelihood.

    Attributes:
        ratio: Of the log-likelihood ratio to an unknown class.
        likeness: Of the cosine to the nearest training image.
    """

    ratio: _Factor = 0.0
    likeness: _Factor = 0.0

    @classmethod
    def of(cls, parts: Tensor) -> FitWeights:
        """Let each of the parts, float [M, 3] of held-out images, have the same spread; one without spread has none."""
        spread = parts.std(0, correction=0)
        weights = torch.where(spread > _NO_SPREAD, spread[0] / spread, 0.0).clamp(max=_LARGEST).tolist()
        return cls(ratio=weights[1], likeness=weights[2])

    def sum(self, parts: Tensor) -> Tensor:
        """Return the weighted sum of the parts, [B, 3]: [B]."""
        return parts[:, 0] + self.ratio * parts[:, 1] + self.likeness * parts[:, 2]


@dataclass(frozen=True, eq=False)
class Rejection:
    """How images of no known class are told.

    Attributes:
        weights: Weights of `fit_parts`.
        rows: Int64 [K], the visual row of the class of each training image that others are compared with.
        images: Float16 [K, D], these images, see `directions`.
    """

    weights: FitWeights
    rows: Tensor
    images: Tensor


def fit_parts(model: PLDA, features: Tensor, images: Tensor) -> Tensor:
    """Compute how well images fit the classes of a model, float [B, 3].

    The parts are the largest log-likelihood, which pictures of another kind miss by far; its ratio to the likelihood
    under a class of which nothing is known, N(g, s Sigma + Lambda_0); and the cosine to the nearest training image.
    The latter two tell related classes better.

    Args:
        model: The generative model.
        features: Float [B, D], normalised.
        images: Float [K, D], the `directions` of training images; without any the cosine is 0.
    """
    shared = model.shared
    best = model.log_likelihoods(features).amax(1)
    apart = _in_basis(shared, features)
    unknown = shared.log_density(apart, (shared.noise + shared.blank).to(apart))
    cosines = torch.zeros_like(best)
    if len(images):
        with full_precision(features.device):
            cosines = (F.normalize(apart, dim=1) @ images.to(apart).T).amax(1)
    return torch.stack([best, best - unknown, cosines], 1)


def share_among(classes: int, share: float, of_half: float, others: int) -> float:
    """Carry a share of images that fit one of some classes on to more: it grows as the logarithm of their number.

    Args:
        classes: How many there are.
        share: What fits one of `others` classes.
        of_half: What fits one of half of these.
        others: See `share`.
    """
    return min(max(share + math.log2(classes / others) * (share - of_half), 0.0), 1.0)


def directions(shared: SharedGaussian, features: Tensor) -> Tensor:
    """Return the directions in which images [B, D], normalised, lie from the centre in the basis: [B, D], normalised.

    They are in the features' dtype, float32 at least.
    """
    return F.normalize(_in_basis(shared, features), dim=1)


def representatives(labels: Tensor, units: Tensor) -> Tensor:
    """Choose the images that others are compared with, int64 [K]: one a unit, at most 20,000.

    Where there are more units, all classes have equally many, or all that they have; of more than 20,000 classes none
    has any.

    Args:
        labels: Int64 [N], the class of each image.
        units: Int64 [N], its unit; the images of a unit are of one class.
    """
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    names, unit = units[drawn].unique(return_inverse=True)
    first = torch.full_like(names, len(drawn)).scatter_reduce_(0, unit, torch.arange(len(drawn)), "amin")
    one_a_unit = drawn[first]
    order = labels[one_a_unit].argsort(stable=True)
    counts = torch.bincount(labels[one_a_unit])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    each = int((torch.bincount(place).cumsum(0) <= _MOST).sum())
    return one_a_unit[place < each].sort().values


def _in_basis(shared: SharedGaussian, features: Tensor) -> Tensor:
    """Return images [B, D] in the basis, [B, Z] in their dtype, float32 at least."""
    with full_precision(features.device):
        return shared.coordinates(features)
