"""Steps that the training stages share: read the training split, run, commit, and store what was trained.

A run reads a snapshot, trains without the lock, and commits only if its training data is unchanged. Of
several processes the first prepares and commits; all of them train.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.embedding.loading import image_units, recipe_encoder, run_folder, usable_images
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.heads.units import shared_units
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.store.holdout import HeldOut, choose_held_out, write_held_out
from vlltr_index.store.storage import write_lock
from vlltr_index.tensors import class_positions
from vlltr_index.train.distributed import by_first, first_then_all, meet
from vlltr_index.train.loop import StageOne, TrainingConfig
from vlltr_index.wording import plural, preview

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_LOCK = "lock"

T = TypeVar("T")

Facts = Callable[["Snapshot"], Mapping[str, object]]
"""Reads what a run depends on, by a name for people; compared when the run commits."""


@dataclass(frozen=True)
class TrainReport:
    """Report of a training run."""

    what: str
    digest: str
    classes: int
    images: int
    epochs: int
    resumed: bool
    last: dict[str, Any]
    held_images: int = 0  # held-out images of the classes that it was trained on
    held_classes: int = 0
    notes: tuple[str, ...] = ()  # what was decided, in words
    units: int | None = None  # of the images, where it is known


@dataclass(frozen=True)
class StageOneData:
    """Images and texts of the classes that have training images; labels are positions in `class_ids`."""

    class_ids: Tensor  # int64 [C], ascending
    counts: Tensor  # int64 [C]
    image_ids: list[str]
    labels: Tensor  # int64 [N]
    sources: list[bytes | str]
    digests: list[str | None]  # of each image's file
    groups: list[str | None]  # of images that are held out together
    texts: list[list[str]]  # a class's sentences, in sentence_id order

    @property
    def owners(self) -> list[int]:
        """Class id of each image."""
        owners: list[int] = self.class_ids[self.labels].tolist()
        return owners


def stage_one_data(snapshot: Snapshot, with_texts: bool = True) -> StageOneData:
    """Read the training split from a snapshot.

    Raises:
        MissingStepError: If there are no training images, or a class with images has no sentence.
    """
    rows = usable_images(snapshot, "train", ["uri", "data", "content_hash", "group"])
    if not rows.num_rows:
        raise MissingStepError("there are no training images", "Run: vlltr ingest images PATH --split train")
    ids, owners, uris, data, digests, named = rows.to_pydict().values()
    class_ids, labels, counts = torch.unique(torch.tensor(owners), return_inverse=True, return_counts=True)
    units = shared_units(image_units(snapshot, ids, torch.tensor(owners), features=None))
    sources = [uri if stored is None else stored for uri, stored in zip(uris, data, strict=True)]
    texts = class_texts(snapshot, class_ids.tolist()) if with_texts else {}
    bare = [i for i, told in texts.items() if not told]
    check_told(snapshot, bare, "sentence", "Bring text for them: vlltr ingest text PATH")
    return StageOneData(
        class_ids=class_ids,
        counts=counts,
        image_ids=ids,
        labels=labels,
        sources=sources,
        digests=digests,
        groups=[group or unit for group, unit in zip(named, units, strict=True)],
        texts=list(texts.values()),
    )


def hold_out(data: StageOneData, most: int, classes: frozenset[int] = frozenset()) -> HeldOut:
    """Choose the images and classes to hold out: `classes` whole, and at most `most` images of the others."""
    owners = data.owners
    seen = [n for n, owner in enumerate(owners) if owner not in classes]
    ids = _at(data.image_ids, seen)
    groups = _at(data.groups, seen)
    digests = _at(data.digests, seen)
    chosen = choose_held_out(ids, _at(owners, seen), groups, content_hashes=digests, most=most)
    return HeldOut.of((ids[n] for n in chosen), classes)


def without(data: StageOneData, held: HeldOut, texts: list[list[str]]) -> StageOneData:
    """Return the training set without the images and classes held out; `texts` are the sentences of its classes."""
    pairs = zip(data.image_ids, data.owners, strict=True)
    kept = [n for n, (image, i) in enumerate(pairs) if not held.has(image) and i not in held.classes]
    owners = data.class_ids[data.labels[kept]]
    class_ids, labels, counts = torch.unique(owners, return_inverse=True, return_counts=True)
    return StageOneData(
        class_ids=class_ids,
        counts=counts,
        image_ids=_at(data.image_ids, kept),
        labels=labels,
        sources=_at(data.sources, kept),
        digests=_at(data.digests, kept),
        groups=_at(data.groups, kept),
        texts=texts,
    )


def _at(column: Sequence[T], places: Sequence[int]) -> list[T]:
    return [column[place] for place in places]


def class_texts(snapshot: Snapshot, class_ids: list[int]) -> dict[int, list[str]]:
    """Return the sentences of each class, in sentence_id order."""
    rows = snapshot.table("sentences", columns=["sentence_id", "class_id", "text"]).sort_by("sentence_id")
    by_class: dict[int, list[str]] = {i: [] for i in class_ids}
    for class_id, text in zip(rows["class_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        if class_id in by_class:
            by_class[class_id].append(text)
    return by_class


def check_told(snapshot: Snapshot, bare: Sequence[int], what: str, mend: str) -> None:
    """Check that no class with training images lacks `what`; `bare` are the ids of those that do.

    Raises:
        MissingStepError: If one is; `mend` says what to do.
    """
    if bare:
        names = snapshot.class_table().names
        have = plural(len(bare), "class with training images has", "classes with training images have")
        raise MissingStepError(f"{have} no {what}: {preview((names[i] for i in bare), 5)}", mend)


def image_facts(snapshot: Snapshot) -> dict[str, object]:
    """Return the training images and their classes; see `Facts`."""
    return {"the training images": usable_images(snapshot, "train", []).to_pydict()}


def vector_facts(snapshot: Snapshot) -> dict[str, object]:
    """Return the training images and their classes, and the encoder that made their vectors; see `Facts`."""
    commit = snapshot.commit
    return {**image_facts(snapshot), "the encoder": [commit.checkpoint, commit.text_fp, commit.image_fp]}


@dataclass(frozen=True)
class TrainingRun:
    """One training run with its folder.

    Attributes:
        workspace: The workspace that it trains on.
        command: The command's text for the commit.
        snapshot: The snapshot that the run reads.
        folder: The folder that keeps its state until the commit.
        resume: Whether the state of an interrupted run is kept.
        resumed: Whether there was one.
        facts: Reads what must not change until the run commits.
    """

    workspace: Workspace
    command: str
    snapshot: Snapshot
    folder: Path
    resume: bool
    resumed: bool
    facts: Facts

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Open the transaction that commits what was trained; only the first process may, see `by_first`.

        Raises:
            WorkspaceError: If the training data has changed since; nothing is committed then, and the run's folder
                stays.
        """
        with self.workspace.transaction(self.command) as tx:
            if tx.commit.id != self.snapshot.commit.id:
                self._refuse_changes(self.facts(tx))
            yield tx
        # after the commit, so that a killed run can resume
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse_changes(self, now: Mapping[str, object]) -> None:
        changes = [name for name, value in self.facts(self.snapshot).items() if now[name] != value]
        if not changes:
            return
        hint = "Run the same command again to train on what is there now."
        if self.resume:
            hint += (
                f" What was trained is kept in {self.folder}: once the change is undone, the same command goes on from"
                " there."
            )
        raise WorkspaceError(
            f"{self.command}: what it was trained on changed meanwhile: {', '.join(changes)}. Nothing was committed",
            hint,
        )


