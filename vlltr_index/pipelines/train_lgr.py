"""Train stage 2 of a workspace (`vlltr train lgr`, `vlltr refit`), on stored vectors or with the visual tower."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from vlltr_index.anchors.selection import anchors_without
from vlltr_index.classes.effect import Effect, measure
from vlltr_index.embedding import loading
from vlltr_index.embedding.vectors import embed_images
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.checkpoint import SavedHead, ToldMeans, save_head
from vlltr_index.heads.configuration import USUAL, Configuration
from vlltr_index.heads.plda import prior_means
from vlltr_index.pipelines import training
from vlltr_index.pipelines.status import reading_change
from vlltr_index.recognition.added import added_offsets
from vlltr_index.recognition.anchors import Anchors, read_anchors
from vlltr_index.recognition.folds import Dealt, Folds, FoldScalars, save_deal, save_fold
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.parameters import ClassParameters, read_class_stats
from vlltr_index.schemas.config import LGRConfig, SelectConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.store.holdout import HeldOut, read_held_out
from vlltr_index.tensors import choose_device, class_positions, device_name, memory_mended_by
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import by_first, first_then_all, meet, own_part
from vlltr_index.train.lgr import StoredImages, new_head, train_until, tune_visual
from vlltr_index.train.loop import StageOne
from vlltr_index.train.stage_two import StageTwoResult, fit_stage_two, without_images
from vlltr_index.train.training_set import TrainingSet

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.lgr import LGRHead
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace
    from vlltr_index.train.checkpoint import Log

_log = logging.getLogger(__name__)

_LESS_MEMORY = "Try a smaller lgr.batch_size or fewer lgr.views, with --set, or --device cpu."


def train_lgr_stage(
    workspace: Workspace,
    config: LGRConfig,
    progress: Progress | None = None,
    resume: bool = True,
    command: str = "train lgr",
) -> training.TrainReport:
    """Train both branches of the head (stage 2) and commit it.

    With `tune = "head"` the encoder is frozen and one process trains on stored vectors, or with mixup or cutmix on
    images. With `tune = "visual"` or `lora` the visual tower is trained too: the commit names the tuned encoder and
    its fingerprint, `vlltr embed` has to follow, and the anchors, their vectors and the index stay valid. A second
    run starts from the untuned tower again.
    `progress` and `resume` are as for `train_cvlp_stage`.

    Raises:
        MissingStepError: If images, vectors or anchors of the training classes are missing.
        WorkspaceError: If the training images, their classes' anchors or the encoder changed meanwhile, or the
            workspace cannot be written.
    """
    if config.live:
        return _tune_visual(workspace, config, progress, resume)
    meet()
    return _train_head(workspace, config, progress=progress, resume=resume, command=command)


@dataclass(frozen=True, eq=False)
class HeadData:
    """What a head is trained on.

    Attributes:
        snapshot: The commit or transaction.
        anchors: Its anchors.
        images: The training images with their plain vectors; None where there is none.
        features: Float [V, N, D], their views, the plain one first.
        units: The group of each image.
        contents: The hash of each image's content.
    """

    snapshot: Snapshot
    anchors: Anchors
    images: loading.ImageSet | None
    features: Tensor
    units: list[str]
    contents: list[str]


@by_first
def _train_head(
    workspace: Workspace, config: LGRConfig, progress: Progress | None, resume: bool, command: str
) -> training.TrainReport:
    """Train the head on stored vectors, and commit it."""
    snapshot = training.newest_snapshot(workspace)
    _check_reading(snapshot)
    data = head_data(snapshot, config)
    key = _head_key(snapshot, config, data)
    with training.training_run(workspace, command, snapshot, key, head_facts, resume) as run:
        with memory_mended_by(command, _LESS_MEMORY):
            decision, class_ids = _fit_head(run, data, config, progress)
        with run.transaction() as tx:
            fps = tx.commit.text_fp or "", tx.commit.image_fp or ""
            saved = SavedHead(decision.head, class_ids, *fps, decision.parts)
            if data.images is not None:
                _keep_stats(tx, data.images, data.units, saved)
            tx.note(merged={})
            digest = _keep_head(tx, data.anchors, saved, config, decision.log)
            _keep_folds(tx, data, saved, decision)
    images = data.images
    last = decision.log[-1] if decision.log else {}
    return training.TrainReport(
        what="lgr",
        digest=digest,
        classes=len(class_ids),
        images=0 if images is None else len(images.class_ids),
        epochs=round(last.get("epoch", 0)),
        resumed=run.resumed,
        last=last,
        notes=tuple(decision.notes),
        units=None if images is None else len(set(zip(images.class_ids.tolist(), data.units, strict=True))),
    )


def _head_key(snapshot: Snapshot, config: LGRConfig, data: HeadData) -> str:
    """Return the name of a run's folder, from all that the run depends on."""
    facts = [
        head_facts(snapshot),
        config.model_dump(mode="json"),
        snapshot.recipe.lgr.augment.model_dump(mode="json"),
        snapshot.commit.logit_scale,
        snapshot.recipe.fusion.rule,
        *(snapshot.commit.info.model_dump(mode="json")[name] for name in ("select", "reading")),
        snapshot.commit.tables.get("sentences"),
        [hashlib.sha256(view.contiguous().numpy().data).hexdigest() for view in data.features],
    ]
    return f"lgr-{short(digest_json(facts))}"


