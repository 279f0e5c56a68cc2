"""`vlltr train cvlp`: stage 1 over a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlltr_index.schemas.config import CVLPConfig
from vlltr_index.stages.runs import in_processes, training_run
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
from vlltr_index.train.cvlp import StageOne, train_cvlp
from vlltr_index.train.data import TrainTexts

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = ["train_cvlp_stage"]


def train_cvlp_stage(
    workspace: Workspace,
    config: CVLPConfig,
    progress: Progress | None = None,
    resume: bool = True,
    processes: int = 1,
) -> TrainReport:
    """Stage 1: train the encoder on the workspace's training split; commit it as the workspace's encoder.

    Vectors, anchors, head and index of the encoder before are of another fingerprint: the commit names none. Others
    may read and write the workspace meanwhile.

    Args:
        workspace: What it trains on, and where it commits.
        config: The recipe's `cvlp` section.
        progress: Called after every step, in the first process.
        resume: Whether an interrupted run of the same settings goes on, with as many processes or others.
        processes: How many to start on this machine; 1 trains here, as one of those that were started already.

    Raises:
        MissingStepError: If there are no training images, or one of their classes has no sentence.
        WorkspaceError: If the training images or their texts changed meanwhile, or the workspace cannot be written.
        ConfigError: If the batch cannot be shared out among the processes.
    """
    if processes > 1:
        return in_processes(train_cvlp_stage, workspace, config, progress, resume, processes)
    recipe = workspace.recipe
    with training_run(
        workspace,
        "train cvlp",
        config.batch_size,
        resume,
        lambda _, data: run_key("cvlp", recipe, config, data),
    ) as run:
        data = run.data
        encoder = starting_encoder(recipe, data.texts, config.seed)
        teacher = None
        if config.distillation != "none" and recipe.encoder.pretrained:
            teacher = starting_encoder(recipe, data.texts, config.seed)
        images = training_images(workspace, data, encoder, config.augment, config.workers)
        stage = train_cvlp(
            encoder,
            images,
            TrainTexts(data.texts, encoder),
            config,
            run_dir=run.folder,
            log_dir=log_folder(workspace),
            progress=progress,
            teacher=teacher,
        )
        digest = run.commit(lambda tx: _keep(workspace, tx, stage, data, config))
    return stage_report("cvlp", digest, data, config.epochs, run.resumed, stage)


def _keep(
    workspace: Workspace, tx: Transaction, stage: StageOne, data: TrainingSet, config: CVLPConfig
) -> str:
    reading = workspace.recipe.images.model_dump(mode="json")
    facts = {"config": config.model_dump(mode="json"), "reading": reading, "kind": "cvlp"}
    digest = workspace.put_object("checkpoints", lambda path: save_stage(stage, data, facts, path))
    tx.set(
        checkpoint=digest,
        text_fp=None,
        image_fp=None,
        head=None,
        index=None,
        selection_id=None,
        fusion=None,
    )
    tx.note(checkpoint_images=len(data.labels))
    return digest
