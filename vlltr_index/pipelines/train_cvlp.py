"""`vlltr train cvlp`: stage 1 over a workspace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.embedding.vectors import embed_images
from vlltr_index.errors import ConfigError
from vlltr_index.pipelines.runs import TrainingRun, training_run
from vlltr_index.pipelines.training import (
    TrainingSet,
    TrainReport,
    part_of,
    run_key,
    save_stage,
    stage_report,
    starting_encoder,
)
from vlltr_index.schemas.config import CVLPConfig
from vlltr_index.schemas.tables import image_vectors_name
from vlltr_index.store.holdout import (
    HeldOut,
    choose_held_out,
    choose_held_out_classes,
    without_names,
    write_held_out,
)
from vlltr_index.train.cvlp import train_cvlp
from vlltr_index.train.data import TrainImages, TrainTexts
from vlltr_index.train.distributed import by_first, meet
from vlltr_index.train.loop import StageOne

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = ["train_cvlp_stage"]


def train_cvlp_stage(
    workspace: Workspace,
    config: CVLPConfig,
    progress: Progress | None = None,
    resume: bool = True,
) -> TrainReport:
    """Stage 1: train the encoder on the workspace's training split; commit it as the workspace's encoder.

    Some images and classes are kept out, see `vlltr_index.store.holdout`; the checkpoint says which (`read_held_out`).
    With `tune = "text"` the visual tower stays as it is and training runs on the images' plain vectors; those that are
    not stored yet are embedded first, as `vlltr embed` would, and stored.
    Vectors, anchors, head and index of the encoder before are of another fingerprint: the commit names none. Others
    may read and write the workspace meanwhile.

    Args:
        workspace: What it trains on, and where it commits.
        config: The recipe's `cvlp` section.
        progress: Called after every step, in the first process.
        resume: Whether an interrupted run of the same settings goes on, with as many processes or others.

    Raises:
        MissingStepError: If there are no training images, or one of their classes has no sentence.
        WorkspaceError: If the training images or their texts changed meanwhile, or the workspace cannot be written.
        ConfigError: If the batch cannot be shared out among the processes, or a visual tower from scratch is to stay as
            it is.
    """
    recipe = workspace.recipe
    if config.tune == "text":
        meet()
        by_first(lambda: _embed_first(workspace, progress))
    with training_run(
        workspace,
        "train cvlp",
        config.batch_size,
        resume,
        lambda snapshot, data: run_key("cvlp", recipe, config, _parted(snapshot, data, config)[1]),
    ) as run:
        held, data = _parted(run.snapshot, run.data, config)
        encoder = starting_encoder(recipe, data.texts, config.seed)
        teacher = None
        if config.distillation != "none" and recipe.encoder.pretrained:
            teacher = starting_encoder(recipe, data.texts, config.seed)
        if config.tune == "text":
            images = _stored_images(run.snapshot, data, encoder)
        else:
            images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        stage = train_cvlp(
            encoder,
            images,
            TrainTexts(data.texts, encoder),
            config,
            run_dir=run.folder,
            progress=progress,
            teacher=teacher,
        )
        digest = run.commit(lambda tx: _keep(run, tx, stage, held, data, config))
    out = {"held_images": len(held.images), "held_classes": len(held.classes)}
    return stage_report("cvlp", digest, data, config.epochs, run.resumed, stage, **out)


def _embed_first(workspace: Workspace, progress: Progress | None) -> None:
    """Store the plain vectors of the training images by the tower that stage 1 starts from, where they are missing.

    Raises:
        ConfigError: If that tower has no weights yet.
    """
    encoder = workspace.recipe.encoder
    if not encoder.pretrained:
        raise ConfigError(
            f"cvlp.tune=text leaves the visual tower as it is, and that of {encoder.model} starts from scratch",
            "Name its weights in recipe.encoder.pretrained of vlltr.toml, or use --set cvlp.tune=full",
        )
    with workspace.transaction("train cvlp: embed") as tx:
        embed_images(tx, starting_encoder(workspace.recipe), "train", progress=progress)


def _stored_images(snapshot: Snapshot, data: TrainingSet, encoder: Encoder) -> TrainImages:
    """The plain vectors of the training images, which `_embed_first` has stored."""
    keys = [f"{i}:0" for i in data.image_ids]
    _, features = snapshot.store.vectors(image_vectors_name(encoder.image_fp), "vector_key", keys)
    return TrainImages.from_features(features, data.labels)


def _parted(snapshot: Snapshot, data: TrainingSet, config: CVLPConfig) -> tuple[HeldOut, TrainingSet]:
    """What is kept out of the training split, and the rest."""
    names, owners = snapshot.class_table().names, data.class_ids[data.labels].tolist()
    counts = {names[i]: n for i, n in zip(data.class_ids.tolist(), data.counts.tolist(), strict=True)}
    apart = set(choose_held_out_classes(counts)) if config.hold_out_classes else set()
    classes = frozenset(i for i in data.class_ids.tolist() if names[i] in apart)
    seen = [n for n, owner in enumerate(owners) if owner not in classes]
    chosen = choose_held_out(
        [data.image_ids[n] for n in seen],
        [owners[n] for n in seen],
        [data.groups[n] for n in seen],
        [data.digests[n] for n in seen],
        config.hold_out,
    )
    held = HeldOut.of((data.image_ids[seen[n]] for n in chosen), classes)
    kept = [n for n in seen if not held.has(data.image_ids[n])]
    rest = part_of(data, kept, _texts(data, names, classes))
    return held, rest


def _texts(data: TrainingSet, names: Mapping[int, str], apart: frozenset[int]) -> list[list[str]]:
    """The sentences of the classes that are not kept `apart`, without those that name one that is.

    A class all of whose sentences do keeps them.
    """
    told = {i: texts for i, texts in zip(data.class_ids.tolist(), data.texts, strict=True) if i not in apart}
    pairs = [(i, text) for i, texts in told.items() for text in texts]
    rows = pa.table({"class_id": [i for i, _ in pairs], "text": [text for _, text in pairs]})
    rows = without_names(rows, names, sorted(apart))
    clean: dict[int, list[str]] = {}
    for i, text in zip(rows["class_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        clean.setdefault(i, []).append(text)
    return [clean.get(i, texts) for i, texts in told.items()]


def _keep(
    run: TrainingRun,
    tx: Transaction,
    stage: StageOne,
    held: HeldOut,
    data: TrainingSet,
    config: CVLPConfig,
) -> str:
    facts = {"config": config.model_dump(mode="json"), "kind": "cvlp"}

    def build(path: Path) -> None:
        save_stage(stage, data, facts, path)
        write_held_out(held, path)

    digest = run.workspace.put_object("checkpoints", build)
    tx.set(
        checkpoint=digest,
        text_fp=None,
        image_fp=None,
        head=None,
        index=None,
        selection_id=None,
        fusion=None,
    )
    return digest
