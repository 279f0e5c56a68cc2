"""Drawing one character of one face as a 32 x 32 grey image."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.glyphs_lt.fonts import Face

SIDE = 32
OVERSAMPLE = 4
CAP_HEIGHT = 14
BASELINE = 22
LOST_INK = 0.05
LEAST_INK = 2 * 255

Image = npt.NDArray[np.uint8]


@lru_cache(maxsize=8)
def _opened(path: str, number: int, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(path, size, index=number, layout_engine=ImageFont.Layout.BASIC)


def _ink(font: Any, char: str) -> tuple[Image, int, int]:
    """Return the ink of a character and the place of its top left corner, from the pen and the baseline."""
    mask, (left, top) = font.getmask2(char, mode="L", anchor="ls")
    width, height = mask.size
    ink = np.frombuffer(bytes(mask), dtype=np.uint8).reshape(height, width)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return np.zeros((0, 0), dtype=np.uint8), 0, 0
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box, int(left + columns[0]), int(top + rows[0])


def font_size(face: Face) -> int:
    """Return the size at which the face's H is CAP_HEIGHT * OVERSAMPLE pixels high (0 where that cannot be told)."""
    wanted = CAP_HEIGHT * OVERSAMPLE
    probe = 400
    letter = "H" if ord("H") in face.chars else ""
    if not letter:
        return round(wanted / 0.714)
    height: int = _ink(_opened(str(face.path), face.number, probe), letter)[0].shape[0]
    if height == 0:
        return 0
    return max(8, round(probe * wanted / height))


def place(ink: Image, top: int) -> Image | None:
    """Put ink on the canvas, centred, its top `top` above or below the baseline, and reduce it to SIDE x SIDE.

    Returns None where more than LOST_INK of the ink falls outside the canvas, or hardly any ink is left.
    """
    big = SIDE * OVERSAMPLE
    height, width = ink.shape
    row, column = BASELINE * OVERSAMPLE + top, (big - width) // 2
    canvas = np.zeros((big, big), dtype=np.uint8)
    rows = slice(max(row, 0), min(row + height, big))
    columns = slice(max(column, 0), min(column + width, big))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return None
    canvas[rows, columns] = ink[
        rows.start - row : rows.stop - row, columns.start - column : columns.stop - column
    ]
    kept = int(canvas.sum(dtype=np.int64))
    if kept < (1.0 - LOST_INK) * int(ink.sum(dtype=np.int64)):
        return None
    blocks = canvas.reshape(SIDE, OVERSAMPLE, SIDE, OVERSAMPLE).astype(np.uint32).sum(axis=(1, 3))
    small = ((blocks + OVERSAMPLE * OVERSAMPLE // 2) // (OVERSAMPLE * OVERSAMPLE)).astype(np.uint8)
    return small if int(small.sum(dtype=np.int64)) >= LEAST_INK else None


def render_face(face: Face, codes: Iterable[int]) -> dict[int, Image]:
    """Draw the given characters; blank ones, those of the missing-glyph box and those too large are left out."""
    size = font_size(face)
    if size == 0:
        return {}
    font = _opened(str(face.path), face.number, size)
    missing = _ink(font, "\U000f1234")[0]
    images: dict[int, Image] = {}
    for code in sorted(set(codes) & face.chars):
        try:
            ink, _, top = _ink(font, chr(code))
        except OSError:  # an outline that FreeType cannot fill
            continue
        if ink.size == 0 or (ink.shape == missing.shape and np.array_equal(ink, missing)):
            continue
        image = place(ink, top)
        if image is not None:
            images[code] = image
    return images


def render_face_task(task: tuple[Face, tuple[int, ...]]) -> dict[int, Image]:
    """Run render_face on one packed task, for a pool of processes."""
    return render_face(*task)


def to_png(image: Image) -> bytes:
    """Return the PNG bytes of a grey image, always compressed in the same way."""
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", optimize=False, compress_level=9)
    return buffer.getvalue()


def from_png(data: bytes) -> Image:
    """Return the grey image of PNG bytes, shape (SIDE, SIDE)."""
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"), dtype=np.uint8)
