"""Tip-Adapter and the random-words control equal their naive twins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.baselines import HeadTraining
from vlltr_index.baselines_text import (
    TipCache,
    cache_logits,
    choose_tip,
    first_of_each_class,
    tip_logits,
    tune_cache_keys,
    waffle_noise,
    waffle_text,
)
from vlltr_index.errors import InputError

quick = settings(max_examples=25, deadline=None)


def draw(seed: int, *shape: int) -> Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(
    seed=st.integers(0, 10_000),
    owners=st.lists(st.integers(0, 2), max_size=8),
    alpha=st.sampled_from([0.5, 3.0]),
    beta=st.sampled_from([1.0, 5.5]),
)
def test_tip_adapter_equals_its_twin(seed: int, owners: list[int], alpha: float, beta: float) -> None:
    """alpha times the class's summed affinities, and the scaled text cosine; the cache may be empty."""
    x, keys, texts = draw(seed, 4, 3), draw(seed + 1, len(owners), 3), draw(seed + 2, 3, 3)
    cache = TipCache(keys, torch.tensor(owners, dtype=torch.int64), texts, 20.0)
    found = tip_logits(x, cache, alpha, beta)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    for row, logits in zip(x, found, strict=True):
        for c in range(3):
            kept = [
                math.exp(-beta * (1 - cosine(row, k))) for k, o in zip(keys, owners, strict=True) if o == c
            ]
            assert float(logits[c]) == pytest.approx(alpha * sum(kept) + 20 * cosine(row, texts[c]))
    assert tip_logits(x[:0], cache, alpha, beta).shape == (0, 3)


@quick
@given(labels=st.lists(st.integers(0, 4), max_size=30), limit=st.integers(1, 5))
def test_the_cache_keeps_the_first_images_of_each_class(labels: list[int], limit: int) -> None:
    """In the order they come, at most `limit` of each."""
    expected = [i for i, label in enumerate(labels) if labels[:i].count(label) < limit]
    found = first_of_each_class(torch.tensor(labels, dtype=torch.int64), limit)
    assert found.tolist() == expected


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
    assert choose_tip(x, labels, cache, alphas, betas) == (*best, pytest.approx(max(scores)))
    with pytest.raises(InputError, match="nothing to choose from: no beta"):
        choose_tip(x, labels, cache, alphas, ())
    with pytest.raises(InputError, match="nothing to choose from: 3 settings, 0 images"):
        choose_tip(x[:0], labels[:0], cache, alphas, betas)


def test_tuned_keys_fit_better_and_the_rest_stays() -> None:
    """Loss on the kept images falls; labels and the given cache are untouched; a class without images is left out."""
    owners = torch.arange(9) % 3
    keys, texts = draw(5, 9, 4), draw(6, 4, 4)
    cache, before = TipCache(keys, owners, texts, 2.0), keys.clone()
    views = torch.stack([keys + 0.1 * draw(7, 9, 4), keys + 0.1 * draw(8, 9, 4)])
    tuned = tune_cache_keys(
        views, owners, cache, 2.0, 3.0, HeadTraining(epochs=60, lr=0.05, sampler_power=1.0)
    )

    def loss(which: TipCache) -> float:
        logits = tip_logits(views[0], which, 2.0, 3.0)[:, :3]
        return float(torch.nn.functional.cross_entropy(logits, owners))

    assert loss(tuned) < loss(cache)
    assert torch.equal(keys, before)
    assert torch.equal(tuned.labels, owners)
    torch.testing.assert_close(tuned.keys.norm(dim=1), torch.ones(9, dtype=torch.float64))


def test_what_does_not_fit_is_refused() -> None:
    """Shapes, labels of classes that are not there, a limit below one."""
    with pytest.raises(InputError, match=r"features must have shape \[N, 3\], got \[1, 2\]"):
        cache_logits(torch.ones(1, 2), torch.ones(1, 3), torch.tensor([0]), 1, 1.0)
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.0"):
        cache_logits(torch.ones(1, 3), torch.ones(1, 3), torch.tensor([1]), 1, 1.0)
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        first_of_each_class(torch.tensor([0]), 0)


def test_noise_is_words_and_letters_in_turn() -> None:
    """Two words of the list, then two of random letters; without words letters alone; the seed decides."""
    words = ["oval", "stroke", "serif"]
    noise = waffle_noise(words, 4, seed=3)
    assert all(word in words for n in (0, 2) for word in noise[n].split())
    assert not any(word in words for n in (1, 3) for word in noise[n].split())
    assert all(len(text.split()) == 2 for text in noise)
    assert noise == waffle_noise(words, 4, seed=3) != waffle_noise(words, 4, seed=4)
    assert len(waffle_noise([], 5, 0)) == 5
    assert waffle_noise(words, 0, 0) == []


def test_noise_follows_the_name() -> None:
    """The prompt's own full stop goes."""
    assert waffle_text("a photo of a tench.", "ab cd") == "a photo of a tench, which has ab cd."
    assert waffle_text("tench", "ab cd") == "tench, which has ab cd."
