"""The gate of later classes and the trust in their texts, fitted on classes that play them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.fusion import Gate
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.weighing import balanced_shares, level_with_best, mean_spread, share_range

_MOST_LOST = 0.01  # what later classes may cost the trained ones: accuracy, each class counted alike
_TAIL = 0.1  # share of the images of trained classes, those nearest to a newcomer, that tell of the rest
_FEWEST_IN_TAIL = 5
_SLOPE_SPREAD = 0.5  # standard deviation of the logarithm of the slope, under its prior
_FIT_SPREAD = 0.25  # the same of `Gate.fit`, in units of `Gate.generative`
_LEAST_SHARE = 1e-6  # a root comes near 0 but never reaches it
_NUMBERS = (1, 10, 100)
_TRUSTS = (1.0, 0.75, 0.5, 0.25, 0.0)
_FEWEST_TO_TRUST = 3
_FEWEST_TOLD = 5  # newcomers that tell of later ones
_OTHERS = 4.0  # the share of newcomers that a class is ahead of is drawn to the mean as by so many others

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the lower end comes first")
    return ends


Interval = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
"""Ends of an interval of a share."""


@dataclass(frozen=True, slots=True)
class LaterFigures:
    """Estimate of what later classes get and cost, each class counted alike.

    Attributes:
        images: Number of images that each is known by; 0 for classes known by text alone.
        number: Number of classes that are added.
        found: Share of their images that is recognised among all classes.
        lost: What the trained classes' accuracy falls by.
        found_range: Ends of the 95 % interval of `found`, over classes; None with a single class.
        lost_range: The same of `lost`; None for several classes.
    """

    images: Annotated[int, Field(ge=0)]
    number: Annotated[int, Field(ge=1)]
    found: Share
    lost: Share
    found_range: Interval | None = None
    lost_range: Interval | None = None


@dataclass(frozen=True, eq=False)
class HeldOutClasses:
    """Scores of images where some classes play later ones, each known by a few images.

    The first C classes are the trained ones, the K others the newcomers.

    Attributes:
        images: Number of images that each newcomer is known by.
        likelihoods: Float64 [N, C + K], log-likelihoods of held-out images of trained classes.
        text: Float64 [N, C + K], text logits of the same images.
        best: Float64 [N], the largest log P(c | trained, x) of the trained classes.
        weights: Float64 [N], the share of each image in the accuracy among the trained classes, where these count
            alike; 0 for an image that is not right.
        new_likelihoods: Float64 [M, C + K], log-likelihoods of other images of newcomers than those they are known by.
        new_text: Float64 [M, C + K], text logits of these images; M may be 0.
        new_best: Float64 [M], as `best`.
        new_labels: Int64 [M], the classes of these images, C to C + K - 1.
        trained: Number of trained classes, C.
    """

    images: int
    likelihoods: Tensor
    text: Tensor
    best: Tensor
    weights: Tensor
    new_likelihoods: Tensor
    new_text: Tensor
    new_best: Tensor
    new_labels: Tensor
    trained: int

    @property
    def newcomers(self) -> int:
        """Number of newcomers, K."""
        return self.likelihoods.shape[1] - self.trained

    @property
    def new_weights(self) -> Tensor:
        """Share of each image of a newcomer in their recall, where newcomers count alike: float64 [M]."""
        return balanced_shares(self.new_labels)

    def leads_lost(self, gate: Gate) -> Tensor:
        """Measure how far each newcomer is behind the best trained class, float64 [N, K], without the offset."""
        return self.best[:, None] - _later_scores(gate, self.likelihoods, self.text, self.trained)

    def lead_lacking(self, gate: Gate) -> tuple[Tensor, Tensor]:
        """Measure how far newcomers are behind the best trained class on their own images, without the offset.

        Returns:
            Float64 [M], and the share of the other newcomers that are not behind the image's own, float64 [M].
        """
        later = _later_scores(gate, self.new_likelihoods, self.new_text, self.trained)
        own = later.gather(1, (self.new_labels - self.trained)[:, None])
        ahead = ((later >= own).sum(1) - 1).double() / max(self.newcomers - 1, 1)
        return self.new_best - own[:, 0], ahead

    def found(self, gate: Gate) -> Tensor:
        """Return whether each image of a newcomer is recognised among all classes, 0 or 1: float64 [M]."""
        lacking, ahead = self.lead_lacking(gate)
        return ((lacking < gate.offset_among(self.newcomers)) & (ahead == 0.0)).double()

    @property
    def without_text(self) -> HeldOutClasses:
        """The same where the text branch says nothing of newcomers."""
        return replace(self, text=torch.zeros_like(self.text), new_text=torch.zeros_like(self.new_text))


def _later_scores(gate: Gate, likelihoods: Tensor, text: Tensor, trained: int) -> Tensor:
    """Score newcomers as later classes are scored, but for the offset: [N, K], of scores [N, C + K]."""
    scores = gate.generative * likelihoods + gate.text * text
    later = scores[:, trained:] + gate.fit * likelihoods[:, trained:]
    return later - scores[:, :trained].logsumexp(1, keepdim=True)


def _usable(designs: Sequence[HeldOutClasses]) -> list[HeldOutClasses]:
    return [one for one in designs if len(one.new_labels) and bool(one.weights.any())]


def fit_gate(start: Gate, designs: Sequence[HeldOutClasses], weights: bool = True) -> Gate:
    """Fit the weights and the offset of later classes, on classes that play them.

    The weights are the most probable ones. The likelihood is that an image of a newcomer is recognised among all
    classes, and that one of a trained class is assigned to any of the trained ones. Held-out classes together weigh
    their share of all classes. The prior has its mean at `start`, and as standard deviation the spread that both parts
    have there over the classes. Text logits may tell newcomers from trained classes, and hide which newcomer it is:
    they have no weight unless with one more images of newcomers are found, by a standard error over these; with fewer
    than five newcomers nobody can say it, and they keep it. If neither part tells newcomers apart, both
    weights are 0: then nothing is known of such a class.

    With the offset an image is as often given to a newcomer wrongly as kept from it wrongly, each class counted alike:
    there a logistic regression on the lead of the best newcomer is even, fitted together with how well an image must
    fit a newcomer. The limit is the offset with which later classes are estimated to cost the trained ones one point of
    accuracy; where newcomers are known by different numbers of images, the least of those that five of them tell.

    Args:
        start: The weights before the fit.
        designs: Scores with newcomers; one without an image of a newcomer, or without one of a trained class that is
            right, is ignored.
        weights: Whether the weights are fitted; otherwise they stay at `start`.
    """
    designs = _usable(designs)
    if not designs:
        return start
    if not weights:
        return _with_offsets(start, designs)
    reading = _with_offsets(_fit_weights(start, designs), designs)
    newcomers = _newcomers(designs)
    if not reading.text or len(newcomers.unique()) < _FEWEST_TOLD:
        return reading
    silent = [one.without_text for one in designs]
    plain = _with_offsets(_fit_weights(replace(start, text=0.0), silent), silent)
    gates = plain, reading
    missed = torch.stack([torch.cat([1.0 - one.found(gate) for one in designs]) for gate in gates])
    weight = torch.cat([one.new_weights for one in designs])
    return gates[int(level_with_best(missed, weight, newcomers)[0])]


def _with_offsets(gate: Gate, designs: Sequence[HeldOutClasses]) -> Gate:
    """Fit everything but the weights, see `fit_gate`."""
    fit, offset = _even(gate, designs)
    gate = replace(gate, fit=fit, offset=offset)
    leads = [one.leads_lost(gate) for one in designs]
    crowding = _crowding(designs, leads)
    played = list(zip(designs, leads, strict=True))
    by_images = [[one for one in played if one[0].images == images] for images in {d.images for d in designs}]
    told = [some for some in by_images if sum(one.newcomers for one, _ in some) >= _FEWEST_TOLD]
    limits = []
    for some in told or [played]:
        losses = _Losses.strongest([one for one, _ in some], [lead for _, lead in some], crowding)
        limits.append(losses.offset_at(_MOST_LOST))
    return replace(gate, crowding=crowding, limit=min(limits))


def _newcomers(designs: Sequence[HeldOutClasses]) -> Tensor:
    """Number the newcomer of each of their images, int64 [M], of all designs; one in two designs is two."""
    return torch.cat([one.new_labels * len(designs) + number for number, one in enumerate(designs)])


def fit_trust(model: PLDA) -> float:
    """Find how far the texts of classes are to be trusted that the encoder was not trained on, see `PLDA`.

    Of five values the largest is taken with which the classes' mean images are about as likely as with the best: by at
    most a standard error over the classes.

    Args:
        model: Of such classes alone, each with images and text; with fewer than three of them texts are trusted.
    """
    classes = len(model.counts)
    if classes < _FEWEST_TO_TRUST:
        return 1.0
    alike = torch.ones(classes, dtype=torch.float64)
    costs = [
        -replace(model, trust=trust * alike.to(model.sums.device)).text_evidence.cpu() for trust in _TRUSTS
    ]
    level = level_with_best(torch.stack(costs), alike, torch.arange(classes))
    return _TRUSTS[int(level[0])]


def later_figures(gate: Gate, designs: Sequence[HeldOutClasses]) -> tuple[LaterFigures, ...]:
    """Estimate for 1, 10 and 100 later classes which share of their images is found, and what the trained ones lose.

    Fewer than five newcomers tell too little. If no design has two of them, nobody can say it of 10 and 100.

    Args:
        gate: Fitted on these designs, or on others too.
        designs: Newcomers known by the same number of images; those that `fit_gate` ignores are ignored.
    """
    designs = _usable(designs)
    if not designs:
        return ()
    alone = [one.leads_lost(gate) for one in designs]
    losses = _Losses.strongest(designs, alone, gate.crowding)
    leads = [one.lead_lacking(gate) for one in designs]
    lacking = torch.cat([lead for lead, _ in leads])
    behind = torch.cat([1.0 - ahead for _, ahead in leads])
    others = torch.cat(
        [torch.full_like(lead, one.newcomers - 1) for (lead, _), one in zip(leads, designs, strict=True)]
    )
    weights = torch.cat([one.new_weights for one in designs]) / len(designs)
    kinds = _newcomers(designs)
    if len(kinds.unique()) < _FEWEST_TOLD:
        return ()
    figures = []
    for number in _NUMBERS if bool(others.any()) else _NUMBERS[:1]:
        offset = gate.offset_among(number)
        ahead = (lacking < offset).double()
        hits = ahead * _before_all(number - 1, behind, others, weights * ahead)
        found = min(float(weights @ hits), 1.0)
        found_range = share_range(hits, weights, kinds)
        lost_range = None
        if number == 1:
            lost, lost_range = _lost_to_one(designs, alone, offset)
        else:
            lost = min(losses.at(offset + gate.crowding * math.log(number)), 1.0)
        figures.append(LaterFigures(designs[0].images, number, found, lost, found_range, lost_range))
    return tuple(figures)


def _before_all(number: int, behind: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Estimate the chance that a class is before so many newcomers on its image, float64 [M].

    The share of newcomers that are behind has a beta distribution: few others tell little of it, and its power would
    be too large in the mean.

    Args:
        number: Of the newcomers.
        behind: Float64 [M], the share of the image's other newcomers that are behind.
        others: Float64 [M], how many these are.
        weights: Float64 [M], the weight of each image in the mean share.
    """
    told = weights * (others > 0)
    mean = float(told @ behind) / max(float(told.sum()), _LEAST_SHARE)
    won = (_OTHERS * mean + others * behind).clamp(min=_LEAST_SHARE)
    whole = _OTHERS + others
    of_won = torch.lgamma(won + number) - torch.lgamma(won)
    return (of_won - torch.lgamma(whole + number) + torch.lgamma(whole)).exp()


