"""Units of images that count as one observation: near duplicates, and groups that the collection names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlltr_index.tensors import unit_rows

_ALIKE = 0.9995  # least cosine of near duplicates
_AT_ONCE = 512


def units_of(features: Tensor, labels: Tensor, groups: Sequence[str | None]) -> list[str]:
    """Name the unit of each image: its group, or else the unit of the first near duplicate in its class.

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
    """Number observations from 0, int64 [N]: the images of a unit that are of one class are one observation."""
    numbers: dict[tuple[int, str], int] = {}
    keys = zip(labels.tolist(), units, strict=True)
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)
