"""Accuracy by shot, its sampling error, and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.heads.fusion import Rule
from vlltr_index.tensors import check_labels, check_vector

Convention = Literal["release", "lift"]
"""`release`: many >= 100 training images, medium 21-99, few <= 20. `lift`: > 100, 20-100, < 20."""

_FEW5 = 5
_CONFIDENCE_BINS = 15


@dataclass(frozen=True, slots=True)
class Interval:
    """A share of images with its 95 % bootstrap interval, and the number of images behind it."""

    value: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """Top-1 and top-5 accuracy over images, by shot.

    Attributes:
        convention: The bounds of many, medium and few.
        top1: `overall`, `many`, `medium`, `few`, `few5` (at most 5 training images; part of few), and `new`
            (classes without training images). A bin without test images is left out.
        top5: The same keys; empty where fewer than five predictions an image were given.
    """

    convention: Convention
    top1: dict[str, Interval]
    top5: dict[str, Interval]


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of each row by bin, and the paired difference of the method to one of the others.

    Attributes:
        split: Which images.
        commit: Which commit.
        convention: The bounds of many, medium and few.
        images: How many images.
        classes: How many classes were to choose from.
        retrieval: `faiss` or `exhaustive`.
        rows: Accuracy of each row.
        calibration_error: Expected calibration error of the rows that have probabilities.
        differences: The method less `against`, by bin, on the same images.
        against: The row it is compared with.
        notes: What a reader must know of a row.
        crops: How many crops of each image the method saw.
        rule: How the branches were put together.
        ranks: Where classes have parents, by rank, the deepest first: how often the node of that rank that holds the
            best class is right (`best class`), and the most probable one, all classes summed (`summed`); by bin.
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


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images of about one confidence: how many, their mean confidence, and the share that is right."""

    images: int
    confidence: float
    accuracy: float


def bins(class_counts: Tensor, convention: Convention = "release") -> list[str]:
    """The bin of each class: `many`, `medium`, `few`, or `new` for a class without training images.

    Args:
        class_counts: Integers [C], training images of each class.
        convention: See `Convention`.

    Raises:
        InputError: An unknown convention, or counts that are not integers.
    """
    if convention not in ("release", "lift"):
        raise InputError(f"convention must be 'release' or 'lift', got {convention!r}")
    check_labels("class_counts", class_counts)
    many, few = (100, 20) if convention == "release" else (101, 19)
    return [
        "new" if n == 0 else "many" if n >= many else "few" if n <= few else "medium"
        for n in class_counts.tolist()
    ]


def few5(class_counts: Tensor) -> Tensor:
    """Classes with 1 to 5 training images, bool [C]; a part of `few`."""
    return (class_counts > 0) & (class_counts <= _FEW5)


def accuracy_report(
    predictions: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    convention: Convention = "release",
    resamples: int = 2000,
) -> AccuracyReport:
    """Accuracy overall and by shot, with 95 % bootstrap intervals over images.

    Args:
        predictions: Int64 [N] or [N, K], class positions, best first.
        labels: Int64 [N], class positions, of one image at least.
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
    return AccuracyReport(convention, tops[0], tops[1])


def paired_difference(first_correct: Tensor, second_correct: Tensor, resamples: int = 2000) -> Interval:
    """Accuracy of the first less accuracy of the second on the same images, with a paired 95 % bootstrap
    interval.

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
    """Mean gap between confidence and accuracy over the bins of `reliability`, weighed by their images.

    Args:
        confidences: Float [N], probability of the predicted class.
        correct: Bool [N].

    Raises:
        InputError: As for `reliability`.
    """
    found = reliability(confidences, correct)
    return sum(b.images * abs(b.confidence - b.accuracy) for b in found) / sum(b.images for b in found)


def reliability(confidences: Tensor, correct: Tensor) -> list[ReliabilityBin]:
    """Confidence and accuracy over 15 equally wide bins of confidence; bins without images are left out.

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
    """The images of each bin that has any, bool [N], in the order they are reported."""
    names = np.asarray(bins(class_counts, convention))[labels.cpu().numpy()]
    masks = {"overall": np.ones(len(names), dtype=np.bool_)}
    masks |= {name: names == name for name in ("many", "medium", "few")}
    masks["few5"] = few5(class_counts).cpu().numpy()[labels.cpu().numpy()]
    masks["new"] = names == "new"
    return {name: mask for name, mask in masks.items() if mask.any()}


def _bootstrap(outcomes: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> Interval:
    """95 % interval of the mean of outcomes in {-1, 0, 1}, images resampled.

    The sum of n draws with replacement depends on the outcomes' shares alone, so it is drawn as a
    multinomial.
    """
    n = len(outcomes)
    up = float((outcomes == 1).mean())
    down = float((outcomes == -1).mean())
    raised = rng.binomial(n, up, size=resamples)
    lowered = rng.binomial(n - raised, min(1.0, down / (1.0 - up)) if up < 1.0 else 0.0)
    low, high = np.quantile((raised - lowered) / n, [0.025, 0.975])
    return Interval(float(outcomes.mean()), float(low), float(high), n)
