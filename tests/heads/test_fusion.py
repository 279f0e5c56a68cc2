"""Tests of `vlltr_index.heads.fusion` against the rules in plain Python."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import twins
from vlltr_index.heads.fusion import (
    FusedScores,
    Gate,
    Kinds,
    PartWeights,
    Rule,
    VisualScores,
    class_logits,
    fuse,
    fuse_protocol,
    parts_of,
    resting,
    visual_scores,
    with_prior,
)

quick = settings(max_examples=40, deadline=None)
DENORMAL = 700.0  # log-odds from which on probabilities lose digits
CLASSES = 5
NONE = -math.inf
EVEN = PartWeights(1.0, 1.0, 1.0, Gate(1.0, 1.0), Gate(1.0, 1.0))

factors = st.sampled_from([0.0, 0.05, 1.0, 3.0])
meetings = st.builds(
    Gate, factors, factors, st.sampled_from([-2.0, 0.0, 1.5]), st.sampled_from([0.5, 1e6]), factors
)
weights_of = st.builds(PartWeights, factors, factors, factors, meetings, meetings)
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


def trained_alone(scores: Tensor) -> VisualScores:
    """The visual side where every class was trained and each has these scores."""
    every = torch.ones(scores.shape[1], dtype=torch.bool)
    return VisualScores(scores, scores, scores, Kinds.of(every, every))


@quick
@given(trained=masks, with_images=masks, weights=weights_of, size=sizes, seed=seeds)
def test_ours_equals_its_twin(
    trained: list[bool], with_images: list[bool], weights: PartWeights, size: float, seed: int
) -> None:
    """All classes trained, none, some, whatever stands in the visual columns that do not count; in float32 too."""
    visual, likelihoods, text, wordless = drawn(seed, size, 4, 3, CLASSES)
    known = torch.tensor(trained)
    kinds = Kinds.of(known, torch.tensor(with_images))
    spoilt = visual.masked_fill(~known, NONE) if weights.image else torch.full_like(visual, math.nan)
    fused = fuse(visual_scores(spoilt, likelihoods, kinds, weights, wordless), text, weights)
    near = 1e-12 * (1.0 + size)
    for row, both in enumerate(zip(visual.tolist(), likelihoods.tolist(), text.tolist(), strict=True)):
        seen, read = twins.ours(*both, trained, with_images, asdict(weights))
        images, _ = twins.ours(
            both[0], wordless[row].tolist(), both[2], trained, with_images, asdict(weights)
        )
        texts = [s + r - i for s, r, i in zip(seen, read, images, strict=True)]
        assert fused.visual_part[row].tolist() == pytest.approx(images, rel=1e-9, abs=near)
        assert fused.text_part[row].tolist() == pytest.approx(texts, rel=1e-9, abs=10 * near)
        assert fused.by_image[row].tolist() == pytest.approx(twins.softmax(images), abs=1e-9)
        assert fused.by_text[row].tolist() == pytest.approx(twins.softmax(both[2]), abs=1e-12)
        total = [i + t for i, t in zip(images, texts, strict=True)]
        assert fused.probabilities[row].tolist() == pytest.approx(twins.softmax(total), abs=1e-9)
    narrow = fuse(
        visual_scores(spoilt.float(), likelihoods.float(), kinds, weights), text.float(), weights
    ).probabilities
    torch.testing.assert_close(narrow.sum(1), torch.ones(3))
    torch.testing.assert_close(narrow.double(), fused.probabilities, rtol=0, atol=2e-2)


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
@given(weights=weights_of, size=sizes, seed=seeds)
def test_an_addition_leaves_the_trained_classes_among_themselves(
    weights: PartWeights, size: float, seed: int
) -> None:
    """Among the trained classes the probabilities are to each other as they were, whatever is added beside them."""
    visual, likelihoods, text = drawn(seed, size, 3, 4, CLASSES + 2)
    trained = torch.arange(CLASSES + 2) < CLASSES

    def among(classes: int) -> Tensor:
        kinds = Kinds.of(trained[:classes], torch.arange(classes) <= CLASSES)
        image = visual_scores(visual[:, :classes], likelihoods[:, :classes], kinds, weights)
        fused = fuse(image, text[:, :classes], weights)
        return (fused.visual_part + fused.text_part)[:, :CLASSES].log_softmax(1)

    torch.testing.assert_close(among(CLASSES + 2), among(CLASSES), rtol=1e-9, atol=1e-9)


def test_what_the_trained_classes_have_together_their_classifier_does_not_say() -> None:
    """Their share is that of the generative model and the text by the later classes' weights."""
    likelihoods, text = drawn(4, 1.0, 2, 1, 4)
    trained = torch.tensor([True, True, False, False])
    weights = PartWeights(1.0, 0.5, 0.7, Gate(0.8, 0.3, fit=0.2), Gate(2.0, 2.0))
    fits = 0.2 * likelihoods * ~trained
    expected = (0.8 * likelihoods + 0.3 * text + fits).softmax(1)[:, :2].sum()
    for visual in ([0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 50.0, 50.0]):
        logits = torch.tensor([visual], dtype=torch.float64)
        side = visual_scores(logits, likelihoods, Kinds.of(trained, torch.ones_like(trained)), weights)
        chances = fuse(side, text, weights).probabilities
        torch.testing.assert_close(chances[:, :2].sum(), expected)
    assert float(chances[0, 0]) > 0.99 * float(expected)


