"""Baselines on stored features equal their naive twins, in float64 and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.baselines import (
    HeadTraining,
    adjusted_logits,
    best_setting,
    class_means,
    cosine_logits,
    fc_head,
    hold_back,
    knn_sentence_logits,
    linear_logits,
    lws_scales,
    softmax_scale,
    tau_normalised,
)
from vlltr_index.errors import InputError, VlltrError
from vlltr_index.losses import logit_adjusted_cross_entropy, sampler_prior

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int) -> Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(counts: tuple[int, ...], seed: int = 0, dim: int = 6) -> tuple[Tensor, Tensor]:
    """Features [N, dim] around a centre a class, and labels."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return 4 * draw(seed, len(counts), dim)[labels] + draw(seed + 1, len(labels), dim), labels


@quick
@given(seed=seeds, images=st.integers(1, 7), classes=st.integers(1, 5), dim=st.integers(1, 4))
def test_linear_and_cosine_logits_equal_their_twins(seed: int, images: int, classes: int, dim: int) -> None:
    """One product at a time; without a bias it is left out."""
    x, w, b = draw(seed, images, dim), draw(seed + 1, classes, dim), draw(seed + 2, classes)
    plain = torch.stack([torch.stack([row @ v for v in w]) for row in x])
    torch.testing.assert_close(linear_logits(x, w), plain)
    torch.testing.assert_close(linear_logits(x, w, b), plain + b)
    cosines = torch.stack([torch.stack([row @ v / (row.norm() * v.norm()) for v in w]) for row in x])
    torch.testing.assert_close(cosine_logits(x, w, 7.0), 7 * cosines)


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


def test_a_class_without_rows_has_no_mean() -> None:
    """The message names the class."""
    with pytest.raises(InputError, match="class 1 has no row to take the mean of"):
        class_means(torch.ones(2, 3), torch.tensor([0, 2]), 3)


@quick
@given(seed=seeds, classes=st.integers(1, 5), tau=st.sampled_from([0.0, 0.3, 1.0]))
def test_tau_normalisation_equals_its_twin(seed: int, classes: int, tau: float) -> None:
    """w / |w|^tau row by row; 0 changes nothing, 1 gives unit rows, a zero row stays."""
    w = draw(seed, classes, 3)
    found = tau_normalised(w, tau)
    for row, was in zip(found, w, strict=True):
        torch.testing.assert_close(row, was / was.norm() ** tau)
    assert bool((tau_normalised(torch.zeros(1, 3), tau) == 0).all())


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
        cosines = [float(row @ t / (row.norm() * t.norm())) for t in texts]
        near = sorted(range(len(owners)), key=lambda i: -cosines[i])[:k]
        for c in range(4):
            own = [s for s, owner in zip(cosines, owners, strict=True) if owner == c]
            votes = sum(owners[i] == c for i in near)
            expected = votes + (1 + max(own)) / 4 if own else -math.inf
            assert float(logits[c]) == pytest.approx(expected)


def test_sentence_votes_refuse_nothing_to_vote() -> None:
    """No sentence, or no neighbour; no image is fine."""
    with pytest.raises(InputError, match="k must be at least 1, and at least one sentence; got 0 and 1"):
        knn_sentence_logits(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), 1, 0)
    with pytest.raises(InputError, match="got 1 and 0"):
        knn_sentence_logits(torch.ones(1, 2), torch.ones(0, 2), torch.ones(0).long(), 1, 1)
    assert knn_sentence_logits(torch.ones(0, 2), torch.ones(1, 2), torch.tensor([0]), 1, 1).shape == (0, 1)


def test_the_linear_head_reaches_the_minimum() -> None:
    """With the whole set in each batch and many epochs the loss is that of gradient descent's twin, or below."""
    x, labels = blobs((30, 12, 3, 1))
    x = x + 3 * draw(9, len(x), 6)
    training = HeadTraining(epochs=400, batch_size=46, lr=0.05, sampler_power=0.0)
    weight, bias = fc_head(x, labels, 4, training)
    w = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        loss = torch.nn.functional.cross_entropy(x @ w.T + b, labels)
        for value, slope in zip((w, b), torch.autograd.grad(loss, (w, b)), strict=True):
            value.data -= 0.02 * slope
    mine = torch.nn.functional.cross_entropy(linear_logits(x, weight, bias), labels)
    assert float(mine) < float(loss.detach()) + 0.05
    assert weight.dtype == torch.float64


def test_balanced_sampling_helps_the_rare_class() -> None:
    """cRT's sampler gives overlapping classes equal say; adjusting the loss by the prior does as well."""
    x, labels = draw(3, 220, 2), torch.tensor([0] * 200 + [1] * 20)
    x[200:] += 1.0
    rare = {}
    for name, training in {
        "plain": HeadTraining(80, 64, sampler_power=0.0),
        "balanced": HeadTraining(80, 64, sampler_power=1.0),
        "adjusted": HeadTraining(80, 64, sampler_power=0.0, logit_adjustment=1.0),
    }.items():
        logits = linear_logits(x, *fc_head(x, labels, 2, training))
        rare[name] = float((logits.argmax(1)[200:] == 1).double().mean())
    assert rare["plain"] < 0.3
    assert min(rare["balanced"], rare["adjusted"]) > 0.6


