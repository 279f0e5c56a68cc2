"""Tests of `vlltr_index.heads.weighing` against a general optimiser, and of what its values do on drawn data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import t as student
from torch import Tensor

from vlltr_index.heads.weighing import (
    fit_factors,
    fit_temperature,
    image_weights,
    level_with_best,
    paired_mean,
    robust_nll,
    share_range,
)

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
powers = st.integers(-3, 3)


def drawn(
    seed: int, images: int, classes: int, *parts: tuple[float, int]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Labels, parts that know them so well and are of such a power of ten, and weights; float64."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=g)
    right = torch.eye(classes, dtype=torch.float64)[labels]
    noise = [torch.randn(images, classes, generator=g, dtype=torch.float64) for _ in parts]
    scores = [10.0**power * (known * right + n) for (known, power), n in zip(parts, noise, strict=True)]
    return (
        labels,
        scores,
        image_weights(labels, torch.randint(0, 9, (classes,), generator=g), torch.arange(images)),
    )


def loss_of(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Image by image: -log(0.99 p + 0.01 / C), where p is the probability of its class by softmax(scores).

    It is that if a tenth of an image more had been of any class.
    """
    unsure = 0.1 / (0.1 + len(labels))
    total = 0.0
    for row, label, weight in zip(scores.numpy(), labels.tolist(), weights.tolist(), strict=True):
        logs = row - row.max() - math.log(np.exp(row - row.max()).sum())
        own = math.exp((1.0 - unsure) * logs[label] + unsure * logs.mean())
        total -= weight * math.log(0.99 * own + 0.01 / len(row))
    return total


def spread(part: Tensor) -> float:
    """The mean over images of the standard deviation over classes."""
    return float(np.mean([np.std(row) for row in part.numpy()]))


def least(loss: object, *starts: list[float]) -> tuple[list[float], float]:
    """Where a loss of non-negative factors is least, and how low it is, by L-BFGS."""
    found = [
        minimize(loss, start, bounds=[(0.0, None)] * len(start), method="L-BFGS-B", tol=1e-14)
        for start in starts
    ]
    best = min(found, key=lambda result: float(result.fun))
    return list(map(float, best.x)), float(best.fun)


def test_images_of_a_class_count_by_the_root_of_its_size() -> None:
    """n^-1/2, in sum as many as there are units; a class that was never trained counts as one of one image."""
    labels, counts = torch.tensor([0, 0, 1, 2]), torch.tensor([4, 1, 0])
    weights = image_weights(labels, counts, torch.arange(4))
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 1.0, 1.0]).double() * 4 / 3)
    weights = image_weights(labels, counts, torch.tensor([7, 7, 1, 2]))
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.25, 1.0, 1.0]).double() * 3 / 2.5)


def test_settings_within_a_standard_error_are_level_with_the_best() -> None:
    """One that is level by chance is, one that is worse for all is not; copies prove nothing."""
    g = torch.Generator().manual_seed(0)
    best = torch.rand(40, generator=g, dtype=torch.float64)
    level = best + 0.01 + 0.5 * torch.tensor([1.0, -1.0]).double().repeat(20)
    worse = best + 0.1 + 0.01 * torch.randn(40, generator=g, dtype=torch.float64)
    ones, alone = torch.ones(40).double(), torch.arange(40)
    assert level_with_best(torch.stack([worse, level, best]), ones, alone).tolist() == [1, 2]
    assert level_with_best(best[None], ones, alone).tolist() == [0]
    sure = torch.tensor([0.4, 0.1, -0.2]).double().repeat_interleave(30)
    costs, ones = torch.stack([sure, torch.zeros(90).double()]), torch.ones(90).double()
    assert level_with_best(costs, ones, torch.arange(90)).tolist() == [1]
    assert level_with_best(costs, ones, torch.arange(3).repeat_interleave(30)).tolist() == [0, 1]


@quick
@given(images=st.integers(1, 20), seed=seeds)
def test_the_error_of_a_mean_is_of_units(images: int, seed: int) -> None:
    """As unit by unit: the squares of the weighted sums of what differs from the mean; of one unit nothing is known."""
    g = torch.Generator().manual_seed(seed)
    differences, weights = torch.randn(2, images, generator=g, dtype=torch.float64)
    weights = weights.abs() + 0.1
    units = torch.randint(0, 6, (images,), generator=g)
    means, errors = paired_mean(differences[None], weights, units)
    share = (weights / weights.sum()).tolist()
    mean = sum(s * d for s, d in zip(share, differences.tolist(), strict=True))
    sums = dict.fromkeys(units.tolist(), 0.0)
    for unit, s, d in zip(units.tolist(), share, differences.tolist(), strict=True):
        sums[unit] += s * (d - mean)
    assert float(means) == pytest.approx(mean)
    error = math.inf
    if len(sums) > 1:
        squares = sum(total**2 for total in sums.values())
        error = math.sqrt(squares * len(sums) / (len(sums) - 1))
    assert float(errors) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("classes", [4, 12, 40])