def head_data(snapshot: Snapshot, config: LGRConfig) -> HeadData:
    """Read the stored vectors and the anchors.

    Raises:
        UsageError: If there are no images, and the encoder has no text tower.
        MissingStepError: If there are no anchors, or fewer views are stored than the head is to be trained on.
    """
    anchors = read_anchors(snapshot)
    dim = anchors.bank.dim
    ours = snapshot.recipe.fusion.rule == "ours"
    if ours and not loading.usable_images(snapshot, "train", []).num_rows:
        hint = "Run: vlltr ingest images PATH --split train"
        snapshot.commit.family.require_texts("there are no training images", hint)
        return HeadData(snapshot, anchors, None, torch.empty(0, 0, dim), [], [])
    stored = snapshot.commit.info.views
    if stored < config.views:
        raise MissingStepError(
            f"the head is to be trained on {config.views} views of each image (lgr.views), and {stored} are stored",
            f"Make them: vlltr embed --views {config.views}, or use --set lgr.views={stored}",
        )
    first = loading.image_set(snapshot, "train")
    augment = snapshot.recipe.lgr.augment
    features = first.features.new_empty(config.views, *first.features.shape)
    features[0] = first.features
    for view in range(1, config.views):
        features[view] = loading.image_set(snapshot, "train", view, augment).features
    units = loading.image_units(snapshot, first.image_ids, first.class_ids, first.features)
    contents = contents_of(snapshot, first.image_ids)
    return HeadData(snapshot, anchors, replace(first, features=features[0]), features, units, contents)


