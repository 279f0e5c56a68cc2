"""Fitting the fusion values on logits that neither encoder nor head were trained on: pure tensors in, values out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.fusion import FusionParams, Rule, disagreement, fuse, moderate

__all__ = ["BranchLogits", "FusionFit", "ImprintFit", "balanced_accuracy", "fit_fusion", "fit_imprints"]

_TEMPERATURES = torch.logspace(-1.0, 1.0, 41, dtype=torch.float64)
_ALPHAS = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
_MARGINS = torch.linspace(-4.0, 8.0, 241, dtype=torch.float64)
_COARSE = 5  # every fifth is tried where each costs a pass over all scores
_SURE = 1.645  # standard errors: one-sided 95 %
_STRENGTHS = tuple(n / 10 for n in range(2, 13))
_LIFTS = tuple(n / 2 for n in range(-4, 9))
_AGREEMENTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


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
    new_without_margin: float  # nor agreement


@dataclass(frozen=True)
class ImprintFit:
    """Strength and lift of imprinted rows within `params`, and what they give, class-balanced."""

    params: FusionParams
    old_with_new: float
    new: float  # images of the imprinted classes
    new_from_text: float  # the same images without the rows


def fit_imprints(
    old: BranchLogits,
    new: BranchLogits,
    row_class: Tensor,
    trained: Tensor,
    trained_level: float,
    params: FusionParams,
    max_loss: float = 0.01,
    few_share: float = 0.0,
) -> ImprintFit:
    """Fit strength and lift of imprinted rows: those with the best accuracy on the new classes among those that, with
    all else that came with the new classes, cost the old ones at most `max_loss` for sure, as in `fit_fusion`.

    If none is so cheap, the cheapest is taken.

    Args:
        old: Images of classes the head was trained on.
        new: Images of the new classes, others than the rows were made from.
        row_class: Integers [C_v], as for `fuse`; a live row of a class that was not trained is an imprinted one, its
            logits are as `imprint_row` gives them.
        trained: Bool [C], as for `fuse`.
        trained_level: As for `moderate`.
        params: What `fit_fusion` found.
        max_loss: As for `fit_fusion`; so is `few_share`.

    Raises:
        InputError: If there is no image on one side, or no imprinted row.
    """
    imprinted = (row_class >= 0) & ~trained[row_class.clamp(min=0)]
    if not len(old.labels) or not len(new.labels) or not bool(imprinted.any()):
        raise InputError(
            "imprinted rows are fitted on such rows, and on images of trained and of new classes; one is missing"
        )
    weights, right_alone = image_weights(old, few_share), _right_alone(old, row_class, trained, params)

    def chances(images: BranchLogits, at: FusionParams) -> Tensor:
        visual = torch.where(imprinted, moderate(images.visual, trained_level, at), images.visual)
        return fuse(visual, images.text, row_class, trained, at).probabilities

    tried: list[tuple[float, float, float, FusionParams]] = []  # largest loss, new classes, old ones
    for strength, lift in product(_STRENGTHS, _LIFTS):
        at = replace(params, imprint_strength=strength, imprint_lift=lift)
        right = chances(old, at).argmax(1) == old.labels
        kept, loss = float((right.double() * weights).sum()), _largest_loss(right_alone, right, weights)
        tried.append((loss, balanced_accuracy(chances(new, at), new.labels), kept, at))
    allowed = [t for t in tried if t[0] <= max_loss] or [min(tried, key=lambda t: t[0])]
    _, found, kept, chosen = max(allowed, key=lambda t: (t[1], t[2]))
    by_text = fuse(new.visual, new.text, torch.where(imprinted, -1, row_class), trained, params).probabilities
    return ImprintFit(chosen, kept, found, balanced_accuracy(by_text, new.labels))


def _right_alone(old: BranchLogits, row_class: Tensor, trained: Tensor, params: FusionParams) -> Tensor:
    """Which images are recognised among the trained classes alone, bool [N]."""
    position = torch.where(trained, trained.long().cumsum(0) - 1, -1)
    rows = torch.where(row_class >= 0, position[row_class.clamp(min=0)], -1)
    chances = fuse(old.visual, old.text[:, trained], rows, trained[trained], params).probabilities
    return chances.argmax(1) == position[old.labels]


def fit_fusion(
    old: BranchLogits,
    new: BranchLogits | None,
    row_class: Tensor,
    trained: Tensor,
    max_loss: float = 0.01,
    few_share: float = 0.0,
    rule: Rule = "ours",
) -> FusionFit:
    """Fit temperatures, weight, margin and agreement.

    The temperatures minimise each branch's weighted negative log-likelihood over the old classes; the weight
    that of the fused probabilities; margin and agreement are those with the best accuracy on the new classes among
    those that cost the old classes at most `max_loss` of accuracy, for sure: the upper end of the loss's one-sided
    95 % interval may not exceed it. The margin may be negative, where new classes would otherwise take too much.

    Args:
        old: Images of classes the head was trained on.
        new: Images of classes it was not trained on, known by text; None leaves the margin at 0.
        row_class: Integers [C_v], as for `fuse`.
        trained: Bool [C], as for `fuse`.
        max_loss: Accuracy the old classes may lose to margin and agreement.
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
    right_alone = alone.argmax(1) == labels
    old_alone = balanced_accuracy(alone, labels, weights)
    if new is None or not len(new.labels):
        return FusionFit(params, old_alone, old_alone, float("nan"), float("nan"))
    margins: list[float] = _MARGINS[::_COARSE].tolist()
    if rule == "ours" and bool(trained[row_class[row_class >= 0]].all()):
        agreement, margin = _agreement(old, new, row_class, trained, params, max_loss, weights)
        params, margins = replace(params, agreement=agreement), [margin]
    return _fit_margin(old, new, row_class, trained, params, right_alone, max_loss, weights, margins)


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