def newest_snapshot(workspace: Workspace) -> Snapshot:
    """Open the newest commit, the same one in all processes of a training run.

    Raises:
        WorkspaceError: If the workspace cannot be written.
    """
    meet()
    first_then_all(run_folder)(workspace)
    return workspace.snapshot(_newest(workspace) or None)


@by_first
def _newest(workspace: Workspace) -> int:
    return workspace.history.last().id


@contextmanager
def training_run(
    workspace: Workspace, command: str, snapshot: Snapshot, key: str, facts: Facts, resume: bool
) -> Iterator[TrainingRun]:
    """Lock a run against a second process; the workspace itself stays open to writers.

    Args:
        workspace: What it trains on.
        command: The command's name, for the commit and for the message to processes that wait for the lock.
        snapshot: What the run reads, see `newest_snapshot`.
        key: The name of the run's folder, which depends on all that the run depends on.
        facts: Reads what must not change until the run commits.
        resume: Whether the state of an interrupted run is kept.

    Raises:
        LockedError: If another process trains the same run.
        WorkspaceError: If the workspace cannot be written.
    """
    folder = first_then_all(run_folder)(workspace, key)
    with ExitStack() as held:
        resumed = by_first(held.enter_context)(_held_folder(folder, command, resume))
        yield TrainingRun(workspace, command, snapshot, folder, resume, resumed, facts)


