"""Files and the write lock of a workspace: in a folder, or in S3, Google Cloud Storage or Azure."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from vlltr_index.data.objects import objects_at, told_by
from vlltr_index.data.writing import remove_folder, sync, write_file
from vlltr_index.errors import LockedError, UsageError, WorkspaceError, write_error
from vlltr_index.store.durability import sync_changed

_log = logging.getLogger(__name__)

_LOCK = "lock"
_CACHE = "VLLTR_CACHE_DIR"
_ADDRESS = re.compile(r"(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(?:/[^/?#\\]+)*/?\Z")
_PAUSE = 0.5  # seconds between two tries for the lock
_WAIT = "Wait until it is done, or stop it, and run this again."


@contextmanager
def write_lock(path: Path, command: str, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; `<path>.holder` beside it says who does.

    Args:
        path: The lock file; made if it is not there, never removed.
        command: Shown to other processes that wait for the lock.
        timeout: Seconds to wait; default: as long as it takes.

    Raises:
        LockedError: If another process still holds it after `timeout` seconds.
        WorkspaceError: If the file cannot be written, for example on a full disk.
        UsageError: If this thread holds the lock already, and would wait for itself.
    """
    lock = FileLock(path)
    beside = path.with_name(f"{path.name}.holder")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if timeout != 0:
                _log.warning("waiting for %s, which is writing to %s", _holder(path), path.parent)
            lock.acquire(timeout=-1 if timeout is None else timeout)
        write_file(beside, _signature(command))
    except Timeout:
        raise LockedError(f"{_holder(path)} is writing to {path.parent}", _WAIT) from None
    except RuntimeError as error:
        raise UsageError(
            f"{command}: this program is already writing to {path.parent}", "End that transaction first."
        ) from error
    except OSError as error:
        lock.release()
        raise write_error(path.parent, error) from error
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)
        lock.release()


