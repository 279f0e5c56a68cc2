"""Metrics: accuracy by shot, its sampling error, and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlltr_index.errors import InputError, MissingPackageError
from vlltr_index.heads.fusion import Rule
from vlltr_index.heads.weighing import balanced_shares, wilson
from vlltr_index.schemas.records import FEW_UNITS
from vlltr_index.tensors import check_labels, check_vector

if TYPE_CHECKING:
    from pandas import DataFrame

Convention = Literal["release", "lift"]
"""`release`: many >= 100 training images, medium 21-99, few <= 20. `lift`: > 100, 20-100, < 20."""

METHOD = "vl-ltr"
"""The method's row of an evaluation."""

CROSS_VALIDATION = "cross-validation"
"""In place of a split: training images, each answered by a model that was fitted without it."""

_FEW5 = 5
_CONFIDENCE_BINS = 15
_LIKE_ALL = 4.0  # classes that are assumed to be as accurate as all, beside those measured
_EQUAL_UNITS = 20.0  # units that are assumed to have equal answers, beside those measured
_ROUNDING = 1e-12  # share of a mean square that rounding gives to equal values


@dataclass(frozen=True, slots=True)
class Interval:
    """A share of images with its 95 % interval.

    Attributes:
        value: The share, or a difference of two.
        low: Lower end.
        high: Upper end.
        images: How many images it was computed from.
        units: How many units these are: near duplicates and groups, which are not independent.
    """

    value: float
    low: float
    high: float
    images: int
    units: int

    @property
    def few(self) -> bool:
        """Whether these are so few units that a share says too little: counts are given instead."""
        return self.units < FEW_UNITS

    @property
    def count(self) -> int:
        """The share as a number of images."""
        return round(self.value * self.images)


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """What was answered about the images of one class, and how often the class was the answer.

    Attributes:
        name: The class.
        train: Its training images.
        images: Its images that were measured on; 0 or more.
        right: Those that were recognised.
        answered: Images of any class for which this class was the answer.
        right_by_text: Its images that the text branch alone recognised; 0 where there is none.
    """

    name: str
    train: int
    images: int
    right: int
    answered: int
    right_by_text: int

    @property
    def recall(self) -> float | None:
        """Share of its images that were recognised; None where there are none."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of the answers with this class that were right; None where it never was the answer."""
        return self.right / self.answered if self.answered else None


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """Top-1 and top-5 accuracy over images, by shot.

    Attributes:
        convention: The bounds of many, medium and few.
        top1: `overall`, `many`, `medium`, `few`, `few5` (at most 5 training images; part of few), and `new`
            (classes without training images). A bin without test images is left out.
        top5: The same keys; empty if fewer than five predictions per image were given.
        balanced: Top-1 accuracy in which each class counts alike.
    """

    convention: Convention
    top1: dict[str, Interval]
    top5: dict[str, Interval]
    balanced: Interval

    def alike(self, prior: str) -> bool:
        """Say whether each class counts alike in what answers under a prior are measured by, see `Measure`."""
        return prior == "balanced" and not self.balanced.few

    def measured(self, prior: str) -> Interval:
        """Return the accuracy that answers under a prior are measured by."""
        return self.balanced if self.alike(prior) else self.top1["overall"]


