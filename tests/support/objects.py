"""Objects of a workspace, written by a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlltr_index.store.objects import Kind
from vlltr_index.store.workspace import Workspace


def put(workspace: Workspace, kind: Kind, build: Callable[[Path], object]) -> str:
    """Keep what `build` writes into an empty folder; the digest is returned."""
    with workspace.objects.put(kind) as made:
        build(made.folder)
    return made.digest
