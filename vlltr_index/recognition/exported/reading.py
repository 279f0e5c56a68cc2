"""Reading an exported folder, which may come from anybody: checked file by file before anything is built from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch.nn import functional as F

from vlltr_index.anchors.index import TorchIndex, load_index
from vlltr_index.embedding.loading import load_bank
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import InputError, MissingStepError, PretrainedError, VlltrError, WorkspaceError
from vlltr_index.heads.checkpoint import SavedHead, load_head
from vlltr_index.recognition.exported.checks import (
    AGAIN,
    check_encoder,
    check_head,
    check_links,
    read_config,
    read_rows,
    read_stats,
    verify,
)
from vlltr_index.recognition.predictor import Answers
from vlltr_index.recognition.scorer import Scorer
from vlltr_index.schemas.exported import ExportedConfig, anchors_schema, sentences_schema
from vlltr_index.schemas.tables import (
    ANCHORS,
    CLASSES,
    KEYS,
    SENTENCES,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store.history import Commit, Info
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.store.tables import Store

if TYPE_CHECKING:
    from vlltr_index.anchors.index import AnchorIndex
    from vlltr_index.embedding.loading import LoadedBank

__all__ = ["read_model"]

_log = logging.getLogger(__name__)


def read_model(folder: Path, device: str | torch.device | None = None, trust_index: bool = False) -> Answers:
    """What an exported folder answers: as the workspace did, at the commit that was exported.

    Digests, shapes, sizes and values are checked, and nothing in the folder is executed. The folder is not needed
    afterwards.

    Args:
        folder: Written by `export_model`, or a copy.
        device: Of the encoder; default: a GPU where there is one.
        trust_index: Whether FAISS may read the index file in the folder. FAISS was not made for files that somebody
            changed on purpose; without it the anchors are searched exactly.

    Raises:
        PretrainedError: Naming the file, what is wrong with it, and what to do.
    """
    folder = Path(folder)
    config = read_config(folder)
    files = verify(folder)
    try:
        check_encoder(folder / "encoder", config)
        saved = _head(folder, config)
        stats = read_stats(folder / "class_stats.safetensors", config, "class_stats.safetensors" in files)
        anchors = read_rows(folder / "anchors.parquet", anchors_schema(config.dim), config.anchors)
        sentences = read_rows(folder / "sentences.parquet", sentences_schema(), config.sentences)
        check_links(folder, config, anchors, sentences)
        snapshot = _snapshot(config, anchors, sentences)
        loaded = load_bank(snapshot)
        encoder = _encoder(folder / "encoder", config, device)
        snapshot.store.drop(f"sentence_vectors_{config.text_fp}")  # the bank has them
        scorer = Scorer.build(loaded, saved, stats, config.fusion, config.merged)
        index = _index(folder, config, loaded, trust_index and "index/index.json" in files)
        return Answers(None, snapshot, scorer, encoder, index)
    except PretrainedError:
        raise
    except (InputError, WorkspaceError) as error:
        raise PretrainedError(f"{folder} cannot be used: {error.message}", AGAIN) from None


def _encoder(path: Path, config: ExportedConfig, device: str | torch.device | None) -> Encoder:
    try:
        encoder = Encoder.open(path, device=device).eval()
    except VlltrError as error:
        raise PretrainedError(f"{path} cannot be used: {error.message}", AGAIN) from None
    for what, stated, found in (
        ("text", config.text_fp, encoder.text_fp),
        ("image", config.image_fp, encoder.image_fp),
    ):
        if stated != found:
            raise PretrainedError(
                f"the {what} tower in {path} is {found}, config.json says {stated}: they do not belong together",
                AGAIN,
            )
    return encoder


def _head(folder: Path, config: ExportedConfig) -> SavedHead:
    check_head(folder / "head", config)
    saved = load_head(folder / "head")
    if (saved.text_fp, saved.image_fp) != (config.text_fp, config.image_fp):
        raise PretrainedError(
            f"the head in {folder} was trained on vectors of encoder {saved.text_fp} and {saved.image_fp}, "
            f"config.json says {config.text_fp} and {config.image_fp}",
            AGAIN,
        )
    return saved


def _index(folder: Path, config: ExportedConfig, loaded: LoadedBank, trusted: bool) -> AnchorIndex | None:
    """What retrieval searches: None where the workspace had no index, so that all classes are scored."""
    if config.index is None:
        return None
    if trusted:
        try:
            return load_index(folder / "index")
        except MissingStepError as error:
            _log.warning("the anchors are searched exactly: %s", error.message)
    return TorchIndex(F.normalize(loaded.bank.vectors, dim=1), loaded.keys)


def _snapshot(config: ExportedConfig, anchors: pa.Table, sentences: pa.Table) -> Snapshot:
    """The folder's tables in memory: classes, sentences, anchors, their losses and vectors; an id serves as hash.

    Args:
        config: What the folder says about itself.
        anchors: Rows of `anchors.parquet`.
        sentences: Rows of `sentences.parquet`.
    """
    store = Store("memory://")
    tables = {
        "classes": _classes(config),
        "sentences": _sentences(sentences),
        "anchors": _anchors(config, anchors),
        "sentence_scores": anchors.select(["sentence_id", "loss"]),
    }
    versions = {}
    for name, rows in tables.items():
        store.create(name, rows.schema, KEYS[name])
        store.append(name, rows)
        versions[name] = store.version(name)
    vectors = pa.table({"text_hash": anchors["sentence_id"], "vector": anchors["vector"]})
    name = sentence_vectors_name(config.text_fp)
    store.create(name, sentence_vectors(config.dim), "text_hash")
    store.append(name, vectors.cast(sentence_vectors(config.dim)))
    commit = Commit(
        id=config.commit,
        parent=None,
        command="export",
        created_at=config.created_at,
        program_version=config.program_version,
        tables=versions,
        text_fp=config.text_fp,
        image_fp=config.image_fp,
        fusion=config.fusion,
        selection_id=config.selection_id,
        info=Info(merged=config.merged, dim=config.dim),
    )
    return Snapshot(store, commit)


def _classes(config: ExportedConfig) -> pa.Table:
    rows = [
        {
            "class_id": item.class_id,
            "name": item.name,
            "aliases": list(item.aliases),
            "origin": item.origin,
            "created_at": config.created_at,
            "retired_at": None,
        }
        for item in config.classes
    ]
    return pa.Table.from_pylist(rows, schema=CLASSES)


def _sentences(rows: pa.Table) -> pa.Table:
    none = pa.nulls(rows.num_rows, pa.int32())
    rows = rows.append_column("text_hash", rows["sentence_id"]).append_column("tokens", none)
    return rows.append_column("position", none).select(SENTENCES.names).cast(SENTENCES)


def _anchors(config: ExportedConfig, rows: pa.Table) -> pa.Table:
    selection = pa.array([config.selection_id] * rows.num_rows, pa.string())
    return rows.append_column("selection_id", selection).select(ANCHORS.names).cast(ANCHORS)
