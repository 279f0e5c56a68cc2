"""Train the baselines of a workspace (`vlltr train baseline`) and score images with them (`vlltr evaluate`).

What can be chosen is chosen on split val, or on held-back training images where there is none; never on test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.embedding.loading import (
    ImageSet,
    content_ids,
    content_vectors,
    image_units,
    numbers,
    open_encoder,
    saved_encoder,
    usable_images,
)
from vlltr_index.embedding.vectors import embed_images, embed_sentences, embedded
from vlltr_index.errors import MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation.baselines import (
    BY_NAME,
    Baseline,
    FitData,
    Texts,
    Tower,
)
from vlltr_index.evaluation.rules import hold_back
from vlltr_index.pipelines import training
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.tensors import choose_device, class_positions
from vlltr_index.train.cvlp import train_image_only
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import by_first, first_then_all, own_part
from vlltr_index.wording import have

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.config import BaselineConfig, BaselinesConfig
    from vlltr_index.schemas.encoders import Family
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.objects import Kind
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace
    from vlltr_index.train.loop import StageOne


class BaselineManifest(Manifest):
    """Content of `baseline.json`: what `BaselineRow` holds beside tensors."""

    format: Literal[2] = 2
    label: str
    tower: Tower
    checkpoint: str | None
    image_fp: str | None
    settings: dict[str, int | float | str]
    note: str
    made_of: str


@dataclass(frozen=True, eq=False)
class BaselineRow:
    """One baseline over the features of one visual tower."""

    label: str
    baseline: Baseline
    tower: Tower
    checkpoint: str | None  # of the encoder; None where it is the recipe's pretrained start
    image_fp: str | None  # of the encoder; None where it has not been looked up
    class_ids: Tensor  # int64 [C], ascending
    note: str = ""  # a remark for readers of the table
    made_of: str = ""  # digest of what it was fitted on, see `made_of`; empty for the image-only baseline

    @property
    def settings(self) -> dict[str, float | str]:
        """What was fitted beside tensors, the chosen setting, and the images it was chosen on."""
        return self.baseline.settings

    @property
    def probabilities(self) -> bool:
        """Whether the softmax of its scores is a probability."""
        return self.baseline.probabilities


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences of some classes; labels int64 [N_t] are positions in `class_ids` int64 [C]."""

    class_ids: Tensor
    labels: Tensor
    hashes: list[str]
    texts: list[str]
    prompts: Tensor  # bool [N_t], made from the class name


def sentences_of(snapshot: Snapshot, class_ids: Tensor | None = None) -> Sentences:
    """Read the commit's sentences of `class_ids`, ordered by sentence_id; by default of every class that has one.

    Raises:
        MissingStepError: If there is none.
    """
    rows = snapshot.table("sentences", ["sentence_id", "class_id", "text_hash", "text", "source"])
    rows = rows.sort_by("sentence_id")
    owner = torch.tensor(rows["class_id"].to_pylist(), dtype=torch.int64)
    if class_ids is None:
        active = torch.tensor(snapshot.class_table().ids, dtype=torch.int64)
        class_ids = torch.unique(owner[torch.isin(owner, active)])
    positions = class_positions(class_ids, owner)
    kept = (positions >= 0).nonzero()[:, 0]
    if not len(kept):
        raise MissingStepError("there are no sentences", "Run: vlltr ingest text PATH")
    rows = rows.take(kept.numpy())
    return Sentences(
        class_ids=class_ids,
        labels=positions[kept],
        hashes=rows["text_hash"].to_pylist(),
        texts=rows["text"].to_pylist(),
        prompts=torch.tensor([source == "prompt" for source in rows["source"].to_pylist()]),
    )


def made_of(snapshot: Snapshot, kind: type[Baseline]) -> str:
    """Digest what a baseline of a commit is fitted on: the training images with their classes, and its sentences."""
    facts: list[object] = [usable_images(snapshot, "train", ["content_hash"]).to_pydict()]
    if kind.sentences is not None:
        facts.append(snapshot.table("sentences", ["sentence_id"]).sort_by("sentence_id").to_pydict())
    return digest_json(facts)


