"""Tests of `vlltr_index.fusion` against the rules in plain Python."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Literal

import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.fusion import (
    FusedScores,
    PartWeights,
    Rule,
    class_logits,
    fuse,
    fuse_protocol,
    image_scores,
    parts_of,
)

quick = settings(max_examples=40, deadline=None)
CLASSES = 5
NONE = -math.inf
WEIGHTS = PartWeights(0.4, 0.08, 0.3, 0.07, 0.6)

factors = st.sampled_from([0.0, 0.05, 1.0, 3.0])
weights_of = st.builds(PartWeights, factors, factors, factors, factors, st.sampled_from([-2.0, 0.0, 1.5]))
sizes = st.sampled_from([0.0, 1.0, 30.0, 1e4])
masks = st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)
seeds = st.integers(0, 2**31)


def drawn(seed: int, size: float, *shape: int) -> Tensor:
    """Float64 scores."""
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def odds(fused: FusedScores, row: int, position: int) -> float:
    """log P(class) / P(the best other class)."""
    own, others = fused.probabilities[row, position], fused.probabilities[row].clone()
    others[position] = 0.0
    return float(own.log() - others.max().log())


@quick
@given(trained=masks, weights=weights_of, size=sizes, seed=seeds)
def test_image_scores_equal_their_twin(
    trained: list[bool], weights: PartWeights, size: float, seed: int
) -> None:
    """All classes trained, none, some: the chain rule, whatever stands in the visual columns that do not count."""
    visual, likelihoods = drawn(seed, size, 2, 3, CLASSES)
    mask = torch.tensor(trained)
    expected = [
        twins.image_scores(v, g, trained, asdict(weights))
        for v, g in zip(visual.tolist(), likelihoods.tolist(), strict=True)
    ]
    spoilt = visual.masked_fill(~mask, NONE)
    found = image_scores(spoilt, likelihoods, mask, weights)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    if not weights.image:
        unknown = torch.full_like(visual, math.nan)
        torch.testing.assert_close(image_scores(unknown, likelihoods, mask, weights), found)
    narrow = image_scores(spoilt.float(), likelihoods.float(), mask, weights)
    torch.testing.assert_close(narrow.double(), found, rtol=1e-5, atol=1e-5 * (1.0 + size))


@quick
@given(factor=factors, size=sizes, seed=seeds)
def test_a_product_equals_its_twin(factor: float, size: float, seed: int) -> None:
    """Softmax of the image's score and the weighted text logit; rows sum to one, in float32 too."""
    image, text = drawn(seed, size, 2, 3, CLASSES)
    weights = PartWeights(1.0, 1.0, factor, 1.0)
    fused = fuse(image, text, weights)
    for row in range(3):
        both = [v + factor * t for v, t in zip(image[row].tolist(), text[row].tolist(), strict=True)]
        assert fused.probabilities[row].tolist() == pytest.approx(twins.softmax(both), abs=1e-12)
        assert fused.by_image[row].tolist() == pytest.approx(twins.softmax(image[row].tolist()), abs=1e-12)
        assert fused.by_text[row].tolist() == pytest.approx(twins.softmax(text[row].tolist()), abs=1e-12)
    torch.testing.assert_close((fused.visual_part + fused.text_part).softmax(1), fused.probabilities)
    narrow = fuse(image.float(), text.float(), weights).probabilities
    torch.testing.assert_close(narrow.sum(1), torch.ones(3))
    torch.testing.assert_close(narrow.double(), fused.probabilities, rtol=0, atol=1e-2)


@quick
@given(
    there=masks,
    rule=st.sampled_from(["paper", "logits"]),
    alpha=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    size=sizes,
    seed=seeds,
)
def test_the_protocols_equal_their_twin(
    there: list[bool], rule: Literal["paper", "logits"], alpha: float, size: float, seed: int
) -> None:
    """Every class with a visual row, none, some: probabilities sum to one, and the parts add up to them."""
    visual, text = drawn(seed, size, 2, 3, CLASSES)
    visual = visual.masked_fill(~torch.tensor(there), NONE)
    fused = fuse_protocol(visual, text, rule, alpha)
    for row, found in enumerate(fused.probabilities.tolist()):
        expected = twins.protocol(visual[row].tolist(), text[row].tolist(), rule, alpha)
        assert found == pytest.approx(expected, abs=1e-12)
        assert sum(found) == pytest.approx(1.0)
    total = fused.visual_part + fused.text_part
    torch.testing.assert_close(fused.probabilities, total.softmax(1) if rule == "logits" else total)
    for part in fused:
        assert bool(part.isfinite().all())


