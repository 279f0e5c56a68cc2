"""Weights of the parts of an answer, fitted on images that did not train the parts: tensors in, values out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlltr_index.heads.fusion import Gate, PartWeights, PriorWeights
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.pooling import log_means, worths

_PRIOR_SPREAD = 0.25  # standard deviation of the prior of a weight, as a share of the visual parts' sum
TEMPERED = 1 / 12  # usual weight of the generative model's log-likelihoods, which are overconfident
_USUAL_TEXT = 0.15
_NORMAL = 1.959964  # 97.5 % quantile of the normal distribution
_STEPS = 60
_AT_RANDOM = 0.01  # share of labels that are taken to be random
_ROUNDS = 100
_CORRELATIONS = tuple(step / 20 for step in range(20, 0, -1))
_LEAST = 0.02  # least share of the text in the sum of the weights; a smaller one counts as zero


SHRINKAGES: tuple[float | None, ...] = (1.0, 3.0, 10.0, None)
"""Candidates for the shrinkage of both covariances, see `shrunk`; the plainest first."""
_OCTAVES = range(-3, 5)  # the noise is 2 to these powers
_PARTS = 4  # steps in an octave; losses between octaves are interpolated
_MISSED_BY = 2.0  # standard errors, as the next: with fewer, noise decides in collections of few units
_LESS_LIKELY_BY = 4.0


class Covariances(NamedTuple):
    """Settings of a generative model's covariances: see `shrunk`, and `noise` of `SharedGaussian`."""

    shrinkage: float | None
    noise: float

    def noisy(self, model: PLDA) -> PLDA:
        """Return a model, fitted with this shrinkage, with this noise."""
        return replace(model, shared=replace(model.shared, noise=self.noise))


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """Scores of N held-out images, which trained none of the parts; a part that is not used is None.

    Attributes:
        labels: Int64 [N], positions among the C classes.
        image: Float [N, C], logits of the visual classifier.
        likelihoods: Float [N, C], log-likelihoods of the generative model.
        text: Float [N, C], text logits.
        weights: Float64 [N], the weight of each image.
    """

    labels: Tensor
    image: Tensor | None
    likelihoods: Tensor
    text: Tensor | None
    weights: Tensor

    def fused(self, weights: PartWeights) -> Tensor:
        """Return the weighted sum of the parts, float [N, C]."""
        fused = weights.generative * self.likelihoods
        for part, weight in ((self.image, weights.image), (self.text, weights.text)):
            if part is not None:
                fused = fused + weight * part
        return fused


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


PLAINEST = Covariances(SHRINKAGES[0], 1.0)


def plainest_covariances(
    costs: Callable[[Covariances], Tensor], weights: Tensor, units: Tensor
) -> Covariances:
    """Choose the plainest covariances that are about as accurate, and about as likely, as the best ones.

    First all settings stay that miss at most two standard errors more images than the one that misses fewest: where
    images are few the likeliest setting may draw all classes together. Of these the plainest is chosen whose mean loss
    is within four standard errors of the least. Plainest is the first shrinkage of `SHRINKAGES`, and of one shrinkage
    the noise nearest to 1.

    Args:
        costs: Gives for a setting, float64 [2, M], the loss of each of the M held-out images, and 1 where the image is
            missed, else 0. It is called for whole octaves of the noise; values between are interpolated.
        weights: Float64 [M], the weight of each image.
        units: Int64 [M], the unit of each image.
    """
    found = dict[Covariances, Tensor]()
    for shrinkage in SHRINKAGES:
        octaves = [costs(Covariances(shrinkage, 2.0**octave)) for octave in _OCTAVES]
        steps = range(_PARTS * (len(octaves) - 1) + 1)
        for step in sorted(steps, key=lambda step: abs(step / _PARTS + _OCTAVES[0])):
            at, between = divmod(step, _PARTS)
            upper = octaves[min(at + 1, len(octaves) - 1)]
            noise = 2.0 ** (step / _PARTS + _OCTAVES[0])
            found[Covariances(shrinkage, noise)] = octaves[at].lerp(upper, between / _PARTS)
    losses, missed = torch.stack(list(found.values()), 1)
    accurate = level_with_best(missed, weights, units, errors=_MISSED_BY)
    likely = level_with_best(losses[accurate], weights, units, errors=_LESS_LIKELY_BY)
    return list(found)[int(accurate[likely[0]])]


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
    return wilson(share, of_image / variance, _student(freedom))


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


