"""Fusion of images and texts into one distribution over the classes.

There are three rules:

- `ours`: with g the log-likelihood of the PLDA, t the text logit and l the linear classifier's logit,

      u_c = beta g_c + gamma t_c                                every class
      a_c = kappa u_c + lambda l_c                              base classes
      z_c = a_c - lse_base(a) + lse_base(u)                     base classes
      z_c = u_c + offset_c                                      added classes
      P = softmax(z + log prior)

  Base classes are those with a training image when the head was trained, the others are added classes; lse_base is the
  logsumexp over the base classes. So an added class preserves the ratios between base classes.
- `paper`: alpha P^I + (1 - alpha) P^T (VL-LTR's sum has alpha = 0.5; its release has 0.2 and 0.7).
- `logits`: softmax of the sum of both branches' logits, as the release evaluates many, medium and few.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from vlltr_index.tensors import working_dtype

_FAR = 80.0  # what lies further below the largest adds nothing, and its exponential takes ten times as long
Rule = Literal["ours", "paper", "logits"]

Weight = Annotated[float, Field(ge=0.0, le=1e6)]
"""A factor of a part's scores; a file with a value out of these bounds is refused."""


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Weights of the parts under the rule `ours`; none is negative.

    Attributes:
        image: lambda, of the linear classifier's logits.
        generative: beta, of the PLDA's log-likelihoods.
        text: gamma, of the text logits.
        combined: kappa, of u next to the linear classifier; 1 without one.
    """

    image: Weight
    generative: Weight
    text: Weight
    combined: Weight = 1.0


class VisualScores(NamedTuple):
    """Scores of B images and C classes without attention.

    Attributes:
        scores: Float [B, C], z without attention; under another rule than `ours` the linear classifier's logits.
        generative: Float [B, C], beta g.
        wordless: Float [B, C], beta g if no class has a text, so that every prior is blank.
        linear: Float [B, C_b], lambda l of the base classes; None: lambda is 0.
        base: Int64 [C_b], the columns of the base classes, on the device of the scores.
        offsets: Float [C], 0 for base classes.
        combined: kappa.
    """

    scores: Tensor
    generative: Tensor
    wordless: Tensor
    linear: Tensor | None
    base: Tensor
    offsets: Tensor
    combined: float = 1.0

    def rows(self, rows: Tensor) -> VisualScores:
        """Return the scores of the images at the positions int64 [b]: all that are [B, C] become [b, C]."""
        return self._replace(
            scores=self.scores[rows],
            generative=self.generative[rows],
            wordless=self.wordless[rows],
            linear=None if self.linear is None else self.linear[rows],
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
    generative: Tensor,
    wordless: Tensor,
    linear: Tensor | None,
    base: Tensor,
    offsets: Tensor,
    combined: float = 1.0,
) -> VisualScores:
    """Compute the visual scores [B, C] of the rule `ours`; the arguments are those of `VisualScores`."""
    image = VisualScores(generative, generative, wordless, linear, base, offsets, combined)
    return image._replace(scores=_compared(generative, image))


def _compared(u: Tensor, image: VisualScores) -> Tensor:
    """Compute z of u, [B, C]: see the head of this file."""
    z = u + image.offsets.to(u)
    if image.linear is not None and image.linear.shape[1]:
        own = u[:, image.base]
        a = image.combined * own + image.linear.to(u)
        z[:, image.base] = a - _level(a) + _level(own)
    return z


def _level(scores: Tensor) -> Tensor:
    """Compute the logsumexp of each row, [B, 1]."""
    least = scores.amax(1, keepdim=True) - _FAR
    return scores.clamp(min=least).logsumexp(1, keepdim=True)


def fuse(image: VisualScores, text_logits: Tensor, weights: PartWeights) -> FusedScores:
    """Fuse both sides by the rule `ours`.

    The visual part is z if no class had a text; the text part is z less that.

    Args:
        image: Visual scores, from `visual_scores`.
        text_logits: Float [B, C].
        weights: The weights of the parts.
    """
    dtype = working_dtype(text_logits, image.scores)
    logits = text_logits.to(dtype)
    u = image.generative.to(dtype)
    if weights.text:  # logits without a weight may be no numbers
        u = u + weights.text * logits
    z, wordless = (_compared(of.to(dtype), image) for of in (u, image.wordless))
    return FusedScores(
        probabilities=z.softmax(1),
        visual_part=wordless,
        text_part=z - wordless,
        by_image=wordless.softmax(1),
        by_text=logits.softmax(1),
        text_logits=logits,
    )


def log_frequencies(counts: Tensor) -> Tensor:
    """Estimate the logarithm of each class's frequency, float64 [C], from counts [C]; half a count is added to each."""
    likely = counts.double() + 0.5
    return (likely / likely.sum()).log()


def with_prior(fused: FusedScores, log_prior: Tensor) -> FusedScores:
    """Return the scores of `fuse` where the classes have the prior whose logarithm is float [C]."""
    fused = fused._replace(prior_part=log_prior.to(fused.text_part).expand_as(fused.text_part))
    return fused._replace(probabilities=fused.log_scores.softmax(1))


def resting(image: VisualScores, text_logits: Tensor, probabilities: Tensor, weights: PartWeights) -> Tensor:
    """Measure how much an answer of `fuse` depends on each class's text logit, float [B, C].

    That is the class's probability. Where a linear classifier counts, a base class's is, if larger, its share in
    lse_base(u), which added classes are compared with, times 4 p (1 - p), p being the probability of all added classes.

    Args:
        image, text_logits, weights: As for `fuse`.
        probabilities: The probabilities that `fuse` gave.
    """
    if image.linear is None:
        return probabilities
    base = image.base
    rests = probabilities.clone()
    added = 1.0 - probabilities[:, base].sum(1, keepdim=True)
    u = image.generative[:, base] + weights.text * text_logits[:, base]
    share = 4.0 * added * (1.0 - added) * u.softmax(1)
    rests[:, base] = torch.maximum(rests[:, base], share.to(rests.dtype))
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
