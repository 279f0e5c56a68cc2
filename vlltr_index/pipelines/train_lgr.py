"""`vlltr train lgr`: stage 2 over a workspace, on stored vectors or with the visual tower."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from vlltr_index.embedding.loading import (
    ImageSet,
    LoadedBank,
    class_positions,
    image_set,
    load_bank,
    open_encoder,
    run_folder,
    sentence_means,
    stats_rows,
    usable_images,
)
from vlltr_index.embedding.vectors import embed_images
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.checkpoint import SavedHead, save_head
from vlltr_index.pipelines.runs import differences, held_folder, refuse, training_run
from vlltr_index.pipelines.training import (
    TrainingSet,
    TrainReport,
    check_told,
    load_visual,
    part_of,
    save_stage,
    stage_report,
    starting_encoder,
)
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.store.holdout import HeldOut, choose_held_out, read_held_out, write_held_out
from vlltr_index.tensors import choose_device, device_name, memory_mended_by
from vlltr_index.train.data import TrainImages
from vlltr_index.train.deciding import Decision, StageTwoData, decide, weigh, without_images
from vlltr_index.train.distributed import by_first, first_then_all, meet
from vlltr_index.train.loop import StageOne
from vlltr_index.train.recognition import train_lgr, tune_visual

if TYPE_CHECKING:
    from pathlib import Path

    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.lgr import LGRHead
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace
    from vlltr_index.train.checkpoint import Log

__all__ = ["train_lgr_stage"]

_log = logging.getLogger(__name__)

_LESS_MEMORY = "Try a smaller lgr.batch_size or fewer lgr.views, with --set, or --device cpu."


def train_lgr_stage(
    workspace: Workspace,
    config: LGRConfig,
    progress: Progress | None = None,
    resume: bool = True,
    command: str = "train lgr",
) -> TrainReport:
    """Stage 2: both branches of the head; commit the head.

    With `tune = "head"` the encoder is frozen and one process trains on stored vectors, or with mixup or cutmix on
    images. With `tune = "visual"` or `lora` the visual tower learns too: the commit names the tuned encoder and its
    fingerprint, `vlltr embed` has to follow, and the anchors, their vectors and the index stay. Run again, it starts
    from the untuned tower, as the first time.
    `progress` and `resume` are as for `train_cvlp_stage`.

    Raises:
        MissingStepError: If images, vectors or anchors of the training classes are missing.
        WorkspaceError: If the training images, their classes' anchors or the encoder changed meanwhile, or the
            workspace cannot be written.
    """
    if config.live:
        return _tune_visual(workspace, config, progress, resume)
    meet()
    return by_first(lambda: _train_head(workspace, config, progress, resume, command))


def _train_head(
    workspace: Workspace, config: LGRConfig, progress: Progress | None, resume: bool, command: str
) -> TrainReport:
    run_folder(workspace)
    snapshot = workspace.snapshot()
    commit, loaded = snapshot.commit, load_bank(snapshot)
    assert commit.text_fp is not None
    assert commit.image_fp is not None
    before = {
        "the training images": usable_images(snapshot, "train", [])["image_id"].to_pylist(),
        **_facts(snapshot),
    }
    if workspace.recipe.fusion.rule == "ours" and not before["the training images"]:
        decision = without_images(loaded.bank, config, commit.logit_scale)
        return _commit_head(
            workspace, config, decision, torch.empty(0, dtype=torch.int64), None, before, False, command
        )
    _check_views(snapshot, config)
    first, augment = image_set(snapshot, "train"), workspace.recipe.lgr.augment
    features = first.features.new_empty(config.views, *first.features.shape)
    for view, target in enumerate(features):
        target.copy_(image_set(snapshot, "train", view, augment).features if view else first.features)
    first = replace(first, features=features[0])
    facts = [
        before,
        first.class_ids.tolist(),
        config.model_dump(mode="json"),
        augment.model_dump(mode="json"),
        commit.logit_scale,
        workspace.recipe.fusion.rule,
        [hashlib.sha256(view.contiguous().numpy().data).hexdigest() for view in features],
    ]
    folder = run_folder(workspace, f"lgr-{short(digest_json(facts))}")
    _log.info("%s on %s, fp32", command, device_name(choose_device()))
    with held_folder(folder, command, resume) as resumed, memory_mended_by(command, _LESS_MEMORY):
        if workspace.recipe.fusion.rule == "ours":
            data, class_ids = _stage_two_data(workspace, snapshot, loaded, first, features)
            decision = decide(data, config, folder, progress)
            trained = class_ids[decision.rows]
        else:
            class_ids, labels = torch.unique(first.class_ids, return_inverse=True)
            log: list[dict[str, float]] = []
            head = train_lgr(
                features,
                labels,
                _trained_bank(snapshot, loaded, class_ids),
                config,
                visual_init=_visual_init(workspace, commit.checkpoint, class_ids),
                logit_scale=commit.logit_scale,
                run_dir=folder,
                progress=progress,
                log=log,
            )
            decision, trained = Decision(head, None, log), class_ids
        report = _commit_head(workspace, config, decision, trained, first, before, resumed, command)
        shutil.rmtree(folder, ignore_errors=True)  # only now that the commit is there
    return report


def _stage_two_data(
    workspace: Workspace, snapshot: Snapshot, loaded: LoadedBank, first: ImageSet, features: Tensor
) -> tuple[StageTwoData, Tensor]:
    """What stage 2 learns from, and the classes int64 [C] that have training images."""
    commit = snapshot.commit
    class_ids, labels = torch.unique(first.class_ids, return_inverse=True)
    groups = usable_images(snapshot, "train", ["group"])["group"].to_pylist()
    held, init = HeldOut(), None
    if commit.checkpoint:
        folder = workspace.object_path("checkpoints", commit.checkpoint)
        held = read_held_out(folder)
        if (visual := load_visual(folder, class_ids)) is not None:
            weight, bias, known = visual
            init = weight, torch.where(known, bias, torch.nan)  # rows that are not stage 1's start elsewhere
    places = class_positions(loaded.bank.class_ids, class_ids)
    there = places[places >= 0]
    data = StageTwoData(
        features=features,
        labels=labels,
        bank=loaded.bank.select(there) if len(there) else loaded.bank,
        places=torch.where(places >= 0, (places >= 0).cumsum(0) - 1, -1),
        groups=groups,
        unseen=torch.tensor([held.has(image) for image in first.image_ids], dtype=torch.bool),
        unseen_classes=torch.tensor([i in held.classes for i in class_ids.tolist()], dtype=torch.bool),
        visual_init=init,
        logit_scale=commit.logit_scale,
        sentence_means=sentence_means(snapshot, class_ids),
    )
    return data, class_ids


def _commit_head(
    workspace: Workspace,
    config: LGRConfig,
    decision: Decision,
    class_ids: Tensor,
    images: ImageSet | None,
    before: Mapping[str, object],
    resumed: bool,
    command: str,
) -> TrainReport:
    """Commit the head and the statistics of the classes' images, if nothing that they rest on changed meanwhile."""
    with workspace.transaction(command) as tx:
        now = usable_images(tx, "train", [])["image_id"].to_pylist()
        refuse(command, differences(before, {"the training images": now, **_facts(tx)}))
        saved = SavedHead(
            decision.head, class_ids, tx.commit.text_fp or "", tx.commit.image_fp or "", decision.parts
        )
        digest = _keep_head(workspace, tx, saved, config, decision.log)
        if images is not None:
            tx.replace("class_stats", stats_rows(images.features, images.class_ids, saved.image_fp))
        tx.note(merged={})
    count = len(images.class_ids) if images is not None else 0
    log = decision.log
    last = log[-1] if log else {}
    epochs = round(last.get("epoch", 0))
    return TrainReport(
        "lgr", digest, len(class_ids), count, epochs, resumed, last, notes=tuple(decision.notes)
    )