def _signature(command: str) -> bytes:
    """Return the text that a lock's holder writes beside it: its command, process, host and start time."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"`vlltr {command}` (process {os.getpid()} on {socket.gethostname()}, since {since})".encode()


def _holder(path: Path) -> str:
    try:
        return path.with_name(f"{path.name}.holder").read_text(encoding="utf-8")
    except FileNotFoundError:  # the holder has taken the lock, and not written its name yet
        return "another process"


def storage_at(address: str | os.PathLike[str]) -> Storage:
    """Return the storage for a folder's path, or for an address such as `s3://bucket/birds`.

    Raises:
        UsageError: If the address is of a kind that cannot hold a workspace.
        MissingStepError: If the library for object storage is not installed.
    """
    text = os.fspath(address)
    if "://" in text:
        return ObjectStorage(text)
    path = Path(os.path.expanduser(address))
    return Storage(path.resolve() if ".." in path.parts else path.absolute())


class Storage:
    """Files of a workspace by name, such as `history/1.json`; each is written whole or not at all.

    Attributes:
        address: The folder's path, or the URI, for messages.
        root: A folder on this machine: the workspace itself, or local copies of its objects.
        tables: The address for LanceDB.
        lance: The folder of the tables; None in object storage, where writes are durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)
        self.lance: Path | None = root / "lance"
        self.tables = str(self.lance)

    def at(self, name: str) -> str:
        """Return the path or URI of a file, for messages."""
        return f"{self.address}/{name}"

    def exists(self, name: str) -> bool:
        """Say whether a file exists."""
        return (self.root / name).is_file()

    def names(self, folder: str = "") -> Iterator[str]:
        """List the names of all files below a folder, relative to it, in no order; hidden ones are left out.

        Raises:
            WorkspaceError: If a folder cannot be listed; one that is not there has none.
        """
        top = self.root / folder
        for place, folders, files in os.walk(top, onerror=_not_listed):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inner = Path(place).relative_to(top)
            yield from ((inner / name).as_posix() for name in files if not name.startswith("."))

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes, new: bool = False) -> None:
        """Write a file; it is durable when this returns.

        Args:
            name: The file.
            data: Its content.
            new: Refuse to overwrite an existing file; of several concurrent writers one succeeds.

        Raises:
            FileExistsError: If it is there already, and should be new.
        """
        path = self.root / name
        try:
            write_file(path, data, new)
        except OSError as error:
            error.filename = error.filename or str(path)  # the error of a full disk names no file
            raise

    def sync_tables(self, since: str | None) -> None:
        """Make durable what was written to the tables since the file `since` was written; None: everything.

        Raises:
            WorkspaceError: If the disk refuses.
        """
        if self.lance is None or not self.lance.is_dir():
            return
        try:
            sync_changed(self.lance, self.root / since if since else None)
            sync(self.root)
        except OSError as error:
            raise write_error(self.lance, error) from error

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content; on this machine no half-removed folder keeps its name."""
        path = self.root / name
        if path.is_dir():
            remove_folder(path)
            return
        with suppress(FileNotFoundError):
            path.unlink()
            sync(path.parent)

    def rename(self, name: str, new: str) -> None:
        """Rename a file, replacing one of the new name; the file need not be readable."""
        os.replace(self.root / name, self.root / new)
        sync((self.root / new).parent)

    def upload(self, folder: str) -> None:
        """Upload the local folder `root / folder`; in a local workspace there is nothing to do."""

    def download(self, folder: str, target: Path) -> bool:
        """Download what is stored in `folder` into the empty local folder `target`; False if there is nothing."""
        return False

    def lock(self, command: str, timeout: float | None = None) -> AbstractContextManager[None]:
        """Hold the workspace's lock for writers while the block runs: see `write_lock`.

        In object storage the default is not to wait.
        """
        return write_lock(self.root / _LOCK, command, timeout)

    def writer(self) -> str | None:
        """Describe who holds the lock now; None if nobody does."""
        path = self.root / _LOCK
        try:
            if path.is_file():
                with FileLock(path, timeout=0):
                    pass
        except Timeout:
            return _holder(path)
        except OSError:  # the lock file cannot be written, so nobody can write here
            pass
        return None

    def unlock(self) -> str | None:
        """Remove a lock that a killed writer left and return its holder; None for a folder, whose lock ends with its
        process."""
        return None


class ObjectStorage(Storage):
    """Files below an address such as `s3://bucket/birds`; credentials and endpoint come from the environment.

    Local copies, for libraries that read files, and files of this machine are kept in a folder below the user's cache,
    or below `VLLTR_CACHE_DIR`.

    Raises:
        UsageError: If it is no such address.
        MissingStepError: If the extra `remote` is not installed.
    """

    def __init__(self, address: str) -> None:
        if not _ADDRESS.match(address) or {".", ".."} & {*address.split("/")}:
            raise UsageError(
                f"{address} is not an address that can hold a workspace",
                "Give a folder, or an address such as s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME.",
            )
        self.address = address.removesuffix("/")
        self._library, self._store = objects_at(self.address)
        from platformdirs import user_cache_path

        self.lance = None
        self.tables = f"{self.address}/lance"
        cache = os.environ.get(_CACHE) or user_cache_path("vlltr-index", appauthor=False)
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.address)[:60]
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:12]
        self.root = Path(os.path.expanduser(cache)).absolute() / f"{readable}-{digest}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = write_error(self.root, error).message
            raise WorkspaceError(
                message, f"Name a folder that can be written: export {_CACHE}=FOLDER"
            ) from error

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        return type(self), (self.address,)

    def _asked(self, name: str) -> AbstractContextManager[None]:
        """Translate obstore's errors, adding the object's address."""
        return told_by(self._library, self.at(name))

    def exists(self, name: str) -> bool:
        """Say whether the object exists."""
        try:
            with self._asked(name):
                self._library.head(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str = "") -> Iterator[str]:
        """List the names of all objects below a prefix, relative to it."""
        with self._asked(folder):
            for part in self._library.list(self._store, folder or None):
                yield from (found["path"].removeprefix(f"{folder}/") for found in part)

    def read(self, name: str) -> bytes:
        """Read an object."""
        with self._asked(name):
            return bytes(self._library.get(self._store, name).bytes())

    def write(self, name: str, data: bytes | Path, new: bool = False) -> None:
        """Write an object, in parts if it is large; with `new`, only if none of that name exists."""
        with self._asked(name):
            self._library.put(self._store, name, data, mode="create" if new else "overwrite")

    def remove(self, name: str) -> None:
        """Remove an object, or all objects below a prefix, and the local copy."""
        inside = [f"{name}/{inner}" for inner in self.names(name)]
        with self._asked(name):
            self._library.delete(self._store, inside or name)
        shutil.rmtree(self.root / name, ignore_errors=True)

    def rename(self, name: str, new: str) -> None:
        """Rename an object."""
        with self._asked(name):
            self._library.rename(self._store, name, new)

    def upload(self, folder: str) -> None:
        """Upload a local folder's files as objects."""
        source = self.root / folder
        for path in (p for p in source.rglob("*") if p.is_file()):
            self.write(f"{folder}/{path.relative_to(source).as_posix()}", path)

    def download(self, folder: str, target: Path) -> bool:
        """Download the objects below a prefix, in parts."""
        names = list(self.names(folder))
        for name in names:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._asked(f"{folder}/{name}"), path.open("wb") as file:
                for part in self._library.get(self._store, f"{folder}/{name}"):
                    file.write(part)
        return bool(names)

    @contextmanager
    def lock(self, command: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock object while the block runs; that of a killed writer stays until `unlock`."""
        start = time.monotonic()
        signed = _signature(command)
        while True:
            try:
                self.write(_LOCK, signed, new=True)
                break
            except FileExistsError:
                if time.monotonic() - start >= (timeout or 0):
                    raise LockedError(
                        f"{self.writer()} is writing to {self.address}",
                        f"{_WAIT} If it was killed, clear its lock: vlltr -w {self.address} doctor --unlock",
                    ) from None
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            try:
                if self.read(_LOCK) == signed:  # after an `unlock` it may be another process's
                    self.remove(_LOCK)
            except (WorkspaceError, FileNotFoundError) as error:
                _log.warning(
                    "the lock was not removed (vlltr -w %s doctor --unlock): %s", self.address, error
                )

    def writer(self) -> str | None:
        """Describe who holds the lock object, or held it when it was killed."""
        try:
            return self.read(_LOCK).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def unlock(self) -> str | None:
        """Remove the lock object and return its holder."""
        holder = self.writer()
        if holder is not None:
            self.remove(_LOCK)
        return holder


def _not_listed(error: OSError) -> None:
    """Raise the errors that `os.walk` would ignore, except for a folder that does not exist."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise WorkspaceError(
            f"{error.filename} cannot be listed: {error.strerror}",
            "Mend its permissions, or look at the disk.",
        ) from error
