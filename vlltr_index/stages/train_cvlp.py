"""`vlltr train cvlp`: stage 1 over a workspace."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from vlltr_index.loading import run_folder
from vlltr_index.schemas.config import CVLPConfig
from vlltr_index.stages.training import (
    TrainReport,
    log_folder,
    one_process,
    prepare_run,
    run_key,
    save_stage,
    stage_report,
    starting_encoder,
    training_set,
)
from vlltr_index.train.cvlp import train_cvlp
from vlltr_index.train.data import TrainImages, TrainTexts

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.workspace import Workspace

__all__ = ["train_cvlp_stage"]


def train_cvlp_stage(
    workspace: Workspace, config: CVLPConfig, progress: Progress | None = None, resume: bool = True
) -> TrainReport:
    """Stage 1: train the encoder on the workspace's training split; commit it as the workspace's encoder.

    Vectors, anchors, head and index of the encoder before are of another fingerprint: the commit names none.

    Raises:
        MissingStepError: If there are no training images, or one of their classes has no sentence.
        UsageError: If it was started as one of several processes.
    """
    one_process()
    with workspace.transaction("train cvlp") as tx:
        data = training_set(tx)
        folder = run_folder(workspace, run_key("cvlp", workspace.recipe, config, data))
        resumed = prepare_run(folder, resume)
        encoder = starting_encoder(workspace.recipe, data.texts, config.seed)
        teacher = None
        if config.distillation != "none" and workspace.recipe.encoder.pretrained:
            teacher = starting_encoder(workspace.recipe, data.texts, config.seed)
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        texts = TrainTexts(data.texts, encoder)
        stage = train_cvlp(
            encoder,
            images,
            texts,
            config,
            run_dir=folder,
            log_dir=log_folder(workspace),
            progress=progress,
            teacher=teacher,
        )
        facts = {"config": config.model_dump(mode="json"), "kind": "cvlp"}
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
    shutil.rmtree(folder, ignore_errors=True)
    return stage_report("cvlp", digest, data, config.epochs, resumed, stage)
