"""Fusion of the visual and the text side into one distribution over the classes.

There are three rules:

- `ours`: a product of three experts, the visual classifier, the generative model and the text branch, with weights that
  `vlltr train lgr` fits. Later classes, added after training, have no row in the visual classifier. They are compared
  with the trained ones by the chain rule: the generative model and the text branch, with weights of their own, decide
  whether an image is of a trained class, and all three experts decide of which trained class. So the addition of a
  class does not change the order of the trained ones.
- `paper`: alpha P^I + (1 - alpha) P^T (VL-LTR's sum has alpha = 0.5; its release has 0.2 and 0.7).
- `logits`: softmax of the sum of both branches' logits, as the release evaluates many, medium and few.

All classes are taken to be equally common. Under `ours` a prior may say otherwise, see `with_prior`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from vlltr_index.tensors import working_dtype

_FAR = 80.0  # what lies further below the largest adds nothing, and its exponential takes ten times as long
Rule = Literal["ours", "paper", "logits"]

Weight = Annotated[float, Field(ge=0.0, le=1e6)]
"""A factor of a part's scores; a file with a value out of these bounds is refused."""


Offset = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A term of a score, likewise."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Weights by which later classes are compared with the trained ones; offset and limit may be negative.

    Attributes:
        generative: Factor of the log-likelihoods, of the later classes and of the trained ones in the comparison.
        text: Factor of the text logits, likewise.
        offset: Added to the scores of the later classes.
        limit: The largest offset where there is one later class.
        fit: Factor of a later class's own log-likelihood, added to `generative`: an image that fits no class is not
            taken for one of a class of which little is known.
        crowding: What the limit falls by where there are e times as many later classes: by how much the strongest of
            them is then stronger.
    """

    generative: Weight
    text: Weight
    offset: Offset = 0.0
    limit: Offset = 1e6
    fit: Weight = 0.0
    crowding: Weight = 1.0

    def offset_among(self, number: int) -> float:
        """Return the offset where there are that many later classes, at least 1."""
        return min(self.offset, self.limit - self.crowding * math.log(number))


@dataclass(frozen=True, slots=True)
class PriorWeights:
    """Weights for answers under a prior of the classes, fitted so that every picture counts alike.

    Attributes:
        frequency: Factor of the logarithm of a class's frequency.
        parts: Factor of the weights of all parts among the trained classes.
    """

    frequency: Weight = 1.0
    parts: Weight = 1.0


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Weights of the parts under the rule `ours`; none is negative.

    Attributes:
        image: Factor of the visual classifier's logits.
        generative: Factor of the log-likelihoods, among the trained classes.
        text: Factor of the text logits, among the trained classes.
        few_shot: Weights of later classes that have images.
        text_only: Weights of later classes that are known by text alone.
        prior: Weights for answers under a prior of the classes.
    """

    image: Weight
    generative: Weight
    text: Weight
    few_shot: Gate
    text_only: Gate
    prior: PriorWeights = PriorWeights()

    def under_prior(self) -> PartWeights:
        """Return the weights for answers under a prior."""
        factor = self.prior.parts
        return replace(
            self, image=factor * self.image, generative=factor * self.generative, text=factor * self.text
        )


class Kinds(NamedTuple):
    """Columns of the classes of each kind, int64, on the CPU, so that no GPU is waited for.

    Attributes:
        trained: Of the trained classes.
        few_shot: Of later classes that have images.
        text_only: Of later classes that are known by text alone.
    """

    trained: Tensor
    few_shot: Tensor
    text_only: Tensor

    @classmethod
    def of(cls, trained: Tensor, with_images: Tensor) -> Kinds:
        """Make it from the masks of the trained classes and of those that have images, bool [C]."""
        masks = (trained, ~trained & with_images, ~trained & ~with_images)
        return cls(*(mask.cpu().nonzero()[:, 0] for mask in masks))

    def later(self, weights: PartWeights) -> tuple[tuple[Tensor, Gate], ...]:
        """Return the columns, int64 [K], of each kind of later classes that there are, with its weights."""
        kinds = (self.few_shot, weights.few_shot), (self.text_only, weights.text_only)
        return tuple((columns, gate) for columns, gate in kinds if len(columns))


