"""Decoding of untrusted images: the size is checked by the header first, and every failure has a reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, Union

from PIL import Image, ImageOps, UnidentifiedImageError

from vlltr_index.data.capture import FORMATS, time_taken
from vlltr_index.data.objects import is_address, read_object
from vlltr_index.errors import InputError
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.records import ImageRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 64_000_000
"""Most pixels of an image; a larger one is taken for a decompression bomb."""
MAX_RATIO = 1000
"""Largest ratio of an image's longer side to its shorter one; resizing would make a thinner image very large."""
MAX_BYTES = 256 * 2**20
"""Most bytes of an image file."""
ENDINGS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of files that are taken for images, in lower case."""

THUMBNAIL = 32
"""Side of the small grey copy of an image that is kept beside it."""

UNREADABLE = (
    "Give JPEG, PNG, WebP, BMP, GIF or TIFF files; open the image elsewhere to see whether it is whole."
)
"""Hint for an image that cannot be read."""

ImageSource: TypeAlias = Union[str, Path, bytes, Image.Image, "NDArray[np.uint8]"]
"""A file's path or address in object storage, encoded bytes, a PIL image, or an array uint8 [H, W, 3] of red, green and
blue."""

T = TypeVar("T")

_NO_MEMORY = "there is not enough memory for it"


class Probe(NamedTuple):
    """Result of decoding an image; width and height are those after its EXIF rotation."""

    content_hash: str | None  # SHA-256 of the bytes; None if the file cannot be read
    width: int | None
    height: int | None
    problem: str | None
    taken: float | None = None  # see `capture.time_taken`
    thumbnail: bytes | None = None  # grey, THUMBNAIL x THUMBNAIL, by which near duplicates are known


def open_image(
    source: ImageRecord | ImageSource | os.PathLike[str],
    side: int | None = None,
) -> Image.Image:
    """Decode a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF (first page) into RGB, upright as its EXIF says.

    Transparent parts become white, 16-bit values are scaled to 8 bits, CMYK and palettes are converted, also of a PIL
    image. An array is used as it is. With `side` the image of a file is resized (bicubic) so that its shorter side has
    this length, if it is longer; a JPEG is then decoded at 1/2, 1/4 or 1/8 of its size if that suffices, which is much
    quicker.

    Raises:
        InputError: The file is missing, of another format, damaged, or has more than `MAX_PIXELS` pixels; an array is
            not uint8 [H, W, 3]; or memory does not suffice. The message has the reason.
    """
    return read_image(source, lambda image: image, side)


def read_image(
    source: ImageRecord | ImageSource | os.PathLike[str],
    transform: Callable[[Image.Image], T],
    side: int | None = None,
) -> T:
    """Decode an image as `open_image` does, and return the result of `transform` for it.

    Raises:
        InputError: As for `open_image`; or `transform` refuses the image, or memory does not suffice for it.
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
    """Decode an image in full to check whether it can be used; problems are returned, not raised.

    Args:
        record: A file's path, or bytes.
        known: Earlier probes by content hash; the same bytes are not decoded again.
    """
    digest = None
    try:
        data = _bytes(record)
        digest = digest_bytes(data)
        if known is not None and digest in known:
            return known[digest]
        image, (width, height) = _decode(data)
        small = _thumbnail(image)
    except InputError as error:
        return Probe(digest, None, None, error.message)
    except MemoryError:
        return Probe(digest, None, None, _NO_MEMORY)
    return Probe(digest, width, height, None, taken=time_taken(data), thumbnail=small)


def _thumbnail(image: Image.Image) -> bytes | None:
    """Return a decoded image as the bytes of a small grey square; None if its colours cannot be converted."""
    try:
        plain = image if image.mode in ("L", "RGB", "RGBA", "CMYK") else _rgb(image)
        size = (THUMBNAIL, THUMBNAIL)
        small = plain.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        return _rgb(small).convert("L").tobytes()
    except InputError:
        return None


def content_hash(record: ImageRecord) -> str | None:
    """Compute the SHA-256 of an image's bytes; None if they cannot be read."""
    try:
        return digest_bytes(_bytes(record))
    except (InputError, MemoryError):
        return None


