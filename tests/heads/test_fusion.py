"""Tests of `vlltr_index.heads.fusion` against the rules in plain Python."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import twins
from vlltr_index.heads.fusion import (
    FusedScores,
    PartWeights,
    Rule,
    VisualScores,
    class_logits,
    fuse,
    fuse_protocol,
    log_frequencies,
    parts_of,
    resting,
    visual_scores,
    with_prior,
)

quick = settings(max_examples=20, deadline=None)
DENORMAL = 700.0  # log-odds from which on probabilities lose digits
CLASSES = 5
NONE = -math.inf
EVEN = PartWeights(1.0, 1.0, 1.0)

factors = st.sampled_from([0.0, 0.05, 1.0, 3.0])
weights_of = st.builds(PartWeights, factors, factors, factors, st.sampled_from([0.5, 1.0, 2.0]))
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


def side(
    linear: Tensor,
    likelihoods: Tensor,
    base: Tensor,
    weights: PartWeights,
    offsets: Tensor | None = None,
    wordless: Tensor | None = None,
) -> VisualScores:
    """The visual scores by all parts [B, C] without weights; `base` is a mask, only added classes have an offset."""
    offset = torch.zeros(len(base)) if offsets is None else torch.where(base, 0.0, offsets)
    columns = base.nonzero()[:, 0]
    return visual_scores(
        weights.generative * likelihoods,
        weights.generative * (likelihoods if wordless is None else wordless),
        weights.image * linear[:, columns] if weights.image else None,
        columns,
        offset,
        weights.combined,
    )


@quick
@given(base=masks, weights=weights_of, size=sizes, seed=seeds)
def test_ours_equals_its_twin(base: list[bool], weights: PartWeights, size: float, seed: int) -> None:
    """All classes are base classes, none, some; with a linear classifier and without; in float32 too.

    The contribution of images is the twin's score where no class has a text, with the offset, and that of texts is the
    rest.
    """
    linear, likelihoods, text, wordless = drawn(seed, size, 4, 3, CLASSES)
    offsets = -drawn(seed + 1, 2.0, CLASSES).abs()
    known = torch.tensor(base)
    told = text if weights.text else torch.full_like(text, math.nan)  # logits without a weight do not count
    seen = side(linear, likelihoods, known, weights, offsets, wordless)
    fused = fuse(seen, told, weights)
    near = 1e-12 * (1.0 + size)
    delta = torch.where(known, 0.0, offsets).tolist()
    for row in range(3):
        parts = (linear[row].tolist(), text[row].tolist())
        mute = asdict(replace(weights, text=0.0))
        z = twins.ours(parts[0], likelihoods[row].tolist(), parts[1], base, delta, asdict(weights))
        images = twins.ours(parts[0], wordless[row].tolist(), parts[1], base, delta, mute)
        alone = twins.ours(parts[0], likelihoods[row].tolist(), parts[1], base, delta, mute)
        assert seen.scores[row].tolist() == pytest.approx(alone, rel=1e-9, abs=near)
        assert fused.visual_part[row].tolist() == pytest.approx(images, rel=1e-9, abs=near)
        texts = [whole - image for whole, image in zip(z, images, strict=True)]
        assert fused.text_part[row].tolist() == pytest.approx(texts, rel=1e-9, abs=10 * near)
        assert fused.log_scores[row].tolist() == pytest.approx(z, rel=1e-9, abs=10 * near)
        assert fused.by_image[row].tolist() == pytest.approx(twins.softmax(images), abs=1e-9)
        assert fused.probabilities[row].tolist() == pytest.approx(twins.softmax(z), abs=1e-9)
        if weights.text:
            assert fused.by_text[row].tolist() == pytest.approx(twins.softmax(parts[1]), abs=1e-12)
    if not weights.text:
        return
    narrow = fuse(
        side(linear.float(), likelihoods.float(), known, weights, offsets), text.float(), weights
    ).probabilities
    wide = fuse(side(linear, likelihoods, known, weights, offsets), text, weights).probabilities
    torch.testing.assert_close(narrow.sum(1), torch.ones(3))
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-2)


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
    for part in fused.tensors:
        assert bool(part.isfinite().all())
    assert fused.prior_part is None


@quick
@given(owners=st.lists(st.integers(-1, CLASSES - 1), max_size=8), size=sizes, seed=seeds)
def test_logits_of_classes_equal_their_twin(owners: list[int], size: float, seed: int) -> None:
    """Merged rows add their probabilities, retired ones have none, a class without a row has minus infinity."""
    rows = drawn(seed, size, 3, len(owners))
    found = class_logits(rows, torch.tensor(owners, dtype=torch.int64), CLASSES)
    expected = [twins.class_logits(row, owners, CLASSES) for row in rows.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@quick
@given(weights=weights_of, size=st.sampled_from([0.0, 1.0, 30.0]), prior=st.booleans(), seed=seeds)
def test_an_added_class_preserves_the_ratios_between_base_classes(
    weights: PartWeights, size: float, prior: bool, seed: int
) -> None:
    """Whatever is added and whatever the prior: among base classes the probabilities stay as they were."""
    linear, likelihoods, text = drawn(seed, size, 3, 4, CLASSES + 2)
    base = torch.arange(CLASSES + 2) < CLASSES
    offsets = -drawn(seed + 1, 2.0, CLASSES + 2).abs()
    log_prior = drawn(seed + 2, 2.0, CLASSES + 2)

    def among(classes: int) -> Tensor:
        seen = side(linear[:, :classes], likelihoods[:, :classes], base[:classes], weights, offsets[:classes])
        fused = fuse(seen, text[:, :classes], weights)
        fused = with_prior(fused, log_prior[:classes]) if prior else fused
        return fused.log_scores[:, :CLASSES].log_softmax(1)

    torch.testing.assert_close(among(CLASSES + 2), among(CLASSES), rtol=1e-9, atol=1e-9)


def test_the_linear_classifier_says_nothing_of_base_classes_as_a_whole() -> None:
    """Their share against added classes is that of the PLDA and the text, whatever it says."""
    likelihoods, text = drawn(4, 1.0, 2, 1, 4)
    base = torch.tensor([True, True, False, False])
    weights = PartWeights(image=1.0, generative=0.5, text=0.7)
    offsets = torch.tensor([0.0, 0.0, -0.3, -1.0]).double()
    expected = (0.5 * likelihoods + 0.7 * text + offsets).softmax(1)[:, :2].sum()
    for scores in ([0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 50.0, 50.0]):
        linear = torch.tensor([scores], dtype=torch.float64)
        chances = fuse(side(linear, likelihoods, base, weights, offsets), text, weights).probabilities
        torch.testing.assert_close(chances[:, :2].sum(), expected)
    assert float(chances[0, 0]) > 0.99 * float(expected)


def test_without_a_linear_classifier_the_score_is_the_sum() -> None:
    """beta g + gamma t + offset of each class, so that no class matters to the score of another."""
    likelihoods, text = drawn(1, 3.0, 2, 4, CLASSES)
    offsets = -drawn(2, 1.0, CLASSES).abs()
    weights = PartWeights(image=0.0, generative=0.3, text=2.0)
    for base in (torch.arange(CLASSES) < 3, torch.zeros(CLASSES, dtype=torch.bool)):
        fused = fuse(side(likelihoods, likelihoods, base, weights, offsets), text, weights)
        expected = 0.3 * likelihoods + 2.0 * text + torch.where(base, 0.0, offsets)
        torch.testing.assert_close(fused.log_scores, expected)


@quick
@given(weights=weights_of, size=st.sampled_from([1.0, 30.0]), prior=st.booleans(), seed=seeds)
def test_an_answer_among_some_classes_keeps_the_level_of_all_base_classes(
    weights: PartWeights, size: float, prior: bool, seed: int
) -> None:
    """`--only`: the classes that are left are to each other as among all, also where only one base class is left."""
    linear, likelihoods, text = drawn(seed, size, 3, 2, CLASSES)
    base = torch.arange(CLASSES) < 3
    fused = fuse(side(linear, likelihoods, base, weights, -drawn(seed, 1.0, CLASSES).abs()), text, weights)
    fused = with_prior(fused, drawn(seed + 1, 2.0, CLASSES)) if prior else fused
    columns = torch.tensor([1, 4, 3])
    some = fused.among(columns, "ours")
    torch.testing.assert_close(some.probabilities, fused.log_scores[:, columns].softmax(1))
    for part, whole in zip(some.tensors[1:], fused.tensors[1:], strict=True):
        assert torch.equal(part, whole[:, columns])


def test_an_answer_depends_on_the_level_of_base_classes_too() -> None:
    """A class that the classifier rules out can make up the level that an added class is compared with."""
    likelihoods = torch.zeros(1, 3)
    base = torch.tensor([True, True, False])
    text = torch.tensor([[0.0, 10.0, 9.5]])
    seen = side(torch.tensor([[30.0, 0.0, 0.0]]), likelihoods, base, EVEN)
    chances = fuse(seen, text, EVEN).probabilities
    rests = resting(seen, text, chances, EVEN)
    later = float(chances[0, 2])
    assert chances[0, 1] < 1e-4
    assert float(rests[0, 1]) == pytest.approx(4 * later * (1 - later), rel=1e-3)
    torch.testing.assert_close(rests[0, [0, 2]], chances[0, [0, 2]])
    plain = side(likelihoods, likelihoods, base, PartWeights(0.0, 1.0, 1.0))
    assert torch.equal(resting(plain, text, chances, EVEN), chances)


@quick
@given(
    rule=st.sampled_from(["ours", "logits"]), weights=weights_of, size=sizes, prior=st.booleans(), seed=seeds
)
def test_parts_add_up_to_the_log_odds(
    rule: Rule, weights: PartWeights, size: float, prior: bool, seed: int
) -> None:
    """The contributions to a class add up to its log-odds against the best other class, also where those are so large
    that the others' probabilities are zero."""
    linear, likelihoods, text, wordless = drawn(seed, size, 4, 2, CLASSES)
    base = torch.tensor([True, True, True, False, False])
    if rule == "ours":
        seen = side(linear, likelihoods, base, weights, -drawn(seed, 1.0, CLASSES).abs(), wordless)
        fused = fuse(seen, text, weights)
        fused = with_prior(fused, drawn(seed + 1, 2.0, CLASSES)) if prior else fused
    else:
        fused = fuse_protocol(linear.masked_fill(~base, NONE), text, rule, 0.5)
    total = fused.log_scores
    found = parts_of(fused, torch.arange(CLASSES).expand(2, -1), rule)
    assert bool(found[2].any()) is (prior and rule == "ours")
    for row in range(2):
        for position in range(CLASSES):
            parts = [float(part[row, position]) for part in found]
            others = torch.cat([total[row, :position], total[row, position + 1 :]])
            assert sum(parts) == pytest.approx(float(total[row, position] - others.max()), abs=1e-9)
            expected = odds(fused, row, position)
            if abs(expected) < DENORMAL:
                assert sum(parts) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_parts_of_the_papers_sum_add_up_to_the_probability() -> None:
    """There a part is a share of the probability; in a product a class alone has no other to be ahead of."""
    fused = fuse_protocol(drawn(0, 2.0, 2, 4), drawn(1, 2.0, 2, 4), "paper", 0.3)
    whole = sum(parts_of(fused, torch.arange(4).expand(2, -1), "paper"))
    assert torch.equal(whole, fused.probabilities)
    score = torch.tensor([[-3.0]])
    alone = fuse(side(score, score, torch.tensor([True]), EVEN), torch.tensor([[2.0]]), EVEN)
    assert alone.probabilities.tolist() == [[1.0]]
    found = parts_of(alone, torch.zeros(1, 1, dtype=torch.int64), "ours")
    assert [float(part) for part in found] == [0.0, 0.0, 0.0]


