"""What the system and the libraries say when storage cannot be used, or is damaged, in words that help."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vlltr_index.errors import VlltrError, WorkspaceError

__all__ = [
    "NO_BUCKET",
    "disk_error",
    "disk_explained",
    "explain",
    "is_library_error",
    "short",
    "storage_error",
    "table_error",
    "table_explained",
    "write_error",
]

NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist", re.I)

_OURS = re.compile(
    r"Generic \w+ error|store: \"\w+\"|HTTP error|error sending request|dispatch failure", re.I
)
_PREFIX = re.compile(r"\AGeneric \w+ error: ")
_NO_HTTP = re.compile(r"builder error|BadScheme", re.I)
_NO_KEY = re.compile(
    r"169\.254\.1|latest/api/token|computeMetadata|must be specified|credential|Missing \w*Key", re.I
)
_REFUSED = re.compile(
    r"\b40[13]\b|Forbidden|AccessDenied|PermissionDenied|Unauthenticated|Unauthorized"
    r"|SignatureDoesNotMatch|InvalidAccessKeyId|AuthenticationFailed",
    re.I,
)
_REGION = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|\b30[17]\b", re.I)
_SHOWN = 300  # characters of what a library says
_FULL = re.compile(r"No space left on device|Disk quota exceeded|os error (?:28|122)\b")
_READ_ONLY = re.compile(r"Read-only file system|os error 30\b")
_RUST = re.compile(r",? ?/?[\w.+/-]+\.rs:\d+(?::\d+)?")  # a place in LanceDB's own source
_LANCE = re.compile(r"\A(?:lance error: |External error: |LanceError\(\w+\): )+")
_PANICS = frozenset({("pyo3_async_runtimes", "RustPanic"), ("pyo3_runtime", "PanicException")})
_PERMISSIONS = "Mend its permissions, or work on a copy of the folder."

_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION",
    "gs": "GOOGLE_SERVICE_ACCOUNT (the key's file)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}


def storage_error(address: str, error: Exception) -> WorkspaceError | None:
    """What to say where a library failed to use the storage, not for what it holds; None for other errors.

    Args:
        address: The URI or the folder that was used.
        error: What the library raised.
    """
    said = str(error)
    if "://" not in address:
        return disk_error(address, error)
    return explain(address, said) if _OURS.search(said) else None


def disk_error(folder: str | os.PathLike[str], error: BaseException) -> WorkspaceError | None:
    """What to say where a disk is full, or may only be read; None for other errors.

    Args:
        folder: Where something was to be written; where the error names a file outside, that one's folder is shown.
        error: What the system or a library raised.
    """
    said, place = str(error), _place(str(folder), error)
    if _FULL.search(said):
        return WorkspaceError(
            f"{place} is full: no space is left on its disk",
            "Free some space, then run the same command again; the workspace is as it was.",
        )
    if _READ_ONLY.search(said):
        return WorkspaceError(f"{place} cannot be written: its file system is read-only", _PERMISSIONS)
    return None


def _place(folder: str, error: BaseException) -> str:
    name = getattr(error, "filename", None)
    inside = os.path.join(folder, "")
    return folder if not isinstance(name, str) or name.startswith(inside) else os.path.dirname(name) or folder


def write_error(folder: str | os.PathLike[str], error: Exception) -> WorkspaceError:
    """What to say where nothing can be written into a folder, whatever the reason."""
    return disk_error(folder, error) or WorkspaceError(f"{folder} cannot be written: {error}", _PERMISSIONS)


@contextmanager
def disk_explained(folder: str | os.PathLike[str]) -> Iterator[None]:
    """In the block, an error of a disk that is full, or may only be read, becomes a `WorkspaceError`."""
    try:
        yield
    except VlltrError:
        raise
    except Exception as error:
        if (said := disk_error(folder, error)) is not None:
            raise said from None
        raise


def is_library_error(error: BaseException) -> bool:
    """Whether LanceDB raises this where a table is damaged; its panics are of classes that cannot be imported."""
    kind = type(error)
    panicked = (kind.__module__, kind.__qualname__) in _PANICS
    return panicked or isinstance(error, ValueError | RuntimeError | OSError)


def table_error(uri: str, name: str, error: BaseException, what: str = "opened") -> WorkspaceError:
    """What to say where LanceDB failed to use a table: the storage cannot be used, or the table is damaged.

    Args:
        uri: The folder or the URI of the tables.
        name: The table.
        error: What LanceDB raised.
        what: What was tried: opened, read, written.
    """
    known = storage_error(uri, error) if isinstance(error, Exception) else None
    return known or WorkspaceError(
        f"table {name!r} in {uri} cannot be {what}: {short(error)}",
        "Bring the folder back from a backup, or make a new workspace: vlltr init DIR",
    )


@contextmanager
def table_explained(uri: str, name: str, what: str = "read") -> Iterator[None]:
    """In the block, LanceDB's errors about a table become a `WorkspaceError`; arguments as for `table_error`."""
    try:
        yield
    except VlltrError:
        raise
    except BaseException as error:  # a panic may be a BaseException
        if not is_library_error(error):
            raise
        raise table_error(uri, name, error, what) from None


def short(error: BaseException) -> str:
    """What LanceDB says, without its own wrapping and places in its source."""
    first = _LANCE.sub("", str(error).partition("\n")[0])
    return _RUST.sub("", first)[:_SHOWN].rstrip(" ,:")


def explain(address: str, said: str) -> WorkspaceError:
    """The error for what a library said when it failed to use object storage."""
    short = _PREFIX.sub("", said.partition("\n")[0])[:_SHOWN]
    keys = _KEYS.get(address.partition("://")[0], "the credentials")
    if NO_BUCKET.search(said):
        return WorkspaceError(
            f"there is no bucket of the name in {address}",
            "Make it with the storage's own tools, or mend the address.",
        )
    if _NO_HTTP.search(said):
        return WorkspaceError(
            f"{address}: the endpoint speaks http, without encryption, which has to be allowed: {short}",
            "For storage of your own: export AWS_ALLOW_HTTP=true",
        )
    if _NO_KEY.search(said):
        return WorkspaceError(f"no credentials for {address}: {short}", f"Set {keys} in the environment.")
    if _REFUSED.search(said):
        return WorkspaceError(
            f"the storage does not allow this at {address}: {short}",
            f"Look at {keys}: they must be allowed to list, read, write and delete there.",
        )
    if _REGION.search(said):
        return WorkspaceError(f"{address} is in another region: {short}", "Set AWS_REGION to the bucket's.")
    return WorkspaceError(
        f"the storage of {address} cannot be used: {short}",
        "Look at the network, the address and the endpoint (AWS_ENDPOINT), then run the same command again.",
    )
