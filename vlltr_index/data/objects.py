"""Objects in S3, Google Cloud Storage or Azure by their addresses. Only this module imports obstore.

Credentials and endpoint come from environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal

from vlltr_index.errors import MissingStepError, WorkspaceError

_opened: set[int] = set()  # ids of processes that have opened object storage
_SHOWN = 500  # characters of obstore's message that are shown


def is_address(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is an address in object storage, such as `s3://bucket/birds`."""
    return os.fspath(path).startswith(("s3://", "gs://", "az://"))


def objects_at(address: str) -> tuple[Any, Any]:
    """Return the module obstore, and its store of the objects below an address.

    Raises:
        MissingStepError: The extra `remote` is not installed.
        WorkspaceError: The address cannot be used.
    """
    try:
        import obstore
        import obstore.exceptions
        import platformdirs  # noqa: F401  # of the same extra; a workspace in object storage needs it
        from obstore.store import from_url
    except ImportError as error:
        raise MissingStepError(
            f"object storage needs a library that cannot be imported: {error}",
            'Run: pip install "vlltr-index[remote]"',
        ) from error
    _opened.add(os.getpid())
    retries: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
    with told_by(obstore, address):
        return obstore, from_url(address, retry_config=retries)


@contextmanager
def told_by(library: Any, address: str) -> Iterator[None]:
    """Turn obstore's errors into ours with the address; a missing or existing object into Python's own errors."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(address) from None
    except (library.exceptions.AlreadyExistsError, library.exceptions.PreconditionError):
        raise FileExistsError(address) from None
    except library.exceptions.BaseError as error:
        message = str(error).partition("Debug source")[0]  # without obstore's dump of its internal error
        raise WorkspaceError(
            f"{address.removesuffix('/')} cannot be used: {' '.join(message.split())[:_SHOWN]}",
            "Look at the network, the address, and what the environment says of credentials and endpoint (AWS_..., "
            "GOOGLE_..., AZURE_...), then run the same command again.",
        ) from error


def start_method() -> Literal["spawn"] | None:
    """Return the start method for processes that may read objects; forks hang if this process has read some."""
    return "spawn" if os.getpid() in _opened else None


def read_object(address: str) -> bytes:
    """Read the bytes of an object.

    Raises:
        FileNotFoundError: There is no such object.
        WorkspaceError: It cannot be read.
    """
    library, store, key = _within(address)
    with told_by(library, address):
        return bytes(library.get(store, key).bytes())


def object_names(address: str) -> list[str]:
    """List the names of all objects below an address, relative to it, sorted.

    Raises:
        WorkspaceError: They cannot be listed.
    """
    library, store, prefix = _within(address.rstrip("/"))
    with told_by(library, address):
        paths = [found["path"] for part in library.list(store, prefix or None) for found in part]
    return sorted(path.removeprefix(prefix).lstrip("/") for path in paths)


def _within(address: str) -> tuple[Any, Any, str]:
    """Return the module obstore, the store of the bucket, and the key in it."""
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return (*_bucket(f"{scheme}://{bucket}", os.getpid()), key)


@lru_cache(maxsize=8)
def _bucket(address: str, process: int) -> tuple[Any, Any]:
    """Open the store of a bucket; each process has its own, since a store does not survive a fork."""
    return objects_at(address)
