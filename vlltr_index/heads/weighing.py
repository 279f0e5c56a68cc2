"""How much each part of an answer counts, fitted on images that did not train the parts: tensors in, values out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlltr_index.heads.fusion import Meeting, PartWeights
from vlltr_index.heads.generative import GenerativeModel

_PRIOR_SPREAD = 0.25  # of a part's weight, in units of the visual parts' together
TEMPERED = 1 / 12  # of the generative model's log-likelihoods, which are about that much too sure
_USUAL_TEXT = 0.15
_STEPS = 60
_AT_RANDOM = 0.01  # of the labels
_ROUNDS = 100
_LEAST = 0.02  # a smaller share than this is none


SHRINKAGES: tuple[float | None, ...] = (1.0, 3.0, 10.0, None)
"""How much both covariances may be shrunk, see `shrunk`; the plainest first."""
_OCTAVES = range(-3, 5)  # of the noise
_PARTS = 4  # of an octave: losses between octaves are interpolated


class Covariances(NamedTuple):
    """How the covariances of a generative model are estimated: see `shrunk`, and `noise` of `SharedGaussian`."""

    shrinkage: float | None
    noise: float

    def noisy(self, model: GenerativeModel) -> GenerativeModel:
        """A model of this shrinkage with this noise."""
        return replace(model, shared=replace(model.shared, noise=self.noise))


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """What the parts say of N images that trained none of them; a part that is not there is None.

    Attributes:
        labels: Int64 [N], positions among the C classes.
        image: Float [N, C], logits of the visual classifier.
        likelihoods: Float [N, C], of the generative model.
        text: Float [N, C], text logits.
        weights: Float64 [N], what each image counts.
    """

    labels: Tensor
    image: Tensor | None
    likelihoods: Tensor
    text: Tensor | None
    weights: Tensor

    def fused(self, weights: PartWeights) -> Tensor:
        """All parts together, float [N, C]."""
        fused = weights.generative * self.likelihoods
        for part, weight in ((self.image, weights.image), (self.text, weights.text)):
            fused = fused if part is None else fused + weight * part
        return fused


def image_weights(labels: Tensor, counts: Tensor, units: Tensor, power: float = 0.5) -> Tensor:
    """Weigh each unit of images by n^-power of its class, float64 [N], scaled to sum to the number of units.

    Args:
        labels: Int64 [N], the images' classes.
        counts: Int64 [C], units of each class, those that are held out too.
        units: Int64 [N], which images are one observation; its images share its weight.
        power: With 1 the images weigh as if classes had been drawn alike.
    """
    each = _unit_shares(units)
    weights = counts[labels].double().clamp(min=1.0) ** -power * each
    return weights * (each.sum() / weights.sum())


def balanced_accuracy(scores: Tensor, labels: Tensor, units: Tensor | None = None) -> float:
    """Average the top-1 accuracy of the classes that are present.

    Args:
        scores: Float [N, C].
        labels: Int64 [N].
        units: Int64 [N], which images are one observation: they count as one of their class. None: each image is one.
    """
    each = _unit_shares(torch.arange(len(labels)) if units is None else units).to(scores.device)
    right = (scores.argmax(1) == labels).double()
    counts = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device).index_add(
        0, labels, each
    )
    return float((right * each / counts[labels]).sum() / (counts > 0).sum())


def _unit_shares(units: Tensor) -> Tensor:
    """What each image is of its unit, float64 [N]: one over the unit's images."""
    _, which, sizes = units.unique(return_inverse=True, return_counts=True)
    shares: Tensor = 1.0 / sizes[which].double()
    return shares


def item_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label int64 [N] by softmax(logits) [N, C], float64 [N]."""
    return -logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]


def nll(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Weighted mean negative log-likelihood of softmax(logits) [N, C]."""
    return float((weights * item_nll(logits, labels)).sum() / weights.sum())


def level_with_best(costs: Tensor, weights: Tensor, units: Tensor) -> Tensor:
    """Find the settings whose mean cost is at most a standard error above the least, int64 positions, ascending.

    Args:
        costs: Float64 [S, N] of S settings, on the same N images.
        weights: Float64 [N], what each image counts.
        units: Int64 [N], which images are one observation.
    """
    best = costs[(costs @ weights).argmin()]
    above, error = paired_mean(costs - best, weights, units)
    return (above <= error).nonzero()[:, 0]


PLAINEST = Covariances(SHRINKAGES[0], 1.0)


