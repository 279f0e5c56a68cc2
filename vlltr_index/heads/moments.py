"""What the generative model is fitted on: counts, sums and covariances of images.

The images of a unit (a burst, near duplicates, a group) tell less than as many that were taken apart. Of m images, of
which two are alike by rho, a unit counts as m / (1 + (m - 1) rho) independent ones, rounded. rho is the intraclass
correlation of units in their classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.heads.pooling import unit_means, worths

_ROWS_AT_ONCE = 1024
_NO_SCATTER = 1e-12  # share of the mean squared length: the scatter that rounding gives to identical images


def class_sums(
    features: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Count and sum the images of each class: int64 [C] and float64 [C, D], on the features' device.

    Args:
        features: Float [N, D].
        labels: Int64 [N], 0 to C - 1.
        classes: Number of classes, C.
        weights: Float64 [N], see `observation_weights`; None: each image counts as one.
    """
    labels = labels.to(features.device, non_blocking=True)
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    if weights is None:
        return torch.bincount(labels, minlength=classes), sums.index_add_(0, labels, features.double())
    weights = weights.to(features.device, non_blocking=True)
    counts = torch.zeros_like(sums[:, 0]).index_add_(0, labels, weights)
    sums.index_add_(0, labels, weights[:, None] * features.double())
    return counts.round().long(), sums


def observation_weights(units: Tensor, correlation: float) -> Tensor:
    """Return as what share of an observation each image counts, float64 [N]; those of a unit add up to a whole number.

    Args:
        units: Int64 [N], 0 to U - 1, each of them there: the unit of each image.
        correlation: rho, see `unit_correlation`.
    """
    return (worths(units, correlation).round() / torch.bincount(units))[units]


def unit_correlation(features: Tensor, labels: Tensor, units: Tensor, classes: int) -> float:
    """Measure how alike the images of a unit are, beside the others of their class: 1 are copies, 0 no more than these.

    It is the intraclass correlation by the analysis of variance (Donner & Koval 1980), the mean over the directions in
    which the covariance within classes is the identity. It is 1 where no unit has several images, or no class several
    units.

    Args:
        features: Float [N, D], finite.
        labels: Int64 [N], 0 to C - 1.
        units: Int64 [N], 0 to U - 1, each of them there; the images of a unit are of one class.
        classes: Number of classes, C.
    """
    sizes = torch.bincount(units).double()
    owners = labels.new_empty(len(sizes)).scatter_(0, units, labels)
    inside = len(units) - len(sizes)
    apart = len(sizes) - len(owners.unique())
    if not inside or not apart:
        return 1.0
    moments = Moments.of(features[None], labels, classes, observation_weights(units, 1.0))
    images = features.double() @ inverse_root(shrunk(moments.within, moments.freedom))
    units = units.to(images.device)
    labels = labels.to(images.device)
    middle = unit_means(images, units)
    counts, sums = class_sums(images, labels, classes)
    means = sums / counts.clamp(min=1)[:, None]
    within_units = float((images - middle[units]).square().sum()) / inside
    between = float((middle - means[owners.to(images.device)]).square().sum(1).cpu() @ sizes) / apart
    squares = torch.zeros(classes, dtype=torch.float64).index_add_(0, owners, sizes.square())
    size = (len(labels) - float((squares / counts.cpu().clamp(min=1)).sum())) / apart
    of_units = max((between - within_units) / size, 0.0)
    whole = of_units + within_units
    return of_units / whole if whole else 1.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics from which the shared parameters are fitted, of images by how much each counts.

    Attributes:
        counts: Int64 [C], observations of each class: the sum of the weights; may be 0.
        sums: Float64 [C, D], the weighted sum of the plain images.
        within: Float64 [D, D], S: the pooled covariance of images about their class mean, plus that of views about
            their image; where every class has one observation, or nothing varies, half the total covariance.
        sampling: Float64 [D, D], the pooled covariance of plain images about their class mean. Divided by n it is the
            covariance of the mean of a class with n observations. It equals S with one view, and where S is half the
            total.
        freedom: Effective degrees of freedom of S: those of its two parts, n - C for images and V N - N for views, by
            the parts' squared norms (Satterthwaite 1946); n - C where S is half the total.
    """

    counts: Tensor
    sums: Tensor
    within: Tensor
    sampling: Tensor
    freedom: float

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None) -> Moments:
        """Compute the statistics of V views of N images.

        Args:
            features: Float [V, N, D], the plain view first, unnormalised.
            labels, classes, weights: As for `class_sums`.

        Raises:
            InputError: Features are not finite.
        """
        if not bool(features.isfinite().all()):
            raise InputError("features must be finite", "vlltr embed")
        labels = labels.to(features.device)
        weights = torch.ones(len(labels)) if weights is None else weights
        weights = weights.to(features.device, torch.float64)
        counts, sums = class_sums(features[0], labels, classes, weights)
        apart = int(counts.sum()) - int((counts > 0).sum())
        within, sampling, freedom = _within(features, labels, weights, apart=apart)
        return cls(counts=counts, sums=sums, within=within, sampling=sampling, freedom=freedom)


def _within(features: Tensor, labels: Tensor, weights: Tensor, apart: int) -> tuple[Tensor, Tensor, float]:
    """Compute `within` and `sampling` of `Moments`, float64 [D, D] each, and its `freedom`.

    Args:
        features: Float [V, N, D].
        labels, weights: As for `class_sums`.
        apart: Number of observations less number of classes with images.
    """
    views, images, dim = features.shape
    least = _NO_SCATTER * float(features[0].double().square().sum(1).mean())
    middle = features[0] if views == 1 else features.mean(0)
    if apart:
        sampling = _about_classes(features[0], labels, weights) / apart
        within = sampling
        freedom = float(apart)
        if views > 1:
            between = _about_classes(middle, labels, weights) / apart
            about_images = (views - 1) * images
            about = torch.stack([_scatter(view, middle, weights) for view in features]).sum(0)
            inside = about / (views * weights.sum())
            within = between + inside
            parts = between.square().sum() / apart + inside.square().sum() / about_images
            freedom = float(within.square().sum() / parts) if bool(parts) else freedom
        if float(within.trace()) > least:
            return within, sampling, freedom
    total = _about_classes(middle, torch.zeros_like(labels), weights) / (2.0 * weights.sum())
    if float(total.trace()) <= least:
        total = torch.eye(dim, dtype=torch.float64, device=features.device)
    return total, total, float(apart)


def _about_classes(images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Compute the weighted sum over images [N, D] of (x - class mean)^T (x - class mean), float64 [D, D]."""
    counts, sums = class_sums(images, labels, int(labels.max()) + 1, weights)
    return _scatter(images, (sums / counts.clamp(min=1)[:, None])[labels], weights)