def _student(freedom: int) -> float:
    """Approximate the 97.5 % quantile of Student's t by the expansion of Cornish and Fisher."""
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Fit 1 / temperature: the factor under which softmax(factor * logits) is likeliest; 1 if all logits are alike.

    Args:
        logits: Float [N, C].
        labels: Int64 [N].
        weights: Float64 [N], the weight of each image.
    """
    spread = mean_spread(logits)
    if spread == math.inf:
        return 1.0
    scaled = logits.double()[None] / spread
    return float(_fit(scaled, labels, weights, means=torch.ones(1), precision=torch.zeros(1))[0]) / spread


def fit_weights(held_out: HeldOutScores) -> PartWeights:
    """Fit the most probable weights of the parts, by expectation-maximisation.

    One label in a hundred is taken to be random: otherwise a single wrong label decides how confident answers are. Each
    part is scaled to the same spread over the classes. The prior mean is the likeliest common weight for the visual
    parts and 0 for the text; its standard deviation is a quarter of the visual parts' sum. A text with less than 2 % of
    the sum of the weights gets none.
    """
    labels = held_out.labels
    likelihoods = held_out.likelihoods
    visual = [part for part in (held_out.image, likelihoods) if part is not None]
    parts = visual if held_out.text is None else [*visual, held_out.text]
    units = [mean_spread(part) for part in parts]
    scaled = torch.stack([part.double() / unit for part, unit in zip(parts, units, strict=True)])
    means = torch.zeros(len(parts))

    def fit(weights: Tensor) -> Tensor:
        common = fit_temperature(scaled[: len(visual)].mean(0), labels, weights)
        means[: len(visual)] = common / len(visual)
        precision = torch.full_like(means, (_PRIOR_SPREAD * max(common, 1e-6)) ** -2)
        return _fit(scaled, labels, weights, means=means, precision=precision)

    factors, weights = _with_random_labels(scaled, labels, held_out.weights, fit)
    found = [float(factor) / unit for factor, unit in zip(factors, units, strict=True)]
    image = 0.0 if held_out.image is None else found[0]
    counts = held_out.text is not None and float(factors[-1]) >= _LEAST * float(factors.sum())
    text = found[-1] if counts else 0.0
    gate = Gate(fit_temperature(likelihoods, labels, weights), text)
    return PartWeights(
        image=image, generative=found[len(visual) - 1], text=text, few_shot=gate, text_only=gate
    )


def fit_prior(scores: Tensor, log_prior: Tensor, labels: Tensor, units: Tensor) -> PriorWeights:
    """Fit the most probable weights for answers under a prior, each unit counting alike.

    One label in a hundred is taken to be random. Without evidence both weights are 1; the standard deviation of that
    prior is a quarter.

    Args:
        scores: Float [N, C], the weighted sum of the parts of held-out images.
        log_prior: Float [C], the logarithm of each class's frequency.
        labels: Int64 [N].
        units: Int64 [N], the unit of each image.
    """
    parts = torch.stack([log_prior.double().expand_as(scores), scores.double()])
    means = torch.ones(2)
    precision = torch.full_like(means, _PRIOR_SPREAD**-2)

    def fit(weights: Tensor) -> Tensor:
        return _fit(parts, labels, weights, means=means, precision=precision)

    factors, _ = _with_random_labels(parts, labels, _unit_shares(units), fit)
    return PriorWeights(*factors.tolist())


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


def _with_random_labels(
    parts: Tensor, labels: Tensor, weights: Tensor, fit: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Fit factors of parts [P, N, C] by expectation-maximisation, one label in a hundred being random.

    Args:
        parts: Their weighted sum are the scores.
        labels: Int64 [N].
        weights: Float64 [N], the weight of each image.
        fit: Returns the factors [P] for such weights, times the probability that the label is right.

    Returns:
        The factors, and the weights [N] that gave them.
    """
    right = torch.ones_like(weights)
    for _ in range(_ROUNDS):
        used = right * weights
        factors = fit(used)
        before = right
        right = _rightly_labelled(torch.einsum("p,pnc->nc", factors, parts), labels)
        if bool((right - before).abs().max() < 1e-4):
            break
    return factors, used