def train_baseline_stage(
    workspace: Workspace, config: BaselineConfig, progress: Progress | None = None, resume: bool = True
) -> training.TrainReport:
    """Train the image-only baseline: the recipe's visual tower and a linear layer with cross-entropy; commit it.

    An interrupted run of the same settings goes on with `resume`, with as many processes or others.

    Raises:
        MissingStepError: If there are no training images.
        WorkspaceError: If the training images changed meanwhile.
        ConfigError: If the batch cannot be shared out among the processes.
    """
    recipe = workspace.recipe
    snapshot = training.newest_snapshot(workspace)
    data = _image_only_data(snapshot, config)
    key = training.run_key("baseline-fc", recipe, config, data)
    command = "train baseline fc"
    with training.training_run(workspace, command, snapshot, key, training.image_facts, resume) as run:
        encoder = training.starting_encoder(recipe, [["a"]], config.seed)
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        stage = train_image_only(encoder, images, config, run_dir=run.folder, progress=progress)
        digest = _keep_image_only(run, stage, data, config)
    return training.stage_report(run, "baseline fc", digest, data, stage=stage, epochs=config.epochs)


@first_then_all
def _image_only_data(snapshot: Snapshot, config: BaselineConfig) -> training.StageOneData:
    own_part(config.batch_size)
    return training.stage_one_data(snapshot, with_texts=False)


@by_first
def _keep_image_only(
    run: training.TrainingRun, stage: StageOne, data: training.StageOneData, config: BaselineConfig
) -> str:
    """Commit the image-only baseline, and return its digest."""
    with run.transaction() as tx:
        digest = training.keep_stage(run.workspace, stage, data, kind="baseline-fc", config=config)
        tx.note(baseline_fc=digest)
    return digest


def possible_baselines(workspace: Workspace) -> list[str]:
    """Return those of `BASELINES` that the workspace's encoder can be used for and that are not absent."""
    family = workspace.history.last().family
    absent = absent_baselines(workspace.snapshot())
    return [name for name in BASELINES if name not in absent and can_fit(name, family)]


def can_fit(name: str, family: Family) -> bool:
    """Say whether a baseline can be fitted on the vectors of a family of encoders."""
    return family.has_cosines or BY_NAME[name].sentences is None


def absent_baselines(snapshot: Snapshot) -> dict[str, str]:
    """Return why some of `BASELINES` cannot be fitted, by name: there are too many classes or training images."""
    limits = {name: BY_NAME[name].limits for name in BASELINES}
    owners = usable_images(snapshot, "train", [])["class_id"]
    images = len(owners)
    classes = len(owners.unique())
    return {
        name: f"it is limited to {limit.classes:,} classes and {limit.images:,} training images,"
        f" and there are {classes:,} classes and {images:,} images"
        for name, limit in limits.items()
        if limit is not None and (classes > limit.classes or images > limit.images)
    }


def train_baseline(
    workspace: Workspace, name: str, config: BaselinesConfig, progress: Progress | None = None
) -> BaselineRow:
    """Fit one of `BASELINES` on stored vectors and commit it under its name; others may write meanwhile.

    Raises:
        UsageError: If there is no such baseline.
        MissingStepError: If a step before has not been run; the hint names it.
        WorkspaceError: If there are too many classes or images for it, or the training images or the encoder changed
            meanwhile.
    """
    if name not in BY_NAME:
        raise UsageError(f"no baseline {name!r}", f"There are: fc, {', '.join(BASELINES)}.")
    snapshot = training.newest_snapshot(workspace)
    absent = absent_baselines(snapshot)
    if name in absent:
        raise WorkspaceError(
            f"the baseline {name!r} cannot be fitted: {absent[name]}",
            "Run: vlltr train baseline discriminant",
        )
    command = f"train baseline {name}"
    with training.training_run(
        workspace, command, snapshot, f"baseline-{name}", training.vector_facts, resume=False
    ) as run:
        row = Making(workspace, snapshot, config, progress).row(BY_NAME[name])
        row = replace(row, made_of=made_of(snapshot, BY_NAME[name]))
        _keep(run, row, name)
    return row


