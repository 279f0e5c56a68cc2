"""Tests of `vlltr_index.fusion` against the rule in plain Python."""

from __future__ import annotations

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.errors import InputError
from vlltr_index.fusion import FusionParams, Rule, disagreement, fuse, imprint_row, moderate

quick = settings(max_examples=40, deadline=None)


@quick
@given(
    row_class=st.lists(st.integers(-1, 4), max_size=7),
    trained=st.lists(st.booleans(), min_size=5, max_size=5),
    alpha=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    taus=st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.5, 1.0, 3.0])),
    margin=st.sampled_from([0.0, 1.5]),
    size=st.sampled_from([1.0, 30.0, 1e4]),
    rule=st.sampled_from(["ours", "paper", "logits"]),
    agreement=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_fusion_equals_its_twin(
    row_class: list[int],
    trained: list[bool],
    alpha: float,
    taus: tuple[float, float],
    margin: float,
    size: float,
    rule: Rule,
    agreement: float,
    seed: int,
) -> None:
    """Retired and merged rows, classes without rows, huge logits: the rule holds and rows sum to one."""
    g = torch.Generator().manual_seed(seed)
    visual = size * torch.randn(3, len(row_class), generator=g, dtype=torch.float64)
    text = size * torch.randn(3, 5, generator=g, dtype=torch.float64)
    params = FusionParams(alpha, taus[0], taus[1], margin, rule, agreement)
    rows = torch.tensor(row_class, dtype=torch.int64)
    scores = fuse(visual, text, rows, torch.tensor(trained), params)
    expected = [
        twins.fused(v, t, row_class, trained, alpha, taus, margin, rule, agreement)
        for v, t in zip(visual, text, strict=True)
    ]
    torch.testing.assert_close(scores.probabilities, torch.stack(expected), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scores.probabilities.sum(1), torch.ones(3, dtype=torch.float64))
    total = scores.visual_part + scores.text_part
    torch.testing.assert_close(scores.probabilities, total.softmax(1) if rule == "logits" else total)
    narrow = fuse(visual.float(), text.float(), rows, torch.tensor(trained), params)
    torch.testing.assert_close(narrow.probabilities.double(), scores.probabilities, rtol=0, atol=2e-3)


def test_without_rows_the_text_decides() -> None:
    """No visual row, or only retired ones: P is P^T and u is one."""
    text, trained = torch.randn(2, 3), torch.tensor([True, True, False])
    params = FusionParams(alpha=0.9, margin=2.0)
    expected = (text - 2.0 * trained).softmax(1)
    none = fuse(torch.zeros(2, 0), text, torch.zeros(0, dtype=torch.int64), trained, params)
    retired = fuse(torch.randn(2, 2), text, torch.tensor([-1, -1]), trained, params)
    for scores in (none, retired):
        torch.testing.assert_close(scores.probabilities, expected)
        assert bool((scores.u == 1).all())
        assert bool((scores.visual_part == 0).all())


def test_where_the_branches_disagree_a_new_class_gains() -> None:
    """What both see stays; where they name different trained classes, the class that came later gets more. Where none
    came later, agreement changes nothing."""
    text = torch.tensor([[6.0, 0.0, 4.0], [6.0, 0.0, 4.0]])
    visual = torch.tensor([[6.0, 0.0], [0.0, 6.0]])
    rows, trained = torch.tensor([0, 1]), torch.tensor([True, True, False])
    plain, wary = (fuse(visual, text, rows, trained, FusionParams(0.4, agreement=a)) for a in (0.0, 1.0))
    gain = (wary.probabilities - plain.probabilities)[:, 2]
    assert float(gain[0]) < 0.001
    assert float(gain[1]) > 0.7
    among = [s.probabilities[:, :2] / s.probabilities[:, :2].sum(1, keepdim=True) for s in (plain, wary)]
    torch.testing.assert_close(among[0], among[1])
    alone = [
        fuse(visual, text[:, :2], rows, trained[:2], FusionParams(0.4, agreement=a)).probabilities
        for a in (0.0, 1.0)
    ]
    torch.testing.assert_close(alone[0], alone[1])


