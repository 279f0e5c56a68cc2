"""What the parts of answers have to add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from vlltr_index.schemas.records import ClassScore

__all__ = ["check_parts"]


def check_parts(classes: Sequence[ClassScore]) -> None:
    """Parts of an image's best classes, two at least: the probability, or the log-odds against the best other class."""
    best, second = classes[0].probability, classes[1].probability
    for place, one in enumerate(classes):
        total = one.image_part + one.text_part + one.prior_part
        assert 0.0 <= one.image_share <= 1.0
        if one.unit == "probability":
            assert total == pytest.approx(one.probability, abs=1e-5)
            continue
        assert one.unit == "log-odds"
        if min(one.probability, second) > 1e-30:
            odds = math.log(one.probability / (best if place else second))
            assert total == pytest.approx(odds, rel=1e-3, abs=2e-3)
