"""Import checkpoints of the VL-LTR release as a workspace's encoder and head (`vlltr import release`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlltr_index.anchors.selection import write_anchors
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.embedding.loading import open_encoder, saved_encoder
from vlltr_index.embedding.vectors import vector_table
from vlltr_index.encoders import release_weights
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.heads.checkpoint import SavedHead, save_head
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.schemas.tables import sentence_vectors, sentence_vectors_name
from vlltr_index.store.ingestion import known_names, note_aliases, resolve_classes, sentence_rows
from vlltr_index.store.tables import one_of, quote
from vlltr_index.tensors import weights_digest

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_SOURCE = "anchors of the release"


@dataclass(frozen=True)
class ImportReport:
    """Report of an import."""

    stage: int
    source: str
    encoder: str
    dim: int
    image_size: int
    checkpoint: str
    epoch: int | None = None
    classes: int = 0  # rows of the head
    classes_added: int = 0
    head: str | None = None
    alpha: float | None = None
    anchors: int = 0  # vectors of the checkpoint that became anchors
    notes: list[str] = field(default_factory=list)
    next_step: str = "vlltr embed"


def import_release(
    workspace: Workspace,
    path: Path,
    *,
    label_names: Path | None = None,
    anchors: bool = False,
) -> ImportReport:
    """Import a checkpoint of the release as the workspace's encoder (stage 1), or its image tower and head (stage 2).

    Nothing in the file is executed. The release keeps the text of its sentences in separate pickled files, which are
    not read: embed and select choose the anchors anew. With `anchors`, the checkpoint's own vectors become the
    anchors: predictions are then the release's, without sentences to show.

    Args:
        workspace: The workspace to write to.
        path: A checkpoint file of the release's training program.
        label_names: A file of the names of the head's classes in the order of the benchmark's labels; stage 2.
        anchors: Whether the vectors of the checkpoint become the anchors; stage 2.

    Raises:
        EncoderError: If the file is refused, damaged or of another kind, or does not fit the workspace's encoder.
        UsageError: If the recipe names another encoder, or an option is missing or does not apply to the stage.
        InputError: If there are more or fewer names than classes.
        MissingStepError: If stage 2 comes before the workspace has an encoder.
    """
    checkpoint = release_weights.read_release(path)
    if checkpoint.stage == 1:
        if anchors or label_names is not None:
            raise UsageError(
                f"{path} is a checkpoint of stage 1: it has no classes and no anchors",
                f"Leave the options out: vlltr import release {path}",
            )
        return _stage_one(workspace, checkpoint)
    if label_names is None:
        raise UsageError(
            f"which classes are the rows of the head in {path}?",
            f"Name the benchmark's class names: vlltr import release {path} --names labels.txt",
        )
    return _stage_two(workspace, checkpoint, read_class_names(label_names), anchors)


def _stage_one(workspace: Workspace, checkpoint: release_weights.ReleaseCheckpoint) -> ImportReport:
    encoder = release_weights.stage_one_encoder(checkpoint, workspace.recipe.encoder.precision)
    name = encoder.name
    asked = workspace.recipe.encoder.model  # a later training run starts from it
    if " " not in name and asked.removesuffix("-quickgelu") != name.removesuffix("-quickgelu"):
        raise UsageError(
            f"{checkpoint.path} holds a {name}, the workspace's recipe names {asked}",
            f"Make a workspace for it: vlltr init DIR --encoder {name}:openai",
        )
    with workspace.transaction(f"import release {checkpoint.path}") as tx:
        digest = _keep_encoder(workspace, checkpoint, encoder)
        if tx.commit.checkpoint != digest:
            tx.set(checkpoint=digest, text_fp=None, image_fp=None)
            tx.set(head=None, index=None, selection_id=None, fusion=None)
            tx.note(cvlp=None, encoder=None)
        text = tx.count("sentences")
    return _report(checkpoint, encoder, digest, next_step="vlltr embed" if text else "vlltr ingest text PATH")


def _report(
    checkpoint: release_weights.ReleaseCheckpoint, encoder: Encoder, digest: str, **more: Any
) -> ImportReport:
    return ImportReport(
        stage=checkpoint.stage,
        source=str(checkpoint.path),
        encoder=encoder.name,
        dim=encoder.dim,
        image_size=encoder.image_size[0],
        checkpoint=digest,
        epoch=checkpoint.epoch,
        **more,
    )


def _keep_encoder(
    workspace: Workspace, checkpoint: release_weights.ReleaseCheckpoint, encoder: Encoder
) -> str:
    facts = {
        "kind": f"release stage {checkpoint.stage}",
        "file": checkpoint.path.name,
        "epoch": checkpoint.epoch,
        "config": checkpoint.args,
    }
    with workspace.objects.put("checkpoints") as made:
        encoder.save(made.folder)
        text = json.dumps(facts, indent=2, sort_keys=True)
        (made.folder / "train.json").write_text(text + "\n", encoding="utf-8")
    return made.digest


def _stage_two(
    workspace: Workspace, checkpoint: release_weights.ReleaseCheckpoint, names: ClassNames, anchors: bool
) -> ImportReport:
    head = release_weights.release_head(checkpoint)
    if head.num_visual_classes != len(names):
        raise InputError(
            f"the head in {checkpoint.path} has {head.num_visual_classes:,} classes, {names.where} names "
            f"{len(names):,}",
            "Give the names of the benchmark it was trained on: --names FILE",
        )
    vectors = release_weights.anchor_vectors(checkpoint) if anchors else []
    with workspace.transaction(f"import release {checkpoint.path}") as tx:
        base, start, notes = _base(tx)
        encoder = release_weights.stage_two_encoder(checkpoint, base)
        before = len(tx.class_table())
        used = known_names(tx, names)
        classes = resolve_classes(tx, used.names, used.names, {})
        note_aliases(tx, names, used, classes)
        ids = torch.tensor([classes[name] for name in used.names], dtype=torch.int64)
        digest = _keep_encoder(workspace, checkpoint, encoder)
        order = ids.argsort()
        saved = SavedHead(
            release_weights.release_head(checkpoint, order), ids[order], encoder.text_fp, encoder.image_fp
        )
        with workspace.objects.put("heads") as made:
            save_head(saved, made.folder)
        alpha = release_weights.fusion_alpha(checkpoint)
        own = workspace.recipe.fusion
        rule = "paper" if own.rule == "ours" else own.rule
        fusion = FusionConfig(rule=rule, alpha=own.alpha if alpha is None else alpha)
        tx.set(checkpoint=digest, head=made.digest, fusion=fusion, image_fp=encoder.image_fp)
        tx.note(folds=None, offsets={})
        if tx.commit.text_fp != encoder.text_fp:  # otherwise anchors and index stay valid
            tx.set(text_fp=None, image_fp=None, selection_id=None, index=None)
        tx.note(tuned={"checkpoint": digest, "start": start}, lgr=None, recipe=None, protocol=None)
        if anchors:
            _keep_anchors(tx, encoder, vectors, ids=ids, names=names)
        added = len(tx.class_table()) - before
    after = "vlltr index" if anchors else "vlltr select and vlltr index"
    return _report(
        checkpoint,
        encoder,
        digest,
        classes=len(names),
        classes_added=added,
        head=made.digest,
        alpha=fusion.alpha,
        anchors=sum(map(len, vectors)),
        notes=notes,
        next_step=f"vlltr embed, then {after}",
    )


def _base(tx: Transaction) -> tuple[Encoder, str | None, list[str]]:
    """The encoder that gives the text tower, its checkpoint, and what is to be said about it."""
    start = tx.commit.untuned
    if not start and not tx.recipe.encoder.pretrained:
        raise MissingStepError(
            "a checkpoint of stage 2 has no text tower, and the workspace has no encoder to take one from",
            "Import the checkpoint of stage 1 first: vlltr import release CHECKPOINT",
        )
    if start:
        return saved_encoder(tx.objects.path("checkpoints", start)), start, []
    config = tx.recipe.encoder
    note = (
        f"the text tower is that of {config.model}:{config.pretrained}: the release trained its own in stage 1; "
        "where you have that checkpoint, import it first"
    )
    return open_encoder(tx, check=False), None, [note]


def _keep_anchors(
    tx: Transaction, encoder: Encoder, vectors: list[Tensor], ids: Tensor, names: ClassNames
) -> None:
    """Store the checkpoint's vectors as anchors, each with a placeholder sentence, since its own is not known."""
    if len(vectors) != len(ids):
        raise InputError(
            f"the checkpoint has {len(ids):,} classes in its head and {len(vectors):,} among its anchors",
            "Leave its anchors out; vlltr embed and vlltr select choose new ones.",
        )
    flat = torch.cat(vectors)
    mark = weights_digest({"anchors": flat})[:8]  # in each placeholder, so that no two files share one
    owned: dict[int, list[SentenceRecord]] = {}
    for class_id, name, rows in zip(ids.tolist(), names.names, vectors, strict=True):
        what = f"of {name} in the release's file {mark}, words unknown"
        texts = [f"(anchor {n + 1} {what})" for n in range(len(rows))]
        owned[class_id] = [SentenceRecord(name, text, _SOURCE) for text in texts]
    sentences = sentence_rows(owned)
    wanted: list[str] = sentences["sentence_id"].to_pylist()
    before = tx.table("sentences", ["sentence_id"], f"source = {quote(_SOURCE)}")["sentence_id"].to_pylist()
    tx.delete("sentences", one_of("sentence_id", set(before) - set(wanted)))
    tx.upsert("sentences", sentences)
    hashes: list[str] = sentences["text_hash"].to_pylist()
    table = sentence_vectors_name(encoder.text_fp)
    tx.store.create(table, sentence_vectors(encoder.dim), "text_hash")
    have = tx.store.keys(table, "text_hash")
    if new := [n for n, key in enumerate(hashes) if key not in have]:
        tx.store.append(table, vector_table({"text_hash": [hashes[n] for n in new]}, flat[new]))
    selection_id = short(digest_json(["release", encoder.text_fp, wanted]))
    ranks = torch.cat([torch.arange(len(rows)) for rows in vectors])
    owners = torch.tensor(sentences["class_id"].to_pylist())
    write_anchors(tx, selection_id, wanted, class_ids=owners, ranks=ranks)
    if tx.commit.selection_id != selection_id:
        tx.set(selection_id=selection_id, index=None)
    tx.set(text_fp=encoder.text_fp, image_fp=encoder.image_fp)
    tx.note(encoder=None, logit_scale=encoder.logit_scale, dim=encoder.dim, select=None)
