"""Intervals over draws, kinds and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.intervals import clustered, normal, over_classes, over_draws, over_kinds


def test_an_interval_over_draws_is_students() -> None:
    """t(0.975, 19) = 2.093, t(0.95, 19) = 1.729; equal differences have no width, one draw has no interval."""
    one = over_draws([0.0, 1.0] * 10)
    assert one.high - one.mean == pytest.approx(2.093 * 0.51299 / 20**0.5, abs=1e-4)
    narrower = over_draws([0.0, 1.0] * 10, 0.9)
    assert narrower.mean - narrower.low == pytest.approx(1.729 * 0.51299 / 20**0.5, abs=1e-4)
    same = over_draws([0.0] * 20)
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)
    assert math.isnan(over_draws([1.0]).low)


def test_kinds_are_weighted_equally() -> None:
    """The mean of a noisy and an exact kind; degrees of freedom are those of the noisy one."""
    noisy_kind = over_draws([0.0, 1.0] * 10)
    whole = over_kinds([noisy_kind, over_draws([0.2] * 5)])
    assert whole.mean == pytest.approx(0.35)
    assert whole.freedom == pytest.approx(19)
    assert whole.high - whole.mean == pytest.approx((noisy_kind.high - noisy_kind.mean) / 2)
    exact = over_kinds([over_draws([0.1] * 5)] * 2)
    assert (exact.low, exact.high) == pytest.approx((0.1, 0.1))


def test_an_interval_over_classes_ignores_the_number_of_draws() -> None:
    """Draws of the same images say no more than one of them; a class that a draw lacks is in no mean of it."""
    one = {"a": 0.1, "b": -0.1, "c": 0.3}
    once = over_classes([one])
    often = over_classes([one] * 20)
    assert vars(often) == pytest.approx(vars(once))
    assert once.mean == pytest.approx(0.1)
    assert once.low < once.mean < once.high
    assert over_classes([{"a": 0.2}, {"a": 0.0, "b": 0.6}]).mean == pytest.approx((0.2 + 0.3) / 2)
    assert over_classes([{"a": 0.0, "b": 0.0}]).high == 0.0


def test_the_interval_draws_classes_and_then_images() -> None:
    """As a plain loop does, in distribution; wider than that of the images where classes differ."""
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(40), rng.integers(1, 7, 40))
    values = np.repeat(rng.normal(0, 1, 40), np.bincount(classes)) + rng.normal(0, 0.1, len(classes))
    means = []
    for _ in range(2000):
        drawn = [values[classes == c] for c in rng.integers(0, 40, 40)]
        means.append(np.concatenate([rng.choice(v, len(v)) for v in drawn]).mean())
    one = clustered(values, classes)
    assert one.mean == pytest.approx(values.mean())
    assert (one.low, one.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05)
    alone = clustered(values, np.arange(len(values)))
    assert one.high - one.low > 1.4 * (alone.high - alone.low)


def test_a_normal_interval_has_two_standard_errors() -> None:
    """1.96 of them; it is shown in per cent with its ends, or with its margin."""
    one = normal([0.0, 1.0] * 10)
    assert one.high - one.mean == pytest.approx(1.96 * 0.51299 / 20**0.5, abs=1e-5)
    assert one.shown() == "+50.0 [+27.5, +72.5]"
    assert one.shown(3, 1.0) == "+0.500 [+0.275, +0.725]"
    assert one.with_margin() == "+50.0 ± 22.5"
