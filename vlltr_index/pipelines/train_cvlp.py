"""Train stage 1 of a workspace (`vlltr train cvlp`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from vlltr_index.embedding.loading import image_vectors_of, usable_images
from vlltr_index.embedding.vectors import embed_images
from vlltr_index.errors import ConfigError
from vlltr_index.pipelines import training
from vlltr_index.schemas.config import CVLPConfig
from vlltr_index.store.holdout import HeldOut, choose_held_out_classes, without_names
from vlltr_index.train.cvlp import train_cvlp
from vlltr_index.train.data import TrainImages, TrainTexts
from vlltr_index.train.distributed import by_first, first_then_all, meet, own_part

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace
    from vlltr_index.train.loop import StageOne


def train_cvlp_stage(
    workspace: Workspace, config: CVLPConfig, progress: Progress | None = None, resume: bool = True
) -> training.TrainReport:
    """Train the encoder on the workspace's training split (stage 1), and commit it as the workspace's encoder.

    Some images and classes are held out, see `vlltr_index.store.holdout`; the checkpoint lists them (`read_held_out`).
    With `tune = "text"` the visual tower is frozen and training runs on the images' plain vectors; those that are
    not stored yet are embedded first, as `vlltr embed` would, and stored.
    Vectors, anchors, head and index of the previous encoder have another fingerprint: the commit names none. Others
    may read and write the workspace meanwhile.

    Args:
        workspace: The workspace that it trains on and commits to.
        config: The recipe's `cvlp` section.
        progress: Called after every step, in the first process.
        resume: Whether an interrupted run of the same settings goes on, with as many processes or others.

    Raises:
        UsageError: If the recipe's encoder has no text tower.
        MissingStepError: If there are no training images, or one of their classes has no sentence.
        WorkspaceError: If the training images or their texts changed meanwhile, or the workspace cannot be written.
        ConfigError: If the batch cannot be shared out among the processes, or a visual tower from scratch is to stay as
            it is.
    """
    recipe = workspace.recipe
    recipe.encoder.family.require_texts(
        "stage 1 trains an image tower and a text tower together",
        "Leave it out: vlltr embed, then vlltr select, then vlltr train lgr",
    )
    if config.tune == "text":
        meet()
        _embed_first(workspace, progress)
    snapshot = training.newest_snapshot(workspace)
    data, held = _parted(snapshot, config)
    key = training.run_key("cvlp", recipe, config, data)
    with training.training_run(workspace, "train cvlp", snapshot, key, _facts, resume) as run:
        encoder = training.starting_encoder(recipe, data.texts, config.seed)
        if config.tune == "text":
            images = _stored_images(snapshot, data, encoder)
        else:
            images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        texts = TrainTexts(data.texts, encoder)
        stage = train_cvlp(encoder, images, texts, config, run_dir=run.folder, progress=progress)
        digest = _keep(run, stage, data, held, config)
    report = training.stage_report(run, "cvlp", digest, data, stage=stage, epochs=config.epochs)
    return replace(report, held_images=len(held.images), held_classes=len(held.classes))


@by_first
def _keep(
    run: training.TrainingRun,
    stage: StageOne,
    data: training.StageOneData,
    held: HeldOut,
    config: CVLPConfig,
) -> str:
    """Commit the encoder, and return its digest; what depends on vectors of the previous one goes."""
    with run.transaction() as tx:
        digest = training.keep_stage(run.workspace, stage, data, kind="cvlp", config=config, held=held)
        tx.set(checkpoint=digest, text_fp=None, image_fp=None)
        tx.set(head=None, index=None, selection_id=None, fusion=None)
        tx.note(cvlp=config.model_dump(mode="json"), encoder=None)
    return digest


def _facts(snapshot: Snapshot) -> dict[str, object]:
    """Return what a run of stage 1 depends on: the training images and the sentences of their classes."""
    images = training.image_facts(snapshot)
    owners = usable_images(snapshot, "train", [])["class_id"].unique().to_pylist()
    return {**images, "the sentences of the training classes": training.class_texts(snapshot, owners)}


@by_first
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
        embed_images(tx, training.starting_encoder(workspace.recipe), "train", progress=progress)


def _stored_images(snapshot: Snapshot, data: training.StageOneData, encoder: Encoder) -> TrainImages:
    """Return the training images as their plain vectors, which `_embed_first` has stored."""
    features = image_vectors_of(snapshot, data.image_ids, image_fp=encoder.image_fp)
    return TrainImages.from_features(features, data.labels)


@first_then_all
def _parted(snapshot: Snapshot, config: CVLPConfig) -> tuple[training.StageOneData, HeldOut]:
    """Read the training set without what is held out of it, and what that is."""
    data = training.stage_one_data(snapshot)
    own_part(config.batch_size)
    names = snapshot.class_table().names
    ids = data.class_ids.tolist()
    counts = {names[i]: n for i, n in zip(ids, data.counts.tolist(), strict=True)}
    apart = set(choose_held_out_classes(counts)) if config.hold_out_classes else set()
    held = training.hold_out(data, config.hold_out, frozenset(i for i in ids if names[i] in apart))
    return training.without(data, held, _texts(data, names, held.classes)), held


def _texts(data: training.StageOneData, names: Mapping[int, str], apart: frozenset[int]) -> list[list[str]]:
    """Return the sentences of the classes that are not held out (`apart`), without those that name one that is.

    A class that would lose all of its sentences keeps them.
    """
    told = {i: texts for i, texts in zip(data.class_ids.tolist(), data.texts, strict=True) if i not in apart}
    clean = without_names(told, names, sorted(apart))
    return [clean[i] or texts for i, texts in told.items()]
