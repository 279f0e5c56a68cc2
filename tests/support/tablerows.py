"""Rows for the committed tables and the vector caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from vlltr_index.schemas.tables import (
    ANCHORS,
    CLASSES,
    IMAGES,
    SENTENCE_SCORES,
    SENTENCES,
    class_stats,
    sentence_vectors,
)


def class_rows(ids: Iterable[int], name: str = "class", retired: Iterable[int] = ()) -> pa.Table:
    """Classes called `name <id>` with one alias each."""
    gone = set(retired)
    rows = [
        {
            "class_id": i,
            "name": f"{name} {i}",
            "aliases": [f"alias {i}"],
            "origin": "trained",
            "created_at": "2026-01-01T00:00:00+00:00",
            "retired_at": "2026-02-01T00:00:00+00:00" if i in gone else None,
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema=CLASSES)


def anchor_rows(keys: Iterable[int], sentence: str = "s") -> pa.Table:
    """Anchors of class 0."""
    rows = [
        {"anchor_key": k, "selection_id": "a", "class_id": 0, "sentence_id": f"{sentence}{k}", "rank": 0}
        for k in keys
    ]
    return pa.Table.from_pylist(rows, schema=ANCHORS)


def sentence_rows(ids: Iterable[int], class_id: int = 0) -> pa.Table:
    """Sentences of one class, with ids `s<n>` and hashes `h<n>`."""
    rows = [
        {
            "sentence_id": f"s{i}",
            "text_hash": f"h{i}",
            "class_id": class_id,
            "text": f"Text {i}.",
            "source": "x",
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema=SENTENCES)


def score_rows(ids: Iterable[int], text_fp: str = "t", image_set: str = "e") -> pa.Table:
    """Scores of the sentences `s<n>`."""
    numbers = dict.fromkeys(("scale", "lse", "last_exact_lse", "positive", "loss"), 1.0)
    facts = {"text_fp": text_fp, "image_fp": "i", "image_set": image_set, **numbers}
    return pa.Table.from_pylist([{"sentence_id": f"s{i}", **facts} for i in ids], schema=SENTENCE_SCORES)


def image_rows(
    ids: Iterable[int], split: str = "train", class_id: int | None = 0, **more: object
) -> pa.Table:
    """Images with ids and contents `<split><n>`."""
    rows = [
        {
            "image_id": f"{split}{i}",
            "content_hash": f"{split}{i}",
            "uri": f"/x/{i}.png",
            "split": split,
            "class_id": class_id,
            **more,
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema=IMAGES)


def stats_rows(ids: Iterable[int], dim: int, images: int = 2) -> pa.Table:
    """Statistics of classes whose images have vectors of width `dim`."""
    rows = [{"class_id": i, "image_fp": "i", "images": images, "sum": [0.5] * dim} for i in ids]
    return pa.Table.from_pylist(rows, schema=class_stats(dim))


def vector_rows(keys: Sequence[str], vectors: Sequence[Sequence[float] | None], dim: int = 3) -> pa.Table:
    """Rows of a sentence vector cache."""
    schema = sentence_vectors(dim)
    columns = [pa.array(keys, pa.string()), pa.array(vectors, schema.field("vector").type)]
    return pa.Table.from_arrays(columns, names=schema.names)