@by_first
def _keep(run: training.TrainingRun, row: BaselineRow, name: str) -> None:
    """Commit a baseline under its name."""
    with run.transaction() as tx:
        with tx.objects.put("heads") as made:
            _save(row, made.folder)
        tx.note(baselines={**tx.commit.info.baselines, name: made.digest})


def _save(row: BaselineRow, folder: Path) -> None:
    """Write `baseline.json` and `baseline.safetensors` into `folder`."""
    tensors = {**row.baseline.tensors, "class_ids": row.class_ids}
    kept = {name: v.clone(memory_format=torch.contiguous_format) for name, v in tensors.items()}
    save_file(kept, folder / "baseline.safetensors")
    facts = BaselineManifest(
        label=row.label,
        tower=row.tower,
        checkpoint=row.checkpoint,
        image_fp=row.image_fp,
        settings=row.settings,
        note=row.note,
        made_of=row.made_of,
    )
    facts.save(folder / "baseline.json")


def stored_texts(snapshot: Snapshot, sentences: Sentences, text_fp: str) -> Texts:
    """Read the stored vectors of sentences.

    Raises:
        MissingStepError: If one of them has none.
    """
    vectors = snapshot.store.vectors(sentence_vectors_name(text_fp), "text_hash", sentences.hashes)
    return Texts(vectors, sentences.labels, len(sentences.class_ids), text_fp)


def kept_folder(snapshot: Snapshot, kind: Kind, digest: str, name: str) -> Path:
    """Return the folder of a committed baseline, whose files must be those that were written."""
    try:
        return snapshot.objects.whole(kind, digest)
    except WorkspaceError as error:
        raise type(error)(error.message, f"Make it again: vlltr train baseline {name}") from None


def fc_checkpoint(snapshot: Snapshot) -> Path:
    """Return the folder of the fc baseline's tower and classifier.

    Raises:
        MissingStepError: If it was not trained, or is gone.
        WorkspaceError: If it is damaged.
    """
    digest = snapshot.commit.info.baseline_fc
    if not digest:
        raise MissingStepError(
            "the image-only baseline has not been trained yet", "Run: vlltr train baseline fc"
        )
    return kept_folder(snapshot, "checkpoints", digest, "fc")


def embed_missing(
    workspace: Workspace, encoder: Encoder, split: str, contents: list[str], progress: Progress | None
) -> None:
    """Embed the images that have no vector yet; a commit is made only if some of them cannot be read."""
    if not all(embedded(workspace.snapshot(), encoder.image_fp, contents)):
        with workspace.transaction("embed for a baseline") as tx:
            embed_images(tx, encoder.eval(), split, progress=progress)


