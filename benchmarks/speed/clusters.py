"""Random but clustered inputs: classes have centres, images and sentences lie around them, norms vary."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["around", "centres"]


def centres(rng: np.random.Generator, classes: int, dim: int) -> NDArray[np.float32]:
    """Unit rows float32 [classes, dim], in groups that are near one another."""
    groups = rng.standard_normal((max(1, classes // 20), dim), dtype=np.float32)
    rows = groups[rng.integers(0, len(groups), classes)] + 0.7 * rng.standard_normal(
        (classes, dim), dtype=np.float32
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def around(
    rng: np.random.Generator, centre: NDArray[np.float32], labels: NDArray[Any], spread: float = 0.6
) -> NDArray[np.float32]:
    """Unnormalised rows float32 [N, dim] around the centre of each label."""
    dim = centre.shape[1]
    noise = rng.standard_normal((len(labels), dim), dtype=np.float32)
    noise *= spread / np.sqrt(dim)
    noise += centre[labels]
    noise *= rng.uniform(6.0, 14.0, (len(labels), 1)).astype(np.float32)
    return noise