def _even(gate: Gate, designs: Sequence[HeldOutClasses]) -> tuple[float, float]:
    """Fit a logistic regression, newcomer or not, on the lead of the best newcomer; return `fit`, and the even offset.

    In a design each class weighs one, the trained ones times their accuracy, however many images are asked about, for
    those of a class stand and fall together. The offset has a standard normal prior where images fit a newcomer as well
    as half of its own do; that of `fit` is half a normal distribution.
    """
    kinds = len({one.images for one in designs})  # a newcomer plays in so many designs
    # Sign, weights [N], and of newcomers the leads and the log-likelihoods [N, K].
    parts = list[tuple[float, Tensor, Tensor, Tensor]]()
    for one in designs:
        ahead = _later_scores(gate, one.likelihoods, one.text, one.trained) - one.best[:, None]
        parts.append((-1.0, one.trained / kinds * one.weights, ahead, one.likelihoods[:, one.trained :]))
        own = one.new_likelihoods.gather(1, one.new_labels[:, None])
        parts.append((1.0, one.newcomers / kinds * one.new_weights, -one.lead_lacking(gate)[0][:, None], own))
    usual = torch.cat([fits for sign, _, _, fits in parts if sign > 0]).median()
    log_slope, offset = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    # The search is over the root, which keeps `fit` positive; at 0 its gradient vanishes.
    root = torch.ones((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_slope, offset, root], max_iter=100, line_search_fn="strong_wolfe")
    unit = _FIT_SPREAD * gate.generative

    def loss() -> Tensor:
        search.zero_grad()
        value = 0.5 * ((log_slope / _SLOPE_SPREAD).square() + offset.square() + root**4)
        for sign, weights, ahead, fits in parts:
            lead = (ahead + unit * root.square() * (fits - usual)).amax(1)
            value = value + weights @ F.softplus(-sign * log_slope.exp() * (lead + offset))
        value.backward()
        return value

    search.step(loss)
    share = float(root.detach().square())
    fit = unit * share if share > _LEAST_SHARE else 0.0
    return fit, float(offset.detach()) - fit * float(usual)


