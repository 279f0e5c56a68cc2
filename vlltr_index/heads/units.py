"""What counts as one observation: near duplicates, and what a collection says belongs together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlltr_index.tensors import unit_rows

_ALIKE = 0.9995  # cosine of near duplicates
_AT_ONCE = 512


def units_of(features: Tensor, labels: Tensor, groups: Sequence[str | None]) -> list[str]:
    """Name the unit of each image: its group, or else that of the first image of its class that is nearly the same.

    A group may have images of several classes.

    Args:
        features: Float [N, D], unnormalised.
        labels: Int64 [N], on the CPU.
        groups: The group of each image, None for an image by itself.
    """
    images = unit_rows(features)
    units = [f"group {group}" if group else f"image {n}" for n, group in enumerate(groups)]
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0].tolist()
        own = torch.tensor(sorted(own, key=lambda n: not groups[n]))  # those with a group first
        first = [(images[part] @ images[own].T > _ALIKE).int().argmax(1) for part in own.split(_AT_ONCE)]
        for n, at in zip(own.tolist(), own[torch.cat(first).cpu()].tolist(), strict=True):
            if not groups[n]:
                units[n] = units[at]
    return units


def number_observations(labels: Tensor, units: Sequence[str]) -> Tensor:
    """Number what is one observation, int64 [N] from 0: the images of a unit that are of one class, int64 [N]."""
    numbers: dict[tuple[int, str], int] = {}
    keys = zip(labels.tolist(), units, strict=True)
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)