def _rightly_labelled(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the probability under softmax(scores) [N, C] that a label is not one of the random ones; [N]."""
    own = (1.0 - _AT_RANDOM) * scores.softmax(1).gather(1, labels[:, None])[:, 0]
    return own / (own + _AT_RANDOM / scores.shape[1])


def usual_weights(held_out: HeldOutScores) -> PartWeights:
    """Return the weights for when too few images were held out to fit any.

    The generative model has its usual temperature of 12, the text 15 % of the spread of both over the classes, and the
    visual classifier no weight.
    """
    text = 0.0
    visual = TEMPERED * mean_spread(held_out.likelihoods)
    if held_out.text is not None and visual < math.inf:
        text = _USUAL_TEXT / (1.0 - _USUAL_TEXT) * visual / mean_spread(held_out.text)
    gate = Gate(TEMPERED, text)
    return PartWeights(image=0.0, generative=TEMPERED, text=text, few_shot=gate, text_only=gate)


def mean_spread(*parts: Tensor) -> float:
    """Compute the mean over images of the standard deviation of scores [N, C] over classes; infinite if alike."""
    spread = float(torch.cat([part.double().std(1, unbiased=False) for part in parts]).mean())
    return spread if spread > 1e-9 else math.inf


def _fit(parts: Tensor, labels: Tensor, weights: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Fit factors [P], at least 0, that maximise weighted likelihood of softmax(sum of factor * part) and prior.

    The problem is convex; it is solved by projected Newton steps, which are halved until the objective falls.
    """
    stacked = parts - parts.mean(2, keepdim=True)  # [P, N, C]
    right = stacked.gather(2, labels.expand(len(parts), -1)[:, :, None])[:, :, 0]
    # A tenth of an image more, of no class in particular, keeps the factors finite where all images are right.
    right = right * (1.0 - 0.1 / (0.1 + len(labels)))
    means = means.double()
    precision = precision.double()

    def loss(factors: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("p,pnc->nc", factors, stacked)
        likelihood = (weights * (scores.logsumexp(1) - factors @ right)).sum()
        return likelihood + 0.5 * (precision * (factors - means).square()).sum(), scores

    factors = means.clamp(min=0.0)
    value, scores = loss(factors)
    for _ in range(_STEPS):
        chances = scores.softmax(1)
        expected = (stacked * chances).sum(2)
        gradient = ((expected - right) * weights).sum(1) + precision * (factors - means)
        second = (stacked * (chances * weights[:, None])).flatten(1) @ stacked.flatten(1).T
        second = second - (expected * weights) @ expected.T + precision.diag()
        free = (factors > 0.0) | (gradient < 0.0)
        ridge = 1e-9 * second.diagonal().mean().clamp(min=1e-30)
        kept = second[free][:, free] + ridge * torch.eye(int(free.sum()), dtype=second.dtype)
        step = torch.zeros_like(factors)
        step[free] = torch.linalg.solve(kept, gradient[free])
        length = 1.0
        while length > 1e-6:
            moved = (factors - length * step).clamp(min=0.0)
            lower, scores = loss(moved)
            if bool(lower <= value):
                break
            length /= 2
        else:
            break
        done = bool((moved - factors).abs().max() <= 1e-7 * (1.0 + factors.abs().max()))
        factors = moved
        value = lower
        if done:
            break
    return factors
