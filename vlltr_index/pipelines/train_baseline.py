"""Train the baselines of a workspace (`vlltr train baseline`) and score images with them (`vlltr evaluate`).

What can be chosen is chosen on split val, or on held-back training images where there is none; never on test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import AliasPath, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.embedding.loading import (
    ImageSet,
    content_ids,
    content_vectors,
    image_vectors_of,
    numbers,
    open_encoder,
    saved_encoder,
    usable_images,
)
from vlltr_index.embedding.vectors import embed_images, embed_sentences, embedded
from vlltr_index.errors import FingerprintMismatch, MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation.baselines import (
    BY_NAME,
    Baseline,
    FitData,
    Linear,
    Texts,
    Tower,
)
from vlltr_index.evaluation.rules import adjusted_logits, hold_back
from vlltr_index.pipelines import training
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.records import BASELINES
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.tensors import choose_device, class_positions
from vlltr_index.train.cvlp import train_image_only
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import own_part

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.config import BaselineConfig, BaselinesConfig
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.objects import Kind
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

FC = "image-only"
ADJUSTED = "image-only + logit adjustment"
"""The strongest image-only row: what the method is compared with unless another row is named."""


class BaselineManifest(Manifest):
    """Content of `baseline.json`: what `BaselineRow` holds beside tensors."""

    format: Literal[2] = 2
    label: str
    tower: Tower
    checkpoint: str | None
    image_fp: str | None
    settings: dict[str, int | float | str]
    note: str


class ImageOnlySettings(Manifest):
    """The part of `train.json` that says how the image-only baseline was trained; see `BaselineConfig`."""

    logit_adjustment: float = Field(validation_alias=AliasPath("config", "logit_adjustment"))
    sampler_power: float = Field(validation_alias=AliasPath("config", "sampler_power"))


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

    def prepare(snapshot: Snapshot) -> tuple[training.TrainingSet, str]:
        data = training.training_set(snapshot, with_texts=False)
        own_part(config.batch_size)
        return data, training.run_key("baseline-fc", recipe, config, data)

    command = "train baseline fc"
    with training.training_run(workspace, command, resume, prepare, facts=training.image_facts) as run:
        encoder = training.starting_encoder(recipe, [["a"]], config.seed)
        data = run.data
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        stage = train_image_only(encoder, images, config, run_dir=run.folder, progress=progress)

        def keep(tx: Transaction) -> str:
            digest = training.keep_stage(workspace, stage, data, kind="baseline-fc", config=config)
            tx.note(baseline_fc=digest)
            return digest

        digest = run.commit(keep)
    return training.stage_report(run, "baseline fc", digest, data, stage=stage, epochs=config.epochs)


def train_baseline(
    workspace: Workspace, name: str, config: BaselinesConfig, progress: Progress | None = None
) -> BaselineRow:
    """Fit one of `BASELINES` on stored vectors and commit it under its name; others may write meanwhile.

    Raises:
        UsageError: If there is no such baseline.
        MissingStepError: If a step before has not been run; the hint names it.
        WorkspaceError: If the training images or the encoder changed meanwhile.
    """
    if name not in BY_NAME:
        raise UsageError(f"no baseline {name!r}", f"There are: fc, {', '.join(BASELINES)}.")
    with training.training_run(
        workspace,
        f"train baseline {name}",
        False,
        lambda _: (None, f"baseline-{name}"),
        facts=training.vector_facts,
    ) as run:
        row = _Making(workspace, run.snapshot, config, progress).row(BY_NAME[name])

        def keep(tx: Transaction) -> None:
            digest = tx.objects.put("heads", lambda path: _save(row, path))
            tx.note(baselines={**tx.commit.info.baselines, name: digest})

        run.commit(keep)
    return row


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
    )
    facts.save(folder / "baseline.json")


def _load(snapshot: Snapshot, name: str, digest: str) -> BaselineRow:
    """Read a committed baseline.

    Raises:
        MissingStepError: If its files are gone.
        WorkspaceError: If they are damaged, or of another format.
    """
    folder = _kept(snapshot, "heads", digest, name)
    try:
        facts = BaselineManifest.load(folder / "baseline.json")
    except ValueError as error:
        mend = f"Make it again: vlltr train baseline {name}"
        raise WorkspaceError(f"the baseline in {folder} cannot be read: {error}", mend) from None
    tensors = load_file(folder / "baseline.safetensors")
    class_ids = tensors.pop("class_ids")
    return BaselineRow(
        label=facts.label,
        baseline=BY_NAME[name].of(tensors, facts.settings),
        tower=facts.tower,
        checkpoint=facts.checkpoint,
        image_fp=facts.image_fp,
        class_ids=class_ids,
        note=facts.note,
    )


def _texts(snapshot: Snapshot, sentences: Sentences, text_fp: str) -> Texts:
    """Read the stored vectors of sentences.

    Raises:
        MissingStepError: If one of them has none.
    """
    vectors = snapshot.store.vectors(sentence_vectors_name(text_fp), "text_hash", sentences.hashes)
    return Texts(vectors, sentences.labels, len(sentences.class_ids), text_fp)


def _kept(snapshot: Snapshot, kind: Kind, digest: str, name: str) -> Path:
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
    return _kept(snapshot, "checkpoints", digest, "fc")


def _rows(snapshot: Snapshot) -> Iterator[tuple[str, BaselineRow]]:
    """Yield name and row of each committed baseline, in the order of the table."""
    info = snapshot.commit.info
    if info.baseline_fc:
        folder = fc_checkpoint(snapshot)
        settings = ImageOnlySettings.load(folder / "train.json")
        visual = load_file(folder / "visual.safetensors")
        linear = Linear(weight=visual["weight"], bias=visual["bias"])
        ids = visual["class_ids"]
        row = BaselineRow(FC, linear, "fc", info.baseline_fc, image_fp=None, class_ids=ids)
        yield "fc", row
        if settings.logit_adjustment == 0:
            bias = adjusted_logits(visual["bias"], visual["counts"], settings.sampler_power)
            yield "fc", replace(row, label=ADJUSTED, baseline=replace(linear, bias=bias))
    for name in BASELINES:
        if name in info.baselines:
            yield name, _load(snapshot, name, info.baselines[name])


def baseline_labels(snapshot: Snapshot, of_folds: bool = False) -> list[str]:
    """Return the names of the rows that `score_baselines` gives, or `cross_validated_baselines`, in their order.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
    """
    return [row.label for _, row in _rows(snapshot) if not of_folds or row.tower == "own"]


def score_baselines(
    workspace: Workspace,
    snapshot: Snapshot,
    split: str,
    image_ids: list[str],
    progress: Progress | None = None,
) -> Iterator[tuple[BaselineRow, Tensor]]:
    """Yield each baseline row of the commit with its scores float [N, C] for `image_ids` of `split`, in their order.

    The image-only baseline has a row as trained and, if it was trained without logit adjustment, one with logit
    adjustment after training. Images without vectors are embedded first (resumable), with `progress`.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
        FingerprintMismatch: If the encoder a baseline was made with is not there any more.
    """
    known: dict[tuple[str | None, str | None], Tensor] = {}  # of the last row's tower
    for name, row in _rows(snapshot):
        tower = row.checkpoint, row.image_fp
        if tower not in known:
            image_fp = row.image_fp
            contents = content_ids(snapshot, image_ids)
            if image_fp is None or not all(embedded(snapshot, image_fp, contents)):
                encoder = _encoder_of(snapshot, row, name)
                image_fp = encoder.image_fp
                _embed(workspace, encoder, split, contents=contents, progress=progress)
            features = image_vectors_of(snapshot, image_ids, image_fp=image_fp)
            known = {tower: features.to(choose_device())}
        note = "; ".join(filter(None, (row.note, _age(row, snapshot, name))))
        features = known[tower]
        yield replace(row, note=note), _scores(snapshot, row, features)


def _scores(snapshot: Snapshot, row: BaselineRow, features: Tensor) -> Tensor:
    """Score features [N, D], by the sentences as they are now if it reads them; the scores [N, C] lie on the CPU."""
    baseline = row.baseline.to(features.device)
    if baseline.reads_texts:
        sentences = sentences_of(snapshot, row.class_ids)
        texts = _texts(snapshot, sentences, str(row.settings["text_fp"]))
        baseline = replace(baseline, texts=texts)
    return baseline.scores(features).cpu()


def cross_validated_baselines(
    workspace: Workspace,
    snapshot: Snapshot,
    parts: Sequence[tuple[Sequence[str], frozenset[str]]],
    progress: Progress | None = None,
) -> Iterator[tuple[BaselineRow, Tensor]]:
    """Yield each baseline of the commit with its scores float [N, C] for the training images of all parts, in order.

    It is fitted anew for each part. Baselines over the image-only baseline's tower, which was
    trained on all images, are left out.

    Args:
        workspace: Where vectors are.
        snapshot: The commit.
        parts: Ids of the images that are scored, and of those that it is fitted without.
        progress: Called while vectors are made.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
    """
    making = _Making(workspace, snapshot, workspace.recipe.baselines, progress)
    for name, row in _rows(snapshot):
        if row.tower != "own":
            continue
        scores = []
        for part, without in parts:
            fitted = making.row(BY_NAME[name], without)
            features = image_vectors_of(snapshot, part, image_fp=fitted.image_fp).to(choose_device())
            found = _scores(snapshot, fitted, features)
            columns = class_positions(fitted.class_ids, row.class_ids)
            lowest = found.new_full((len(found), 1), -torch.inf)
            scores.append(torch.cat([found, lowest], 1)[:, columns])
        yield row, torch.cat(scores)


def _encoder_of(snapshot: Snapshot, row: BaselineRow, name: str) -> Encoder:
    """Open the encoder that a row was made with."""
    if row.checkpoint is not None:
        encoder = saved_encoder(snapshot.objects.path("checkpoints", row.checkpoint))
    else:
        encoder = training.starting_encoder(snapshot.recipe)
    if row.image_fp not in (None, encoder.image_fp):
        raise FingerprintMismatch(
            f"baseline {name!r} was made with encoder {row.image_fp}, the one that loads now is {encoder.image_fp}",
            f"Make it again: vlltr train baseline {name}",
        )
    return encoder


def _embed(
    workspace: Workspace, encoder: Encoder, split: str, contents: list[str], progress: Progress | None
) -> None:
    """Embed the images that have no vector yet; a commit is made only if some of them cannot be read."""
    if not all(embedded(workspace.snapshot(), encoder.image_fp, contents)):
        with workspace.transaction("embed for a baseline") as tx:
            embed_images(tx, encoder.eval(), split, progress=progress)


def _age(row: BaselineRow, snapshot: Snapshot, name: str) -> str:
    """Return a note if the row was fitted with a tower that is no longer the commit's, else an empty string."""
    now = snapshot.commit.info.baseline_fc if row.tower == "fc" else snapshot.commit.checkpoint
    return "" if now == row.checkpoint else f"made with an earlier tower: vlltr train baseline {name}"


