"""Where a workspace's files are: one interface over a folder and over object storage, and the folder's side of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from vlltr_index.errors import WorkspaceError
from vlltr_index.lock import write_lock, writer
from vlltr_index.storage_errors import disk_explained

__all__ = ["LocalStorage", "StillHeld", "Storage", "storage_at", "sync_folder"]

StillHeld = Callable[[], None]
"""Raises `LockedError` where the lock that one believes to hold may be another's by now."""

_LOCK = "lock"


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
    return LocalStorage(Path(address).expanduser().absolute())


class Storage(ABC):
    """A workspace's files by name, such as `history/1.json`: each is written whole or not at all.

    Attributes:
        address: What people call the place: the folder's path, or the URI.
        root: A folder on this machine: the workspace itself, or what this machine keeps of it.
        tables: The address for LanceDB.
    """

    address: str
    root: Path
    tables: str

    @abstractmethod
    def at(self, name: str) -> str:
        """What people call the file."""

    @abstractmethod
    def removal(self, name: str) -> str:
        """The command that removes the file."""

    @abstractmethod
    def upward(self) -> Sequence[str]:
        """Addresses of the place itself and of those it lies in, nearest first."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    @abstractmethod
    def files(self, folder: str) -> Sequence[str]:
        """Names of the files directly in a folder, sorted; none where there is no such folder."""

    @abstractmethod
    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in a folder, sorted."""

    @abstractmethod
    def size(self, folder: str) -> int:
        """Bytes of all files below a folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The file's content.

        Raises:
            FileNotFoundError: If there is no such file.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write the file, over one that is there; durable when this returns."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write the file, durable when this returns; of several writers at once one succeeds.

        Raises:
            FileExistsError: If it is there already.
        """

    @abstractmethod
    def remove(self, folder: str) -> None:
        """Remove a folder with all in it; half of it is never found under its name on this machine."""

    @abstractmethod
    def upload(self, folder: str, source: Path) -> None:
        """Keep what the local folder `source`, which lies at `root / folder`, holds."""

    @abstractmethod
    def download(self, folder: str, target: Path) -> bool:
        """Bring what is kept in `folder` into the empty local folder `target`; False where there is nothing."""

    @abstractmethod
    def has_folder(self, folder: str) -> bool:
        """Whether there is something in the folder."""

    @abstractmethod
    def prepare(self, allowed: str) -> None:
        """Make the place for a new workspace.

        Args:
            allowed: A file that may be there already.

        Raises:
            WorkspaceError: If there are other things, or it cannot be made.
        """

    @abstractmethod
    def try_write(self) -> None:
        """See whether the place can be written.

        Raises:
            OSError: If it cannot.
            WorkspaceError: If it cannot, with what mends it.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Remove what writers left that were killed in the middle of a file; call it under the lock."""

    @abstractmethod
    def lock(self, command: str, timeout: float | None = None) -> AbstractContextManager[StillHeld]:
        """Hold the workspace's lock for writers while the block runs.

        Args:
            command: What others who wait are told.
            timeout: Seconds to wait; default: as long as it takes.

        Raises:
            LockedError: If another writer still holds it after `timeout` seconds.
            WorkspaceError: If the lock cannot be written.
            UsageError: If this thread holds it already: it would wait for itself.
        """

    @abstractmethod
    def writer(self) -> str | None:
        """Who holds the lock now, in words; None if nobody does."""

    @abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """In the block, a library's error about the storage becomes a `WorkspaceError`."""


class LocalStorage(Storage):
    """The files in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)
        self.tables = str(root / "lance")

    def at(self, name: str) -> str:
        """The file's path."""
        return str(self.root / name)

    def removal(self, name: str) -> str:
        """The command that removes the file."""
        return f"rm {self.root / name}"

    def upward(self) -> Sequence[str]:
        """The folder and all above it."""
        return [self.address, *map(str, self.root.parents)]

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.root / name).is_file()

    def files(self, folder: str) -> Sequence[str]:
        """Names of the files directly in a folder, sorted."""
        return self._names(folder, is_folder=False)

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the folders directly in a folder, sorted."""
        return self._names(folder, is_folder=True)

    def _names(self, folder: str, is_folder: bool) -> Sequence[str]:
        try:
            with os.scandir(self.root / folder) as found:
                return sorted(entry.name for entry in found if entry.is_dir() == is_folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, folder: str) -> int:
        """Bytes of all files below a folder."""
        return sum(p.stat().st_size for p in (self.root / folder).rglob("*") if p.is_file())

    def read(self, name: str) -> bytes:
        """The file's content."""
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write the file through a second one beside it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(path, data) as temporary:
            os.replace(temporary, path)
        sync_folder(path.parent)

    def create(self, name: str, data: bytes) -> None:
        """Write the file through a second one beside it, unless its name is taken."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(path, data) as temporary:
            _publish(temporary, path)
        sync_folder(path.parent)

    def remove(self, folder: str) -> None:
        """Remove a folder: out of sight first, so that half of one is never found under its name."""
        path = self.root / folder
        hidden = path.with_name(f".tmp-{path.name}")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def upload(self, folder: str, source: Path) -> None:
        """Nothing to do: what lies in the folder is kept."""

    def download(self, folder: str, target: Path) -> bool:
        """Nothing to bring: what is kept lies in the folder."""
        return False

    def has_folder(self, folder: str) -> bool:
        """Whether the folder is there."""
        return (self.root / folder).is_dir()

    def prepare(self, allowed: str) -> None:
        """Make the folder, and those above it."""
        folder = self.root
        if folder.exists() and not folder.is_dir():
            raise WorkspaceError(f"{folder} is a file", "Choose another folder: vlltr init DIR")
        if folder.is_dir() and any(not p.name.startswith(f".{allowed}") for p in folder.iterdir()):
            raise WorkspaceError(
                f"{folder} is not empty and not a workspace", "Choose a new folder: vlltr init DIR"
            )
        folder.mkdir(parents=True, exist_ok=True)

    def try_write(self) -> None:
        """Make a file, which goes again."""
        with tempfile.NamedTemporaryFile(prefix=".tmp-doctor-", dir=self.root):
            pass

    def tidy(self) -> None:
        """Remove commits that were not finished."""
        for left in (self.root / "history").glob(".*.tmp"):
            left.unlink()

    @contextmanager
    def lock(self, command: str, timeout: float | None = None) -> Iterator[StillHeld]:
        """Hold the lock file, which the system lets go of when its holder dies."""
        with write_lock(self.root / _LOCK, command, timeout):
            yield _held

    def writer(self) -> str | None:
        """Who holds the lock file now, in words; None if nobody does."""
        return writer(self.root / _LOCK)

    def explained(self) -> AbstractContextManager[None]:
        """A disk that is full or may only be read, in words that help; the system's other errors name the file."""
        return disk_explained(self.root)


def _held() -> None:
    """A lock that the system keeps cannot be lost."""


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """The content in a file of another name, durable; that name is gone afterwards."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, final: Path) -> None:
    """Give the file its name, unless that is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: writers hold the workspace's lock
        if final.exists():
            raise FileExistsError(final) from None
        os.rename(temporary, final)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