def _scatter(images: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """Compute the weighted sum over images of (x - mean)^T (x - mean), float64 [D, D], of rows [N, D] each."""
    dim = images.shape[1]
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=images.device)
    parts = (rows.split(_ROWS_AT_ONCE) for rows in (images, means, weights))
    for rows, middle, own in zip(*parts, strict=True):
        apart = rows.double() - middle
        scatter += (own[:, None] * apart).T @ apart
    return scatter


def shrunk(covariance: Tensor, observations: float, shrinkage: float | None = 1.0) -> Tensor:
    """Shrink a covariance towards a multiple of the identity: (1 - r) S + r tr(S) / D I, [D, D] in its dtype.

    Args:
        covariance: S, float [D, D]; the difference of two covariances may be indefinite.
        observations: n, the number of observations less that of estimated means; r is 1 for 0.
        shrinkage: r is this many times that of the oracle approximating shrinkage (OAS; Chen et al., "Shrinkage
            Algorithms for MMSE Covariance Estimation", 2010, Eq. 23), at most 1; None: r = D / (n + D).
    """
    dim = len(covariance)
    trace = covariance.trace()
    if shrinkage is None:
        r = dim / (observations + dim)
    else:
        square = float(covariance.square().sum())
        of_sphere = float(trace.square()) / dim
        apart = (observations + 1.0 - 2.0 / dim) * (square - of_sphere)
        best = (1.0 - 2.0 / dim) * square + dim * of_sphere
        r = min(1.0, shrinkage * best / apart) if apart > 0.0 and best > 0.0 else 1.0
    return (1.0 - r) * covariance + r * trace / dim * torch.eye(dim).to(covariance)


def inverse_root(covariance: Tensor) -> Tensor:
    """Compute the inverse square root of a covariance [D, D]."""
    values, vectors = torch.linalg.eigh(covariance)
    least = torch.finfo(values.dtype).eps * values.amax().clamp(min=1e-20)
    root: Tensor = vectors * values.clamp(min=least).rsqrt() @ vectors.T
    return root
