"""Drawing an icon as a 48 x 48 grey image, and telling how far two images are apart."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image as Pillow

SIDE, FIT = 48, 40
"""Side of the image, and of the square that the icon's ink fills, in pixels."""
ALIKE = 0.03
LEAST_INK = 20 * 255
_PROBE = 64

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Drawing:
    """The body of an SVG and its view box: left, top, width, height."""

    body: str
    left: float
    top: float
    width: float
    height: float


def _alpha(body: str, left: float, top: float, size: float, side: int) -> Image:
    """Opacity of a square of the drawing, uint8 [side, side]: what is not painted is paper."""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
        f'width="{side}" height="{side}" viewBox="{left:.4f} {top:.4f} {size:.4f} {size:.4f}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True))
    with Pillow.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))[:, :, 3]


def draw(icon: Drawing) -> Image | None:
    """Draw an icon so that its ink is centred and FIT pixels long; None where there is hardly any ink."""
    size = max(icon.width, icon.height)
    left, top = icon.left - (size - icon.width) / 2, icon.top - (size - icon.height) / 2
    probe = _alpha(icon.body, left, top, size, _PROBE) > 16
    rows, columns = np.flatnonzero(probe.any(1)), np.flatnonzero(probe.any(0))
    if not len(rows):
        return None
    unit = size / _PROBE
    across, down = int(columns[0] + columns[-1] + 1), int(rows[0] + rows[-1] + 1)
    longest = max(int(columns[-1] - columns[0]), int(rows[-1] - rows[0])) + 1
    side = longest * unit * SIDE / FIT
    image = _alpha(
        icon.body, left + across * unit / 2 - side / 2, top + down * unit / 2 - side / 2, side, SIDE
    )
    return image if int(image.sum(dtype=np.int64)) >= LEAST_INK else None


def features(images: npt.NDArray[np.uint8]) -> Floats:
    """Means over 2 x 2 pixels in 64 steps, float32 [N, 576]: small whole numbers, so that their products are exact."""
    half = SIDE // 2
    sums = images.reshape(-1, half, 2, half, 2).sum((2, 4), dtype=np.uint16)
    return (sums >> 4).astype(np.float32).reshape(-1, half * half)


def alike(one: Floats, two: Floats) -> npt.NDArray[np.bool_]:
    """Which features of [N, 576] and [M, 576] are near-duplicates, |a - b|^2 < ALIKE (|a|^2 + |b|^2): bool [N, M]."""
    squares = (one * one).sum(1)[:, None] + (two * two).sum(1)[None]
    return np.asarray(squares - 2 * (one @ two.T) < np.float32(ALIKE) * squares)


def to_png(image: Image) -> bytes:
    """PNG bytes of a grey image, always compressed in the same way."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", optimize=False, compress_level=9)
    return buffer.getvalue()
