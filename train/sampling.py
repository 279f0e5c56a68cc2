"""Sampling of training images by a power law with replacement, and seeded random number generators."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*names: object) -> int:
    """Compute a seed below 2^63 that depends on all of `names` and on nothing else."""
    text = "\0".join(map(str, names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(*names: object) -> torch.Generator:
    """Make a CPU generator for the purpose that `names` identify, such as `stream(seed, epoch, "texts")`."""
    return torch.Generator().manual_seed(seed_of(*names))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of steps, at least one, in which about as many images are drawn as there are."""
    return max(1, round(images / batch_size))


def epoch_batches(
    labels: Tensor, batch_size: int, power: float, generator: torch.Generator, steps: int | None = None
) -> Tensor:
    """Draw the positions of one epoch's images, with replacement, by the weights n_c^-power.

    Args:
        labels: Int64 [N], the class of each image.
        batch_size: Images a step, over all processes.
        power: 0 draws images uniformly, 0.5 is the square-root sampler, 1 draws classes uniformly.
        generator: Source of the random numbers.
        steps: Number of steps; None: that of `steps_per_epoch`.

    Returns:
        Int64 [steps, batch_size].
    """
    labels = labels.cpu()
    steps = steps or steps_per_epoch(labels.numel(), batch_size)
    counts = torch.bincount(labels).double()
    edges = counts[labels].pow(-power).cumsum(0)
    draws = torch.rand(steps * batch_size, generator=generator, dtype=torch.float64) * edges[-1]
    positions = torch.searchsorted(edges, draws, right=True).clamp(max=labels.numel() - 1)
    return positions.view(steps, batch_size)
