"""Description of an exported folder: `config.json`, and the columns of its Parquet files."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import ConfigDict, Field

from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.model import ModelRecord

LIBRARY = "vlltr-index"
"""The value of `library` in `config.json`, which identifies an exported folder."""

_MOST_CLASSES = 1_000_000
_WIDEST = 16_384


class ExportedConfig(Manifest):
    """Content of the file `config.json`: what the model is made of, and facts for people.

    Attributes:
        format: Format of the folder.
        library: Always `vlltr-index`.
        program_version: The version of this program that wrote the folder.
        created_at: Time of the exported commit, ISO 8601, UTC.
        recipe: The recipe's name.
        protocol: `paper`, `release` or `ours`.
        settings: Settings of the stages and the selection that were run, for information only.
        encoder: The encoder's name.
        dim: Width D of the vectors.
        preprocess: Preprocessing of images, for information only; `encoder/encoder.json` is used.
        tokenizer: Identity of the tokenizer, for information only.
        rejects: Whether the head has a threshold for "none of these".
        classes: Number of classes.
        anchors: Number of anchors.
        sentences: Number of rows of `sentences.parquet`.
        model: What the model is made of, with the digests of the folders beside this file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    format: Literal[1] = 1
    library: Literal["vlltr-index"] = "vlltr-index"
    program_version: str
    created_at: str
    recipe: str
    protocol: str
    settings: dict[str, Any]
    encoder: str
    dim: int = Field(ge=1, le=_WIDEST)
    preprocess: dict[str, Any]
    tokenizer: dict[str, Any]
    rejects: bool
    classes: int = Field(ge=1, le=_MOST_CLASSES)
    anchors: int = Field(ge=0, le=50_000_000)
    sentences: int = Field(ge=0, le=500_000_000)
    model: ModelRecord


_SENTENCE = [
    pa.field("sentence_id", pa.string(), nullable=False),
    pa.field("class_id", pa.int32(), nullable=False),
    pa.field("class", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("source_ref", pa.string()),
    pa.field("licence", pa.string()),
]


def sentences_schema() -> pa.Schema:
    """Return the schema of all sentences; `rank` is null for those that are not anchors."""
    return pa.schema([*_SENTENCE, pa.field("rank", pa.int32())])


def anchors_schema(dim: int) -> pa.Schema:
    """Return the schema of the anchors, by class and rank, with unnormalised vectors float32 [dim].

    `loss` is L_lin, zero if it is unknown.
    """
    return pa.schema(
        [
            pa.field("anchor_key", pa.int64(), nullable=False),
            *_SENTENCE,
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("loss", pa.float32(), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", pa.float32()), dim), nullable=False),
        ]
    )
