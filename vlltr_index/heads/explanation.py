"""Explanation of a class's text score: the share of each of its sentences.

With G = sum_m a_m E_m, the share of sentence m is a_m E_m . I / (|I| |G|): shares add up to the cosine, and
may be negative. Its effect is cos(I, G) - cos(I, G - a_m E_m), the loss of cosine if the sentence is struck out. Both
are points of similarity, not of probability. Sentences may be struck out, that is, left out of G: the attention of the
others keeps its proportions, so G has the direction that it would have if the class had never had these sentences.
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
    """Explanation of one class's text score by its M sentences, in the bank's order of the class's anchors.

    Attributes:
        position: The class's position in the bank.
        attention: Float64 [M], sums to one, struck sentences included.
        shares: Float64 [M], add up to `cosine`; zero for struck sentences.
        effects: Float64 [M], the cosine with the sentence less the cosine without it, the others unchanged; also for a
            struck sentence, where it says what putting the sentence back would add.
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
        """Shares in per cent of the sum of the positive ones, float64 [M]; zero where none is positive."""
        positive = self.shares.clamp(min=0).sum()
        return 100 * self.shares / positive if float(positive) else torch.zeros_like(self.shares)


def explain_class(
    head: LGRHead, bank: AnchorBank, position: int, image_feature: Tensor, struck: Sequence[int] = ()
) -> ClassExplanation:
    """Explain one class's text score for one image.

    Args:
        head: The head.
        bank: The anchors, of the head's width.
        position: The class's position in the bank.
        image_feature: Float [D], unnormalised as the encoder gives it.
        struck: Sentences of the class that are left out of G, by their position among its anchors, 0 to M - 1. If all
            are struck the cosine is zero.

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
    return ClassExplanation(
        position=position,
        attention=attention,
        shares=shares,
        effects=effects,
        cosine=float(cosine),
        logit=scale * float(cosine),
    )


def _without_each(terms: Tensor) -> Tensor:
    """Sum all rows but one, for each row: [M, D]. Sums from both ends are added, so that no digits cancel."""
    zero = torch.zeros_like(terms[:1])
    before = torch.cat([zero, terms.cumsum(0)[:-1]])
    after = torch.cat([terms.flip(0).cumsum(0).flip(0)[1:], zero])
    return before + after


def _cosine(vectors: Tensor, unit: Tensor) -> Tensor:
    """Compute the cosine of each row with a unit vector; zero for a row of zeros."""
    lengths = vectors.norm(dim=1)
    return torch.where(lengths > 0, vectors @ unit / lengths.clamp(min=1e-300), 0.0)
