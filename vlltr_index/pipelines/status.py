"""`vlltr status`: what a workspace holds, what is stale, and the next command. Loads no torch."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.holdout import held_images
from vlltr_index.store.tables import quote
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.schemas.config import SelectConfig
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Kind, Workspace

__all__ = ["StatusReport", "encoder_change", "status"]


@dataclass(frozen=True)
class StatusReport:
    """What a workspace holds.

    Attributes:
        workspace: Its folder.
        recipe: The recipe's name.
        commit: Number of the newest commit, and the command that made it; null before the first.
        command: That command.
        writing: Who is writing to it now.
        classes: Classes in use.
        images: Usable images by split: those with a class, and readable.
        quarantined: Images that cannot be read.
        sentences: Sentences of all classes.
        encoder: The model, and where its weights are from.
        sentence_vectors: Sentences that have a vector of the commit's fingerprint.
        image_vectors: Usable images that have one.
        anchors: Selected sentences.
        head: Digest of the head.
        index: Digest of the index.
        stale: What is missing or no longer fits, in words, in the order to mend it.
        next: The command to run next.
    """

    workspace: str
    recipe: str
    commit: int | None
    command: str | None
    writing: str | None
    classes: int
    images: dict[str, int]
    quarantined: int
    sentences: int
    encoder: str
    sentence_vectors: int
    image_vectors: int
    anchors: int
    head: str | None
    index: str | None
    stale: tuple[str, ...]
    next: str

    def lines(self) -> list[tuple[str, str]]:
        """The report as (label, value) pairs for people."""
        splits = ", ".join(f"{split} {n:,}" for split, n in self.images.items()) or "none"
        total = sum(self.images.values())
        lines = [
            ("workspace", self.workspace),
            ("recipe", self.recipe),
            ("last commit", f"{self.commit} ({self.command})" if self.commit else "none"),
            ("classes", f"{self.classes:,}"),
            ("images", splits + (f" ({self.quarantined:,} quarantined)" if self.quarantined else "")),
            ("sentences", f"{self.sentences:,}"),
            ("encoder", self.encoder),
            ("sentence vectors", f"{self.sentence_vectors:,} of {self.sentences:,}"),
            ("image vectors", f"{self.image_vectors:,} of {total:,}"),
            ("anchors", f"{self.anchors:,}"),
            ("head", short(self.head) if self.head else "none"),
            ("index", short(self.index) if self.index else "none"),
        ]
        if self.writing:
            lines.append(("now", f"{self.writing} is writing"))
        return [*lines, *(("to do", what) for what in self.stale), ("next", self.next)]


def status(workspace: Workspace, at: int | None = None) -> StatusReport:
    """Look at the newest commit, or number `at`, and the vectors beside it.

    Raises:
        WorkspaceError: If the commit's file is damaged.
    """
    snapshot = workspace.snapshot(at)
    commit = snapshot.commit
    images, quarantined = _images(snapshot)
    sentences = snapshot.count("sentences")
    text_vectors, image_vectors = _sentence_vectors(snapshot), _image_vectors(snapshot)
    todo = [
        *_data_steps(snapshot, images, sentences),
        *_encoder_steps(workspace, snapshot, images.get("train", 0)),
        *_vector_steps(snapshot, sentences - text_vectors, sum(images.values()) - image_vectors),
        *_selection_steps(workspace, snapshot),
        *_head_steps(workspace, snapshot),
        *_index_steps(workspace, snapshot),
    ]
    return StatusReport(
        workspace=workspace.address,
        recipe=workspace.recipe.name,
        commit=commit.id or None,
        command=commit.command or None,
        writing=workspace.storage.writer(),
        classes=len(snapshot.class_table()),
        images=images,
        quarantined=quarantined,
        sentences=sentences,
        encoder=_encoder(workspace, snapshot),
        sentence_vectors=text_vectors,
        image_vectors=image_vectors,
        anchors=snapshot.count("anchors"),
        head=commit.head,
        index=commit.index.digest if commit.index else None,
        stale=tuple(what for what, _ in todo),
        next=todo[0][1] if todo else _use(images),
    )


def _images(snapshot: Snapshot) -> tuple[dict[str, int], int]:
    """Usable images by split, and how many are quarantined."""
    rows = snapshot.table("images", ["split", "class_id", "problem"])
    usable = pc.and_(pc.is_valid(rows["class_id"]), pc.is_null(rows["problem"]))
    counts = Counter(rows.filter(usable)["split"].to_pylist())
    first = {"train": 0, "val": 1, "test": 2}
    order = sorted(counts, key=lambda split: (first.get(split, 3), split))
    return {split: counts[split] for split in order}, rows.num_rows - rows["problem"].null_count


def _sentence_vectors(snapshot: Snapshot) -> int:
    if not snapshot.commit.text_fp:
        return 0
    have = snapshot.store.keys(sentence_vectors_name(snapshot.commit.text_fp), "text_hash")
    return sum(h in have for h in snapshot.table("sentences", ["text_hash"])["text_hash"].to_pylist())


def _image_vectors(snapshot: Snapshot) -> int:
    if not snapshot.commit.image_fp:
        return 0
    have = snapshot.store.keys(image_vectors_name(snapshot.commit.image_fp), "vector_key")
    rows = snapshot.table("images", ["image_id"], "class_id IS NOT NULL AND problem IS NULL")
    return sum(f"{i}:0" in have for i in rows["image_id"].to_pylist())


def _encoder(workspace: Workspace, snapshot: Snapshot) -> str:
    config = workspace.recipe.encoder
    if snapshot.commit.checkpoint:
        model = (_trained(workspace, snapshot.commit.checkpoint) or (config.model,))[0]
        return f"{model}, trained here ({short(snapshot.commit.checkpoint)})"
    return f"{config.model}, {config.pretrained}" if config.pretrained else f"{config.model}, not trained yet"


_BESIDE = 0.25  # of all anchors: so many that an index over them would be quicker than looking at each
_Step = tuple[str, str]  # what is to do, and the command that does it


def _data_steps(snapshot: Snapshot, images: dict[str, int], sentences: int) -> list[_Step]:
    steps: list[_Step] = []
    if not images.get("train"):
        steps.append(("there are no training images", "vlltr ingest images PATH --split train"))
    if not sentences:
        steps.append(("there is no text", "vlltr ingest text PATH"))
    else:
        described = set(snapshot.table("sentences", ["class_id"])["class_id"].to_pylist())
        bare = len(set(snapshot.class_table().ids) - described)
        if bare:
            steps.append((f"{many(bare, 'class has', 'classes have')} no text", "vlltr ingest text PATH"))
    return steps


def _encoder_steps(workspace: Workspace, snapshot: Snapshot, train_images: int) -> list[_Step]:
    commit = snapshot.commit
    command = "vlltr train cvlp"
    if not commit.checkpoint:
        return [] if workspace.recipe.encoder.pretrained else [("the encoder has not been trained", command)]
    if _gone(workspace, "checkpoints", commit.checkpoint):
        return [(f"the encoder's files are gone: {short(commit.checkpoint)}", command)]
    change = encoder_change(workspace, commit.checkpoint)
    return [(change, command)] if change else []


def encoder_change(workspace: Workspace, checkpoint: str) -> str | None:
    """How the encoder that `vlltr.toml` names differs from the one of a checkpoint, in words; None if it does not."""
    asked, trained = workspace.recipe.encoder, _trained(workspace, checkpoint)
    if (
        trained is None or "/" in asked.model or ":" in asked.model
    ):  # a folder or a hub's name is not the model's
        return None
    model, size, resize = trained
    if (
        _bare(model) == _bare(asked.model)
        and asked.image_size in (None, size)
        and asked.resize in (None, resize)
    ):
        return None
    wanted = _described(asked.model, asked.image_size, asked.resize)
    return f"the recipe's encoder is {wanted}, the trained one {_described(*trained)}"


def _described(model: str, size: int | None, resize: int | None) -> str:
    """An encoder in words, such as `RN50 at 224 px out of 256 px`."""
    return model + (f" at {size} px" if size else "") + (f" out of {resize} px" if resize else "")


def _trained(workspace: Workspace, digest: str) -> tuple[str, int, int | None] | None:
    """The open_clip model that a checkpoint says it is, its image size, and what images are resized to before."""
    try:
        facts = json.loads(workspace.object_file("checkpoints", digest, "encoder.json"))
        config, resize = facts["config"], dict(facts["config"]["preprocess_cfg"]).get("resize")
        return str(facts["name"]), int(config["model_cfg"]["vision_cfg"]["image_size"]), resize
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, WorkspaceError):
        return None


def _bare(model: str) -> str:
    """A model's name without its activation, which weights decide."""
    return model.removesuffix("-quickgelu")


