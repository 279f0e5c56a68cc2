"""The types of what a commit says in free form: its index, and the small facts that are handed on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CommitFacts"]

_MOST = 2**53  # a count that every reader of JSON keeps exactly

_Count = Annotated[int, Field(ge=0, lt=_MOST)]
_Number = Annotated[str, Field(pattern="^[0-9]{1,10}$")]  # of a class, as a key in JSON


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=(), allow_inf_nan=False)


class _Index(_Facts):
    digest: str = Field(min_length=1)
    kind: Literal["torch", "flat", "ivf", "hnsw"] | None = None
    text_fp: str | None = None


class _Tuned(_Facts):
    checkpoint: str
    from_: str | None = Field(alias="from")


class _Info(_Facts):
    """Each may be missing: a commit has those that the commands before it noted."""

    logit_scale: float = Field(default=1.0, gt=0)
    dim: int = Field(default=1, ge=1, le=2**20)
    views: int = Field(default=1, ge=1, lt=_MOST)
    augment: dict[str, Any] = {}
    checkpoint_images: _Count = 0
    merged: dict[_Number, _Count] = {}
    next: dict[Literal["classes", "anchors"], _Count] = {}
    tuned: _Tuned | None = None
    baseline_fc: str | None = None
    baselines: dict[str, str] = {}
    lgr: dict[str, Any] = {}
    recipe: str = ""
    protocol: str = ""


class CommitFacts(_Facts):
    """What a commit's file is held against when it is read; the commit itself keeps them as they are written."""

    index: _Index | None
    info: _Info
