"""The record of what a model is made of, which a commit gives and an exported folder contains."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from vlltr_index.schemas.config import EncoderConfig, FusionConfig
from vlltr_index.schemas.records import IndexKind

Fingerprint = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]+$")]
"""Of a tower; it is part of a table's name."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A whole number that is exact in every reader of JSON."""


class Record(BaseModel):
    """Base of what commits and exported folders say: frozen, without unknown keys or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Index(Record):
    """Index over the anchors: its digest, kind, and the text tower whose vectors it holds."""

    digest: str = Field(min_length=1)
    kind: IndexKind
    text_fp: str | None


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Name of an object: SHA-256 over the names and bytes of its files."""
PartDigests = Annotated[tuple[Digest, ...], Field(max_length=2)]
"""Rows that answers are computed from: a base, and a delta if rows have changed since it was written; or none."""


class ModelRecord(Record):
    """What a model is made of; objects are named by their digests.

    Attributes:
        commit: The workspace's commit.
        first_commit: The commit that first held this state, which differs from `commit` after a rollback.
        encoder: Digest of the encoder; or the recipe's, where stage 1 has not run.
        head: Digest of the head; None: none has been trained yet.
        parts: Rows that answers are computed from; none: they are made of the workspace's tables.
        index: The index over the anchors; None: none was built over this encoder's vectors.
        text_fp: Fingerprint of the text tower; None: nothing has been embedded yet.
        image_fp: Fingerprint of the visual tower.
        reading: Width of the anchors' readings by a sentence-embedding model, which follow the text tower's numbers in
            each anchor's vector; 0: there are none.
        selection_id: The selection that the anchors come from; None: none has been made yet.
        fusion: How both branches are fused.
        merged: For each class that was merged into another, the id of that one.
        offsets: The offset of each added class, by its id.
    """

    commit: Count
    first_commit: Count
    encoder: str | EncoderConfig
    head: str | None
    parts: PartDigests
    index: Index | None
    text_fp: Fingerprint | None
    image_fp: Fingerprint | None
    reading: int = Field(ge=0, le=2**14)
    selection_id: str | None
    fusion: FusionConfig
    merged: dict[Count, Count]
    offsets: dict[Count, Annotated[float, Field(ge=-1e6, le=0.0)]]
