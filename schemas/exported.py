"""Description of an exported folder: `config.json`, and the columns of its Parquet files."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.records import IndexKind

LIBRARY = "vlltr-index"
"""The value of `library` in `config.json`, which identifies an exported folder."""

_MOST_CLASSES = 1_000_000
_WIDEST = 16_384


class _Exported(BaseModel):
    """Base of the models of `config.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class ExportedClass(_Exported):
    """A class with its id and names; one without an anchor sentence is never an answer."""

    class_id: int = Field(ge=0, lt=2**31)
    name: str = Field(min_length=1, max_length=10_000)
    aliases: tuple[str, ...] = ()
    origin: str = "trained"  # | "added"


class ExportedTaxon(_Exported):
    """A class, or a name above classes, with its parent and rank."""

    name: str = Field(min_length=1, max_length=10_000)
    parent: str | None = Field(default=None, min_length=1, max_length=10_000)
    rank: str | None = Field(default=None, max_length=10_000)


class ExportedConfig(_Exported):
    """Content of the file `config.json`.

    Attributes:
        format: Format of the folder.
        library: Always `vlltr-index`.
        program_version: The version of this program that wrote the folder.
        commit: The workspace's commit that was exported.
        created_at: Time of that commit, ISO 8601, UTC.
        recipe: The recipe's name.
        protocol: `paper`, `release` or `ours`.
        settings: Settings of the stages and the selection that were run, for information only.
        encoder: The encoder's name.
        text_fp: Fingerprint of the text tower.
        image_fp: Fingerprint of the visual tower.
        dim: Width D of the vectors.
        preprocess: Preprocessing of images, for information only; `encoder/encoder.json` is used.
        tokenizer: Identity of the tokenizer, for information only.
        selection_id: Id of the selection of the anchors.
        fusion: The fusion rule.
        rejects: Whether the head has a threshold for "none of these".
        classes: The classes, by ascending id.
        taxonomy: The tree above the classes.
        merged: For each class that was merged into another, the id of that one.
        anchors: Number of rows of `anchors.parquet`.
        sentences: Number of rows of `sentences.parquet`.
        index: The workspace's kind of index; null: none was built.
    """

    format: Literal[1] = 1
    library: Literal["vlltr-index"] = "vlltr-index"
    program_version: str
    commit: int = Field(ge=1)
    created_at: str
    recipe: str
    protocol: str
    settings: dict[str, Any] = Field(default_factory=dict)
    encoder: str
    text_fp: str = Field(pattern="^[0-9a-f]{16}$")
    image_fp: str = Field(pattern="^[0-9a-f]{16}$")
    dim: int = Field(ge=1, le=_WIDEST)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    selection_id: str
    fusion: FusionConfig
    rejects: bool = False
    classes: tuple[ExportedClass, ...] = Field(min_length=1, max_length=_MOST_CLASSES)
    taxonomy: tuple[ExportedTaxon, ...] = Field(default=(), max_length=_MOST_CLASSES)
    merged: dict[int, int] = Field(default_factory=dict)
    anchors: int = Field(ge=0, le=50_000_000)
    sentences: int = Field(ge=0, le=500_000_000)
    index: IndexKind | None = None


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
