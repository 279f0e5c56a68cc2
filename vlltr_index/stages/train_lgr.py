"""`vlltr train lgr`: stage 2 over a workspace, on stored vectors or with the visual tower."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.embedding import embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.errors import MissingStepError
from vlltr_index.heads import SavedHead, mean_feature, save_head
from vlltr_index.loading import (
    LoadedBank,
    class_positions,
    image_set,
    load_bank,
    open_encoder,
    run_folder,
    usable_images,
)
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import image_vectors_name
from vlltr_index.stages.training import (
    TrainReport,
    load_visual,
    log_folder,
    one_process,
    prepare_run,
    save_stage,
    stage_report,
    starting_encoder,
    training_set,
)
from vlltr_index.train.cvlp import StageOne
from vlltr_index.train.data import TrainImages
from vlltr_index.train.recognition import train_lgr, tune_visual

if TYPE_CHECKING:
    from vlltr_index.bank import AnchorBank
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = ["train_lgr_stage"]


def train_lgr_stage(
    workspace: Workspace, config: LGRConfig, progress: Progress | None = None, resume: bool = True
) -> TrainReport:
    """Stage 2: both branches of the head; commit the head.

    With `tune = "head"` the encoder is frozen and training runs on stored vectors. With `tune = "visual"` the visual
    tower learns too: the commit names the tuned encoder and its fingerprint, `vlltr embed` has to follow, and the
    anchors, their vectors and the index stay. Run again, it starts from the untuned tower, as the first time.

    Raises:
        MissingStepError: If images, vectors or anchors of the training classes are missing.
    """
    one_process()
    with workspace.transaction("train lgr") as tx:
        loaded = load_bank(tx)
        train = _tune_visual if config.tune == "visual" else _train_head
        report = train(workspace, tx, loaded, config, progress, resume)
        tx.set(head=report.digest, fusion=workspace.recipe.fusion)
    if config.tune == "visual":  # only now that the commit is there
        for folder in (workspace.path / "runs").glob("lgr-*"):
            shutil.rmtree(folder, ignore_errors=True)
    return report


def _train_head(
    workspace: Workspace,
    tx: Transaction,
    loaded: LoadedBank,
    config: LGRConfig,
    progress: Progress | None,
    resume: bool,
) -> TrainReport:
    first = image_set(tx, "train")
    augment = workspace.recipe.lgr.augment
    rest = [image_set(tx, "train", view, augment).features for view in range(1, config.views)]
    class_ids, labels = torch.unique(first.class_ids, return_inverse=True)
    commit, log = tx.commit, list[dict[str, float]]()
    assert commit is not None
    assert commit.text_fp is not None
    assert commit.image_fp is not None
    head = train_lgr(
        torch.stack([first.features, *rest]),
        labels,
        _trained_bank(tx, loaded, class_ids),
        config,
        visual_init=_visual_init(workspace, commit.checkpoint, class_ids),
        logit_scale=float(commit.info["logit_scale"]),
        progress=progress,
        log=log,
    )
    saved = SavedHead(head, class_ids, mean_feature(first.features), commit.text_fp, commit.image_fp)
    digest = workspace.put_object("heads", lambda path: save_head(saved, path))
    return TrainReport("lgr", digest, len(class_ids), len(labels), config.epochs, False, log[-1])


def _tune_visual(
    workspace: Workspace,
    tx: Transaction,
    loaded: LoadedBank,
    config: LGRConfig,
    progress: Progress | None,
    resume: bool,
) -> TrainReport:
    data = training_set(tx, with_texts=False)
    encoder, start = _untuned_encoder(workspace, tx)
    facts = [start, loaded.selection_id, config.model_dump(), data.image_ids, data.labels.tolist()]
    folder = run_folder(workspace, f"lgr-{short(digest_json(facts))}")
    resumed = prepare_run(folder, resume)
    images = TrainImages(
        data.sources, data.labels, encoder, config.augment, workers=workspace.recipe.cvlp.workers
    )
    head, log = tune_visual(
        encoder,
        images,
        _trained_bank(tx, loaded, data.class_ids),
        config,
        visual_init=_visual_init(workspace, start, data.class_ids),
        precision=encoder.precision,
        run_dir=folder,
        log_dir=log_folder(workspace),
        progress=progress,
    )
    stage = StageOne(encoder, None, None, log)
    if isinstance(head.visual_head, nn.Linear):
        stage = StageOne(encoder, head.visual_head.weight, head.visual_head.bias, log)
    record = {"config": config.model_dump(mode="json"), "kind": "lgr"}
    checkpoint = workspace.put_object("checkpoints", lambda path: save_stage(stage, data, record, path))
    embed_images(tx, encoder, "train", progress=progress)
    keys = [f"{i}:0" for i in usable_images(tx, "train", [])["image_id"].to_pylist()]
    _, features = tx.store.vectors(image_vectors_name(encoder.image_fp), "vector_key", keys)
    saved = SavedHead(head, data.class_ids, mean_feature(features), encoder.text_fp, encoder.image_fp)
    digest = workspace.put_object("heads", lambda path: save_head(saved, path))
    tx.set(checkpoint=checkpoint, image_fp=encoder.image_fp)
    tx.note(tuned={"checkpoint": checkpoint, "from": start})
    return stage_report("lgr", digest, data, config.epochs, resumed, stage)


def _untuned_encoder(workspace: Workspace, tx: Transaction) -> tuple[Encoder, str | None]:
    """The encoder that stage 2 starts from, and its checkpoint: the one before an earlier tuning."""
    commit = tx.commit
    tuned = commit.info.get("tuned") if commit is not None else None
    if commit is None or tuned is None or tuned["checkpoint"] != commit.checkpoint:
        return open_encoder(workspace, tx), commit.checkpoint if commit is not None else None
    if tuned["from"] is None:
        return starting_encoder(workspace.recipe, None, 0), None
    return Encoder.open(workspace.object_path("checkpoints", tuned["from"])), tuned["from"]


def _trained_bank(tx: Snapshot, loaded: LoadedBank, class_ids: Tensor) -> AnchorBank:
    """The anchors of the training classes int64 [C], in their order.

    Raises:
        MissingStepError: If one of them has no anchor: it came after the selection.
    """
    positions = class_positions(loaded.bank.class_ids, class_ids)
    bare = class_ids[positions < 0].tolist()
    if bare:
        names = tx.class_table().names
        shown = ", ".join(repr(names[i]) for i in bare[:5]) + (" ..." if len(bare) > 5 else "")
        raise MissingStepError(
            f"{len(bare)} classes with training images have no anchor sentence: {shown}",
            "Select again: vlltr embed, then vlltr select",
        )
    return loaded.bank.select(positions)


def _visual_init(
    workspace: Workspace, checkpoint: str | None, class_ids: Tensor
) -> tuple[Tensor, Tensor] | None:
    return load_visual(workspace.object_path("checkpoints", checkpoint), class_ids) if checkpoint else None