def _agreement(
    old: BranchLogits,
    new: BranchLogits,
    row_class: Tensor,
    trained: Tensor,
    params: FusionParams,
    max_loss: float,
    weights: Tensor,
) -> tuple[float, float]:
    """Agreement and margin that do most for new classes without rows; of equal ones the least."""
    seen, fresh = (_decisions(images, row_class, trained, params) for images in (old, new))
    fresh_weights = _class_weights(new.labels)
    best, most = (0.0, float(_MARGINS[0])), -1.0
    for agreement in _AGREEMENTS:
        level, above = (d.turn - agreement * d.disagreement for d in (seen, fresh))
        for margin in _MARGINS.tolist():
            kept = seen.right_old & (level >= margin)
            found = float(((fresh.right_new & (above < margin)).double() * fresh_weights).sum())
            if found > most + 1e-9 and _largest_loss(seen.right_old, kept, weights) <= max_loss:
                best, most = (agreement, margin), found
    return best


def _largest_loss(before: Tensor, after: Tensor, weights: Tensor) -> float:
    """The upper end of the one-sided 95 % interval of what images [N], right or not, lose; `weights` sum to one."""
    lost = before.double() - after.double()
    loss = (weights * lost).sum()
    return float(loss + _SURE * (weights * (lost - loss)).square().sum().sqrt())


@dataclass(frozen=True, eq=False)
class _Decisions:
    """What decides between old and new classes, for N images: above `turn`, margin + agreement * disagreement lets the
    best new class win. `right_old` and `right_new`: whether the best of each side is the right answer."""

    turn: Tensor
    disagreement: Tensor
    right_old: Tensor
    right_new: Tensor


def _decisions(images: BranchLogits, row_class: Tensor, trained: Tensor, params: FusionParams) -> _Decisions:
    """The best old class has the share of the old ones' text probability that it has without the new ones."""
    there, fresh = trained.nonzero()[:, 0], (~trained).nonzero()[:, 0]
    position = trained.long().cumsum(0) - 1
    rows = torch.where(row_class >= 0, position[row_class.clamp(min=0)], -1)
    text = images.text.double() / params.tau_text
    known = torch.ones(len(there), dtype=torch.bool)
    share, best = fuse(images.visual, images.text[:, there], rows, known, params).probabilities.max(1)
    high, other = text[:, fresh].max(1)
    live = row_class >= 0
    apart = disagreement(
        images.visual[:, live].double() / params.tau_visual, text, row_class[live].long(), trained
    )
    turn = text[:, there].logsumexp(1) + share.double().log() - high
    return _Decisions(turn, apart, there[best] == images.labels, fresh[other] == images.labels)


def _fit_margin(
    old: BranchLogits,
    new: BranchLogits,
    row_class: Tensor,
    trained: Tensor,
    params: FusionParams,
    right_alone: Tensor,
    max_loss: float,
    weights: Tensor,
    margins: list[float],
) -> FusionFit:
    tried: list[tuple[float, float, float, float]] = []  # margin, old classes, new ones, largest loss
    for margin in margins:
        at = replace(params, margin=margin)
        right = fuse(old.visual, old.text, row_class, trained, at).probabilities.argmax(1) == old.labels
        fresh = balanced_accuracy(
            fuse(new.visual, new.text, row_class, trained, at).probabilities, new.labels
        )
        with_new = float((right.double() * weights).sum())
        tried.append((margin, with_new, fresh, _largest_loss(right_alone, right, weights)))
    allowed = [t for t in tried if t[3] <= max_loss] or tried[:1]
    margin, with_new, fresh, _ = max(allowed, key=lambda t: (t[2], -t[0]))
    chosen = replace(params, margin=margin)
    plain = replace(params, margin=0.0, agreement=0.0)
    plainly = fuse(new.visual, new.text, row_class, trained, plain).probabilities
    without = balanced_accuracy(plainly, new.labels)
    old_alone = float((right_alone.double() * weights).sum())
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
