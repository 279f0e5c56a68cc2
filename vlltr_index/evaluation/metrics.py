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
from vlltr_index.tensors import check_labels, check_vector

if TYPE_CHECKING:
    from pandas import DataFrame

Convention = Literal["release", "lift"]
"""`release`: many >= 100 training images, medium 21-99, few <= 20. `lift`: > 100, 20-100, < 20."""

METHOD = "vl-ltr"
"""The method's row of an evaluation."""

_FEW5 = 5
_CONFIDENCE_BINS = 15
_DRAWN_TO_MEAN = (
    2.0  # images by which a class's share is drawn to the mean; intervals of 1 to 4 cover 92 to 96 %
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A share of images with its 95 % bootstrap interval, and the number of images that it was computed from."""

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """What was answered about the images of one class, and how often the class was the answer.

    Attributes:
        name: The class.
        train: Its training images.
        images: Its images that were measured on; 0 or more.
        right: Those that were recognised.
        answered: Images of any class for which this class was the answer.
        right_by_text: Its images that the text branch alone recognised.
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
        balanced: Top-1 accuracy in which each class counts alike, see `balanced_interval`.
    """

    convention: Convention
    top1: dict[str, Interval]
    top5: dict[str, Interval]
    balanced: Interval


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
        calibration_error: Expected calibration error of the rows that have probabilities.
        differences: Accuracy of the method less that of `against`, by bin, on the same images.
        against: The row that the method is compared with.
        notes: A remark for the reader about a row.
        crops: Number of crops of each image.
        rule: The fusion rule.
        ranks: If classes have parents, accuracy by rank, the deepest first: of the node that holds the best class
            (`best class`), and of the most probable node, summed over its classes (`summed`); by bin.
        by_class: What the method answered about each class that answers were chosen from.
        encoder: The model that made the vectors, and where its weights are from.
        in_training: How many of the images are training images too, byte for byte.
    """

    split: str
    commit: int
    convention: str
    images: int
    classes: int
    retrieval: str
    rows: dict[str, AccuracyReport]
    calibration_error: dict[str, float]
    differences: dict[str, Interval] = field(default_factory=dict)
    against: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    crops: int = 1
    rule: Rule = "ours"
    ranks: dict[str, dict[str, dict[str, Interval]]] = field(default_factory=dict)
    by_class: tuple[ClassFigures, ...] = ()
    encoder: str = ""
    in_training: int = 0

    @property
    def tested(self) -> int:
        """Number of classes that have images to measure on."""
        return sum(one.images > 0 for one in self.by_class)

    @property
    def chance(self) -> float:
        """Share of the images that are of the most frequent class: what naming it every time would give."""
        return max((one.images for one in self.by_class), default=0) / self.images

    def to_pandas(self) -> DataFrame:
        """Return one line for each row and bin: `row`, `bin`, `top1`, `low`, `high`, `images`, `top5`.

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
                        "top5": None if top5 is None else top5.value,
                    }
                )
        return pandas.DataFrame(lines)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images with confidences in one interval: their number, mean confidence, and accuracy."""

    images: int
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
    resamples: int = 2000,
) -> AccuracyReport:
    """Compute the accuracy overall and by shot, with 95 % bootstrap intervals over images.

    Args:
        predictions: Int64 [N] or [N, K], class positions, best first.
        labels: Int64 [N], class positions; N is at least 1.
        class_counts: Integers [C], training images of each class.
        convention: Bounds of the bins.
        resamples: Bootstrap resamples.
    """
    ranked = predictions[:, None] if predictions.dim() == 1 else predictions
    hits = ranked == labels[:, None].to(ranked.device)
    masks = bin_masks(labels, class_counts, convention)
    rng = np.random.default_rng(0)
    tops: list[dict[str, Interval]] = [{}, {}]
    for k, top in zip((1, 5), tops, strict=True):
        if ranked.shape[1] < k:
            continue
        correct = hits[:, :k].any(1).cpu().numpy()
        for name, mask in masks.items():
            top[name] = _bootstrap(correct[mask].astype(np.int64), resamples, rng)
    right = hits[:, 0].cpu()
    return AccuracyReport(convention, tops[0], tops[1], balanced_interval(right, labels.cpu()))


