"""Tests of `vlltr_index.heads.plda` against loops and whole covariance matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import twins
from tests.support.rounding import rounding
from vlltr_index.errors import InputError
from vlltr_index.heads.configuration import SHRINKAGES
from vlltr_index.heads.moments import Moments, class_sums
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.plda_fit import fit_plda, predict
from vlltr_index.heads.units import number_observations

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
Drawn = tuple[Tensor, Tensor, Tensor]


def drawn(
    counts: list[int], told: list[bool], dim: int, views: int = 1, alike: str = "no", seed: int = 0
) -> Drawn:
    """Features [V, N, D] about class means, labels and texts that say something of the means; float64."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), dim, generator=g, dtype=torch.float64)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = 0.5 * torch.randn(views, len(labels), dim, generator=g, dtype=torch.float64)
    if alike == "all":
        noise = noise[:1, :1].expand_as(noise)
    features = 3.0 + centres[labels] + noise
    if alike == "some":
        labels, features = torch.cat([labels, labels]), torch.cat([features, features], 1)
    texts = centres + torch.randn(len(counts), dim, generator=g, dtype=torch.float64) + 1.0
    return features, labels, texts * torch.tensor(told)[:, None]


def whole(shared: SharedGaussian) -> dict[str, Tensor]:
    """The shared parameters in the features' own coordinates, as the twin has them."""
    back = torch.linalg.inv(shared.basis)
    return {
        "centre": shared.centre,
        "sigma": torch.linalg.inv(shared.basis @ shared.basis.T),
        "spread": back.T @ shared.spread.diag() @ back,
        "blank": back.T @ shared.blank.diag() @ back,
        "text_centre": shared.text_centre,
        "text_map": shared.text_map @ back,
        "text_r2": torch.tensor(shared.text_r2, dtype=torch.float64),
    }


def any_shared(dim: int, seed: int) -> SharedGaussian:
    """Parameters of no fit."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.eye(dim, dtype=torch.float64)
    basis = basis + 0.3 * torch.randn(dim, dim, generator=g, dtype=torch.float64) / dim
    centre, text_centre, spread = torch.randn(3, dim, generator=g, dtype=torch.float64)
    text_map = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    spread = spread.square() + 0.02
    return SharedGaussian(centre, basis, spread, text_centre, text_map, text_r2=0.6)


def apart(log_likelihoods: Tensor) -> Tensor:
    """Less the first class's: a constant is left open."""
    return log_likelihoods - log_likelihoods[:, :1]


