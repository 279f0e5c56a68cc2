"""A copy of a workspace's tables that may be written to and is thrown away: what a dry run works on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.storage import LocalStorage

if TYPE_CHECKING:
    from vlltr_index.workspace import Workspace

__all__ = ["scratch"]

_LINKED = ("data", "_indices")  # folders of a table whose files never change
_MANIFESTS = "_versions"


@contextmanager
def scratch(workspace: Workspace) -> Iterator[Workspace]:
    """Give a workspace with the same tables and commits, in a folder of its own that goes when the block ends.

    Files that never change are linked, the small others copied: it costs no more for large tables, and nothing below
    `workspace.path` is touched, not even its lock. Heads, checkpoints and index are not there: read them from
    `workspace`.

    Raises:
        UsageError: If the workspace is in object storage: all its tables would have to be fetched.
        WorkspaceError: If another process removed files while they were read.
    """
    if not isinstance(workspace.storage, LocalStorage):
        raise UsageError(
            f"--dry-run is for workspaces in a folder, not for {workspace.storage.address}",
            "Make the change; `vlltr rollback ID` takes it back.",
        )
    folder = Path(tempfile.mkdtemp(prefix="vlltr-dry-run-"))
    try:
        try:
            if (workspace.path / "history").is_dir():
                shutil.copytree(workspace.path / "history", folder / "history")
            for table in sorted((workspace.path / "lance").glob("*")):
                if table.is_dir():
                    _table(table, folder / "lance" / table.name)
        except (FileNotFoundError, shutil.Error) as error:
            raise WorkspaceError(
                f"{workspace.path} changed while it was read: {error}", "Run the command again."
            ) from None
        yield type(workspace)(LocalStorage(folder), workspace.config)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _table(source: Path, target: Path) -> None:
    """One table. Its manifests first: what they name is there before them, so a writer beside us does no harm."""
    target.mkdir(parents=True)
    parts = sorted(source.iterdir(), key=lambda part: (part.name != _MANIFESTS, part.name))
    for part in parts:
        if part.name in _LINKED:
            shutil.copytree(part, target / part.name, copy_function=_link)
        elif part.is_dir():
            shutil.copytree(part, target / part.name)
        else:
            shutil.copy2(part, target / part.name)


def _link(source: str, target: str) -> str:
    Path(target).symlink_to(Path(source).resolve(strict=True))
    return target
