"""Bounds of rounding errors that hold on every processor, and orders up to these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

__all__ = ["PROBABILITY", "rounding", "same_order"]

PROBABILITY = 1e3 * torch.finfo(torch.float32).eps
"""What float32 rounds a probability by at most, 1.2e-4: it rounds scores of size 1e3 by half of that several times, and
a probability changes by at most a quarter of what its score does."""


def rounding(operations: int, dtype: torch.dtype = torch.float32) -> float:
    """Bound the error of a sum, relative to the sum of its terms' magnitudes: gamma_n = n u / (1 - n u).

    It holds for every order of summation, with and without fused operations (Higham 2002, sections 3.1 and 4.2).

    Args:
        operations: n, the most roundings that any term goes through, its own included. For the product of vectors of
            length D that is D, and one more for each factor that is itself rounded.
        dtype: u is half the distance from 1 to the next number of this dtype.
    """
    error = operations * torch.finfo(dtype).eps / 2
    assert error < 1.0
    return error / (1.0 - error)


def same_order(names: Sequence[str], values: Mapping[str, float], near: float = 0.01) -> bool:
    """Say whether names are those of the largest values in falling order, ties in either order.

    Args:
        names: What was ranked, the best first.
        values: Positive numbers by name, of all names.
        near: The relative difference below which two values are a tie; that of a probability is the error of its score.
    """
    best = sorted(values.values(), reverse=True)
    pairs = zip(names, best, strict=False)
    return len(set(names)) == len(names) and all(
        math.isclose(values[name], value, rel_tol=near) for name, value in pairs
    )