def _vector_steps(snapshot: Snapshot, sentences: int, images: int) -> list[_Step]:
    commit = snapshot.commit
    if not (snapshot.has("sentences") or snapshot.has("images")):
        return []
    if not commit.text_fp or not commit.image_fp:
        return [("nothing has been embedded with this encoder", "vlltr embed")]
    missing = [many(n, one) for n, one in ((sentences, "sentence"), (images, "image")) if n]
    return [(f"without a vector: {' and '.join(missing)}", "vlltr embed")] if missing else []


def _selection_steps(workspace: Workspace, snapshot: Snapshot) -> list[_Step]:
    commit = snapshot.commit
    if not commit.text_fp:
        return []
    if not commit.selection_id:
        return [("no anchor sentences have been selected", "vlltr select")]
    fits = f"text_fp = {quote(commit.text_fp)}"
    scored = snapshot.table("sentence_scores", ["sentence_id", "image_set"], fits)
    texts = snapshot.table("sentences", ["sentence_id", "class_id"])
    used = pc.is_in(texts["class_id"], value_set=pa.array(snapshot.class_table().ids, pa.int32()))
    there = texts.filter(used)["sentence_id"].to_pylist()
    changed = len(set(there) ^ set(scored["sentence_id"].to_pylist()))
    if changed:
        return [(f"the selection is from before {many(changed, 'sentence')} came or went", "vlltr select")]
    config = workspace.recipe.select
    if config.augmented:  # their name depends on the augmentation too
        return []
    held = frozenset[str]()
    with suppress(MissingStepError):  # a checkpoint that is gone is told of elsewhere
        held = held_images(workspace, snapshot)
    if set(scored["image_set"].to_pylist()) - {_image_set(snapshot, config, held)}:
        return [("the selection is from before images that it scores against came or went", "vlltr select")]
    return []


