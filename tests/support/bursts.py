"""Small grey pictures of scenes, and bursts of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE = 32
_MARGIN = 6


def _fields(generator: torch.Generator, count: int) -> Tensor:
    """Random fields of several scales, float32 [N, 44, 44]."""
    side = _SIDE + 2 * _MARGIN
    layers = [
        F.interpolate(torch.rand(count, 1, n, n, generator=generator), (side, side), mode="bicubic")
        for n in (4, 9, 20)
    ]
    return torch.stack(layers).mean(0)[:, 0]


def scenes(generator: torch.Generator, count: int) -> Tensor:
    """Different scenes, uint8 [N, 32, 32]."""
    return (_fields(generator, count)[:, :_SIDE, :_SIDE].clamp(0, 1) * 255).byte()


def bursts_of(generator: torch.Generator, count: int, each: int) -> tuple[Tensor, Tensor]:
    """Bursts of scenes, a little moved, darker or lighter, and noisy: uint8 [N, 32, 32] and the burst of each [N]."""
    pictures = []
    for field in _fields(generator, count):
        for _ in range(each):
            y, x = (_MARGIN + torch.randint(-2, 3, (2,), generator=generator)).tolist()
            light = 0.8 + 0.4 * torch.rand(1, generator=generator)
            noise = 0.01 * torch.randn(_SIDE, _SIDE, generator=generator)
            pictures.append(field[y : y + _SIDE, x : x + _SIDE] * light + noise)
    return (torch.stack(pictures).clamp(0, 1) * 255).byte(), torch.arange(count).repeat_interleave(each)
