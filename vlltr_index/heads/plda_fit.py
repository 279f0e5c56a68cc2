"""The fit of the generative model's shared parameters, in closed form, see `plda`.

The cost of N images of C classes grows with N D min(N, D): where these span fewer than D dimensions, all is computed in
the span.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.heads.moments import Moments, row_span, shrinkage_of
from vlltr_index.heads.plda import PLDA, Outside, SharedGaussian
from vlltr_index.heads.text_prior import TextFit, TextKernel, about_others, fit_text, is_less, weighted_mean

_LEAST_SPREAD = 0.02
_LEAST_LEFT = 0.05  # of the variance of class means, by their texts


def fit_plda(
    moments: Moments, prototypes: Tensor, shrinkage: float = 1.0, kernel: TextKernel | None = None
) -> PLDA:
    """Fit the parameters that all classes share; return the model of the classes by these.

    Sigma is the within-class covariance S, shrunk. T is a multiple of the identity, plus a ridge regression of the rest
    on the vectors or on likeness, chosen on classes left out, see `text_prior.fit_text`; zero where it predicts
    nothing. Lambda is the covariance of the residuals on classes left out, less what sampling adds to class means,
    shrunk.

    Args:
        moments: Statistics of the images.
        prototypes: Float [C, T], `text_prior.class_features` of each class's anchors, zeros for a class without text; T
            is D without a kernel.
        shrinkage: How much both covariances are shrunk, see `shrunk`.
        kernel: That of the prototypes. The parameters have it if it tells more than the vectors.

    Raises:
        InputError: Prototypes are not finite.
    """
    if not bool(prototypes.isfinite().all()):
        raise InputError("prototypes must be finite", "vlltr embed")
    told = _told_by(moments, prototypes, shrinkage, kernel)
    fit = told.fit
    between = _between_classes(told, moments, shrinkage)
    if fit.r2 and not between.text_r2:  # what they predict is sampling noise
        return fit_plda(moments, torch.zeros_like(prototypes), shrinkage)
    basis = told.whitening(between.axes.T).T
    of_vectors = fit.of_vectors
    text_map = of_vectors.multiple * basis
    text_map = text_map + told.whitening(of_vectors.left.T).T @ (of_vectors.right @ between.axes)
    if kernel is not None and bool(fit.of_alike.any()):
        text_map = torch.cat([text_map, kernel.root @ fit.of_alike @ between.axes])
    else:
        kernel = None
    width = len(text_map)
    outside = None
    if between.outside:
        scale = told.whitening.outside
        outside = Outside(between.axes, scale=scale, text_scale=scale * of_vectors.multiple)
    shared = SharedGaussian(
        centre=told.centre,
        basis=basis,
        spread=between.spread,
        text_centre=told.text_centre[:width],
        text_map=text_map,
        text_r2=between.text_r2,
        kernel=kernel,
        outside=outside,
    )
    shifts = None
    if kernel is not None:
        shifts = moments.sums.new_zeros(len(moments.counts), len(between.spread))
        shifts[moments.counts > 0, : basis.shape[1]] = fit.shifts @ between.axes
    return PLDA(shared, moments.counts, moments.sums, predict(shared, prototypes), shifts=shifts)


def predict(shared: SharedGaussian, prototypes: Tensor) -> Tensor:
    """Compute `PLDA.predicted`, float64 [C, Z], by prototypes float [C, T] as for `fit_plda`."""
    texts = prototypes[:, : len(shared.text_map)].double()
    return torch.where((texts != 0).any(1, keepdim=True), shared.tell(texts), 0.0)


@dataclass(frozen=True, eq=False)
class _Whitening:
    """The inverse root W of Sigma, as o I + A diag(s - o) A^T.

    Attributes:
        axes: A, float64 [D, R], orthonormal columns: the principal axes of S.
        scales: s, float64 [R], by what W multiplies these.
        outside: o, by what it multiplies whatever is orthogonal to them; 0 where nothing is.
    """

    axes: Tensor
    scales: Tensor
    outside: float

    @classmethod
    def of(cls, moments: Moments, shrinkage: float) -> _Whitening:
        """Make it of the covariance within classes, shrunk."""
        dim, dims = moments.axes.shape
        kept, level = shrinkage_of(moments.within, moments.freedom, shrinkage, dim)
        variances = kept * moments.variances + level
        least = torch.finfo(variances.dtype).eps * variances.amax().clamp(min=1e-20)
        outside = 0.0 if dims == dim else level**-0.5
        return cls(moments.axes, variances.clamp(min=least).rsqrt(), outside)

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply rows [M, D] with W: [M, D]."""
        return self.outside * rows + ((rows @ self.axes) * (self.scales - self.outside)) @ self.axes.T


@dataclass(frozen=True, eq=False)
class _Told:
    """What texts tell of the means of the C' classes that have images.

    Attributes:
        centre: Float64 [D], the mean of the class means.
        whitening: The inverse root of the covariance within classes.
        seen: Float64 [C', D], class means less their mean, whitened.
        texts: Float64 [C', D], the vectors of the texts less their mean, whitened; zeros for a class without text.
        has_text: Bool [C'].
        text_centre: Float64 [T], the mean of the texts.
        fit: By all of them.
    """

    centre: Tensor
    whitening: _Whitening
    seen: Tensor
    texts: Tensor
    has_text: Tensor
    text_centre: Tensor
    fit: TextFit


