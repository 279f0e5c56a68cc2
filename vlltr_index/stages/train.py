"""`vlltr train`: both stages and the image-only baseline, over a workspace."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlltr_index.embedding import embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.errors import MissingStepError, UsageError
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
from vlltr_index.schemas.config import BaselineConfig, CVLPConfig, LGRConfig, Recipe
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import image_vectors_name
from vlltr_index.train.baseline import train_image_only
from vlltr_index.train.cvlp import StageOne, train_cvlp
from vlltr_index.train.data import TrainImages, TrainTexts
from vlltr_index.train.recognition import train_lgr, tune_visual

if TYPE_CHECKING:
    from vlltr_index.bank import AnchorBank
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = ["TrainReport", "load_visual", "train_baseline_stage", "train_cvlp_stage", "train_lgr_stage"]


@dataclass(frozen=True)
class TrainReport:
    """What a training run did."""

    what: str
    digest: str
    classes: int
    images: int
    epochs: int
    resumed: bool
    last: dict[str, Any]


@dataclass(frozen=True)
class TrainingSet:
    """The images and texts of the classes that have training images; labels are positions in `class_ids`."""

    class_ids: Tensor  # int64 [C], ascending
    counts: Tensor  # int64 [C]
    image_ids: list[str]
    labels: Tensor  # int64 [N]
    sources: list[bytes | str]
    texts: list[list[str]]  # a class's sentences, in sentence_id order


def training_set(snapshot: Snapshot, with_texts: bool = True) -> TrainingSet:
    """Collect split `train`.

    Raises:
        MissingStepError: If there are no training images, or a class with images has no sentence.
    """
    rows = usable_images(snapshot, "train", ["uri", "data"])
    if not rows.num_rows:
        raise MissingStepError("there are no training images", "Run: vlltr ingest images PATH --split train")
    owner = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
    class_ids, labels, counts = torch.unique(owner, return_inverse=True, return_counts=True)
    sources = [
        data if data is not None else uri
        for uri, data in zip(rows["uri"].to_pylist(), rows["data"].to_pylist(), strict=True)
    ]
    texts = _texts(snapshot, class_ids.tolist()) if with_texts else []
    return TrainingSet(class_ids, counts, rows["image_id"].to_pylist(), labels, sources, texts)


def _texts(snapshot: Snapshot, class_ids: list[int]) -> list[list[str]]:
    rows = snapshot.table("sentences", columns=["sentence_id", "class_id", "text"]).sort_by("sentence_id")
    by_class: dict[int, list[str]] = {i: [] for i in class_ids}
    for class_id, text in zip(rows["class_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        if class_id in by_class:
            by_class[class_id].append(text)
    bare = [i for i, texts in by_class.items() if not texts]
    if bare:
        names = snapshot.class_table().names
        shown = ", ".join(repr(names[i]) for i in bare[:5]) + (" ..." if len(bare) > 5 else "")
        raise MissingStepError(
            f"{len(bare)} classes with training images have no sentence: {shown}",
            "Bring text for them: vlltr ingest text PATH",
        )
    return list(by_class.values())


def _starting_encoder(recipe: Recipe, texts: list[list[str]] | None, seed: int) -> Encoder:
    config = recipe.encoder
    if config.pretrained:
        return Encoder.load(
            config.model, config.pretrained, image_size=config.image_size, precision=config.precision
        )
    flat = [t for group in texts for t in group] if texts is not None else None
    return Encoder.scratch(
        config.model, flat, seed=seed, image_size=config.image_size, precision=config.precision
    )


def _run_key(what: str, recipe: Recipe, section: Any, data: TrainingSet) -> str:
    facts = [
        what,
        recipe.encoder.model_dump(),
        section.model_dump(),
        data.image_ids,
        data.labels.tolist(),
        data.texts,
    ]
    return f"{what}-{short(digest_json(facts))}"


def _one_process() -> None:
    """Refuse to wait for the workspace's lock in every process of a group.

    Raises:
        UsageError: If this process was started as one of several.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise UsageError(
            f"this was started as one of {processes} processes (WORLD_SIZE), and a workspace has one writer",
            "Run it as one process; train over several with vlltr_index.train.cvlp.train_cvlp from Python.",
        )


