"""Tests of `vlltr_index.evaluation.metrics` against loops, naive resampling and known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.studies.rejections import auroc, fpr95
from tests.support import twins
from vlltr_index.errors import InputError
from vlltr_index.evaluation.metrics import (
    ClassFigures,
    EvaluationReport,
    Measure,
    accuracy_report,
    bins,
    expected_calibration_error,
    few5,
    paired_difference,
    share_interval,
)
from vlltr_index.heads.weighing import balanced_accuracy

quick = settings(max_examples=40, deadline=None)


def test_bins_at_their_bounds() -> None:
    """The two conventions differ at 20 and 100; classes without training images are apart."""
    counts = torch.tensor([0, 1, 5, 6, 19, 20, 21, 99, 100, 101])
    release = ["new", *["few"] * 5, "medium", "medium", "many", "many"]
    lift = ["new", *["few"] * 4, *["medium"] * 4, "many"]
    assert bins(counts) == release
    assert bins(counts, "lift") == lift
    assert few5(counts).tolist() == [False, True, True, *[False] * 7]
    with pytest.raises(InputError) as error:
        bins(counts, "paper")  # type: ignore[arg-type] # on purpose
    assert str(error.value) == "convention must be 'release' or 'lift', got 'paper'"
    with pytest.raises(InputError, match=r"class_counts must be integers, got torch\.float32"):
        bins(counts.float())


def test_accuracy_by_shot() -> None:
    """Values and image counts of each bin; empty bins are left out; top-5 needs five predictions."""
    counts = torch.tensor([200, 50, 10, 3])
    labels = torch.tensor([0, 0, 1, 2, 3, 3])
    top = torch.tensor([0, 1, 1, 0, 3, 0])
    report = accuracy_report(top, labels, counts)
    values = {name: (interval.value, interval.images) for name, interval in report.top1.items()}
    assert values == {
        "overall": (0.5, 6),
        "many": (0.5, 2),
        "medium": (1.0, 1),
        "few": (pytest.approx(1 / 3), 3),
        "few5": (0.5, 2),
    }
    assert report.top5 == {}
    ranked = torch.stack([top, *[torch.full_like(top, 9)] * 3, labels], 1)
    assert accuracy_report(ranked, labels, counts).top5["overall"].value == 1.0
    for interval in report.top1.values():
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    assert accuracy_report(top, labels, counts) == report


def test_paired_difference_equals_naive_resampling() -> None:
    """The interval of the difference is over the same resampled units for both."""
    rng = np.random.default_rng(2)
    first, second = rng.random(400) < 0.8, rng.random(400) < 0.7
    difference = first.astype(float) - second.astype(float)
    for units in (np.arange(400), rng.integers(0, 90, 400)):
        found = paired_difference(*map(torch.from_numpy, (first, second, units)), resamples=4000)
        own = np.unique(units, return_inverse=True)[1]
        sums, sizes = np.bincount(own, difference), np.bincount(own)
        drawn = rng.integers(0, len(sums), (4000, len(sums)))
        naive = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
        assert found.value == pytest.approx(difference.mean())
        assert (found.images, found.units) == (400, len(sums))
        np.testing.assert_allclose([found.low, found.high], naive, atol=0.01)
    labels = torch.from_numpy(rng.integers(0, 5, 400) ** 2)
    balanced = paired_difference(*map(torch.from_numpy, (first, second)), labels=labels)
    of_class = [difference[labels.numpy() == c].mean() for c in labels.unique()]
    assert balanced.value == pytest.approx(np.mean(of_class))
    assert balanced.low < balanced.value < balanced.high
    better = paired_difference(torch.ones(5).bool(), torch.zeros(5).bool())
    assert (better.low, better.value, better.high) == (1.0, 1.0, 1.0)


def test_balanced_accuracy_counts_classes_alike() -> None:
    """The mean over the classes that have an image of the share of theirs that is right."""
    scores = torch.tensor([[2.0, 1.0, 0.0]] * 4 + [[0.0, 1.0, 2.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert balanced_accuracy(scores, labels) == pytest.approx((1.0 + 0.0) / 2)
    assert balanced_accuracy(scores[:, [1, 0, 2]], labels) == pytest.approx((0.0 + 0.5) / 2)
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert balanced_accuracy(scores[:, [1, 0, 2]], labels) == pytest.approx((0.0 + 2 / 3) / 2)
    units = torch.tensor([0, 1, 2, 2, 3])
    assert balanced_accuracy(scores[:, [1, 0, 2]], labels, units) == pytest.approx((0.0 + 1 / 2) / 2)


@quick
@given(
    answers=st.lists(
        st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.51, 0.9, 1.0]), st.booleans(), st.integers(0, 3)),
        min_size=1,
    ),
)
def test_calibration_error_equals_its_twin(answers: list[tuple[float, bool, int]]) -> None:
    """Bins hold their upper bound; empty bins count nothing; pictures or classes count alike."""
    confidences, correct, labels = (list(column) for column in zip(*answers, strict=True))
    given = torch.tensor(confidences, dtype=torch.float64), torch.tensor(correct)
    found = expected_calibration_error(*given)
    assert found == pytest.approx(twins.calibration_error(confidences, correct, 15))
    found = expected_calibration_error(*given, torch.tensor(labels))
    assert found == pytest.approx(twins.calibration_error(confidences, correct, 15, labels))


@quick
@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=12),
    data=st.data(),
)
def test_auroc_and_fpr95_equal_their_twins(scores: list[float], data: st.DataObject) -> None:
    """Ties count half; the threshold is the highest that accepts 95 % of the positives."""
    positives = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    positives[:2] = [True, False]
    values, mask = torch.tensor(scores), torch.tensor(positives)
    assert auroc(values, mask) == pytest.approx(twins.auroc(scores, positives))
    known = [s for s, p in zip(scores, positives, strict=True) if p]
    others = [s for s, p in zip(scores, positives, strict=True) if not p]
    threshold = max(t for t in known if sum(s >= t for s in known) >= 0.95 * len(known))
    assert fpr95(values, mask) == pytest.approx(sum(s >= threshold for s in others) / len(others))


def test_metrics_refuse_what_does_not_fit() -> None:
    """One-sided scores, and confidences that are none."""
    with pytest.raises(ValueError, match="at least one positive and one negative"):
        auroc(torch.tensor([0.1, 0.2]), torch.tensor([True, True]))
    with pytest.raises(InputError, match="confidences must be probabilities"):
        expected_calibration_error(torch.tensor([1.5]), torch.tensor([True]))


def test_a_class_has_recall_and_precision_where_there_is_something_to_divide_by() -> None:
    """Of its images, and of the answers with it; None without any."""
    one = ClassFigures("newt", train=4, images=8, right=6, answered=10, right_by_text=2)
    assert (one.recall, one.precision) == (0.75, 0.6)
    none = ClassFigures("newt", train=4, images=0, right=0, answered=0, right_by_text=0)
    assert (none.recall, none.precision) == (None, None)


@quick
@given(
    answers=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 9)), min_size=1, max_size=60),
    balanced=st.booleans(),
)
def test_a_share_lies_in_its_interval(answers: list[tuple[int, bool, int]], balanced: bool) -> None:
    """The value is that of plain loops, by image or by class; it lies in its interval, which lies in 0 to 1."""
    labels, right, units = (torch.tensor(column) for column in zip(*answers, strict=True))
    found = share_interval(right, labels, units, balanced)
    shares = [float(right[labels == c].double().mean()) for c in labels.unique().tolist()]
    plain = sum(shares) / len(shares) if balanced else float(right.double().mean())
    assert found.value == pytest.approx(plain)
    assert 0.0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1.0
    assert found.high - found.low > 0.0
    assert (found.images, found.units) == (len(answers), len(units.unique()))
    copied = share_interval(*(column.repeat_interleave(3) for column in (right, labels, units)), balanced)
    assert (copied.low, copied.high) == pytest.approx((found.low, found.high)), "copies say nothing"


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("shape", [(3, 1), (0.5, 0.5), (1000, 1000)])
@pytest.mark.parametrize(("size", "alike"), [(1, 0.0), (4, 0.0), (4, 0.6), (4, 1.0)])
def test_intervals_cover_what_they_should(
    size: int, alike: float, shape: tuple[float, float], balanced: bool
) -> None:
    """Given classes with an accuracy of their own, and few units of images that are alike or not."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        own = rng.beta(*shape, 40)
        classes = np.repeat(np.arange(40), rng.geometric(1 / 3, 40))
        sizes = rng.integers(1, 2 * size, len(classes)) if size > 1 else np.ones(len(classes), int)
        labels, units = np.repeat(classes, sizes), np.repeat(np.arange(len(classes)), sizes)
        same = (rng.random(len(classes)) < own[classes])[units]
        right = np.where(rng.random(len(labels)) < alike, same, rng.random(len(labels)) < own[labels])
        found = share_interval(*map(torch.from_numpy, (right, labels, units)), balanced)
        held += found.low <= (own if balanced else own[labels]).mean() <= found.high
    assert held >= 86


