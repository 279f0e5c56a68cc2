"""Tests of `vlltr_index.heads.moments`; what is fitted by moments has its twin in `test_plda`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import twins
from vlltr_index.heads.moments import class_sums, observation_weights, shrunk, unit_correlation


@settings(max_examples=60, deadline=None)
@given(
    owners=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=12),
    dim=st.integers(1, 4),
    spread=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_the_correlation_of_units_equals_its_twin(
    owners: list[tuple[int, int]], dim: int, spread: float, seed: int
) -> None:
    """Units of some images in any order, in classes of some units; a class without any; copies; one unit."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([size for _, size in owners])
    units = torch.arange(len(owners)).repeat_interleave(sizes)
    units = units[torch.randperm(len(units), generator=g)]
    labels = torch.tensor([owner for owner, _ in owners])[units]
    middle = torch.randn(len(owners), dim, generator=g, dtype=torch.float64)
    images = middle[units] + spread * torch.randn(len(units), dim, generator=g, dtype=torch.float64)
    found = unit_correlation(images, labels, units, 5)
    assert 0.0 <= found <= 1.0
    assert found == pytest.approx(twins.correlation_of(images, labels.tolist(), units.tolist()), abs=1e-6)


@pytest.mark.parametrize("correlation", [0.0, 0.25, 0.8])
def test_the_correlation_of_drawn_units_is_found(correlation: float) -> None:
    """Also where directions differ in how much images vary."""
    g = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.2, 3.0, 16)
    units = torch.arange(200).repeat_interleave(4)
    labels = units % 10
    of_class, of_unit, own = (torch.randn(n, 16, generator=g) for n in (10, 200, 800))
    images = 5.0 * of_class[labels] + scale * (
        correlation**0.5 * of_unit[units] + (1.0 - correlation) ** 0.5 * own
    )
    assert unit_correlation(images, labels, units, 10) == pytest.approx(correlation, abs=0.05)


def test_what_cannot_be_measured_counts_once() -> None:
    """Images by themselves, and classes of one unit, tell nothing of how alike a unit's images are."""
    images = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert unit_correlation(images, labels, torch.arange(6), 2) == 1.0
    assert unit_correlation(images, labels, labels, 2) == 1.0


def test_a_unit_counts_as_what_its_images_are_worth() -> None:
    """Five images count as one to five; the class mean weighs them so, and a burst of many does not outweigh it."""
    units = torch.tensor([0, 1, 1, 1, 1, 1])
    features = torch.tensor([[0.0], [1.0], [1.0], [1.0], [1.0], [1.0]])
    labels = torch.zeros(6, dtype=torch.int64)
    for correlation, worth in ((1.0, 1), (0.5, 1), (0.1, 3), (0.0, 5)):
        counts, sums = class_sums(features, labels, 1, observation_weights(units, correlation))
        assert counts.tolist() == [1 + worth]
        assert float(sums) == pytest.approx(worth)


@pytest.mark.parametrize("observations", [0, 10, 1000])
def test_a_covariance_is_shrunk_by_what_it_rests_on(observations: int) -> None:
    """All of it without an observation, less the more there are; the trace stays."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(max(observations, 2), 6, generator=g, dtype=torch.float64) * torch.arange(1.0, 7.0)
    covariance = rows.T @ rows / len(rows)
    for shrinkage in (1.0, 2.0, math.inf):
        found = shrunk(covariance, observations, shrinkage)
        torch.testing.assert_close(found, twins.shrunk(covariance, observations, shrinkage))
        assert float(found.trace()) == pytest.approx(float(covariance.trace()))
        sphere = float(covariance.trace()) / 6 * torch.eye(6, dtype=torch.float64)
        left = float((found - sphere).norm() / (covariance - sphere).norm())
        few = left == 0.0 if shrinkage == math.inf else left < 0.8
        many = left == 0.0 if shrinkage == math.inf else 0.85 < left < 1.0
        assert {0: left == 0.0, 10: few, 1000: many}[observations]