def contents_of(snapshot: Snapshot, image_ids: Sequence[str]) -> list[str]:
    """Return the hash of the content of training images."""
    rows = loading.usable_images(snapshot, "train", ["content_hash"])
    found = dict(zip(rows["image_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
    return [found[image_id] for image_id in image_ids]


def _fit_head(
    run: training.TrainingRun, read: HeadData, config: LGRConfig, progress: Progress | None
) -> tuple[StageTwoResult, Tensor]:
    """Train a head by the workspace's rule; return the result, and the ids of its rows' classes."""
    bank = read.anchors.bank
    images = read.images
    logit_scale = run.snapshot.commit.logit_scale
    if images is None:
        nothing = without_images(bank, config, logit_scale)
        return nothing, torch.empty(0, dtype=torch.int64)
    _log.info("%s on %s, fp32", run.command, device_name(choose_device()))
    if run.snapshot.recipe.fusion.rule == "ours":
        data, class_ids = training_set(read)
        decision = fit_stage_two(data, config, run_dir=run.folder, progress=progress)
        assert decision.rows is not None
        return decision, class_ids[decision.rows]
    class_ids, labels = torch.unique(images.class_ids, return_inverse=True)
    bank = _trained_bank(run.snapshot, bank, class_ids)
    init = _visual_init(run.snapshot, run.snapshot.commit.checkpoint, class_ids)
    stored = StoredImages(read.features, labels, bank, torch.arange(bank.num_classes))
    start = new_head(bank, config, init, logit_scale)
    head, log = train_until(start, stored, config, None, run_dir=run.folder, progress=progress)
    return StageTwoResult(head, None, log), class_ids


def _check_reading(snapshot: Snapshot) -> None:
    """Check that the sentences were read by the recipe's `prior.text`, or by none if it names none.

    Raises:
        MissingStepError: They were not.
    """
    if change := reading_change(snapshot):
        raise MissingStepError(change, "Run: vlltr embed")


def training_set(read: HeadData) -> tuple[TrainingSet, Tensor]:
    """Return the training data of stage 2, and the ids int64 [C] of the classes that its images are of."""
    images = read.images
    assert images is not None
    snapshot = read.snapshot
    commit = snapshot.commit
    loaded = read.anchors
    class_ids, labels = torch.unique(images.class_ids, return_inverse=True)
    held = HeldOut()
    init = None
    if commit.checkpoint:
        folder = snapshot.objects.path("checkpoints", commit.checkpoint)
        held = read_held_out(folder)
        visual = training.load_visual(folder, class_ids)
        if visual is not None:
            weight, bias, known = visual
            # A NaN bias marks a row that stage 1 does not have: the head initialises it otherwise.
            init = weight, torch.where(known, bias, torch.nan)
    unseen, unseen_classes = _unseen(held, images.image_ids, class_ids)
    places = class_positions(loaded.bank.class_ids, class_ids)
    there = places[places >= 0]
    bank = loaded.with_words.select(there) if len(there) else loaded.bank
    again: Callable[[Tensor], tuple[AnchorBank, list[str]]] | None = None
    selected = commit.info.select
    if selected and selected.split == "train" and held == HeldOut():
        again = partial(_anchors_without, snapshot, selected, bank.class_ids, images.image_ids)
    data = TrainingSet(
        features=read.features,
        labels=labels,
        bank=bank,
        places=torch.where(places >= 0, (places >= 0).cumsum(0) - 1, -1),
        units=read.units,
        keys=read.contents,
        visual_init=init,
        logit_scale=commit.logit_scale,
        unseen=unseen,
        unseen_classes=unseen_classes,
        anchors_without=again,
    )
    return data, class_ids


def _anchors_without(
    snapshot: Snapshot, config: SelectConfig, class_ids: Tensor, image_ids: list[str], out: Tensor
) -> tuple[AnchorBank, list[str]]:
    left_out = frozenset(compress(image_ids, out.tolist()))
    bank, sentence_ids = anchors_without(snapshot, config, class_ids, images=left_out)
    return loading.with_words(snapshot, bank, sentence_ids), sentence_ids


def _unseen(held: HeldOut, image_ids: list[str], class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return which images bool [N] and which classes bool [C] stage 1 held out."""
    images = [held.has(i) for i in image_ids]
    classes = [i in held.classes for i in class_ids.tolist()]
    return torch.tensor(images, dtype=torch.bool), torch.tensor(classes, dtype=torch.bool)


def head_facts(snapshot: Snapshot) -> dict[str, object]:
    """Return what a head depends on: training images, encoder, and anchors of the classes that have images."""
    owners = loading.usable_images(snapshot, "train", [])["class_id"]
    anchors = snapshot.table("anchors", ["class_id", "sentence_id", "rank"])
    anchors = anchors.filter(pc.is_in(anchors["class_id"], value_set=owners.combine_chunks().unique()))
    ordered = anchors.sort_by([("class_id", "ascending"), ("rank", "ascending")])
    chosen = ordered.select(["class_id", "sentence_id"]).to_pydict()
    return {
        **training.vector_facts(snapshot),
        "the anchors of the training classes": digest_json(chosen),
    }


@dataclass(frozen=True, eq=False)
class _TunedData:
    """What a head is trained on where images pass the tower.

    Attributes:
        start: The checkpoint that training starts from, or None for the recipe's weights.
        images: The training images.
        held: Those that the parts are weighed on.
        bank: The anchors of the classes of `images`.
    """

    start: str | None
    images: training.StageOneData
    held: HeldOut
    bank: AnchorBank


def _tune_visual(
    workspace: Workspace, config: LGRConfig, progress: Progress | None, resume: bool
) -> training.TrainReport:
    """Train the head with images that pass the tower, and commit both."""
    snapshot = training.newest_snapshot(workspace)
    read, key = _tuned_data(snapshot, config)
    data = read.images
    with training.training_run(workspace, "train lgr", snapshot, key, head_facts, resume) as run:
        encoder = _starting_encoder(snapshot, read.start)
        workers = workspace.recipe.cvlp.workers
        head, log = tune_visual(
            encoder,
            TrainImages(data.sources, data.labels, encoder, config.augment, workers=workers),
            read.bank,
            config,
            visual_init=_visual_init(snapshot, read.start, data.class_ids),
            run_dir=run.folder,
            progress=progress,
        )
        stage = StageOne(encoder, head.visual_head if isinstance(head.visual_head, nn.Linear) else None, log)
        digest, notes = _keep_tuned(run, read, stage, head=head, config=config, progress=progress)
    report = training.stage_report(run, "lgr", digest, data, stage=stage, epochs=config.epochs)
    return replace(report, notes=tuple(notes))


@first_then_all
def _tuned_data(snapshot: Snapshot, config: LGRConfig) -> tuple[_TunedData, str]:
    """Read what a head is trained on where images pass the tower, and return it with the name of the run's folder."""
    whole = training.stage_one_data(snapshot, with_texts=False)
    own_part(config.batch_size)
    anchors = read_anchors(snapshot)
    start = _start(snapshot, config)
    data, held = _parted(snapshot, whole, start)
    settings = config.model_dump(exclude={"micro_batch"})  # it does not change the gradients
    facts = [start, anchors.selection_id, settings, whole.image_ids, whole.labels.tolist()]
    bank = _trained_bank(snapshot, anchors.bank, data.class_ids)
    return _TunedData(start, data, held, bank), f"lgr-{short(digest_json(facts))}"


@by_first
def _keep_tuned(
    run: training.TrainingRun,
    data: _TunedData,
    stage: StageOne,
    head: LGRHead,
    config: LGRConfig,
    progress: Progress | None,
) -> tuple[str, list[str]]:
    """Commit a head and the tower tuned with it; return the head's digest, and notes on what was decided."""
    encoder = stage.encoder
    with run.transaction() as tx:
        if config.tune != "head":
            checkpoint = training.keep_stage(
                run.workspace, stage, data.images, kind="lgr", config=config, held=data.held
            )
            tx.set(checkpoint=checkpoint, image_fp=encoder.image_fp)
            tx.note(tuned={"checkpoint": checkpoint, "start": _start(tx, config)})
        embed_images(tx, encoder, "train", progress=progress)
        read = _read_tuned(tx, encoder.image_fp)
        decision = _weighed(tx, read, data.held, head, config, progress)
        saved = SavedHead(
            head, data.images.class_ids, encoder.text_fp, encoder.image_fp, parts=decision.parts
        )
        assert read.images is not None
        _keep_stats(tx, read.images, read.units, saved)
        digest = _keep_head(tx, read.anchors, saved, config, stage.log)
        _keep_folds(tx, read, saved, decision)
    return digest, decision.notes


def _read_tuned(tx: Transaction, image_fp: str) -> HeadData:
    """Read the vectors of a tuned tower, whose fingerprint is given as `tx.commit` still names the previous one's."""
    images = loading.image_set(tx, "train", image_fp=image_fp)
    units = loading.image_units(tx, images.image_ids, images.class_ids, images.features)
    contents = contents_of(tx, images.image_ids)
    return HeadData(tx, read_anchors(tx), images, images.features[None], units, contents)


def _weighed(
    tx: Transaction,
    read: HeadData,
    held: HeldOut,
    head: LGRHead,
    config: LGRConfig,
    progress: Progress | None,
) -> StageTwoResult:
    """Choose by the images that a head and its tower did not see; for another rule than `ours` there is no choice."""
    if tx.recipe.fusion.rule != "ours":
        return StageTwoResult(head, None, [])
    assert read.images is not None
    whole, class_ids = training_set(read)
    unseen, apart = _unseen(held, read.images.image_ids, class_ids)
    whole = replace(whole, unseen=unseen, unseen_classes=apart, visual_init=None)
    return fit_stage_two(whole, config, head=head, progress=progress)


def _parted(
    snapshot: Snapshot, data: training.StageOneData, start: str | None
) -> tuple[training.StageOneData, HeldOut]:
    """Split off the images that the parts are weighed on: those that stage 1 held out, or as many chosen now."""
    if snapshot.recipe.fusion.rule != "ours":
        return data, HeldOut()
    held = read_held_out(snapshot.objects.path("checkpoints", start)) if start else HeldOut()
    if not held.images:
        held = replace(training.hold_out(data, snapshot.recipe.cvlp.hold_out), classes=held.classes)
    return training.without(data, held, data.texts), held


def _keep_stats(tx: Transaction, images: loading.ImageSet, units: list[str], saved: SavedHead) -> None:
    """Commit the statistics of the classes' training images, as a head counts them."""
    rows = loading.stats_rows(
        images.features, images.class_ids, units, saved.image_fp, saved.unit_correlation
    )
    tx.replace("class_stats", rows)


def _keep_head(tx: Transaction, anchors: Anchors, saved: SavedHead, config: LGRConfig, log: Log) -> str:
    """Commit the head with the settings it was trained by, those of its selection too, and the log of its losses.

    The prior means that the texts gave are stored with it, by `anchors`.
    """
    settings = config.model_dump(mode="json")
    recipe = tx.recipe
    if saved.parts is not None and saved.parts.shared.kernel is not None:
        means = prior_means(anchors.with_words, saved.parts.shared)
        told = ToldMeans(anchors.bank.class_ids, anchors.digests, means)
        saved = replace(saved, parts=replace(saved.parts, told=told))
    record = {**settings, "select": tx.commit.info.model_dump(mode="json")["select"]}
    with tx.objects.put("heads") as made:
        save_head(saved, made.folder, log, record)
    tx.set(head=made.digest, fusion=recipe.fusion)
    tx.note(lgr=settings, recipe=recipe.name, protocol=recipe.protocol)
    return made.digest


def _keep_folds(tx: Transaction, data: HeadData, saved: SavedHead, decision: StageTwoResult) -> None:
    """Commit the models of the folds with the head, and the offsets of added classes, which they give."""
    tx.note(folds=None, offsets={})
    if not decision.folds or data.images is None or saved.parts is None or decision.fold_of is None:
        return
    parts = replace(saved.parts, held_out=None, told=None)
    usual = Configuration(USUAL.shrinkage, parts.text_level), parts.weights
    images = data.images
    fold_of = decision.fold_of
    scalars = [decision.scalars.get(number, usual) for number in range(int(fold_of.max()) + 1)]

    with tx.objects.put("heads") as made:
        for number, fold in enumerate(decision.folds):
            apart = replace(parts, shared=fold.shared, shifts=fold.shifts)
            folder = made.folder / str(number)
            folder.mkdir()
            save_fold(folder, replace(saved, head=fold.head, parts=apart), fold.bank, fold.sentence_ids)
        of_folds = [FoldScalars(level=int(one.level), weights=weights) for one, weights in scalars]
        rows = Dealt(data.contents, images.class_ids, fold_of, data.units)
        save_deal(made.folder, rows, of_folds, models=len(decision.folds))
    tx.note(folds=made.digest)
    model = Model(
        known=ClassParameters(data.anchors, saved, read_class_stats(tx), merged={}),
        fusion=tx.recipe.fusion,
        classes=tx.class_table(),
        source=tx,
    )
    tx.note(offsets=added_offsets(model, Folds(tx.objects.path("heads", made.digest))))


def _start(snapshot: Snapshot, config: LGRConfig) -> str | None:
    """Return the checkpoint that stage 2 starts from, or None for the recipe's weights.

    With a visual tower to tune, it is the checkpoint from before any earlier tuning.
    """
    return snapshot.commit.checkpoint if config.tune == "head" else snapshot.commit.untuned


def _starting_encoder(snapshot: Snapshot, start: str | None) -> Encoder:
    """Open the encoder of the checkpoint that stage 2 starts from."""
    if start == snapshot.commit.checkpoint:
        return loading.open_encoder(snapshot)
    if start is None:
        return training.starting_encoder(snapshot.recipe)
    return loading.saved_encoder(snapshot.objects.path("checkpoints", start))


def _trained_bank(snapshot: Snapshot, bank: AnchorBank, class_ids: Tensor) -> AnchorBank:
    """Return the anchors of the training classes int64 [C], in their order.

    Raises:
        MissingStepError: If one of them has no anchor: it came after the selection.
    """
    positions = class_positions(bank.class_ids, class_ids)
    bare = class_ids[positions < 0].tolist()
    training.check_told(snapshot, bare, "anchor sentence", "Select again: vlltr embed, then vlltr select")
    return bank.select(positions)


def _visual_init(
    snapshot: Snapshot, checkpoint: str | None, class_ids: Tensor
) -> tuple[Tensor, Tensor] | None:
    if not checkpoint:
        return None
    found = training.load_visual(snapshot.objects.path("checkpoints", checkpoint), class_ids)
    return found and found[:2]


@dataclass(frozen=True)
class RefitReport:
    """Report of a refit: what the head was trained on, and the effect on classes that it knew before."""

    digest: str
    classes: int
    new_classes: list[str]  # those with a row in the classifier now, and not before
    text_only: int
    images: int
    notes: tuple[str, ...]
    effect: Effect
    before: int  # number of the commit whose head was trained again
    mute: bool = False  # texts have no weight in the head


def refit(workspace: Workspace, config: LGRConfig, progress: Progress | None = None) -> RefitReport:
    """Train the head, the generative model and the weights on the stored vectors of all current classes; one commit.

    Encoder, anchors and index stay; classes known by text alone stay so. Merged classes become one.

    Args:
        workspace: With a trained head.
        config: The `lgr` section of a recipe; `tune`, `mixup` and `cutmix` are ignored.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        MissingStepError: If there is no head yet, or vectors of training images are missing.
        WorkspaceError: If what the head is trained on changed meanwhile.
    """
    snapshot = workspace.snapshot()
    before = Model.open(snapshot)
    views = min(config.views, snapshot.commit.info.views)
    stored = config.model_copy(update={"tune": "head", "mixup": 0.0, "cutmix": 0.0, "views": views})
    report = train_lgr_stage(workspace, stored, progress, resume=False, command="refit")
    trained = workspace.snapshot()
    after = Model.open(trained)
    names = trained.class_table().names
    known = set(before.known.row_owners.tolist())
    effect, _ = measure(before, after, set(before.class_ids.tolist()) - known)
    text_only = len(after.class_ids) - len(after.known.visual_sides())
    return RefitReport(
        digest=report.digest,
        classes=report.classes,
        new_classes=[names[i] for i in after.known.row_owners.tolist() if i not in known],
        text_only=text_only,
        images=report.images,
        notes=report.notes,
        effect=effect,
        before=snapshot.commit.id,
        mute=after.saved.texts_are_mute,
    )