def _told_by(moments: Moments, prototypes: Tensor, shrinkage: float, kernel: TextKernel | None) -> _Told:
    """Fit what texts tell of class means; the arguments are those of `fit_plda`."""
    there = moments.counts > 0
    n = moments.counts[there].double()
    means = moments.sums[there] / n[:, None]
    dim = means.shape[1]
    weights = n / (n + 2.0)
    centre = weighted_mean(means, weights)
    whitening = _Whitening.of(moments, shrinkage)
    text = prototypes.to(means.device)[there].double()
    has_text = (text != 0).any(1)
    text_centre = (
        weighted_mean(text[has_text], weights[has_text])
        if bool(has_text.any())
        else text.new_zeros(text.shape[1])
    )
    seen = whitening(means - centre)
    known = torch.where(has_text[:, None], text - text_centre, 0.0)
    alike = known[:, dim:] if kernel is None else known[:, dim:] @ kernel.root
    texts = whitening(known[:, :dim])
    fit = fit_text(texts, alike, seen, weights * has_text)
    return _Told(centre, whitening, seen, texts, has_text, text_centre, fit)


@dataclass(frozen=True, eq=False)
class _Between:
    """How class means lie apart where Sigma is the identity.

    Attributes:
        axes: Float64 [D, R], orthonormal columns, along which Lambda is diagonal; they span images and texts.
        spread: Float64 [Z], see `SharedGaussian`.
        text_r2: See `SharedGaussian`.
        outside: Whether anything lies outside of their span.
    """

    axes: Tensor
    spread: Tensor
    text_r2: float
    outside: bool


def _between_classes(told: _Told, moments: Moments, shrinkage: float) -> _Between:
    """Measure Lambda on the residuals of the texts' predictions."""
    n = moments.counts[moments.counts > 0].double()
    weights = n / (n + 2.0)
    fit = told.fit
    span = _span_of(told, moments)
    dim = len(span)
    scales = told.whitening.scales
    noise = (
        scales[:, None] * moments.sampling_on_axes * scales
    )  # not the identity: S was shrunk before the root
    if span is not moments.axes:
        turn = span.T @ moments.axes
        noise = turn @ noise @ turn.T
    with_residual = told.has_text if fit.r2 else torch.ones_like(told.has_text)
    residuals = fit.residuals[with_residual] @ span
    covariance, spread_outside = _between(
        residuals, n[with_residual], weights[with_residual], noise=noise, shrinkage=shrinkage, dim=dim
    )
    spread, rotation = torch.linalg.eigh(covariance)
    text_r2 = 0.0
    if fit.r2:
        share = weights * told.has_text / weights[told.has_text].sum()
        total = (share @ about_others(told.seen, share).square()).sum() - (share / n).sum() * noise.trace()
        left = covariance.trace() + (dim - span.shape[1]) * spread_outside
        share_left = float(left / total) if total > 0 else 1.0
        text_r2 = 1.0 - min(max(share_left, _LEAST_LEFT), 1.0)
    outside = span.shape[1] < dim
    if outside:
        spread = torch.cat([spread, spread.new_full((dim,), spread_outside)])
    return _Between(span @ rotation, spread.clamp(min=_LEAST_SPREAD), text_r2, outside)


def _span_of(told: _Told, moments: Moments) -> Tensor:
    """Return orthonormal columns, float64 [D, R], that span all images and, if they predict anything, the texts."""
    axes = moments.axes
    dim, dims = axes.shape
    if dims == dim or not told.fit.r2:
        return axes
    span = row_span(torch.cat([axes.T, told.texts[told.has_text]]))
    return torch.linalg.qr(axes, mode="complete").Q if span is None else span


def better_kernel(
    moments: Moments, one: tuple[TextKernel, Tensor], other: tuple[TextKernel, Tensor]
) -> TextKernel:
    """Return the first of two kernels if by it texts leave less of class means left out, by one standard error.

    Args:
        moments: Statistics of the images.
        one, other: A kernel, and the texts of the C classes by it, float [C, T], see `text_prior.class_features`; they
            are alike but for what they read.
    """
    by_one, by_other = (_told_by(moments, texts, 1.0, kernel) for kernel, texts in (one, other))
    n = moments.counts[moments.counts > 0].double()
    weights = n / (n + 2.0) * by_one.has_text
    return one[0] if is_less(by_one.fit.residuals, by_other.fit.residuals, weights) else other[0]


def _between(
    residuals: Tensor, counts: Tensor, weights: Tensor, noise: Tensor, shrinkage: float, dim: int
) -> tuple[Tensor, float]:
    """Compute the shrunk covariance [R, R] of residuals [C, R], less noise / n for n = `counts` observations.

    Returns:
        The covariance, and its value outside of the R of `dim` dimensions.
    """
    classes, dims = residuals.shape
    if classes == 1:
        return torch.eye(dims).to(residuals), 1.0
    share = weights / weights.sum()
    between = (share[:, None] * residuals).T @ residuals - (share / counts).sum() * noise
    kept, level = shrinkage_of(between, classes, shrinkage, dim)
    return kept * between + level * torch.eye(dims).to(between), level