def balanced_interval(right: Tensor, labels: Tensor) -> Interval:
    """Compute the mean over classes of the share of their images that are right, with a 95 % interval.

    The classes are given, their images are drawn: the variance of a class's share is p (1 - p) / n, with p drawn to
    the mean of all classes by two images. Of the whole it is Wilson's interval (1927) for as many images as would
    have this variance. A bootstrap over images gives no width to a class with one image.

    Args:
        right: Bool [N], N at least 1.
        labels: Int64 [N], class positions; a class without images does not count.
    """
    counts = torch.bincount(labels)
    weights = 1.0 / (counts[labels].double() * (counts > 0).sum())
    hits = right.double()
    mean = float(weights @ hits)
    independent = 1.0 / float(weights.square().sum())
    level = (mean * independent + 0.5) / (independent + 1.0)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, labels, hits)
    shares = (sums + _DRAWN_TO_MEAN * level) / (counts + _DRAWN_TO_MEAN)
    variance = float(weights.square() @ (shares * (1.0 - shares))[labels])
    images = level * (1.0 - level) / variance
    low, high = _wilson(mean, images)
    return Interval(mean, low, high, len(labels))


def _wilson(share: float, images: float) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share of so many images."""
    normal = 1.959964
    spread = normal**2 / images
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def paired_difference(first_correct: Tensor, second_correct: Tensor, resamples: int = 2000) -> Interval:
    """Compute the accuracy of the first less that of the second on the same images, with a paired 95 % interval.

    Args:
        first_correct: Bool [N].
        second_correct: Bool [N], of the same images in the same order.
        resamples: Bootstrap resamples.

    Raises:
        InputError: Lengths differ, or there is no image.
    """
    check_vector("first_correct", first_correct)
    check_vector("second_correct", second_correct, first_correct.shape[0])
    if first_correct.numel() == 0:
        raise InputError("there is no image to compare on")
    difference = first_correct.bool().long().cpu().numpy() - second_correct.bool().long().cpu().numpy()
    return _bootstrap(difference, resamples, np.random.default_rng(0))


def expected_calibration_error(confidences: Tensor, correct: Tensor) -> float:
    """Compute the mean gap between confidence and accuracy over the bins of `reliability`, weighed by their images.

    Args:
        confidences: Float [N], probability of the predicted class.
        correct: Bool [N].

    Raises:
        InputError: As for `reliability`.
    """
    found = reliability(confidences, correct)
    return sum(b.images * abs(b.confidence - b.accuracy) for b in found) / sum(b.images for b in found)


def reliability(confidences: Tensor, correct: Tensor) -> list[ReliabilityBin]:
    """Compute confidence and accuracy in 15 equally wide bins of confidence; bins without images are left out.

    Args:
        confidences: Float [N], probability of the predicted class.
        correct: Bool [N].

    Raises:
        InputError: There is no image, or a confidence lies outside 0..1.
    """
    values = confidences.double()
    right = correct.double()
    if values.numel() == 0 or not bool(((values >= 0) & (values <= 1 + 1e-6)).all()):
        raise InputError("confidences must be probabilities in 0..1, and at least one")
    place = (values * _CONFIDENCE_BINS).ceil().long().sub(1).clamp(0, _CONFIDENCE_BINS - 1)
    columns = torch.stack([torch.ones_like(values), values, right], dim=1)
    sums = columns.new_zeros(_CONFIDENCE_BINS, 3).index_add(0, place, columns)
    return [ReliabilityBin(int(n), s / n, r / n) for n, s, r in sums.tolist() if n]


def bin_masks(labels: Tensor, class_counts: Tensor, convention: Convention) -> dict[str, NDArray[np.bool_]]:
    """Return the images of each bin that has any, bool [N], in the order of the report."""
    names = np.asarray(bins(class_counts, convention))[labels.cpu().numpy()]
    masks = {"overall": np.ones(len(names), dtype=np.bool_)}
    masks |= {name: names == name for name in ("many", "medium", "few")}
    masks["few5"] = few5(class_counts).cpu().numpy()[labels.cpu().numpy()]
    masks["new"] = names == "new"
    return {name: mask for name, mask in masks.items() if mask.any()}


def _bootstrap(outcomes: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> Interval:
    """Compute the mean of outcomes in {-1, 0, 1}, with its 95 % interval over resampled images.

    The sum of n draws with replacement depends on the outcomes' shares alone, so it is drawn from a multinomial.
    """
    n = len(outcomes)
    up = float((outcomes == 1).mean())
    down = float((outcomes == -1).mean())
    raised = rng.binomial(n, up, size=resamples)
    lowered = rng.binomial(n - raised, min(1.0, down / (1.0 - up)) if up < 1.0 else 0.0)
    low, high = np.quantile((raised - lowered) / n, [0.025, 0.975])
    return Interval(float(outcomes.mean()), float(low), float(high), n)
