"""Decoding images that may be anything: size is read from the header first, and every failure gives a reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, Union

from PIL import Image, ImageOps, UnidentifiedImageError

from vlltr_index.data.objects import is_address, read_object
from vlltr_index.errors import InputError
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.records import ImageRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 64_000_000
"""Pixels an image may have: more is taken for a decompression bomb."""
MAX_RATIO = 1000
"""How often its shorter side an image's longer one may be: resizing keeps the ratio, and would make a thin one huge."""
MAX_BYTES = 256 * 2**20
"""Bytes an image file may have."""
ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the files that are taken for images, in lower case."""

UNREADABLE = (
    "Give JPEG, PNG, WebP, BMP, GIF or TIFF files; open the image elsewhere to see whether it is whole."
)
"""What to do about an image that cannot be read."""

ImageSource: TypeAlias = Union[str, Path, bytes, Image.Image, "NDArray[np.uint8]"]
"""A file's path or address in object storage, encoded bytes, a PIL image, or an array uint8 [H, W, 3] of red, green and
blue."""

T = TypeVar("T")

_NO_MEMORY = "there is not enough memory for it"
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class Probe(NamedTuple):
    """What decoding an image showed; width and height are those after its EXIF rotation."""

    content_hash: str | None  # SHA-256 of the bytes; None where the file cannot be read
    width: int | None
    height: int | None
    problem: str | None


def open_image(
    source: ImageRecord | ImageSource | os.PathLike[str],
    side: int | None = None,
) -> Image.Image:
    """Decode a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF (first page) into RGB, upright as its EXIF says.

    Transparent parts become white, 16-bit values are scaled to 8 bits, CMYK and palettes are converted; so are those
    of a PIL image. An array is taken as it is. With `side` a larger file's image is resized (bicubic) to that shorter
    side; a JPEG is then decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 that is no smaller, which costs a fraction.

    Raises:
        InputError: With the reason, if the file is missing, of another format, damaged, or has more than
            `MAX_PIXELS` pixels, or if an array is not uint8 [H, W, 3], or memory does not suffice.
    """
    return read_image(source, lambda image: image, side)


def read_image(
    source: ImageRecord | ImageSource | os.PathLike[str],
    transform: Callable[[Image.Image], T],
    side: int | None = None,
) -> T:
    """What `transform` makes of an image that was decoded as by `open_image`.

    Raises:
        InputError: As there, and where `transform` refuses the image, or has too little memory for it.
    """
    try:
        if isinstance(source, ImageRecord | bytes | str | os.PathLike):
            image, size = _decode(_bytes(source), side)
        else:
            image, size = _decode(_in_memory(source))
        image = _rgb(image)
        return transform(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
    except InputError as error:
        why = error.message
    except MemoryError:
        why = _NO_MEMORY
    name = f"of {len(source):,} bytes" if isinstance(source, bytes) else image_label(source)
    raise InputError(f"cannot read the image {name}: {why}")


def probe(
    record: ImageRecord | bytes | str | os.PathLike[str],
    known: Mapping[str, Probe] | None = None,
) -> Probe:
    """Decode an image in full to see whether it can be used; never raises for what is in it.

    Args:
        record: A file's path, or bytes.
        known: Earlier probes by content hash: the same bytes are not decoded again.
    """
    digest = None
    try:
        data = _bytes(record)
        digest = digest_bytes(data)
        if known is not None and digest in known:
            return known[digest]
        _, size = _decode(data)
    except InputError as error:
        return Probe(digest, None, None, error.message)
    except MemoryError:
        return Probe(digest, None, None, _NO_MEMORY)
    return Probe(digest, *size, None)


def reduced_bytes(record: ImageRecord | str, size: tuple[int, int], side: int) -> bytes:
    """The file of an image with its shorter side at `side` pixels.

    A larger image becomes an upright RGB JPEG of quality 95 without chroma subsampling; others keep their bytes.

    Args:
        record: An image that `probe` could read, or its path.
        size: Its (width, height).
        side: In pixels.
    """
    data = image_bytes(record)
    if min(size) <= side:
        return data
    target = BytesIO()
    open_image(data, side=side).save(target, "JPEG", quality=95, subsampling=0)
    return target.getvalue()


def _reduced_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) with the shorter one at `side` pixels and the ratio kept; smaller images stay as they are."""
    short = min(width, height)
    if short <= side:
        return width, height
    return max(1, round(width * side / short)), max(1, round(height * side / short))