@contextmanager
def _held_folder(folder: Path, command: str, resume: bool) -> Iterator[bool]:
    """Lock the folder of a run and yield whether an earlier state is there to resume; without `resume`, remove it.

    Raises:
        LockedError: If another process trains the same run.
    """
    with write_lock(folder / _LOCK, command, timeout=0):
        there = [path for path in folder.iterdir() if not path.name.startswith(_LOCK)]
        if not resume:
            for path in there:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        yield resume and bool(there)


def starting_encoder(recipe: Recipe, texts: list[list[str]] | None = None, seed: int = 0) -> Encoder:
    """Open the encoder that training starts from: the recipe's weights, or random ones."""
    from vlltr_index.encoders.encoder import Encoder

    config = recipe.encoder
    flat = [t for group in texts for t in group] if texts is not None else None
    if config.pretrained:
        encoder = recipe_encoder(config)
        encoder.learn_words(flat or (), seed)
        return encoder
    how: dict[str, Any] = config.model_dump(include={"image_size", "resize", "precision"})
    return Encoder.scratch(config.model, flat, seed=seed, **how)


def run_key(what: str, recipe: Recipe, section: TrainingConfig, data: StageOneData) -> str:
    """Return the name of a run's folder, from a digest of all that the run depends on."""
    facts = [
        what,
        recipe.encoder.model_dump(),
        section.model_dump(exclude={"micro_batch"}),  # it does not change the gradients
        data.image_ids,
        data.labels.tolist(),
        data.texts,
    ]
    return f"{what}-{short(digest_json(facts))}"


def keep_stage(
    workspace: Workspace,
    stage: StageOne,
    data: StageOneData,
    kind: str,
    config: TrainingConfig,
    held: HeldOut | None = None,
) -> str:
    """Store a stage's encoder, visual classifier, training record and held-out ids; return the checkpoint's digest."""
    facts = {"config": config.model_dump(mode="json"), "kind": kind}
    record = {**facts, "log": stage.log, "classes": len(data.class_ids), "images": len(data.labels)}
    with workspace.objects.put("checkpoints") as made:
        stage.encoder.save(made.folder)
        if stage.visual is not None:
            tensors = {name: value.float().cpu() for name, value in stage.visual.state_dict().items()}
            tensors |= {"class_ids": data.class_ids, "counts": data.counts}
            save_file({k: v.contiguous() for k, v in tensors.items()}, made.folder / "visual.safetensors")
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        (made.folder / "train.json").write_text(text, encoding="utf-8")
        if held is not None:
            write_held_out(held, made.folder)
    return made.digest


def load_visual(folder: Path, class_ids: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Load the visual classifier saved with a checkpoint: weight [C, D] and bias [C] in the order of `class_ids`, and
    which of them the checkpoint has a row for, bool [C].

    Other classes get the mean row. Returns None if there is no classifier, or it has a row for none of the classes.

    Raises:
        WorkspaceError: If the file is damaged.
    """
    path = folder / "visual.safetensors"
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        weights = tensors["weight"]
        biases = tensors["bias"]
        known = tensors["class_ids"]
    except (OSError, SafetensorError, KeyError) as error:
        raise WorkspaceError(
            f"the visual classifier {path} cannot be read: {error}",
            "Bring it back from a backup, or make it again: vlltr train cvlp",
        ) from None
    at = class_positions(known, class_ids)
    if bool((at < 0).all()):
        return None
    weight = weights[at]
    bias = biases[at]
    weight[at < 0] = weights.mean(0)
    bias[at < 0] = biases.mean()
    return weight, bias, at >= 0


def stage_report(
    run: TrainingRun, what: str, digest: str, data: StageOneData, stage: StageOne, epochs: int
) -> TrainReport:
    """Build the report of a stage that was trained on images."""
    return TrainReport(
        what=what,
        digest=digest,
        classes=len(data.class_ids),
        images=len(data.labels),
        epochs=epochs,
        resumed=run.resumed,
        last=stage.log[-1] if stage.log else {},
    )
