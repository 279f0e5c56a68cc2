"""Put an export in its place atomically: it is written into a hidden folder beside it, of a known name."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from vlltr_index.data.writing import make_folder, settle, sync, write_file
from vlltr_index.errors import PretrainedError

if TYPE_CHECKING:
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

_NEW = "new"
_OLD = "new-old"  # the name that `settle` gives the folder that it replaces
_LOCK = "lock"
_PATIENCE = 10.0  # seconds that a reader waits between the two renames of another process


def beside(folder: Path) -> Path:
    """Return the hidden folder that an export to `folder` is written into."""
    return folder.with_name(f".{folder.name}.exporting")


@contextmanager
def new_folder(workspace: Workspace, folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, for `take_place` in the block; leftovers of a killed export are removed.

    Args:
        workspace: The workspace that is exported; a note in it names `folder` until the block ends, for `unfinished`.
        folder: Where the export will lie.

    Raises:
        PretrainedError: If another process is writing it.
        OSError: If nothing can be written there.
    """
    hidden = beside(folder)
    note = workspace.path / "runs" / f"export-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    with suppress(OSError):  # the workspace may be read-only for this user
        write_file(note, os.fsencode(folder))
    make_folder(hidden)
    try:
        held = FileLock(hidden / _LOCK).acquire(timeout=0)
    except Timeout:
        raise PretrainedError(
            f"{folder} is being written by another command", "Wait for it, or choose another folder."
        ) from None
    with held:
        try:
            _put_back(folder)
            for left in (_NEW, _OLD):
                shutil.rmtree(hidden / left, ignore_errors=True)
            (hidden / _NEW).mkdir()
            yield hidden / _NEW
        finally:
            _put_back(folder)  # if the replacement failed half-way
            shutil.rmtree(hidden, ignore_errors=True)
            with suppress(OSError):
                for written in note.parent.glob(
                    f"*{note.name}*"
                ):  # also a half-written note of a killed export
                    written.unlink()


def take_place(new: Path, folder: Path) -> None:
    """Move the folder from `new_folder` to its place, durably, replacing an earlier export.

    A kill between the two renames leaves no folder there; `bring_back` repairs that.

    Raises:
        OSError: If the disk refuses, or another folder has appeared there.
    """
    if not settle(new, folder, replace=True):
        raise FileExistsError(f"{folder} was made by another program meanwhile")


def bring_back(folder: Path) -> None:
    """Restore an export that a killed process had moved away in order to replace it.

    Call it before an export is opened or replaced.
    """
    if folder.is_dir() or not (beside(folder) / _OLD).is_dir():
        return
    with suppress(OSError, Timeout), FileLock(beside(folder) / _LOCK, timeout=_PATIENCE):
        if _put_back(folder):
            _log.warning("%s is back as it was: what was to replace it was killed half-way", folder)


def _put_back(folder: Path) -> bool:
    """Move the old export back if there is no other, while holding the lock; say whether that was needed."""
    old = beside(folder) / _OLD
    if folder.is_dir() or not old.is_dir():
        return False
    os.rename(old, folder)
    sync(folder.parent)
    return True


def unfinished(workspace: Workspace) -> list[Path]:
    """List the folders to which exports of a workspace were killed and left files."""
    found = []
    for note in sorted((workspace.path / "runs").glob("export-*")):
        with suppress(OSError, Timeout):  # a running export holds the lock
            folder = Path(os.fsdecode(note.read_bytes()))
            if folder.name and beside(folder).is_dir():
                with FileLock(beside(folder) / _LOCK, timeout=0):
                    found.append(folder)
    return found