def _check_views(snapshot: Snapshot, config: LGRConfig) -> None:
    """See that as many views are stored as the head shall be trained on.

    Raises:
        MissingStepError: If not: `vlltr embed` alone makes those of the workspace's recipe.
    """
    stored = snapshot.commit.info.views
    if stored < config.views:
        raise MissingStepError(
            f"the head is to be trained on {config.views} views of each image (lgr.views), and {stored} are stored",
            f"Make them: vlltr embed --views {config.views}, or use --set lgr.views={stored}",
        )


def _facts(snapshot: Snapshot) -> dict[str, object]:
    """What a head depends on besides its images: the encoder and the anchors of the classes that have images."""
    commit = snapshot.commit
    owners = usable_images(snapshot, "train", [])["class_id"]
    anchors = snapshot.table("anchors", ["class_id", "sentence_id", "rank"])
    anchors = anchors.filter(pc.is_in(anchors["class_id"], value_set=owners.combine_chunks().unique()))
    ordered = anchors.sort_by([("class_id", "ascending"), ("rank", "ascending")])
    return {
        "the encoder": [commit.checkpoint, commit.text_fp, commit.image_fp],
        "the anchors of the training classes": digest_json(
            [ordered["class_id"].to_pylist(), ordered["sentence_id"].to_pylist()]
        ),
    }


