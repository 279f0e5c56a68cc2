"""Bounds of rounding errors that hold on every processor."""

from __future__ import annotations

import torch


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