def test_disagreement_does_not_see_what_came_later() -> None:
    """Adding classes, with rows or without, leaves it as it was."""
    g = torch.Generator().manual_seed(3)
    visual, text = torch.randn(4, 5, generator=g), torch.randn(4, 6, generator=g)
    trained = torch.tensor([True, True, True, False, False, False])
    whole = disagreement(visual, text, torch.tensor([0, 1, 2, 3, 4]), trained)
    before = disagreement(visual[:, :3], text[:, :3], torch.tensor([0, 1, 2]), trained[:3])
    torch.testing.assert_close(whole, before)


def test_a_new_class_is_not_starved() -> None:
    """A class without a row keeps its whole text probability, whatever alpha; adding the branches would halve it."""
    text = torch.tensor([[0.0, 0.0, 8.0]])
    params = FusionParams(alpha=0.9)
    scores = fuse(
        torch.tensor([[9.0, 0.0]]), text, torch.tensor([0, 1]), torch.tensor([True, True, False]), params
    )
    torch.testing.assert_close(scores.probabilities[0, 2], text.softmax(1)[0, 2])
    torch.testing.assert_close(scores.u, text.softmax(1)[:, 2])


def test_retired_rows_do_not_take_mass_and_merged_rows_add_up() -> None:
    """A retired row's huge logit changes nothing; two rows of one class add their probabilities."""
    text, trained = torch.zeros(1, 2), torch.tensor([True, True])
    visual = torch.tensor([[1.0, 0.5, 99.0, -0.3]])
    params = FusionParams(alpha=1.0)
    scores = fuse(visual, text, torch.tensor([0, 1, -1, 0]), trained, params)
    parts = visual[:, [0, 1, 3]].softmax(1)[0]
    torch.testing.assert_close(scores.probabilities[0], torch.stack([parts[0] + parts[2], parts[1]]))


def test_fusion_refuses_what_does_not_fit() -> None:
    """Parameters out of range, rows that point outside the classes, and a mask that is none."""
    with pytest.raises(InputError) as error:
        FusionParams(alpha=1.2)
    assert str(error.value) == "alpha must lie in 0..1, got 1.2\nvlltr calibrate"
    with pytest.raises(InputError, match=r"temperatures must be above 0, got 1\.0 and 0\.0"):
        FusionParams(tau_text=0.0)
    with pytest.raises(InputError, match="agreement must not be below 0, got -1"):
        FusionParams(agreement=-1)
    for values, why in (
        ({"agreement": 1e308}, r"agreement must lie within 1,000, got 1e\+308"),
        ({"imprint_strength": float("inf")}, "imprint_strength must lie within 1,000, got inf"),
        ({"imprint_lift": float("nan")}, "imprint_lift must lie within 1,000,000, got nan"),
        ({"margin": -1e7}, r"margin must lie within 1,000,000, got -10000000\.0"),
        ({"tau_text": float("inf")}, "tau_text must lie within 1,000,000, got inf"),
        ({"tau_visual": 1e-300}, "tau_visual must not be below 1e-06, got 1e-300"),
    ):
        with pytest.raises(InputError, match=why):
            FusionParams(**values)  # type: ignore[arg-type]  # a dict of floats
    with pytest.raises(InputError, match="must be 'ours', 'paper' or 'logits', got 'sum'"):
        FusionParams(rule="sum")  # type: ignore[arg-type]  # what a caller without types may pass
    visual, text, mask = torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(3, dtype=torch.bool)
    with pytest.raises(InputError) as error:
        fuse(visual, text, torch.tensor([0, 3]), mask, FusionParams())
    assert str(error.value) == "row_class must lie in -1..2, got [0, 3]"
    with pytest.raises(InputError, match="trained must be bool"):
        fuse(visual, text, torch.tensor([0, 1]), mask.long(), FusionParams())
    with pytest.raises(InputError, match=r"visual_logits must have shape \[1, D\]"):
        fuse(visual.expand(2, 2), text, torch.tensor([0, 1]), mask, FusionParams())