def _crowding(designs: Sequence[HeldOutClasses], leads: Sequence[Tensor]) -> float:
    """Find by how much the strongest of e times as many newcomers is stronger, where a tenth of the images is lost.

    The offsets are compared that cost as much, of the strongest newcomer of each design and of each of them alone. At
    most it is 1: of independent newcomers K times as many take K times as much. So it is if no design has two of them.
    """
    logarithm = sum(math.log(one.newcomers) for one in designs) / len(designs)
    if not logarithm:
        return 1.0
    alone = _Losses.of(designs, leads)
    strongest = _Losses.strongest(designs, leads, 0.0)
    apart = alone.offset_at(strongest.share) - strongest.threshold
    return min(max(apart / logarithm, 0.0), 1.0)


@dataclass(frozen=True)
class _Losses:
    """What a newcomer costs the trained classes, by its offset.

    Below a threshold the share of margins is taken to fall exponentially, for few images lie there. It has a tenth of
    the images below it, or five.

    Attributes:
        margins: Float64 [N], ascending: the offsets with which images are lost.
        lost: Float64 [N], the accuracy that is lost with those.
        threshold: The offset below which the tail begins.
        share: The accuracy that is lost at the threshold.
        length: Mean distance of the margins in the tail to the threshold; 1 where there is none.
    """

    margins: Tensor
    lost: Tensor
    threshold: float
    share: float
    length: float

    @classmethod
    def of(cls, designs: Sequence[HeldOutClasses], leads: Sequence[Tensor]) -> _Losses:
        """Measure the margins of the images that are right, by what trained classes lead by, [N, K] of each design."""
        margins, weights = _of_right(designs, leads)
        margins, order = margins.sort()
        lost = weights[order].cumsum(0)
        share = min(_TAIL, 0.5 * float(lost[-1]))
        fewest = _FEWEST_IN_TAIL * max(lead.shape[1] for lead in leads)
        last = min(max(int(torch.searchsorted(lost, share)), fewest - 1), len(lost) - 1)
        threshold = float(margins[last])
        apart = (threshold - margins[: last + 1]) @ weights[order][: last + 1]
        return cls(margins, lost, threshold, float(lost[last]), float(apart / lost[last]) or 1.0)

    @classmethod
    def strongest(
        cls, designs: Sequence[HeldOutClasses], leads: Sequence[Tensor], crowding: float
    ) -> _Losses:
        """Measure the margins of each design's strongest newcomer, put where a single one's are, by `Gate.crowding`."""
        return cls.of(
            designs, [lead.amin(1, keepdim=True) + crowding * math.log(lead.shape[1]) for lead in leads]
        )

    def at(self, offset: float) -> float:
        """Return the accuracy that is lost with an offset."""
        if offset < self.threshold:
            return self.share * math.exp((offset - self.threshold) / self.length)
        return float(self.lost[int((self.margins <= offset).sum()) - 1])

    def offset_at(self, most: float) -> float:
        """Return the offset with which the accuracy `most` is lost, by the tail."""
        return self.threshold - self.length * math.log(self.share / most)


