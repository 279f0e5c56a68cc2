"""Turn pictures into the pixels that model.onnx takes, with Pillow and numpy alone."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from numpy.typing import NDArray


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Kinds of files that are read; Pillow has others, some of which run programs."""
THINNEST = 1000
"""How many times as long as the other a picture's side may be."""


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright, with transparent parts in white.

    Raises:
        OSError: If it is missing, damaged, or not one of `FORMATS`.
        ValueError: If it has more than 8 bits a channel, or a side is more than 1,000 times as long as the other.
    """
    image: Image.Image = Image.open(BytesIO(Path(path).read_bytes()), formats=FORMATS)
    if max(image.size) > THINNEST * min(image.size):
        raise ValueError(f"{path}: {image.width} x {image.height} pixels are too thin for a picture")
    image.load()  # turns a TIFF by itself
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        raise ValueError(f"{path}: pixels of the kind {image.mode}; convert them to 8 bits first")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resized_pixels(image: Image.Image, how: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize and crop an RGB picture to pixels uint8 [size, size, 3].

    Args:
        image: The picture.
        how: `preprocess` of labels.json: `size` of the result, `resize`, the side of the square that comes first,
            `resize_mode` (shortest, longest or squash), `interpolation` (bicubic or bilinear), `mode` (RGB, or L for
            grey) and `fill_color`.

    Raises:
        ValueError: If the picture is so thin that a side would have no pixel.
    """
    side = how["resize"]
    if how["mode"] == "L":
        image = image.convert("L").convert("RGB")
    width, height = image.size
    if how["resize_mode"] == "squash":
        size = (side, side)
    elif how["resize_mode"] == "shortest":
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    else:
        ratio = max(width / side, height / side)
        size = (round(width / ratio), round(height / ratio))
    image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
    if how["resize_mode"] == "longest":
        square = Image.new("RGB", (side, side), (how["fill_color"],) * 3)
        square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        image = square
    pixels = _centre(np.asarray(image), side)
    return np.ascontiguousarray(_centre(pixels, how["size"]))


def _centre(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Crop the square in the centre; half a pixel is rounded to the even one."""
    top = round((pixels.shape[0] - size) / 2)
    left = round((pixels.shape[1] - size) / 2)
    return pixels[top : top + size, left : left + size]