def test_an_answer_rests_on_the_level_of_the_trained_classes_too() -> None:
    """A class that the classifier rules out can make up the level that a later class is measured by."""
    likelihoods = torch.zeros(1, 3)
    trained = torch.tensor([True, True, False])
    text = torch.tensor([[0.0, 10.0, 9.5]])
    side = visual_scores(torch.tensor([[30.0, 0.0, 0.0]]), likelihoods, Kinds.of(trained, trained), EVEN)
    chances = fuse(side, text, EVEN).probabilities
    rests = resting(side, text, chances, EVEN)
    later = float(chances[0, 2])
    assert chances[0, 1] < 1e-4
    assert float(rests[0, 1]) == pytest.approx(4 * later * (1 - later), rel=1e-3)
    torch.testing.assert_close(rests[0, [0, 2]], chances[0, [0, 2]])


@quick
@given(rule=st.sampled_from(["ours", "logits"]), weights=weights_of, size=sizes, seed=seeds)
def test_parts_add_up_to_the_log_odds(rule: Rule, weights: PartWeights, size: float, seed: int) -> None:
    """In a product both parts of a class add up to its log-odds against the best other class, also where those are so
    long that the others' probabilities are zero."""
    visual, likelihoods, text = drawn(seed, size, 3, 2, CLASSES)
    trained = torch.tensor([True, True, True, False, False])
    if rule == "ours":
        kinds = Kinds.of(trained, torch.arange(CLASSES) < CLASSES - 1)
        fused = fuse(visual_scores(visual, likelihoods, kinds, weights), text, weights)
    else:
        fused = fuse_protocol(visual.masked_fill(~trained, NONE), text, rule, 0.5)
    total = fused.visual_part + fused.text_part
    image, by_text, prior = parts_of(fused, torch.arange(CLASSES).expand(2, -1), rule)
    assert not bool(prior.any())
    for row in range(2):
        for position in range(CLASSES):
            parts = (float(image[row, position]), float(by_text[row, position]))
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
    alone = fuse(trained_alone(torch.tensor([[-3.0]])), torch.tensor([[2.0]]), EVEN)
    assert alone.probabilities.tolist() == [[1.0]]
    assert [float(part) for part in parts_of(alone, torch.zeros(1, 1, dtype=torch.int64), "ours")] == 3 * [
        0.0
    ]


@quick
@given(
    weights=weights_of, size=st.sampled_from([0.0, 1.0, 30.0]), trained=masks, with_images=masks, seed=seeds
)
def test_a_prior_is_bayes_rule_in_each_step_of_the_chain(
    weights: PartWeights, size: float, trained: list[bool], with_images: list[bool], seed: int
) -> None:
    """In plain Python: of trained classes P(c | trained, x) times the frequency; a later class beside all of them."""
    visual, likelihoods, text = drawn(seed, size, 3, 1, CLASSES)
    kinds = Kinds.of(torch.tensor(trained), torch.tensor(with_images))
    side = visual_scores(visual, likelihoods, kinds, weights)
    before = fuse(side, text, weights)
    prior = drawn(seed + 1, 2.0, CLASSES)
    fused = with_prior(before, side, weights, prior)
    assert fused.prior_part is not None
    known = [c for c in range(CLASSES) if trained[c]]
    own = (before.visual_part + before.text_part)[0].tolist()
    scores = list[float]()
    for c in range(CLASSES):
        among = [own[k] + float(prior[k]) for k in known]
        score = own[c] + float(prior[c])
        if not trained[c]:
            gate = weights.few_shot if with_images[c] else weights.text_only
            g = [gate.generative * float(likelihoods[0, k]) + gate.text * float(text[0, k]) for k in known]
            score += log_sum(g) - log_sum(
                [value + float(prior[k]) for value, k in zip(g, known, strict=True)]
            )
        else:
            score -= log_sum(among)
        scores.append(score)
    expected = torch.tensor(scores, dtype=torch.float64)
    torch.testing.assert_close(fused.probabilities[0], expected.softmax(0), rtol=1e-6, atol=1e-9)
    parts = torch.stack(parts_of(fused, torch.arange(CLASSES)[None], "ours")).sum(0)[0]
    for c in range(CLASSES):
        others = torch.cat([expected[:c], expected[c + 1 :]])
        assert float(parts[c]) == pytest.approx(float(expected[c] - others.max()), abs=1e-6)


def log_sum(values: list[float]) -> float:
    """The logarithm of the sum of exponentials; 0 for none."""
    return float(torch.tensor(values, dtype=torch.float64).logsumexp(0)) if values else 0.0


def test_equally_common_classes_change_nothing() -> None:
    visual, likelihoods, text = drawn(0, 2.0, 3, 4, CLASSES)
    trained = torch.arange(CLASSES) < 3
    side = visual_scores(visual, likelihoods, Kinds.of(trained, trained), EVEN)
    before = fuse(side, text, EVEN)
    same = with_prior(before, side, EVEN, torch.full((CLASSES,), -3.0))
    torch.testing.assert_close(same.probabilities, before.probabilities)
