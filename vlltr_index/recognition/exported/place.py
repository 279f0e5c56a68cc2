"""How an export takes its place: it is written into a hidden folder beside it, of which a kill leaves a known name."""

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

_NEW, _OLD, _LOCK = "new", "new-old", "lock"  # the second is what `settle` calls it
_PATIENCE = 10.0  # seconds that a reader waits between the two renames of another process


def beside(folder: Path) -> Path:
    """The hidden folder that an export to `folder` is written into."""
    return folder.with_name(f".{folder.name}.exporting")


@contextmanager
def new_folder(workspace: Workspace, folder: Path) -> Iterator[Path]:
    """Give an empty folder, for `take_place` in the block; what a killed export to `folder` left is removed.

    Args:
        workspace: What is exported: it keeps a note of where to until the block ends, so that `unfinished` finds it.
        folder: The place.

    Raises:
        PretrainedError: If another process is writing it.
        OSError: If nothing can be written there.
    """
    hidden = beside(folder)
    note = workspace.path / "runs" / f"export-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    with suppress(OSError):  # a workspace may be read by who cannot write into it
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
            _put_back(folder)  # where it could not be replaced
            shutil.rmtree(hidden, ignore_errors=True)
            with suppress(OSError):
                for written in note.parent.glob(f"*{note.name}*"):  # and one that a kill left unfinished
                    written.unlink()


def take_place(new: Path, folder: Path) -> None:
    """Give what `new_folder` gave its place, durably; the export that is there goes.

    A kill between the two renames leaves no folder there, which `bring_back` mends.

    Raises:
        OSError: If the disk refuses, or another folder is there by now.
    """
    if not settle(new, folder, replace=True):
        raise FileExistsError(f"{folder} was made by another program meanwhile")


def bring_back(folder: Path) -> None:
    """Bring back an export that a process moved away to replace it, where that was killed before it did.

    Whoever opens or replaces an export calls it first.
    """
    if folder.is_dir() or not (beside(folder) / _OLD).is_dir():
        return
    with suppress(OSError, Timeout), FileLock(beside(folder) / _LOCK, timeout=_PATIENCE):
        if _put_back(folder):
            _log.warning("%s is back as it was: what was to replace it was killed half-way", folder)


def _put_back(folder: Path) -> bool:
    """For who holds the lock: move the old export back where there is no other; whether that was needed."""
    old = beside(folder) / _OLD
    if folder.is_dir() or not old.is_dir():
        return False
    os.rename(old, folder)
    sync(folder.parent)
    return True


def unfinished(workspace: Workspace) -> list[Path]:
    """The folders to which exports of a workspace were killed, and beside which something is left."""
    found = []
    for note in sorted((workspace.path / "runs").glob("export-*")):
        with suppress(OSError, Timeout):  # one that goes on holds the lock
            folder = Path(os.fsdecode(note.read_bytes()))
            if folder.name and beside(folder).is_dir():
                with FileLock(beside(folder) / _LOCK, timeout=0):
                    found.append(folder)
    return found
