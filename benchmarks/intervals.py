"""Means with their intervals: over draws by Student's t or the normal distribution, over classes by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

__all__ = ["Interval", "clustered", "normal", "over_classes", "over_draws", "over_kinds", "spread"]

_RESAMPLES = 2000
_ENDS = (0.025, 0.975)  # of 95%
Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, of 95% where nothing else is said.

    Attributes:
        mean: The mean.
        low: Lower end; NaN where there is one draw alone.
        high: Upper end.
        error: Standard error, where others are computed from it.
        freedom: Degrees of freedom of the standard error.
    """

    mean: float
    low: float
    high: float
    error: float = math.nan
    freedom: float = math.nan

    def shown(self, digits: int = 1, factor: float = 100.0) -> str:
        """Return the mean and its interval, times a factor."""
        mean, low, high = (f"{factor * value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"

    def with_margin(self) -> str:
        """Return the mean ± half of the interval in per cent or points."""
        return f"{100 * self.mean:+.1f} ± {100 * (self.high - self.mean):.1f}"


def over_draws(values: Values, level: float = 0.95) -> Interval:
    """Return the mean of values, one for each draw, with its two-sided interval by Student's t."""
    if len(values) < 2:
        return Interval(fmean(values), math.nan, math.nan)
    return _by_t(fmean(values), stdev(values) / math.sqrt(len(values)), len(values) - 1, level)


def normal(values: Values) -> Interval:
    """Return the mean of values, one for each draw, with its interval of 1.96 standard errors."""
    half = 1.96 * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), fmean(values) - half, fmean(values) + half)


def over_kinds(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of independent means, equally weighted; degrees of freedom by Satterthwaite."""
    variances = [one.error**2 for one in intervals]
    whole = sum(variances)
    mean = fmean(one.mean for one in intervals)
    if math.isnan(whole) or not whole:
        return Interval(mean, mean + whole, mean + whole, whole, 0)
    freedom = whole**2 / sum(v**2 / one.freedom for v, one in zip(variances, intervals, strict=True) if v)
    return _by_t(mean, math.sqrt(whole) / len(intervals), freedom)


def over_classes(draws: Sequence[Mapping[str, float]], seed: int = 0) -> Interval:
    """Return the mean over draws of the mean over their classes, with an interval by bootstrap over classes.

    It is for draws that share images. A resample takes as many class names as there are, and each draw's mean weighs
    its classes by how often they were taken.

    Args:
        draws: For each draw the value of each class, by name.
        seed: Of the resamples.
    """
    names = sorted({name for draw in draws for name in draw})
    values = np.array([[draw.get(name, math.nan) for name in names] for draw in draws])
    there = ~np.isnan(values)
    known = np.where(there, values, 0.0)
    mean = float((known.sum(1) / there.sum(1)).mean())
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES)
    means = _weighted(taken.astype(np.float64), known, there)
    low, high = np.quantile(means, _ENDS)
    return Interval(mean, float(low), float(high), float(means.std(ddof=1)), max(len(names) - 1, 1))


def _weighted(taken: NDArray[Any], known: NDArray[Any], there: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over draws of each resample [R] of classes, by how often each was taken [R, C]."""
    weights = taken @ there.T  # [R, draws]
    sums = taken @ known.T
    present = weights > 0
    shares = np.divide(sums, weights, out=np.zeros_like(sums), where=present)
    found: NDArray[Any] = shares.sum(1) / present.sum(1).clip(min=1)
    return found


def clustered(values: Values, classes: NDArray[Any], seed: int = 0) -> Interval:
    """Return the mean of values [N] with an interval by bootstrap over classes, then over the images of each.

    Args:
        values: One for each image.
        classes: Integers [N], the class of each image.
        seed: Of the resamples.
    """
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    ordered = np.asarray(values)[order]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES):
        picked = rng.integers(len(sizes), size=len(sizes))
        size = np.repeat(sizes[picked], sizes[picked])
        start = np.repeat(starts[picked], sizes[picked])
        means.append(ordered[start + (rng.random(len(size)) * size).astype(np.int64)].mean())
    low, high = np.quantile(means, _ENDS)
    return Interval(float(np.mean(values)), float(low), float(high))


def spread(values: Values) -> str:
    """Return the mean in per cent, and the standard deviation over the seeds where there are several."""
    shown = f"{100 * np.mean(values):.1f}"
    return shown + (f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _by_t(mean: float, error: float, freedom: float, level: float = 0.95) -> Interval:
    half = float(t.ppf((1 + level) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half, error, freedom)