def plainest_covariances(
    costs: Callable[[Covariances], Tensor], weights: Tensor, units: Tensor
) -> Covariances:
    """Choose the plainest whose mean loss is within a standard error of the least, of those as accurate as the best.

    Accurate are those that miss at most a standard error more images than the setting that misses fewest: where images
    are few the likeliest may be one that draws all classes together. Plainest is the first shrinkage of `SHRINKAGES`,
    and there the noise nearest to 1.

    Args:
        costs: Of the M held-out images, float64 [2, M]: the loss, and 1 for one that is missed. It is asked at whole
            octaves of the noise, and interpolated between.
        weights: Float64 [M].
        units: Int64 [M], see `level_with_best`.
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
    accurate = level_with_best(missed, weights, units)
    likely = level_with_best(losses[accurate], weights, units)
    return list(found)[int(accurate[likely[0]])]


def paired_mean(differences: Tensor, weights: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Average differences float64 [R, N] over images, and the standard errors over units: float64 [R] each.

    Of one unit the error is infinite.

    Args:
        differences: Of each row.
        weights: Float64 [N], what each image counts.
        units: Int64 [N], which images are one observation.
    """
    share = weights / weights.sum()
    means = differences @ share
    places = units.unique(return_inverse=True)[1]
    by_unit = torch.zeros_like(differences).index_add_(1, places, share * (differences - means[:, None]))
    count = int(places.max()) + 1
    if count == 1:
        return means, torch.full_like(means, math.inf)
    return means, (by_unit.square().sum(1) * count / (count - 1)).sqrt()


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The factor that makes softmax(factor * logits) likeliest; 1 / temperature. 1 where they tell no class apart.

    Args:
        logits: Float [N, C].
        labels: Int64 [N].
        weights: Float64 [N], what each image counts.
    """
    spread = _spread(logits)
    if spread == math.inf:
        return 1.0
    scaled = logits.double()[None] / spread
    return float(_fit(scaled, labels, weights, torch.ones(1), torch.zeros(1))[0]) / spread


def fit_weights(held_out: HeldOutScores) -> PartWeights:
    """How much each part counts: the most probable weights, by expectation-maximisation.

    The label of one image in a hundred is drawn at random: otherwise a single wrong one decides how sure answers are.
    Each part is brought to the same spread over the classes. The prior has the visual parts alike, at their likeliest
    common weight, and the text at 0, each with a quarter of the visual parts' sum as its standard deviation. A text of
    less than 2 % of the whole is left out.
    """
    labels = held_out.labels
    likelihoods = held_out.likelihoods
    visual = [part for part in (held_out.image, likelihoods) if part is not None]
    parts = visual if held_out.text is None else [*visual, held_out.text]
    units = [_spread(part) for part in parts]
    scaled = torch.stack([part.double() / unit for part, unit in zip(parts, units, strict=True)])
    means = torch.zeros(len(parts))
    right = torch.ones_like(held_out.weights)
    for _ in range(_ROUNDS):
        weights = right * held_out.weights
        common = fit_temperature(scaled[: len(visual)].mean(0), labels, weights)
        means[: len(visual)] = common / len(visual)
        precision = torch.full_like(means, (_PRIOR_SPREAD * max(common, 1e-6)) ** -2)
        factors = _fit(scaled, labels, weights, means, precision)
        before = right
        right = _rightly_labelled(torch.einsum("p,pnc->nc", factors, scaled), labels)
        if bool((right - before).abs().max() < 1e-4):
            break
    found = [float(factor) / unit for factor, unit in zip(factors, units, strict=True)]
    image = 0.0 if held_out.image is None else found[0]
    counts = held_out.text is not None and float(factors[-1]) >= _LEAST * float(factors.sum())
    told = found[-1] if counts else 0.0
    meeting = Meeting(fit_temperature(likelihoods, labels, weights), told)
    return PartWeights(image, found[len(visual) - 1], told, meeting, meeting)


def _rightly_labelled(scores: Tensor, labels: Tensor) -> Tensor:
    """How probable it is by softmax(scores) [N, C] that a label was not drawn at random, as some are; [N]."""
    own = (1.0 - _AT_RANDOM) * scores.softmax(1).gather(1, labels[:, None])[:, 0]
    return own / (own + _AT_RANDOM / scores.shape[1])


def usual_weights(held_out: HeldOutScores) -> PartWeights:
    """Weights where too few images were held out to fit any.

    The generative model has its usual temperature of 12, the text 15 % of what both vary over the classes, the visual
    classifier nothing.
    """
    told = 0.0
    visual = TEMPERED * _spread(held_out.likelihoods)
    if held_out.text is not None and visual < math.inf:
        told = _USUAL_TEXT / (1.0 - _USUAL_TEXT) * visual / _spread(held_out.text)
    meeting = Meeting(TEMPERED, told)
    return PartWeights(0.0, TEMPERED, told, meeting, meeting)


def _spread(part: Tensor) -> float:
    """The mean over images of a part's standard deviation over classes; infinite for one that tells none apart."""
    spread = float(part.double().std(1, unbiased=False).mean())
    return spread if spread > 1e-9 else math.inf


