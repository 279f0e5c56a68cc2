"""Reading of input files: text, JSON and tables, with errors that name the place."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from vlltr_index.errors import InputError
from vlltr_index.schemas.config import CONFIG_NAME

_UNPACKED = 2**30  # bytes of a Parquet file's rows that are read together
_TYPE = re.compile(r"_[A-Z]\w*|\w+\[.*\]")  # a type, as pydantic names the one of a choice that it means
LINK = "a link that leaves the folder"
"""Why a file is unusable that a link elsewhere stands for."""
_PACKED = 100  # times that pictures and texts are packed, and hardly more


def require(path: Path) -> Path:
    """Check that a path exists, and return it.

    Raises:
        InputError: It does not exist.
    """
    try:
        path.stat()
    except (OSError, ValueError):
        raise InputError(f"no such file or folder: {path}", "Check the path.") from None
    return path


def read_bytes(path: Path) -> bytes:
    """Read the bytes of a file.

    Raises:
        InputError: It cannot be read, or is a device or a pipe, which may never end.
    """
    try:
        _require_file(path)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _require_file(path: Path) -> None:
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # reading a folder fails by itself
        raise InputError(
            f"cannot read {path}: it is a device or a pipe, not a file", "Save it as a file first."
        )


def unlistable(error: OSError) -> NoReturn:
    """Raise the error that `os.walk` would pass over: what lies below that folder would be missing without a word.

    Raises:
        InputError: Always.
    """
    where = os.fsencode(error.filename or "").decode("utf-8", "backslashreplace")
    raise InputError(
        f"cannot read the folder {where}: {error.strerror}", "Mend its permissions, or move it elsewhere."
    ) from None


def files_below(
    root: Path, below: str = "", follow_links: bool = False, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yield the files below a folder in order, by path and why they are unusable; hidden ones are left out,
    and so is what lies in a workspace.

    Args:
        root: A resolved folder.
        below: A folder in it, with a slash at its end, that is read alone.
        follow_links: Whether links that leave the root, and links to folders, are followed.
        above: The real paths of the folders above, into which no link is followed.

    Raises:
        InputError: A folder cannot be read.
    """
    try:
        with os.scandir(root / below) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        unlistable(error)
    within = above | {os.path.realpath(root / below)}
    for entry in found:
        name = f"{below}{entry.name}"
        if _is_folder(entry, follow_links) and os.path.realpath(entry.path) not in within:
            if os.path.isfile(os.path.join(entry.path, CONFIG_NAME)):
                yield name, "a workspace, and no folder of data"
                continue
            yield from files_below(root, f"{name}/", follow_links, within)
        elif not name.isprintable() and os.fsencode(name).decode("utf-8", "replace") != name:
            yield name, "its name is not UTF-8"
        else:
            yield name, unfit(entry.path, root, follow_links)


def _is_folder(entry: os.DirEntry[str], follow_links: bool) -> bool:
    """Say whether an entry is a folder; a link that leads to itself is none."""
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Say whether a file, or a folder above it, is hidden; by its path with slashes."""
    return "/." in f"/{name}"


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8 text, without a byte order mark.

    Raises:
        InputError: It is not UTF-8; `where` is the place in the message.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 text (byte 0x{error.object[error.start]:02x} at position {error.start})",
            "Convert it first: iconv -f ENCODING -t UTF-8 FILE > NEW   (often UTF-16, GBK, LATIN1 or CP1252)",
        ) from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place of each line, `file:number`, and the line with its line break: LF, CR or both.

    Raises:
        InputError: The file cannot be read, or a line is not UTF-8.
    """
    try:
        _require_file(path)
        with path.open("rb") as file:
            lines = chain.from_iterable(part.splitlines(keepends=True) for part in file)
            for number, line in enumerate(lines, 1):
                yield f"{path}:{number}", decode(line, f"{path}:{number}")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path, kind: Any, expected: str) -> Any:
    """Read a JSON file of the type `kind`.

    Args:
        path: The file.
        kind: A type that pydantic checks.
        expected: The expected content, for messages.

    Raises:
        InputError: The file cannot be read, is cut off or no JSON, has a key of an object twice, or has another type.
    """
    return parse_json(decode(read_bytes(path), str(path)), kind, str(path), expected)


def parse_json(text: str, kind: Any, where: str, expected: str) -> Any:
    """Parse a JSON text as `read_json` does; `where` is its place in messages."""
    try:
        return checked(json.loads(text, object_pairs_hook=no_twins), kind, where, expected)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        why = "; the file seems to be cut off" if cut else ""
        raise InputError(f"{where}: not JSON: {error}{why}", expected) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}", expected) from None


def checked(value: Any, kind: Any, where: str, expected: str) -> Any:
    """Check by pydantic that a value is of the type `kind`, and return it.

    Raises:
        InputError: It is not.
    """
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        # Of a choice between types, the one that the value came furthest in.
        first = max(error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"]))
        place = "".join(f"{key!r}: " for key in first["loc"] if not _TYPE.fullmatch(str(key)))
        raise InputError(f"{where}: {place}{first['msg']}", expected) from None


@lru_cache(maxsize=32)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Make pydantic's adapter for a type; adapters are cached."""
    return TypeAdapter(kind)


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dictionary of a JSON object, and refuse a key that occurs twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"{next(key for key in times if times[key] > 1)!r} occurs twice")
    return values


