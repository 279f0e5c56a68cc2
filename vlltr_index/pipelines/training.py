"""What the training stages share: the training split, a run that commits at its end, where it starts, what it keeps.

A run reads a snapshot, trains without the lock, and commits only if what it was trained on is there still. Of
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

from vlltr_index.embedding.loading import class_positions, recipe_encoder, run_folder, usable_images
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.store.holdout import HeldOut, choose_held_out, write_held_out
from vlltr_index.store.storage import write_lock
from vlltr_index.train.distributed import by_first, first_then_all, meet, own_part
from vlltr_index.train.loop import StageOne
from vlltr_index.wording import many, some

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_LOCK = "lock"

T = TypeVar("T")

Facts = Callable[["Snapshot"], Mapping[str, object]]
"""What a run depends on, by a name for people; compared when it commits."""


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
    held_images: int = 0  # kept out, of the classes that it saw
    held_classes: int = 0
    notes: tuple[str, ...] = ()  # what was decided, for people

    def lines(self) -> list[str]:
        """The report for people."""
        epochs = f", {self.epochs} epochs" if self.epochs else ""
        lines = [
            f"Trained {self.what} on {many(self.images, 'image')} of {many(self.classes, 'class', 'classes')}"
            f"{epochs}{' (resumed)' if self.resumed else ''}: {self.digest[:16]}"
        ]
        if self.held_images or self.held_classes:
            classes = f" and {many(self.held_classes, 'class', 'classes')}" if self.held_classes else ""
            lines.append(
                f"Kept out, so that train lgr weighs its parts on what this stage never saw:"
                f" {many(self.held_images, 'image')}{classes} (cvlp.hold_out, cvlp.hold_out_classes)"
            )
        return [*lines, *self.notes]


@dataclass(frozen=True)
class TrainingSet:
    """The images and texts of the classes that have training images; labels are positions in `class_ids`."""

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
        """The class of each image."""
        owners: list[int] = self.class_ids[self.labels].tolist()
        return owners


def training_set(snapshot: Snapshot, with_texts: bool = True) -> TrainingSet:
    """Collect split `train`.

    Raises:
        MissingStepError: If there are no training images, or a class with images has no sentence.
    """
    rows = usable_images(snapshot, "train", ["uri", "data", "content_hash", "group"])
    if not rows.num_rows:
        raise MissingStepError("there are no training images", "Run: vlltr ingest images PATH --split train")
    ids, owners, uris, data, digests, groups = rows.to_pydict().values()
    class_ids, labels, counts = torch.unique(torch.tensor(owners), return_inverse=True, return_counts=True)
    sources = [uri if held is None else held for uri, held in zip(uris, data, strict=True)]
    texts = class_texts(snapshot, class_ids.tolist()) if with_texts else {}
    bare = [i for i, told in texts.items() if not told]
    check_told(snapshot, bare, "sentence", "Bring text for them: vlltr ingest text PATH")
    return TrainingSet(class_ids, counts, ids, labels, sources, digests, groups, list(texts.values()))


def hold_out(data: TrainingSet, most: int, classes: frozenset[int] = frozenset()) -> HeldOut:
    """What to keep out of the training split: some classes, and at most so many images of the others."""
    owners = data.owners
    seen = [n for n, owner in enumerate(owners) if owner not in classes]
    ids = _at(data.image_ids, seen)
    groups = _at(data.groups, seen)
    digests = _at(data.digests, seen)
    return HeldOut.of(
        (ids[n] for n in choose_held_out(ids, _at(owners, seen), groups, digests, most)), classes
    )


def without(data: TrainingSet, held: HeldOut, texts: list[list[str]]) -> TrainingSet:
    """The images that are not held out, with the sentences of their classes."""
    pairs = zip(data.image_ids, data.owners, strict=True)
    kept = [n for n, (image, i) in enumerate(pairs) if not held.has(image) and i not in held.classes]
    owners = data.class_ids[data.labels[kept]]
    class_ids, labels, counts = torch.unique(owners, return_inverse=True, return_counts=True)
    sources = _at(data.sources, kept)
    digests = _at(data.digests, kept)
    groups = _at(data.groups, kept)
    return TrainingSet(class_ids, counts, _at(data.image_ids, kept), labels, sources, digests, groups, texts)


def _at(column: Sequence[T], places: Sequence[int]) -> list[T]:
    return [column[place] for place in places]


def class_texts(snapshot: Snapshot, class_ids: list[int]) -> dict[int, list[str]]:
    """The sentences of each class, in sentence_id order."""
    rows = snapshot.table("sentences", columns=["sentence_id", "class_id", "text"]).sort_by("sentence_id")
    by_class: dict[int, list[str]] = {i: [] for i in class_ids}
    for class_id, text in zip(rows["class_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        if class_id in by_class:
            by_class[class_id].append(text)
    return by_class


def check_told(snapshot: Snapshot, bare: Sequence[int], what: str, mend: str) -> None:
    """See that no class with training images is `bare` of `what`.

    Raises:
        MissingStepError: If one is; `mend` says what to do.
    """
    if bare:
        names = snapshot.class_table().names
        have = many(len(bare), "class with training images has", "classes with training images have")
        raise MissingStepError(f"{have} no {what}: {some((names[i] for i in bare), 5)}", mend)


def image_facts(snapshot: Snapshot) -> dict[str, object]:
    """The training images and their classes; see `Facts`."""
    return {"the training images": usable_images(snapshot, "train", []).to_pydict()}


@dataclass
class TrainingRun:
    """A run in its folder.

    Attributes:
        workspace: What it trains on.
        command: What the commit will say was run.
        snapshot: What the run reads.
        data: Its training split.
        folder: Where its state is kept until the commit.
        resumed: Whether there was a state from before.
        facts: What must not change until it commits.
    """

    workspace: Workspace
    command: str
    snapshot: Snapshot
    data: TrainingSet
    folder: Path
    resumed: bool
    facts: Facts

    def commit(self, write: Callable[[Transaction], T]) -> T:
        """Let the first process `write` the result, in one transaction; all get what `write` gives.

        Raises:
            WorkspaceError: If what the run was trained on has changed since; nothing is committed then, and the run's
                folder stays.
        """

        def first() -> T:
            with self.workspace.transaction(self.command) as tx:
                if tx.commit.id != self.snapshot.commit.id:
                    kept = (
                        f" The finished run is kept in {self.folder}: once the change is undone, the same command"
                        " commits it without training."
                    )
                    refuse_changes(self.command, self.facts(self.snapshot), self.facts(tx), kept)
                result = write(tx)
            shutil.rmtree(self.folder, ignore_errors=True)  # only now that the commit is there
            return result

        return by_first(first)


@contextmanager
def training_run(
    workspace: Workspace,
    command: str,
    batch_size: int,
    resume: bool,
    key: Callable[[Snapshot, TrainingSet], str],
    facts: Facts,
    with_texts: bool = False,
) -> Iterator[TrainingRun]:
    """Prepare a run, and keep others from the same one while it trains; the workspace itself stays open to writers.

    Args:
        workspace: What it trains on.
        command: For the commit, and for others who wait.
        batch_size: The global batch.
        resume: Whether the state of an interrupted run is kept.
        key: Names the run's folder after all it depends on.
        facts: What must not change until it commits.
        with_texts: Whether it trains on the sentences too.

    Raises:
        MissingStepError: As `training_set`.
        ConfigError: If the batch cannot be shared out among the processes.
        LockedError: If another process trains the same run.
        WorkspaceError: If the workspace cannot be written.
    """
    meet()
    first_then_all(lambda: run_folder(workspace))
    snapshot = workspace.snapshot(by_first(lambda: workspace.history.last().id) or None)

    def read() -> tuple[TrainingSet, Path]:
        data = training_set(snapshot, with_texts)
        own_part(batch_size)
        return data, run_folder(workspace, key(snapshot, data))

    data, folder = first_then_all(read)
    with ExitStack() as held:
        resumed = by_first(lambda: held.enter_context(held_folder(folder, command, resume)))
        yield TrainingRun(workspace, command, snapshot, data, folder, resumed, facts)


@contextmanager
def held_folder(folder: Path, command: str, resume: bool) -> Iterator[bool]:
    """Keep others from the run in `folder`; whether there is a state to go on from, which is removed without `resume`.

    Raises:
        LockedError: If another process trains the same run.
    """
    with write_lock(folder / _LOCK, command, timeout=0):
        there = [path for path in folder.iterdir() if not path.name.startswith(_LOCK)]
        for path in () if resume else there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield resume and bool(there)


def refuse_changes(
    command: str, before: Mapping[str, object], now: Mapping[str, object], kept: str = ""
) -> None:
    """Refuse to commit what was trained on something else than what is there now.

    Raises:
        WorkspaceError: If a fact is another now.
    """
    changes = [name for name, value in before.items() if now[name] != value]
    if changes:
        raise WorkspaceError(
            f"{command}: what it was trained on changed meanwhile: {', '.join(changes)}. Nothing was committed",
            f"Run the same command again to train on what is there now.{kept}",
        )


def starting_encoder(recipe: Recipe, texts: list[list[str]] | None = None, seed: int = 0) -> Encoder:
    """The recipe's weights, their word vocabulary (where they have one) grown by `texts`, or random ones."""
    config = recipe.encoder
    flat = [t for group in texts for t in group] if texts is not None else None
    if config.pretrained:
        encoder = recipe_encoder(config)
        encoder.learn_words(flat or (), seed)
        return encoder
    how: dict[str, Any] = config.model_dump(include={"image_size", "resize", "precision"})
    return Encoder.scratch(config.model, flat, seed=seed, **how)