def train_cvlp_stage(
    workspace: Workspace, config: CVLPConfig, progress: Progress | None = None, resume: bool = True
) -> TrainReport:
    """Stage 1: train the encoder on the workspace's training split; commit it as the workspace's encoder.

    Vectors, anchors, head and index of the encoder before are of another fingerprint: the commit names none.

    Raises:
        MissingStepError: If there are no training images, or one of their classes has no sentence.
        UsageError: If it was started as one of several processes.
    """
    _one_process()
    with workspace.transaction("train cvlp") as tx:
        data = training_set(tx)
        folder = run_folder(workspace, _run_key("cvlp", workspace.recipe, config, data))
        resumed = _prepare(folder, resume)
        encoder = _starting_encoder(workspace.recipe, data.texts, config.seed)
        teacher = None
        if config.distillation != "none" and workspace.recipe.encoder.pretrained:
            teacher = _starting_encoder(workspace.recipe, data.texts, config.seed)
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        texts = TrainTexts(data.texts, encoder)
        stage = train_cvlp(
            encoder,
            images,
            texts,
            config,
            run_dir=folder,
            log_dir=_logs(workspace),
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
    return _report("cvlp", digest, data, config.epochs, resumed, stage)


def train_baseline_stage(
    workspace: Workspace, config: BaselineConfig, progress: Progress | None = None, resume: bool = True
) -> TrainReport:
    """The image-only baseline: the same visual tower from the same start, a linear layer, cross-entropy."""
    _one_process()
    with workspace.transaction("train baseline fc") as tx:
        data = training_set(tx, with_texts=False)
        folder = run_folder(workspace, _run_key("baseline-fc", workspace.recipe, config, data))
        resumed = _prepare(folder, resume)
        encoder = _starting_encoder(workspace.recipe, [["a"]], config.seed)
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        stage = train_image_only(
            encoder, images, config, run_dir=folder, log_dir=_logs(workspace), progress=progress
        )
        facts = {"config": config.model_dump(mode="json"), "kind": "baseline-fc"}
        digest = workspace.put_object("checkpoints", lambda path: save_stage(stage, data, facts, path))
        tx.note(baseline_fc=digest)
    shutil.rmtree(folder, ignore_errors=True)
    return _report("baseline fc", digest, data, config.epochs, resumed, stage)


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
    _one_process()
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
    resumed = _prepare(folder, resume)
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
        log_dir=_logs(workspace),
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
    return _report("lgr", digest, data, config.epochs, resumed, stage)


def _untuned_encoder(workspace: Workspace, tx: Transaction) -> tuple[Encoder, str | None]:
    """The encoder that stage 2 starts from, and its checkpoint: the one before an earlier tuning."""
    commit = tx.commit
    tuned = commit.info.get("tuned") if commit is not None else None
    if commit is None or tuned is None or tuned["checkpoint"] != commit.checkpoint:
        return open_encoder(workspace, tx), commit.checkpoint if commit is not None else None
    if tuned["from"] is None:
        return _starting_encoder(workspace.recipe, None, 0), None
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


def save_stage(stage: StageOne, data: TrainingSet, facts: dict[str, Any], folder: Path) -> None:
    """Write a stage's encoder, its visual classifier, and what it was trained on."""
    stage.encoder.save(folder)
    if stage.visual_weight is not None and stage.visual_bias is not None:
        tensors = {
            "weight": stage.visual_weight.detach().float().contiguous(),
            "bias": stage.visual_bias.detach().float().contiguous(),
            "class_ids": data.class_ids.contiguous(),
            "counts": data.counts.contiguous(),
        }
        save_file(tensors, folder / "visual.safetensors")
    record = {**facts, "log": stage.log, "classes": len(data.class_ids), "images": len(data.labels)}
    (folder / "train.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_visual(folder: Path, class_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """The visual classifier saved with a checkpoint, rows in the order of `class_ids`: weight [C, D], bias [C].

    A class that the checkpoint does not know gets the mean row. None where there is no classifier, or it knows none.
    """
    path = folder / "visual.safetensors"
    if not path.is_file():
        return None
    tensors = load_file(path)
    at = class_positions(tensors["class_ids"], class_ids)
    if bool((at < 0).all()):
        return None
    weight, bias = tensors["weight"][at], tensors["bias"][at]
    weight[at < 0], bias[at < 0] = tensors["weight"].mean(0), tensors["bias"].mean()
    return weight, bias


def _prepare(folder: Path, resume: bool) -> bool:
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return any(folder.iterdir())


def _logs(workspace: Workspace) -> Path:
    return workspace.path / "logs"


def _report(
    what: str, digest: str, data: TrainingSet, epochs: int, resumed: bool, stage: StageOne
) -> TrainReport:
    last = stage.log[-1] if stage.log else {}
    return TrainReport(what, digest, len(data.class_ids), len(data.labels), epochs, resumed, last)