def _fit(parts: Tensor, labels: Tensor, weights: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Non-negative factors [P] that maximise the weighted likelihood of softmax(sum of factor * part) and the prior.

    The problem is convex: Newton's method, projected, with halved steps.
    """
    stacked = parts - parts.mean(2, keepdim=True)  # [P, N, C]
    right = stacked.gather(2, labels.expand(len(parts), -1)[:, :, None])[:, :, 0]
    # As if a tenth of an image more had been of any class: bounded where all are right.
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


@dataclass(frozen=True, eq=False)
class Newcomers:
    """What the parts say, some classes standing for ones that came later, known by so and so many images each.

    The first C classes are the trained ones, the K others the newcomers.

    Attributes:
        likelihoods: Float64 [N, C + K], of held-out images of trained classes.
        text: Float64 [N, C + K], their text logits.
        new_likelihoods: Float64 [M, C + K], of images of the newcomers that they are not known by.
        new_text: Float64 [M, C + K]; M may be 0.
        new_labels: Int64 [M], their classes, C to C + K - 1.
        trained: C.
    """

    likelihoods: Tensor
    text: Tensor
    new_likelihoods: Tensor
    new_text: Tensor
    new_labels: Tensor
    trained: int


def fit_meeting(
    start: Meeting, designs: Sequence[Newcomers], weights: bool = True, offset: bool = True
) -> Meeting:
    """How later classes meet the trained ones: most probable, from classes that stand for later ones.

    An image of a newcomer has to be found among all classes, one of a trained class among the trained ones, whichever
    of them. Newcomers weigh together what they are among all classes. The prior has the weights as they were, with what
    both parts vary over the classes there as the standard deviation, and the offset at 0 with one of 1.

    Args:
        start: The weights without such classes.
        designs: Ones without an image of a newcomer, or of a trained class, say nothing.
        weights: Whether they are fitted; else they stay.
        offset: Whether that is.
    """
    designs = [one for one in designs if len(one.new_labels) and len(one.text)]
    if not designs:
        return start
    seen, told = (
        _spread(torch.cat(p)) for p in zip(*((d.new_likelihoods, d.new_text) for d in designs), strict=True)
    )
    before = torch.tensor([start.generative, start.text], dtype=torch.float64)
    units = torch.tensor([seen, told], dtype=torch.float64).nan_to_num(posinf=0.0)
    whole = float(before @ units)
    if not whole:
        return start
    usual = before * units / whole
    factors = torch.where(units > 0, whole / units, 0.0)
    # A root of 0 would stay there.
    roots = (usual.clamp(min=0.1) if weights else usual).sqrt().requires_grad_(weights)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=offset)
    fitted = [value for value in (roots, shift) if value.requires_grad]
    search = torch.optim.LBFGS(fitted, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        generative, text = roots.square() * factors
        value = 0.5 * (roots.square() - usual).square().sum() + 0.5 * shift.square()
        for one in designs:
            value = value + _meeting_loss(one, generative, text, shift)
        value.backward()
        return value

    search.step(loss)
    found = float(shift.detach())
    if not weights:
        return replace(start, offset=found)
    shares = roots.detach().square()
    shares[shares < 1e-6] = 0.0  # a root comes near 0, never there
    generative, text = (shares * factors).tolist()
    return Meeting(generative, text, found)


def _meeting_loss(one: Newcomers, generative: Tensor, text: Tensor, offset: Tensor) -> Tensor:
    """Negative log-likelihood of a design, an image of a newcomer weighing one."""
    first = one.trained
    classes = one.likelihoods.shape[1]
    shift = offset * (torch.arange(classes) >= first)
    old = generative * one.likelihoods + text * one.text
    new = generative * one.new_likelihoods + text * one.new_text + shift
    missed = (old + shift).logsumexp(1) - old[:, :first].logsumexp(1)
    found = new.logsumexp(1) - new.gather(1, one.new_labels[:, None])[:, 0]
    return found.sum() + missed.mean() * len(found) * first / (classes - first)