@dataclass(frozen=True, slots=True)
class Measure:
    """The method beside another row: under the prior `balanced` each class counts alike, under others each image.

    Of fewer than 30 units each image counts alike under all.

    Attributes:
        prior: How common the classes are taken to be, see `named_prior`.
        row: The method's row under this prior.
        rule: What it is compared with: a baseline or a branch; None: there is no other.
        against: The row of `rule`, under the prior if it knows it.
        difference: Accuracy of the method less that of `against`; None without one.
    """

    prior: str
    row: str
    rule: str | None
    against: str | None
    difference: Interval | None


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of each row (the method, its branches, baselines) by bin, and the method's paired difference to one row.

    Attributes:
        split: The split of the images.
        commit: The commit that was evaluated.
        convention: The bounds of many, medium and few.
        images: Number of images.
        classes: Number of classes that answers were chosen from.
        retrieval: `faiss` or `exhaustive`.
        rows: Accuracy of each row.
        measures: The accuracy by the prior that was asked for, and where classes differ in training images that by the
            other of `balanced` and `training`.
        calibration_error: Expected calibration error of the rows that have probabilities, counted as the first
            measure counts; none below 30 units.
        differences: Accuracy of the method less that of `against`, by bin, on the same images; `balanced`: of all, each
            class counting alike.
        against: The row that the method is compared with, of the first measure.
        against_asked: Whether it was asked for, instead of chosen as the best.
        notes: A remark for the reader about a row, or why a baseline is absent.
        crops: Number of crops of each image.
        rule: The fusion rule.
        prior: How common the classes were taken to be, see `named_prior`.
        ranks: If classes have parents, accuracy by rank, the deepest first: of the node that holds the best class
            (`best class`), and of the most probable node, summed over its classes (`summed`); by bin.
        by_class: What the method answered about each class that answers were chosen from.
        encoder: The model that made the vectors, and where its weights are from.
        in_training: How many of the images are training images too, byte for byte.
        texts_count: Whether texts have a weight in the answers, and a text tower read them.
        folds: How many models answered, each for images that it was fitted without; 0: the commit's own.
        left_out: Sentences that say how many training images a cross-validation does not measure on, and why.
    """

    split: str
    commit: int
    convention: str
    images: int
    classes: int
    retrieval: str
    rows: dict[str, AccuracyReport]
    measures: tuple[Measure, ...]
    calibration_error: dict[str, float]
    differences: dict[str, Interval] = field(default_factory=dict)
    against: str | None = field(init=False)  # no property: JSON has the fields
    against_asked: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    crops: int = 1
    rule: Rule = "ours"
    prior: str = "balanced"
    ranks: dict[str, dict[str, dict[str, Interval]]] = field(default_factory=dict)
    by_class: tuple[ClassFigures, ...] = ()
    encoder: str = ""
    in_training: int = 0
    texts_count: bool = True
    folds: int = 0
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Set `against`."""
        object.__setattr__(self, "against", self.measures[0].against)

    @property
    def tested(self) -> int:
        """Number of classes that have images to measure on."""
        return sum(one.images > 0 for one in self.by_class)

    def chance(self, prior: str) -> float:
        """Return the accuracy of naming the most frequent class every time, by the measure of a prior."""
        if prior == "balanced":
            return 1.0 / max(self.tested, 1)
        return max((one.images for one in self.by_class), default=0) / self.images

    def to_pandas(self) -> DataFrame:
        """Return one line for each row and bin: `row`, `bin`, `top1`, `low`, `high`, `images`, `units`, `top5`.

        The bin `balanced` has each class counted alike.

        Raises:
            MissingPackageError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError("a data frame needs pandas", "pip install pandas") from None
        lines = []
        for name, row in self.rows.items():
            for bin_name, top1 in {**row.top1, "balanced": row.balanced}.items():
                top5 = row.top5.get(bin_name)
                lines.append(
                    {
                        "row": name,
                        "bin": bin_name,
                        "top1": top1.value,
                        "low": top1.low,
                        "high": top1.high,
                        "images": top1.images,
                        "units": top1.units,
                        "top5": None if top5 is None else top5.value,
                    }
                )
        return pandas.DataFrame(lines)


def under(row: str, prior: str) -> str:
    """Name the row of the answers of `row` under a prior that was not asked for, or that it has beside its own."""
    return f"{row}, --prior {prior}"


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images with confidences in one interval: their number and share, mean confidence, and accuracy."""

    images: int
    share: float
    confidence: float
    accuracy: float