@contextmanager
def open_parquet(path: Path | str, needed: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file that must have some columns.

    Raises:
        InputError: It cannot be opened or, within the block, read; or it lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, needed)
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}", "Write the file again.") from None


def check_image_column(path: Path | str, schema: pa.Schema) -> None:
    """Refuse a table whose column `image` holds no encoded images.

    Raises:
        InputError: It holds something else.
    """
    tests = [pa.types.is_binary, pa.types.is_large_binary]
    check_column(path, schema, "image", expected="binary, or a struct with bytes", tests=tests)


def check_column(
    path: Path | str,
    schema: pa.Schema,
    name: str,
    expected: str,
    tests: Iterable[Callable[[pa.DataType], bool]],
) -> None:
    """Refuse a table whose column passes none of the tests of its type; of a struct, its field `bytes` counts.

    Raises:
        InputError: It is of another type than `expected`, in words.
    """
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(test(kind) for test in tests):
        raise InputError(
            f"{path}: the column {name!r} holds {schema.field(name).type}, expected {expected}",
            "Store images as the bytes of PNG or JPEG files, and the rest as text.",
        )


def rows_at_once(path: Path | str, file: pq.ParquetFile, columns: Sequence[str], most: int) -> int:
    """Return how many rows of a Parquet file fit into memory together, at most `most`, whatever the file unpacks to.

    A value of text or bytes that stands in the file once may be that of every row.

    Raises:
        InputError: The columns unpack to a gibibyte and more than a hundred times their size in the file.
    """
    largest = 0
    for group in range(file.num_row_groups):
        facts = file.metadata.row_group(group)
        chunks = [facts.column(n) for n in range(facts.num_columns)]
        own = [
            chunk
            for chunk in chunks
            if chunk.path_in_schema.partition(".")[0] in columns and chunk.physical_type == "BYTE_ARRAY"
        ]
        unpacked = sum(chunk.total_uncompressed_size for chunk in own)
        if unpacked > _UNPACKED and unpacked > _PACKED * sum(chunk.total_compressed_size for chunk in own):
            raise InputError(
                f"{path}: row group {group} unpacks to {unpacked >> 20:,} MiB, far more than it takes in the file",
                "Write the file again, with smaller row groups.",
            )
        largest = max(largest, unpacked)
    return max(1, min(most, _UNPACKED // max(largest, 1)))


def read_rows(path: Path, needed: Sequence[str], more: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a CSV, TSV or Parquet file, each with its place; a CSV may have semicolons instead of commas.

    Args:
        path: The file.
        needed: Columns that it must have.
        more: Optional columns.

    Raises:
        InputError: The file cannot be read or lacks a column, or a row has more or fewer fields than the header.
    """
    if path.suffix.lower() == ".parquet":
        with open_parquet(path, needed) as file:
            columns = [c for c in (*needed, *more) if c in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(rows_at_once(path, file, columns, 1000), columns=columns):
                for row in batch.to_pylist():
                    yield f"{path}#{number}", row
                    number += 1
        return
    records = read_records(path)
    _, names = next(records, ("", list[str]()))
    header = [column.strip() for column in names]
    _check_columns(path, header, needed)
    for where, fields in records:
        if len(fields) != len(header):
            raise InputError(
                f"{where}: {len(fields)} fields, the header has {len(header)}",
                "Put fields that hold the delimiter into double quotes.",
            )
        yield where, dict(zip(header, fields, strict=True))


def read_records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the fields of each line of a CSV or TSV file that is not empty, the header among them.

    Raises:
        InputError: The file cannot be read, or is not CSV.
    """
    texts = (line for _, line in read_lines(path))
    first = next(texts, "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;", key=first.count)
    lines = csv.reader(chain([first], texts), delimiter=delimiter, strict=True)
    try:
        for fields in filter(None, lines):
            yield f"{path}:{lines.line_num}", fields
    except csv.Error as error:
        raise InputError(
            f"{path}:{lines.line_num}: not CSV: {error}",
            "Is a double quote left open? Write long texts as JSONL.",
        ) from None


def _check_columns(path: Path | str, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a table that does not have each needed column once."""
    for name in needed:
        if columns.count(name) != 1:
            raise InputError(
                f"{path}: {'two columns' if name in columns else 'no column'} {name!r}; "
                f"it has {', '.join(map(repr, columns)) or 'none'}",
                f"Name the columns {', '.join(needed)}, each once.",
            )


def kept_ref(place: str, why: str) -> str | None:
    """Return the `ref` of a `Skipped` file: its place, or None where a link leaves the folder and the file is gone."""
    return None if why == LINK else place


def unfit(path: str, root: Path, follow_links: bool = False) -> str:
    """Return why a path is no usable file below `root`, a resolved path; empty if it is one, and no link out of it.

    With `follow_links` a link out of it is usable too.
    """
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):
        return "no such file"
    if not follow_links and os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
        return LINK
    return "" if stat.S_ISREG(kind) else "not a file"