@quick
@given(weights=weights_of, size=st.sampled_from([0.0, 1.0, 30.0]), base=masks, seed=seeds)
def test_a_prior_is_bayes_rule(weights: PartWeights, size: float, base: list[bool], seed: int) -> None:
    """P(c | x) is proportional to what it is under a uniform prior times the prior; the other parts stay."""
    linear, likelihoods, text = drawn(seed, size, 3, 2, CLASSES)
    before = fuse(side(linear, likelihoods, torch.tensor(base), weights), text, weights)
    prior = drawn(seed + 1, 2.0, CLASSES)
    fused = with_prior(before, prior)
    expected = (before.log_scores + prior).softmax(1)
    torch.testing.assert_close(fused.probabilities, expected, rtol=1e-9, atol=1e-12)
    assert fused.prior_part is not None
    torch.testing.assert_close(fused.prior_part, prior.expand(2, -1))
    assert torch.equal(fused.visual_part, before.visual_part)
    assert torch.equal(fused.text_part, before.text_part)
    same = with_prior(before, torch.full((CLASSES,), -3.0))
    torch.testing.assert_close(same.probabilities, before.probabilities)


def test_frequencies_of_classes_count_half_an_image_more() -> None:
    """So that a class without images has one, too."""
    found = log_frequencies(torch.tensor([0, 1, 3])).exp()
    assert found.tolist() == pytest.approx([0.5 / 5.5, 1.5 / 5.5, 3.5 / 5.5])


def test_scores_are_joined_in_their_order() -> None:
    """Given some images at a time, or all at once."""
    scores = drawn(0, 1.0, 7, CLASSES)
    seen = side(scores, scores, torch.ones(CLASSES, dtype=torch.bool), EVEN)
    whole = fuse(seen, scores, EVEN)
    parts = [fuse(seen.rows(rows), scores[rows], EVEN) for rows in torch.arange(7).split(3)]
    for one in (FusedScores.joined(iter(parts), 7), FusedScores.joined(iter([whole]), 7)):
        for found, expected in zip(one.tensors, whole.tensors, strict=True):
            torch.testing.assert_close(found, expected)
