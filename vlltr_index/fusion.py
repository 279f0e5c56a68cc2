"""One distribution from what the images and the texts of classes say about a picture.

Three rules put it together:

- `ours`: a product of three experts, the visual classifier, the generative model and the text branch, with weights that
  `vlltr train lgr` fits. Classes that came after the training have no row in the visual classifier. They meet the
  trained ones by the chain rule: whether an image is of a trained class the generative model of all classes says, which
  of the trained ones it is the first two experts together. So an addition leaves the image side's order of the trained
  classes among themselves as it was.
- `paper`: alpha P^I + (1 - alpha) P^T (VL-LTR's sum at alpha = 0.5; its release has 0.2 and 0.7).
- `logits`: softmax of the sum of both branches' logits, by which the release counts its many, medium and few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.tensors import check_labels, check_matrix, check_vector, working_dtype

__all__ = [
    "FusedScores",
    "PartWeights",
    "Rule",
    "class_logits",
    "fuse",
    "fuse_protocol",
    "image_scores",
    "parts_of",
]

Rule = Literal["ours", "paper", "logits"]

_LARGEST = 1e6


@dataclass(frozen=True, slots=True)
class PartWeights:
    """How much each part counts under the rule `ours`; none is negative but the offset.

    Attributes:
        image: What the visual classifier's logits are multiplied by.
        generative: What the log-likelihoods are, where trained classes are told apart.
        text: What the text logits are.
        gate: What the log-likelihoods are, where trained classes meet those that came later.
        offset: Added to the scores of the latter.
    """

    image: float
    generative: float
    text: float
    gate: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image", "generative", "text", "gate"):
            if not 0.0 <= getattr(self, name) <= _LARGEST:  # nan too
                raise InputError(
                    f"the weight {name!r} must lie in 0..{_LARGEST:,.0f}, got {getattr(self, name)}",
                    "vlltr train lgr",
                )
        if not abs(self.offset) <= _LARGEST:
            raise InputError(
                f"the offset must lie within {_LARGEST:,.0f}, got {self.offset}", "vlltr train lgr"
            )


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
    """

    probabilities: Tensor
    visual_part: Tensor
    text_part: Tensor
    by_image: Tensor
    by_text: Tensor


def image_scores(visual_logits: Tensor, likelihoods: Tensor, trained: Tensor, weights: PartWeights) -> Tensor:
    """The visual side of the rule `ours`: log-scores up to a constant of the image, [B, C].

    log P(c | trained, x) + logsumexp over the trained of gate * g for a trained class, gate * g_c + offset for another.

    Args:
        visual_logits: Float [B, C]; only the trained classes' columns count, and they not at a weight of 0.
        likelihoods: Float [B, C], g: the generative model's.
        trained: Bool [C].
        weights: See `PartWeights`.
    """
    gated = weights.gate * likelihoods
    if not bool(trained.any()):
        return gated + weights.offset
    known = weights.generative * likelihoods[:, trained]
    if weights.image:
        known = known + weights.image * visual_logits[:, trained]
    scores = gated + weights.offset
    level = gated[:, trained].logsumexp(1, keepdim=True)
    scores[:, trained] = known.log_softmax(1) + level
    return scores


def fuse(image: Tensor, text_logits: Tensor, weights: PartWeights) -> FusedScores:
    """The rule `ours`: softmax of image score + text weight * text logit.

    Args:
        image: Float [B, C], from `image_scores`.
        text_logits: Float [B, C].
        weights: See `PartWeights`.

    Raises:
        InputError: Shapes do not fit.
    """
    check_matrix("text_logits", text_logits)
    check_matrix("image", image, *reversed(text_logits.shape))
    dtype = working_dtype(text_logits, image)
    image, text = image.to(dtype), weights.text * text_logits.to(dtype)
    return FusedScores((image + text).softmax(1), image, text, image.softmax(1), text_logits.softmax(1))


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

    Raises:
        InputError: Shapes do not fit.
    """
    check_matrix("text_logits", text_logits)
    check_matrix("visual_logits", visual_logits, *reversed(text_logits.shape))
    dtype = working_dtype(text_logits, visual_logits)
    visual, text = visual_logits.to(dtype), text_logits.to(dtype)
    there = visual.isfinite()
    by_text = text.softmax(1)
    by_image = torch.where(there, visual.softmax(1), 0.0) if bool(there.any()) else torch.zeros_like(by_text)
    if rule == "logits":
        level = torch.where(there, visual, 0.0).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        filled = torch.where(there, visual, level)
        return FusedScores((filled + text).softmax(1), filled, text, by_image, by_text)
    if not bool(there.any()):
        return FusedScores(by_text, by_image, by_text, by_image, by_text)
    visual_part, text_part = alpha * by_image, (1.0 - alpha) * by_text
    return FusedScores(visual_part + text_part, visual_part, text_part, by_image, by_text)


def parts_of(fused: FusedScores, row: int, position: int, rule: Rule) -> tuple[float, float]:
    """What images and text gave one class of one image.

    Under `paper` their parts of its probability. In a product their parts of the logarithm of its odds against the best
    other class: they add up to log P(class) / P(other).

    Args:
        fused: The scores.
        row: Which image.
        position: Which class.
        rule: By which rule.
    """
    parts = (fused.visual_part[row], fused.text_part[row])
    if rule == "paper":
        return float(parts[0][position]), float(parts[1][position])
    if fused.probabilities.shape[1] == 1:  # there is no other
        return 0.0, 0.0
    others = parts[0] + parts[1]  # probabilities may all be zero
    others[position] = float("-inf")
    rival = int(others.argmax())
    return float(parts[0][position] - parts[0][rival]), float(parts[1][position] - parts[1][rival])


def class_logits(row_logits: Tensor, row_class: Tensor, classes: int) -> Tensor:
    """Logits of visual rows to logits of classes: logsumexp over a class's rows, minus infinity without one.

    Args:
        row_logits: Float [B, R].
        row_class: Integers [R]: the class each row belongs to; -1 for a row whose class is gone.
        classes: C.

    Returns:
        Float [B, C].

    Raises:
        InputError: Shapes do not fit, or a row points outside the classes.
    """
    check_matrix("row_logits", row_logits)
    check_vector("row_class", row_class, row_logits.shape[1])
    check_labels("row_class", row_class + 1, classes=classes + 1)
    live = row_class >= 0
    owner = row_class[live].long().expand(len(row_logits), -1)
    rows = row_logits[:, live]
    best = rows.new_full((len(rows), classes), float("-inf")).scatter_reduce(1, owner, rows, "amax")
    sums = torch.zeros_like(best).scatter_add(1, owner, (rows - best.gather(1, owner)).exp())
    return torch.where(best.isfinite(), best + sums.clamp(min=1.0).log(), best)
