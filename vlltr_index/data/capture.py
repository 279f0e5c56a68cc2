"""When a picture was taken, as its EXIF data says."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats that are read."""

_TIME = re.compile(r"([0-9]{4}):([0-9]{2}):([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})")
_PART = re.compile(r"[0-9]{1,9}")
_TAGS = ExifTags.Base


def time_taken(data: bytes) -> float | None:
    """Read when a picture was taken: EXIF's DateTimeOriginal with its part of a second, else DateTime.

    Args:
        data: The file's bytes; its pixels are not decoded.

    Returns:
        Seconds since 1970 by the camera's clock, which has no time zone; None if the file does not say it, or its EXIF
        data are damaged.
    """
    # Pillow warns of damaged EXIF data, and raises many kinds of errors for them.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            exif = image.getexif()
            inner = exif.get_ifd(ExifTags.IFD.Exif)
        original = _seconds(inner.get(_TAGS.DateTimeOriginal), inner.get(_TAGS.SubsecTimeOriginal))
        return (
            _seconds(exif.get(_TAGS.DateTime), inner.get(_TAGS.SubsecTime)) if original is None else original
        )
    return None


def _seconds(text: Any, part: Any) -> float | None:
    """Parse a time of EXIF and its part of a second."""
    found = _TIME.fullmatch(text.strip("\0 ")) if isinstance(text, str) else None
    if found is None:
        return None
    time = datetime.strptime(" ".join(found.groups()), "%Y %m %d %H %M %S")
    whole = time.replace(tzinfo=UTC).timestamp()
    digits = _PART.fullmatch(part.strip("\0 ")) if isinstance(part, str) else None
    return whole if digits is None else whole + float(f"0.{digits[0]}")
