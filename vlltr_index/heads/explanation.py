"""Which sentences stand behind a class's text score, and how much of it each.

With G = sum_m a_m E_m, the share of sentence m is a_m E_m . I / (|I| |G|): shares add up to the cosine, and
may be negative. Its effect is cos(I, G) - cos(I, G - a_m E_m), what striking the sentence out takes from
the cosine. Both are points of similarity, not of probability. Sentences may be struck out: the attention of the
others stays as it is, and what is left of G points where it would if the class had never had them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.tensors import full_precision

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.lgr import LGRHead


@dataclass(frozen=True, eq=False, slots=True)
class ClassExplanation:
    """One class's text score, sentence by sentence, in the bank's order of the class's anchors.

    Attributes:
        position: The class's position in the bank.
        attention: Float64 [M], sums to one, those struck out included.
        shares: Float64 [M], add up to `cosine`; zero for those struck out.
        effects: Float64 [M], the cosine with the sentence less the cosine without it, the others as they are: what
            striking it out takes away, and for one struck out already what putting it back would give.
        cosine: cos(I, G).
        logit: scale * cosine, the text logit.
    """

    position: int
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
    """
    start = bank.bounds[position]
    stop = bank.bounds[position + 1]
    out = torch.zeros(stop - start, dtype=torch.bool, device=bank.vectors.device)
    out[list(struck)] = True
    with torch.no_grad(), full_precision(bank.vectors.device):
        query = head.query(image_feature[None])[0].double()
        values = bank.vectors[start:stop].double()
        known = head.beta * bank.losses[start:stop].double()
        attention = (values @ query / bank.sigma[start:stop].double() - known).softmax(0)
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
    return ClassExplanation(position, attention, shares, effects, float(cosine), scale * float(cosine))


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