class VisualScores(NamedTuple):
    """Scores of B images and C classes without the text branch.

    Attributes:
        scores: Float [B, C], log-scores up to a constant of each image.
        wordless: Float [B, C], what the scores are if no class has a text, so that every prior is blank.
        likelihoods: Float [B, C], log-likelihoods of the generative model, under the rule `ours`.
        kinds: The kinds of the classes, under `ours`.
    """

    scores: Tensor
    wordless: Tensor
    likelihoods: Tensor
    kinds: Kinds

    def rows(self, rows: Tensor) -> VisualScores:
        """Return the scores of the images at the positions int64 [b]: all that are [B, C] become [b, C]."""
        return self._replace(
            scores=self.scores[rows], wordless=self.wordless[rows], likelihoods=self.likelihoods[rows]
        )


class FusedScores(NamedTuple):
    """Probabilities, and the parts that they are made of.

    Under `ours` and `logits` the parts add up to the logarithm of each probability, up to a constant of the image;
    under `paper` to the probability. The probabilities by one side alone know no prior.

    Attributes:
        probabilities: Float [B, C], rows sum to one.
        visual_part: Float [B, C], the contribution of images: the score if no class has a text.
        text_part: Float [B, C], the contribution of texts, by the text branch and by the generative model's prior.
        by_image: Float [B, C], the probabilities if no class has a text.
        by_text: Float [B, C], the probabilities by the text branch alone.
        text_logits: Float [B, C], scale * cosine.
        prior_part: Float [B, C], the contribution of how common the class is; None where all are equally common.
    """

    probabilities: Tensor
    visual_part: Tensor
    text_part: Tensor
    by_image: Tensor
    by_text: Tensor
    text_logits: Tensor
    prior_part: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The fields that are there, in their order; `FusedScores(*tensors)` is the same."""
        return [values for values in self if values is not None]

    @property
    def log_scores(self) -> Tensor:
        """The sum of the parts, float [B, C]."""
        both = self.visual_part + self.text_part
        return both if self.prior_part is None else both + self.prior_part

    @classmethod
    def joined(cls, parts: Iterable[FusedScores], images: int) -> FusedScores:
        """Join the scores of B images, given some images at a time; no part is kept."""
        whole = list[Tensor]()
        first = 0
        for part in parts:
            if len(part.probabilities) == images:
                return part
            whole = whole or [values.new_empty(images, values.shape[1]) for values in part.tensors]
            last = first + len(part.probabilities)
            for values, new in zip(whole, part.tensors, strict=True):
                values[first:last] = new
            first = last
        return cls(*whole)

    def among(self, columns: Tensor, rule: Rule) -> FusedScores:
        """Return the scores among the classes `columns`, int64 [K], as if there were no others: float [B, K] each."""
        some = FusedScores(*(values[:, columns] for values in self.tensors))
        if rule != "paper":
            return some._replace(probabilities=some.log_scores.softmax(1))
        total = some.probabilities.sum(1, keepdim=True).clamp(min=1e-30)
        return some._replace(
            probabilities=some.probabilities / total,
            visual_part=some.visual_part / total,
            text_part=some.text_part / total,
        )


def visual_scores(
    visual_logits: Tensor,
    likelihoods: Tensor,
    kinds: Kinds,
    weights: PartWeights,
    wordless: Tensor | None = None,
) -> VisualScores:
    """Compute the visual scores of the rule `ours`.

    The score of a trained class is log P(c | trained, x). That of a later class is the offset of its kind, plus g_c,
    less the logsumexp of g over the trained classes, where g is multiplied by the kind's weight, and that of the later
    class by its `fit` too.

    Args:
        visual_logits: Float [B, C]; only the trained classes' columns are used, and none if their weight is 0.
        likelihoods: Float [B, C], g, the log-likelihoods of the generative model.
        kinds: The kinds of the classes.
        weights: The weights of the parts.
        wordless: Float [B, C], the log-likelihoods if no class has a text; None: the same.
    """
    own = _there(kinds.trained, likelihoods)
    number = likelihoods.shape[1] - len(own)

    def scores(of: Tensor) -> Tensor:
        found = torch.empty_like(of)
        known = weights.generative * of[:, own]
        if weights.image:
            known = known + weights.image * visual_logits[:, own]
        found[:, own] = known.log_softmax(1)
        for columns, gate in kinds.later(weights):
            at = _there(columns, of)
            level = _level(gate.generative * of[:, own])
            found[:, at] = (gate.generative + gate.fit) * of[:, at] + gate.offset_among(number) - level
        return found

    whole = scores(likelihoods)
    return VisualScores(whole, whole if wordless is None else scores(wordless), likelihoods, kinds)


def _there(columns: Tensor, values: Tensor) -> Tensor:
    """Return columns on the device of `values`, without waiting for a GPU."""
    return columns.to(values.device, non_blocking=True)


def _level(scores: Tensor) -> Tensor:
    """Compute the logsumexp of each row, [B, 1]; 0 where there is no column."""
    if not scores.shape[1]:
        return scores.new_zeros(scores.shape[0], 1)
    least = scores.amax(1, keepdim=True) - _FAR
    return scores.clamp(min=least).logsumexp(1, keepdim=True)


def fuse(image: VisualScores, text_logits: Tensor, weights: PartWeights) -> FusedScores:
    """Fuse both sides by the rule `ours`: softmax of visual score + text part.

    To a class's visual score the text branch adds its weighted text logit, less what the text logits of the trained
    classes add to the logsumexp that is subtracted from its score: that of the trained classes' own scores for a
    trained class, that of g for a later one. The text part is this and what the texts shift the visual score by.

    Args:
        image: Visual scores, from `visual_scores`.
        text_logits: Float [B, C].
        weights: The weights of the parts.
    """
    dtype = working_dtype(text_logits, image.scores)
    trained = _there(image.kinds.trained, text_logits)
    scores = image.scores.to(dtype)
    logits = text_logits.to(dtype)
    likelihoods = image.likelihoods.to(dtype)

    def part(weight: float, of: Tensor, beside: Tensor) -> Tensor:
        return weight * logits[:, of] - _level(beside + weight * logits[:, trained]) + _level(beside)

    text = torch.empty_like(logits)
    text[:, trained] = part(weights.text, trained, scores[:, trained])
    for columns, gate in image.kinds.later(weights):
        at = _there(columns, logits)
        text[:, at] = part(gate.text, at, gate.generative * likelihoods[:, trained])
    wordless = image.wordless.to(dtype)
    return FusedScores(
        probabilities=(scores + text).softmax(1),
        visual_part=wordless,
        text_part=scores - wordless + text,
        by_image=wordless.softmax(1),
        by_text=logits.softmax(1),
        text_logits=logits,
    )


def log_frequencies(counts: Tensor) -> Tensor:
    """Estimate the logarithm of each class's frequency, float64 [C], from counts [C]; half a count is added to each."""
    likely = counts.double() + 0.5
    return (likely / likely.sum()).log()


