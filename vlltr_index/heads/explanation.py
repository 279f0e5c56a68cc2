"""Explanation of a class's text score: the share of each of its sentences, exactly.

The text score is what a class's sentences add to its log-score: by the text branch, and by the generative model, whose
prior of the class mean they shift. In the text branch, with G = sum_m a_m E_m, the share of sentence m in the logit is
scale * a_m E_m . I / (|I| |G|). In the generative model the log-likelihood g is quadratic in the prior mean, which is
the mean of the terms T u_m of the class's sentences; so the gradient of g half way from the blank prior to that mean,
times the term of m, is its share of the difference (the share of Aumann and Shapley). What the narrower variance of a
class with text adds is due to all alike. Shares may be negative. The effect of a sentence is the loss of text score if
it is struck out and the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.plda import PLDA
from vlltr_index.tensors import full_precision

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.lgr import LGRHead


@dataclass(frozen=True, eq=False, slots=True)
class ClassExplanation:
    """Explanation of one class's text score by its M sentences, in the bank's order of the class's anchors.

    Attributes:
        position: The class's position in the bank.
        attention: Float64 [M], sums to one.
        shares: Float64 [M], add up to `score`.
        effects: Float64 [M], the score less that without the sentence, the others unchanged.
        cosine: cos(I, G).
        score: The text score, in points of the class's log-score.
    """

    position: int
    attention: Tensor
    shares: Tensor
    effects: Tensor
    cosine: float
    score: float

    @property
    def percents(self) -> Tensor:
        """Shares in per cent of the sum of their amounts, float64 [M], -100 to 100; zero where all are."""
        amounts = self.shares.abs().sum()
        return 100 * self.shares / amounts if float(amounts) else torch.zeros_like(self.shares)

    def weighed(self, text: float, generative: float, by_prior: tuple[Tensor, Tensor]) -> ClassExplanation:
        """Return the explanation by both, where this is that of the text branch alone.

        Args:
            text: Weight of the text logit.
            generative: Weight of the log-likelihood.
            by_prior: Shares and effects of `explain_prior`, float64 [M] each.
        """
        shares = text * self.shares + generative * by_prior[0]
        effects = text * self.effects + generative * by_prior[1]
        return replace(self, shares=shares, effects=effects, score=float(shares.sum()))


def explain_class(head: LGRHead, bank: AnchorBank, position: int, image_feature: Tensor) -> ClassExplanation:
    """Explain one class's text logit, which is its text score in the text branch alone, for one image.

    Args:
        head: The head.
        bank: The anchors, of the head's width.
        position: The class's position in the bank.
        image_feature: Float [D], unnormalised as the encoder gives it.

    Returns:
        The explanation, computed in float64 on the features' device.
    """
    start = bank.bounds[position]
    stop = bank.bounds[position + 1]
    with torch.no_grad(), full_precision(bank.vectors.device):
        query = head.query(image_feature[None])[0].double()
        values = bank.vectors[start:stop].double()
        known = head.beta * bank.losses[start:stop].double()
        attention = (values @ query / bank.sigma[start:stop].double() - known).softmax(0)
        if head.normalise_values:
            values = values / values.norm(dim=1, keepdim=True).clamp(min=1e-12)
        image = image_feature.double() / image_feature.double().norm().clamp(min=1e-300)
        terms = attention[:, None] * values
        attended = terms.sum(0)
        cosine = _cosine(attended[None], image)[0]
        length = attended.norm()
        shares = terms @ image / length if float(length) else torch.zeros_like(attention)
        effects = cosine - _cosine(_without_each(terms), image)
        scale = float(head.logit_scale.detach())
    return ClassExplanation(
        position=position,
        attention=attention,
        shares=scale * shares,
        effects=scale * effects,
        cosine=float(cosine),
        score=scale * float(cosine),
    )


def mean_explanation(explanations: Sequence[ClassExplanation]) -> ClassExplanation:
    """Return the mean of explanations of one class for several images, which explains the mean text score."""
    count = len(explanations)
    return replace(
        explanations[0],
        attention=torch.stack([one.attention for one in explanations]).mean(0),
        shares=torch.stack([one.shares for one in explanations]).mean(0),
        effects=torch.stack([one.effects for one in explanations]).mean(0),
        cosine=sum(one.cosine for one in explanations) / count,
        score=sum(one.score for one in explanations) / count,
    )


def explain_prior(
    plda: PLDA, position: int, predicted: Tensor, image_feature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each sentence's share in what text adds to a class's log-likelihood for one image, and its effect.

    Args:
        plda: The generative model.
        position: The class's position in it.
        predicted: Float [M, Z], `PLDA.map_sentences` of its anchors.
        image_feature: Float [D], unnormalised.

    Returns:
        Shares and effects, float64 [M] each. Shares are zero where the class has the blank prior, see `PLDA.prior`.
    """
    shared = plda.shared
    z = shared.coordinates(F.normalize(image_feature.double(), dim=0))
    each = predicted.double()
    count = len(each)
    mean = each.mean(0)
    rest = mean + (mean - each) / max(count - 1, 1)
    has_text = torch.tensor([True, False] + count * [count > 1])
    variants = torch.cat([torch.stack([mean, torch.zeros_like(mean)]), rest])
    likelihoods = plda.likelihoods_if(position, variants, has_text, z)
    gained = likelihoods[0] - likelihoods[1]
    effects = likelihoods[0] - likelihoods[2:]
    own = plda.select(slice(position, position + 1))
    prior, spread = (values[0] for values in own.prior)
    if not bool(prior.any()) and torch.equal(spread, shared.blank):
        return torch.zeros_like(effects), effects
    centre, variance = (values[0] for values in own.posterior)
    kept = (variance - 1.0) / spread  # of a shift of the prior mean, by the posterior one
    shares = each @ (kept * (z - centre + kept * prior / 2.0) / variance) / count
    return shares + (gained - shares.sum()) / count, effects


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
