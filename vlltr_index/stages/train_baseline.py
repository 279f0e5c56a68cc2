"""`vlltr train baseline fc`: the image-only baseline over a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlltr_index.schemas.config import BaselineConfig
from vlltr_index.stages.runs import training_run
from vlltr_index.stages.training import (
    TrainingSet,
    TrainReport,
    log_folder,
    run_key,
    save_stage,
    stage_report,
    starting_encoder,
    training_images,
)
from vlltr_index.train.baseline import train_image_only
from vlltr_index.train.loop import StageOne

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = ["train_baseline_stage"]


def train_baseline_stage(
    workspace: Workspace,
    config: BaselineConfig,
    progress: Progress | None = None,
    resume: bool = True,
) -> TrainReport:
    """The image-only baseline: the same visual tower from the same start, a linear layer, cross-entropy.

    Args:
        workspace: What it trains on, and where it commits.
        config: The recipe's `baseline` section.
        progress: Called after every step, in the first process.
        resume: Whether an interrupted run of the same settings goes on, with as many processes or others.

    Raises:
        MissingStepError: If there are no training images.
        WorkspaceError: If the training images changed meanwhile.
        ConfigError: If the batch cannot be shared out among the processes.
    """
    recipe = workspace.recipe
    with training_run(
        workspace,
        "train baseline fc",
        config.batch_size,
        resume,
        lambda _, data: run_key("baseline-fc", recipe, config, data),
        with_texts=False,
    ) as run:
        data = run.data
        encoder = starting_encoder(recipe, [["a"]], config.seed)
        images = training_images(workspace, data, encoder, config.augment, config.workers)
        stage = train_image_only(
            encoder, images, config, run_dir=run.folder, log_dir=log_folder(workspace), progress=progress
        )
        digest = run.commit(lambda tx: _keep(workspace, tx, stage, data, config))
    return stage_report("baseline fc", digest, data, config.epochs, run.resumed, stage)


def _keep(
    workspace: Workspace, tx: Transaction, stage: StageOne, data: TrainingSet, config: BaselineConfig
) -> str:
    reading = workspace.recipe.images.model_dump(mode="json")
    facts = {"config": config.model_dump(mode="json"), "reading": reading, "kind": "baseline-fc"}
    digest = workspace.put_object("checkpoints", lambda path: save_stage(stage, data, facts, path))
    tx.note(baseline_fc=digest)
    return digest