def bins(class_counts: Tensor, convention: Convention = "release") -> list[str]:
    """Return the bin of each class: `many`, `medium`, `few`, or `new` for a class without training images.

    Args:
        class_counts: Integers [C], training images of each class.
        convention: Bounds of the bins.

    Raises:
        InputError: The convention is unknown, or counts are not integers.
    """
    if convention not in ("release", "lift"):
        raise InputError(f"convention must be 'release' or 'lift', got {convention!r}")
    check_labels("class_counts", class_counts)
    many = 100 if convention == "release" else 101
    few = 20 if convention == "release" else 19
    names = []
    for n in class_counts.tolist():
        if n == 0:
            names.append("new")
        elif n >= many:
            names.append("many")
        elif n <= few:
            names.append("few")
        else:
            names.append("medium")
    return names


def few5(class_counts: Tensor) -> Tensor:
    """Mark the classes with 1 to 5 training images, bool [C]; a part of `few`."""
    return (class_counts > 0) & (class_counts <= _FEW5)


def accuracy_report(
    predictions: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    convention: Convention = "release",
    units: Tensor | None = None,
    models: Tensor | None = None,
) -> AccuracyReport:
    """Compute the accuracy overall and by shot, with the 95 % intervals of `share_interval`.

    Args:
        predictions: Int64 [N] or [N, K], class positions, best first.
        labels: Int64 [N], class positions; N is at least 1.
        class_counts: Integers [C], training images of each class.
        convention: Bounds of the bins.
        units: Int64 [N], from 0, the unit of each image; None: each image is one.
        models: Int64 [N], from 0, the model that answered each image; None: one model answered all.
    """
    ranked = predictions[:, None] if predictions.dim() == 1 else predictions
    hits = (ranked == labels[:, None].to(ranked.device)).cpu()
    labels = labels.cpu()
    units = torch.arange(len(labels)) if units is None else units
    models = torch.zeros_like(labels) if models is None else models
    masks = bin_masks(labels, class_counts, convention)
    tops: list[dict[str, Interval]] = [{}, {}]
    rates = {
        k: _false_positive_rates(ranked[:, :k].cpu(), labels, models) for k in (1, 5) if k <= ranked.shape[1]
    }
    for k, top in zip((1, 5), tops, strict=True):
        if k not in rates:
            continue
        correct = hits[:, :k].any(1)
        for name, mask in masks.items():
            inside = torch.from_numpy(mask)
            top[name] = share_interval(
                correct[inside], labels[inside], units[inside], false_positive=rates[k][inside]
            )
    balanced = share_interval(hits[:, 0], labels, units, balanced=True, false_positive=rates[1])
    return AccuracyReport(convention, tops[0], tops[1], balanced)


def share_interval(
    right: Tensor,
    labels: Tensor,
    units: Tensor,
    balanced: bool = False,
    false_positive: Tensor | None = None,
) -> Interval:
    """Compute the share of images that are right, or the mean over classes of that share, with a 95 % interval.

    The classes and models are given, the units are drawn. The interval is Wilson's (1927) for as many independent
    images as would have the variance of the whole, which is estimated in these steps:

    1. An image's variance is p (1 - p), p the share.
    2. That of a unit's share is the same, times the ratio of the mean square error of units to that of images: 1 where
       all answers of a unit are equal. The ratio is shrunk as if 20 more units had equal answers.
    3. What class and model explain is subtracted, at most nine tenths: the covariance of answers in different units of
       a class, or what `false_positive` explains, whichever is more.

    A bootstrap over images takes each for independent, and gives no width where all are right.

    Args:
        right: Bool [N], N at least 1.
        labels: Int64 [N], class positions; a class without images does not count.
        units: Int64 [N], the unit of each image.
        balanced: Whether each class counts alike, instead of each image.
        false_positive: Float64 [N], the false positive rate of each image's class: how often its model names that class
            for images of others. Near chance a model may name one class for all, and is right where it is the image's.
            None: not known.
    """
    of = units.unique(return_inverse=True)[1]
    number = int(of.max()) + 1
    counts = torch.bincount(labels)
    weights = torch.full((len(labels),), 1.0 / len(labels), dtype=torch.float64)
    if balanced:
        weights = 1.0 / (counts[labels].double() * (counts > 0).sum())
    hits = right.double()
    share = min(float(weights @ hits), 1.0)
    unit_weights = _sums(weights, of, number)
    squared_weights = float(unit_weights.square().sum())
    shrunk_share = (share + 0.5 * squared_weights) / (1.0 + squared_weights)
    of_image = shrunk_share * (1.0 - shrunk_share)
    errors = hits - shrunk_share
    of_unit = of_image * _likeness(errors, of, weights, unit_weights)
    between = _between_classes(errors, labels, of)
    if false_positive is not None:
        between = max(between, _explained(hits, false_positive, weights))
    variance = squared_weights * (of_unit - min(between, 0.9 * of_unit))
    low, high = wilson(share, of_image / variance)
    return Interval(value=share, low=low, high=high, images=len(labels), units=number)


