"""Tests of `vlltr_index.heads.explanation`: shares add up, effects are what removing a sentence takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.explanation import explain_class, explain_prior
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.plda_fit import predict

quick = settings(max_examples=25, deadline=None)


def _setup(
    seed: int, lengths: list[int], normalise: bool = False
) -> tuple[LGRHead, AnchorBank, torch.Tensor]:
    torch.manual_seed(seed)
    head = LGRHead(8, 2, logit_scale=30.0, normalise_values=normalise)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    bank = AnchorBank.build(torch.randn(len(owner), 8), owner, range(len(lengths)), torch.randn(len(owner)))
    return head, bank, torch.randn(8)


def test_anchors_that_cancel_have_no_cosine_and_no_shares() -> None:
    """Opposite anchors under equal attention: cosine and shares are zero, effects are finite."""
    head, _, image = _setup(0, [1])
    with torch.no_grad():
        head.key_norm.weight.zero_()
    v = torch.randn(1, 8)
    bank = AnchorBank.build(torch.cat([v, -v]), torch.tensor([0, 0]), [0])
    found = explain_class(head, bank, 0, image)
    assert found.cosine == 0.0
    assert found.shares.tolist() == found.percents.tolist() == [0.0, 0.0]
    assert bool(found.effects.isfinite().all())


@quick
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    normalise=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_shares_of_the_text_branch_add_up_and_effects_are_what_removing_takes(
    lengths: list[int], normalise: bool, seed: int, data: st.DataObject
) -> None:
    """The logit is the head's; the effect of a sentence is its difference to that of a bank without the sentence."""
    head, bank, image = _setup(seed, lengths, normalise)
    position = data.draw(st.integers(0, len(lengths) - 1))
    length, start = lengths[position], bank.bounds[position]

    def logit_without(out: int | None) -> float:
        kept = [start + m for m in range(length) if m != out]
        if not kept:
            return 0.0
        owner = torch.zeros(len(kept), dtype=torch.int64)
        left = AnchorBank.build(bank.vectors[kept], owner, [0], bank.losses[kept])
        return head.text_logits(image[None], left).item()

    found = explain_class(head, bank, position, image)
    assert found.score == pytest.approx(logit_without(None), abs=3e-4)
    assert found.score == pytest.approx(30.0 * found.cosine, rel=1e-5)
    assert float(found.shares.sum()) == pytest.approx(found.score, abs=1e-5)
    amounts = sum(abs(share) for share in found.shares.tolist())
    expected = [100 * share / amounts if amounts else 0.0 for share in found.shares.tolist()]
    assert found.percents.tolist() == pytest.approx(expected, rel=1e-9)
    for m in range(length):
        assert float(found.effects[m]) == pytest.approx(found.score - logit_without(m), abs=3e-4)


@quick
@given(
    count=st.integers(1, 4),
    units=st.integers(0, 3),
    predicts=st.booleans(),
    trust=st.sampled_from([1.0, 0.75, 0.25]),
    seed=st.integers(0, 2**31),
)
def test_shares_of_the_prior_are_shapley_values(
    count: int, units: int, predicts: bool, trust: float, seed: int
) -> None:
    """By brute force: what a sentence adds to the log-likelihood, in the mean over all orders of the sentences.

    A coalition shifts the prior mean by the terms of its sentences, and one that is not empty has the variance of a
    class with text. Effects are those of classes without the sentence. A class that its text does not suit has none.
    """
    torch.manual_seed(seed)
    dim = 5
    spread = torch.rand(dim).double() + 0.1
    shared = SharedGaussian(
        centre=0.1 * torch.randn(dim).double(),
        basis=torch.randn(dim, dim).double(),
        spread=spread,
        text_centre=0.1 * torch.randn(dim).double(),
        text_map=torch.randn(dim, dim).double() * predicts,
        text_r2=0.8 * predicts,
    )
    sentences = torch.randn(count, dim)
    image = torch.randn(dim)
    each = F.normalize(sentences.double(), dim=1)
    sums = units * torch.randn(1, dim).double()
    trusts = torch.tensor([trust], dtype=torch.float64)
    told_by = predict(shared, each)
    plda = PLDA(shared, torch.tensor([units]), sums, told_by.mean(0, keepdim=True), trusts)

    def likelihood(model: PLDA) -> float:
        return float(model.log_likelihoods(F.normalize(image.double(), dim=0)[None]))

    shares, effects = explain_prior(plda, 0, plda.map_sentences(0, told_by), image)
    whole = likelihood(plda)
    assert float(shares.sum()) == pytest.approx(whole - likelihood(plda.without_text), abs=1e-8)
    for m in range(count):
        rest = torch.cat([told_by[:m], told_by[m + 1 :]])
        mean = rest.mean(0, keepdim=True) if count > 1 else torch.zeros_like(told_by)
        assert float(effects[m]) == pytest.approx(whole - likelihood(replace(plda, predicted=mean)), abs=1e-8)
    if plda.without_text is plda:
        assert not bool(shares.any())
        return
    terms = trust * (each - shared.text_centre) @ shared.text_map / count
    told = trust * shared.spread + (1.0 - trust) * shared.blank
    z = (F.normalize(image.double(), dim=0) - shared.centre) @ shared.basis
    seen = (sums[0] / max(units, 1) - shared.centre) @ shared.basis

    def value(of: tuple[int, ...]) -> float:
        prior = terms[list(of)].sum(0) if of else torch.zeros(dim).double()
        width = told if of else shared.blank
        gain = units * width / (units * width + 1.0)
        mean = prior + gain * (seen - prior)
        variance = 1.0 + width * (1.0 - gain)
        return float(-0.5 * ((z - mean).square() / variance + variance.log()).sum())

    expected = [0.0] * count
    orders = list(permutations(range(count)))
    for order in orders:
        for place, m in enumerate(order):
            expected[m] += (value(order[: place + 1]) - value(order[:place])) / len(orders)
    assert shares.tolist() == pytest.approx(expected, abs=1e-8)