def reduced_bytes(record: ImageRecord | str, size: tuple[int, int], side: int) -> bytes:
    """Return the bytes of an image file, reduced so that the shorter side has at most `side` pixels.

    A larger image becomes an upright RGB JPEG of quality 95 without chroma subsampling; others keep their bytes.

    Args:
        record: An image that `probe` could read, or its path.
        size: The image's (width, height).
        side: Length of the shorter side in pixels.
    """
    data = image_bytes(record)
    if min(size) <= side:
        return data
    target = BytesIO()
    open_image(data, side=side).save(target, "JPEG", quality=95, subsampling=0)
    return target.getvalue()


def _reduced_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Scale (width, height) so that the shorter one is `side` pixels; smaller images keep their size."""
    short = min(width, height)
    if short <= side:
        return width, height
    return max(1, round(width * side / short)), max(1, round(height * side / short))


def cores() -> list[int]:
    """Return the numbers of the CPU cores that this process may use; their count is that of useful decoders."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS and Windows have no such call


def image_label(source: ImageRecord | ImageSource | os.PathLike[str]) -> str:
    """Return a label for an image in answers: its path, or its kind."""
    if isinstance(source, bytes):
        return "(bytes)"
    if isinstance(source, ImageRecord):
        return source.uri
    return str(source) if isinstance(source, str | os.PathLike) else f"({type(source).__name__})"


def image_bytes(source: ImageRecord | bytes | str | os.PathLike[str]) -> bytes:
    """Read the bytes of an image file; bytes are returned as they are.

    Raises:
        InputError: The file is missing, cannot be read, or is larger than `MAX_BYTES`; the message has the reason.
    """
    try:
        return _bytes(source)
    except InputError as error:
        raise InputError(f"cannot read the image {image_label(source)}: {error.message}") from None


# The functions below raise InputError with the reason alone; callers add the image.


def _bytes(source: ImageRecord | bytes | str | os.PathLike[str]) -> bytes:
    """Read the bytes of an image, from a file or object storage."""
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
    """Refuse more than `MAX_BYTES` bytes."""
    if len(data) > MAX_BYTES:
        raise InputError(f"larger than {MAX_BYTES >> 20} MiB")
    return data


def _in_memory(source: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """Return a PIL image as it is, or convert an array to one."""
    if isinstance(source, Image.Image):
        return source
    shape: tuple[int, ...] = getattr(source, "shape", ())
    kind = getattr(source, "dtype", type(source).__name__)
    if len(shape) != 3 or shape[2] != 3 or not all(shape) or str(kind) != "uint8":
        raise InputError(f"an array must be uint8 [H, W, 3], got {kind} {list(shape)}")
    return Image.fromarray(source)


def _decode(source: bytes | Image.Image, side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image and turn it upright; return also the size that it must be resized to."""
    try:
        image = Image.open(BytesIO(source), formats=FORMATS) if isinstance(source, bytes) else source
        width, height = image.size
        if width * height <= MAX_PIXELS and max(width, height) <= MAX_RATIO * min(width, height):
            image = image if isinstance(source, bytes) else image.copy()
            if side is not None:
                image.draft(None, _reduced_size(width, height, side))  # None keeps the colour mode
            drafted = image.size
            image.load()
            with suppress(Exception):  # an image with damaged EXIF data can still be used
                ImageOps.exif_transpose(image, in_place=True)
            size = (width, height) if image.size == drafted else (height, width)
            return image, size if side is None else _reduced_size(*size, side)
    except UnidentifiedImageError:
        raise InputError("not a JPEG, PNG, WebP, BMP, GIF or TIFF image, or damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"more than the {MAX_PIXELS:,} pixels allowed") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds of errors for damaged files
        raise InputError(f"truncated or corrupt: {str(error) or type(error).__name__}") from None
    if width * height > MAX_PIXELS:
        raise InputError(f"{width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} allowed")
    raise InputError(f"{width:,} x {height:,} pixels: one side is more than {MAX_RATIO:,} times the other")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, with transparent parts in white."""
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
    """Scale a grey image of 16 or 32 bits, or of floats (0 to 1, else 0 to 255), to 8 bits."""
    import numpy as np

    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    top = values.max()
    if image.mode == "F":
        factor = 255.0 if top <= 1 else 1.0
    else:
        factor = 255 / 65535 if image.mode != "I" or top > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(values * factor), 0, 255).astype(np.uint8))
