"""One generative model of image features for all classes, trained or added, in closed form.

Probabilistic LDA (Ioffe 2006; Prince & Elder 2007) with a prior mean that the class's text gives:

    x | c ~ N(mu_c, Sigma)          mu_c ~ N(g + T (t_c - tbar), Lambda)

A class is described by the number of its observations (images, of which those of a unit count as fewer), their
features, and its text prototype. So classes can be added and removed without a new fit, also ones without images. A
class without text, or whose images are less likely under the prior of its text than without, has the wider prior
N(g, Lambda_0), where Lambda_0 is Lambda / (1 - R^2). All is computed in the basis where Sigma is the identity and
Lambda is diagonal.

Where images and texts are fewer than dimensions, they span R of D dimensions. Outside of this span Sigma, Lambda and
Lambda_0 are multiples of the identity, so that only R dimensions need a basis, see `Outside`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.text_prior import TextKernel, sentence_features
from vlltr_index.tensors import full_precision

_CLASSES_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Outside:
    """The D - R dimensions outside the span of what was fitted, where all covariances are multiples of the identity.

    A vector's part outside the span is kept as D numbers, which all lie in these D - R dimensions.

    Attributes:
        span: Float64 [D, R], orthonormal columns.
        scale: By what a vector outside the span is multiplied to have within-class covariance I.
        text_scale: By what a text outside the span is multiplied to give the prior mean.
    """

    span: Tensor
    scale: float
    text_scale: float

    def part(self, rows: Tensor) -> Tensor:
        """Return the part of rows [M, D] outside the span: [M, D]."""
        span = self.span.to(rows)
        return rows - (rows @ span) @ span.T

    @cached_property
    def directions(self) -> Tensor:
        """Orthonormal columns outside the span, float64 [D, D - R]."""
        found: Tensor = torch.linalg.qr(self.span, mode="complete").Q[:, self.span.shape[1] :]
        return found


@dataclass(frozen=True, eq=False)
class SharedGaussian:
    """Parameters of the generative model that all classes share; float64.

    Z coordinates describe a vector in the basis: D, or R + D where something lies outside the span.

    Attributes:
        centre: [D], g: the mean of the class means.
        basis: [D, R]; (x - centre) @ basis has within-class covariance I, and Lambda is diagonal there; R is D, or the
            dimensions of the span.
        spread: [Z], Lambda's diagonal.
        text_centre: [T], tbar.
        text_map: [T, R]; (t - text_centre) @ text_map is a class's prior mean in the basis. Zero where texts do not
            predict the class means.
        kernel: Makes the last T - D numbers of a text, see `text_prior.class_features`; None: T is D.
        text_r2: Share of the class means' variance, less what sampling adds, that texts predict for classes left out of
            the fit, 0 to 0.95.
        outside: What is outside the span; None: nothing, R is D.
    """

    centre: Tensor
    basis: Tensor
    spread: Tensor
    text_centre: Tensor
    text_map: Tensor
    text_r2: float = 0.0
    kernel: TextKernel | None = None
    outside: Outside | None = None

    @property
    def blank(self) -> Tensor:
        """Lambda_0's diagonal, [Z]: texts leave the share 1 - `text_r2` of the variance of class means about g."""
        return self.spread / (1.0 - self.text_r2)

    def coordinates(self, features: Tensor) -> Tensor:
        """Compute features, float [M, D], normalised, in the basis: [M, Z], in their dtype, float32 at least."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        apart = features.to(dtype) - self.centre.to(features.device, dtype)
        inside = apart @ self.basis.to(apart)
        if self.outside is None:
            return inside
        return torch.cat([inside, self.outside.scale * self.outside.part(apart)], -1)

    def linear(self, z: Tensor) -> Tensor:
        """Return rows [M, D] whose products with x - centre are those of z, float64 [M, Z], with x in the basis."""
        dims = self.basis.shape[1]
        rows = z[:, :dims] @ self.basis.T
        return rows if self.outside is None else rows + self.outside.scale * self.outside.part(z[:, dims:])

    def tell(self, texts: Tensor) -> Tensor:
        """Compute the prior means in the basis, [M, Z] in float32 at least, that texts float [M, T] give."""
        dtype = torch.promote_types(texts.dtype, torch.float32)
        apart = texts.to(dtype) - self.text_centre.to(dtype)
        inside = apart @ self.text_map.to(dtype)
        if self.outside is None:
            return inside
        beyond = self.outside.part(apart[:, : len(self.centre)])
        return torch.cat([inside, self.outside.text_scale * beyond], -1)

    def log_density(self, apart: Tensor, variance: Tensor) -> Tensor:
        """Compute log N(apart; 0, variance) of rows [M, Z], up to a constant: [M]."""
        return -0.5 * ((apart.square() / variance).sum(-1) + self.log_volume(variance))

    def log_volume(self, variance: Tensor) -> Tensor:
        """Sum the logarithms of variances [M, Z] over the D dimensions: [M]."""
        logs = variance.log()
        if self.outside is None:
            return logs.sum(-1)
        dim, dims = self.basis.shape
        return logs[..., :dims].sum(-1) + (dim - dims) * logs[..., -1]  # outside they are all alike

    @property
    def whole(self) -> SharedGaussian:
        """The same parameters with a basis of all D dimensions."""
        if self.outside is None:
            return self
        beyond = self.outside.directions
        of_text = torch.cat([beyond, beyond.new_zeros(len(self.text_map) - len(beyond), beyond.shape[1])])
        dim = len(self.centre)
        return replace(
            self,
            basis=torch.cat([self.basis, self.outside.scale * beyond], 1),
            spread=self.spread[:dim],
            text_map=torch.cat([self.text_map, self.outside.text_scale * of_text], 1),
            outside=None,
        )

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float64) -> SharedGaussian:
        """Return the parameters on another device, in a dtype."""
        names = ("centre", "basis", "spread", "text_centre", "text_map")
        kernel = self.kernel if self.kernel is None else self.kernel.to(device)
        outside = self.outside and replace(self.outside, span=self.outside.span.to(device, dtype))
        moved = {name: getattr(self, name).to(device, dtype) for name in names}
        return replace(self, kernel=kernel, outside=outside, **moved)


@dataclass(frozen=True, eq=False)
class PLDA:
    """PLDA model of C classes under shared parameters.

    Attributes:
        shared: The parameters.
        counts: Int64 [C], observations of each class, see `moments.observation_weights`; may be 0.
        sums: Float64 [C, D], the weighted sum of the images' features.
        predicted: Float [C, Z], the prior mean that `shared` predicts by each class's text, see `prior_means`; a row of
            zeros is a class without text.
        trust: Float64 [C], 0 to 1: how far the prior of each class's text lies from the blank prior, at 0, to the one
            that `shared` tells, at 1; None: 1 for all.
        shifts: Float64 [C, Z], what is added to `predicted` of each class: it was fitted on the class's own images too,
            and a fit without them predicts another mean. None: nothing.
    """

    shared: SharedGaussian
    counts: Tensor
    sums: Tensor
    predicted: Tensor
    trust: Tensor | None = None
    shifts: Tensor | None = None

    @property
    def whole(self) -> PLDA:
        """The same model with a basis of all D dimensions."""
        shared = self.shared
        if shared.outside is None:
            return self
        dim, dims = shared.basis.shape
        beyond = self.predicted[:, dims:] @ shared.outside.directions.to(self.predicted)
        predicted = torch.cat([self.predicted[:, :dims], beyond], 1)
        shifts = None if self.shifts is None else self.shifts[:, :dim]  # none lies outside the span
        return replace(self, shared=shared.whole, predicted=predicted, shifts=shifts)

    @cached_property
    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the prior of each class mean in the basis, both float64 [C, Z]."""
        has_text = (self.predicted != 0).any(1)
        return _prior(self.shared, self.counts, self._means, *self._told, has_text)

    @cached_property
    def _told(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the prior that each class's text gives, both float64 [C, Z]."""
        trust = self._trust[:, None]
        predicted = self.predicted.double()
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
        sampling = 1.0 / self.counts.double().clamp(min=1.0)[:, None]
        return self.shared.log_density(self._means - predicted, spread + sampling)

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and predictive variance of each class in the basis, both float64 [C, Z]."""
        return _posterior(self.counts, self._means, *self.prior)

    @cached_property
    def without_text(self) -> PLDA:
        """The model as it is if no class has a text; itself where the texts make no difference."""
        found = replace(self, predicted=self.predicted.new_zeros(()).expand_as(self.predicted))
        models = zip(self._in_parts(), found._in_parts(), strict=True)
        pairs = (pair for (_, own), (_, other) in models for pair in zip(own.prior, other.prior, strict=True))
        same = all(torch.allclose(own, other, rtol=1e-9, atol=1e-12) for own, other in pairs)
        return self if same else found

    def map_sentences(self, position: int, told: Tensor) -> Tensor:
        """Return the prior mean in the basis that each sentence alone would give a class, float [M, Z].

        Args:
            position: The class.
            told: Float [M, Z], what `SharedGaussian.tell` predicts by each sentence. The prior mean of a class is the
                mean over its anchors.
        """
        told = told if self.shifts is None else told + self.shifts[position].to(told)
        return float(self._trust[position]) * told

    def likelihoods_if(self, position: int, predicted: Tensor, has_text: Tensor, z: Tensor) -> Tensor:
        """Compute a class's log-likelihood for one image if its text were another, up to a constant: float64 [K].

        Args:
            position: The class.
            predicted: Float64 [K, Z], prior means in the basis.
            has_text: Bool [K], whether it has a text at all.
            z: Float64 [Z], the image in the basis.
        """
        own = self.select(slice(position, position + 1))
        prior = _prior(self.shared, own.counts, own._means, predicted, own._told[1], has_text)
        mean, variance = _posterior(own.counts, own._means, *prior)
        return self.shared.log_density(z - mean, variance)

    @cached_property
    def _means(self) -> Tensor:
        """Mean of each class's images in the basis, float64 [C, Z]; meaningless for a class without images."""
        n = self.counts.double()[:, None].clamp(min=1.0)
        return self.shared.coordinates(self.sums / n)

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Compute log N(x; m_c, v_c) up to a constant that all classes share.

        Args:
            features: Float [B, D], normalised if those were that the model was fitted on.

        Returns:
            [B, C], in the features' dtype, float32 at least.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        shared, weights, offset = self._on(features.device, dtype)
        with full_precision(features.device):
            z = shared.coordinates(features)
            squares = z.square()
            # All classes share it, and it can be in the thousands: in the product float32 would round away by what they
            # differ. The difference is still rounded, to some 1e-4 at 2,000.
            distance = 0.5 * squares.sum(1, keepdim=True)
            return torch.cat([squares, z], 1) @ weights - offset - distance

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[SharedGaussian, Tensor, Tensor]:
        """Return the parameters, weights and offset on a device in a dtype; the copies are cached."""
        if (device, dtype) not in self._placed:
            weights, offset = self._quadratic(dtype)
            shared = self.shared.to(device, dtype)
            self._placed[device, dtype] = shared, weights.to(device), offset.to(device)
        return self._placed[device, dtype]

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], tuple[SharedGaussian, Tensor, Tensor]]:
        """Copies of `_on` by device and dtype."""
        return {}

    def _quadratic(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute weights [2 Z, C] and offset [C] in a dtype.

        The log-likelihood is [z^2, z] @ weights - offset - |z|^2 / 2.
        """
        classes = len(self.counts)
        weights = self.sums.new_empty(2 * len(self.shared.spread), classes, dtype=dtype)
        offset = self.sums.new_empty(classes, dtype=dtype)
        for at, part in self._in_parts():
            mean, variance = part.posterior
            weights[:, at] = torch.cat([0.5 - 0.5 / variance, mean / variance], 1).T
            offset[at] = (-self.shared.log_density(mean, variance)).to(dtype)
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
        rows = self.counts[classes], self.sums[classes], self.predicted[classes]
        return PLDA(self.shared, *rows, trust, shifts)


def prior_means(bank: AnchorBank, shared: SharedGaussian) -> Tensor:
    """Compute the prior mean in the basis that the anchors of each class give, float32 [C, Z].

    Args:
        bank: The anchors of C classes, with their words if `shared` has a kernel.
        shared: The parameters.
    """
    means = bank.vectors.new_empty(bank.num_classes, len(shared.spread), dtype=torch.float32)
    counts = bank.offsets.diff()
    for block in bank.blocks:  # of the features, which may be many numbers a class, only their means are kept
        found = sentence_features(bank, slice(block.start, block.stop), shared.kernel)
        sums = found.new_zeros(block.last - block.first, found.shape[1])
        sums.index_add_(0, bank.class_of_row[block.start : block.stop] - block.first, found)
        features = sums / counts[block.first : block.last, None]
        means[block.first : block.last] = shared.tell(features.double()).float()
    return means


def _prior(
    shared: SharedGaussian,
    counts: Tensor,
    seen: Tensor,
    predicted: Tensor,
    spread: Tensor,
    has_text: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of the prior of class means, both float64 [C, Z].

    Args:
        shared: The parameters.
        counts: Int64 [C], observations of each class; or [1], the same for all, like the next.
        seen: Float64 [C, Z], the mean of its images in the basis.
        predicted: Float64 [C, Z], the prior mean by its text.
        spread: Float64 [C, Z], its variance; or [1, Z].
        has_text: Bool [C]; a class whose images are likelier without its text has the prior without, too.
    """
    sampling = 1.0 / counts.double().clamp(min=1.0)[:, None]
    by_text = shared.log_density(seen - predicted, spread + sampling)
    by_none = shared.log_density(seen, shared.blank + sampling)
    told = (has_text & ((counts == 0) | (by_text >= by_none)))[:, None]
    return torch.where(told, predicted, 0.0), torch.where(told, spread, shared.blank)


def _posterior(counts: Tensor, seen: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and predictive variance of classes, float64 [C, Z], from their prior and images as for `_prior`."""
    n = counts.double()[:, None]
    gain = n * spread / (n * spread + 1.0)
    return mean + gain * (seen - mean), 1.0 + spread * (1.0 - gain)
