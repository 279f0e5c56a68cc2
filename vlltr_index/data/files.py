"""Files from outside: text whose encoding, size and line length are checked, and paths that a list names."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from vlltr_index.errors import InputError

__all__ = ["ListedFiles", "read_bytes", "read_delimited", "read_lines", "read_whole", "require"]

_MAX_LINE = 64 * 2**20  # bytes
_HEADS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_BOM = "\ufeff"


def require(path: Path) -> Path:
    """`path`, which must be there and readable.

    Raises:
        InputError: If it is not.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file or folder: {path}", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return path


def _decode(data: bytes, where: str, path: Path) -> str:
    """`data` as UTF-8 text, without a byte order mark.

    Raises:
        InputError: If it is not UTF-8; `where` says where it stands.
    """
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        guess = _HEADS.get(data[:2])
        raise InputError(
            f"{where}: not UTF-8 text (byte 0x{data[error.start]:02x} at position {error.start})"
            + (f"; it looks like {guess}" if guess else ""),
            f"Convert it first: iconv -f {guess or 'ENCODING'} -t UTF-8 '{path}' > NEW"
            + ("" if guess else "   (often GBK, LATIN1 or CP1252)"),
        ) from None


def read_whole(path: Path, limit: int) -> str:
    """The text of a file of at most `limit` bytes.

    Raises:
        InputError: If it cannot be read, is larger, or is not UTF-8.
    """
    return _decode(read_bytes(path, limit), str(path), path)


def read_bytes(path: Path, limit: int) -> bytes:
    """What a file of at most `limit` bytes holds.

    Raises:
        InputError: If it cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise InputError(
            f"{path} is larger than {limit >> 20} MiB, the most that is read in one piece",
            'Write it as JSONL, one {"class": ..., "text": ...} a line.',
        )
    return data


def read_lines(path: Path, limit: int = _MAX_LINE) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, each with its line break.

    Raises:
        InputError: If the file cannot be read, a line is longer than `limit` bytes or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(limit + 1):
                number += 1
                if len(line) > limit:
                    raise InputError(
                        f"{path}:{number}: the line is longer than {limit >> 20} MiB", "Is this a text file?"
                    )
                yield number, _decode(line, f"{path}:{number}", path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


class ListedFiles:
    """Files named by paths relative to `root`: each must lie below it, really, and be a file.

    Raises:
        InputError: If `root` is no folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(
                f"no such folder: {root}", "Name the one that the paths are relative to: --root DIR"
            )
        self.root = root.resolve()
        self._parents: dict[str, bool] = {}  # folders seen, and whether they really lie below the root

    def path(self, entry: str, where: str) -> str:
        """The full path of an entry, which must lie below the root.

        Raises:
            InputError: If it does not; `where` says where the entry stands.
        """
        full = os.path.normpath(os.path.join(self.root, entry))
        if not full.startswith(os.path.join(self.root, "")):
            raise InputError(
                f"{where}: the path {entry!r} leaves the folder {self.root}",
                "Paths must lie below the list's folder, or below the one given by --root DIR",
            )
        return full

    def source(self, full: str) -> str:
        """What an image is called in its list: its path below the root."""
        return full[len(str(self.root)) :].lstrip("/")

    def problem(self, full: str) -> str:
        """Why a file cannot be taken, or an empty string."""
        parent = os.path.dirname(full)
        if parent not in self._parents:
            self._parents[parent] = Path(os.path.realpath(parent)).is_relative_to(self.root)
        try:
            facts = os.lstat(full)
            if stat.S_ISLNK(facts.st_mode):
                if not Path(os.path.realpath(full)).is_relative_to(self.root):
                    return "a link that leaves the folder"
                facts = os.stat(full)
        except OSError:
            return "no such file"
        if not self._parents[parent]:
            return "a link that leaves the folder"
        return "" if stat.S_ISREG(facts.st_mode) else "not a file"

    def none_usable(self, listing: Path, missing: int, example: str) -> InputError:
        """The error where no file that a list names can be used."""
        return InputError(
            f"none of the {missing:,} files that {listing} names can be used, for example {example}",
            "Name the folder that the paths are relative to: --root DIR",
        )


def read_delimited(
    path: Path, delimiter: str, check: Callable[[Path, list[str]], None], what: str, hint: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV or TSV file by the columns of its header, each with its file and line.

    Args:
        path: The file.
        delimiter: Between fields.
        check: Raises where the columns will not do.
        what: What the fields are called in errors.
        hint: What to do where it is no CSV.

    Raises:
        InputError: If it is no CSV, or a row has more or fewer fields than the header.
    """
    rows = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        check(path, header)
        for row in filter(None, rows):
            where = f"{path}:{rows.line_num}"
            if len(row) != len(header):
                raise InputError(
                    f"{where}: {len(row)} fields, the header has {len(header)}",
                    f"Put {what} that hold the delimiter into double quotes.",
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not CSV: {error}", hint) from None
