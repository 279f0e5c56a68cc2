"""Which sentences stand behind a class's text score, and how much of it each.

With G = sum_m a_m E_m, the share of sentence m is a_m E_m . I / (|I| |G|): shares add up to the cosine, and
may be negative. Its effect is cos(I, G) - cos(I, G - a_m E_m), what striking the sentence out takes from
the cosine. Both are points of similarity, not of probability. Sentences may be struck out: the attention of the
others stays as it is, and what is left of G points where it would if the class had never had them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.tensors import check_vector

if TYPE_CHECKING:
    from vlltr_index.heads.lgr import AnchorBank, LGRHead

__all__ = ["ClassExplanation", "Contrast", "contrast", "explain_class"]

_NOTHING: Mapping[int, Sequence[int]] = MappingProxyType({})


@dataclass(frozen=True, eq=False, slots=True)
class ClassExplanation:
    """One class's text score, sentence by sentence, in the bank's order of the class's anchors.

    Attributes:
        position: The class's position in the bank.
        rows: Int64 [M], the anchors' places in what the bank was built from.
        attention: Float64 [M], sums to one, those struck out included.
        shares: Float64 [M], add up to `cosine`; zero for those struck out.
        effects: Float64 [M], the cosine with the sentence less the cosine without it, the others as they are: what
            striking it out takes away, and for one struck out already what putting it back would give.
        cosine: cos(I, G).
        logit: scale * cosine, the text logit.
    """

    position: int
    rows: Tensor
    attention: Tensor
    shares: Tensor
    effects: Tensor
    cosine: float
    logit: float

    @property
    def percents(self) -> Tensor:
        """Shares in per cent of the positive ones, float64 [M]; zero where none is positive."""
        positive = self.shares.clamp(min=0).sum()
        return 100 * self.shares / positive if float(positive) else torch.zeros_like(self.shares)

    def order(self) -> Tensor:
        """Sentences by falling effect, int64 [M]: what decided comes first."""
        return torch.argsort(self.effects, descending=True, stable=True)


@dataclass(frozen=True, eq=False, slots=True)
class Contrast:
    """Why one class and not another.

    Attributes:
        first: The class argued for.
        second: The class argued against.
        gap: Cosine of the first less cosine of the second; the first's shares less the second's add up to it.
        for_first: int64 [n], positions among the first's anchors whose removal would lower the gap, strongest first.
        against_first: int64 [n], positions among the second's anchors whose removal would raise the gap,
            strongest first.
    """

    first: ClassExplanation
    second: ClassExplanation
    gap: float
    for_first: Tensor
    against_first: Tensor


def explain_class(
    head: LGRHead, bank: AnchorBank, position: int, image_feature: Tensor, struck: Sequence[int] = ()
) -> ClassExplanation:
    """Take one class's text score for one image apart.

    Args:
        head: The head.
        bank: The anchors; the head's width.
        position: The class's position in the bank.
        image_feature: Float [D], unnormalised as the encoder gives it.
        struck: Sentences of the class that are left out of G, by their place among its anchors, 0 to M - 1. With all of
            them struck out the cosine is zero.

    Returns:
        The explanation, computed in float64 on the features' device.

    Raises:
        InputError: The feature has another shape, or the position or a sentence is outside the bank.
    """
    check_vector("image_feature", image_feature, bank.dim)
    if not 0 <= position < bank.num_classes:
        raise InputError(f"class position must lie in 0..{bank.num_classes - 1}, got {position}")
    start, stop = bank.bounds[position], bank.bounds[position + 1]
    out = _mask(struck, stop - start, bank.vectors.device)
    with torch.no_grad():
        attention = head.attention_for(image_feature[None], bank.select([position]))[0].double()
        values = bank.vectors[start:stop].double()
        if head.normalise_values:
            values = values / values.norm(dim=1, keepdim=True).clamp(min=1e-12)
        image = image_feature.double() / image_feature.double().norm().clamp(min=1e-300)
        terms = attention[:, None] * values
        kept = torch.where(out[:, None], 0.0, terms)
        attended = kept.sum(0)
        cosine = _cosine(attended[None], image)[0]
        length = attended.norm()
        shares = kept @ image / length if float(length) else torch.zeros_like(attention)
        put_back = _cosine(attended + terms, image)
        effects = torch.where(out, put_back - cosine, cosine - _cosine(_without_each(kept), image))
        scale = float(head.logit_scale.detach())
    return ClassExplanation(
        position, bank.rows[start:stop], attention, shares, effects, float(cosine), scale * float(cosine)
    )


def contrast(
    head: LGRHead,
    bank: AnchorBank,
    first: int,
    second: int,
    image_feature: Tensor,
    struck: Mapping[int, Sequence[int]] = _NOTHING,
) -> Contrast:
    """Compare two classes' text scores for one image.

    Args:
        head: The head.
        bank: The anchors.
        first: Position of the class argued for.
        second: Position of the class argued against.
        image_feature: Float [D], unnormalised.
        struck: Position of a class to its sentences that are struck out, as for `explain_class`.

    Raises:
        InputError: As `explain_class`, or the two classes are the same.
    """
    if first == second:
        raise InputError(f"a class cannot be compared with itself (position {first})")
    one = explain_class(head, bank, first, image_feature, struck.get(first, ()))
    other = explain_class(head, bank, second, image_feature, struck.get(second, ()))
    return Contrast(
        one,
        other,
        one.cosine - other.cosine,
        _supporting(one, struck.get(first, ())),
        _supporting(other, struck.get(second, ())),
    )


def _supporting(explanation: ClassExplanation, struck: Sequence[int]) -> Tensor:
    """Sentences that count and have a positive effect, strongest first."""
    order = explanation.order()
    counts = ~_mask(struck, len(order), order.device)
    return order[(explanation.effects[order] > 0) & counts[order]]


def _mask(struck: Sequence[int], sentences: int, device: torch.device) -> Tensor:
    """Which of a class's sentences are struck out, bool [M]."""
    outside = [m for m in struck if not 0 <= m < sentences]
    if outside:
        raise InputError(f"a sentence to strike out must lie in 0..{sentences - 1}, got {outside[0]}")
    mask = torch.zeros(sentences, dtype=torch.bool, device=device)
    mask[list(struck)] = True
    return mask


def _without_each(terms: Tensor) -> Tensor:
    """Sum of all rows but one, for each row, [M, D]: sums from both ends, so that nothing cancels."""
    zero = torch.zeros_like(terms[:1])
    before = torch.cat([zero, terms.cumsum(0)[:-1]])
    after = torch.cat([terms.flip(0).cumsum(0).flip(0)[1:], zero])
    return before + after


def _cosine(vectors: Tensor, unit: Tensor) -> Tensor:
    """Cosine of each row with a unit vector; zero for a row of zeros."""
    lengths = vectors.norm(dim=1)
    return torch.where(lengths > 0, vectors @ unit / lengths.clamp(min=1e-300), 0.0)
