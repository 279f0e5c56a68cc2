"""Classes of small pictures that are alike, but not equal: blots that a class has, and as many of each picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GROUP = r"path:([a-z]+/\d+)-"
"""The value of `--group` by which the pictures of `write` belong together."""


def picture(name: str, number: int) -> Image.Image:
    """The picture of a number of a class, 32 x 32."""
    canvas = np.full((32, 32), 255, np.uint8)
    own = np.random.default_rng(sum(map(ord, name)))
    other = np.random.default_rng([number, *map(ord, name)])
    for rng, blots in ((own, 4), (other, 3)):
        for row, column, size in rng.integers(3, 25, (blots, 3)):
            canvas[row : row + size // 3, column : column + size // 4] = 0
    return Image.fromarray(canvas)


def write(folder: Path, name: str, groups: int) -> Path:
    """Write groups of two pictures that are nearly equal to `folder` / NAME / GROUP-NUMBER.png; return the folder."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for group in range(groups):
        for number in range(2):
            image = picture(name, group)
            image.putpixel((number, 0), 200)
            image.save(place / f"{group}-{number}.png")
    return place
