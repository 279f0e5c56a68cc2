"""`vlltr export`: a model or tables into a folder, and the model to the hub, in one request that is checked first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.errors import UsageError
from vlltr_index.recognition.exported.hub import check_repository, push
from vlltr_index.recognition.exported.writing import ExportReport, export_model, export_tables

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

__all__ = ["Request", "export"]


@dataclass(frozen=True)
class Request:
    """What to export; fields as the arguments of `export_model`, `export_tables` and `push`.

    Attributes:
        folder: Where to.
        at: Which commit; None: the newest.
        force: Replace an export that is there.
        with_index: A model's FAISS index, too.
        tables: Tables instead of a model.
        embed_images: The bytes of image files in the tables.
        push: The repository on the hub; None: none.
        private: Whether a new repository is private.
        message: Of the hub's commit.
    """

    folder: Path
    at: int | None = None
    force: bool = False
    with_index: bool = False
    tables: bool = False
    embed_images: bool = False
    push: str | None = None
    private: bool = False
    message: str | None = None

    def check(self) -> None:
        """Refuse what does not go together, before anything is written.

        Raises:
            UsageError: Naming the options.
        """
        if self.embed_images and not self.tables:
            raise UsageError("--embed-images is for --tables: a model has no images", "Leave it out.")
        if self.tables and (self.with_index or self.push):
            other = "--index" if self.with_index else "--push"
            raise UsageError(
                f"{other} is for a model, not for --tables",
                "To put tables on the hub: hf upload user/name DIR --repo-type dataset",
            )
        if self.push is None and (self.private or self.message is not None):
            raise UsageError("--private and --message are for --push", "Add: --push user/name")
        if self.push is not None:
            check_repository(self.push)


def export(
    workspace: Workspace, request: Request, progress: Progress | None = None
) -> tuple[ExportReport, str | None]:
    """Do what a request says; gives the report, and the address of the hub's commit where it was pushed.

    Raises:
        UsageError: If the request does not go together.
        PretrainedError: If the folder may not be written, or the hub does not take it; then the folder is there.
    """
    request.check()
    if request.tables:
        report = export_tables(
            workspace,
            request.folder,
            request.at,
            force=request.force,
            embed_images=request.embed_images,
            progress=progress,
        )
        return report, None
    report = export_model(
        workspace, request.folder, request.at, force=request.force, with_index=request.with_index
    )
    if request.push is None:
        return report, None
    private = True if request.private else None
    url = push(Path(report.folder), request.push, private=private, commit_message=request.message)
    return report, url