@settings(max_examples=20, deadline=None)
@given(
    classes=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=14),
    dim=st.integers(1, 6),
    views=st.integers(1, 3),
    alike=st.sampled_from(["no", "no", "some", "all"]),
    size=st.integers(1, 3),
    correlation=st.sampled_from([0.0, 0.4, 1.0]),
    shrinkage=st.sampled_from(SHRINKAGES),
    seed=seeds,
)
def test_the_fit_equals_its_twin(
    classes: list[tuple[int, bool]],
    dim: int,
    views: int,
    alike: str,
    size: int,
    correlation: float,
    shrinkage: float,
    seed: int,
) -> None:
    """Classes without images, with one, without text; one class; more dimensions than images; duplicates; views; units
    of several images."""
    counts, told = [n for n, _ in classes], [there for _, there in classes]
    counts[0] = max(counts[0], 1)
    features, labels, texts = drawn(counts, told, dim, views, alike, seed)
    units = number_observations(labels, [str(n // size) for n in range(len(labels))])
    expected = twins.shared_gaussian(
        features, labels.tolist(), units.tolist(), texts, correlation, shrinkage=shrinkage
    )
    moments = Moments.of(features, labels, units, len(counts), correlation)
    found = fit_plda(moments, texts, shrinkage).shared.whole
    for name, value in expected.items():
        torch.testing.assert_close(whole(found)[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert min(found.spread.tolist()) >= 0.02


@settings(max_examples=8, deadline=None)
@given(
    classes=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=6),
    dim=st.integers(6, 24),
    views=st.integers(1, 2),
    alike=st.sampled_from(["no", "no", "some", "all"]),
    shrinkage=st.sampled_from(SHRINKAGES),
    seed=seeds,
)
def test_fewer_images_than_dimensions_equal_the_whole_covariances(
    classes: list[tuple[int, bool]],
    dim: int,
    views: int,
    alike: str,
    shrinkage: float,
    seed: int,
) -> None:
    """Images asked about, classes added by images, by a text, and by both lie outside the span of what was fitted."""
    counts, told = [n for n, _ in classes], [there for _, there in classes]
    counts[0] = max(counts[0], 1)
    features, labels, texts = drawn(counts, told, dim, views, alike, seed)
    units = number_observations(labels, [str(n) for n in range(len(labels))])
    expected = twins.shared_gaussian(
        features, labels.tolist(), units.tolist(), texts, 1.0, shrinkage=shrinkage
    )
    moments = Moments.of(features, labels, units, len(counts))
    fitted = fit_plda(moments, texts, shrinkage)
    added, own, more = drawn([2, 0, 1], [False, True, True], dim, seed=seed + 1)
    added_counts, added_sums = class_sums(added[0], own, 3)
    all_counts = torch.cat([moments.counts, added_counts])
    sums = torch.cat([moments.sums, added_sums])
    prototypes = torch.cat([texts, more])
    images = torch.cat([features[0, ::5], added[0, :1], 3.0 + torch.randn(1, dim).double()])
    trust = torch.ones(len(all_counts), dtype=torch.float64)
    wanted = twins.log_likelihoods(expected, all_counts.tolist(), sums, prototypes, trust, images=images)
    model = PLDA(fitted.shared, all_counts, sums, predict(fitted.shared, prototypes))
    for one in (model, model.whole):
        torch.testing.assert_close(apart(one.log_likelihoods(images)), apart(wanted), rtol=1e-8, atol=1e-8)
    assert model.whole.shared.basis.shape == (dim, dim)


def test_float32_tells_classes_apart_in_pictures_far_from_all() -> None:
    """What their log-likelihoods share is in the millions, and is rounded once: not with each term of a sum.

    All features of an image are equal, so that in one product with what is shared the roundings would add up.
    """
    dim = 1024
    one, none = torch.ones(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    shared = SharedGaussian(none, one.diag(), one, none, torch.zeros(dim, dim))  # z is x
    g = torch.Generator().manual_seed(0)
    counts = 5_000 * torch.arange(2, 9)
    means = 0.05 * torch.randn(7, dim, generator=g, dtype=torch.float64)
    model = PLDA(shared, counts, counts[:, None] * means, torch.zeros(7, dim))
    images = torch.linspace(75.0, 125.0, 64)[:, None].expand(-1, dim).double()
    expected = model.log_likelihoods(images)
    mean, variance = model.posterior
    weights = torch.cat([0.5 - 0.5 / variance, mean / variance], 1).abs()
    magnitudes = torch.cat([images.square(), images], 1) @ weights.T
    magnitudes += (0.5 * (mean.square() / variance + variance.log()).sum(1)).abs()
    # Each term: its square, weight and product, and 2 * dim sums with the offset; then what all share is subtracted.
    found = model.log_likelihoods(images.float()).double()
    error = rounding(2 * dim + 3) * magnitudes + rounding(1) * found.abs()
    assert float(expected.abs().min()) > 1e6
    assert bool(((apart(found) - apart(expected)).abs() <= error + error[:, :1]).all())


def test_many_classes_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-likelihoods are the same, with texts and without."""
    counts = [0, 3, 1, 0, 2, 5, 1]
    features, labels, texts = drawn(counts, [True, False, True, True, False, True, True], 4, seed=3)
    found_counts, sums = class_sums(features[0], labels, len(counts))
    shared = any_shared(4, 5)
    images = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole_model = PLDA(shared, found_counts, sums, predict(shared, texts))
    expected = [model.log_likelihoods(images) for model in (whole_model, whole_model.without_text)]
    monkeypatch.setattr("vlltr_index.heads.plda._CLASSES_AT_ONCE", 3)
    model = PLDA(shared, found_counts, sums, predict(shared, texts))
    assert model.without_text is not model
    found = [one.log_likelihoods(images) for one in (model, model.without_text)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@quick
@given(
    classes=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6),
    dim=st.integers(1, 5),
    seed=seeds,
)
def test_log_likelihoods_equal_their_twin(classes: list[tuple[int, bool]], dim: int, seed: int) -> None:
    """A class of n images, none too, has log N(x; m, V) with the whole covariance; in float32 as well."""
    counts, told = [n for n, _ in classes], [there for _, there in classes]
    features, labels, texts = drawn(counts, told, dim, seed=seed)
    shared = any_shared(dim, seed + 1)
    found_counts, sums = class_sums(features[0], labels, len(counts))
    assert found_counts.tolist() == counts
    g = torch.Generator().manual_seed(seed)
    trust = torch.rand(len(counts), generator=g, dtype=torch.float64).round(decimals=1)
    model = PLDA(shared, found_counts, sums, predict(shared, texts), trust)
    images = torch.randn(3, dim, generator=g, dtype=torch.float64)
    expected = twins.log_likelihoods(whole(shared), counts, sums, texts, trust, images)
    found = model.log_likelihoods(images)
    torch.testing.assert_close(apart(found), apart(expected), rtol=1e-8, atol=1e-8)
    size = float(found.abs().max())
    narrow = model.log_likelihoods(images.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), found, rtol=1e-3, atol=1e-4 * (1.0 + size))
    assert model.log_likelihoods(images.half()).dtype == torch.float32


@quick
@given(count=st.integers(0, 4), told=st.booleans(), dim=st.integers(1, 5), seed=seeds)
def test_a_class_knows_nothing_of_the_others(count: int, told: bool, dim: int, seed: int) -> None:
    """With the same shared parameters its likelihood is the same in a model of some classes, in any order."""
    features, labels, texts = drawn([3, 2, 0, count], [True, False, True, told], dim, seed=seed)
    shared = any_shared(dim, seed)
    model = PLDA(
        shared,
        *class_sums(features[0], labels, 4),
        predict(shared, texts),
        torch.tensor([1.0, 1.0, 0.5, 0.2]).double(),
    )
    some = model.select(torch.tensor([2, 0, 3])).log_likelihoods(features[0])
    torch.testing.assert_close(some, model.log_likelihoods(features[0])[:, [2, 0, 3]], rtol=1e-10, atol=1e-10)


def test_texts_predict_classes_that_have_no_image() -> None:
    """Where texts say where classes lie, images of classes known by text alone are named; R^2 says how well."""
    g = torch.Generator().manual_seed(0)
    texts = torch.randn(40, 6, generator=g)
    labels = torch.arange(40).repeat_interleave(5)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=g)).Q
    features = (2.0 * texts @ turned)[labels] + 0.3 * torch.randn(200, 6, generator=g)
    seen = labels < 30
    moments = Moments.of(features[None, seen], labels[seen], torch.arange(150), 40)
    shared = fit_plda(moments, texts).shared
    assert shared.text_r2 > 0.9
    counts, sums = moments.counts, moments.sums
    model = PLDA(shared, counts, sums, predict(shared, texts))
    right = model.log_likelihoods(features[~seen]).argmax(1) == labels[~seen]
    assert float(right.float().mean()) > 0.9
    without = PLDA(shared, counts, sums, torch.zeros_like(texts))
    mean, variance = without.posterior
    assert bool((mean[30:] == 0).all())
    torch.testing.assert_close(variance[30], 1.0 + shared.blank)


def test_a_text_that_its_images_contradict_counts_for_nothing() -> None:
    """A class with another one's text is known by its images alone, as if it had no text; with its own it is not."""
    g = torch.Generator().manual_seed(0)
    texts, labels = 3.0 * torch.randn(40, 6, generator=g), torch.arange(40).repeat_interleave(3)
    features = texts[labels] + torch.randn(120, 6, generator=g)
    moments = Moments.of(features[None], labels, torch.arange(120), 40)
    shared, counts, sums = fit_plda(moments, texts).shared, moments.counts, moments.sums
    swapped, none = texts.clone(), texts.clone()
    swapped[:2], none[:2] = texts[[1, 0]], 0.0
    own, others, blank = (
        PLDA(shared, counts, sums, predict(shared, t)).posterior[0] for t in (texts, swapped, none)
    )
    torch.testing.assert_close(others, blank)
    assert float((own[:2] - blank[:2]).norm(dim=1).min()) > 0.1


def test_texts_of_few_classes_that_say_nothing_predict_nothing() -> None:
    """Random texts: R^2 on classes left out is about zero, as means are taken inside the folds; then T is zero."""
    found = []
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        labels = torch.arange(10).repeat_interleave(20)
        features = torch.randn(10, 64, generator=g)[labels] + torch.randn(200, 64, generator=g)
        moments = Moments.of(features[None], labels, torch.arange(200), 10)
        shared = fit_plda(moments, torch.randn(10, 64, generator=g)).shared
        found.append(shared.text_r2)
        assert bool((shared.text_map == 0).all()) is (shared.text_r2 == 0.0)
    assert sum(r2 == 0.0 for r2 in found) >= 6
    assert max(found) < 0.02


def test_units_are_the_observations() -> None:
    """Each image shown five times gives what it gives once, if copies count once, and too sure a model if not."""
    features, labels, texts = drawn([4] * 8, [True] * 8, 5)
    copies, again = features.repeat_interleave(5, 1), labels.repeat_interleave(5)
    once = Moments.of(features, labels, torch.arange(32), 8)
    grouped = Moments.of(copies, again, torch.arange(32).repeat_interleave(5), 8)
    alone = Moments.of(copies, again, torch.arange(160), 8)
    for moments, same in ((grouped, True), (alone, False)):
        assert torch.equal(moments.counts, once.counts) is same
        assert torch.allclose(moments.within, once.within) is same
        assert (
            torch.allclose(fit_plda(moments, texts).shared.spread, fit_plda(once, texts).shared.spread)
            is same
        )


@pytest.mark.parametrize("views", [1, 3])
def test_class_means_keep_their_distances_where_images_are_few(views: int) -> None:
    """Lambda is what class means were drawn with, whichever way S was shrunk: nothing is left of it at the bound, nor
    is more taken off where views of an image differ as much as images do."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60).repeat_interleave(3)
    scale = torch.linspace(0.2, 2.0, 24).double()
    means = 2.0 * torch.randn(60, 24, generator=g, dtype=torch.float64) * scale
    images = means[labels] + torch.randn(180, 24, generator=g, dtype=torch.float64) * scale
    others = torch.randn(views - 1, 180, 24, generator=g, dtype=torch.float64) * 2.0 * scale
    features = torch.cat([images[None], images + others])
    moments = Moments.of(features, labels, torch.arange(180), 60)
    for shrinkage in SHRINKAGES:
        shared = fit_plda(moments, torch.zeros(60, 24), shrinkage).shared
        back = torch.linalg.inv(shared.basis)
        between = (back.T @ shared.spread.diag() @ back).trace()
        assert float(between) == pytest.approx(float((2.0 * scale).square().sum()), rel=0.2)


@pytest.mark.parametrize(
    ("counts", "same"), [([1], False), ([2, 2, 2], True), ([1, 1, 1], True), ([1, 1, 1], False), ([5], False)]
)
def test_likelihoods_are_finite_where_nothing_can_be_estimated(counts: list[int], same: bool) -> None:
    """One image, one class, classes of one image shown again and again, all images the same: sober likelihoods."""
    features, labels, texts = drawn(counts, [True] * len(counts), 4, alike="all")
    if same and len(set(counts)) == 1 and counts[0] == 1:
        features = features[:, :1].expand_as(features)
    moments = Moments.of(features.float(), labels, torch.arange(len(labels)), len(counts))
    model = fit_plda(moments, texts)
    other = features[0].float() + torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for images in (features[0].float(), other):
        assert float(model.log_likelihoods(images).abs().max()) < 1e3


def test_the_fit_refuses_values_that_are_not_finite() -> None:
    """They would make every class's model NaN."""
    features, labels, texts = drawn([2, 2], [True, True], 3)
    units = torch.arange(4)
    with pytest.raises(InputError, match="features must be finite"):
        Moments.of(features * torch.tensor([1.0, torch.nan, 1.0]), labels, units, 2)
    with pytest.raises(InputError, match="prototypes must be finite"):
        fit_plda(Moments.of(features, labels, units, 2), texts * torch.tensor([1.0, torch.nan, 1.0]))
