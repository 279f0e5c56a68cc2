"""Rules of the baselines on stored features: pure functions, tensors in, tensors out.

Features float [N, D] are unnormalised, labels int64 [N] in 0..C-1; weights have shape [C, D], biases [C]. Sources:
cRT, tau-normalisation and LWS from Kang et al., "Decoupling Representation and Classifier for Long-Tailed
Recognition", ICLR 2020; logit adjustment from Menon et al., ICLR 2021; KNN over sentences from Tian et al. 2022, Table
4; Tip-Adapter from Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vlltr_index.errors import InputError, VlltrError
from vlltr_index.heads.moments import row_span, shrunk
from vlltr_index.heads.weighing import balanced_accuracy
from vlltr_index.tensors import cosine_logits, unit_rows, working_dtype
from vlltr_index.train.losses import adjusted_cross_entropy, sampler_prior
from vlltr_index.train.sampling import epoch_batches, stream
from vlltr_index.train.schedule import cosine_factor

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

_BATCH = 512
_LBFGS_STEPS = 300
_Setting = TypeVar("_Setting")


def linear_logits(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute features W^T + bias: [N, C]."""
    dtype = working_dtype(features, weight)
    logits = features.to(dtype) @ weight.to(dtype).T
    return logits if bias is None else logits + bias.to(dtype)


def adjusted_logits(logits: Tensor, class_counts: Tensor, sampler_power: float) -> Tensor:
    """Adjust logits [N, C] after training: subtract the log of the sampler's class prior.

    Images were drawn by the weights n_c^-sampler_power, with n_c of `class_counts`, int64 [C]; a class without images
    gets minus infinity.
    """
    prior = sampler_prior(class_counts, sampler_power).to(logits.device)
    return torch.where(prior > 0, logits - prior.log().to(logits.dtype), -torch.inf)


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Compute the mean of each class's normalised features, normalised again: [C, D].

    With images as rows this is the nearest class mean; with a class's prompts it is the zero-shot classifier.

    Raises:
        InputError: A class has no row.
    """
    labels = labels.to(features.device)
    counts = torch.bincount(labels, minlength=num_classes)
    if bool((counts == 0).any()):
        raise InputError(f"class {int((counts == 0).nonzero()[0])} has no row to take the mean of")
    rows = unit_rows(features)
    sums = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return unit_rows(sums.index_add(0, labels, rows) / counts[:, None])


def shrunk_discriminant(
    features: Tensor, labels: Tensor, num_classes: int, shrinkage: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Fit a linear discriminant with equal priors; return weight [C, D] and bias [C].

    The covariance pooled within the classes is shrunk, see `shrunk`. Every class must have a row. With fewer rows than
    dimensions all is computed in the span of the rows, where the discriminants lie.
    """
    width = features.shape[1]
    span = row_span(features)
    rows = features if span is None else features.double() @ span
    sums = rows.new_zeros(num_classes, rows.shape[1]).index_add(0, labels, rows)
    means = sums / torch.bincount(labels, minlength=num_classes)[:, None]
    within = rows - means[labels]
    freedom = len(labels) - num_classes
    pooled = within.T @ within / max(freedom, 1)
    covariance = (
        shrunk(pooled, freedom, shrinkage, width) if pooled.trace() > 0 else torch.eye(len(pooled)).to(pooled)
    )
    weight = torch.linalg.solve(covariance, means.T).T
    bias = -(means * weight).sum(1) / 2
    weight = weight if span is None else weight @ span.T
    return weight.to(features), bias.to(features)


def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fit multinomial logistic regression with an L2 penalty once per C; yield weight [C, D] and bias [C], float64.

    The solver is scikit-learn's L-BFGS with at most 300 steps, on the CPU. Each fit starts from the previous one. Rows
    are centred, which the bias undoes. With fewer rows than dimensions the fit runs in their span, where the weights
    lie.

    Args:
        features: Float [N, D], normalised; the fit has their dtype.
        labels: Int64 [N], 0 to C - 1; every class has a row.
        num_classes: C.
        strengths: Values of scikit-learn's `C`, the inverse strength of the penalty.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if num_classes == 1:  # scikit-learn refuses a single class
        weight = features.new_zeros(1, features.shape[1], dtype=torch.float64)
        yield from ((weight, weight[:, 0]) for _ in strengths)
        return
    mean = features.double().mean(0)
    rows = features.double() - mean
    span = row_span(rows)
    solved = (rows if span is None else rows @ span).to(features.dtype).cpu().numpy()
    model = LogisticRegression(max_iter=_LBFGS_STEPS, warm_start=True)
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is bounded on purpose
            model.set_params(C=strength).fit(solved, labels.cpu().numpy())
        weight = torch.from_numpy(model.coef_.copy()).to(rows)
        bias = torch.from_numpy(model.intercept_.copy()).to(rows)
        if num_classes == 2:  # scikit-learn returns the logit of the second class alone
            weight = torch.cat([torch.zeros_like(weight), weight])
            bias = torch.cat([torch.zeros_like(bias), bias])
        weight = weight if span is None else weight @ span.T
        yield weight, bias - weight @ mean


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """Compute w_i / |w_i|^tau of each row; a row of zeros stays zero. This baseline has no bias."""
    norms = weight.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, weight / norms.clamp(min=1e-30) ** tau, weight)


