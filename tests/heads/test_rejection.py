"""Tests of `vlltr_index.heads.rejection` against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.heads.test_plda import any_shared
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.rejection import FitWeights, directions, fit_parts, representatives, share_among
from vlltr_index.tensors import unit_rows

quick = settings(max_examples=40, deadline=None)


def drawn(classes: int, dim: int, seed: int) -> tuple[PLDA, Tensor, Tensor]:
    """A model, normalised images [7, D] and others [5, D]; float64."""
    g = torch.Generator().manual_seed(seed)
    images = unit_rows(torch.randn(12, dim, generator=g, dtype=torch.float64))
    counts = torch.randint(0, 4, (classes,), generator=g)
    sums = counts[:, None] * torch.randn(classes, dim, generator=g, dtype=torch.float64)
    model = PLDA(any_shared(dim, 0.7, seed), counts, sums, torch.zeros(classes, dim, dtype=torch.float64))
    return model, images[:7], images[7:]


@quick
@given(classes=st.integers(1, 5), dim=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_the_parts_are_those_of_a_loop(classes: int, dim: int, seed: int) -> None:
    """The best class, its ratio to a class without images, and the greatest cosine, image by image."""
    model, images, others = drawn(classes, dim, seed)
    unknown = PLDA(model.shared, torch.tensor([0]), torch.zeros(1, dim), torch.zeros(1, dim))
    found = fit_parts(model, images, directions(model.shared, others))
    for row, image in zip(found.tolist(), images, strict=True):
        best = max(model.log_likelihoods(image[None])[0].tolist())
        seen = (image - model.shared.centre) @ model.shared.basis
        apart = [(other - model.shared.centre) @ model.shared.basis for other in others]
        cosine = max(float(seen @ other / (seen.norm() * other.norm())) for other in apart)
        expected = [best, best - float(unknown.log_likelihoods(image[None])), cosine]
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert (fit_parts(model, images, others[:0])[:, 2] == 0.0).all()


def test_each_part_has_the_spread_of_the_first() -> None:
    """One that is the same for all images has no weight, and without weights the first counts alone."""
    parts = (
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 7.0, 0.1]) + 5.0
    )
    weights = FitWeights.of(parts)
    spread = parts.std(0)
    torch.testing.assert_close(weights.ratio * spread[1], spread[0])
    torch.testing.assert_close(weights.likeness * spread[2], spread[0])
    expected = [a + weights.ratio * b + weights.likeness * c for a, b, c in parts.tolist()]
    torch.testing.assert_close(weights.sum(parts), torch.tensor(expected))
    parts[:, 2] = 1.0
    assert FitWeights.of(parts).likeness == 0.0
    assert (
        FitWeights.of(torch.tensor([[1e9, 0.0, 0.0], [-1e9, 0.01, 0.01]])).likeness == 1e9
    )  # a head can be read
    assert torch.equal(FitWeights().sum(parts), parts[:, 0])


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30))
def test_a_unit_is_compared_with_once(images: list[tuple[int, int]]) -> None:
    """Where there are few, each unit of each class has one image."""
    labels = torch.tensor([label for label, _ in images])
    units = torch.tensor([10 * label + unit for label, unit in images])
    chosen = representatives(labels, units)
    assert sorted(units[chosen].tolist()) == sorted(set(units.tolist()))
    assert chosen.tolist() == sorted(chosen.tolist())


def test_of_many_images_small_classes_keep_all() -> None:
    """Large ones share what is left of 20,000; of more classes none has any."""
    counts = torch.tensor([30_000, 15_000, 8_000, 100, 1])
    labels = torch.arange(5).repeat_interleave(counts)
    kept = torch.bincount(labels[representatives(labels, torch.arange(len(labels)))])
    assert kept.tolist() == [6633, 6633, 6633, 100, 1]
    many = torch.arange(20_001)
    assert len(representatives(many, many)) == 0
    assert len(representatives(many[1:] - 1, many[1:])) == 20_000


def test_directions_are_normalised() -> None:
    """Also in float32, and of images in half precision."""
    model, images, _ = drawn(2, 4, 0)
    found = directions(model.shared, images.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))
    whole = (images - model.shared.centre) @ model.shared.basis
    torch.testing.assert_close(directions(model.shared, images), F.normalize(whole, dim=1))


def test_a_share_is_carried_on_to_more_classes() -> None:
    """By twice as many classes it grows as it did from half of them; it stays a share."""
    assert share_among(20, share=0.3, of_half=0.2, others=10) == pytest.approx(0.4)
    assert share_among(10, share=0.3, of_half=0.2, others=10) == pytest.approx(0.3)
    assert share_among(10, share=0.3, of_half=0.2, others=8) == pytest.approx(0.3 + 0.1 * 0.3219, abs=1e-4)
    assert share_among(40, share=0.9, of_half=0.6, others=10) == 1.0