@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (8.0, 1.0), (0.5, 0.5)])
def test_the_range_of_a_share_covers_that_of_all_classes(classes: int, a: float, b: float) -> None:
    """In 95 of 100 draws of classes that differ, to within what 400 draws tell; of images alone it would not."""
    rng = np.random.default_rng(0)
    owners = torch.arange(classes).repeat_interleave(20)
    inside = 0
    for _ in range(400):
        hits = torch.from_numpy(rng.random((classes, 20)) < rng.beta(a, b, (classes, 1))).double().flatten()
        ends = share_range(hits, torch.ones_like(hits), owners)
        assert ends is not None
        inside += ends[0] <= a / (a + b) <= ends[1]
    assert inside >= 0.92 * 400


def test_the_range_of_a_share_at_its_ends() -> None:
    """All right: Wilson's interval of the images, with Student's quantile; a single class says nothing."""
    hits = torch.ones(30, dtype=torch.float64)
    classes = torch.arange(30) // 3
    ends = share_range(hits, hits, classes)
    assert ends is not None
    quantile = student.ppf(0.975, 9)
    assert ends == (pytest.approx(30 / (30 + quantile**2)), 1.0)
    assert share_range(hits, hits, torch.zeros(30, dtype=torch.int64)) is None


def test_the_loss_is_that_of_labels_of_which_one_in_a_hundred_is_random() -> None:
    scores = torch.tensor([[9.0, 0.0, 1.0], [-800.0, 0.0, 800.0]]).double()
    found = robust_nll(scores.log_softmax(1), torch.tensor([0, 0]))
    right = math.exp(9) / (math.exp(9) + 1 + math.e)
    expected = [-math.log(0.99 * right + 0.01 / 3), -math.log(0.01 / 3)]
    assert found.tolist() == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(images=st.integers(1, 30), classes=st.integers(2, 6), known=st.floats(1, 6), power=powers, seed=seeds)
def test_the_temperature_is_the_likeliest(
    images: int, classes: int, known: float, power: int, seed: int
) -> None:
    """As a general optimiser finds it, for scores of any size; a constant of the image changes nothing."""
    labels, (scores,), weights = drawn(seed, images, classes, (known, power))
    found = fit_temperature(scores, labels, weights)
    unit = spread(scores)
    _, best = least(
        lambda x: loss_of(float(x[0]) / unit * scores, labels, weights), [0.1], [1.0], [5.0], [found * unit]
    )
    assert 0.0 <= found < math.inf
    assert loss_of(found * scores, labels, weights) <= best + 1e-6 * (1.0 + abs(best))
    assert fit_temperature(scores + 100.0 * 10.0**power, labels, weights) == pytest.approx(
        found, rel=1e-4, abs=1e-9
    )


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(2, 30),
    classes=st.integers(2, 5),
    linear=st.one_of(st.none(), st.tuples(st.floats(1, 5), powers)),
    generative=st.tuples(st.floats(1, 5), powers),
    text=st.one_of(st.none(), st.tuples(st.floats(-0.5, 5), powers)),
    seed=seeds,
)
def test_factors_are_the_most_probable(
    images: int,
    classes: int,
    linear: tuple[float, int] | None,
    generative: tuple[float, int],
    text: tuple[float, int] | None,
    seed: int,
) -> None:
    """As a general optimiser finds them: parts of equal spread under the prior, whose mean is the likeliest common
    factor for the visual parts and 0 for the text, and whose standard deviation is a quarter of that factor."""
    given_parts = [part for part in (generative, linear, text) if part is not None]
    labels, parts, weights = drawn(seed, images, classes, *given_parts)
    visual = len(parts) - (text is not None)
    found = fit_factors(parts[:visual], parts[-1] if text is not None else None, labels, weights)
    units = [spread(part) for part in parts]
    scaled = [part / unit for part, unit in zip(parts, units, strict=True)]
    middle = sum(scaled[:visual], torch.zeros_like(scaled[0])) / visual
    (common,), lowest = least(lambda x: loss_of(float(x[0]) * middle, labels, weights), [0.1], [1.0], [5.0])
    mine = [factor * unit for factor, unit in zip(found, units, strict=True)]
    assert min(mine) >= 0.0
    if len(parts) == 1:
        assert loss_of(mine[0] * middle, labels, weights) <= lowest + 1e-6 * (1.0 + abs(lowest))
        return
    means = [common / visual] * visual + [0.0] * (len(parts) - visual)

    def loss(x: object) -> float:
        values = list(map(float, x))  # type: ignore[call-overload]  # an array
        scores = sum((v * part for v, part in zip(values, scaled, strict=True)), torch.zeros_like(middle))
        apart = sum((v - mean) ** 2 for v, mean in zip(values, means, strict=True))
        return loss_of(scores, labels, weights) + 0.5 * apart / (0.25 * max(common, 1e-6)) ** 2

    _, best = least(loss, means, mine, [common] * len(parts))
    assert loss(mine) <= best + 1e-5 * (1.0 + abs(best))