def test_a_step_takes_one_view_of_an_image() -> None:
    """Two views that disagree are both learned; one class alone is learned too; same seed, same head."""
    x, labels = blobs((8, 8))
    views = torch.stack([x, -x])
    weight, bias = fc_head(views, labels, 2, HeadTraining(epochs=30))
    assert float(weight.abs().max()) < 0.5  # the views cancel
    again = fc_head(views, labels, 2, HeadTraining(epochs=30))
    assert torch.equal(weight, again[0])
    other = fc_head(views, labels, 2, HeadTraining(epochs=30, seed=1))
    assert not torch.equal(weight, other[0])
    weight, bias = fc_head(x[:1], labels[:1], 1)
    assert (weight.shape, bias.shape) == ((1, 6), (1,))


def test_weight_scaling_changes_nothing_but_lengths() -> None:
    """One factor a class, the loss not above the start's, the direction of each row kept."""
    x, labels = blobs((40, 5, 1), seed=5)
    weight, bias = class_means(x, labels, 3), torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)
    factors = lws_scales(x, labels, weight, bias, HeadTraining(epochs=40, lr=0.05, sampler_power=1.0))
    assert factors.shape == (3,)
    prior = sampler_prior(torch.bincount(labels), 1.0).log()
    balance = 1.0 / torch.bincount(labels)[labels].double()

    def loss(logits: Tensor) -> float:
        rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return float((balance * rows).sum())

    start, now = linear_logits(x, weight, bias), linear_logits(x, weight, bias) * factors
    assert loss(now) < loss(start)
    assert float(logit_adjusted_cross_entropy(now, labels, prior, 0.0)) > 0
    torch.testing.assert_close(now, linear_logits(x, weight * factors[:, None], bias * factors))


def test_training_refuses_what_it_cannot_use() -> None:
    """Shapes, labels out of range, no image, a loss that is not finite."""
    with pytest.raises(
        InputError, match=r"features must be floating \[N, D\] or \[V, N, D\], got torch.int64 \[2\]"
    ):
        fc_head(torch.ones(2).long(), torch.ones(2).long(), 2)
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.1, got values from 2 to 2"):
        fc_head(torch.ones(1, 2), torch.tensor([2]), 2)
    with pytest.raises(InputError, match="there is no image to train on") as caught:
        fc_head(torch.ones(0, 2), torch.ones(0).long(), 2)
    assert caught.value.hint == "Run: vlltr ingest images PATH --split train"
    with pytest.raises(VlltrError, match="train weight scaling: the loss is nan in epoch 1") as failed:
        lws_scales(torch.full((2, 1), math.inf), torch.tensor([0, 1]), torch.zeros(2, 1), torch.zeros(2))
    assert failed.value.hint == "Try lower learning rates: --set baselines.lrs=[1e-4]"


def test_the_scale_with_the_best_likelihood_is_taken() -> None:
    """Sure and right wants a large scale, sure and half wrong a small one; classes count alike."""
    right = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert softmax_scale(right, torch.tensor([0, 1]), (1.0, 10.0)) == 10.0
    assert softmax_scale(right, torch.tensor([0, 0]), (1.0, 10.0)) == 1.0
    many = right[[0] * 50 + [1]]
    labels = torch.tensor([0] * 50 + [0])
    assert softmax_scale(many, labels, (1.0, 10.0)) == 10.0  # one class: its images count alike


def test_the_best_setting_is_the_first_of_equals() -> None:
    """By class-balanced accuracy; nothing to choose from is an error."""
    labels = torch.tensor([0, 0, 0, 1])
    scores = {"all 0": [[1.0, 0.0]] * 4, "all 1": [[0.0, 1.0]] * 4, "good": [[1.0, 0.0]] * 3 + [[0.0, 1.0]]}
    chosen = best_setting(["all 0", "all 1", "good"], lambda s: torch.tensor(scores[s]), labels)
    assert chosen == ("good", 1.0)
    assert best_setting(["all 1", "all 0"], lambda s: torch.tensor(scores[s]), labels) == ("all 1", 0.5)
    with pytest.raises(InputError, match="nothing to choose from: 0 settings, 4 images"):
        best_setting([], lambda s: torch.ones(4, 2), labels)


@quick
@given(labels=st.lists(st.integers(0, 4), max_size=40), share=st.sampled_from([0.1, 0.5, 0.99]))
def test_every_class_keeps_an_image_to_fit(labels: list[int], share: float) -> None:
    """Classes with one image give none, the others at least one and not all."""
    held = hold_back(torch.tensor(labels, dtype=torch.int64), share)
    for c in set(labels):
        own = held[torch.tensor(labels) == c]
        n, given = len(own), int(own.sum())
        assert given == (0 if n == 1 else min(max(1, round(share * n)), n - 1))
