"""One distribution from what the images and the texts of classes say about a picture.

Three rules put it together:

- `ours`: a product of three experts, the visual classifier, the generative model and the text branch, with weights that
  `vlltr train lgr` fits. Classes that came after the training have no row in the visual classifier. They meet the
  trained ones by the chain rule: whether an image is of a trained class the generative model and the text branch say
  by weights of their own, which of the trained ones it is all three experts say. So an addition leaves the order of the
  trained classes among themselves as it was.
- `paper`: alpha P^I + (1 - alpha) P^T (VL-LTR's sum at alpha = 0.5; its release has 0.2 and 0.7).
- `logits`: softmax of the sum of both branches' logits, by which the release counts its many, medium and few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from vlltr_index.tensors import working_dtype

Rule = Literal["ours", "paper", "logits"]

Weight = Annotated[float, Field(ge=0.0, le=1e6)]
"""A factor of a part's scores; files with others are refused."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """How classes that came after the training meet the trained ones and each other; only the offset may be negative.

    Attributes:
        generative: What their log-likelihoods, and those of the trained ones beside them, are multiplied by.
        text: What the text logits are.
        offset: Added to their scores.
    """

    generative: Weight
    text: Weight
    offset: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0


@dataclass(frozen=True, slots=True)
class PartWeights:
    """How much each part counts under the rule `ours`; none is negative.

    Attributes:
        image: What the visual classifier's logits are multiplied by.
        generative: What the log-likelihoods are, where trained classes are told apart.
        text: What the text logits are, there.
        pictured: For later classes that have images.
        told: For later classes that are known by text alone.
    """

    image: Weight
    generative: Weight
    text: Weight
    pictured: Meeting
    told: Meeting


class ImageSide(NamedTuple):
    """What the visual side says of B images and C classes.

    Attributes:
        scores: Float [B, C]: log-scores up to a constant of the image.
        likelihoods: Float [B, C]: the generative model's, where the rule is `ours`.
        trained: Bool [C], there; on the CPU, as `pictured` is, so that a GPU is not waited for.
        pictured: Bool [C]: which have images, there.
    """

    scores: Tensor
    likelihoods: Tensor
    trained: Tensor
    pictured: Tensor

    def rows(self, rows: Tensor) -> ImageSide:
        """The same of the images at the places int64 [b]: scores and likelihoods [b, C]."""
        return self._replace(scores=self.scores[rows], likelihoods=self.likelihoods[rows])

    def later(self, weights: PartWeights) -> tuple[tuple[Tensor, Meeting], ...]:
        """The kinds of classes that came after the training, bool [C], and how they meet the others."""
        kinds = (
            (~self.trained & self.pictured, weights.pictured),
            (~self.trained & ~self.pictured, weights.told),
        )
        return tuple((kind, meeting) for kind, meeting in kinds if bool(kind.any()))


class FusedScores(NamedTuple):
    """Probabilities and where they come from.

    Under `ours` and `logits` the parts add up to the logarithm of each probability, up to a constant of the image;
    under `paper` to the probability.

    Attributes:
        probabilities: Float [B, C], rows sum to one.
        visual_part: Float [B, C]: what the images of the class give.
        text_part: Float [B, C]: what its text gives.
        by_image: Float [B, C]: the answer of the visual side alone.
        by_text: Float [B, C]: the answer of the text branch alone.
        text_logits: Float [B, C], scale * cosine.
    """

    probabilities: Tensor
    visual_part: Tensor
    text_part: Tensor
    by_image: Tensor
    by_text: Tensor
    text_logits: Tensor

    def among(self, columns: Tensor, rule: Rule) -> FusedScores:
        """What they are among some classes, int64 [K], as if there were no others: float [B, K] each."""
        whole, image, text, *rest = (values[:, columns] for values in self)
        if rule == "paper":
            total = whole.sum(1, keepdim=True).clamp(min=1e-30)
            return FusedScores(whole / total, image / total, text / total, *rest)
        return FusedScores((image + text).softmax(1), image, text, *rest)


def image_side(
    visual_logits: Tensor, likelihoods: Tensor, trained: Tensor, pictured: Tensor, weights: PartWeights
) -> ImageSide:
    """The visual side of the rule `ours`.

    A trained class has log P(c | trained, x). A later one has the offset of its kind and g_c less the logsumexp of g
    over the trained ones, g times the kind's weight.

    Args:
        visual_logits: Float [B, C]; only the trained classes' columns count, and they not at a weight of 0.
        likelihoods: Float [B, C], g: the generative model's.
        trained: Bool [C].
        pictured: Bool [C], the classes that have images.
        weights: See `PartWeights`.
    """
    side = ImageSide(torch.empty_like(likelihoods), likelihoods, trained, pictured)
    own = _columns(trained, likelihoods)
    known = weights.generative * likelihoods[:, own]
    if weights.image:
        known = known + weights.image * visual_logits[:, own]
    side.scores[:, own] = known.log_softmax(1)
    for kind, meeting in side.later(weights):
        gated = meeting.generative * likelihoods
        at = _columns(kind, likelihoods)
        side.scores[:, at] = gated[:, at] + meeting.offset - _level(gated[:, own])
    return side


def _columns(mask: Tensor, values: Tensor) -> Tensor:
    """Where a mask on the CPU is set, int64, and where `values` lie: a GPU is not waited for."""
    return mask.nonzero()[:, 0].to(values.device, non_blocking=True)


def _level(scores: Tensor) -> Tensor:
    """The logsumexp of each row, [B, 1]; 0 where there is no column."""
    return scores.logsumexp(1, keepdim=True) if scores.shape[1] else scores.new_zeros(len(scores), 1)


def fuse(image: ImageSide, text_logits: Tensor, weights: PartWeights) -> FusedScores:
    """The rule `ours`: softmax of image score + text part.

    A class's text part is its weighted text logit, less what the text logits of the trained classes add to the level
    that the class is measured by: of the trained ones in their own score, of g in that of a later class.

    Args:
        image: From `image_side`.
        text_logits: Float [B, C].
        weights: See `PartWeights`.
    """
    dtype = working_dtype(text_logits, image.scores)
    trained = _columns(image.trained, text_logits)
    scores, told, likelihoods = (part.to(dtype) for part in (image.scores, text_logits, image.likelihoods))

    def part(weight: float, of: Tensor, beside: Tensor) -> Tensor:
        return weight * told[:, of] - _level(beside + weight * told[:, trained]) + _level(beside)

    text = torch.empty_like(told)
    text[:, trained] = part(weights.text, trained, scores[:, trained])
    for kind, meeting in image.later(weights):
        at = _columns(kind, told)
        text[:, at] = part(meeting.text, at, meeting.generative * likelihoods[:, trained])
    return FusedScores((scores + text).softmax(1), scores, text, scores.softmax(1), told.softmax(1), told)


def resting(image: ImageSide, text_logits: Tensor, probabilities: Tensor, weights: PartWeights) -> Tensor:
    """How much of an answer of `fuse` rests on each class's text logit, float [B, C].

    Its probability; for a trained class its share in the level that later classes are measured by, if that is more,
    times 4 p (1 - p) where these have the probability p together.

    Args:
        image: As for `fuse`; so are `text_logits` and `weights`.
        probabilities: What `fuse` gave.
    """
    rests = probabilities.clone()
    trained = _columns(image.trained, probabilities)
    for kind, meeting in image.later(weights):
        later = probabilities[:, _columns(kind, probabilities)].sum(1, keepdim=True)
        level = meeting.generative * image.likelihoods[:, trained] + meeting.text * text_logits[:, trained]
        share = 4.0 * later * (1.0 - later) * level.softmax(1)
        rests[:, trained] = torch.maximum(rests[:, trained], share.to(rests.dtype))
    return rests


def fuse_protocol(
    visual_logits: Tensor, text_logits: Tensor, rule: Literal["paper", "logits"], alpha: float
) -> FusedScores:
    """The rules `paper` and `logits`.

    Args:
        visual_logits: Float [B, C], minus infinity for a class without a visual row, from `class_logits`. Under
            `logits` such a class has the mean of the others: it speaks neither for nor against.
        text_logits: Float [B, C].
        rule: Which.
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
        return FusedScores((filled + text).softmax(1), filled, text, by_image, by_text, text)
    share = alpha * there.any().to(by_image.dtype)  # without a visual row the text says all
    visual_part = share * by_image
    text_part = (1.0 - share) * by_text
    return FusedScores(visual_part + text_part, visual_part, text_part, by_image, by_text, text)


