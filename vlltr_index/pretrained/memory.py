"""An exported folder's tables in memory, so that what answers from a workspace answers from it."""

from __future__ import annotations

import pyarrow as pa

from vlltr_index.history import Commit
from vlltr_index.schemas.exported import ExportedConfig
from vlltr_index.schemas.tables import (
    ANCHORS,
    CLASSES,
    KEYS,
    SENTENCES,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.snapshot import Snapshot
from vlltr_index.store import Store

__all__ = ["as_snapshot"]


def as_snapshot(config: ExportedConfig, anchors: pa.Table, sentences: pa.Table) -> Snapshot:
    """A snapshot with classes, sentences, anchors, their losses and vectors; a sentence's text hash is its id.

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
        index=None if config.index is None else {"kind": config.index, "text_fp": config.text_fp},
        selection_id=config.selection_id,
        info={"merged": {str(gone): kept for gone, kept in config.merged.items()}, "dim": config.dim},
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
