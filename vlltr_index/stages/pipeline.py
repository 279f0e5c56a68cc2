"""`vlltr train all`: both stages and what lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlltr_index.selection import select
from vlltr_index.stages.build_index import index_anchors
from vlltr_index.stages.embed import embed
from vlltr_index.stages.train import train_cvlp_stage, train_lgr_stage

if TYPE_CHECKING:
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress
    from vlltr_index.workspace import Workspace

__all__ = ["train_all"]


def train_all(
    workspace: Workspace, recipe: Recipe, progress: Progress | None = None, resume: bool = True
) -> dict[str, Any]:
    """Train the encoder, embed, select, train the head, build the index: one commit a step.

    Returns:
        The report of each step, by its command's name.
    """
    return {
        "train cvlp": train_cvlp_stage(workspace, recipe.cvlp, progress, resume=resume),
        "embed": embed(workspace, recipe.lgr.views, progress),
        "select": select(workspace, recipe.select, progress),
        "train lgr": train_lgr_stage(workspace, recipe.lgr, progress),
        "index": index_anchors(workspace, progress=progress),
    }