def _likeness(errors: Tensor, units: Tensor, weights: Tensor, unit_weights: Tensor) -> float:
    """Estimate the mean square of units' mean errors, divided by that of errors: at most 1, where a unit's are equal.

    Args:
        errors: Float64 [N], each answer less the share of all, none of them 0.
        units: Int64 [N], from 0 to U - 1.
        weights: Float64 [N], of sum 1.
        unit_weights: Float64 [U], their sums by unit.
    """
    means = _sums(errors, units, len(unit_weights)) / torch.bincount(units)
    ratio = float(unit_weights @ means.square()) / float(weights @ errors.square())
    return min((len(unit_weights) * ratio + _EQUAL_UNITS) / (len(unit_weights) + _EQUAL_UNITS), 1.0)


def _sums(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Sum float64 values [N] by their places, int64 [N]: [count]."""
    return torch.zeros(count, dtype=torch.float64).index_add(0, places, values)


def _false_positive_rates(ranked: Tensor, labels: Tensor, models: Tensor) -> Tensor:
    """Compute how often the model of each image names the image's class for images of other classes, float64 [N].

    Args:
        ranked: Int64 [N, K], class positions; -1 for a class that is gone.
        labels: Int64 [N].
        models: Int64 [N], from 0.
    """
    classes = int(max(labels.max(), ranked.max())) + 1
    places = models * classes + labels
    size = (int(models.max()) + 1) * classes
    named = torch.bincount((models[:, None] * classes + ranked)[ranked >= 0], minlength=size)
    named -= torch.bincount(places[(ranked == labels[:, None]).any(1)], minlength=size)
    others = torch.bincount(models)[models] - torch.bincount(places, minlength=size)[places]
    return named[places].double() / others.clamp(min=1)


def _explained(values: Tensor, by: Tensor, weights: Tensor) -> float:
    """Compute the variance that a rising line through `by` explains; all float64 [N], the weights of sum 1."""
    apart = by - weights @ by
    variance = float(weights @ apart.square())
    if variance <= _ROUNDING * float(weights @ by.square()):
        return 0.0
    covariance = max(float(weights @ (apart * values)), 0.0)
    return covariance**2 / variance


def _between_classes(errors: Tensor, labels: Tensor, units: Tensor) -> float:
    """Estimate the variance between classes by the products of different units' mean errors in a class; at least 0.

    Args:
        errors: Float64 [N], each answer less the share of all.
        labels: Int64 [N], classes.
        units: Int64 [N], from 0.
    """
    (owners, _), parts = torch.stack([labels, units]).unique(dim=1, return_inverse=True)
    means = _sums(errors, parts, len(owners)) / torch.bincount(parts)
    number = torch.bincount(owners).double()
    several = number >= 2
    if not bool(several.any()):
        return 0.0
    products = _sums(means, owners, len(number)).square() - _sums(means.square(), owners, len(number))
    number = number[several]
    found = float((products[several] / (number - 1.0)).sum() / (number.sum() + _LIKE_ALL * number.mean()))
    return max(found, 0.0)


def paired_difference(
    first_correct: Tensor,
    second_correct: Tensor,
    units: Tensor | None = None,
    resamples: int = 2000,
    labels: Tensor | None = None,
) -> Interval:
    """Compute the accuracy of the first less that of the second on the same images, with a paired 95 % interval.

    Args:
        first_correct: Bool [N].
        second_correct: Bool [N], of the same images in the same order.
        units: Int64 [N], the unit of each image, which are resampled; None: each image is one.
        resamples: Bootstrap resamples.
        labels: Int64 [N], class positions: each class counts alike. None: each image does.

    Raises:
        InputError: Lengths differ, or there is no image.
    """
    check_vector("first_correct", first_correct)
    check_vector("second_correct", second_correct, first_correct.shape[0])
    if first_correct.numel() == 0:
        raise InputError("there is no image to compare on")
    difference = first_correct.bool().double().cpu() - second_correct.bool().double().cpu()
    units = torch.arange(len(difference)) if units is None else units
    of = units.unique(return_inverse=True)[1]
    weights = torch.ones_like(difference) if labels is None else 1.0 / torch.bincount(labels)[labels].double()
    number = int(of.max()) + 1
    sizes = _sums(weights, of, number)
    gains = _sums(weights * difference, of, number)
    # Units of one size and gain are alike: how often each kind is drawn is multinomial.
    kinds, times = torch.stack([gains, sizes]).unique(dim=1, return_counts=True)
    shares = times.double().numpy() / len(sizes)
    drawn = np.random.default_rng(0).multinomial(len(sizes), shares, size=resamples)
    sums = drawn @ kinds.numpy().T
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    value = float(weights @ difference / weights.sum())
    return Interval(value=value, low=float(low), high=float(high), images=len(difference), units=len(sizes))


def expected_calibration_error(confidences: Tensor, correct: Tensor, labels: Tensor | None = None) -> float:
    """Compute the mean gap between confidence and accuracy over the bins of `reliability`, weighed by their shares.

    Args:
        confidences: Float [N], probability of the predicted class.
        correct: Bool [N].
        labels: As for `reliability`.

    Raises:
        InputError: As for `reliability`.
    """
    return sum(b.share * abs(b.confidence - b.accuracy) for b in reliability(confidences, correct, labels))


def reliability(confidences: Tensor, correct: Tensor, labels: Tensor | None = None) -> list[ReliabilityBin]:
    """Compute confidence and accuracy in 15 equally wide bins of confidence; bins without images are left out.

    Args:
        confidences: Float [N], probability of the predicted class.
        correct: Bool [N].
        labels: Int64 [N], class positions: each class counts alike. None: each image does.

    Raises:
        InputError: There is no image, or a confidence lies outside 0..1.
    """
    values = confidences.double()
    right = correct.double()
    if values.numel() == 0 or not bool(((values >= 0) & (values <= 1 + 1e-6)).all()):
        raise InputError("confidences must be probabilities in 0..1, and at least one")
    one = torch.ones_like(values)
    shares = one / len(one) if labels is None else balanced_shares(labels)
    place = (values * _CONFIDENCE_BINS).ceil().long().sub(1).clamp(0, _CONFIDENCE_BINS - 1)
    columns = torch.stack([one, shares, shares * values, shares * right], dim=1)
    sums = columns.new_zeros(_CONFIDENCE_BINS, 4).index_add(0, place, columns)
    return [ReliabilityBin(int(n), share, s / share, r / share) for n, share, s, r in sums.tolist() if n]


def bin_masks(labels: Tensor, class_counts: Tensor, convention: Convention) -> dict[str, NDArray[np.bool_]]:
    """Return the images of each bin that has any, bool [N], in the order of the report."""
    names = np.asarray(bins(class_counts, convention))[labels.cpu().numpy()]
    masks = {"overall": np.ones(len(names), dtype=np.bool_)}
    masks |= {name: names == name for name in ("many", "medium", "few")}
    masks["few5"] = few5(class_counts).cpu().numpy()[labels.cpu().numpy()]
    masks["new"] = names == "new"
    return {name: mask for name, mask in masks.items() if mask.any()}
