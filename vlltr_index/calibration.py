"""Fitting the fusion values on logits that neither encoder nor head were trained on: pure tensors in, values out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.fusion import FusionParams, Rule, fuse

__all__ = ["BranchLogits", "FusionFit", "balanced_accuracy", "fit_fusion"]

_TEMPERATURES = torch.logspace(-1.0, 1.0, 41, dtype=torch.float64)
_ALPHAS = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
_MARGINS = torch.linspace(-4.0, 8.0, 49, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class BranchLogits:
    """Both branches' logits of held-back images.

    Attributes:
        visual: Float [N, C_v].
        text: Float [N, C].
        labels: Int64 [N], positions among the C classes.
        few: Bool [N], images that stand for few-shot classes; None: no image does.
    """

    visual: Tensor
    text: Tensor
    labels: Tensor
    few: Tensor | None = None


@dataclass(frozen=True)
class FusionFit:
    """The fitted values and what they give on the held-back images, class-balanced."""

    params: FusionParams
    old_alone: float  # old classes, the new ones absent
    old_with_new: float
    new: float
    new_without_margin: float


def fit_fusion(
    old: BranchLogits,
    new: BranchLogits | None,
    row_class: Tensor,
    trained: Tensor,
    max_loss: float = 0.01,
    few_share: float = 0.0,
    rule: Rule = "ours",
) -> FusionFit:
    """Fit temperatures, weight and margin.

    The temperatures minimise each branch's weighted negative log-likelihood over the old classes; the weight
    that of the fused probabilities; the margin is the one with the best accuracy on the new classes among
    those that cost the old classes at most `max_loss` of accuracy. It may be negative, where new classes
    would otherwise take too much.

    Args:
        old: Images of classes the head was trained on.
        new: Images of classes it was not trained on, known by text; None leaves the margin at 0.
        row_class: Integers [C_v], as for `fuse`.
        trained: Bool [C], as for `fuse`.
        max_loss: Accuracy the old classes may lose to the margin.
        few_share: Weight of the images that stand for few-shot classes: the share of these among all classes.
        rule: How the branches are put together. For `logits`, which sums them as they are, the margin alone is
            fitted.

    Raises:
        InputError: If there is no image of an old class.
    """
    if not len(old.labels):
        raise InputError("there is no held-back image of a trained class to calibrate on")
    weights = image_weights(old, few_share)
    position = torch.full((len(trained),), -1, dtype=torch.int64)
    position[trained] = torch.arange(int(trained.sum()))
    row_of = torch.full((len(trained),), -1, dtype=torch.int64)
    row_of[row_class[row_class >= 0]] = torch.arange(len(row_class))[row_class >= 0]
    params = FusionParams(rule=rule)
    if rule != "logits":
        tau_visual = _temperature(old.visual, row_of[old.labels], weights)
        tau_text = _temperature(old.text[:, trained], position[old.labels], weights)
        params = replace(params, tau_visual=tau_visual, tau_text=tau_text)
    alone_rows = torch.where(row_class >= 0, position[row_class.clamp(min=0)], -1)
    all_trained = torch.ones(int(trained.sum()), dtype=torch.bool)
    labels = position[old.labels]
    best, best_loss = 0.5, float("inf")
    for alpha in _ALPHAS.tolist() if rule != "logits" else []:
        at = replace(params, alpha=alpha)
        chances = fuse(old.visual, old.text[:, trained], alone_rows, all_trained, at).probabilities
        loss = _weighted_nll(chances, labels, weights)
        if loss < best_loss:
            best, best_loss = alpha, loss
    params = replace(params, alpha=best)
    alone = fuse(old.visual, old.text[:, trained], alone_rows, all_trained, params).probabilities
    old_alone = balanced_accuracy(alone, labels, weights)
    if new is None or not len(new.labels):
        return FusionFit(params, old_alone, old_alone, float("nan"), float("nan"))
    return _fit_margin(old, new, row_class, trained, params, old_alone, max_loss, weights)


def balanced_accuracy(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean over the classes present of their top-1 accuracy; scores [N, C], labels int64 [N].

    `weights` float64 [N], summing to one, replace the weights that count each class alike.
    """
    right = (scores.argmax(1) == labels).double()
    return float((right * (_class_weights(labels) if weights is None else weights)).sum())


def image_weights(images: BranchLogits, few_share: float) -> Tensor:
    """Weights float64 [N] that sum to one: classes count alike within the two groups, and the group `few` has
    `few_share` of the whole (all of it, or nothing, where the other group is empty)."""
    if images.few is None or not bool(images.few.any()) or bool(images.few.all()):
        return _class_weights(images.labels)
    weights = torch.empty(len(images.labels), dtype=torch.float64)
    weights[images.few] = few_share * _class_weights(images.labels[images.few])
    weights[~images.few] = (1.0 - few_share) * _class_weights(images.labels[~images.few])
    return weights


def _fit_margin(
    old: BranchLogits,
    new: BranchLogits,
    row_class: Tensor,
    trained: Tensor,
    params: FusionParams,
    old_alone: float,
    max_loss: float,
    weights: Tensor,
) -> FusionFit:
    tried: list[tuple[float, float, float]] = []
    for margin in _MARGINS.tolist():
        at = replace(params, margin=margin)
        with_new = balanced_accuracy(
            fuse(old.visual, old.text, row_class, trained, at).probabilities, old.labels, weights
        )
        fresh = balanced_accuracy(
            fuse(new.visual, new.text, row_class, trained, at).probabilities, new.labels
        )
        tried.append((margin, with_new, fresh))
    allowed = [t for t in tried if t[1] >= old_alone - max_loss] or tried[:1]
    margin, with_new, fresh = max(allowed, key=lambda t: (t[2], -t[0]))
    chosen = replace(params, margin=margin)
    without = next(t[2] for t in tried if t[0] == 0.0)
    return FusionFit(chosen, old_alone, with_new, fresh, without)


def _class_weights(labels: Tensor) -> Tensor:
    """Weights [N] that give each class present the same total; they sum to one."""
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    weights: Tensor = 1.0 / (counts[inverse].double() * len(counts))
    return weights


def _weighted_nll(probabilities: Tensor, labels: Tensor, weights: Tensor) -> float:
    chosen = probabilities.gather(1, labels[:, None])[:, 0].double().clamp(min=1e-12)
    return float(-(weights * chosen.log()).sum())


def _temperature(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    losses = [_weighted_nll((logits / t).softmax(1), labels, weights) for t in _TEMPERATURES.tolist()]
    return float(_TEMPERATURES[int(torch.tensor(losses).argmin())])