def _tune_visual(
    workspace: Workspace, config: LGRConfig, progress: Progress | None, resume: bool
) -> TrainReport:
    def key(snapshot: Snapshot, data: TrainingSet) -> str:
        start, selection = _start(snapshot, config), load_bank(snapshot).selection_id
        facts = [
            start,
            selection,
            config.model_dump(exclude={"micro_batch"}),
            data.image_ids,
            data.labels.tolist(),
        ]
        return f"lgr-{short(digest_json(facts))}"

    with training_run(
        workspace, "train lgr", config.batch_size, resume, key, with_texts=False, facts=_facts
    ) as run:
        snapshot = run.snapshot
        data, held = _parted(workspace, run.data, _start(snapshot, config))
        bank = first_then_all(lambda: _trained_bank(snapshot, load_bank(snapshot), data.class_ids))
        start = _start(snapshot, config)
        encoder = _starting_encoder(workspace, snapshot, start)
        head, log = tune_visual(
            encoder,
            TrainImages(
                data.sources, data.labels, encoder, config.augment, workers=workspace.recipe.cvlp.workers
            ),
            bank,
            config,
            visual_init=_visual_init(workspace, start, data.class_ids),
            run_dir=run.folder,
            progress=progress,
        )
        rows = head.visual_head if isinstance(head.visual_head, nn.Linear) else None
        stage = StageOne(encoder, rows.weight if rows else None, rows.bias if rows else None, log)
        notes: list[str] = []

        def keep(tx: Transaction) -> str:
            return _keep_tuned(workspace, tx, stage, head, data, held, config, notes, progress)

        digest = run.commit(keep)
    return stage_report("lgr", digest, data, config.epochs, run.resumed, stage, notes=tuple(notes))


