"""Writing of files and folders completely or not at all, so that they survive a power cut.

A file gets its name last: its bytes are synced, it is renamed (or linked, if no other file may be replaced), and then
its folder is synced.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from vlltr_index.schemas.fingerprint import digest_file

SCRATCH = ".tmp-"
"""Default prefix of the names of unfinished files and folders."""

_AT_ONCE = 8  # syncs in parallel


def write_file(path: Path, data: bytes, new: bool = False) -> None:
    """Write a file completely or not at all, see `whole_file`."""
    with whole_file(path, new) as unfinished:
        unfinished.write_bytes(data)


@contextmanager
def whole_file(path: Path, new: bool = False) -> Iterator[Path]:
    """Yield the path of an empty file to write into; after the block it is renamed to `path`, durably.

    Its mode is that of the umask, however the block wrote it. If the block raises, `path` does not change.

    Args:
        path: The file; missing folders above it are made.
        new: Refuse to replace an existing file; of several concurrent writers one succeeds.

    Raises:
        FileExistsError: The file exists, and should be new.
        OSError: The file cannot be written.
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
    """Yield an empty folder in `parent` to write into, which the block may rename by `settle`.

    After the block it is removed with all its content, unless it was renamed.

    Args:
        parent: The folder above it; it is made if it is missing.
        prefix: Prefix of its name, by which it can be found after a kill.

    Raises:
        OSError: The folder cannot be made.
    """
    make_folder(parent)
    folder = _beside(parent, prefix)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path, name: Path, replace: bool = False) -> bool:
    """Rename a folder of `scratch_folder` to its final name, with durable content; say whether it got the name.

    The mode of its files becomes that of the umask, however they were written.

    Args:
        folder: The folder that was written.
        name: Its final path, on the same file system.
        replace: Replace an existing folder of that name; otherwise that one stays. A kill between the two renames
            leaves the old folder as `folder` with `-old` at the end.

    Raises:
        OSError: A file or folder cannot be synced or renamed.
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
        sync(name.parent)  # the process that wrote it may have been killed before it synced the folder
        return False
    sync(name.parent)
    shutil.rmtree(old, ignore_errors=True)
    return True


def remove_folder(path: Path) -> None:
    """Remove a folder with all its content; a kill never leaves a part of it under its name."""
    hidden = _beside(path.parent, SCRATCH, path.name)
    os.rename(path, hidden)
    sync(path.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder, and missing ones above it, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(paths: Sequence[Path]) -> None:
    """Sync files and folders in parallel, which a file system can do with fewer writes."""
    if not paths:
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(paths))) as pool:
        try:
            list(pool.map(sync, paths))
        except RuntimeError:  # no more threads can be started here
            for path in paths:
                sync(path)


def digest_folder(folder: Path) -> str:
    """Compute the SHA-256 of the relative path and the bytes of every file, sorted by path, without hidden files."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return digest_files({p.relative_to(folder).as_posix(): digest_file(p) for p in found})


def digest_files(digests: Mapping[str, str]) -> str:
    """Compute what `digest_folder` does of a folder whose files, by relative path, have these digests."""
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}\0{digests[name]}\0".encode())
    return whole.hexdigest()


def _beside(parent: Path, prefix: str, name: str = "new") -> Path:
    """Make a path in `parent` that no other writer uses."""
    return parent / f"{prefix}{name}-{secrets.token_hex(4)}"
