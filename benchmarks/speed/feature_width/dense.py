"""`fit_stage_two` with D x D matrices in every fit: eigenvectors of both covariances, for each shrinkage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.feature_width import ours
from benchmarks.speed.harness import Arrays
from vlltr_index.heads import moments as images
from vlltr_index.heads import plda_fit
from vlltr_index.heads.moments import Moments, inverse_root, shrunk
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.text_prior import TextKernel, _about_others, _fit_alike, is_less, weighted_mean

_LEAST_SPREAD = 0.02
_TIE_BREAK = 1e-6
_RIDGES = tuple(10.0**n for n in range(-2, 5))
_FOLDS = 5
_FEWEST = 10


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The same inputs; the fits are replaced by those below."""
    images.row_span = lambda rows: None
    plda_fit.fit_model = fit_model
    return ours.prepare(inputs, values)


def run(state: Any) -> Arrays:
    """Fit, and compute the log-likelihoods of other images."""
    return ours.run(state)


def fit_model(
    moments: Moments, prototypes: Tensor, shrinkage: float | None = 1.0, kernel: TextKernel | None = None
) -> PLDA:
    """Fit the parameters that all classes share; return the model of the classes by these.

    Sigma is the within-class covariance S, shrunk. T is a multiple of the identity, plus a ridge regression of the rest
    on the vectors or on likeness, chosen on classes left out, see `text_prior.fit_text`; zero where it predicts
    nothing. Lambda is the covariance of the residuals on classes left out, less what sampling adds to class means,
    shrunk.

    Args:
        moments: Statistics of the images.
        prototypes: Float [C, T], as for `PLDA`; T is D without a kernel.
        shrinkage: How much both covariances are shrunk, see `shrunk`.
        kernel: That of the prototypes. The parameters have it if it tells more than the vectors.

    Raises:
        InputError: Prototypes are not finite.
    """
    dim = moments.sums.shape[1]
    there = moments.counts > 0
    n = moments.counts[there].double()
    weights = n / (n + 2.0)
    told = _told_by(moments, prototypes, shrinkage, kernel)
    fit = told.fit
    seen = told.seen
    has_text = told.has_text
    whitening = told.whitening
    noise = whitening @ moments.sampling @ whitening  # not the identity: S was shrunk before the root
    with_residual = has_text if fit.r2 else torch.ones_like(has_text)
    about_texts = _between(
        fit.residuals[with_residual],
        n[with_residual],
        weights[with_residual],
        noise=noise,
        shrinkage=shrinkage,
    )
    about_centre = _between(seen, n, weights, noise=noise, shrinkage=shrinkage)
    rotation = torch.linalg.eigh(about_texts + _TIE_BREAK * about_centre)[1]
    spread = (rotation.T @ about_texts @ rotation).diagonal().clamp(min=_LEAST_SPREAD)
    blank = torch.maximum((rotation.T @ about_centre @ rotation).diagonal(), spread) if fit.r2 else spread
    text_map = whitening @ fit.text_map[:dim]
    if kernel is not None:
        text_map = torch.cat([text_map, kernel.root @ fit.text_map[dim:]])
    kernel = kernel if bool(text_map[dim:].any()) else None
    width = dim if kernel is None else len(text_map)
    shifts = torch.zeros_like(moments.sums)
    shifts[there] = fit.shifts @ rotation
    shared = SharedGaussian(
        centre=told.centre,
        basis=whitening @ rotation,
        spread=spread,
        blank=blank,
        text_centre=told.text_centre[:width],
        text_map=text_map[:width] @ rotation,
        text_r2=fit.r2,
        kernel=kernel,
    )
    rows = moments.counts, moments.sums, prototypes[:, :width]
    return PLDA(shared, *rows, shifts=None if kernel is None else shifts)


@dataclass(frozen=True, eq=False)
class _Told:
    """What texts tell of the means of the C' classes that have images.

    Attributes:
        centre: Float64 [D], the mean of the class means.
        whitening: Float64 [D, D], the inverse root of the covariance within classes.
        seen: Float64 [C', D], class means less their mean, whitened.
        has_text: Bool [C'].
        text_centre: Float64 [T], the mean of the texts.
        fit: By all of them.
    """

    centre: Tensor
    whitening: Tensor
    seen: Tensor
    has_text: Tensor
    text_centre: Tensor
    fit: TextFit


def _told_by(
    moments: Moments, prototypes: Tensor, shrinkage: float | None, kernel: TextKernel | None
) -> _Told:
    """Fit what texts tell of class means; the arguments are those of `fit_model`."""
    there = moments.counts > 0
    n = moments.counts[there].double()
    means = moments.sums[there] / n[:, None]
    dim = means.shape[1]
    weights = n / (n + 2.0)
    centre = weighted_mean(means, weights)
    whitening = inverse_root(shrunk(moments.within, moments.freedom, shrinkage))
    text = prototypes.to(means.device)[there].double()
    has_text = (text != 0).any(1)
    text_centre = (
        weighted_mean(text[has_text], weights[has_text])
        if bool(has_text.any())
        else text.new_zeros(text.shape[1])
    )
    seen = (means - centre) @ whitening
    known = torch.where(has_text[:, None], text - text_centre, 0.0)
    alike = known[:, dim:] if kernel is None else known[:, dim:] @ kernel.root
    fit = fit_text(known[:, :dim] @ whitening, alike, seen, weights * has_text)
    return _Told(centre, whitening, seen, has_text, text_centre, fit)


