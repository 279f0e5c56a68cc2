"""One generative model of image features for all classes, trained or added, in closed form.

Probabilistic LDA (Ioffe 2006; Prince & Elder 2007) with a prior mean that the class's text gives:

    x | c ~ N(mu_c, s Sigma)        mu_c ~ N(g + T (t_c - tbar), Lambda)

A class is described by the number of its observations (images, of which those of a unit count as fewer), their
features, and its text prototype. So classes can be added and removed without a new fit, also ones without images. A
class without text, or whose images are less likely under the prior of its text than without, has the wider prior
N(g, Lambda_0). All is computed in the basis where Sigma is the identity and Lambda is diagonal; of Lambda_0 only the
diagonal is used there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.moments import Moments, inverse_root, shrunk
from vlltr_index.heads.text_prior import (
    TextFit,
    TextKernel,
    fit_text,
    is_less,
    sentence_features,
    weighted_mean,
)
from vlltr_index.tensors import full_precision

_LEAST_SPREAD = 0.02
_CLASSES_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class SharedGaussian:
    """Parameters of the generative model that all classes share; float64.

    Attributes:
        centre: [D], g: the mean of the class means.
        basis: [D, D]; z = (x - centre) @ basis has within-class covariance I, and Lambda is diagonal there.
        spread: [D], Lambda's diagonal.
        blank: [D], Lambda_0's diagonal: the variance of class means about g, at least that of `spread`.
        text_centre: [T], tbar.
        text_map: [T, D]; (t - text_centre) @ text_map is a class's prior mean in the basis. Zero where texts do not
            predict the class means.
        kernel: Makes the last T - D numbers of a text, see `text_prior.class_features`; None: T is D.
        noise: s, the covariance of images within a class, in units of Sigma, for images that were not fitted.
        text_r2: Share of the class means' variance that texts predict for classes left out of the fit, 0 to 1.
    """

    centre: Tensor
    basis: Tensor
    spread: Tensor
    blank: Tensor
    text_centre: Tensor
    text_map: Tensor
    noise: float = 1.0
    text_r2: float = 0.0
    kernel: TextKernel | None = None

    def tell(self, texts: Tensor) -> Tensor:
        """Compute the prior means in the basis, [M, D] in float32 at least, that texts float [M, T] give."""
        dtype = torch.promote_types(texts.dtype, torch.float32)
        return (texts.to(dtype) - self.text_centre.to(dtype)) @ self.text_map.to(dtype)

    @property
    def told(self) -> SharedGaussian:
        """The parameters where the text of a class is given as the prior mean that `tell` makes of it, T = D."""
        none = torch.zeros_like(self.centre)
        return replace(self, text_centre=none, text_map=torch.eye(len(none)).to(none), kernel=None)

    def to(self, device: torch.device | str) -> SharedGaussian:
        """Return the parameters on another device."""
        names = ("centre", "basis", "spread", "blank", "text_centre", "text_map")
        kernel = self.kernel if self.kernel is None else self.kernel.to(device)
        return replace(self, kernel=kernel, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, eq=False)
class PLDA:
    """PLDA model of C classes under shared parameters.

    Attributes:
        shared: The parameters.
        counts: Int64 [C], observations of each class, see `moments.observation_weights`; may be 0.
        sums: Float64 [C, D], the weighted sum of the images' features.
        prototypes: Float [C, T], `text_prior.class_features` of each class's anchors; a row of zeros is a class without
            text.
        trust: Float64 [C], 0 to 1: how far the prior of each class's text lies from the blank prior, at 0, to the one
            that `shared` tells, at 1; None: 1 for all.
        shifts: Float64 [C, D], what is added to the prior mean that `shared` tells of each class: it was fitted on the
            class's own images too, and a fit without it tells another one. None: nothing.
    """

    shared: SharedGaussian
    counts: Tensor
    sums: Tensor
    prototypes: Tensor
    trust: Tensor | None = None
    shifts: Tensor | None = None

    @cached_property
    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the prior of each class mean in the basis, both float64 [C, D]."""
        has_text = (self.prototypes != 0).any(1)
        return _prior(self.shared, self.counts, self._means, *self._told, has_text)

    @cached_property
    def _told(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the prior that each class's text gives, both float64 [C, D]."""
        trust = self._trust[:, None]
        predicted = self.shared.tell(self.prototypes.double())
        predicted = predicted if self.shifts is None else predicted + self.shifts
        return trust * predicted, trust * self.shared.spread + (1.0 - trust) * self.shared.blank

    @property
    def _trust(self) -> Tensor:
        return torch.ones_like(self.sums[:, 0]) if self.trust is None else self.trust

    @property
    def text_evidence(self) -> Tensor:
        """Log-likelihood of the mean image of each class under the prior of its text, up to a constant: float64 [C].

        It is meaningless for a class without images, and for one without text.
        """
        predicted, spread = self._told
        sampling = self.shared.noise / self.counts.double().clamp(min=1.0)[:, None]
        return _log_density(self._means - predicted, spread + sampling)[:, 0]

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and predictive variance of each class in the basis, both float64 [C, D]."""
        return _posterior(self.shared, self.counts, self._means, *self.prior)

    @cached_property
    def without_text(self) -> PLDA:
        """The model as it is if no class has a text; itself where the texts make no difference."""
        found = replace(self, prototypes=self.prototypes.new_zeros(()).expand_as(self.prototypes))
        models = zip(self._in_parts(), found._in_parts(), strict=True)
        pairs = (pair for (_, own), (_, other) in models for pair in zip(own.prior, other.prior, strict=True))
        same = all(torch.allclose(own, other, rtol=1e-9, atol=1e-12) for own, other in pairs)
        return self if same else found

    def map_sentences(self, position: int, sentences: Tensor) -> Tensor:
        """Return the prior mean in the basis that each sentence alone would give a class, float [M, D].

        Args:
            position: The class.
            sentences: Float [M, T], see `text_prior.sentence_features`. The prior mean of a class is the mean of these
                of its anchors.
        """
        told = self.shared.tell(sentences)
        told = told if self.shifts is None else told + self.shifts[position].to(told)
        return float(self._trust[position]) * told

    def likelihoods_if(self, position: int, predicted: Tensor, has_text: Tensor, z: Tensor) -> Tensor:
        """Compute a class's log-likelihood for one image if its text were another, up to a constant: float64 [K].

        Args:
            position: The class.
            predicted: Float64 [K, D], prior means in the basis.
            has_text: Bool [K], whether it has a text at all.
            z: Float64 [D], the image in the basis.
        """
        own = self.select(slice(position, position + 1))
        prior = _prior(self.shared, own.counts, own._means, predicted, own._told[1], has_text)
        mean, variance = _posterior(self.shared, own.counts, own._means, *prior)
        return _log_density(z - mean, variance)[:, 0]

    @cached_property
    def _means(self) -> Tensor:
        """Mean of each class's images in the basis, float64 [C, D]; meaningless for a class without images."""
        n = self.counts.double()[:, None].clamp(min=1.0)
        return (self.sums / n - self.shared.centre) @ self.shared.basis

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Compute log N(x; m_c, v_c) up to a constant that all classes share.

        Args:
            features: Float [B, D], normalised if those were that the model was fitted on.

        Returns:
            [B, C], in the features' dtype, float32 at least.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        weights, offset, centre, basis = self._on(features.device, dtype)
        with full_precision(features.device):
            z = (features.to(dtype) - centre) @ basis
            squares = z.square()
            # All classes share it, and it can be in the thousands: in the product float32 would round away by what they
            # differ. The difference is still rounded, to some 1e-4 at 2,000.
            distance = 0.5 / self.shared.noise * squares.sum(1, keepdim=True)
            return torch.cat([squares, z], 1) @ weights - offset - distance

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return weights, offset, centre and basis on a device in a dtype; the copies are cached."""
        if (device, dtype) not in self._placed:
            parts = (*self._quadratic(dtype), self.shared.centre, self.shared.basis)
            self._placed[device, dtype] = tuple(part.to(device, dtype) for part in parts)
        return self._placed[device, dtype]

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]]:
        """Copies of `_on` by device and dtype."""
        return {}

    def _quadratic(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute weights [2 D, C] and offset [C] in a dtype.

        The log-likelihood is [z^2, z] @ weights - offset - |z|^2 / 2 s, s the variance of `shared.noise`.
        """
        classes, dim = self.sums.shape
        weights = self.sums.new_empty(2 * dim, classes, dtype=dtype)
        offset = self.sums.new_empty(classes, dtype=dtype)
        for at, part in self._in_parts():
            mean, variance = part.posterior
            weights[:, at] = torch.cat([0.5 / self.shared.noise - 0.5 / variance, mean / variance], 1).T
            offset[at] = (0.5 * (mean.square() / variance + variance.log()).sum(1)).to(dtype)
        return weights, offset

    def _in_parts(self) -> Iterator[tuple[slice, PLDA]]:
        """Yield the model some classes at a time: all cached numbers of many classes take much memory."""
        classes = len(self.counts)
        if classes <= _CLASSES_AT_ONCE:
            yield slice(0, classes), self
            return
        for first in range(0, classes, _CLASSES_AT_ONCE):
            at = slice(first, first + _CLASSES_AT_ONCE)
            yield at, self.select(at)

    def select(self, classes: Tensor | slice) -> PLDA:
        """Return the model of the classes at the positions int64 [C'] alone."""
        classes = classes if isinstance(classes, slice) else classes.to(self.sums.device)
        trust = None if self.trust is None else self.trust[classes]
        shifts = None if self.shifts is None else self.shifts[classes]
        rows = self.counts[classes], self.sums[classes], self.prototypes[classes]
        return PLDA(self.shared, *rows, trust, shifts)


def prior_means(bank: AnchorBank, shared: SharedGaussian) -> Tensor:
    """Compute the prior mean in the basis that the anchors of each class give, float32 [C, D].

    Args:
        bank: The anchors of C classes, with their words if `shared` has a kernel.
        shared: The parameters.
    """
    means = bank.vectors.new_empty(bank.num_classes, len(shared.centre), dtype=torch.float32)
    counts = bank.offsets.diff()
    for block in bank.blocks:  # of the features, which may be many numbers a class, only their means are kept
        found = sentence_features(bank, slice(block.start, block.stop), shared.kernel)
        sums = found.new_zeros(block.last - block.first, found.shape[1])
        sums.index_add_(0, bank.class_of_row[block.start : block.stop] - block.first, found)
        features = sums / counts[block.first : block.last, None]
        means[block.first : block.last] = shared.tell(features.double()).float()
    return means


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
    if not bool(prototypes.isfinite().all()):
        raise InputError("prototypes must be finite", "vlltr embed")
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
    spread, rotation = torch.linalg.eigh(about_texts)
    spread = spread.clamp(min=_LEAST_SPREAD)
    about_centre = _between(seen, n, weights, noise=noise, shrinkage=shrinkage)
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


def _prior(
    shared: SharedGaussian,
    counts: Tensor,
    seen: Tensor,
    predicted: Tensor,
    spread: Tensor,
    has_text: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of the prior of class means, both float64 [C, D].

    Args:
        shared: The parameters.
        counts: Int64 [C], observations of each class; or [1], the same for all, like the next.
        seen: Float64 [C, D], the mean of its images in the basis.
        predicted: Float64 [C, D], the prior mean by its text.
        spread: Float64 [C, D], its variance; or [1, D].
        has_text: Bool [C]; a class whose images are likelier without its text has the prior without, too.
    """
    sampling = shared.noise / counts.double().clamp(min=1.0)[:, None]
    by_text = _log_density(seen - predicted, spread + sampling)
    by_none = _log_density(seen, shared.blank + sampling)
    told = has_text[:, None] & ((counts == 0)[:, None] | (by_text >= by_none))
    return torch.where(told, predicted, 0.0), torch.where(told, spread, shared.blank)


def _posterior(
    shared: SharedGaussian, counts: Tensor, seen: Tensor, mean: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute mean and predictive variance of classes, float64 [C, D], from their prior and images as for `_prior`."""
    n = counts.double()[:, None]
    gain = n * spread / (n * spread + shared.noise)
    return mean + gain * (seen - mean), shared.noise + spread * (1.0 - gain)


def _log_density(apart: Tensor, variance: Tensor) -> Tensor:
    """Compute log N(apart; 0, variance) of rows [C, D], up to a constant: [C, 1]."""
    return -0.5 * (apart.square() / variance + variance.log()).sum(1, keepdim=True)


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
