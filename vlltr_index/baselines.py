"""Baselines on stored features: pure tensors in, tensors out.

Long-tailed classifiers over a frozen visual tower (Kang et al., "Decoupling Representation and Classifier for
Long-Tailed Recognition", ICLR 2020), imprinting (Qi et al., "Low-Shot Learning with Imprinted Weights", CVPR
2018), logit adjustment after training (Menon et al., ICLR 2021), and nearest sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vlltr_index.errors import InputError, VlltrError
from vlltr_index.losses import logit_adjusted_cross_entropy, sampler_prior
from vlltr_index.metrics import balanced_accuracy
from vlltr_index.tensors import check_labels, check_matrix, check_vector, unit_rows, working_dtype
from vlltr_index.train.sampling import epoch_batches, stream
from vlltr_index.train.schedule import cosine_factor

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

__all__ = [
    "HeadTraining",
    "adjusted_logits",
    "best_setting",
    "class_means",
    "cosine_logits",
    "fc_head",
    "hold_back",
    "knn_sentence_logits",
    "linear_logits",
    "lws_scales",
    "minimise",
    "softmax_scale",
    "tau_normalised",
]

_BATCH = 512
_Setting = TypeVar("_Setting")


@dataclass(frozen=True)
class HeadTraining:
    """The numbers of one run over stored features.

    Attributes:
        epochs: About as many images are drawn an epoch as there are.
        batch_size: Images a step.
        lr: Peak learning rate of AdamW under a cosine, for features of root mean square one.
        weight_decay: Of AdamW.
        sampler_power: 0 draws images uniformly, 0.5 is the square-root sampler, 1 draws classes uniformly.
        logit_adjustment: Strength of the adjustment by the sampler's prior in the loss; 0 is cross-entropy.
        seed: Of the sampler.
    """

    epochs: int = 10
    batch_size: int = 256
    lr: float = 1e-2
    weight_decay: float = 0.0
    sampler_power: float = 0.5
    logit_adjustment: float = 0.0
    seed: int = 0


def linear_logits(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """features W^T + b: features float [N, D] unnormalised, weight [C, D], bias [C]; returns [N, C].

    Raises:
        InputError: If the shapes do not fit.
    """
    check_matrix("weight", weight)
    check_matrix("features", features, columns=weight.shape[1])
    dtype = working_dtype(features, weight)
    logits = features.to(dtype) @ weight.to(dtype).T
    if bias is None:
        return logits
    check_vector("bias", bias, weight.shape[0])
    return logits + bias.to(dtype)


def adjusted_logits(logits: Tensor, class_counts: Tensor, sampler_power: float) -> Tensor:
    """Logit adjustment after training (Menon et al. 2021): logits less the log of the sampler's class prior.

    Args:
        logits: Float [N, C] of a classifier trained without adjustment.
        class_counts: Integers [C], training images of each class; a class without any gets minus infinity.
        sampler_power: Images were drawn by the weights n_c^-power.

    Raises:
        InputError: If the shapes do not fit, or no class has an image.
    """
    check_vector("class_counts", class_counts)
    check_matrix("logits", logits, columns=class_counts.shape[0])
    prior = sampler_prior(class_counts, sampler_power).to(logits.device)
    return torch.where(prior > 0, logits - prior.log().to(logits.dtype), -torch.inf)


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean of each class's normalised features, scaled to length one again, [C, D].

    The weights of nearest class mean (Kang et al. 2020), of imprinting (Qi et al. 2018), and of a
    prompt ensemble where the features are sentences.

    Args:
        features: Float [N, D], normalised or not.
        labels: Integers [N].
        num_classes: C.

    Raises:
        InputError: If the shapes do not fit, or a class has no row.
    """
    check_matrix("features", features)
    check_labels("labels", labels, features.shape[0], num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    if bool((counts == 0).any()):
        raise InputError(f"class {int((counts == 0).nonzero()[0])} has no row to take the mean of")
    rows = unit_rows(features)
    sums = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return unit_rows(sums.index_add(0, labels, rows) / counts[:, None])


def cosine_logits(features: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """scale * cosine of each of features [N, D] with each row of weight [C, D], normalised or not; [N, C]."""
    check_matrix("weight", weight)
    check_matrix("features", features, columns=weight.shape[1])
    dtype = working_dtype(features, weight)
    return scale * (unit_rows(features.to(dtype)) @ unit_rows(weight.to(dtype)).T)


def tau_normalised(weight: Tensor, tau: float) -> Tensor:
    """w_i / |w_i|^tau of each row of weight [C, D] (Kang et al. 2020); a zero row stays zero.

    With tau 0 the weights are as they were, with tau 1 all have length one. The bias is left out there.
    """
    check_matrix("weight", weight)
    norms = weight.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, weight / norms.clamp(min=1e-30) ** tau, weight)


def fc_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    training: HeadTraining | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear classifier trained from zero on frozen features; with `sampler_power` 1 it is cRT (Kang et al. 2020).

    Args:
        features: Float [N, D], or [V, N, D] with V views an image of which a step takes one; unnormalised.
        labels: Integers [N].
        num_classes: C.
        training: Its numbers.
        progress: Called after every step.

    Returns:
        Weight [C, D] and bias [C] for unnormalised features.

    Raises:
        InputError: If the shapes do not fit or there is no image.
        VlltrError: If the loss is not finite.
    """
    views = _views(features, labels, num_classes)
    rms = views.pow(2).mean().sqrt().clamp(min=1e-12)
    weight = torch.zeros(num_classes, views.shape[2], dtype=views.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=views.dtype, requires_grad=True)
    minimise(
        [weight, bias],
        lambda rows: linear_logits(rows / rms, weight, bias),
        views,
        labels,
        num_classes,
        training or HeadTraining(),
        "train linear head",
        progress,
    )
    return weight.detach() / rms, bias.detach()


def lws_scales(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: HeadTraining | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Learnable weight scaling (Kang et al. 2020): one factor f_i a class on a classifier that stays.

    The logits are f_i (w_i . x + b_i); the factors start at one.

    Args:
        features: As for `fc_head`.
        labels: Integers [N].
        weight: Float [C, D] of the trained classifier.
        bias: Float [C].
        training: Its numbers; `sampler_power` 1 in the paper, which is also the default here.
        progress: Called after every step.

    Returns:
        The factors, [C].

    Raises:
        InputError: If the shapes do not fit or there is no image.
        VlltrError: If the loss is not finite.
    """
    views = _views(features, labels, weight.shape[0])
    factors = torch.ones(weight.shape[0], dtype=views.dtype, requires_grad=True)
    minimise(
        [factors],
        lambda rows: linear_logits(rows, weight, bias) * factors,
        views,
        labels,
        weight.shape[0],
        training or HeadTraining(sampler_power=1.0),
        "train weight scaling",
        progress,
    )
    return factors.detach()


def minimise(
    parameters: Sequence[Tensor],
    logits: Callable[[Tensor], Tensor],
    views: Tensor,
    labels: Tensor,
    num_classes: int,
    training: HeadTraining,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Minimise the (logit-adjusted) cross-entropy of `logits(rows [B, D])` over `parameters`, in place.

    Args:
        parameters: Leaves that require a gradient.
        logits: Gives [B, C] of rows of `views`.
        views: Float [V, N, D]; each step takes one of an image's views at random.
        labels: Integers [N].
        num_classes: C.
        training: Its numbers.
        name: What progress and errors call it.
        progress: Called after every step.

    Raises:
        VlltrError: If the loss is not finite.
    """
    power, labels = training.sampler_power, labels.long()
    log_prior = sampler_prior(torch.bincount(labels, minlength=num_classes), power).log()
    optimizer = torch.optim.AdamW(list(parameters), lr=training.lr, weight_decay=training.weight_decay)
    for epoch in range(training.epochs):
        batches = epoch_batches(labels, training.batch_size, power, stream(training.seed, epoch, name))
        chosen = torch.randint(
            len(views), batches.shape, generator=stream(training.seed, epoch, name, "view")
        )
        total = len(batches) * training.epochs
        for step, (positions, view) in enumerate(zip(batches, chosen, strict=True)):
            done = epoch * len(batches) + step
            for group in optimizer.param_groups:
                group["lr"] = training.lr * cosine_factor(done, total, 0)
            loss = logit_adjusted_cross_entropy(
                logits(views[view, positions]), labels[positions], log_prior, training.logit_adjustment
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if progress:
                progress(name, done + 1, total)
        if not float(loss.detach()) < float("inf"):
            raise VlltrError(
                f"{name}: the loss is {float(loss.detach())} in epoch {epoch + 1}",
                "Try lower learning rates: --set baselines.lrs=[1e-4]",
            )


def knn_sentence_logits(
    features: Tensor, sentence_vectors: Tensor, sentence_labels: Tensor, num_classes: int, k: int
) -> Tensor:
    """Votes of the k nearest sentences (by cosine) of each image, of all classes' sentences; [N, C].

    The paper's head "KNN" (Tian et al. 2022, Table 4). Classes with equal votes, none included, stand in the
    order of their nearest sentence: a vote counts one, and the best cosine s of a class adds (1 + s) / 4.

    Args:
        features: Float [N, D], normalised or not.
        sentence_vectors: Float [N_t, D], normalised or not.
        sentence_labels: Integers [N_t], positions of the classes.
        num_classes: C; a class without a sentence gets minus infinity.
        k: Neighbours, N_t at most.

    Raises:
        InputError: If the shapes do not fit, there is no sentence, or k is below one.
    """
    check_matrix("sentence_vectors", sentence_vectors)
    check_matrix("features", features, columns=sentence_vectors.shape[1])
    check_labels("sentence_labels", sentence_labels, sentence_vectors.shape[0], num_classes)
    if k < 1 or not len(sentence_vectors):
        raise InputError(
            f"k must be at least 1, and at least one sentence; got {k} and {len(sentence_vectors)}"
        )
    labels = sentence_labels.long()
    parts = []
    for part in features.split(_BATCH):
        cosines = cosine_logits(part, sentence_vectors)
        place = labels.expand(len(part), -1)
        best = torch.full((len(part), num_classes), -torch.inf, dtype=cosines.dtype)
        best = best.scatter_reduce(1, place, cosines, "amax")
        near = cosines.topk(min(k, cosines.shape[1]), dim=1).indices
        votes = torch.zeros_like(best).scatter_add(1, labels[near], torch.ones_like(near, dtype=best.dtype))
        parts.append(votes + (1.0 + best) / 4.0)
    return torch.cat(parts) if parts else torch.empty(0, num_classes)


def softmax_scale(cosines: Tensor, labels: Tensor, scales: Sequence[float]) -> float:
    """The one of `scales` whose softmax(scale * cosine [N, C]) has the least class-balanced cross-entropy."""
    check_labels("labels", labels, cosines.shape[0], cosines.shape[1])
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[inverse].double()
    losses = []
    for scale in scales:
        chances = (scale * cosines.double()).log_softmax(1)
        losses.append(float(-(weights * chances.gather(1, labels[:, None])[:, 0]).sum()))
    return scales[losses.index(min(losses))]


def best_setting(
    settings: Sequence[_Setting], scores: Callable[[_Setting], Tensor], labels: Tensor
) -> tuple[_Setting, float]:
    """The setting with the best class-balanced top-1 accuracy of scores(setting) [N, C]; of equals the first.

    Raises:
        InputError: If there is no setting or no image.
    """
    if not len(settings) or not len(labels):
        raise InputError(f"nothing to choose from: {len(settings)} settings, {len(labels)} images")
    found = [balanced_accuracy(scores(setting), labels) for setting in settings]
    return settings[found.index(max(found))], max(found)


def hold_back(labels: Tensor, share: float) -> Tensor:
    """Which images to keep out of a fit so that settings can be chosen on them, bool [N].

    Of each class with two images or more the first round(share * n), and at least one; of the others none.
    """
    check_labels("labels", labels)
    order = labels.argsort(stable=True)
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    given = (share * counts.double()).round().clamp(min=1).minimum(counts - 1.0)  # none of a single image
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order] = rank < given[inverse[order]]
    return held


def _views(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Features as [V, N, D] in float32 at least, checked against their labels."""
    views = features[None] if features.dim() == 2 else features
    if views.dim() != 3 or not views.is_floating_point() or not views.shape[0]:
        raise InputError(
            f"features must be floating [N, D] or [V, N, D], got {features.dtype} {list(features.shape)}"
        )
    check_labels("labels", labels, views.shape[1], num_classes)
    if not len(labels):
        raise InputError("there is no image to train on", "Run: vlltr ingest images PATH --split train")
    return views.to(working_dtype(views))
