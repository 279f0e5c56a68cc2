"""Run both training stages and the steps between (`vlltr train all`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vlltr_index.errors import UsageError
from vlltr_index.pipelines.plan import EMBED, INDEX, SELECT, TRAIN_CVLP, TRAIN_LGR, Runner, StepMaker
from vlltr_index.tensors import computing_on
from vlltr_index.train.distributed import meet, world

if TYPE_CHECKING:
    from vlltr_index.pipelines.plan import OnStep, Step
    from vlltr_index.schemas.config import Recipe
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)


def _adopt(workspace: Workspace, recipe: Recipe) -> bool:
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
    if recipe.templates != mine.templates and workspace.snapshot().count("sentences"):
        _log.warning(
            "recipe %s has other prompts than the texts here were given; to use them, run again:"
            " vlltr ingest text PATH",
            recipe.name,
        )
    workspace.config = workspace.config.model_copy(update={"recipe": recipe})
    if world()[0] == 0:
        workspace.write_config()
    return True


def plan_training(maker: StepMaker, *, resume: bool = True, stage_one: bool = True) -> dict[str, Step[Any]]:
    """Return the steps that train a workspace by its recipe, each by its command's name.

    Of several processes all train the encoder, and the first does the rest.

    Args:
        maker: Of the workspace.
        resume: Whether an interrupted run of the same settings goes on.
        stage_one: Whether the encoder is trained; if not, the workspace's is taken as it is.
    """
    recipe = maker.workspace.recipe
    steps: dict[str, Step[Any]] = {}
    if stage_one:
        steps["train cvlp"] = maker.step(
            "The encoder, both towers together (CVLP)",
            TRAIN_CVLP,
            untyped={"config": recipe.cvlp},
            resume=resume,
        )
    embedded = maker.step("Vectors of pictures and sentences", EMBED)
    steps["embed"] = embedded
    steps["select"] = maker.step(
        "The sentences that tell the classes apart (AnSS)", SELECT, untyped={"config": recipe.select}
    )
    steps["train lgr"] = maker.step(
        "The head, and how much pictures and texts count",
        TRAIN_LGR,
        untyped={"config": recipe.lgr},
        resume=resume,
    )
    if recipe.lgr.tune != "head":  # the tuned tower has no image vectors yet
        steps["embed again"] = embedded
    steps["index"] = maker.step("The index over the sentences", INDEX)
    return steps


def train_all(
    workspace: Workspace,
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    resume: bool = True,
    stage_one: bool = True,
    device: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Make a recipe the workspace's own, train the encoder, embed, select, train the head, build the index.

    Each step makes one commit. Of several processes all train the encoder, and the first does the rest. An encoder
    without a text tower is taken as it is.

    Args:
        workspace: Where images and texts are.
        recipe: The settings of all steps.
        progress: Called with the step's name, what is done, and the total.
        resume: Whether an interrupted run of the same settings goes on.
        stage_one: Whether the encoder is trained; if not, the workspace's is taken as it is.
        device: As for `fit`.
        on_step: Called when a step begins and when it has ended.

    Returns:
        The report of each step, by its command's name.

    Raises:
        UsageError: If an encoder of another model has been trained in the workspace.
    """
    with computing_on(device, workspace.recipe.device):
        meet()
        if _adopt(workspace, recipe):
            _log.info(
                "Recipe %s is the workspace's own now: %s", recipe.name, workspace.storage.at("vlltr.toml")
            )
        maker = StepMaker(workspace, workspace.address, device, progress)
        if stage_one and not recipe.encoder.family.has_cosines:
            _log.info("Stage 1 is left out: the encoder has no text tower")
            stage_one = False
        steps = plan_training(maker, resume=resume, stage_one=stage_one)
        runner = Runner(on_step, len(steps))
        return {name: runner.run(step) for name, step in steps.items()}