def with_prior(
    fused: FusedScores, image: VisualScores, weights: PartWeights, log_prior: Tensor
) -> FusedScores:
    """Return the scores of `fuse` where classes are not equally common.

    A class's prior part is its log-frequency, less what the log-frequencies of the trained classes add to the logsumexp
    that is subtracted from its score: that of the trained classes' own scores for a trained class, that of the gate for
    a later one. So the chain rule holds as in `fuse`.

    Args:
        fused: The scores, by the same weights.
        image: Visual scores, as for `fuse`.
        weights: The weights of the parts.
        log_prior: Float [C], the weighted logarithm of each class's frequency.
    """
    trained = _there(image.kinds.trained, fused.text_part)
    known = log_prior.to(fused.text_part)
    part = torch.empty_like(fused.text_part)
    own = fused.visual_part[:, trained] + fused.text_part[:, trained]
    part[:, trained] = known[trained] - _level(own + known[trained]) + _level(own)
    for columns, gate in image.kinds.later(weights):
        at = _there(columns, part)
        gated = (
            gate.generative * image.likelihoods[:, trained].to(part)
            + gate.text * fused.text_logits[:, trained]
        )
        part[:, at] = known[at] - _level(gated + known[trained]) + _level(gated)
    fused = fused._replace(prior_part=part)
    return fused._replace(probabilities=fused.log_scores.softmax(1))


