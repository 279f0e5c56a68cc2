"""Files that never change, named by their content: heads, checkpoints, index and parts of a workspace's commits."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from safetensors import SafetensorError

from vlltr_index.data.writing import digest_folder, scratch_folder, settle
from vlltr_index.errors import MissingFileError, WorkspaceError, reason, write_error

if TYPE_CHECKING:
    from vlltr_index.store.storage import Storage

Kind = Literal["heads", "checkpoints", "index", "parts"]
"""`heads` also holds baselines and the models of a cross-validation."""

_REMAKE = {
    "heads": "vlltr train lgr",
    "checkpoints": "vlltr train cvlp",
    "index": "vlltr index",
    "parts": "vlltr rollback ID, with the newest commit's own number, makes it of the tables as they are",
}


@contextmanager
def _in_words(place: Path) -> Iterator[None]:
    """Say what the system does not let this user read."""
    try:
        yield
    except OSError as error:
        raise WorkspaceError(
            f"{place} cannot be read: {reason(error)}", "Mend its permissions, or look at the disk."
        ) from error


class Kept(Protocol):
    """Objects that can be opened; `Objects` says what each call returns and raises."""

    def path(self, kind: Kind, digest: str) -> Path:
        """Return the folder of an object."""

    def whole(self, kind: Kind, digest: str) -> Path:
        """Return the folder of an object whose files are those that were written."""


@dataclass
class NewObject:
    """Files that are being written.

    Attributes:
        folder: The folder that they go into; it is empty.
        digest: What `Objects.path` takes: SHA-256 over names and bytes; once they are kept.
    """

    folder: Path
    digest: str = ""


class Objects:
    """The objects of one workspace, each a folder that is kept under the digest of its names and bytes.

    Args:
        storage: Where the workspace's files are; objects in object storage are copied to its local folder when used.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._root = storage.root

    @contextmanager
    def put(self, kind: Kind) -> Iterator[NewObject]:
        """Keep files that never change, named by their content; the block writes them. Use it inside a transaction.

        Args:
            kind: Which folder they go to.

        Raises:
            WorkspaceError: If they cannot be written.
        """
        parent = self._root / kind
        try:
            with scratch_folder(parent) as unfinished:
                made = NewObject(unfinished)
                yield made
                made.digest = digest_folder(unfinished)
                final = parent / made.digest[:16]
                damaged = final.exists() and digest_folder(final) != made.digest
                settle(unfinished, final, replace=damaged)
        except (OSError, SafetensorError) as error:
            raise write_error(parent, error) from error
        self._storage.upload(f"{kind}/{final.name}")

    def path(self, kind: Kind, digest: str) -> Path:
        """Return the local folder of an object; one in object storage is brought here first, and checked.

        Raises:
            MissingFileError: If it is gone.
            WorkspaceError: If what object storage has is not what was put there.
        """
        path = self._root / kind / digest[:16]
        with _in_words(path):
            if not digest.isalnum() or not (path.is_dir() or self._bring(kind, digest, path)):
                raise self._gone(kind, digest)
        return path

    def whole(self, kind: Kind, digest: str) -> Path:
        """Return the local folder of an object whose files are still those that were put there.

        Raises:
            MissingFileError: If it is gone.
            WorkspaceError: If a file of it was changed, cut short or deleted.
        """
        path = self.path(kind, digest)
        with _in_words(path):
            os.listdir(path)
            whole = digest_folder(path).startswith(digest)
        if not whole:
            hint = f"Bring it back from a backup, or make it again: {_REMAKE[kind]}. "
            hint += "To go back to a commit that does without it: vlltr history, then vlltr rollback ID"
            if self._storage.at(f"{kind}/{path.name}") != str(path):  # object storage has it, this is a copy
                hint = f"Delete this copy, and it is fetched again: rm -r {shlex.quote(str(path))}"
            raise WorkspaceError(f"{path} is damaged: its files are not those that were written", hint)
        return path

    def check(self, kind: Kind, digest: str) -> None:
        """See whether an object is kept, without bringing it here.

        Raises:
            MissingFileError: If it is gone.
        """
        if not digest.isalnum() or next(self._storage.names(f"{kind}/{digest[:16]}"), None) is None:
            raise self._gone(kind, digest)

    def file(self, kind: Kind, digest: str, name: str) -> bytes:
        """Return one file of an object, without bringing the others here.

        Raises:
            OSError: If there is no such file.
            MissingFileError: If `digest` is no digest.
        """
        if not digest.isalnum():  # a commit's file may come from others
            raise self._gone(kind, digest)
        return self._storage.read(f"{kind}/{digest[:16]}/{name}")

    def _gone(self, kind: Kind, digest: str) -> MissingFileError:
        return MissingFileError(
            f"{self._storage.at(f'{kind}/{digest[:16]}')} is gone: the workspace's newest commits need it",
            f"Make it again: {_REMAKE[kind]}",
        )

    def _bring(self, kind: Kind, digest: str, final: Path) -> bool:
        """Bring an object here, whole or not at all; whether there was one."""
        name = f"{kind}/{final.name}"
        with scratch_folder(final.parent, prefix=".new-") as unfinished:  # no writer sweeps it away
            if not self._storage.download(name, unfinished):
                return False
            if not digest_folder(unfinished).startswith(digest):
                raise WorkspaceError(
                    f"{self._storage.at(name)} is damaged: its content has another digest",
                    f"Bring it back from a backup, or make it again: {_REMAKE[kind]}",
                )
            settle(unfinished, final)
        return True