@quick
@given(owners=st.lists(st.integers(-1, CLASSES - 1), max_size=8), size=sizes, seed=seeds)
def test_logits_of_classes_equal_their_twin(owners: list[int], size: float, seed: int) -> None:
    """Merged rows add their probabilities, retired ones have none, a class without a row has minus infinity."""
    rows = drawn(seed, size, 3, len(owners))
    found = class_logits(rows, torch.tensor(owners, dtype=torch.int64), CLASSES)
    expected = [twins.class_logits(row, owners, CLASSES) for row in rows.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@quick
@given(weights=weights_of, size=sizes, seed=seeds)
def test_an_addition_leaves_the_trained_classes_among_themselves(
    weights: PartWeights, size: float, seed: int
) -> None:
    """Among the trained classes the probabilities are to each other as they were, whatever is added beside them."""
    visual, likelihoods, text = drawn(seed, size, 3, 4, CLASSES + 2)
    trained = torch.arange(CLASSES + 2) < CLASSES

    def among(classes: int) -> Tensor:
        mask = trained[:classes]
        image = image_scores(visual[:, :classes], likelihoods[:, :classes], mask, weights)
        fused = fuse(image, text[:, :classes], weights)
        return (fused.visual_part + fused.text_part)[:, :CLASSES].log_softmax(1)

    torch.testing.assert_close(among(CLASSES + 2), among(CLASSES), rtol=1e-9, atol=1e-9)


def test_what_the_trained_classes_have_together_the_likelihoods_say() -> None:
    """Without text, the trained classes' share is the generative model's, however the classifier parts it."""
    likelihoods = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    trained = torch.tensor([True, True, False, False])
    expected = likelihoods.softmax(1)[:, :2].sum()
    for visual in ([0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 50.0, 50.0]):
        logits = torch.tensor([visual], dtype=torch.float64)
        scores = image_scores(logits, likelihoods, trained, PartWeights(1.0, 0.5, 0.0, 1.0))
        torch.testing.assert_close(scores.softmax(1)[:, :2].sum(), expected)
    known = scores.softmax(1)[0, :2]
    assert float(known[0]) > 0.99 * float(known.sum())


@quick
@given(rule=st.sampled_from(["ours", "logits"]), weights=weights_of, size=sizes, seed=seeds)
def test_parts_add_up_to_the_log_odds(rule: Rule, weights: PartWeights, size: float, seed: int) -> None:
    """In a product both parts of a class add up to its log-odds against the best other class, also where those are so
    long that the others' probabilities are zero."""
    visual, likelihoods, text = drawn(seed, size, 3, 2, CLASSES)
    trained = torch.tensor([True, True, True, False, False])
    if rule == "ours":
        fused = fuse(image_scores(visual, likelihoods, trained, weights), text, weights)
    else:
        fused = fuse_protocol(visual.masked_fill(~trained, NONE), text, rule, 0.5)
    total = fused.visual_part + fused.text_part
    for row in range(2):
        for position in range(CLASSES):
            parts = parts_of(fused, row, position, rule)
            others = torch.cat([total[row, :position], total[row, position + 1 :]])
            assert sum(parts) == pytest.approx(float(total[row, position] - others.max()), abs=1e-9)
            expected = odds(fused, row, position)
            if math.isfinite(expected):
                assert sum(parts) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_parts_of_the_papers_sum_add_up_to_the_probability() -> None:
    """There a part is a share of the probability; in a product a class alone has no other to be ahead of."""
    fused = fuse_protocol(drawn(0, 2.0, 2, 4), drawn(1, 2.0, 2, 4), "paper", 0.3)
    for position in range(4):
        assert sum(parts_of(fused, 1, position, "paper")) == pytest.approx(
            float(fused.probabilities[1, position])
        )
    alone = fuse(torch.tensor([[-3.0]]), torch.tensor([[2.0]]), PartWeights(1.0, 1.0, 0.5, 1.0))
    assert alone.probabilities.tolist() == [[1.0]]
    assert parts_of(alone, 0, 0, "ours") == (0.0, 0.0)


def test_the_rival_is_found_where_all_others_have_a_probability_of_zero() -> None:
    """A class that is quite certain is held against the next best, not against any other."""
    image = torch.tensor([[0.0, -900.0, -300.0, -600.0]])
    fused = fuse(image, torch.zeros(1, 4), PartWeights(1.0, 1.0, 1.0, 1.0))
    assert fused.probabilities[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert parts_of(fused, 0, 0, "ours") == (300.0, 0.0)


def test_retired_rows_do_not_take_mass_and_merged_rows_add_up() -> None:
    """A retired row's huge logit changes nothing; two rows of one class add their probabilities."""
    visual = torch.tensor([[1.0, 0.5, 99.0, -0.3]])
    logits = class_logits(visual, torch.tensor([0, 1, -1, 0]), 2)
    fused = fuse_protocol(logits, torch.zeros(1, 2), "paper", 1.0)
    parts = visual[:, [0, 1, 3]].softmax(1)[0]
    torch.testing.assert_close(fused.probabilities[0], torch.stack([parts[0] + parts[2], parts[1]]))


def test_the_papers_sum_is_the_release_s_expression() -> None:
    """With a row for every class: softmax * alpha + softmax * (1 - alpha), and the sum of logits for its bins."""
    visual, text = drawn(2, 1.0, 4, 5), drawn(3, 20.0, 4, 5)
    for alpha in (0.2, 0.5, 0.7):
        fused = fuse_protocol(visual, text, "paper", alpha)
        expected = visual.softmax(1) * alpha + text.softmax(1) * (1 - alpha)
        torch.testing.assert_close(fused.probabilities, expected)
        torch.testing.assert_close(fused.by_image, visual.softmax(1))
        torch.testing.assert_close(fused.by_text, text.softmax(1))
    fused = fuse_protocol(visual, text, "logits", 0.5)
    torch.testing.assert_close(fused.probabilities, (visual + text).softmax(1))
    torch.testing.assert_close(fused.visual_part, visual)
    torch.testing.assert_close(fused.text_part, text)


def test_the_papers_sum_starves_a_new_class_and_ours_does_not() -> None:
    """Which is why it is not the default: a class without a row gets 1 - alpha of its text probability."""
    text = torch.tensor([[0.0, 0.0, 8.0]])
    fused = fuse_protocol(torch.tensor([[9.0, 0.0, NONE]]), text, "paper", 0.9)
    torch.testing.assert_close(fused.probabilities[0, 2], 0.1 * text.softmax(1)[0, 2])
    assert fused.probabilities.argmax() == 0
    trained, likelihoods = torch.tensor([True, True, False]), torch.zeros(1, 3)
    weights = PartWeights(1.0, 1.0, 1.0, 1.0)
    scores = image_scores(torch.tensor([[9.0, 0.0, 0.0]]), likelihoods, trained, weights)
    assert fuse(scores, text, weights).probabilities.argmax() == 2


def test_weights_out_of_range_are_refused() -> None:
    """Each is named with its bounds, and the command that fits it again."""
    good = asdict(WEIGHTS)
    for name, value in (
        ("image", -0.1),
        ("generative", math.nan),
        ("text", math.inf),
        ("gate", 2e6),
    ):
        with pytest.raises(InputError) as error:
            PartWeights(**{**good, name: value})
        assert error.value.message == f"the weight {name!r} must lie in 0..1,000,000, got {value}"
        assert error.value.hint == "vlltr train lgr"
    for value in (math.nan, -2e6):
        with pytest.raises(InputError, match="the offset must lie within 1,000,000, got "):
            PartWeights(**{**good, "offset": value})
    assert PartWeights(0.0, 0.0, 0.0, 0.0, -3.0).offset == -3.0


def test_fusion_refuses_what_does_not_fit() -> None:
    """Scores of other images or classes, and rows that point outside the classes."""
    three, two = torch.zeros(1, 3), torch.zeros(1, 2)
    with pytest.raises(InputError, match=r"image must have shape \[1, 3\], got \[1, 2\]"):
        fuse(two, three, WEIGHTS)
    with pytest.raises(InputError, match=r"text_logits must have shape \[N, D\], got \[3\]"):
        fuse(three, three[0], WEIGHTS)
    with pytest.raises(InputError, match=r"visual_logits must have shape \[2, 3\], got \[1, 3\]"):
        fuse_protocol(three, three.expand(2, 3), "paper", 0.5)
    for owners in ([0, 3], [0, -2]):
        with pytest.raises(InputError, match="row_class must lie in 0"):
            class_logits(two, torch.tensor(owners), 3)
    with pytest.raises(InputError, match=r"row_class must have shape \[2\], got \[3\]"):
        class_logits(two, torch.tensor([0, 1, 2]), 3)
