"""Tests of `vlltr_index.heads.weighing` against a general optimiser, and of what its values do on drawn data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize  # type: ignore[import-untyped]  # it has no types
from scipy.stats import t as student
from torch import Tensor

from vlltr_index.heads.fusion import Gate, log_frequencies
from vlltr_index.heads.weighing import (
    PLAINEST,
    SHRINKAGES,
    Covariances,
    HeldOutScores,
    fit_prior,
    fit_temperature,
    fit_weights,
    image_weights,
    level_with_best,
    paired_mean,
    plainest_covariances,
    share_range,
    usual_weights,
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
    """Image by image: what softmax(scores) is surprised by, if a tenth of an image more had been of any class."""
    unsure = 0.1 / (0.1 + len(labels))
    total = 0.0
    for row, label, weight in zip(scores.numpy(), labels.tolist(), weights.tolist(), strict=True):
        logs = row - row.max() - math.log(np.exp(row - row.max()).sum())
        total -= weight * ((1.0 - unsure) * logs[label] + unsure * logs.mean())
    return total


def rightly_labelled(scores: Tensor, labels: Tensor) -> Tensor:
    """By Bayes' rule, image by image: how probable it is that a label is not the one in 100 drawn at random."""
    chances = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        own = 0.99 / sum(math.exp(min(other - row[label], 700.0)) for other in row)
        chances.append(own / (own + 0.01 / len(row)))
    return torch.tensor(chances, dtype=torch.float64)


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


def test_covariances_are_the_plainest_of_those_that_are_likely_and_accurate() -> None:
    """Nearest to a noise of 1 where all are alike; a likelier setting that misses more images is not taken."""
    ones, alone = torch.ones(40).double(), torch.arange(40)
    nothing = torch.zeros(2, 40).double()
    assert plainest_covariances(lambda _: nothing, ones, alone) == PLAINEST

    def likely_at(best: Covariances, missed: float) -> Callable[[Covariances], Tensor]:
        def costs(covariances: Covariances) -> Tensor:
            away = abs(math.log2(covariances.noise / best.noise)) + (covariances.shrinkage != best.shrinkage)
            wrong = torch.zeros(40).double()
            wrong[: int(40 * missed)] = float(covariances == best)
            return torch.stack([torch.linspace(1.0, 1.1, 40).double() * (1.0 + away), wrong])

        return costs

    for shrinkage in SHRINKAGES:
        best = Covariances(shrinkage, 4.0)
        assert plainest_covariances(likely_at(best, 0.0), ones, alone) == best
        assert plainest_covariances(likely_at(best, 0.5), ones, alone) != best


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
    assert ends == (pytest.approx(30 / (30 + quantile**2), rel=1e-3), 1.0)
    assert share_range(hits, hits, torch.zeros(30, dtype=torch.int64)) is None


@quick
@given(images=st.integers(1, 30), classes=st.integers(2, 6), known=st.floats(-1, 6), power=powers, seed=seeds)
def test_the_temperature_is_the_likeliest(
    images: int, classes: int, known: float, power: int, seed: int
) -> None:
    """As a general optimiser finds it, for scores of any size: noise, all images right, all of them wrong."""
    labels, (scores,), weights = drawn(seed, images, classes, (known, power))
    found = fit_temperature(scores, labels, weights)
    unit = spread(scores)
    (_,), best = least(
        lambda x: loss_of(float(x[0]) / unit * scores, labels, weights), [0.0], [0.1], [1.0], [5.0]
    )
    assert 0.0 <= found < math.inf
    assert loss_of(found * scores, labels, weights) <= best + 1e-6 * (1.0 + abs(best))
    assert fit_temperature(scores + 100.0 * 10.0**power, labels, weights) == pytest.approx(
        found, rel=1e-4, abs=1e-9
    )


