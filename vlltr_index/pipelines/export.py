"""`vlltr export`: a model or tables into a folder, and the model to the hub, in one request that is checked first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.errors import UsageError
from vlltr_index.recognition.exported.reading import check_repository
from vlltr_index.recognition.exported.writing import ExportReport, export_model, export_tables, push_model

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

__all__ = ["export"]


def export(
    workspace: Workspace,
    folder: Path,
    *,
    at: int | None = None,
    force: bool = False,
    with_index: bool = False,
    tables: bool = False,
    embed_images: bool = False,
    push: str | None = None,
    private: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> tuple[ExportReport, str | None]:
    """Write a model or tables; gives the report, and the address of the hub's commit where the model was pushed.

    Args:
        workspace: What to export.
        folder: Where to.
        at: Which commit; None: the newest.
        force: Replace an export that is there.
        with_index: A model's FAISS index, too.
        tables: Tables instead of a model.
        embed_images: The bytes of image files in the tables.
        push: The repository on the hub; None: none.
        private: Whether a new repository is private.
        message: Of the hub's commit.
        progress: Called while tables are written.

    Raises:
        UsageError: If the options do not go together; nothing is written then.
        PretrainedError: If the folder may not be written, or the hub does not take it; then the folder is there.
    """
    if embed_images and not tables:
        raise UsageError("--embed-images is for --tables: a model has no images", "Leave it out.")
    if tables and (with_index or push):
        raise UsageError(
            f"{'--index' if with_index else '--push'} is for a model, not for --tables",
            "To put tables on the hub: hf upload user/name DIR --repo-type dataset",
        )
    if push is None and (private or message is not None):
        raise UsageError("--private and --message are for --push", "Add: --push user/name")
    if tables:
        made = export_tables(workspace, folder, at, force=force, embed_images=embed_images, progress=progress)
        return made, None
    if push is not None:
        check_repository(push)
    report = export_model(workspace, folder, at, force=force, with_index=with_index)
    if push is None:
        return report, None
    return report, push_model(Path(report.folder), push, private=private or None, commit_message=message)