@dataclass(frozen=True, eq=False)
class _Tower:
    """A visual tower, and the classes of a baseline over its features.

    Attributes:
        image_fp: Its fingerprint.
        text_fp: That of the text tower beside it.
        logit_scale: The encoder's multiplier of the cosine.
        encoder: Opens the encoder, which only images and sentences without vectors need.
        whose: The fc baseline's, or the workspace's own.
        checkpoint: Of the encoder; None where it is the recipe's pretrained start.
        class_ids: Int64 [C].
        classifier: Weight [C, D] and bias [C] that the fc baseline has for these classes.
    """

    image_fp: str
    text_fp: str
    logit_scale: float
    encoder: Callable[[], Encoder]
    whose: Tower
    checkpoint: str | None
    class_ids: Tensor
    classifier: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Making:
    """The making of baselines: what it reads, and the vectors that are embedded for it.

    Attributes:
        workspace: Where vectors are.
        snapshot: The commit.
        config: What the baselines may choose from.
        progress: Called while vectors are made.
        known: The images that were read, by split and the encoder's fingerprint.
        known_units: The units of the training images, by the encoder's fingerprint.
    """

    workspace: Workspace
    snapshot: Snapshot
    config: BaselinesConfig
    progress: Progress | None
    known: dict[tuple[str, str], ImageSet] = field(default_factory=dict)
    known_units: dict[str, list[str]] = field(default_factory=dict)

    def row(
        self, kind: type[Baseline], without: frozenset[str] = frozenset(), own_tower: bool = False
    ) -> BaselineRow:
        """Fit a baseline without the images of some ids, and if `own_tower` not over the fc baseline's tower."""
        if kind.sentences is not None:
            what = f"the baseline {kind.name!r} compares vectors of texts and images"
            self.snapshot.commit.family.require_texts(what, "Take another: ncm or discriminant.")
        sentences = None if kind.sentences is None else sentences_of(self.snapshot)
        tower = self.tower(kind, sentences, without, own_tower)
        data = self.data(tower, without)
        note = ""
        if sentences is not None:
            if kind.sentences == "prompts":
                sentences, note = _prompts(sentences)
            data = replace(data, texts=self.texts(tower, sentences))
        if kind.knows_prior:
            data = replace(data, units=self.units(tower, without))
        fitted = kind.fit(data, self.config, self.progress)
        if kind.knows_prior:
            fitted = fitted.with_prior(data, self.config)
        return BaselineRow(
            label=kind.name,
            baseline=fitted.to(torch.device("cpu")),
            tower=tower.whose,
            checkpoint=tower.checkpoint,
            image_fp=tower.image_fp,
            class_ids=tower.class_ids,
            note=note,
        )

    def tower(
        self, kind: type[Baseline], sentences: Sentences | None, without: frozenset[str], own: bool
    ) -> _Tower:
        """Open the tower whose features a baseline takes; its classes have training images, or the `sentences`."""
        commit = self.snapshot.commit
        if not own and "fc" in kind.towers and (commit.info.baseline_fc or "own" not in kind.towers):
            folder = fc_checkpoint(self.snapshot)
            visual = load_file(folder / "visual.safetensors")
            rows = torch.isin(visual["class_ids"], self.trained_classes(without))
            device = choose_device()
            encoder = saved_encoder(folder)
            return _Tower(
                image_fp=encoder.image_fp,
                text_fp=encoder.text_fp,
                logit_scale=encoder.logit_scale,
                encoder=lambda: encoder,
                whose="fc",
                checkpoint=commit.info.baseline_fc,
                class_ids=visual["class_ids"][rows],
                classifier=(visual["weight"][rows].to(device), visual["bias"][rows].to(device)),
            )
        class_ids = self.trained_classes(without) if sentences is None else sentences.class_ids
        image_fp, text_fp, logit_scale = self._own_facts()
        return _Tower(
            image_fp=image_fp,
            text_fp=text_fp,
            logit_scale=logit_scale,
            encoder=lambda: self.own_encoder,
            whose="own",
            checkpoint=commit.checkpoint,
            class_ids=class_ids,
        )

    def _own_facts(self) -> tuple[str, str, float]:
        """Return both towers' fingerprints and the scale of the encoder that made, or will make, the vectors."""
        commit = self.snapshot.commit
        if commit.image_fp is None or commit.text_fp is None:
            encoder = self.own_encoder
            return encoder.image_fp, encoder.text_fp, encoder.logit_scale
        return commit.image_fp, commit.text_fp, commit.logit_scale

    @cached_property
    def own_encoder(self) -> Encoder:
        """The commit's encoder."""
        return open_encoder(self.snapshot)

    def data(self, tower: _Tower, without: frozenset[str]) -> FitData:
        """Read splits train and val; without val, hold back some training images to choose settings on."""
        features, labels = self.split(tower, "train", tower.class_ids, without)
        fitted = torch.ones(len(labels), dtype=torch.bool)
        chosen_on = "val"
        try:
            seen, seen_labels = self.split(tower, "val", tower.class_ids)
        except MissingStepError:
            fitted = ~hold_back(labels, self.config.held_back)
            seen = features[~fitted]
            seen_labels = labels[~fitted]
            chosen_on = "held-back training images" if len(seen) else "nothing: defaults"
        return FitData(
            features=features,
            labels=labels,
            num_classes=len(tower.class_ids),
            fitted=fitted,
            seen=seen,
            seen_labels=seen_labels,
            chosen_on=chosen_on,
            logit_scale=tower.logit_scale,
            classifier=tower.classifier,
            texts=None,
        )

    def units(self, tower: _Tower, without: frozenset[str]) -> list[str]:
        """Return the unit of each training image of `data`."""
        found = self.images(tower, "train")
        if tower.image_fp not in self.known_units:
            named = image_units(self.snapshot, found.image_ids, found.class_ids, found.features)
            self.known_units[tower.image_fp] = named
        owned = (class_positions(tower.class_ids, found.class_ids) >= 0).tolist()
        there = zip(found.image_ids, owned, self.known_units[tower.image_fp], strict=True)
        return [unit for image_id, own, unit in there if own and image_id not in without]

    def texts(self, tower: _Tower, sentences: Sentences) -> Texts:
        """Read the vectors of sentences; missing ones are embedded first."""
        try:
            found = stored_texts(self.snapshot, sentences, tower.text_fp)
        except MissingStepError:
            with self.workspace.transaction("embed for a baseline") as tx:  # only the cache grows: no commit
                embed_sentences(
                    tx, tower.encoder(), sentences.hashes, sentences.texts, progress=self.progress
                )
            found = stored_texts(self.snapshot, sentences, tower.text_fp)
        return replace(found, vectors=found.vectors.to(choose_device()))

    def split(
        self, tower: _Tower, split: str, class_ids: Tensor, without: frozenset[str] = frozenset()
    ) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and labels [N] of a split's images of `class_ids`, but for those of some ids; missing
        vectors are embedded first."""
        found = self.images(tower, split)
        labels = class_positions(class_ids, found.class_ids)
        labels[torch.tensor([image_id in without for image_id in found.image_ids])] = -1
        device = choose_device()
        return found.features[labels >= 0].to(device), labels[labels >= 0].to(device)

    def images(self, tower: _Tower, split: str) -> ImageSet:
        """Read the readable images of a split, once; missing vectors are embedded first.

        Images that have gone since and were never embedded are left out.
        """
        key = split, tower.image_fp
        if key not in self.known:
            rows = usable_images(self.snapshot, split, [])
            ids = rows["image_id"].to_pylist()
            if not ids:
                raise MissingStepError(
                    f"there are no images in split {split!r}",
                    f"Run: vlltr ingest images PATH --split {split}",
                )
            contents = content_ids(self.snapshot, ids)
            newest = self.workspace.snapshot()
            if not all(embedded(newest, tower.image_fp, contents)):
                embed_missing(
                    self.workspace, tower.encoder(), split, contents=contents, progress=self.progress
                )
                newest = self.workspace.snapshot()
            there = embedded(newest, tower.image_fp, contents)
            vectors = content_vectors(newest, list(compress(contents, there)), image_fp=tower.image_fp)
            owners = numbers(rows, "class_id")[torch.tensor(there)]
            self.known[key] = ImageSet(list(compress(ids, there)), owners, vectors)
        return self.known[key]

    def trained_classes(self, without: frozenset[str]) -> Tensor:
        """Return the ids of the classes with training images but those of some ids, int64 [C], ascending."""
        rows = usable_images(self.snapshot, "train", []).to_pylist()
        owners = {row["class_id"] for row in rows if row["image_id"] not in without}
        return torch.tensor(sorted(owners), dtype=torch.int64)


def _prompts(sentences: Sentences) -> tuple[Sentences, str]:
    """Return each class's prompts, or all sentences of a class without any, and a note on the latter."""
    classes = len(sentences.class_ids)
    prompted = torch.bincount(sentences.labels[sentences.prompts], minlength=classes) > 0
    kept = (sentences.prompts | ~prompted[sentences.labels]).nonzero()[:, 0]
    chosen = Sentences(
        class_ids=sentences.class_ids,
        labels=sentences.labels[kept],
        hashes=[sentences.hashes[i] for i in kept.tolist()],
        texts=[sentences.texts[i] for i in kept.tolist()],
        prompts=sentences.prompts[kept],
    )
    bare = int((~prompted).sum())
    return (
        chosen,
        f"{bare:,} of {classes:,} classes {have(bare)} no prompt: the mean of all their sentences"
        if bare
        else "",
    )
