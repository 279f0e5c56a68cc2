"""What the generative model is fitted on: counts, sums and covariances of images.

The images of a unit (a burst, near duplicates, a group) tell less than as many that were taken apart. Of m images, of
which two are alike by rho, a unit counts as m / (1 + (m - 1) rho) independent ones, rounded down. rho is the intraclass
correlation of units in their classes.

Where there are fewer rows than dimensions, covariances are kept in the span of the rows: outside of it they are zero.
So the cost of N rows in D dimensions grows with N D min(N, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.heads.pooling import worths

_ROWS_AT_ONCE = 1024
_COPIES = 20  # images that are taken to be copies, beside those that are there: few tell little of how alike they are
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
    return (worths(units, correlation).floor() / torch.bincount(units))[units]


def unit_correlation(features: Tensor, labels: Tensor, units: Tensor, classes: int) -> float:
    """Measure how alike the images of a unit are, beside the others of their class: 1 are copies, 0 no more than these.

    It is the intraclass correlation by the analysis of variance (Donner & Koval 1980), over all directions in which the
    covariance within classes is the identity, as if 20 more images were copies. It is 1 where no unit has several
    images, or no class several units.

    Args:
        features: Float [N, D].
        labels: Int64 [N], 0 to C - 1.
        units: Int64 [N], 0 to U - 1, each of them there; the images of a unit are of one class.
        classes: Number of classes, C.

    Raises:
        InputError: Features are not finite.
    """
    _check_finite(features)
    sizes = torch.bincount(units).double()
    owners = _owners(labels, units, len(sizes))
    inside = len(units) - len(sizes)
    apart = len(sizes) - len(owners.unique())
    if not inside or not apart:
        return 1.0
    dim = features.shape[1]
    span = row_span(features)
    features = features if span is None else features.double() @ span
    within, _, freedom = _within(features[None], units, owners, each=1.0, dim=features.shape[1])
    whitening = inverse_root(shrunk(within, freedom, dim=dim))
    middle = _means(features, units, len(sizes))
    of_classes = _means(features, labels, classes)[owners.to(features.device)]
    several = (sizes[units] > 1).nonzero()[:, 0].to(features.device)
    about_units = _scatter(features[None, several], middle, units.to(features.device)[several])
    within_units = float((whitening @ about_units @ whitening).trace()) / (inside + _COPIES)
    apart_squared = ((middle - of_classes) @ whitening).square().sum(1)
    between = float(apart_squared.cpu() @ sizes) / apart
    squares = torch.zeros(classes, dtype=torch.float64).index_add_(0, owners, sizes.square())
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    size = (len(labels) - float((squares / counts).sum())) / apart
    of_units = max((between - within_units) / size, 0.0)
    whole = of_units + within_units
    return of_units / whole if whole else 1.0


def _check_finite(features: Tensor) -> None:
    """Refuse values that are not finite: they would make every class's model NaN."""
    if not bool(features.isfinite().all()):
        raise InputError("features must be finite", "vlltr embed")


def _means(rows: Tensor, owners: Tensor, count: int) -> Tensor:
    """Compute the mean of the rows of each owner, float64 [K, D]; zeros for one without any."""
    counts, sums = class_sums(rows, owners, count)
    return sums / counts.clamp(min=1)[:, None]


def _owners(labels: Tensor, units: Tensor, count: int) -> Tensor:
    """Return the class of each of `count` units, int64 [U], on the CPU."""
    return labels.new_empty(count).scatter_(0, units, labels)


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics from which the shared parameters are fitted.

    Attributes:
        counts: Int64 [C], observations of each class; may be 0.
        sums: Float64 [C, D], the sum of the plain images, each as its share of an observation.
        within: Float64 [R, R], S: the pooled covariance of unit means about their class mean, plus that of images and
            views about their unit's mean; where every class has one unit, half the total covariance; the identity where
            nothing varies.
        sampling: Float64 [R, R], the pooled covariance of plain unit means about their class mean, times observations a
            unit. Divided by n it is the covariance of the mean of a class with n observations. It equals S where each
            unit is one image with one view, and where S is half the total.
        freedom: Effective degrees of freedom of S: those of its two parts, U - C for unit means and V N - U for
            images about them, by the parts' squared norms (Satterthwaite 1946); U - C where S is half the total.
        span: Float64 [D, R], orthonormal columns that span the images of all views; both covariances are given in it,
            and are zero outside of it. None: they are given in all D dimensions, R = D.
    """

    counts: Tensor
    sums: Tensor
    within: Tensor
    sampling: Tensor
    freedom: float
    span: Tensor | None = None

    @cached_property
    def variances(self) -> Tensor:
        """Variances of S along its principal axes, float64 [R], ascending."""
        return self._principal[0]

    @cached_property
    def axes(self) -> Tensor:
        """Principal axes of S, float64 [D, R], orthonormal columns."""
        vectors = self._principal[1]
        return vectors if self.span is None else self.span @ vectors

    @cached_property
    def sampling_on_axes(self) -> Tensor:
        """`sampling` along the principal axes of S, float64 [R, R]."""
        vectors = self._principal[1]
        return vectors.T @ self.sampling @ vectors

    @cached_property
    def _principal(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of S."""
        values, vectors = torch.linalg.eigh(self.within)
        return values, vectors

    @classmethod
    def of(
        cls, features: Tensor, labels: Tensor, units: Tensor, classes: int, correlation: float = 1.0
    ) -> Moments:
        """Compute the statistics of V views of N images.

        Args:
            features: Float [V, N, D], the plain view first, unnormalised.
            labels, units, classes: As for `unit_correlation`, of the images.
            correlation: See `observation_weights`.

        Raises:
            InputError: Features are not finite.
        """
        _check_finite(features)
        counts, sums = class_sums(features[0], labels, classes, observation_weights(units, correlation))
        owners = _owners(labels, units, int(units.max()) + 1)
        dim = features.shape[2]
        each = int(counts.sum()) / len(owners)
        span = row_span(features.flatten(0, 1))
        rows = features if span is None else features.double() @ span
        within, sampling, freedom = _within(rows, units, owners, each=each, dim=dim)
        return cls(counts, sums, within, sampling, freedom, span if len(within) < dim else None)


