"""Readers of unlabelled images: files, folders, patterns, lists, Parquet files and object storage."""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from vlltr_index.data.decoding import ENDINGS
from vlltr_index.data.files import (
    check_image_column,
    is_hidden,
    open_parquet,
    read_lines,
    rows_at_once,
    unlistable,
)
from vlltr_index.data.objects import is_address, object_names
from vlltr_index.errors import InputError
from vlltr_index.schemas.fingerprint import digest_bytes

_ROWS = 64


def unlabelled_images(paths: Sequence[str], with_data: bool = True) -> Iterator[tuple[str, str | bytes]]:
    """Yield the name and the source of each image, in a fixed order, without opening it.

    A folder gives the images in and below it that are not hidden, sorted; a pattern (`shots/**/*.jpg`) gives all that
    it matches. A list (.txt) has one path per line, relative to its own folder. A Parquet file has the column image,
    binary or a struct with `bytes`; its rows have the names `file.parquet#row`. An address (`s3://bucket/shots`) is an
    image if it ends like one, else a folder. Anything else is taken for an image.

    Args:
        paths: Any of these.
        with_data: Whether to read the bytes in a Parquet file; without, they are empty.

    Raises:
        InputError: A folder, pattern or list names no image, or a list or Parquet file cannot be read.
    """
    for given in paths:
        if not given:  # as of an unset variable; it would be the current folder
            raise InputError("the path is empty", "Name an image, a folder, a list or a Parquet file.")
        path = Path(os.path.expanduser(given))
        ending = path.suffix.lower()
        if ending == ".parquet" and not is_address(given):
            yield from _rows(path, with_data)
            continue
        if is_address(given):
            found = _objects(given.rstrip("/"))
        elif os.path.isdir(path):  # a path that is too long is no folder, and that picture's problem
            found = _below(path)
        elif ending == ".txt":
            found = _listed(path)
        elif glob.has_magic(given) and not os.path.exists(path):
            found = iter(sorted(glob.glob(str(path), recursive=True)))
        else:
            found = iter([str(path)])
        empty = True
        for name in found:
            empty = False
            yield _readable(name), name
        if empty:
            raise InputError(
                f"{given} names no image", f"In folders these are looked for: {', '.join(ENDINGS)}."
            )


def image_identities(paths: Sequence[str]) -> dict[str, str]:
    """Return the identity of each image by name, in the order of `unlabelled_images`, without opening the images.

    The identity of a file is made from its absolute path, its size and its modification time; that of a Parquet row
    from the identity of the Parquet file and the row number. The identity of an object is its address.

    Args:
        paths: As for `unlabelled_images`, which raises the same errors.
    """
    found = dict[str, str]()
    folders = dict[str, str]()  # resolved once, because that takes a system call per component
    tables = dict[str, str]()
    for name, source in unlabelled_images(paths, with_data=False):
        if isinstance(source, bytes):
            path, _, row = name.rpartition("#")
            if path not in tables:
                tables[path] = _file_identity(path, folders)
            found[name] = f"{tables[path]}#{row}"
        else:
            found[name] = source if is_address(source) else _file_identity(source, folders)
    return found


def _file_identity(path: str, folders: dict[str, str]) -> str:
    """Return the digest of a file's resolved path, size and modification time; without a file, of its path.

    Args:
        path: The path of the file.
        folders: The absolute paths of folders, to which that of the file's folder is added.
    """
    folder, name = os.path.split(path)
    try:
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        place = os.path.join(folders[folder], name)
        place = os.path.realpath(place) if os.path.islink(place) else place
        file = os.stat(path)
    except (OSError, ValueError):  # there is no such file, which reading the image reports
        return digest_bytes(os.fsencode(path))
    return digest_bytes(os.fsencode(place) + f"\0{file.st_size}\0{file.st_mtime_ns}".encode())


def _readable(name: str) -> str:
    r"""Return a path as text: bytes that are not UTF-8 as \xNN, and no two paths alike."""
    raw = os.fsencode(name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return text.replace("\\", "\\\\") if "\\x" in text else text


def _below(folder: Path) -> Iterator[str]:
    """Yield the paths of the images in and below a folder."""
    for place, folders, files in os.walk(folder, onerror=unlistable):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (os.path.join(place, name) for name in sorted(files) if _is_picture(name))


def _is_picture(name: str) -> bool:
    """Say whether a path below a folder ends like an image, and neither it nor a folder in it is hidden."""
    return name.lower().endswith(ENDINGS) and not is_hidden(name)


def _listed(path: Path) -> Iterator[str]:
    """Yield the paths in a list, relative to the list's folder."""
    for _, raw in read_lines(path):
        line = raw.strip()
        if line:
            yield line if is_address(line) else str(path.parent / line)


def _objects(address: str) -> Iterator[str]:
    """Yield the addresses of the images at or below an address."""
    if address.lower().endswith(ENDINGS):
        yield address
        return
    yield from (f"{address}/{name}" for name in object_names(address) if _is_picture(name))


def _rows(path: Path, with_data: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each image in a Parquet file."""
    with open_parquet(path, ["image"]) as file:
        check_image_column(path, file.schema_arrow)
        if not file.metadata.num_rows:
            raise InputError(f"{path} has no row", "Write the file again.")
        at_once = rows_at_once(path, file, ["image"], _ROWS)
        if not with_data:
            yield from ((f"{path}#{row}", b"") for row in range(file.metadata.num_rows))
            return
        row = 0
        for batch in file.iter_batches(at_once, columns=["image"]):
            for image in batch["image"]:
                yield f"{path}#{row}", _bytes(image.as_py())
                row += 1


def _bytes(value: object) -> bytes:
    """Return the bytes of a value of the column image; empty if there are none."""
    image = value.get("bytes") if isinstance(value, dict) else value
    return image if isinstance(image, bytes) else b""


class Pictures:
    """Images by position, for the ray engine; those in Parquet files are read only by `load`.

    Args:
        named: Names and sources, as `unlabelled_images` yields them without data.
        root: The folder that paths are relative to; None: the working directory.
    """

    def __init__(self, named: Sequence[tuple[str, str | bytes]], root: str | None = None) -> None:
        self._named = named
        self._root = root or os.getcwd()

    def __len__(self) -> int:
        return len(self._named)

    def take(self, places: Sequence[int]) -> Pictures:
        """Return the images at some positions."""
        return Pictures([self._named[place] for place in places], self._root)

    def load(self) -> Iterator[tuple[str, str | bytes]]:
        """Yield the name and the source of each image."""
        for name, source in self._named:
            if isinstance(source, bytes):
                path, _, row = name.rpartition("#")
                yield name, _row_at(os.path.join(self._root, path), int(row))
            else:
                yield name, source if is_address(source) else os.path.join(self._root, source)


def _row_at(path: str, row: int) -> bytes:
    """Read the image in a row of a Parquet file."""
    starts = _starts(path)
    group = bisect_right(starts, row) - 1
    return _bytes(_group(path, group)[row - starts[group]].as_py())


@lru_cache(maxsize=8)
def _starts(path: str) -> list[int]:
    """Return the first row of each row group of a Parquet file, and the number of rows."""
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return list(accumulate(sizes, initial=0))


@lru_cache(maxsize=1)
def _group(path: str, group: int) -> pa.ChunkedArray:
    """Read the images of a row group of a Parquet file."""
    with open_parquet(path) as file:
        return file.read_row_group(group, columns=["image"])["image"]
