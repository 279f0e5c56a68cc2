"""The only obstore import: a workspace's files in S3, Google Cloud Storage or Azure, and what is kept of them here."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from vlltr_index.errors import MissingStepError, UsageError, VlltrError, WorkspaceError
from vlltr_index.lease import LEASE, lease_holder, lease_lock
from vlltr_index.storage import StillHeld, Storage
from vlltr_index.storage_errors import NO_BUCKET, disk_error, explain, storage_error

__all__ = ["CACHE_VARIABLE", "ObjectStorage"]

CACHE_VARIABLE = "VLLTR_CACHE_DIR"

_REMOVALS = {"s3": "aws s3 rm", "gs": "gcloud storage rm", "az": "remove the blob"}
_ADDRESS = re.compile(r"(?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(?:/[^?#\\]*)?\Z")
_LOCK = "lock"
_PART = 16 * 2**20  # bytes of one request for a part of a large object
_UPLOADS = 4  # parts of one object at once
_RETRIES = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}


class ObjectStorage(Storage):
    """The files below an address such as `s3://bucket/birds`; credentials and endpoint are the environment's.

    What libraries want as files, and what belongs to this machine, is kept in a folder below the user's cache, or below
    `VLLTR_CACHE_DIR`.

    Attributes:
        lease: Seconds that the lock for writers outlives one that was killed.

    Raises:
        UsageError: If it is no such address.
        MissingStepError: If the extra `remote` is not installed.
    """

    lease: float = LEASE

    def __init__(self, address: str) -> None:
        parts = address.partition("://")[2].removesuffix("/").split("/")
        if not _ADDRESS.match(address) or {"", ".", ".."} & {*parts}:
            raise UsageError(
                f"{address} is not an address that can hold a workspace",
                "Give a folder, or an address such as s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME.",
            )
        self.address = address = address.removesuffix("/")
        self.tables = f"{address}/lance"
        self.root = _cache_folder(address)
        self._client: Any = None
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_pid": -1}

    @property
    def _store(self) -> Any:
        if self._pid != os.getpid():  # a client does not survive a fork
            self._client = _library().store.from_url(self.address, retry_config=_RETRIES)
            self._pid = os.getpid()
        return self._client

    def at(self, name: str) -> str:
        """The file's URI."""
        return f"{self.address}/{name}"

    def removal(self, name: str) -> str:
        """The command that removes the file, of the provider's own program."""
        return f"{_REMOVALS[self.address.partition('://')[0]]} {self.at(name)}"

    def upward(self) -> Sequence[str]:
        """Itself alone: a bucket is no tree of folders."""
        return [self.address]

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        try:
            with self._asked(name):
                _library().head(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def files(self, folder: str) -> Sequence[str]:
        """Names of the objects directly below a prefix, sorted."""
        return sorted(PurePosixPath(found["path"]).name for found in self._level(folder)["objects"])

    def folders(self, folder: str) -> Sequence[str]:
        """Names of the prefixes directly below a prefix, sorted."""
        return sorted(PurePosixPath(found).name for found in self._level(folder)["common_prefixes"])

    def _level(self, folder: str) -> Any:
        with self._asked(folder):
            return _library().list_with_delimiter(self._store, folder)

    def _below(self, folder: str) -> list[tuple[str, int]]:
        """(name, bytes) of all objects below a prefix."""
        with self._asked(folder):
            parts = list(_library().list(self._store, folder or None))
        return [(found["path"], found["size"]) for part in parts for found in part]

    def size(self, folder: str) -> int:
        """Bytes of all objects below a prefix."""
        return sum(size for _, size in self._below(folder))

    def read(self, name: str) -> bytes:
        """The object's content."""
        with self._asked(name):
            return bytes(_library().get(self._store, name).bytes())

    def write(self, name: str, data: bytes) -> None:
        """Write the object."""
        with self._asked(name):
            _library().put(self._store, name, data)

    def create(self, name: str, data: bytes) -> None:
        """Write the object on the condition that there is none."""
        if _Conditional(self, name).put(data, None) is None and self.read(name) != data:
            # the same content: the answer to our own first try was lost
            raise FileExistsError(self.at(name))

    def remove(self, folder: str) -> None:
        """Remove the objects below a prefix, and this machine's copy."""
        with self._asked(folder):
            _library().delete(self._store, [name for name, _ in self._below(folder)])
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def upload(self, folder: str, source: Path) -> None:
        """Write the folder's files as objects; what else was there goes."""
        library, kept = _library(), set()
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            name = f"{folder}/{path.relative_to(source).as_posix()}"
            kept.add(name)
            with self._asked(name):
                library.put(self._store, name, path, max_concurrency=_UPLOADS)
        if others := [name for name, _ in self._below(folder) if name not in kept]:
            with self._asked(folder):
                library.delete(self._store, others)

    def download(self, folder: str, target: Path) -> bool:
        """Bring the objects below a prefix, in parts."""
        found = self._below(folder)
        for name, size in found:
            inner = PurePosixPath(name).relative_to(folder)
            if inner.is_absolute() or ".." in inner.parts or "\\" in name:
                raise WorkspaceError(
                    f"{self.at(name)} has a name that no file may have", f"Remove it: {self.removal(name)}"
                )
            path = target / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for start in range(0, size, _PART):
                    with self._asked(name):
                        end = min(start + _PART, size)
                        file.write(_library().get_range(self._store, name, start=start, end=end))
        return bool(found)

    def has_folder(self, folder: str) -> bool:
        """Whether there is an object below the prefix."""
        with self._asked(folder):
            return any(len(part) for part in _library().list(self._store, folder, chunk_size=1))

    def prepare(self, allowed: str) -> None:
        """See that nothing is there yet; there is nothing to make."""
        if [name for name, _ in self._below("") if name != allowed]:
            raise WorkspaceError(
                f"{self.address} is not empty and not a workspace", "Choose another address: vlltr init URI"
            )

    def try_write(self) -> None:
        """Write an object, which goes again."""
        name = f".doctor-{os.getpid()}"
        self.write(name, b"")
        with self._asked(name):
            _library().delete(self._store, name)

    def tidy(self) -> None:
        """Nothing to do: an object is there whole or not at all."""

    def lock(self, command: str, timeout: float | None = None) -> AbstractContextManager[StillHeld]:
        """Hold the lock object, see `vlltr_index.lease`."""
        return lease_lock(_Conditional(self, _LOCK), self.address, command, timeout, self.lease)

    def writer(self) -> str | None:
        """Who holds the lock object, or held it when it was killed."""
        return lease_holder(_Conditional(self, _LOCK))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """LanceDB's errors about the storage, in words that help."""
        try:
            yield
        except VlltrError:
            raise
        except Exception as error:
            said = storage_error(self.address, error) or disk_error(self.root, error)
            if said is not None:
                raise said from None
            raise

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """obstore's errors in words that help; a missing object stays a `FileNotFoundError`."""
        try:
            yield
        except FileNotFoundError as error:
            if NO_BUCKET.search(str(error)):
                raise explain(self.address, str(error)) from None
            raise FileNotFoundError(self.at(name)) from None
        except _library().exceptions.BaseError as error:
            if isinstance(
                error, (_library().exceptions.AlreadyExistsError, _library().exceptions.PreconditionError)
            ):
                raise
            raise explain(self.address, str(error)) from None


class _Conditional:
    """An object that is written on conditions: the storage decides between two writers."""

    def __init__(self, storage: ObjectStorage, name: str) -> None:
        self._storage, self._name = storage, name

    def get(self) -> tuple[bytes, Any] | None:
        """Its content, and what names this version; None where there is none."""
        try:
            with self._storage._asked(self._name):
                found = _library().get(self._storage._store, self._name)
                return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    def put(self, data: bytes, version: Any) -> Any | None:
        """Write it if it still is that version, None: if there is none; None if it was not written."""
        library = _library()
        mode = "create" if version is None else version
        try:
            with self._storage._asked(self._name):
                return _version(library.put(self._storage._store, self._name, data, mode=mode))
        except (library.exceptions.AlreadyExistsError, library.exceptions.PreconditionError):
            return None
        except FileNotFoundError:  # removed since
            return None


def _version(facts: Any) -> dict[str, str]:
    """What a conditional write takes to name a version."""
    return {key: facts[key] for key in ("e_tag", "version") if facts.get(key) is not None}


def _library() -> Any:
    """The obstore module.

    Raises:
        MissingStepError: It is not installed.
    """
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise _missing(error) from None
    return obstore


def _missing(error: ImportError) -> MissingStepError:
    return MissingStepError(
        f"a workspace in object storage needs a library that cannot be imported: {error}",
        'Run: pip install "vlltr-index[remote]"',
    )


def _cache_folder(address: str) -> Path:
    """What this machine keeps of a workspace."""
    _library()
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        cache = Path(chosen).expanduser().absolute()
    else:
        try:
            from platformdirs import user_cache_path
        except ImportError as error:
            raise _missing(error) from None
        cache = user_cache_path("vlltr-index", appauthor=False)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", address)[:60]
    folder = cache / f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"{folder} cannot be made: {error}",
            f"Name a folder that can be written: export {CACHE_VARIABLE}=FOLDER",
        ) from None
    return folder