def _between(
    residuals: Tensor, counts: Tensor, weights: Tensor, noise: Tensor, shrinkage: float | None
) -> Tensor:
    """Compute the shrunk covariance [D, D] of residuals [C, D], less noise / n for n = `counts` observations."""
    classes, dim = residuals.shape
    if classes == 1:
        return torch.eye(dim).to(residuals)
    share = weights / weights.sum()
    between = (share[:, None] * residuals).T @ residuals
    return shrunk(between - (share / counts).sum() * noise, classes, shrinkage)


@dataclass(frozen=True, eq=False)
class TextFit:
    """What texts tell of class means, fitted on classes.

    Attributes:
        text_map: Float64 [T, D], from centred texts to class means less their mean; zero where they predict nothing.
        residuals: Float64 [C, D], what class means that were left out of the fit differ from what it told of them;
            meaningless for classes without text unless the map is zero.
        shifts: Float64 [C, D], by how much a fit without a class, about the same mean of the class means, tells another
            mean of it.
        r2: Share of the class means' variance that texts predict for classes left out, 0 to 1.
    """

    text_map: Tensor
    residuals: Tensor
    shifts: Tensor
    r2: float


def fit_text(vectors: Tensor, alike: Tensor, seen: Tensor, weights: Tensor) -> TextFit:
    """Fit the map from texts to class means by predictions for classes that are left out.

    It is zero, or that of `_fit_vectors`, unless likeness to other classes' texts, beside a multiple of the identity,
    leaves less of classes left out than either that or the multiple alone, by one standard error over the classes.

    Args:
        vectors: Float64 [C, D], vectors less their mean, whitened.
        alike: Float64 [C, L], likeness less its mean, where the ridge is to be taken; L may be 0.
        seen: Float64 [C, D], class means less their mean, whitened.
        weights: Float64 [C]; 0 for a class without text.
    """
    mapped, residuals, r2 = _fit_vectors(vectors, seen, weights)
    dim = vectors.shape[1]
    nothing = seen.new_zeros(alike.shape[1], dim)
    first = TextFit(torch.cat([mapped, nothing]), residuals, torch.zeros_like(seen), r2)
    told = weights > 0
    if not alike.shape[1] or int(told.sum()) < _FEWEST:
        return first
    identity = _multiple(vectors, seen, weights)
    rest = seen - vectors @ identity
    found, left, shifts = _fit_alike(alike, rest, weights)
    apart = _about_others(seen, weights)
    if not all(
        is_less(left, other, weights) for other in (residuals if r2 else apart, _about_others(rest, weights))
    ):
        return first
    total = (weights[:, None] * apart.square()).sum()
    r2 = float(1.0 - (weights[:, None] * left.square()).sum() / total)
    return TextFit(torch.cat([identity, found]), left, shifts, r2)


def _fit_vectors(text: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Fit T, the map from text vectors to class means, by cross-validation over classes.

    Args:
        text: Float64 [C, D], prototypes less their mean, whitened.
        seen: Float64 [C, D], class means less their mean, whitened.
        weights: Float64 [C]; 0 for a class without text.

    Returns:
        T [D, D]; the residuals [C, D] of class means that were left out of the fit; and the R^2 of these predictions
        against the mean of the other classes, which T = 0 predicts. Residuals of classes without text are meaningless
        unless T = 0.
    """
    nothing = seen.new_zeros(text.shape[1], seen.shape[1])
    has_text = weights > 0
    if int(has_text.sum()) < 3:
        return nothing, seen, 0.0
    folds = (has_text.cumsum(0) - 1).clamp(min=0)  # with few classes each is a fold
    if int(has_text.sum()) >= 2 * _FOLDS:
        folds = folds % _FOLDS
    alone = torch.zeros_like(seen)
    predicted = [torch.zeros_like(seen) for _ in (0.0, *_RIDGES)]
    for fold in folds.unique():
        out = folds == fold
        w = torch.where(out, 0.0, weights)
        x0 = weighted_mean(text, w)
        y0 = weighted_mean(seen, w)
        alone[out] = seen[out] - y0
        for which, mapped in enumerate(_maps(text - x0, seen - y0, w)):
            predicted[which][out] = (text[out] - x0) @ mapped
    total = (weights[:, None] * alone.square()).sum()
    left = torch.stack([(weights[:, None] * (alone - f).square()).sum() for f in predicted])
    best = int(left.argmin())
    r2 = float(1.0 - left[best] / total) if float(total) else 0.0
    if not r2 > 0.0:
        return nothing, seen, 0.0
    residuals = alone - predicted[best]
    chosen = _maps(text - weighted_mean(text, weights), seen - weighted_mean(seen, weights), weights)[best]
    return chosen, residuals, r2


def _maps(text: Tensor, seen: Tensor, weights: Tensor) -> list[Tensor]:
    """Fit a I, and a I + R for each ridge of `_RIDGES`; text and class means [C, D] are centred."""
    w = weights[:, None]
    identity = _multiple(text, seen, weights)
    values, vectors = torch.linalg.eigh((w * text).T @ text)
    toward = vectors.T @ ((w * text).T @ (seen - text @ identity))
    level = values.mean().clamp(min=1e-300)
    return [
        identity,
        *(identity + vectors @ (toward / (values + ridge * level)[:, None]) for ridge in _RIDGES),
    ]


def _multiple(text: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
    """Fit the multiple of the identity, [D, D], that maps centred texts [C, D] to class means [C, D]."""
    w = weights[:, None]
    scale = (w * text * seen).sum() / (w * text.square()).sum().clamp(min=1e-300)
    return torch.eye(text.shape[1]).to(text) * scale
