"""Pictures to recognise: files, folders, patterns, lists and Parquet files, as a stream of names and sources."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlltr_index.data.decoding import ENDINGS
from vlltr_index.errors import InputError

__all__ = ["unlabelled_images"]

_ROWS = 64


def unlabelled_images(paths: Sequence[str]) -> Iterator[tuple[str, str | bytes]]:
    """The name and the source of each picture, in a fixed order, none opened.

    A folder gives the images in and below it, by name, and a pattern (`shots/**/*.jpg`) what it matches. A list (.txt)
    has a path a line, relative to its own folder. A Parquet file has the column image, binary or a struct with `bytes`;
    its rows are called `file.parquet#row`. Anything else is taken for an image.

    Raises:
        InputError: If a folder, pattern or list names no image, or a list or Parquet file cannot be read.
    """
    for given in paths:
        path = Path(given).expanduser()
        ending = path.suffix.lower()
        if ending == ".parquet":
            yield from _rows(path)
            continue
        if path.is_dir():
            found = _below(path)
        elif ending == ".txt":
            found = _listed(path)
        elif glob.has_magic(given) and not path.exists():
            found = iter(sorted(glob.glob(str(path), recursive=True)))
        else:
            found = iter([str(path)])
        empty = True
        for name in found:
            empty = False
            yield os.fsencode(name).decode("utf-8", "backslashreplace"), name
        if empty:
            raise InputError(
                f"{given} names no image", f"In folders these are looked for: {', '.join(ENDINGS)}."
            )


def _below(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(place, f) for f in sorted(files) if f.lower().endswith(ENDINGS))


def _listed(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from (str(path.parent / line.strip()) for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable list: {error}", "Write a path a line, in UTF-8.") from None


def _rows(path: Path) -> Iterator[tuple[str, bytes]]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            if "image" not in file.schema_arrow.names:
                raise InputError(f"{path} has no column image; it has {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(_ROWS, columns=["image"]):
                for value in batch["image"].to_pylist():
                    image = value.get("bytes") if isinstance(value, dict) else value
                    yield f"{path}#{row}", image if isinstance(image, bytes) else b""
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}", "Write the file again.") from None
