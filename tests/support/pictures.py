"""What the tests of decoding and of image sources share: small pictures, and what a reader takes and leaves out."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

RNG = np.random.default_rng(0)
COLOURS = Image.fromarray(RNG.integers(0, 255, (5, 7, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def put(path: Path, data: bytes | None = None) -> Path:
    """Write an image file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(COLOURS) if data is None else data)
    return path


def timed(
    original: str | None,
    part: str | None = None,
    changed: str | None = None,
    kind: str = "JPEG",
    image: Image.Image = COLOURS,
) -> bytes:
    """A picture whose EXIF data say when it was taken, with a part of a second, or when its file was changed."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "A camera"  # without an entry beside it Pillow does not write the other part
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    if original is not None:
        inner[ExifTags.Base.DateTimeOriginal] = original
    if part is not None:
        inner[ExifTags.Base.SubsecTimeOriginal] = part
    if changed is not None:
        exif[ExifTags.Base.DateTime] = changed
    return encoded(image, kind, exif=exif)