def run_key(what: str, recipe: Recipe, section: Any, data: TrainingSet) -> str:
    """The name of a run's folder, after what it trains and on what."""
    facts = [
        what,
        recipe.encoder.model_dump(),
        section.model_dump(exclude={"micro_batch"}),  # the gradients are the same
        data.image_ids,
        data.labels.tolist(),
        data.texts,
    ]
    return f"{what}-{short(digest_json(facts))}"


def keep_stage(
    workspace: Workspace,
    stage: StageOne,
    data: TrainingSet,
    kind: str,
    config: Any,
    held: HeldOut | None = None,
) -> str:
    """Keep a stage's encoder, its visual classifier, what it was trained on and what not; the checkpoint's digest."""
    facts = {"config": config.model_dump(mode="json"), "kind": kind}
    record = {**facts, "log": stage.log, "classes": len(data.class_ids), "images": len(data.labels)}

    def build(folder: Path) -> None:
        stage.encoder.save(folder)
        if stage.visual is not None:
            tensors = {name: value.float().cpu() for name, value in stage.visual.state_dict().items()}
            tensors |= {"class_ids": data.class_ids, "counts": data.counts}
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "visual.safetensors")
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        (folder / "train.json").write_text(text, encoding="utf-8")
        if held is not None:
            write_held_out(held, folder)

    return workspace.objects.put("checkpoints", build)


def load_visual(folder: Path, class_ids: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The visual classifier saved with a checkpoint, rows in the order of `class_ids`: weight [C, D], bias [C], and
    bool [C], the classes that the checkpoint knows.

    Another class gets the mean row. None where there is no classifier, or it knows none.

    Raises:
        WorkspaceError: If the file is damaged.
    """
    path = folder / "visual.safetensors"
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        weights, biases, known = (tensors[name] for name in ("weight", "bias", "class_ids"))
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
    weight[at < 0], bias[at < 0] = weights.mean(0), biases.mean()
    return weight, bias, at >= 0


def stage_report(
    what: str, digest: str, data: TrainingSet, epochs: int, resumed: bool, stage: StageOne, **more: Any
) -> TrainReport:
    """The report of a stage; `more` are its other fields."""
    last = stage.log[-1] if stage.log else {}
    return TrainReport(what, digest, len(data.class_ids), len(data.labels), epochs, resumed, last, **more)
