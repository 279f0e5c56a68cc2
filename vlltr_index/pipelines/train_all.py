"""Run both training stages and the steps between (`vlltr train all`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vlltr_index.anchors.selection import select
from vlltr_index.errors import UsageError
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.train.distributed import by_first, meet, world

if TYPE_CHECKING:
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)


def adopt_recipe(workspace: Workspace, recipe: Recipe) -> bool:
    """Make `recipe` the workspace's own, in `vlltr.toml`, before both stages are trained by it.

    The steps read the encoder, the prompts, the augmentation of stored views and the fusion from there, so a recipe is
    adopted as a whole or not at all. Prompts are made when texts and images are ingested: if the recipe's prompts
    differ from the workspace's, a warning says that the texts have to be ingested again.

    Returns:
        Whether anything changed.

    Raises:
        UsageError: If an encoder of another model has been trained in the workspace.
    """
    mine = workspace.recipe
    if recipe == mine:
        return False
    if workspace.history.last().checkpoint and recipe.encoder.model != mine.encoder.model:
        raise UsageError(
            f"the workspace has a trained encoder, {mine.encoder.model}; recipe {recipe.name} is for"
            f" {recipe.encoder.model}",
            f"Make a workspace for it: vlltr init DIR --recipe {recipe.name},"
            f" or keep the encoder: --set encoder.model={mine.encoder.model}",
        )
    if recipe.prompts != mine.prompts and workspace.snapshot().count("sentences"):
        _log.warning(
            "recipe %s has other prompts than the texts here were given; to use them, run again:"
            " vlltr ingest text PATH",
            recipe.name,
        )
    workspace.config = workspace.config.model_copy(update={"recipe": recipe})
    if world()[0] == 0:
        workspace.write_config()
    return True


def train_all(
    workspace: Workspace,
    recipe: Recipe,
    progress: Progress | None = None,
    resume: bool = True,
    stage_one: bool = True,
) -> dict[str, Any]:
    """Train the encoder, embed, select, train the head, build the index: one commit a step.

    Of several processes all train the encoder, and the first does the rest.

    Args:
        workspace: Where images and texts are.
        recipe: The settings of both stages.
        progress: Called with the step's name, what is done, and the total.
        resume: Whether an interrupted run of the same settings goes on.
        stage_one: Whether the encoder is trained; if not, the workspace's is taken as it is.

    Returns:
        The report of each step, by its command's name.
    """
    meet()
    reports: dict[str, Any] = {}
    if stage_one:
        reports["train cvlp"] = train_cvlp_stage(workspace, recipe.cvlp, progress, resume)
    reports["embed"] = by_first(lambda: embed(workspace, recipe.lgr.views, progress))
    reports["select"] = by_first(lambda: select(workspace, recipe.select, progress))
    reports["train lgr"] = train_lgr_stage(workspace, recipe.lgr, progress, resume)
    if recipe.lgr.tune != "head":  # the tuned tower has no image vectors yet
        reports["embed again"] = by_first(lambda: embed(workspace, recipe.lgr.views, progress))
    reports["index"] = by_first(lambda: index_anchors(workspace, progress=progress))
    return reports