@quick
@given(
    images=st.integers(2, 30),
    classes=st.integers(2, 5),
    image=st.tuples(st.floats(-0.5, 5), powers),
    generative=st.tuples(st.floats(-0.5, 5), powers),
    text=st.tuples(st.floats(-0.5, 5), powers),
    seed=seeds,
)
def test_weights_are_the_most_probable(
    images: int,
    classes: int,
    image: tuple[float, int],
    generative: tuple[float, int],
    text: tuple[float, int],
    seed: int,
) -> None:
    """Parts of equal spread under the prior: visual ones alike, with a likeliest factor, the text at 0.

    Images count as much as their labels are right by the weights themselves.
    """
    labels, parts, weights = drawn(seed, images, classes, image, generative, text)
    found = fit_weights(HeldOutScores(labels, parts[0], parts[1], parts[2], weights))
    fused = found.image * parts[0] + found.generative * parts[1] + found.text * parts[2]
    weights = weights * rightly_labelled(fused, labels)
    units = [spread(part) for part in parts]
    a, b, told = (part / unit for part, unit in zip(parts, units, strict=True))
    (factor,), _ = least(
        lambda x: loss_of(float(x[0]) * (0.5 * (a + b)), labels, weights), [0.1], [1.0], [5.0]
    )
    width = 0.25 * max(factor, 1e-6)

    def loss(x: object) -> float:
        one, two, three = map(float, x)  # type: ignore[call-overload]  # an array
        apart = (one - factor / 2) ** 2 + (two - factor / 2) ** 2 + three**2
        return float(loss_of(one * a + two * b + three * told, labels, weights) + 0.5 * apart / width**2)

    half = factor / 2
    (one, two, three), best = least(
        loss, [half, half, 0.0], [factor, 0.1 * factor, half], [half, factor, half]
    )
    mine = found.image * units[0], found.generative * units[1], found.text * units[2]
    if three < 0.019 * (one + two + three):
        assert mine[2] < 1e-9  # where all factors vanish, so does that of the text
    elif three > 0.021 * (one + two + three):
        assert loss(mine) <= best + 1e-5 * (1.0 + abs(best))
    assert found.few_shot == found.text_only
    alone = [
        loss_of(f * parts[1], labels, weights)
        for f in (found.text_only.generative, fit_temperature(parts[1], labels, weights))
    ]
    assert alone[0] == pytest.approx(alone[1], rel=1e-5, abs=1e-5)
    assert (found.text_only.text, found.text_only.offset) == (found.text, 0.0)


def test_the_usual_weights_give_the_text_a_share_of_the_spread() -> None:
    """15 % of what the parts vary over the classes, beside a generative model at a twelfth; without a text none."""
    labels, (image, likelihoods, text), weights = drawn(0, 9, 4, (2.0, 0), (2.0, 2), (2.0, -1))
    found = usual_weights(HeldOutScores(labels, image, likelihoods, text, weights))
    assert (found.image, found.generative) == (0.0, 1 / 12)
    assert found.few_shot == found.text_only == Gate(1 / 12, found.text)
    seen, told = found.generative * spread(likelihoods), found.text * spread(text)
    assert told / (seen + told) == pytest.approx(0.15)
    for nothing in (None, torch.zeros_like(text)):
        assert usual_weights(HeldOutScores(labels, image, likelihoods, nothing, weights)).text == 0.0


def test_parts_that_are_not_there_have_no_weight() -> None:
    """Without a classifier the likelihoods have the whole factor; without a text there is none."""
    labels, (image, likelihoods, text), weights = drawn(0, 60, 4, (2.0, 0), (2.0, 0), (2.0, 0))
    alone = fit_weights(HeldOutScores(labels, None, likelihoods, None, weights))
    assert (alone.image, alone.text) == (0.0, 0.0)
    weights = weights * rightly_labelled(alone.generative * likelihoods, labels)
    assert alone.generative == pytest.approx(fit_temperature(likelihoods, labels, weights), rel=1e-5)
    told = fit_weights(HeldOutScores(labels, None, likelihoods, text, weights))
    assert told.image == 0.0
    assert told.text > 0.0
    seen = fit_weights(HeldOutScores(labels, image, likelihoods, None, weights))
    assert seen.text == 0.0
    assert seen.image > 0.0


