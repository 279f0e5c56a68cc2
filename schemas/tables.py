"""Arrow schemas of the workspace's tables.

Tables of vectors are caches beside the committed tables: rows are only added, and never change. All others are
committed.
"""

from __future__ import annotations

import pyarrow as pa


def _required(name: str, kind: pa.DataType) -> pa.Field:
    """Make a field that may not be null."""
    return pa.field(name, kind, nullable=False)


CLASSES = pa.schema(
    [
        _required("class_id", pa.int32()),  # never reused
        _required("name", pa.string()),
        _required("aliases", pa.list_(pa.string())),
        _required("origin", pa.string()),  # "trained" | "added"
        _required("created_at", pa.string()),  # ISO 8601, UTC
        pa.field("retired_at", pa.string()),
    ]
)

SENTENCES = pa.schema(
    [
        _required("sentence_id", pa.string()),  # hash of class_id and text_hash
        _required("text_hash", pa.string()),  # hash of the normalised text
        _required("class_id", pa.int32()),
        _required("text", pa.string()),
        _required("source", pa.string()),
        pa.field("source_ref", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("tokens", pa.int32()),  # before any cut; null until embedded
        pa.field("position", pa.int32()),  # within its class, in the order of ingestion
    ]
)
FROM_NAME = ("prompt", "name")
"""Sources of sentences that are made from a class's name."""

IMAGES = pa.schema(
    [
        _required("image_id", pa.string()),  # hash of split and source path, and the side of reduced `data`
        pa.field("content_hash", pa.string()),  # of the ingested file; null if it cannot be read
        _required("uri", pa.string()),
        pa.field("data", pa.binary()),  # used instead of the file: a Parquet row's bytes, or reduced ones
        pa.field("class_id", pa.int32()),
        _required("split", pa.string()),
        pa.field("width", pa.int32()),  # of the file
        pa.field("height", pa.int32()),
        pa.field("problem", pa.string()),  # why it is quarantined
        pa.field("group", pa.string()),  # images of one group are held out together: a font, camera or burst
        pa.field("taken", pa.float64()),  # seconds since 1970 by the camera's clock, see data.capture
        pa.field("thumbnail", pa.binary()),  # see data.decoding.Probe; null if it cannot be read
    ]
)

ORIGINS = pa.schema(
    [
        _required("origin_id", pa.string()),  # hash of source, label and row_key
        _required("source", pa.string()),  # kind of rows, split that was asked for, path or address
        _required(
            "row_key", pa.string()
        ),  # image_id without the suffix of the side; of a sentence its text_hash
        pa.field("label", pa.string()),  # the source's name of the class, as it was last read
        pa.field("class_id", pa.int32()),  # the class of that name then, or that it was merged into
        pa.field("dealt", pa.string()),  # split that a share held out put the image into
    ]
)
"""What each source gave last: a row may be of several sources, or of none (added by hand)."""

SENTENCE_SCORES = pa.schema(
    [
        _required("sentence_id", pa.string()),
        _required("text_fp", pa.string()),
        _required("image_fp", pa.string()),
        _required("scale", pa.float64()),
        _required("image_set", pa.string()),  # digest of the images scored against, and their classes
        _required("lse", pa.float64()),
        _required("last_exact_lse", pa.float64()),
        _required("positive", pa.float64()),
        pa.field("loss", pa.float64()),  # L_lin; null if the class had no image to score against
    ]
)

ANCHORS = pa.schema(
    [
        _required("anchor_key", pa.int64()),  # never reused
        _required("selection_id", pa.string()),
        _required("class_id", pa.int32()),
        _required("sentence_id", pa.string()),
        _required("rank", pa.int32()),
    ]
)

TAXONOMY = pa.schema(
    [
        _required("name", pa.string()),  # of a class, or of a node above classes
        pa.field("parent", pa.string()),  # null: a root
        pa.field("rank", pa.string()),
    ]
)

REVIEWED = pa.schema(
    [
        _required("image_id", pa.string()),
        _required("class_id", pa.int32()),
    ]
)
"""The class that a person said an image is of; it holds as long as the image is of that class."""


def class_stats(dim: int) -> pa.Schema:
    """Return the schema of the statistics by which the generative model knows a class: the number of observations that
    its training images count as, and the sum [dim] of their normalised vectors, each as its share of an observation.
    Images that belong together, such as near duplicates, count as fewer than they are, see `heads.moments`.
    """
    return pa.schema(
        [
            _required("class_id", pa.int32()),
            _required("image_fp", pa.string()),
            _required("images", pa.int32()),  # observations, see heads.moments
            _required("sum", pa.list_(pa.float64(), dim)),
        ]
    )


def sentence_vectors(dim: int) -> pa.Schema:
    """Return the schema of text vectors of width `dim`, unnormalised as the encoder gives them."""
    return pa.schema(
        [
            _required("text_hash", pa.string()),
            _required("vector", pa.list_(pa.float32(), dim)),
        ]
    )


def image_vectors(dim: int) -> pa.Schema:
    """Return the schema of image vectors of width `dim`, unnormalised; `view` 0 is plain, the others are augmented.

    `vector_key` is `content_id:view`, so that images of the same content share their vectors.
    """
    return pa.schema(
        [
            _required("vector_key", pa.string()),
            _required("content_id", pa.string()),
            _required("view", pa.int32()),
            _required("vector", pa.list_(pa.float32(), dim)),
        ]
    )


def sentence_vectors_name(text_fp: str) -> str:
    """Return the name of the table of text vectors of the fingerprint `text_fp`."""
    return f"sentence_vectors_{text_fp}"


def sentence_readings_name(reading_fp: str) -> str:
    """Return the name of the table of what the sentence-embedding model of a fingerprint makes of sentences; its schema
    is `sentence_vectors`.
    """
    return f"sentence_readings_{reading_fp}"


def image_vectors_name(image_fp: str) -> str:
    """Return the name of the table of image vectors of the fingerprint `image_fp`."""
    return f"content_vectors_{image_fp}"


def content_id(image_id: str, content_hash: str) -> str:
    """Return the id under which an image's vectors are stored: of its content, and of the side it is reduced to."""
    return content_hash[:32] + image_id[32:]


CLASS_STATS = "class_stats"  # its schema depends on the encoder's width, so it is a function

COMMITTED = {
    "classes": CLASSES,
    "sentences": SENTENCES,
    "images": IMAGES,
    "origins": ORIGINS,
    "sentence_scores": SENTENCE_SCORES,
    "anchors": ANCHORS,
    "taxonomy": TAXONOMY,
    "reviewed": REVIEWED,
}
"""Committed tables whose schema does not depend on the encoder."""

KEYS = {name: schema.names[0] for name, schema in COMMITTED.items()} | {CLASS_STATS: "class_id"}
"""The primary key of each committed table, its first column."""

_UNCHECKED = ("data", "thumbnail", "aliases")  # large, or no single value
CHECKED = {
    name: tuple(column for column in COMMITTED[name].names if column not in _UNCHECKED)
    for name in ("classes", "sentences", "images", "origins", "sentence_scores", "reviewed")
}
"""Committed tables that changes build on, and the columns that are compared with what was written."""
