"""Decoded images on disk, so that an image is decoded and resized once and not in every epoch."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlltr_index.errors import WorkspaceError
from vlltr_index.images.decode import content_hash, image_bytes, open_image, reduced_size

__all__ = ["Need", "PixelCache", "reduced_cache", "reduced_need"]

_log = logging.getLogger(__name__)

_FORMAT = 1
_HEADER = 128  # bytes of an .npy file before its array
_BLOCK = 4096  # what a file system gives at least
_ABANDONED = 3600.0  # seconds after which an unfinished file is taken for a killed process's


class Need(NamedTuple):
    """What a cache lacks: images that are not in it, and the bytes that they will take on disk."""

    images: int
    bytes: int


class PixelCache:
    """Images as uint8 [H, W, 3] arrays, each in a file named by the SHA-256 of the bytes it was decoded from.

    A file is written whole or not at all, so any number of processes may fill one cache, and a stopped one goes on
    where it was. Files are mapped into memory; one that is damaged is made again. The folder may be deleted at any
    time.

    Args:
        folder: Where it lies; its name says what was done to the images, so that others are never taken.
        make: Bytes of an image to the RGB image that is kept.
    """

    def __init__(self, folder: Path, make: Callable[[bytes], Image.Image]) -> None:
        self.folder, self._make, self._writes = folder, make, True

    def image(self, source: bytes | str, digest: str | None) -> Image.Image:
        """The image, from its file where there is one, else made and kept.

        Args:
            source: Bytes, or the path, of the image.
            digest: SHA-256 of its bytes as it came in; None, or a source that has changed since, is not kept.

        Raises:
            InputError: As `open_image`.
        """
        found = self._read(digest) if digest is not None else None
        if found is not None:
            return found
        data = image_bytes(source)
        image = self._make(data)
        if digest is not None and self._writes and content_hash(data) == digest:
            self._write(self._path(digest), np.asarray(image))
        return image

    def need(self, bytes_of: Mapping[str, int]) -> Need:
        """What is missing of the images whose digests and bytes (of the bare array) are given."""
        there = {path.stem for path in self.folder.glob("??/*.npy")}
        missing = [size for digest, size in bytes_of.items() if digest not in there]
        return Need(len(missing), sum(-(-(size + _HEADER) // _BLOCK) * _BLOCK for size in missing))

    def prepare(self, bytes_of: Mapping[str, int], known: Iterable[str]) -> Need:
        """Say what the cache will take, see that it fits, and drop files of images that are gone.

        Args:
            bytes_of: As for `need`.
            known: Digests of all images that the workspace has; files of others are removed.

        Raises:
            WorkspaceError: If the disk is too small, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._drop(set(known))
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise WorkspaceError(
                f"the image cache {self.folder} cannot be written: {error.strerror}",
                "Mend that, or leave --cache-images out.",
            ) from None
        need = self.need(bytes_of)
        if need.bytes > free:
            raise WorkspaceError(
                f"caching {need.images:,} images takes {_size(need.bytes)} in {self.folder},"
                f" and {_size(free)} are free there",
                "Free that much, set a smaller images.side in vlltr.toml, or leave --cache-images out.",
            )
        if need.images:
            _log.info(
                "the image cache takes %s for %s images in %s (%s free there); images are decoded in the first epoch",
                _size(need.bytes),
                f"{need.images:,}",
                self.folder,
                _size(free),
            )
        return need

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.npy"

    def _read(self, digest: str) -> Image.Image | None:
        try:
            array = np.load(self._path(digest), mmap_mode="r", allow_pickle=False)
            if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
                return Image.fromarray(np.asarray(array))
        except (OSError, ValueError, EOFError, SyntaxError):
            pass  # not there, or damaged: it is made again
        return None

    def _write(self, path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
            with open(handle, "wb") as file:
                np.save(file, array, allow_pickle=False)
            os.replace(temporary, path)
        except OSError as error:
            self._writes = False
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            _log.warning("the image cache %s is not filled any further: %s", self.folder, error.strerror)

    def _drop(self, known: set[str]) -> None:
        """Remove what a killed process left, and files of images that are gone."""
        for left in self.folder.glob("??/.tmp-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink(missing_ok=True)
        for path in self.folder.glob("??/*.npy"):
            if path.stem not in known:
                path.unlink(missing_ok=True)


def reduced_cache(folder: Path, side: int) -> PixelCache:
    """A cache below `folder` of images whose shorter side is at most `side` pixels."""
    return PixelCache(folder / f"side-{side}-v{_FORMAT}", lambda data: open_image(data, side=side))


def reduced_need(sizes: Mapping[str, tuple[int, int]], side: int) -> dict[str, int]:
    """Bytes of each reduced image, by its digest, from the (width, height) that it has now."""
    return {digest: 3 * math.prod(reduced_size(*size, side)) for digest, size in sizes.items()}


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
