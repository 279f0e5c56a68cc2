"""`vlltr train baseline fc`: the image-only baseline over a workspace."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from vlltr_index.loading import run_folder
from vlltr_index.schemas.config import BaselineConfig
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
from vlltr_index.train.baseline import train_image_only
from vlltr_index.train.data import TrainImages

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.workspace import Workspace

__all__ = ["train_baseline_stage"]


def train_baseline_stage(
    workspace: Workspace, config: BaselineConfig, progress: Progress | None = None, resume: bool = True
) -> TrainReport:
    """The image-only baseline: the same visual tower from the same start, a linear layer, cross-entropy."""
    one_process()
    with workspace.transaction("train baseline fc") as tx:
        data = training_set(tx, with_texts=False)
        folder = run_folder(workspace, run_key("baseline-fc", workspace.recipe, config, data))
        resumed = prepare_run(folder, resume)
        encoder = starting_encoder(workspace.recipe, [["a"]], config.seed)
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        stage = train_image_only(
            encoder, images, config, run_dir=folder, log_dir=log_folder(workspace), progress=progress
        )
        facts = {"config": config.model_dump(mode="json"), "kind": "baseline-fc"}
        digest = workspace.put_object("checkpoints", lambda path: save_stage(stage, data, facts, path))
        tx.note(baseline_fc=digest)
    shutil.rmtree(folder, ignore_errors=True)
    return stage_report("baseline fc", digest, data, config.epochs, resumed, stage)
