"""Read Qt resource files (.rcc): a tree of files, each plain, or compressed with zlib or zstd.

The header has the magic `qres`, a version, and the offsets of the tree, the data and the names; all numbers are
big-endian. A node of the tree is a folder (number of children, position of the first) or a file (offset of its data).
Every offset, name and size is checked, because such a file may come from anywhere.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlltr_index.errors import InputError

MAX_FILE = 64 * 2**20
"""Most bytes of one unpacked file."""
MAX_NODES = 100_000
MAX_DEPTH = 32
_VERSIONS = {1: 14, 2: 22, 3: 22}  # bytes of a node by version; later ones have a time of modification
_HEADER = struct.Struct(">4sIIII")
_NODE, _CHILDREN, _DATA = struct.Struct(">IH"), struct.Struct(">II"), struct.Struct(">I")
_NAME = struct.Struct(">HI")  # length in UTF-16 units, and a hash
_ZLIB, _FOLDER, _ZSTD = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a resource file: where its data start, and the flags of its node."""

    offset: int
    flags: int


class ResourceFile:
    """The files of one resource file, by their path.

    Args:
        data: The bytes of the resource file.
        name: Its name, for messages.

    Raises:
        InputError: `data` is no resource file, or its tree is malformed.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        magic, version, self._tree, self._contents, self._names = self._read(_HEADER, 0)
        if magic != b"qres":
            raise self._error(f"it starts with {magic!r}, not with b'qres'")
        if version not in _VERSIONS:
            raise self._error(f"its version is {version}, expected 1 to {max(_VERSIONS)}")
        self._size: int = _VERSIONS[version]
        self.entries: dict[str, Entry] = dict(self._walk())

    def read(self, path: str, limit: int = MAX_FILE) -> bytes:
        """Return the bytes of one file, unpacked.

        Raises:
            InputError: There is no such file, its data are damaged, or there are more than `limit` bytes.
        """
        if path not in self.entries:
            raise self._error(f"it has no file {path}")
        entry = self.entries[path]
        (length,) = self._read(_DATA, entry.offset)
        start = entry.offset + _DATA.size
        packed = self._data[start : start + length]
        if len(packed) < length:
            raise self._error(f"{path} ends after {len(packed)} of {length} bytes")
        unpacked = self._unpack(path, packed, entry.flags, limit)
        if len(unpacked) > limit:
            raise self._error(f"{path} has more than {limit:,} bytes")
        return unpacked

    def _unpack(self, path: str, packed: bytes, flags: int, limit: int) -> bytes:
        """Return at most `limit` + 1 bytes of a file."""
        try:
            if flags & _ZLIB:  # the size comes first
                unpacker = zlib.decompressobj()
                unpacked = unpacker.decompress(packed[_DATA.size :], limit + 1)
                if not unpacker.eof and len(unpacked) <= limit:
                    raise self._error(f"{path} cannot be unpacked: it is cut off")
                return unpacked
            if flags & _ZSTD:
                unzipped: bytes = pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read(limit + 1)
                return unzipped
        except (zlib.error, OSError) as error:
            raise self._error(f"{path} cannot be unpacked: {error}") from None
        return packed

    def _walk(self) -> Iterator[tuple[str, Entry]]:
        """Yield every file with its path; each node belongs to one folder."""
        waiting = [(0, "", 0)]
        seen = {0}
        while waiting:
            node, path, depth = waiting.pop()
            place = self._tree + node * self._size
            name, flags = self._read(_NODE, place)
            if node:
                path = f"{path}/{self._name_at(name)}".lstrip("/")
            if not flags & _FOLDER:
                (offset,) = self._read(_DATA, place + _NODE.size + 4)  # after country and language
                yield path, Entry(self._contents + offset, flags)
                continue
            count, first = self._read(_CHILDREN, place + _NODE.size)
            if count > MAX_NODES or depth >= MAX_DEPTH:
                raise self._error(f"the folder {path!r} has {count:,} children in level {depth}")
            for child in range(first, first + count):
                if child in seen or len(seen) > MAX_NODES:
                    raise self._error(f"node {child} is in more than one folder, or there are too many nodes")
                seen.add(child)
                waiting.append((child, path, depth + 1))

    def _name_at(self, offset: int) -> str:
        place = self._names + offset
        units, _ = self._read(_NAME, place)
        start = place + _NAME.size
        raw = self._data[start : start + 2 * units]
        if len(raw) < 2 * units:
            raise self._error(f"it ends in the name at byte {place}")
        try:
            name = raw.decode("utf-16-be")
        except UnicodeDecodeError:
            raise self._error(f"the name at byte {place} is not UTF-16") from None
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise self._error(f"{name!r} is not the name of a file")
        return name

    def _read(self, layout: struct.Struct, offset: int) -> tuple[Any, ...]:
        if offset + layout.size > len(self._data):
            raise self._error(f"it ends before byte {offset + layout.size}")
        return layout.unpack_from(self._data, offset)

    def _error(self, what: str) -> InputError:
        return InputError(
            f"{self._name} cannot be read as a Qt resource file: {what}", "Unpack the package again."
        )