def resting(image: VisualScores, text_logits: Tensor, probabilities: Tensor, weights: PartWeights) -> Tensor:
    """Measure how much an answer of `fuse` depends on each class's text logit, float [B, C].

    That is the class's probability. For a trained class it is, if larger, the class's share in the logsumexp that later
    classes are compared with, times 4 p (1 - p), where p is the probability of all classes of a later kind together.

    Args:
        image: As for `fuse`.
        text_logits: As for `fuse`.
        probabilities: The probabilities that `fuse` gave.
        weights: As for `fuse`.
    """
    rests = probabilities.clone()
    trained = _there(image.kinds.trained, probabilities)
    for columns, gate in image.kinds.later(weights):
        later = probabilities[:, _there(columns, probabilities)].sum(1, keepdim=True)
        level = gate.generative * image.likelihoods[:, trained] + gate.text * text_logits[:, trained]
        share = 4.0 * later * (1.0 - later) * level.softmax(1)
        rests[:, trained] = torch.maximum(rests[:, trained], share.to(rests.dtype))
    return rests


def fuse_protocol(
    visual_logits: Tensor, text_logits: Tensor, rule: Literal["paper", "logits"], alpha: float
) -> FusedScores:
    """Fuse both branches by the rule `paper` or `logits`.

    Args:
        visual_logits: Float [B, C], minus infinity for a class without a visual row, from `class_logits`. Under
            `logits` such a class gets the mean of the others, which counts neither for nor against it.
        text_logits: Float [B, C].
        rule: The rule.
        alpha: Weight of the visual branch under `paper`.
    """
    dtype = working_dtype(text_logits, visual_logits)
    visual = visual_logits.to(dtype)
    text = text_logits.to(dtype)
    there = visual.isfinite()
    by_text = text.softmax(1)
    by_image = torch.where(there, visual.softmax(1), 0.0)
    if rule == "logits":
        level = torch.where(there, visual, 0.0).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        filled = torch.where(there, visual, level)
        return FusedScores(
            probabilities=(filled + text).softmax(1),
            visual_part=filled,
            text_part=text,
            by_image=by_image,
            by_text=by_text,
            text_logits=text,
        )
    share = alpha * there.any().to(by_image.dtype)  # without any visual row the text decides alone
    visual_part = share * by_image
    text_part = (1.0 - share) * by_text
    return FusedScores(
        probabilities=visual_part + text_part,
        visual_part=visual_part,
        text_part=text_part,
        by_image=by_image,
        by_text=by_text,
        text_logits=text,
    )


def parts_of(fused: FusedScores, positions: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Divide the answer for some classes into an image part, a text part and a prior part, float [B, K] each.

    Under `paper` these are parts of the class's probability. Under the other rules they are parts of the logarithm of
    its odds against the best other class: they add up to log P(class) / P(other). Without a prior its part is zero.

    Args:
        fused: The scores.
        positions: Int64 [B, K], the classes of each image.
        rule: The rule that the scores were fused by.
    """
    image = fused.visual_part.gather(1, positions)
    nothing = torch.zeros_like(image)
    if rule == "paper":
        return image, fused.text_part.gather(1, positions), nothing
    if fused.probabilities.shape[1] == 1:  # there is no other class
        return nothing, nothing, nothing
    # By the parts, not by the probabilities, which may all be rounded to zero.
    first, second = fused.log_scores.topk(2).indices.T[:, :, None]
    rival = torch.where(positions == first, second, first)

    def ahead(part: Tensor) -> Tensor:
        return part.gather(1, positions) - part.gather(1, rival)

    prior = nothing if fused.prior_part is None else ahead(fused.prior_part)
    return ahead(fused.visual_part), ahead(fused.text_part), prior


def class_logits(row_logits: Tensor, row_class: Tensor, classes: int) -> Tensor:
    """Turn logits of visual rows into logits of classes: logsumexp over a class's rows, minus infinity without one.

    Args:
        row_logits: Float [B, R].
        row_class: Integers [R], best on the CPU: the class each row belongs to; -1 for a row whose class is gone.
        classes: Number of classes, C.

    Returns:
        Float [B, C].
    """
    images = row_logits.shape[0]
    owner = torch.where(row_class < 0, classes, row_class.long()).to(row_logits.device, non_blocking=True)
    owner = owner.expand(images, -1)
    empty = row_logits.new_full((images, classes + 1), float("-inf"))  # the last is of no class
    best = empty.scatter_reduce(1, owner, row_logits, "amax")
    sums = torch.zeros_like(best).scatter_add(1, owner, (row_logits - best.gather(1, owner)).exp())
    logits = torch.where(best.isfinite(), best + sums.clamp(min=1.0).log(), best)
    return logits[:, :classes]
