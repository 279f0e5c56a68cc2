"""Build the FAISS index over a workspace's anchors (`vlltr index`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlltr_index.anchors.index import build_index, plan, save_index
from vlltr_index.anchors.planning import IndexPlan, plan_index
from vlltr_index.recognition.anchors import read_anchors
from vlltr_index.tensors import unit_rows

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_NO_ANCHOR = "no class has a sentence, so all are scored by their images"
_BLANK = "the encoder has no text tower, so all classes are scored"


@dataclass(frozen=True)
class IndexReport:
    """Kind of the index built, the reason for it, and its size; kind `none` if there is nothing to search."""

    kind: str
    reason: str
    anchors: int
    dim: int
    digest: str | None


def plan_for(workspace: Workspace) -> IndexPlan:
    """Plan the index over the workspace's anchors, with its cost; kind `none` if there is nothing to search.

    Raises:
        MissingStepError: If no anchors have been selected.
    """
    bank = read_anchors(workspace.snapshot()).bank
    size, dim = bank.vectors.shape
    reason = _nothing(bank)
    if reason is None:
        return plan_index(size, dim)
    return IndexPlan(kind="none", reason=reason, anchors=size, dim=dim, costs=(), measured_on="")


def _nothing(bank: AnchorBank) -> str | None:
    """Say why there is nothing to search in a bank; None if there is."""
    if not bank.is_blank:
        return None
    return _BLANK if len(bank.vectors) else _NO_ANCHOR


def index_anchors(workspace: Workspace, kind: str = "auto", progress: Progress | None = None) -> IndexReport:
    """Build the index and commit it.

    Where no class has an anchor, or no text tower read them, there is nothing to search: all classes are scored.

    Raises:
        MissingStepError: If no anchors have been selected.
    """
    with workspace.transaction("index") as tx:
        loaded = read_anchors(workspace.snapshot(tx.commit.id or None))
        size, dim = loaded.bank.vectors.shape
        if nothing := _nothing(loaded.bank):
            tx.set(index=None)
            return IndexReport(kind="none", reason=nothing, anchors=size, dim=dim, digest=None)
        planned, reason = plan(size)
        chosen: str = planned
        if kind != "auto":
            chosen = kind
            reason = f"asked for; {size:,} anchors"
        if progress:
            progress("build index", 0, size)
        index = build_index(unit_rows(loaded.bank.vectors.float()), loaded.keys, kind=chosen)
        with workspace.objects.put("index") as made:
            save_index(index, made.folder)
        if progress:
            progress("build index", size, size)
        tx.set(index={"digest": made.digest, "kind": chosen, "text_fp": tx.commit.text_fp})
    return IndexReport(kind=chosen, reason=reason, anchors=size, dim=dim, digest=made.digest)