def parts_of(fused: FusedScores, positions: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """What images and text gave classes, float [B, K] each.

    Under `paper` their parts of a class's probability. In a product their parts of the logarithm of its odds against
    the best other class: they add up to log P(class) / P(other).

    Args:
        fused: The scores.
        positions: Int64 [B, K]: which classes of each image.
        rule: By which rule.
    """
    parts = fused.visual_part, fused.text_part
    image, text = (part.gather(1, positions) for part in parts)
    if rule == "paper":
        return image, text
    if fused.probabilities.shape[1] == 1:  # there is no other
        return torch.zeros_like(image), torch.zeros_like(text)
    first, second = (parts[0] + parts[1]).topk(2).indices.T[:, :, None]  # probabilities may all be zero
    rival = torch.where(positions == first, second, first)
    return image - parts[0].gather(1, rival), text - parts[1].gather(1, rival)


def class_logits(row_logits: Tensor, row_class: Tensor, classes: int) -> Tensor:
    """Logits of visual rows to logits of classes: logsumexp over a class's rows, minus infinity without one.

    Args:
        row_logits: Float [B, R].
        row_class: Integers [R], best on the CPU: the class each row belongs to; -1 for a row whose class is gone.
        classes: C.

    Returns:
        Float [B, C].
    """
    live = (row_class >= 0).nonzero()[:, 0]
    owner = row_class[live].long().to(row_logits.device, non_blocking=True).expand(len(row_logits), -1)
    rows = row_logits[:, live.to(row_logits.device, non_blocking=True)]
    best = rows.new_full((len(rows), classes), float("-inf")).scatter_reduce(1, owner, rows, "amax")
    sums = torch.zeros_like(best).scatter_add(1, owner, (rows - best.gather(1, owner)).exp())
    return torch.where(best.isfinite(), best + sums.clamp(min=1.0).log(), best)
