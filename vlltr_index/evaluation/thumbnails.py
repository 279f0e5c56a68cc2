"""Small pictures as data URIs."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

from PIL import Image

from vlltr_index.data.decoding import open_image
from vlltr_index.errors import InputError
from vlltr_index.evaluation.records import Thumbnail

__all__ = ["thumbnail"]

_SIDE = 144  # pixels at most: shown at half of that, sharp on dense screens too


def thumbnail(source: bytes | str) -> Thumbnail:
    """A picture of at most 144 pixels a side, as PNG or JPEG, whichever is smaller.

    Args:
        source: Encoded bytes, or a path. One that cannot be read gives a thumbnail that says why.
    """
    try:
        image = open_image(source)
    except InputError:
        return Thumbnail(None, problem="cannot be read")
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        target = BytesIO()
        image.save(target, kind, **options)
        encoded.append((kind, target.getvalue()))
    kind, data = min(encoded, key=lambda pair: len(pair[1]))
    return Thumbnail(f"data:image/{kind};base64,{b64encode(data).decode()}", *image.size)
