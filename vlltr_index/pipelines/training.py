"""What the training stages share: the training split as lists, where a run starts, how its result is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.embedding.loading import class_positions, recipe_encoder, usable_images
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.train.loop import StageOne
from vlltr_index.wording import many, some

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import Snapshot


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


def training_set(snapshot: Snapshot, with_texts: bool = True) -> TrainingSet:
    """Collect split `train`.

    Raises:
        MissingStepError: If there are no training images, or a class with images has no sentence.
    """
    rows = usable_images(snapshot, "train", ["uri", "data", "content_hash", "group"])
    if not rows.num_rows:
        raise MissingStepError("there are no training images", "Run: vlltr ingest images PATH --split train")
    owner = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
    class_ids, labels, counts = torch.unique(owner, return_inverse=True, return_counts=True)
    sources = [
        data if data is not None else uri
        for uri, data in zip(rows["uri"].to_pylist(), rows["data"].to_pylist(), strict=True)
    ]
    texts = class_texts(snapshot, class_ids.tolist()) if with_texts else {}
    bare = [i for i, told in texts.items() if not told]
    check_told(snapshot, bare, "sentence", "Bring text for them: vlltr ingest text PATH")
    digests, ids = rows["content_hash"].to_pylist(), rows["image_id"].to_pylist()
    groups = rows["group"].to_pylist()
    return TrainingSet(class_ids, counts, ids, labels, sources, digests, groups, list(texts.values()))


def part_of(data: TrainingSet, kept: Sequence[int], texts: list[list[str]]) -> TrainingSet:
    """Some of the images, at ascending positions, with the sentences of their classes."""
    owners = data.class_ids[data.labels[list(kept)]]
    class_ids, labels, counts = torch.unique(owners, return_inverse=True, return_counts=True)
    return TrainingSet(
        class_ids=class_ids,
        counts=counts,
        image_ids=[data.image_ids[n] for n in kept],
        labels=labels,
        sources=[data.sources[n] for n in kept],
        digests=[data.digests[n] for n in kept],
        groups=[data.groups[n] for n in kept],
        texts=texts,
    )


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
    facts = [
        what,
        recipe.encoder.model_dump(),
        section.model_dump(exclude={"micro_batch"}),  # the gradients are the same
        data.image_ids,
        data.labels.tolist(),
        data.texts,
    ]
    return f"{what}-{short(digest_json(facts))}"


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


def read_visual(folder: Path, command: str) -> dict[str, Tensor]:
    """The visual classifier saved with a checkpoint: weight float32 [C, D], bias [C], class_ids int64 [C], and more.

    Raises:
        WorkspaceError: If its file is missing or damaged; `command` makes it again.
    """
    path = folder / "visual.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        why = str(error)
    else:
        missing = [name for name in ("weight", "bias", "class_ids") if name not in tensors]
        if not missing:
            return tensors
        why = f"it has no {', '.join(missing)}"
    raise WorkspaceError(
        f"the visual classifier {path} cannot be read: {why}",
        f"Bring it back from a backup, or make it again: {command}",
    )


def load_visual(folder: Path, class_ids: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The visual classifier saved with a checkpoint, rows in the order of `class_ids`: weight [C, D], bias [C], and
    bool [C], the classes that the checkpoint knows.

    Another class gets the mean row. None where there is no classifier, or it knows none.

    Raises:
        WorkspaceError: If the file is damaged.
    """
    if not (folder / "visual.safetensors").is_file():
        return None
    tensors = read_visual(folder, "vlltr train cvlp")
    at = class_positions(tensors["class_ids"], class_ids)
    if bool((at < 0).all()):
        return None
    weight, bias = tensors["weight"][at], tensors["bias"][at]
    weight[at < 0], bias[at < 0] = tensors["weight"].mean(0), tensors["bias"].mean()
    return weight, bias, at >= 0


def stage_report(
    what: str, digest: str, data: TrainingSet, epochs: int, resumed: bool, stage: StageOne, **more: Any
) -> TrainReport:
    """The report of a stage; `more` are its other fields."""
    last = stage.log[-1] if stage.log else {}
    return TrainReport(what, digest, len(data.class_ids), len(data.labels), epochs, resumed, last, **more)
