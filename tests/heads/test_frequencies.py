"""Tests of `vlltr_index.heads.frequencies`: frequencies found among images, how strongly they are drawn together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.heads.frequencies import choose_strength, estimate
from vlltr_index.heads.tree import HeldOutAnswers


def drawn(counts: list[int], sharp: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-likelihoods [N, C] of images of so many in each class, and their classes; `sharp`: how far apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = sharp * torch.eye(len(counts), dtype=torch.float64)
    images = centres[labels] + torch.randn(len(labels), len(counts), generator=generator, dtype=torch.float64)
    return -0.5 * torch.cdist(images, centres).square(), labels


def found(scores: Tensor, strength: float, best: int | None = None) -> Tensor:
    """The frequencies, float64 [C]."""
    some = scores.topk(best or scores.shape[1])
    votes = torch.ones(len(scores), dtype=torch.float64)
    return estimate(some.values, some.indices, scores.shape[1], votes, strength).exp()


def test_frequencies_are_found_where_counting_answers_is_wrong() -> None:
    """Classes are hard to tell apart; the frequencies come out near those that the images were drawn by."""
    counts = [700, 200, 80, 20]
    scores, _ = drawn(counts, 2.0)
    wanted = torch.tensor(counts) / sum(counts)
    counted = torch.bincount(scores.argmax(1), minlength=4) / len(scores)
    assert float((found(scores, 0.01) - wanted).abs().max()) < 0.05
    assert float((counted - wanted).abs().max()) > 0.1


@settings(max_examples=20, deadline=None)
@given(strength=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 1000))
def test_the_prior_draws_to_equal_frequencies(strength: float, seed: int) -> None:
    """The stronger, the nearer; frequencies are above 0 and sum to one, also of classes that no image may vote for."""
    scores, _ = drawn([30, 5, 5], 3.0, seed)
    weak, strong = found(scores, strength, best=2), found(scores, 10 * strength, best=2)
    for some in (weak, strong):
        assert float(some.sum()) == pytest.approx(1.0)
        assert bool((some > 0.0).all())
    assert float((strong - 1 / 3).abs().max()) <= float((weak - 1 / 3).abs().max()) + 1e-6


def test_one_image_does_not_prove_itself() -> None:
    scores, _ = drawn([1, 0, 0], 1.0)
    assert float(found(scores, 1.0).max()) < 0.4


def test_the_strength_is_chosen_by_what_held_out_images_lose() -> None:
    """Where classes are told apart anyway nothing is gained, and the strongest is taken; else a weaker one."""
    clear, labels = drawn([20] * 10, 12.0)
    assert choose_strength(HeldOutAnswers(labels, clear.softmax(1).half())) == 30.0
    doubtful, labels = drawn([40] * 10, 2.0)
    held = HeldOutAnswers(labels, doubtful.softmax(1).half())
    strength = choose_strength(held)
    assert strength is not None
    assert strength < 30.0
    few = labels < 5
    scores = held.probabilities[few].float().clamp(min=1e-7).log()
    gained = (scores + found(scores, strength).log()).argmax(1) == labels[few]
    assert float(gained.double().mean()) > float((scores.argmax(1) == labels[few]).double().mean()) + 0.02