def test_the_papers_sum_is_the_release_s_expression() -> None:
    """With a row for every class: softmax * alpha + softmax * (1 - alpha), and the sum of logits for its bins."""
    visual, text = torch.randn(4, 5), 20 * torch.randn(4, 5)
    rows, trained = torch.arange(5), torch.ones(5, dtype=torch.bool)
    for alpha in (0.2, 0.5, 0.7):
        scores = fuse(visual, text, rows, trained, FusionParams(alpha, rule="paper"))
        expected = visual.softmax(1) * alpha + text.softmax(1) * (1 - alpha)
        torch.testing.assert_close(scores.probabilities, expected)
        torch.testing.assert_close(scores.by_image, visual.softmax(1))
        torch.testing.assert_close(scores.by_text, text.softmax(1))
    scores = fuse(visual, text, rows, trained, FusionParams(rule="logits"))
    torch.testing.assert_close(scores.probabilities, (visual + text).softmax(1))
    torch.testing.assert_close(scores.visual_part, visual)
    torch.testing.assert_close(scores.text_part, text)


def test_the_papers_sum_starves_a_new_class() -> None:
    """Which is why it is not the default: a class without a row gets 1 - alpha of its text probability."""
    text = torch.tensor([[0.0, 0.0, 8.0]])
    rows, trained = torch.tensor([0, 1]), torch.tensor([True, True, False])
    scores = fuse(torch.tensor([[9.0, 0.0]]), text, rows, trained, FusionParams(0.9, rule="paper"))
    torch.testing.assert_close(scores.probabilities[0, 2], 0.1 * text.softmax(1)[0, 2])
    assert scores.probabilities.argmax() == 0


def test_imprinted_row_is_centred_and_scaled() -> None:
    """The row has the trained rows' norm, and at the training mean it scores their average."""
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 4, generator=g), torch.randn(6, generator=g)
    mean, own = torch.randn(4, generator=g), torch.randn(4, generator=g)
    row, offset = imprint_row(own, mean, weight, bias)
    torch.testing.assert_close(row.norm(), weight.norm(dim=1).mean())
    torch.testing.assert_close(row / row.norm(), (own - mean) / (own - mean).norm())
    torch.testing.assert_close(row @ mean + offset, (weight @ mean + bias).mean())
    plain = imprint_row(own, mean, weight)[1]
    torch.testing.assert_close(plain, (weight @ mean).mean() - row @ mean)


def test_moderation_is_about_the_trained_level() -> None:
    """At the trained rows' level only the lift counts; full strength without lift changes nothing."""
    logits = torch.tensor([[-2.0, 1.0, 4.0]])
    as_is = FusionParams(imprint_strength=1.0, imprint_lift=0.0)
    assert torch.equal(moderate(logits, 1.0, as_is), logits)
    half = FusionParams(imprint_strength=0.5, imprint_lift=2.0)
    assert moderate(logits, 1.0, half).tolist() == [[1.5, 3.0, 4.5]]
    with pytest.raises(InputError, match=r"imprint_strength must be above 0, got 0\.0"):
        FusionParams(imprint_strength=0.0)


def test_imprinting_needs_something_to_imprint() -> None:
    """A class mean equal to the training mean, and a head without rows, are refused."""
    with pytest.raises(InputError, match="equals the training mean"):
        imprint_row(torch.ones(3), torch.ones(3), torch.randn(2, 3))
    with pytest.raises(InputError, match="no trained visual row"):
        imprint_row(torch.ones(3), torch.zeros(3), torch.randn(0, 3))
