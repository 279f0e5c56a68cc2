"""Where a workspace's files are: here in a folder, in `objectstore` at an address in object storage."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from vlltr_index.lock import write_lock, writer

__all__ = ["Storage", "storage_at", "sync_folder"]

LOCK = "lock"


def storage_at(address: str | os.PathLike[str]) -> Storage:
    """What keeps the files at a folder's path, or at an address such as `s3://bucket/birds`.

    Raises:
        UsageError: If the address is of a kind that cannot hold a workspace.
        MissingStepError: If the library for object storage is not installed.
    """
    text = os.fspath(address)
    if "://" in text:
        from vlltr_index.objectstore import ObjectStorage

        return ObjectStorage(text)
    return Storage(Path(address).expanduser().absolute())


class Storage:
    """A workspace's files by name, such as `history/1.json`: each is written whole or not at all.

    Attributes:
        address: What people call the place: the folder's path, or the URI.
        root: A folder on this machine: the workspace itself, or what this machine keeps of it.
        tables: The address for LanceDB.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)
        self.tables = str(root / "lance")

    def at(self, name: str) -> str:
        """What people call the file: its path or URI."""
        return f"{self.address}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.root / name).is_file()

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of all files below a folder, relative to it, in no order; hidden ones are left out."""
        top = self.root / folder
        for place, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inner = Path(place).relative_to(top)
            yield from ((inner / name).as_posix() for name in files if not name.startswith("."))

    def read(self, name: str) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes, new: bool = False) -> None:
        """Write the file, durable when this returns.

        Args:
            name: The file.
            data: Its content.
            new: Refuse to write over one that is there; of several writers at once one succeeds.

        Raises:
            FileExistsError: If it is there already, and should be new.
        """
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it: half of one is never found under its name on this machine."""
        path = self.root / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        hidden = path.with_name(f".tmp-{path.name}")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def upload(self, folder: str) -> None:
        """Keep what lies in the local folder `root / folder`: nothing to do in a folder."""

    def download(self, folder: str, target: Path) -> bool:
        """Bring what is kept in `folder` into the empty local folder `target`; False where there is nothing."""
        return False

    def lock(self, command: str, timeout: float | None = None) -> AbstractContextManager[None]:
        """Hold the workspace's lock for writers while the block runs.

        Args:
            command: What others who wait are told.
            timeout: Seconds to wait; default: in a folder as long as it takes, in object storage not at all.

        Raises:
            LockedError: If another writer still holds it after `timeout` seconds.
            WorkspaceError: If the lock cannot be written.
            UsageError: If this thread holds it already: it would wait for itself.
        """
        return write_lock(self.root / LOCK, command, timeout)

    def writer(self) -> str | None:
        """Who holds the lock now, in words; None if nobody does."""
        return writer(self.root / LOCK)

    def unlock(self) -> str | None:
        """Clear a lock that a killed writer left, and say whose it was; a folder's lock goes with its holder: None."""
        return None


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
