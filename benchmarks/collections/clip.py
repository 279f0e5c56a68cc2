"""Vectors of CLIP's geometry: norm 10, scale 100, a large common mean, images and texts far apart.

A picture's file name and a sentence name their class, and their vectors are drawn from that.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from vlltr_index.embedding.pixels import NamedImage
from vlltr_index.embedding.vectors import ImageVectors

__all__ = ["SCALE", "ClipGeometry"]

WIDTH = 512
NORM = 10.0
SCALE = 100.0
CLASS = 0.25  # length of a class's own part, beside a mean of length 1
NOISE = 0.9  # length of what differs within a class
TEXT_CLASS = 0.4  # the same of sentences
TEXT_NOISE = 0.5
SHARED = 0.8  # cosine of both towers' class parts
_NAME = re.compile(r"kind-\d+-\d+")


@cache
def _spectrum() -> Tensor:
    """Standard deviations of a vector of length about one whose variance falls with its place, [D]."""
    falling = torch.arange(1, WIDTH + 1).double() ** -0.25
    return torch.nn.functional.normalize(falling, dim=0)


_class_direction = cache(lambda name: _direction(name))


def _direction(name: str) -> Tensor:
    """A vector of length about one, float64 [D], drawn from `name`."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return (
        torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * _spectrum()
    )


def _vector(tower: str, own: Tensor | float, noise: float, seed: str) -> Tensor:
    mean = torch.nn.functional.normalize(_direction(f"mean of {tower}"), dim=0)
    row = mean + own + noise * _direction(seed)
    return NORM * torch.nn.functional.normalize(row, dim=0)


class ClipGeometry:
    """An engine whose vectors are drawn from the names in texts and files, as `vlltr_index.embedding.vectors.Engine`.

    An augmented view has a tenth of the noise of its own. A sentence that names no class has no class's part.
    """

    def texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], Tensor, int]]:
        """Yield all keys and their vectors at once."""
        if texts:
            yield [key for key, _ in texts], torch.stack([_of_text(text) for _, text in texts]).float(), 0

    def images(self, batches: Iterable[Sequence[NamedImage]], views: Sequence[int]) -> Iterator[ImageVectors]:
        """Yield the vectors of each batch."""
        for batch in batches:
            rows = [_of_picture(Path(str(path)).stem, view) for view, (_, path) in product(views, batch)]
            found = torch.stack(rows).float().view(len(views), len(batch), -1)
            yield ImageVectors([i for i, _ in batch], found, {})


def _of_text(text: str) -> Tensor:
    found = _NAME.search(text)
    own: Tensor | float = 0.0
    if found is not None:
        rest = math.sqrt(1 - SHARED**2) * _direction(f"words of {found[0]}")
        own = TEXT_CLASS * (SHARED * _class_direction(found[0]) + rest)
    return _vector("texts", own, TEXT_NOISE, text)


def _of_picture(stem: str, view: int) -> Tensor:
    own = CLASS * _direction(stem.split(".")[0])
    if view:
        own = own + 0.1 * NOISE * _direction(f"{stem}:{view}")
    return _vector("images", own, NOISE, stem)