def row_span(rows: Tensor) -> Tensor | None:
    """Return orthonormal columns, float64 [D, N], that span the rows [N, D]; None for D rows or more."""
    if len(rows) >= rows.shape[1]:
        return None
    span: Tensor = torch.linalg.qr(rows.double().T).Q
    return span


def _within(
    features: Tensor, units: Tensor, owners: Tensor, each: float, dim: int
) -> tuple[Tensor, Tensor, float]:
    """Compute `within` and `sampling` of `Moments`, float64 [R, R] each, and its `freedom`.

    Args:
        features: Float [V, N, R].
        units: Int64 [N], the unit of each image.
        owners: Int64 [U], the class of each unit.
        each: Observations a unit.
        dim: D. Where nothing varies the covariances are the identity in all D dimensions, [D, D].
    """
    views, images, _ = features.shape
    units = units.to(features.device)
    least = _NO_SCATTER * float(features[0].double().square().sum(1).mean())
    apart = len(owners) - len(owners.unique())
    plain = _means(features[0], units, len(owners)).to(features)
    means = plain if views == 1 else _means(features.mean(0), units, len(owners)).to(features)
    if apart:
        within = _about_classes(means, owners) / apart
        sampling = each * (within if views == 1 else _about_classes(plain, owners) / apart)
        freedom = float(apart)
        about_units = views * images - len(means)
        if about_units:
            inside = _scatter(features, means, units) / (views * images)
            parts = within.square().sum() / apart + inside.square().sum() / about_units
            within = within + inside
            freedom = float(within.square().sum() / parts) if bool(parts) else freedom
        if float(within.trace()) > least:
            return within, sampling, freedom
    total = _about_classes(means, torch.zeros_like(owners)) / (2 * len(means))
    if float(total.trace()) <= least:
        total = torch.eye(dim, dtype=torch.float64, device=features.device)
    return total, total, float(apart)


def _about_classes(means: Tensor, owners: Tensor) -> Tensor:
    """Compute the sum over units of (mean - class mean)^T (mean - class mean), float64 [D, D]."""
    of_classes = _means(means, owners, int(owners.max()) + 1)
    return _scatter(means[None], of_classes, owners.to(means.device))


def _scatter(features: Tensor, means: Tensor, owners: Tensor) -> Tensor:
    """Compute the sum over views and images of (x - mean)^T (x - mean), float64 [D, D]."""
    scatter = means.new_zeros(means.shape[1], means.shape[1], dtype=torch.float64)
    for view in features:
        for rows, own in zip(view.split(_ROWS_AT_ONCE), owners.split(_ROWS_AT_ONCE), strict=True):
            apart = rows.double() - means[own]
            scatter += apart.T @ apart
    return scatter


def shrinkage_of(covariance: Tensor, observations: float, shrinkage: float, dim: int) -> tuple[float, float]:
    """Return 1 - r and r tr(S) / D, with which `shrunk` multiplies S and the identity.

    Args:
        covariance: S, float [R, R].
        observations, shrinkage, dim: See `shrunk`.
    """
    trace = float(covariance.trace())
    square = float(covariance.square().sum())
    of_sphere = trace * trace / dim
    apart = (observations + 1.0 - 2.0 / dim) * (square - of_sphere)
    best = (1.0 - 2.0 / dim) * square + dim * of_sphere
    r = min(1.0, best / apart) ** (1.0 / shrinkage) if apart > 0.0 and best > 0.0 else 1.0
    return 1.0 - r, r * trace / dim


def shrunk(covariance: Tensor, observations: float, shrinkage: float = 1.0, dim: int | None = None) -> Tensor:
    """Shrink a covariance towards a multiple of the identity: (1 - r) S + r tr(S) / D I, [R, R] in its dtype.

    Args:
        covariance: S, float [R, R]; the difference of two covariances may be indefinite.
        observations: n, the number of observations less that of estimated means; r is 1 for 0.
        shrinkage: k, at least 1; r is the k-th root of that of the oracle approximating shrinkage (OAS; Chen et al.,
            "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, Eq. 23): 1 for infinity.
        dim: D, of which S is zero in the D - R dimensions that are not given; None: R.
    """
    kept, level = shrinkage_of(covariance, observations, shrinkage, dim or len(covariance))
    return kept * covariance + level * torch.eye(len(covariance)).to(covariance)


def inverse_root(covariance: Tensor) -> Tensor:
    """Compute the inverse square root of a covariance [D, D]."""
    values, vectors = torch.linalg.eigh(covariance)
    least = torch.finfo(values.dtype).eps * values.amax().clamp(min=1e-20)
    root: Tensor = vectors * values.clamp(min=least).rsqrt() @ vectors.T
    return root
