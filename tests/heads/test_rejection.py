"""Tests of `vlltr_index.heads.rejection` against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.heads.test_plda import any_shared
from vlltr_index.heads.moments import Moments
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import fit_plda
from vlltr_index.heads.rejection import ACCEPTED, fit_parts, fit_scores, ratio_weight, threshold
from vlltr_index.tensors import unit_rows

quick = settings(max_examples=30, deadline=None)


def drawn(classes: int, dim: int, seed: int) -> tuple[PLDA, Tensor]:
    """A model and normalised images [7, D]; float64."""
    g = torch.Generator().manual_seed(seed)
    images = unit_rows(torch.randn(7, dim, generator=g, dtype=torch.float64))
    counts = torch.randint(0, 4, (classes,), generator=g)
    sums = counts[:, None] * torch.randn(classes, dim, generator=g, dtype=torch.float64)
    return PLDA(any_shared(dim, seed), counts, sums, torch.zeros(classes, dim, dtype=torch.float64)), images


@quick
@given(classes=st.integers(1, 5), dim=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_the_parts_are_those_of_a_loop(classes: int, dim: int, seed: int) -> None:
    """The best class, and its ratio to a class without images, image by image."""
    model, images = drawn(classes, dim, seed)
    unknown = PLDA(model.shared, torch.tensor([0]), torch.zeros(1, dim), torch.zeros(1, dim))
    for row, image in zip(fit_parts(model, images).tolist(), images, strict=True):
        best = max(model.log_likelihoods(image[None])[0].tolist())
        expected = [best, best - float(unknown.log_likelihoods(image[None]))]
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_each_part_has_the_spread_of_the_first() -> None:
    """A ratio that is the same for all images has no weight."""
    g = torch.Generator().manual_seed(0)
    parts = torch.randn(50, 2, generator=g) * torch.tensor([3.0, 7.0]) + 5.0
    weight = ratio_weight(parts)
    spread = parts.std(0)
    torch.testing.assert_close(weight * spread[1], spread[0])
    torch.testing.assert_close(
        fit_scores(parts, weight), torch.tensor([a + weight * b for a, b in parts.tolist()])
    )
    parts[:, 1] = 1.0
    assert ratio_weight(parts) == 0.0
    assert ratio_weight(torch.tensor([[1e9, 0.0], [-1e9, 0.01]])) == 1e9  # a head can be read
    assert torch.equal(fit_scores(parts, 0.0), parts[:, 0])


def accepted(scores: list[float], groups: list[int], level: float) -> float:
    """Share of groups at or above the level, an image counting as its share of its group."""
    shares = [1 / groups.count(group) for group in groups]
    return sum(share for score, share in zip(scores, shares, strict=True) if score >= level) / sum(shares)


@quick
@given(
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=60),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_threshold_is_the_highest_that_accepts_95_of_100_groups(
    groups: list[int], ties: bool, seed: int
) -> None:
    """Whatever their sizes; of fewer than 20 groups there is none."""
    owner = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(owner), generator=g, dtype=torch.float64)
    scores = scores.round() if ties else scores
    level = threshold(scores, owner)
    if len(groups) < 20:
        assert level is None
        return
    assert level is not None
    values, owners = scores.tolist(), owner.tolist()
    assert level in values
    assert accepted(values, owners, level) >= ACCEPTED - 1e-9
    for higher in sorted(set(values)):
        if higher > level:
            assert accepted(values, owners, higher) < ACCEPTED + 1e-9
            break
    order = torch.randperm(len(owner), generator=g)
    assert threshold(scores[order], owner[order]) == level


def test_a_burst_counts_as_one_group() -> None:
    """A hundred bad images of one burst do not lower the threshold below what 19 of 20 groups reach."""
    scores = torch.cat([torch.full((100,), -50.0), torch.arange(1.0, 40.0)])
    groups = torch.cat([torch.zeros(100), torch.arange(1, 40)]).long()
    assert threshold(scores, groups) == 2.0


@pytest.mark.parametrize("dim", [10, 200])
def test_new_images_of_known_classes_are_accepted(dim: int) -> None:
    """Held-out images and others like them have scores of the same size, with fewer images than dimensions, too.

    A threshold by a model fitted on 160 of 200 images accepts 95 +- 4% of new ones by the model of all images, so the
    volume of the basis is no part of the score: it differs between both models.
    """
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(20, dim, generator=g, dtype=torch.float64)

    def images(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(20).repeat(each)
        noise = torch.randn(len(labels), dim, generator=g, dtype=torch.float64)
        return unit_rows(centres[labels] + 0.7 * noise), labels

    def model(features: Tensor, labels: Tensor) -> PLDA:
        moments = Moments.of(features[None], labels, torch.arange(len(labels)), 20)
        return fit_plda(moments, torch.zeros(20, dim))

    features, labels = images(10)
    new, _ = images(100)
    parts = torch.zeros(200, 2, dtype=torch.float64)
    for fold in range(5):
        out = torch.arange(200) // 20 % 5 == fold
        parts[out] = fit_parts(model(features[~out], labels[~out]), features[out])
    weight = ratio_weight(parts)
    level = threshold(fit_scores(parts, weight), torch.arange(200))
    assert level is not None
    found = fit_scores(fit_parts(model(features, labels), new), weight)
    assert float((found >= level).double().mean()) == pytest.approx(ACCEPTED, abs=0.04)
