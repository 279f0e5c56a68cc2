"""Factors of the parts of an answer, fitted on held-out images, and means over groups with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit
from torch import Tensor

from vlltr_index.heads.pooling import log_means, worths

_PRIOR_SPREAD = 0.25  # standard deviation of the prior of a weight, as a share of the visual parts' sum
_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
_STEPS = 100
_AT_RANDOM = 0.01  # share of labels that are taken to be random
_CORRELATIONS = tuple(step / 20 for step in range(20, 0, -1))


def image_weights(labels: Tensor, counts: Tensor, units: Tensor, power: float = 0.5) -> Tensor:
    """Weigh each unit of images by n^-power of its class, float64 [N], scaled to sum to the number of units.

    Args:
        labels: Int64 [N], the images' classes.
        counts: Int64 [C], units of each class, held-out ones included.
        units: Int64 [N], the unit of each image; the images of a unit share its weight.
        power: 0.5 by default; with 1 all classes have the same weight.
    """
    each = _unit_shares(units)
    weights = counts[labels].double().clamp(min=1.0) ** -power * each
    return weights * (each.sum() / weights.sum())


def balanced_accuracy(scores: Tensor, labels: Tensor, units: Tensor | None = None) -> float:
    """Compute the top-1 accuracy, averaged over the classes that are present.

    Args:
        scores: Float [N, C].
        labels: Int64 [N].
        units: Int64 [N], the unit of each image; the images of a unit count as one. None: each image is a unit.
    """
    right = (scores.argmax(1) == labels).double()
    return float(right @ balanced_shares(labels, units).to(right.device))


def balanced_shares(labels: Tensor, units: Tensor | None = None) -> Tensor:
    """Compute the share of each image in an accuracy for which the classes that are present count alike, float64 [N].

    Args:
        labels, units: As for `balanced_accuracy`.
    """
    each = _unit_shares(torch.arange(len(labels)) if units is None else units).to(labels.device)
    present, which = labels.unique(return_inverse=True)
    totals = torch.zeros(len(present), dtype=torch.float64, device=labels.device).index_add(0, which, each)
    return each / (totals[which] * len(present))


def _unit_shares(units: Tensor) -> Tensor:
    """Compute each image's share of its unit, float64 [N]: one over the number of the unit's images."""
    _, which, sizes = units.unique(return_inverse=True, return_counts=True)
    shares: Tensor = 1.0 / sizes[which].double()
    return shares


def item_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each label, int64 [N], under softmax(logits) [N, C]: float64 [N]."""
    return -logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]


