"""Write a model's folder and make it a model on the Hugging Face hub (`vlltr export --push`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.recognition.exported.reading import check_repository
from vlltr_index.recognition.exported.writing import export_model, push_model

if TYPE_CHECKING:
    from vlltr_index.recognition.exported.writing import ExportReport
    from vlltr_index.store.workspace import Workspace


def export_and_push(
    workspace: Workspace,
    folder: Path,
    repository: str,
    *,
    at: int | None = None,
    force: bool = False,
    with_index: bool = False,
    private: bool | None = None,
) -> tuple[ExportReport, str]:
    """Export the model, and upload the folder; return the report and the address of the hub's commit.

    Args:
        workspace: The workspace to export.
        folder: A new or empty folder.
        repository: `user/name`.
        at: As of this commit; default: the newest.
        force: Replace an earlier export; a folder with anything else is refused all the same.
        with_index: Include the FAISS index, if there is one.
        private: Whether a new repository is private; default: what the user or organisation has set.

    Raises:
        UsageError: If `repository` is no name; nothing is written.
        PretrainedError: If the folder may not be written, or the hub does not take it.
        MissingStepError: If anchors or head are not there yet.
    """
    check_repository(repository)
    report = export_model(workspace, folder, at, force=force, with_index=with_index)
    return report, push_model(Path(report.folder), repository, private=private)