@dataclass(frozen=True)
class HeadTraining:
    """Settings of a training on stored features, in which an epoch draws about as many images as there are."""

    epochs: int = 10
    batch_size: int = 256
    lr: float = 1e-2  # peak of AdamW's rate, with a cosine schedule, for features of root mean square one
    weight_decay: float = 0.0
    sampler_power: float = 0.5  # 0: images uniformly, 0.5: square-root sampler, 1: classes uniformly
    logit_adjustment: float = 0.0  # by the sampler's prior, in the loss; 0 is cross-entropy
    seed: int = 0


def fc_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    training: HeadTraining,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Train a linear classifier from zero on frozen features; return weight and bias. With `sampler_power` 1 it is cRT.

    Features may be [V, N, D] with V views of each image, of which a step takes one at random.

    Raises:
        VlltrError: The loss is not finite.
    """
    features = features.to(working_dtype(features))
    rms = features.pow(2).mean().sqrt().clamp(min=1e-12)
    weight = features.new_zeros(num_classes, features.shape[-1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()

    def logits(rows: Tensor) -> Tensor:
        return linear_logits(rows / rms, weight, bias)

    _minimise(
        [weight, bias],
        logits,
        features,
        labels=labels,
        training=training,
        name="train linear head",
        progress=progress,
    )
    return weight.detach() / rms, bias.detach()


def lws_scales(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: HeadTraining,
    progress: Progress | None = None,
) -> Tensor:
    """Train learnable weight scaling: factors f_i [C] of the logits f_i (w_i . x + b_i), starting at 1; w, b are fixed.

    Arguments and errors are those of `fc_head`; the paper's `sampler_power` is 1.
    """
    factors = weight.new_ones(len(weight), dtype=working_dtype(features)).requires_grad_()

    def logits(rows: Tensor) -> Tensor:
        return linear_logits(rows, weight, bias) * factors

    features = features.to(factors.dtype)
    _minimise(
        [factors],
        logits,
        features,
        labels=labels,
        training=training,
        name="train weight scaling",
        progress=progress,
    )
    return factors.detach()


def _minimise(
    parameters: list[Tensor],
    logits: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
    training: HeadTraining,
    name: str,
    progress: Progress | None,
) -> None:
    """Minimise the (logit-adjusted) cross-entropy of `logits` [B, C] over leaf tensors [C, ...], in place."""
    views = features[None] if features.dim() == 2 else features
    labels = labels.cpu()
    power = training.sampler_power
    log_prior = sampler_prior(torch.bincount(labels, minlength=len(parameters[0])), power).log()
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
    for epoch in range(training.epochs):
        batches = epoch_batches(labels, training.batch_size, power, stream(training.seed, epoch, name))
        draw = stream(training.seed, epoch, name, "view")
        chosen = torch.randint(len(views), batches.shape, generator=draw)
        total = len(batches) * training.epochs
        for step, (positions, view) in enumerate(zip(batches, chosen, strict=True), epoch * len(batches)):
            for group in optimizer.param_groups:
                group["lr"] = training.lr * cosine_factor(step, total, 0)
            rows = views[
                view.to(views.device, non_blocking=True), positions.to(views.device, non_blocking=True)
            ]
            loss = adjusted_cross_entropy(
                logits(rows), labels[positions], log_prior, training.logit_adjustment
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if progress:
                progress(name, step + 1, total)
        if not float(loss.detach()) < float("inf"):
            raise VlltrError(
                f"{name}: the loss is {float(loss.detach())} in epoch {epoch + 1}",
                "Try lower learning rates: --set baselines.lrs=[1e-4]",
            )


def knn_sentence_logits(
    features: Tensor, sentence_vectors: Tensor, sentence_labels: Tensor, num_classes: int, k: int
) -> Tensor:
    """Count for each class its sentences among the k nearest sentences (by cosine) of each image: [N, C].

    Ties, also at zero votes, are ordered by the nearest sentence: a vote counts one, and the best cosine s of a class
    adds (1 + s) / 4. A class without a sentence gets minus infinity. Sentence vectors, float [N_t, D], are normalised
    here; their labels, int64 [N_t], are classes.
    """
    parts = []
    sentence_labels = sentence_labels.to(features.device)
    for part in features.split(_BATCH):
        cosines = cosine_logits(part, sentence_vectors)
        best = cosines.new_full((len(part), num_classes), -torch.inf)
        best = best.scatter_reduce(1, sentence_labels.expand(len(part), -1), cosines, "amax")
        near = sentence_labels[cosines.topk(min(k, cosines.shape[1]), dim=1).indices]
        votes = torch.zeros_like(best).scatter_add(1, near, torch.ones_like(near, dtype=best.dtype))
        parts.append(votes + (1.0 + best) / 4.0)
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class TipCache:
    """Tip-Adapter's key-value cache, and the text classifier that it is added to; all vectors are used normalised."""

    keys: Tensor  # float [K, D], features of the images in the cache
    labels: Tensor  # int64 [K], their classes
    prototypes: Tensor  # float [C, D], the text classifier
    scale: float  # of the text cosines