def nll(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Compute the weighted mean of the negative log-likelihood under softmax(logits) [N, C]."""
    return float((weights * item_nll(logits, labels)).sum() / weights.sum())


def level_with_best(costs: Tensor, weights: Tensor, units: Tensor, errors: float = 1.0) -> Tensor:
    """Find the settings whose mean cost is at most some standard errors above the least: int64 positions, ascending.

    Args:
        costs: Float64 [S, N] of S settings, on the same N images.
        weights: Float64 [N], the weight of each image.
        units: Int64 [N], the unit of each image.
        errors: Number of standard errors.
    """
    best = costs[(costs @ weights).argmin()]
    above, error = paired_mean(costs - best, weights, units)
    return (above <= errors * error).nonzero()[:, 0]


def paired_mean(differences: Tensor, weights: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Compute means over images, and their standard errors over units: float64 [R] each.

    With a single unit the error is infinite.

    Args:
        differences: Float64 [R, N], differences of R pairs on N images.
        weights: Float64 [N], the weight of each image.
        units: Int64 [N], the unit of each image.
    """
    share = weights / weights.sum()
    means = differences @ share
    places = units.unique(return_inverse=True)[1]
    by_unit = torch.zeros_like(differences).index_add_(1, places, share * (differences - means[:, None]))
    count = int(places.max()) + 1
    if count == 1:
        return means, torch.full_like(means, math.inf)
    return means, (by_unit.square().sum(1) * count / (count - 1)).sqrt()


def share_range(values: Tensor, weights: Tensor, units: Tensor) -> tuple[float, float] | None:
    """Compute the 95 % interval of a share over units that are drawn; None with a single unit.

    It is Wilson's (1927) for as many independent images as would have the variance of the mean, which is at least that
    of the images, and with Student's quantile for the units.

    Args:
        values: Float64 [N], 0 to 1.
        weights: Float64 [N], the weight of each image.
        units: Int64 [N], the unit of each image: what is right or wrong together, such as a class.
    """
    means, errors = paired_mean(values[None], weights, units)
    share = min(float(means), 1.0)
    freedom = len(units.unique()) - 1
    if not freedom:
        return None
    images = len(values)
    shrunk = (share * images + 0.5) / (images + 1.0)
    of_image = shrunk * (1.0 - shrunk)
    variance = max(float(errors) ** 2, of_image / images)
    return wilson(share, of_image / variance, float(stdtrit(freedom, 0.975)))


def wilson(share: float, images: float, quantile: float = _NORMAL) -> tuple[float, float]:
    """Compute Wilson's (1927) interval of a share of so many images; by default that of 95 %.

    Args:
        share: 0 to 1.
        images: How many independent ones it counts for.
        quantile: How many standard errors the interval reaches.
    """
    spread = quantile**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    # Rounding must not leave the share outside.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Fit 1 / temperature: the factor under which softmax(factor * logits) is likeliest; 1 if all logits are alike.

    Args:
        logits: Float [N, C].
        labels: Int64 [N].
        weights: Float64 [N], the weight of each image.
    """
    return fit_factors([logits], None, labels, weights)[0]


def fit_factors(
    visual: Sequence[Tensor],
    text: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    start: Sequence[float] | None = None,
) -> list[float]:
    """Fit the most probable factors of parts, whose sum gives log-probabilities up to a constant; none is negative.

    The loss of an image is -log(0.99 p + 0.01 / C), p being the probability of its class: one label in a hundred is
    taken to be random, so that a single wrong label does not decide how confident answers are. Each part is scaled to
    the same spread over the classes. The prior mean is the likeliest common factor for the visual parts and 0 for the
    text; its standard deviation is a quarter of the visual parts' sum.

    Args:
        visual: Float [N, C] each, at least one.
        text: Float [N, C]; None: there is none.
        labels: Int64 [N].
        weights: Float64 [N], the weight of each image.
        start: Where the search starts, such as the result for more images; None: at the prior mean.

    Returns:
        The factors of the visual parts, then that of the text.
    """
    parts = [*visual, *([] if text is None else [text])]
    spreads = [mean_spread(part) for part in parts]
    scaled = torch.stack([part.double() / spread for part, spread in zip(parts, spreads, strict=True)])
    scaled = scaled - scaled.mean(2, keepdim=True)
    first = len(visual)
    if spreads[:first] == [math.inf] * first:
        return [1.0] * first + [0.0] * (len(parts) - first)
    middle = scaled[:first].mean(0, keepdim=True)
    before = of_middle = None
    if start is not None:
        before = torch.tensor(
            [factor * spread for factor, spread in zip(start, spreads, strict=True)]
        ).double()
        of_middle = before[:first].sum().reshape(1)
    found = _most_probable(middle, labels, weights, torch.ones(1), torch.zeros(1), of_middle)
    if len(parts) > 1:
        common = float(found[0])
        means = torch.tensor([common / first] * first + [0.0] * (len(parts) - first))
        precision = torch.full_like(means, (_PRIOR_SPREAD * max(common, 1e-6)) ** -2)
        found = _most_probable(scaled, labels, weights, means, precision, before)
    return [float(factor) / spread for factor, spread in zip(found, spreads, strict=True)]


def robust_nll(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Compute -log(0.99 p + 0.01 / C) of each label, int64 [N], for log-probabilities [N, C]: float64 [N]."""
    own = log_probabilities.double().gather(1, labels[:, None])[:, 0].exp()
    return -((1.0 - _AT_RANDOM) * own + _AT_RANDOM / log_probabilities.shape[1]).log()


def fit_correlation(scores: Tensor, labels: Tensor, units: Tensor, weights: Tensor) -> float:
    """Fit how alike the images of a unit are: the most probable rho of `together`, where 2 rho is its prior's density.

    So few units leave it near 1, where the images of a unit count as one; without a unit of several images it is 1.

    Args:
        scores: Float [N, C], the weighted sum of the parts of held-out images.
        labels: Int64 [N]; a unit's images are of one class.
        units: Int64 [N], the unit of each image.
        weights: Float64 [N], the weight of each image; a unit has the sum of its images' weights.
    """
    _, places, sizes = units.unique(return_inverse=True, return_counts=True)
    several = sizes[places] > 1
    if not bool(several.any()):
        return 1.0
    units = places[several].unique(return_inverse=True)[1]
    count = int(units.max()) + 1
    answers = log_means(scores[several].double().log_softmax(1), units)
    classes = labels.new_empty(count).scatter_(0, units, labels[several])
    weight = weights.new_zeros(count).index_add_(0, units, weights[several])

    def loss(rho: float) -> float:
        return float(item_nll(worths(units, rho)[:, None] * answers, classes) @ weight) - math.log(rho)

    return min(_CORRELATIONS, key=loss)


def mean_spread(*parts: Tensor) -> float:
    """Compute the mean over images of the standard deviation of scores [N, C] over classes; infinite if alike."""
    spread = float(torch.cat([part.double().std(1, unbiased=False) for part in parts]).mean())
    return spread if spread > 1e-9 else math.inf


def _most_probable(
    parts: Tensor,
    labels: Tensor,
    weights: Tensor,
    means: Tensor,
    precision: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    """Fit factors [P], at least 0, of parts [P, N, C] by projected Gauss-Newton steps, halved until the loss falls.

    The loss is that of `fit_factors`, with a normal prior of the given means and precisions.
    """
    right = parts.gather(2, labels.expand(len(parts), -1)[:, :, None])[:, :, 0]
    # A tenth of an image more, of no class in particular, keeps the factors finite where all images are right.
    right = right * (1.0 - 0.1 / (0.1 + len(labels)))
    means = means.double()
    precision = precision.double()
    least = math.log(_AT_RANDOM / parts.shape[2])

    def loss(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.einsum("p,pnc->nc", factors, parts)
        own = math.log1p(-_AT_RANDOM) + factors @ right - scores.logsumexp(1)
        likely = torch.logaddexp(own, own.new_tensor(least))
        prior = 0.5 * (precision * (factors - means).square()).sum()
        return prior - weights @ likely, scores, (own - likely).exp()

    factors = means.clamp(min=0.0) if start is None else start
    value, scores, trusted = loss(factors)
    for _ in range(_STEPS):
        chances = scores.softmax(1)
        expected = (parts * chances).sum(2)
        each = weights * trusted
        gradient = ((expected - right) * each).sum(1) + precision * (factors - means)
        second = torch.einsum("pnc,qnc->pq", parts * (chances * each[:, None]), parts)
        second = second - (expected * each) @ expected.T + precision.diag()
        free = (factors > 0.0) | (gradient < 0.0)
        ridge = 1e-9 * second.diagonal().mean().clamp(min=1e-30)
        kept = second[free][:, free] + ridge * torch.eye(int(free.sum()), dtype=second.dtype)
        step = torch.zeros_like(factors)
        step[free] = torch.linalg.solve(kept, gradient[free])
        length = 1.0
        while length > 1e-9:
            moved = (factors - length * step).clamp(min=0.0)
            lower, scores, trusted = loss(moved)
            if bool(lower <= value):
                break
            length /= 2
        else:
            break
        done = bool((moved - factors).abs().max() <= 1e-9 * (1.0 + factors.abs().max()))
        factors = moved
        value = lower
        if done:
            break
    return factors