@pytest.mark.parametrize(("images", "accuracy"), [(100, 0.99), (300, 0.998), (1000, 0.999), (300, 0.002)])
def test_intervals_cover_what_is_nearly_always_right_or_wrong(images: int, accuracy: float) -> None:
    """Where hardly any answer differs from the others."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        right = torch.from_numpy(rng.random(images) < accuracy)
        labels = torch.from_numpy(rng.integers(0, 10, images))
        found = share_interval(right, labels, torch.arange(images))
        held += found.low <= accuracy <= found.high
    assert held >= 85


def test_a_false_positive_rate_of_all_explains_nothing() -> None:
    """Bins of one class, and classes with as many errors as each other: as wide as without the rate."""
    for count in range(10, 60):
        labels = torch.arange(2).repeat_interleave(count)
        best = labels.clone()
        best[:5] = 1
        best[count : count + 5] = 0
        found = accuracy_report(best, labels, torch.tensor([50, 10]))
        plain = share_interval(best == labels, labels, torch.arange(2 * count))
        assert (found.top1["overall"].low, found.top1["overall"].high) == pytest.approx(
            (plain.low, plain.high)
        )


def test_an_interval_of_right_answers_ends_at_one() -> None:
    """Never above it, though the weights do not add up to 1 to the last bit."""
    for count in range(1, 200):
        found = share_interval(torch.ones(count, dtype=torch.bool), torch.arange(count), torch.arange(count))
        assert found.low < found.value <= found.high <= 1.0
        assert found.value == pytest.approx(1.0)


def test_intervals_of_models_near_chance_cover_what_they_should() -> None:
    """Five models, each of which names some classes for most images: covered, and narrower than without the models."""
    rng = np.random.default_rng(0)
    held = 0
    widths = []
    for _ in range(100):
        habits = rng.dirichlet(np.full(10, 0.2), 5)
        labels = np.repeat(np.arange(10), rng.integers(3, 12, 10))
        models = rng.integers(0, 5, len(labels))
        best = np.array([rng.choice(10, p=habits[model]) for model in models])
        answered, true, by = map(torch.from_numpy, (best, labels, models))
        found = accuracy_report(answered, true, torch.ones(10, dtype=torch.int64), models=by).top1["overall"]
        plain = share_interval(answered == true, true, torch.arange(len(true)))
        held += found.low <= habits[models, labels].mean() <= found.high
        widths.append((found.high - found.low) / (plain.high - plain.low))
    assert held >= 86
    assert np.mean(widths) < 0.95


@pytest.mark.slow
def test_an_evaluation_is_a_flat_data_frame() -> None:
    """One line for each row and bin, and one with each class counted alike."""
    import pandas

    labels = torch.tensor([0, 0, 1])
    rows = {"vl-ltr": accuracy_report(torch.tensor([0, 1, 1]), labels, torch.tensor([4, 30]))}
    measures = (Measure("balanced", "vl-ltr", None, None, None),)
    report = EvaluationReport("test", 1, "release", 3, 2, "exhaustive", rows, measures, {})
    frame = report.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["row", "bin", "top1", "low", "high", "images", "units", "top5"]
    assert frame["bin"].tolist() == ["overall", "medium", "few", "few5", "balanced"]
    assert frame.set_index("bin")["top1"].round(3).to_dict() == {
        "overall": 0.667, "medium": 1.0, "few": 0.5, "few5": 0.5, "balanced": 0.75,
    }  # fmt: skip