def test_parts_that_are_not_there_have_no_factor() -> None:
    """One visual part alone has the likeliest factor."""
    labels, (linear, likelihoods, text), weights = drawn(0, 60, 4, (2.0, 0), (2.0, 0), (2.0, 0))
    (alone,) = fit_factors([likelihoods], None, labels, weights)
    assert alone == fit_temperature(likelihoods, labels, weights)
    assert len(fit_factors([likelihoods, linear], None, labels, weights)) == 2
    generative, told = fit_factors([likelihoods], text, labels, weights)
    assert min(generative, told) > 0.0
    for nothing in (torch.zeros_like(text), torch.ones_like(text)):
        generative, told = fit_factors([likelihoods], nothing, labels, weights)
        assert generative == pytest.approx(alone, rel=1e-3)
        assert told == 0.0


def test_texts_of_other_classes_get_no_factor() -> None:
    """Permuted between the classes they count next to nothing beside images that say most; in their place they do."""
    permuted, true = list[float](), list[float]()
    for seed in range(8):
        labels, (image, likelihoods, text), weights = drawn(seed, 300, 10, (3.0, 0), (3.0, 1), (3.0, 0))
        order = (torch.arange(10) + 1 + seed) % 10
        for found, part in ((permuted, text[:, order]), (true, text)):
            one, other, told = fit_factors([likelihoods, image], part, labels, weights)
            seen = one * spread(likelihoods) + other * spread(image)
            found.append(told * spread(part) / (told * spread(part) + seen))
    assert permuted.count(0.0) >= 6
    assert max(permuted) < 0.1 < min(true)


def test_a_wrong_label_decides_nothing() -> None:
    """Of 300 images that the parts know well; by the likelihood alone they would count a quarter less."""
    labels, (image, likelihoods, text), weights = drawn(0, 300, 10, (9.0, 0), (9.0, 1), (3.0, 0))
    wrong = labels.clone()
    wrong[0] = (labels[0] + 1) % 10
    right, robust = (fit_factors([likelihoods, image], text, said, weights) for said in (labels, wrong))
    assert robust[:2] == pytest.approx(right[:2], rel=0.05)

    def likeliest(said: Tensor) -> float:
        (factor,), _ = least(
            lambda x: float(
                torch.nn.functional.cross_entropy(float(x[0]) * image, said, reduction="none") @ weights
            ),
            [1.0],
        )
        return factor

    assert likeliest(wrong) < 0.8 * likeliest(labels)


@pytest.mark.parametrize("images", [1, 20])
def test_factors_are_bounded_where_all_images_are_right(images: int) -> None:
    """Then the surest factor would be the likeliest: it stops where so few images have been seen."""
    labels = torch.arange(images) % 4
    right = torch.eye(4)[labels]
    factors = fit_factors([1e-3 * right, right], right, labels, torch.ones(images).double())
    scores = factors[0] * 1e-3 * right + factors[1] * right + factors[2] * right
    surest = scores.double().softmax(1).amax(1)
    assert 1.0 - 2.0 / (1.0 + images) < float(surest.min()) < 1.0 - 0.01 / (1.0 + images)


def test_a_part_that_tells_no_class_apart_is_taken_as_it_is() -> None:
    """One class alone: any factor is as good, and all are finite."""
    labels, ones = torch.zeros(5, dtype=torch.int64), torch.ones(5).double()
    for noise in (torch.zeros(5, 1), torch.randn(5, 1, generator=torch.Generator().manual_seed(0))):
        assert fit_factors([noise, 100 * noise], noise, labels, ones) == [1.0, 1.0, 0.0]
        assert fit_temperature(noise, labels, ones) == 1.0
