"""Five small models answer as they did when their answers were stored, see `tests.support.frozen`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import frozen

TOLERANCE = 1e-6
LOG_ODDS = 1e-5  # of what comes from log-odds, which are computed in float32 and as large as 30
PARTS = ("image", "text", "explained", "added")


@pytest.mark.parametrize("name", [*frozen.DRAWS, frozen.STAGE_ONE])
def test_answers_are_those_that_are_stored(name: str) -> None:
    """Probabilities, contributions, explanations, added classes, choices, the out-of-fold table and notes."""
    found, expected = frozen.answers(name), frozen.stored()[name]
    differ = [
        what
        for what in expected
        if not _alike(found[what], expected[what], LOG_ODDS if what in PARTS else TOLERANCE)
    ]
    assert found.keys() == expected.keys()
    assert not differ, (
        f"{name}: {', '.join(differ)} differ; to store them again: python -m tests.support.frozen"
    )


def _alike(found: Any, expected: Any, tolerance: float) -> bool:
    """Compare nested lists and dictionaries of numbers and texts."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            _alike(found[key], expected[key], tolerance) for key in expected
        )
    if isinstance(expected, list):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(_alike(one, other, tolerance) for one, other in pairs)
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, rel=TOLERANCE, abs=tolerance))
    return bool(found == expected)
