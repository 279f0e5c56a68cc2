"""Objects in S3, Google Cloud Storage or Azure by their addresses (the only obstore import).

Credentials and endpoint are the environment's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal

from vlltr_index.errors import MissingStepError, WorkspaceError

_opened: set[int] = set()  # processes
_SHOWN = 500  # characters of what obstore says


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of objects, such as `s3://bucket/birds`."""
    return os.fspath(path).startswith(("s3://", "gs://", "az://"))


def objects_at(address: str) -> tuple[Any, Any]:
    """obstore, and its store of the objects below an address.

    Raises:
        MissingStepError: If the extra `remote` is not installed.
        WorkspaceError: If the address cannot be used.
    """
    try:
        import obstore
        import obstore.exceptions
        import platformdirs  # noqa: F401  # of the same extra: a workspace there needs it
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
    """obstore's errors with the address; an object that is missing or there is a `FileNotFoundError` or so."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(address) from None
    except (library.exceptions.AlreadyExistsError, library.exceptions.PreconditionError):
        raise FileExistsError(address) from None
    except library.exceptions.BaseError as error:
        said = str(error).partition("Debug source")[0]  # without its account of its own insides
        raise WorkspaceError(
            f"{address.removesuffix('/')} cannot be used: {' '.join(said.split())[:_SHOWN]}",
            "Look at the network, the address, and what the environment says of credentials and endpoint (AWS_..., "
            "GOOGLE_..., AZURE_...), then run the same command again.",
        ) from error


def start_method() -> Literal["spawn"] | None:
    """How processes that may read objects are started: a fork of one that has read some would wait forever."""
    return "spawn" if os.getpid() in _opened else None


def read_object(address: str) -> bytes:
    """What an object holds.

    Raises:
        FileNotFoundError: If there is none.
        WorkspaceError: If it cannot be had.
    """
    library, store, key = _within(address)
    with told_by(library, address):
        return bytes(library.get(store, key).bytes())


def object_names(address: str) -> list[str]:
    """Names of all objects below an address, relative to it, in their order.

    Raises:
        WorkspaceError: If they cannot be listed.
    """
    library, store, prefix = _within(address.rstrip("/"))
    with told_by(library, address):
        paths = [found["path"] for part in library.list(store, prefix or None) for found in part]
    return sorted(path.removeprefix(prefix).lstrip("/") for path in paths)


def _within(address: str) -> tuple[Any, Any, str]:
    """obstore, the store of the bucket, and the key in it."""
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return (*_bucket(f"{scheme}://{bucket}", os.getpid()), key)


@lru_cache(maxsize=8)
def _bucket(address: str, process: int) -> tuple[Any, Any]:
    """A store does not survive a fork: each process has its own."""
    return objects_at(address)