@dataclass(frozen=True, eq=False)
class _Tower:
    """A visual tower, and the classes of a baseline over its features.

    Attributes:
        encoder: The encoder that it is part of.
        whose: The fc baseline's, or the workspace's own.
        checkpoint: Of the encoder; None where it is the recipe's pretrained start.
        class_ids: Int64 [C].
        classifier: Weight [C, D] and bias [C] that the fc baseline has for these classes.
    """

    encoder: Encoder
    whose: Tower
    checkpoint: str | None
    class_ids: Tensor
    classifier: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class _Making:
    """The making of baselines: what it reads, and the vectors that are embedded for it.

    Attributes:
        workspace: Where vectors are.
        snapshot: The commit.
        config: What the baselines may choose from.
        progress: Called while vectors are made.
        known: The images that were read, by split and the encoder's fingerprint.
    """

    workspace: Workspace
    snapshot: Snapshot
    config: BaselinesConfig
    progress: Progress | None
    known: dict[tuple[str, str], ImageSet] = field(default_factory=dict)

    def row(self, kind: type[Baseline], without: frozenset[str] = frozenset()) -> BaselineRow:
        """Fit a baseline without the images of some ids."""
        sentences = None if kind.sentences is None else sentences_of(self.snapshot)
        tower = self.tower(kind, sentences, without)
        data = self.data(tower, without)
        note = ""
        if sentences is not None:
            if kind.sentences == "prompts":
                sentences, note = _prompts(sentences)
            data = replace(data, texts=self.texts(tower.encoder, sentences))
        fitted = kind.fit(data, self.config, self.progress)
        return BaselineRow(
            label=kind.name,
            baseline=fitted.to(torch.device("cpu")),
            tower=tower.whose,
            checkpoint=tower.checkpoint,
            image_fp=tower.encoder.image_fp,
            class_ids=tower.class_ids,
            note=note,
        )

    def tower(self, kind: type[Baseline], sentences: Sentences | None, without: frozenset[str]) -> _Tower:
        """Open the tower whose features a baseline takes; its classes have training images, or the `sentences`."""
        commit = self.snapshot.commit
        if "fc" in kind.towers and (commit.info.baseline_fc or "own" not in kind.towers):
            folder = fc_checkpoint(self.snapshot)
            visual = load_file(folder / "visual.safetensors")
            rows = torch.isin(visual["class_ids"], self.trained_classes(without))
            device = choose_device()
            return _Tower(
                encoder=saved_encoder(folder),
                whose="fc",
                checkpoint=commit.info.baseline_fc,
                class_ids=visual["class_ids"][rows],
                classifier=(visual["weight"][rows].to(device), visual["bias"][rows].to(device)),
            )
        class_ids = self.trained_classes(without) if sentences is None else sentences.class_ids
        return _Tower(self.own_encoder, "own", commit.checkpoint, class_ids)

    @cached_property
    def own_encoder(self) -> Encoder:
        """The commit's encoder."""
        return open_encoder(self.snapshot)

    def data(self, tower: _Tower, without: frozenset[str]) -> FitData:
        """Read splits train and val; without val, hold back some training images to choose settings on."""
        features, labels = self.split(tower.encoder, "train", tower.class_ids, without)
        fitted = torch.ones(len(labels), dtype=torch.bool)
        chosen_on = "val"
        try:
            seen, seen_labels = self.split(tower.encoder, "val", tower.class_ids)
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
            logit_scale=tower.encoder.logit_scale,
            classifier=tower.classifier,
            texts=None,
        )

    def texts(self, encoder: Encoder, sentences: Sentences) -> Texts:
        """Read the vectors of sentences; missing ones are embedded first."""
        try:
            found = _texts(self.snapshot, sentences, encoder.text_fp)
        except MissingStepError:
            with self.workspace.transaction("embed for a baseline") as tx:  # only the cache grows: no commit
                embed_sentences(tx, encoder, sentences.hashes, sentences.texts, progress=self.progress)
            found = _texts(self.snapshot, sentences, encoder.text_fp)
        return replace(found, vectors=found.vectors.to(choose_device()))

    def split(
        self, encoder: Encoder, split: str, class_ids: Tensor, without: frozenset[str] = frozenset()
    ) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and labels [N] of a split's images of `class_ids`, but for those of some ids; missing
        vectors are embedded first."""
        found = self.images(encoder, split)
        labels = class_positions(class_ids, found.class_ids)
        labels[torch.tensor([image_id in without for image_id in found.image_ids])] = -1
        device = choose_device()
        return found.features[labels >= 0].to(device), labels[labels >= 0].to(device)

    def images(self, encoder: Encoder, split: str) -> ImageSet:
        """Read the readable images of a split, once; missing vectors are embedded first.

        Images that have gone since and were never embedded are left out.
        """
        key = split, encoder.image_fp
        if key not in self.known:
            rows = usable_images(self.snapshot, split, [])
            ids = rows["image_id"].to_pylist()
            if not ids:
                raise MissingStepError(
                    f"there are no images in split {split!r}",
                    f"Run: vlltr ingest images PATH --split {split}",
                )
            contents = content_ids(self.snapshot, ids)
            _embed(self.workspace, encoder, split, contents=contents, progress=self.progress)
            newest = self.workspace.snapshot()
            there = embedded(newest, encoder.image_fp, contents)
            vectors = content_vectors(newest, list(compress(contents, there)), image_fp=encoder.image_fp)
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
        f"{bare:,} of {classes:,} classes have no prompt: the mean of all their sentences" if bare else "",
    )
