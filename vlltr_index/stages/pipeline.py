"""`vlltr train all`: both stages and what lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlltr_index.selection import select
from vlltr_index.stages.build_index import index_anchors
from vlltr_index.stages.embed import embed
from vlltr_index.stages.train_cvlp import train_cvlp_stage
from vlltr_index.stages.train_lgr import train_lgr_stage
from vlltr_index.train.distributed import by_first, meet

if TYPE_CHECKING:
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress
    from vlltr_index.workspace import Workspace

__all__ = ["train_all"]


def train_all(
    workspace: Workspace,
    recipe: Recipe,
    progress: Progress | None = None,
    resume: bool = True,
    stage_one: bool = True,
    processes: int = 1,
) -> dict[str, Any]:
    """Train the encoder, embed, select, train the head, build the index: one commit a step.

    Args:
        workspace: Where images and texts are.
        recipe: The settings of both stages.
        progress: Called with the step's name, what is done, and the total.
        resume: Whether an interrupted run of the same settings goes on.
        stage_one: Whether the encoder is trained; if not, the workspace's is taken as it is.
        processes: How many train the encoder; of several that were started already, the first does the rest.

    Returns:
        The report of each step, by its command's name.
    """
    meet()
    reports: dict[str, Any] = {}
    if stage_one:
        reports["train cvlp"] = train_cvlp_stage(workspace, recipe.cvlp, progress, resume, processes)
    reports["embed"] = by_first(lambda: embed(workspace, recipe.lgr.views, progress))
    reports["select"] = by_first(lambda: select(workspace, recipe.select, progress))
    reports["train lgr"] = train_lgr_stage(workspace, recipe.lgr, progress, resume, processes)
    if recipe.lgr.tune != "head":  # image vectors of the tuned tower
        reports["embed again"] = by_first(lambda: embed(workspace, recipe.lgr.views, progress))
    reports["index"] = by_first(lambda: index_anchors(workspace, progress=progress))
    return reports