def test_texts_of_other_classes_get_no_weight() -> None:
    """Permuted between the classes they count next to nothing beside images that say most; in their place they do."""
    permuted, true = list[float](), list[float]()
    for seed in range(8):
        labels, (image, likelihoods, text), weights = drawn(seed, 300, 10, (3.0, 0), (3.0, 1), (3.0, 0))
        order = (torch.arange(10) + 1 + seed) % 10
        for found, part in ((permuted, text[:, order]), (true, text)):
            weighed = fit_weights(HeldOutScores(labels, image, likelihoods, part, weights))
            told = weighed.text * spread(part)
            seen = weighed.image * spread(image) + weighed.generative * spread(likelihoods)
            found.append(told / (told + seen))
    assert permuted.count(0.0) >= 6
    assert max(permuted) < 0.1 < min(true)


def test_a_wrong_label_decides_nothing() -> None:
    """Of 300 images that the parts know well; by the likelihood alone they would count a quarter less."""
    labels, (image, likelihoods, text), weights = drawn(0, 300, 10, (9.0, 0), (9.0, 1), (3.0, 0))
    wrong = labels.clone()
    wrong[0] = (labels[0] + 1) % 10
    right, robust = (
        fit_weights(HeldOutScores(said, image, likelihoods, text, weights)) for said in (labels, wrong)
    )
    assert robust.image == pytest.approx(right.image, rel=0.02)
    assert robust.generative == pytest.approx(right.generative, rel=0.02)
    assert fit_temperature(image, wrong, weights) < 0.8 * fit_temperature(image, labels, weights)


@pytest.mark.parametrize("images", [1, 20])
def test_weights_are_bounded_where_all_images_are_right(images: int) -> None:
    """Then the surest factor would be the likeliest: it stops where so few images have been seen."""
    labels = torch.arange(images) % 4
    right = torch.eye(4)[labels]
    found = fit_weights(HeldOutScores(labels, right, 1e-3 * right, right, torch.ones(images).double()))
    scores = found.image * right + found.generative * 1e-3 * right + found.text * right
    surest = scores.double().softmax(1).amax(1)
    assert 1.0 - 2.0 / (1.0 + images) < float(surest.min()) < 1.0 - 0.01 / (1.0 + images)


def test_parts_that_tell_no_class_apart_have_no_weight() -> None:
    """One class alone."""
    labels, ones = torch.zeros(5, dtype=torch.int64), torch.ones(5).double()
    for noise in (torch.zeros(5, 1), torch.randn(5, 1, generator=torch.Generator().manual_seed(0))):
        found = fit_weights(HeldOutScores(labels, noise, 100 * noise, noise, ones))
        assert (found.image, found.generative, found.text) == (0.0, 0.0, 0.0)
        assert 0.0 < found.text_only.generative < math.inf


@pytest.mark.parametrize("sharp", [0.5, 1.0, 2.0])
def test_weights_under_a_prior_make_up_for_scores_that_are_too_sure(sharp: float) -> None:
    """Of images drawn by the frequencies: scores that are likelihoods need both weights at 1, sharper ones less."""
    rng = torch.Generator().manual_seed(3)
    counts = torch.tensor([400, 100, 40, 10])
    labels = torch.arange(4).repeat_interleave(counts)
    centres = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    images = centres[labels] + torch.randn(len(labels), 3, generator=rng, dtype=torch.float64)
    likelihoods = -0.5 * torch.cdist(images, centres).square()
    found = fit_prior(sharp * likelihoods, log_frequencies(counts), labels, torch.arange(len(labels)))
    assert found.frequency == pytest.approx(1.0, abs=0.25)
    assert found.parts * sharp == pytest.approx(1.0, abs=0.25)


def test_without_evidence_weights_under_a_prior_are_one() -> None:
    """As where all classes are equally common and no score tells them apart."""
    labels = torch.arange(8) % 4
    found = fit_prior(torch.zeros(8, 4), log_frequencies(torch.full((4,), 2)), labels, torch.arange(8))
    assert (found.frequency, found.parts) == (pytest.approx(1.0), pytest.approx(1.0))
