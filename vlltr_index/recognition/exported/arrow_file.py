"""See in an Arrow IPC file, before it is read, that it takes no more memory than it is long.

Arrow's own reader bounds what each buffer may be, but unpacks compressed ones to whatever length they state, and reads
a block as often as the footer lists it. The layout is that of Arrow's `File.fbs` and `Message.fbs`.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_RECORD_BATCH = 3  # MessageHeader.RecordBatch
_BLOCK = 24  # bytes: offset int64, length of the metadata int32, padding, length of the body int64


class _Flat:
    """A flatbuffer: a table lists where its fields are, by their numbers."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def number(self, kind: str, at: int) -> int:
        """Read a number; `kind` is a letter of `struct`."""
        size = struct.calcsize(f"<{kind}")
        if not 0 <= at <= len(self._data) - size:
            raise ValueError("an offset leads out of the file")
        value: int = struct.unpack_from(f"<{kind}", self._data, at)[0]
        return value

    def follow(self, at: int) -> int:
        """Return the position that the offset at a position leads to."""
        return at + self.number("I", at)

    def field(self, table: int, number: int) -> int | None:
        """Return the position of a table's field; None if the table has its default."""
        listed = table - self.number("i", table)
        if 4 + 2 * number >= self.number("H", listed):
            return None
        offset = self.number("H", listed + 4 + 2 * number)
        return table + offset if offset else None

    def vector(self, table: int, number: int) -> tuple[int, int]:
        """Return the position of the first element of a field that is a vector, and the number of elements."""
        field = self.field(table, number)
        if field is None:
            return 0, 0
        start = self.follow(field)
        return start + 4, self.number("I", start)


def check_plain(path: Path) -> None:
    """Check that no block of an Arrow IPC file is compressed, a dictionary, or listed twice.

    Raises:
        ValueError: If one is, or the file is damaged.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            _check(data)


def _check(data: memoryview) -> None:
    end = len(data) - len(_MAGIC) - 4
    if end < len(_MAGIC) or data[: len(_MAGIC)] != _MAGIC or data[end + 4 :] != _MAGIC:
        raise ValueError("it does not begin and end as an Arrow file does")
    start = end - int.from_bytes(data[end : end + 4], "little")
    if start < 0:
        raise ValueError("its footer is longer than the file")
    with data[start:end] as part:
        footer = _Flat(part)
        root = footer.follow(0)
        if footer.vector(root, 2)[1]:
            raise ValueError("it has dictionaries")
        first, count = footer.vector(root, 3)
        if first + count * _BLOCK > len(part):
            raise ValueError("its footer lists more blocks than it can hold")
        past = 0
        for at in range(first, first + count * _BLOCK, _BLOCK):
            offset = footer.number("q", at)
            if offset < past:
                raise ValueError("two of its blocks overlap")
            past = _end_of_block(data, offset, footer.number("i", at + 8))
            if past > start:
                raise ValueError("a block is longer than the file")


def _end_of_block(data: memoryview, offset: int, length: int) -> int:
    """Check a record batch, whose metadata has some length; return the position after it."""
    if length < 8 or offset + length > len(data):
        raise ValueError("a block is longer than the file")
    with data[offset : offset + length] as part:
        message = _Flat(part)
        if message.number("I", 0) != _CONTINUES:
            raise ValueError("a block has no message")
        root = message.follow(8)
        kind = message.field(root, 1)
        header = message.field(root, 2)
        body = message.field(root, 3)
        if kind is None or header is None or message.number("B", kind) != _RECORD_BATCH:
            raise ValueError("a block is no record batch")
        if message.field(message.follow(header), 3) is not None:
            raise ValueError("a block is compressed")
        size = 0 if body is None else message.number("q", body)
    if size < 0:
        raise ValueError("a block has a negative length")
    return offset + length + size
