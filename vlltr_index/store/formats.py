"""Refusal of a workspace in another format, with the version of this program that can read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import FORMAT
from vlltr_index.schemas.manifests import other_format

if TYPE_CHECKING:
    from vlltr_index.store.storage import Storage

HISTORY = "history"
"""The folder of the commits."""
NEWEST = f"{HISTORY}/newest"
"""The file that holds the number of the newest commit."""


def another_format(place: str, written: object, version: object) -> WorkspaceError:
    """Return the error to raise for a workspace in another format.

    Args:
        place: Which of its files says so.
        written: The format; None: the file names none.
        version: The version of this program that wrote it; None: it is not known.
    """
    what = other_format(place, written, FORMAT, version)
    return WorkspaceError(f"{what}, and `vlltr export --tables DIR` of that version saves the tables")


def newest_version(storage: Storage) -> object:
    """Return the version of this program that wrote the newest commit, in whatever format; None if it is not known."""
    try:
        newest = int(storage.read(NEWEST))
        return json.loads(storage.read(f"{HISTORY}/{newest}.json")).get("program_version")
    except (OSError, ValueError, AttributeError, WorkspaceError):
        return None
