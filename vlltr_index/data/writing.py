"""Files and folders that appear whole or not at all, and are still there after a power cut.

What is written gets its name last, in three steps: its bytes are synced, it is renamed (or linked, where nothing may be
written over), and the folder that it lies in is synced.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from vlltr_index.schemas.fingerprint import digest_file

SCRATCH = ".tmp-"
"""What the names of unfinished files and folders begin with, unless their writer chose otherwise."""

_AT_ONCE = 8  # syncs


def write_file(path: Path, data: bytes, new: bool = False) -> None:
    """Write a file whole or not at all: see `whole_file`."""
    with whole_file(path, new) as unfinished:
        unfinished.write_bytes(data)


@contextmanager
def whole_file(path: Path, new: bool = False) -> Iterator[Path]:
    """Gives the path of an empty file for the block to write into; at the end it gets the name `path`, durably.

    Whatever the block wrote it with, its mode is that of the umask. If the block raises, `path` is as it was.

    Args:
        path: The file; missing folders above it are made.
        new: Refuse to write over a file that is there; of several writers at once one succeeds.

    Raises:
        FileExistsError: If the file is there already, and should be new.
        OSError: If it cannot be written.
    """
    make_folder(path.parent)
    unfinished = _beside(path.parent, SCRATCH, path.name)
    try:
        with unfinished.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield unfinished
        unfinished.chmod(mode)
        sync(unfinished)
        if new:
            os.link(unfinished, path)
        else:
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def scratch_folder(parent: Path, prefix: str = SCRATCH) -> Iterator[Path]:
    """Gives an empty folder in `parent` for the block to write into, which may give it a name by `settle`.

    At the end it is removed with all in it, unless it got a name.

    Args:
        parent: Where it is made; missing folders are made too.
        prefix: How its name begins, so that it can be found after a kill.

    Raises:
        OSError: If it cannot be made.
    """
    make_folder(parent)
    folder = _beside(parent, prefix)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path, name: Path, replace: bool = False) -> bool:
    """Give a folder that `scratch_folder` made its name, with all that it holds durable; whether it got it.

    The mode of its files becomes that of the umask, whatever wrote them.

    Args:
        folder: What was written.
        name: Its place, on the same file system.
        replace: Take the place of a folder of that name; else that one stays. A kill between its two renames leaves
            the old one beside it, as `folder` with `-old` at the end.

    Raises:
        OSError: If something cannot be synced or renamed.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
    sync_all([folder, *folder.rglob("*")])
    old = folder.with_name(f"{folder.name}-old")
    if replace and name.is_dir():
        os.rename(name, old)
    try:
        os.rename(folder, name)
    except OSError:
        if not name.is_dir():
            raise
        sync(name.parent)  # who wrote it may have been killed before this
        return False
    sync(name.parent)
    shutil.rmtree(old, ignore_errors=True)
    return True


def remove_folder(path: Path) -> None:
    """Remove a folder with all in it: half of one is never found under its name."""
    hidden = _beside(path.parent, SCRATCH, path.name)
    os.rename(path, hidden)
    sync(path.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # it cannot be opened there
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(paths: Sequence[Path]) -> None:
    """Sync files and folders: many at once, which a file system does with few writes."""
    if paths:
        with ThreadPoolExecutor(min(_AT_ONCE, len(paths))) as pool:
            list(pool.map(sync, paths))


def digest_folder(folder: Path) -> str:
    """SHA-256 over the relative path and the bytes of every file, in path order; what others hid there is left out."""
    whole = hashlib.sha256()
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = {p.relative_to(folder).as_posix(): p for p in found}
    for name in sorted(files):
        whole.update(f"{name}\0{digest_file(files[name])}\0".encode())
    return whole.hexdigest()


def _beside(parent: Path, prefix: str, name: str = "new") -> Path:
    """A path in `parent` that no other writer has."""
    return parent / f"{prefix}{name}-{secrets.token_hex(4)}"
