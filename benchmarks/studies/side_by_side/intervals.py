"""Intervals of paired differences: over draws by Student's t, over classes by the bootstrap, and over kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.draws.table import student

__all__ = ["Gap", "of_classes", "of_draws", "of_kinds"]

_RESAMPLES = 2000
_LEVEL = 0.975  # two-sided 95%


@dataclass(frozen=True)
class Gap:
    """A mean difference with its 95% interval.

    Attributes:
        mean: The mean.
        low: Lower end; NaN where there is one draw alone.
        high: Upper end.
        error: Standard error.
        freedom: Degrees of freedom of the standard error.
    """

    mean: float
    low: float
    high: float
    error: float
    freedom: float

    def shown(self, digits: int = 1, factor: float = 100.0) -> str:
        """Return the mean and its interval, times a factor."""
        mean, low, high = (f"{factor * value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


def of_draws(values: Sequence[float]) -> Gap:
    """Return the mean of paired differences, one for each draw, by Student's t."""
    if len(values) < 2:
        return Gap(fmean(values), math.nan, math.nan, math.nan, 0)
    return _by_t(fmean(values), stdev(values) / math.sqrt(len(values)), len(values) - 1)


def of_kinds(gaps: Sequence[Gap]) -> Gap:
    """Return the mean of independent gaps, equally weighted; degrees of freedom by Satterthwaite."""
    variances = [gap.error**2 for gap in gaps]
    whole = sum(variances)
    if math.isnan(whole) or not whole:
        mean = fmean(gap.mean for gap in gaps)
        return Gap(mean, mean + whole, mean + whole, whole, 0)
    freedom = whole**2 / sum(v**2 / gap.freedom for v, gap in zip(variances, gaps, strict=True) if v)
    return _by_t(fmean(gap.mean for gap in gaps), math.sqrt(whole) / len(gaps), freedom)


def of_classes(draws: Sequence[Mapping[str, float]], seed: int = 0) -> Gap:
    """Return the mean over draws of the mean over their classes, with an interval by bootstrap over classes.

    It is for draws that share images. A resample takes as many class names as there are, and each draw's mean weighs
    its classes by how often they were taken.

    Args:
        draws: For each draw the difference of each class, by name.
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
    low, high = np.quantile(means, [1 - _LEVEL, _LEVEL])
    return Gap(mean, float(low), float(high), float(means.std(ddof=1)), max(len(names) - 1, 1))


def _weighted(taken: NDArray[Any], known: NDArray[Any], there: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over draws of each resample [R] of classes, by how often each was taken [R, C]."""
    weights = taken @ there.T  # [R, draws]
    sums = taken @ known.T
    present = weights > 0
    shares = np.divide(sums, weights, out=np.zeros_like(sums), where=present)
    found: NDArray[Any] = shares.sum(1) / present.sum(1).clip(min=1)
    return found


def _by_t(mean: float, error: float, freedom: float) -> Gap:
    half = student(_LEVEL, freedom) * error
    return Gap(mean, mean - half, mean + half, error, freedom)
