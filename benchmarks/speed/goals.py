"""A goal beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Goal", "at_least", "at_most", "memory", "ratio"]


@dataclass(frozen=True)
class Goal:
    """One goal of a question at one size.

    Attributes:
        what: The quantity.
        wanted: The goal in words.
        found: What was measured.
        met: Whether that is good enough.
        extrapolated: Whether a competitor did a part of the work only.
    """

    what: str
    wanted: str
    found: float
    met: bool
    extrapolated: bool = False


def at_least(what: str, found: float, wanted: float, unit: str = "", extrapolated: bool = False) -> Goal:
    """A goal that larger values meet."""
    return Goal(what, f"at least {wanted:g}{unit}", found, found >= wanted, extrapolated)


def at_most(what: str, found: float, wanted: float, unit: str = "", extrapolated: bool = False) -> Goal:
    """A goal that smaller values meet."""
    return Goal(what, f"at most {wanted:g}{unit}", found, found <= wanted, extrapolated)


def ratio(rows: Mapping[str, Any], slow: str, fast: str, gpu: bool = False) -> tuple[float, bool]:
    """How many times as long `slow` takes as `fast`, and whether one of them was extrapolated.

    By processor time where both have it and no GPU works: on a machine that others use it is what repeats.
    """
    key = "cpu_median" if not gpu and all("cpu_median" in rows[n] for n in (slow, fast)) else "median"
    parts = rows[slow]["portion"] < 1 or rows[fast]["portion"] < 1
    return rows[slow][key] / rows[fast][key], parts


def memory(row: Mapping[str, Any], fixed: float) -> float:
    """Peak MiB of a run with what it holds all along (`fixed` MiB, such as the anchors)."""
    return float(row["peak_extra_mib"]) + fixed