def _keep_tuned(
    workspace: Workspace,
    tx: Transaction,
    stage: StageOne,
    head: LGRHead,
    data: TrainingSet,
    held: HeldOut,
    config: LGRConfig,
    notes: list[str],
    progress: Progress | None,
) -> str:
    """Commit a head and a tower that were trained together; `notes` receives what was decided."""
    encoder = stage.encoder
    if config.tune != "head":
        record = {"config": config.model_dump(mode="json"), "kind": "lgr"}

        def build(path: Path) -> None:
            save_stage(stage, data, record, path)
            write_held_out(held, path)

        checkpoint = workspace.put_object("checkpoints", build)
        tx.set(checkpoint=checkpoint, image_fp=encoder.image_fp)
        tx.note(tuned={"checkpoint": checkpoint, "start": _start(tx, config)})
    embed_images(tx, encoder, "train", progress=progress)
    # The transaction's commit is still the one before: it names the vectors of the encoder before.
    images, parts = image_set(tx, "train", image_fp=encoder.image_fp), None
    if workspace.recipe.fusion.rule == "ours":
        whole, class_ids = _stage_two_data(workspace, tx, load_bank(tx), images, images.features[None])
        unseen = torch.tensor([held.has(image) for image in images.image_ids], dtype=torch.bool)
        apart = torch.tensor([i in held.classes for i in class_ids.tolist()], dtype=torch.bool)
        parts, notes[:] = weigh(replace(whole, unseen=unseen, unseen_classes=apart, visual_init=None), head)
    saved = SavedHead(head, data.class_ids, encoder.text_fp, encoder.image_fp, parts)
    tx.replace("class_stats", stats_rows(images.features, images.class_ids, saved.image_fp))
    return _keep_head(workspace, tx, saved, config, stage.log)


def _parted(workspace: Workspace, data: TrainingSet, start: str | None) -> tuple[TrainingSet, HeldOut]:
    """The training images without those that the parts are weighed on, and these: stage 1's, or as many chosen anew."""
    if workspace.recipe.fusion.rule != "ours":
        return data, HeldOut()
    held = read_held_out(workspace.object_path("checkpoints", start)) if start else HeldOut()
    owners = data.class_ids[data.labels].tolist()
    if not held.images:
        chosen = choose_held_out(
            data.image_ids, owners, data.groups, data.digests, workspace.recipe.cvlp.hold_out
        )
        held = HeldOut.of((data.image_ids[n] for n in chosen), held.classes)
    pairs = zip(data.image_ids, owners, strict=True)
    kept = [n for n, (image, i) in enumerate(pairs) if not held.has(image) and i not in held.classes]
    return part_of(data, kept, data.texts), held


def _keep_head(workspace: Workspace, tx: Transaction, saved: SavedHead, config: LGRConfig, log: Log) -> str:
    """Commit the head with the settings it was trained by, those of its selection too, and the log of its losses."""
    settings = config.model_dump(mode="json")
    record = {**settings, "select": tx.commit.info.select}
    digest = workspace.put_object("heads", lambda path: save_head(saved, path, log, record))
    recipe = workspace.recipe
    tx.set(head=digest, fusion=recipe.fusion)
    tx.note(lgr=settings, recipe=recipe.name, protocol=recipe.protocol)
    return digest


def _start(snapshot: Snapshot, config: LGRConfig) -> str | None:
    """The checkpoint that stage 2 starts from; None: the recipe's weights.

    A tower that is tuned starts from the one before an earlier tuning.
    """
    return snapshot.commit.checkpoint if config.tune == "head" else snapshot.commit.untuned


def _starting_encoder(workspace: Workspace, snapshot: Snapshot, start: str | None) -> Encoder:
    """The encoder of the checkpoint that stage 2 starts from."""
    if start == snapshot.commit.checkpoint:
        return open_encoder(workspace, snapshot)
    if start is None:
        return starting_encoder(workspace.recipe)
    return Encoder.open(workspace.object_path("checkpoints", start))


def _trained_bank(tx: Snapshot, loaded: LoadedBank, class_ids: Tensor) -> AnchorBank:
    """The anchors of the training classes int64 [C], in their order.

    Raises:
        MissingStepError: If one of them has no anchor: it came after the selection.
    """
    positions = class_positions(loaded.bank.class_ids, class_ids)
    bare = class_ids[positions < 0].tolist()
    check_told(tx, bare, "anchor sentence", "Select again: vlltr embed, then vlltr select")
    return loaded.bank.select(positions)


def _visual_init(
    workspace: Workspace, checkpoint: str | None, class_ids: Tensor
) -> tuple[Tensor, Tensor] | None:
    found = load_visual(workspace.object_path("checkpoints", checkpoint), class_ids) if checkpoint else None
    return found if found is None else found[:2]