def cores() -> list[int]:
    """The numbers of the processor's cores that this process may use: so many images can be decoded at once."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS and Windows have no such call


def image_label(source: ImageRecord | ImageSource | os.PathLike[str]) -> str:
    """What to call an image in an answer: its path, or what it is."""
    if isinstance(source, bytes):
        return "(bytes)"
    if isinstance(source, ImageRecord):
        return source.uri
    return str(source) if isinstance(source, str | os.PathLike) else f"({type(source).__name__})"


def image_bytes(source: ImageRecord | bytes | str | os.PathLike[str]) -> bytes:
    """The bytes of an image file as they are; bytes are what they are.

    Raises:
        InputError: With the reason, if the file is missing, cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        return _bytes(source)
    except InputError as error:
        raise InputError(f"cannot read the image {image_label(source)}: {error.message}") from None


# Those below raise InputError with nothing but the reason.


def _bytes(source: ImageRecord | bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(source, ImageRecord):
        source = source.uri if source.data is None else source.data
    if isinstance(source, bytes):
        return _bounded(source)
    name = os.fspath(source)
    try:
        if is_address(name):
            return _bounded(read_object(name))
        facts = os.stat(name)
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("not a file")
        if facts.st_size > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES >> 20} MiB")
        return Path(name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(getattr(error, "strerror", None) or str(error)) from None


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise InputError(f"larger than {MAX_BYTES >> 20} MiB")
    return data


def _in_memory(source: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """A PIL image as it is, or an array as one."""
    if isinstance(source, Image.Image):
        return source
    shape: tuple[int, ...] = getattr(source, "shape", ())
    kind = getattr(source, "dtype", type(source).__name__)
    if len(shape) != 3 or shape[2] != 3 or not all(shape) or str(kind) != "uint8":
        raise InputError(f"an array must be uint8 [H, W, 3], got {kind} {list(shape)}")
    return Image.fromarray(source)


def _decode(source: bytes | Image.Image, side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded image, turned upright, and the size it is to get."""
    try:
        image = Image.open(BytesIO(source), formats=_FORMATS) if isinstance(source, bytes) else source
        width, height = image.size
        if width * height <= MAX_PIXELS and max(width, height) <= MAX_RATIO * min(width, height):
            image = image if isinstance(source, bytes) else image.copy()
            if side is not None:
                image.draft(None, _reduced_size(width, height, side))  # None: any colours
            drafted = image.size
            image.load()
            with suppress(Exception):  # damaged EXIF data is no reason to lose the picture
                ImageOps.exif_transpose(image, in_place=True)
            size = (width, height) if image.size == drafted else (height, width)
            return image, size if side is None else _reduced_size(*size, side)
    except UnidentifiedImageError:
        raise InputError("not a JPEG, PNG, WebP, BMP, GIF or TIFF image, or damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"more than the {MAX_PIXELS:,} pixels allowed") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds for damaged files
        raise InputError(f"truncated or corrupt: {str(error) or type(error).__name__}") from None
    if width * height > MAX_PIXELS:
        raise InputError(f"{width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} allowed")
    raise InputError(f"{width:,} x {height:,} pixels: one side is more than {MAX_RATIO:,} times the other")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        return _scaled(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        paper = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(paper, pixels).convert("RGB")
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise InputError(f"colours of the kind {image.mode} cannot be converted: {error}") from None


def _scaled(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits or of floats (0 to 1, else 0 to 255) in 8 bits."""
    import numpy as np

    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    top = values.max()
    if image.mode == "F":
        factor = 255.0 if top <= 1 else 1.0
    else:
        factor = 255 / 65535 if image.mode != "I" or top > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(values * factor), 0, 255).astype(np.uint8))
