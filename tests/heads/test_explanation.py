"""Tests of `vlltr_index.heads.explanation`: shares add up, effects are what striking out does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.explanation import explain_class
from vlltr_index.heads.lgr import LGRHead

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
def test_striking_out_is_as_if_the_class_never_had_the_sentences(
    lengths: list[int], normalise: bool, seed: int, data: st.DataObject
) -> None:
    """Cosine and logit are those of a bank without the sentences; shares add up, effects put one back or take one."""
    head, bank, image = _setup(seed, lengths, normalise)
    position = data.draw(st.integers(0, len(lengths) - 1))
    length, start = lengths[position], bank.bounds[position]
    struck = data.draw(st.sets(st.integers(0, length - 1)))

    def cosine_without(out: set[int]) -> float:
        kept = [start + m for m in range(length) if m not in out]
        if not kept:
            return 0.0
        owner = torch.zeros(len(kept), dtype=torch.int64)
        left = AnchorBank.build(bank.vectors[kept], owner, [0], bank.losses[kept])
        return (head.text_logits(image[None], left) / head.logit_scale).item()

    found = explain_class(head, bank, position, image, sorted(struck))
    assert found.cosine == pytest.approx(cosine_without(struck), abs=1e-5)
    assert found.logit == pytest.approx(30.0 * found.cosine, rel=1e-5)
    assert float(found.shares.sum()) == pytest.approx(found.cosine, abs=1e-6)
    positive = sum(max(share, 0.0) for share in found.shares.tolist())
    expected = [100 * share / positive if positive else 0.0 for share in found.shares.tolist()]
    assert found.percents.tolist() == pytest.approx(expected, rel=1e-9)
    for m in range(length):
        effect = cosine_without(struck - {m}) - cosine_without(struck | {m})
        assert float(found.effects[m]) == pytest.approx(effect, abs=1e-5)
        if m in struck:
            assert float(found.shares[m]) == 0.0
