"""What a program asks of the file system, recorded with strace, and what a power cut leaves of it.

Between two syncs a file system may have kept or lost whatever it was asked. A file's bytes are safe once the file was
synced; a name in a folder, made, changed or removed, once the folder was.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Form = Literal["now", "dropped", "zeroed"]
Variant = Literal["undone", "dropped", "zeroed", "mixed"]
VARIANTS: tuple[Variant, ...] = ("undone", "dropped", "zeroed", "mixed")
"""What happens to what was not synced: all of it never happened; names are there, without their bytes; names are there,
with zeros for bytes; each folder and file by chance."""

_CALLS = (
    "open,openat,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,copy_file_range,"
    "sendfile,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "fsync,fdatasync,msync,sync,syncfs,sync_file_range"
)
_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_PART = re.compile(r'"([^"]*)"|(AT_FDCWD|-?\d+)<([^>]*)>(\(deleted\))?|([A-Za-z_0-9|]+)')


@dataclass(frozen=True)
class Operation:
    """One change that was asked for.

    Attributes:
        kind: What.
        path: Of what, below the folder that was watched.
        other: The new name; of a write the empty string.
        at: Where in the file; of a truncation the new size.
        data: What was written.
    """

    kind: Literal["create", "write", "truncate", "rename", "link", "unlink", "mkdir", "rmdir", "sync"]
    path: str
    other: str = ""
    at: int = 0
    data: bytes = b""


def record(command: Sequence[str], log: Path) -> None:
    """Run a program and write all that it asks of the file system to `log`.

    Raises:
        RuntimeError: If it fails, or there is no strace.
    """
    strace = ["strace", "-f", "-z", "-y", "-xx", "-s", str(10**8), "--seccomp-bpf", "-o", str(log), "-e"]
    try:
        done = subprocess.run(
            [*strace, f"trace={_CALLS}", *command], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise RuntimeError("there is no strace: apt-get install strace") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")


def operations(log: Path, folder: Path) -> Iterator[Operation]:
    """What `record` recorded of a folder, in order.

    Raises:
        RuntimeError: If something was done in the folder that is not understood here.
    """
    reader = _Reader(folder)
    name = "".join(f"\\x{byte:02x}" for byte in str(folder).encode())
    with log.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if name in line and (found := _LINE.match(line)) is not None:
                yield from reader.read(found[1], list(_parts(found[2])), int(found[3]))


@dataclass(frozen=True)
class _Part:
    """One argument of a call: a string, a descriptor with its path, or a word."""

    text: bytes | None = None
    number: int | None = None
    path: str = ""
    word: str = ""


def _parts(arguments: str) -> Iterator[_Part]:
    for text, handle, path, deleted, word in _PART.findall(arguments):
        if handle:
            place = "" if deleted else _plain(path).decode()
            yield _Part(number=-1 if handle == "AT_FDCWD" else int(handle), path=place)
        elif word:
            yield _Part(word=word)
        else:
            yield _Part(text=_plain(text))


def _plain(text: str) -> bytes:
    r"""What strace wrote as `\x2f`."""
    return bytes.fromhex(text.replace("\\x", ""))


class _Reader:
    """Calls to operations: knows where in its file each descriptor stands."""

    def __init__(self, folder: Path) -> None:
        self._root = f"{folder}/"
        self._at: dict[int, int] = {}

    def _inside(self, path: str) -> str | None:
        """The path below the folder; None where it lies elsewhere."""
        if path == self._root[:-1]:
            return "."
        return path.removeprefix(self._root) if path.startswith(self._root) else None

    def _named(self, parts: Sequence[_Part]) -> list[str | None]:
        """The paths that a call names, with the folders that they are relative to."""
        found, base = [], ""
        for part in parts:
            if part.number is not None:
                base = part.path
            elif part.text is not None:
                path = part.text.decode()
                found.append(self._inside(path if path.startswith("/") else f"{base}/{path}"))
        return found

    def read(self, call: str, parts: list[_Part], result: int) -> Iterator[Operation]:
        """The operations of one call that succeeded."""
        words = {word for part in parts for word in part.word.split("|")}
        if call == "creat":
            call, words = "open", {"O_CREAT", "O_TRUNC"}
        call = re.sub(r"(at|at2)$", "", call)
        if call in ("open", "rename", "link", "symlink", "unlink", "mkdir", "rmdir"):
            yield from self._names(call, self._named(parts), words, result)
            return
        handle = parts[0] if parts else _Part()
        path = self._inside(handle.path)
        if handle.number is None or path is None:
            return
        if call == "lseek":
            self._at[handle.number] = result
        elif call in ("write", "writev"):
            data = b"".join(part.text for part in parts[1:] if part.text is not None)[:result]
            yield Operation("write", path, at=self._at.get(handle.number, 0), data=data)
            self._at[handle.number] = self._at.get(handle.number, 0) + result
        elif call == "pwrite64":
            (data,) = (part.text for part in parts if part.text is not None)
            yield Operation("write", path, at=int(parts[-1].word), data=data[:result])
        elif call == "ftruncate":
            yield Operation("truncate", path, at=int(parts[-1].word))
        elif call in ("fsync", "fdatasync"):
            yield Operation("sync", path)
        elif call != "close":
            raise RuntimeError(f"{call} of {path} is not understood")

    def _names(self, call: str, paths: list[str | None], words: set[str], result: int) -> Iterator[Operation]:
        path = paths[0]
        if call == "open":
            self._at[result] = 0
            if path is not None and "O_TMPFILE" not in words:
                if "O_CREAT" in words:
                    yield Operation("create", path)
                if "O_TRUNC" in words:
                    yield Operation("truncate", path)
        elif call in ("rename", "link"):
            other = paths[1]
            if path is not None and other is not None:
                yield Operation("rename" if call == "rename" else "link", path, other)
            elif path is not None or other is not None:
                raise RuntimeError(f"{call} of {path} to {other} leaves the folder")
        elif path is not None:
            if call == "symlink":
                raise RuntimeError(f"a link at {path} is not understood")
            if call == "mkdir":
                yield Operation("mkdir", path)
            else:
                yield Operation("rmdir" if call == "rmdir" or "AT_REMOVEDIR" in words else "unlink", path)


@dataclass(eq=False)
class _File:
    number: int
    data: bytearray = field(default_factory=bytearray)
    version: int = 0
    synced: bytes = b""
    synced_version: int = 0  # an empty file is as it was made

    def content(self, form: Form) -> bytes:
        """Its bytes, where those that were not synced are there, dropped, or zeroed."""
        if form == "now" or self.synced_version == self.version:
            return bytes(self.data)
        if form == "dropped":
            return self.synced
        begun = self.data.startswith(self.synced)
        return (self.synced if begun else b"").ljust(len(self.data), b"\0")


@dataclass(eq=False)
class _Folder:
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


Token = tuple[int, int, Form]
"""What a file holds: its number, the version of its bytes, and their form."""

State = dict[str, Token | None]
"""What is on a disk: of each file what it holds, of each folder None."""


class Disk:
    """A folder on a disk that syncs only what it is asked to."""

    def __init__(self, *folders: str) -> None:
        self._root = _Folder({name: _Folder() for name in folders})
        self._files: dict[int, _File] = {}

    def _find(self, path: str) -> tuple[_Folder, str]:
        *above, name = path.split("/")
        folder = self._root
        for part in above:
            inner = folder.entries[part]
            if not isinstance(inner, _Folder):
                raise NotADirectoryError(path)
            folder = inner
        return folder, name

    def _file(self, path: str) -> _File:
        folder, name = self._find(path)
        found = folder.entries[name]
        if not isinstance(found, _File):
            raise IsADirectoryError(path)
        return found

    def apply(self, one: Operation) -> None:
        """Do what was asked."""
        if one.kind == "sync":
            self._sync(one.path)
        elif one.kind == "write":
            file = self._file(one.path)
            file.data.extend(bytes(max(0, one.at - len(file.data))))
            file.data[one.at : one.at + len(one.data)] = one.data
            file.version += 1
        elif one.kind == "truncate":
            file = self._file(one.path)
            if len(file.data) != one.at:
                file.data = file.data[: one.at].ljust(one.at, b"\0")
                file.version += 1
        else:
            self._rename(one)

    def _sync(self, path: str) -> None:
        folder, name = self._find(path)
        found = self._root if path == "." else folder.entries[name]
        if isinstance(found, _Folder):
            found.synced = dict(found.entries)
        else:
            found.synced = bytes(found.data)
            found.synced_version = found.version

    def _rename(self, one: Operation) -> None:
        folder, name = self._find(one.path)
        if one.kind == "create":
            if name not in folder.entries:
                file = _File(len(self._files))
                self._files[file.number] = file
                folder.entries[name] = file
        elif one.kind == "mkdir":
            folder.entries[name] = _Folder()
        elif one.kind in ("unlink", "rmdir"):
            del folder.entries[name]
        else:
            target, new = self._find(one.other)
            target.entries[new] = folder.entries[name]
            if one.kind == "rename":
                del folder.entries[name]

    def after_a_cut(self, variant: Variant, seed: int) -> State:
        """What is there when the power comes back."""
        chance = random.Random(seed) if variant == "mixed" else None
        state: State = {}
        self._walk(self._root, "", variant, chance, state)
        return state

    def _walk(
        self, folder: _Folder, prefix: str, variant: Variant, chance: random.Random | None, state: State
    ) -> None:
        undone = variant == "undone" if chance is None else chance.random() < 0.5
        for name, found in sorted((folder.synced if undone else folder.entries).items()):
            if isinstance(found, _Folder):
                state[prefix + name] = None
                self._walk(found, f"{prefix}{name}/", variant, chance, state)
                continue
            form: Form = "zeroed" if variant == "zeroed" else "dropped"
            if chance is not None:
                form = chance.choice(("now", "dropped", "zeroed"))
            if found.synced_version == found.version:
                form = "now"
            state[prefix + name] = found.number, found.version, form

    def content(self, token: Token) -> bytes:
        """The bytes of a file, as long as nothing more was written to it."""
        number, version, form = token
        file = self._files[number]
        if file.version != version:
            raise LookupError(f"file {number} has changed since")
        return file.content(form)