def _image_set(snapshot: Snapshot, config: SelectConfig, held: frozenset[str]) -> str:
    """What a selection made now would name its images by: those of each class with the smallest content hashes."""
    where = f"split = {quote(config.split)} AND class_id IS NOT NULL AND problem IS NULL"
    rows = snapshot.table("images", ["class_id", "content_hash", "image_id"], where)
    order = [(column, "ascending") for column in ("class_id", "content_hash", "image_id")]
    kept: list[str] = []
    counts: Counter[int] = Counter()
    ordered = rows.sort_by(order)
    for owner, image in zip(ordered["class_id"].to_pylist(), ordered["image_id"].to_pylist(), strict=True):
        if image in held:
            continue
        counts[owner] += 1
        if counts[owner] <= config.images_per_class:
            kept.append(image)
    return short(digest_json(kept))


def _head_steps(workspace: Workspace, snapshot: Snapshot) -> list[_Step]:
    commit, command = snapshot.commit, "vlltr train lgr"
    if not commit.selection_id:
        return []
    if not commit.head:
        return [("the head has not been trained", command)]
    if _gone(workspace, "heads", commit.head):
        return [(f"the head's files are gone: {short(commit.head)}", command)]
    try:
        facts = json.loads(workspace.object_file("heads", commit.head, "head.json"))
        fits = (facts["text_fp"], facts["image_fp"]) == (commit.text_fp, commit.image_fp)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [(f"the head's files are damaged: {short(commit.head)}", command)]
    return [] if fits else [("the head was trained on another encoder's vectors", command)]


def _index_steps(workspace: Workspace, snapshot: Snapshot) -> list[_Step]:
    commit, command = snapshot.commit, "vlltr index"
    if not commit.selection_id:
        return []
    if not commit.index:
        return [("there is no index over the anchors", command)] if snapshot.count("anchors") else []
    digest = commit.index.digest
    if _gone(workspace, "index", digest):
        return [(f"the index's files are gone: {short(digest)}", command)]
    if commit.index.text_fp != commit.text_fp:
        return [("the index is over another encoder's vectors", command)]
    beside = _anchors_since(workspace, snapshot, digest)
    if beside > _BESIDE * snapshot.count("anchors"):
        said = (
            f"{many(beside, 'anchor')} came or went since the index was built; those are searched beside it"
        )
        return [(said, command)]
    return []


def _anchors_since(workspace: Workspace, snapshot: Snapshot, digest: str) -> int:
    """How many anchors came or went since the index was built."""
    commit = snapshot.commit
    built = commit
    for commit_id in reversed(workspace.history.ids()):
        earlier = workspace.history.read(commit_id)
        if earlier.index is None or earlier.index.digest != digest:
            break
        built = earlier
    if built.tables.get("anchors") == commit.tables.get("anchors"):
        return 0
    try:
        then = workspace.snapshot(built.id).table("anchors", ["anchor_key"])["anchor_key"]
    except WorkspaceError:  # cleaned away
        return snapshot.count("anchors")
    now = snapshot.table("anchors", ["anchor_key"])["anchor_key"]
    return len(set(then.to_pylist()) ^ set(now.to_pylist()))


def _gone(workspace: Workspace, kind: Kind, digest: str) -> bool:
    try:
        workspace.check_object(kind, digest)
    except WorkspaceError:
        return True
    return False


def _use(images: dict[str, int]) -> str:
    return "vlltr evaluate --split test" if images.get("test") else "vlltr predict IMAGE --explain 3"