def _of_right(designs: Sequence[HeldOutClasses], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join values [N, K] of the images that are right, and their weights, in which the K of a design count alike."""
    found = list[Tensor]()
    weights = list[Tensor]()
    for one, of in zip(designs, values, strict=True):
        some = one.weights > 0
        found.append(of[some].flatten())
        weights.append((one.weights[some] / len(designs) / of.shape[1]).repeat_interleave(of.shape[1]))
    return torch.cat(found), torch.cat(weights)


def _lost_to_one(
    designs: Sequence[HeldOutClasses], leads: Sequence[Tensor], offset: float
) -> tuple[float, tuple[float, float] | None]:
    """Measure what the newcomers cost, each alone with an offset, and the 95 % interval over newcomers."""
    margins, weights = _of_right(designs, leads)
    newcomers = [lead.shape[1] for lead in leads]
    numbers = torch.arange(sum(newcomers)).split(newcomers)
    owners = [some.expand_as(lead) for some, lead in zip(numbers, leads, strict=True)]
    hits = (margins <= offset).double()
    accuracy = float(weights.sum())
    ends = share_range(hits, weights, _of_right(designs, owners)[0])
    scaled = None if ends is None else (accuracy * ends[0], min(accuracy * ends[1], 1.0))
    return min(float(weights @ hits), 1.0), scaled


def _fit_weights(start: Gate, designs: Sequence[HeldOutClasses]) -> Gate:
    """Fit the most probable weights, see `fit_gate`, beside an offset that has a standard normal prior."""
    image_spread = mean_spread(*(one.new_likelihoods for one in designs))
    text_spread = mean_spread(*(one.new_text for one in designs))
    units = torch.tensor([image_spread, text_spread], dtype=torch.float64).nan_to_num(posinf=0.0)
    before = torch.tensor([start.generative, start.text], dtype=torch.float64)
    whole = float(before @ units)
    if not whole:
        return start
    usual = before * units / whole
    factors = torch.where(units > 0, whole / units, 0.0)
    # The search is over square roots, which keeps weights positive; at 0 its gradient vanishes.
    roots = usual.clamp(min=0.1).sqrt().requires_grad_()
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([roots, shift], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        generative, text = roots.square() * factors
        value = 0.5 * (roots.square() - usual).square().sum() + 0.5 * shift.square()
        for one in designs:
            value = value + _weights_loss(one, generative, text, shift)
        value.backward()
        return value

    search.step(loss)
    shares = roots.detach().square()
    shares[shares < _LEAST_SHARE] = 0.0
    generative, text = (shares * factors).tolist()
    return Gate(generative, text)


def _weights_loss(one: HeldOutClasses, generative: Tensor, text: Tensor, offset: Tensor) -> Tensor:
    """Compute the negative log-likelihood of a design, in which an image of a newcomer has the weight one."""
    first = one.trained
    shift = offset * (torch.arange(one.likelihoods.shape[1]) >= first)
    old = generative * one.likelihoods + text * one.text
    new = generative * one.new_likelihoods + text * one.new_text + shift
    missed = (old + shift).logsumexp(1) - old[:, :first].logsumexp(1)
    found = new.logsumexp(1) - new.gather(1, one.new_labels[:, None])[:, 0]
    return found.sum() + missed.mean() * len(found) * first / one.newcomers
