"""The baselines' rules on stored features equal their naive twins, in float64 and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.support import twins
from vlltr_index.errors import InputError, VlltrError
from vlltr_index.evaluation.rules import (
    HeadTraining,
    TipCache,
    adjusted_logits,
    best_setting,
    choose_tip,
    class_means,
    fc_head,
    hold_back,
    knn_sentence_logits,
    linear_logits,
    logistic_regression,
    lws_scales,
    shrunk_discriminant,
    tip_logits,
)

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int) -> Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(counts: tuple[int, ...], seed: int = 0, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Features [N, dim] around a centre a class, and labels."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return 4 * draw(seed, len(counts), dim)[labels] + draw(seed + 1, len(labels), dim), labels


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors."""
    return float(a @ b / (a.norm() * b.norm()))


@quick
@given(
    seed=seeds,
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    power=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_logit_adjustment_takes_the_samplers_prior_off(seed: int, counts: list[int], power: float) -> None:
    """log n^(1 - power), up to a constant; a class without images cannot win."""
    counts[0] += 1
    logits = draw(seed, 3, len(counts))
    found = adjusted_logits(logits, torch.tensor(counts), power)
    total = sum(n ** (1 - power) for n in counts if n)
    for c, n in enumerate(counts):
        if n:
            torch.testing.assert_close(found[:, c], logits[:, c] - math.log(n ** (1 - power) / total))
        else:
            assert bool(torch.isneginf(found[:, c]).all())


@quick
@given(seed=seeds, counts=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_class_means_equal_their_twin(seed: int, counts: list[int]) -> None:
    """The mean of normalised rows, normalised again; a class with one image is that image's direction."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    x = draw(seed, len(labels), 4)
    for c, mean in enumerate(class_means(x, labels, len(counts))):
        own = [row / row.norm() for row, label in zip(x, labels.tolist(), strict=True) if label == c]
        expected = sum(own[1:], start=own[0]) / len(own)
        torch.testing.assert_close(mean, expected / expected.norm())
    with pytest.raises(InputError, match=f"class {len(counts)} has no row to take the mean of"):
        class_means(x, labels, len(counts) + 1)


@pytest.mark.parametrize(("images", "width", "classes"), [(40, 64, 5), (40, 6, 5), (30, 64, 2)])
def test_logistic_regression_is_scikit_learns_at_full_width(images: int, width: int, classes: int) -> None:
    """The probabilities are those without centring, rotation and warm start.

    The tolerance is that of the solver's gradient, 1e-4 for the mean loss, times the largest C times the images.
    """
    y = torch.arange(images) % classes
    rows = torch.nn.functional.normalize(draw(0, images, width) + 0.5 * y[:, None], dim=1)
    queries = torch.nn.functional.normalize(draw(1, 20, width), dim=1)
    strengths = (0.1, 1.0)
    found = list(logistic_regression(rows, y, classes, strengths))
    for strength, (weight, bias) in zip(strengths, found, strict=True):
        assert (weight.shape, bias.shape) == ((classes, width), (classes,))
        plain = LogisticRegression(C=strength, max_iter=10_000, tol=1e-10).fit(rows.numpy(), y.numpy())
        expected = torch.from_numpy(plain.predict_proba(queries.numpy()))
        chances = linear_logits(queries, weight, bias).softmax(1)
        assert float((chances - expected).abs().max()) < 1e-4 * strength * images


def test_logistic_regression_of_one_class() -> None:
    """It has nothing to tell apart."""
    ((weight, bias),) = logistic_regression(draw(0, 4, 3), torch.zeros(4, dtype=torch.int64), 1, [1.0])
    assert not weight.any()
    assert not bias.any()
    assert (weight.shape, bias.shape) == ((1, 3), (1,))


def test_the_discriminant_is_the_textbooks() -> None:
    """Mahalanobis distances under the shrunk pooled covariance, up to a constant of the image."""
    y = torch.arange(3).repeat(4)
    x, queries = draw(0, 12, 5) + y[:, None], draw(1, 7, 5)
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    pooled = sum((x[i] - means[y[i]]).outer(x[i] - means[y[i]]) for i in range(12)) / 9
    away = queries[:, None] - means
    for shrinkage in (1.0, 2.0):
        covariance = twins.shrunk(pooled, 9, shrinkage)
        distance = torch.einsum("qcd,de,qce->qc", away, covariance.inverse(), away)
        found = linear_logits(queries, *shrunk_discriminant(x, y, 3, shrinkage))
        assert torch.allclose((found + distance / 2).std(1), torch.zeros(7, dtype=torch.float64), atol=1e-9)
    alone = linear_logits(queries, *shrunk_discriminant(x[:3], y[:3], 3))
    assert torch.equal(alone.argmax(1), torch.cdist(queries, x[:3]).argmin(1))


@quick
@given(
    seed=seeds,
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    k=st.integers(1, 12),
)
def test_sentence_votes_equal_their_twin(seed: int, owners: list[int], k: int) -> None:
    """Votes of the k nearest, ties by the nearest sentence; a class without a sentence cannot win."""
    x, texts = draw(seed, 4, 3), draw(seed + 1, len(owners), 3)
    found = knn_sentence_logits(x, texts, torch.tensor(owners), 4, k)
    for row, logits in zip(x, found, strict=True):
        cosines = [cosine(row, t) for t in texts]
        near = sorted(range(len(owners)), key=lambda i: -cosines[i])[:k]
        for c in range(4):
            own = [s for s, owner in zip(cosines, owners, strict=True) if owner == c]
            votes = sum(owners[i] == c for i in near)
            expected = votes + (1 + max(own)) / 4 if own else -math.inf
            assert float(logits[c]) == pytest.approx(expected)


@quick
@given(
    seed=seeds,
    owners=st.lists(st.integers(0, 2), max_size=8),
    alpha=st.sampled_from([0.5, 3.0]),
    beta=st.sampled_from([1.0, 5.5]),
)
def test_tip_adapter_equals_its_twin(seed: int, owners: list[int], alpha: float, beta: float) -> None:
    """alpha times the class's summed affinities, and the scaled text cosine; the cache may be empty."""
    x, keys, texts = draw(seed, 4, 3), draw(seed + 1, len(owners), 3), draw(seed + 2, 3, 3)
    cache = TipCache(keys, torch.tensor(owners, dtype=torch.int64), texts, 20.0)
    for row, logits in zip(x, tip_logits(x, cache, alpha, beta), strict=True):
        for c in range(3):
            kept = [
                math.exp(-beta * (1 - cosine(row, k))) for k, o in zip(keys, owners, strict=True) if o == c
            ]
            assert float(logits[c]) == pytest.approx(alpha * sum(kept) + 20 * cosine(row, texts[c]))


def test_alpha_and_beta_are_the_best_pair() -> None:
    """As a loop over all pairs finds, the first of equals by beta, then alpha."""
    x, keys, texts = draw(1, 40, 4), draw(2, 12, 4), draw(3, 4, 4)
    labels, owners = torch.arange(40) % 4, torch.arange(12) % 4
    x = x + 1.5 * keys[labels]
    cache = TipCache(keys, owners, texts, 5.0)
    alphas, betas = (0.1, 1.0, 10.0), (1.0, 5.0)
    pairs = [(a, b) for b in betas for a in alphas]
    scores = [float((tip_logits(x, cache, a, b).argmax(1) == labels).double().mean()) for a, b in pairs]
    best = pairs[scores.index(max(scores))]
    assert choose_tip(x, labels, cache, alphas, betas) == (best, pytest.approx(max(scores)))


def test_the_linear_head_reaches_the_minimum() -> None:
    """With the whole set in each batch and many epochs the loss is that of gradient descent's twin, or below."""
    x, labels = blobs((30, 12, 3, 1))
    x = x + 3 * draw(9, len(x), 6)
    weight, bias = fc_head(x, labels, 4, HeadTraining(400, 46, 0.05, sampler_power=0.0))
    w = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        loss = cross_entropy(x @ w.T + b, labels)
        for value, slope in zip((w, b), torch.autograd.grad(loss, (w, b)), strict=True):
            value.data -= 0.02 * slope
    assert float(cross_entropy(linear_logits(x, weight, bias), labels)) < float(loss.detach()) + 0.05


def test_balanced_sampling_helps_the_rare_class() -> None:
    """cRT's sampler gives overlapping classes equal say; adjusting the loss by the prior does as well."""
    x, labels = draw(3, 220, 2), torch.tensor([0] * 200 + [1] * 20)
    x[200:] += 1.0
    rare = []
    for power, adjustment in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        training = HeadTraining(80, 64, sampler_power=power, logit_adjustment=adjustment)
        logits = linear_logits(x, *fc_head(x, labels, 2, training))
        rare.append(float((logits.argmax(1)[200:] == 1).double().mean()))
    assert rare[0] < 0.3
    assert min(rare[1:]) > 0.6


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    """It says what to try."""
    x = torch.full((2, 1), math.inf)
    with pytest.raises(VlltrError, match="train weight scaling: the loss is nan in epoch 1") as failed:
        lws_scales(x, torch.tensor([0, 1]), torch.zeros(2, 1), torch.zeros(2), HeadTraining())
    assert failed.value.hint == "Try lower learning rates: --set baselines.lrs=[1e-4]"


def test_the_best_setting_is_the_first_of_equals() -> None:
    """By class-balanced accuracy."""
    labels = torch.tensor([0, 0, 0, 1])
    scores = {"all 0": [[1.0, 0.0]] * 4, "all 1": [[0.0, 1.0]] * 4, "good": [[1.0, 0.0]] * 3 + [[0.0, 1.0]]}
    chosen = best_setting(["all 0", "all 1", "good"], lambda s: torch.tensor(scores[s]), labels)
    assert chosen == ("good", 1.0)
    assert best_setting(["all 1", "all 0"], lambda s: torch.tensor(scores[s]), labels) == ("all 1", 0.5)


@quick
@given(labels=st.lists(st.integers(0, 4), max_size=40), share=st.sampled_from([0.1, 0.5, 0.99]))
def test_every_class_keeps_an_image_to_fit(labels: list[int], share: float) -> None:
    """Classes with one image give none, the others at least one and not all: the first of each."""
    held = hold_back(torch.tensor(labels, dtype=torch.int64), share).tolist()
    for c in set(labels):
        own = [h for h, label in zip(held, labels, strict=True) if label == c]
        given = 0 if len(own) == 1 else min(max(1, round(share * len(own))), len(own) - 1)
        assert own == [True] * given + [False] * (len(own) - given)