def first_of_each_class(labels: Tensor, limit: int) -> Tensor:
    """Return the positions, int64 [K], ascending, of the first `limit` images of each class.

    Images are in the order of their ids, which are hashes, so that the first ones are a random sample.
    """
    order, rank, _ = _ranks(labels)
    kept: Tensor = order[rank < limit].sort().values
    return kept


def cache_logits(features: Tensor, keys: Tensor, labels: Tensor, num_classes: int, beta: float) -> Tensor:
    """Compute the cache's part of Tip-Adapter, exp(-beta (1 - f F^T)) L, with f and F [K, D] normalised: [N, C]."""
    parts = []
    for part in features.split(_BATCH):
        affinity = torch.exp(-beta * (1.0 - cosine_logits(part, keys)))
        parts.append(affinity.new_zeros(len(part), num_classes).index_add(1, labels, affinity))
    return torch.cat(parts)


def tip_logits(features: Tensor, cache: TipCache, alpha: float, beta: float) -> Tensor:
    """Compute alpha exp(-beta (1 - f F^T)) L + scale f W^T, with f, keys F and prototypes W normalised: [N, C]."""
    kept = cache_logits(features, cache.keys, cache.labels, num_classes=len(cache.prototypes), beta=beta)
    return alpha * kept + cosine_logits(features, cache.prototypes, cache.scale)


def choose_tip(
    features: Tensor, labels: Tensor, cache: TipCache, alphas: Sequence[float], betas: Sequence[float]
) -> tuple[tuple[float, float], float]:
    """Choose alpha and beta by `best_setting` on images that are not in the cache; of ties the first beta wins."""
    text = cosine_logits(features, cache.prototypes, cache.scale)

    @lru_cache(maxsize=1)
    def kept(beta: float) -> Tensor:
        return cache_logits(features, cache.keys, cache.labels, num_classes=len(cache.prototypes), beta=beta)

    pairs = [(alpha, beta) for beta in betas for alpha in alphas]
    return best_setting(pairs, lambda pair: text + pair[0] * kept(pair[1]), labels)


def best_setting(
    settings: Sequence[_Setting], scores: Callable[[_Setting], Tensor], labels: Tensor
) -> tuple[_Setting, float]:
    """Return the setting with the best class-balanced top-1 accuracy of scores(setting) [N, C], and this accuracy."""
    found = [balanced_accuracy(scores(setting), labels) for setting in settings]
    return settings[found.index(max(found))], max(found)


def hold_back(labels: Tensor, share: float) -> Tensor:
    """Choose images to hold out of a fit, on which settings are chosen then: bool [N].

    Of each class with two images or more these are the first round(share * n), at least one; of other classes none.
    """
    order, rank, counts = _ranks(labels)
    given = (share * counts.double()).round().clamp(min=1).minimum(counts - 1.0)  # 0 for a single image
    return torch.zeros(len(labels), dtype=torch.bool, device=labels.device).index_put((order,), rank < given)


def _ranks(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions [N] sorted by class, the rank of each within its class, and the size of its class."""
    order = labels.argsort(stable=True)
    counts = torch.unique_consecutive(labels[order], return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order, torch.arange(len(labels), device=labels.device) - starts, counts.repeat_interleave(counts)
