"""A workspace's commit as something that scores image features: bank, head, imprinted rows, fusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.errors import FingerprintMismatch, MissingStepError
from vlltr_index.fusion import FusedScores, FusionParams, fuse, moderate
from vlltr_index.heads import SavedHead, load_head
from vlltr_index.loading import LoadedBank, class_positions, load_bank

if TYPE_CHECKING:
    from vlltr_index.bank import AnchorBank
    from vlltr_index.schemas.config import FusionConfig
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["Scorer", "fusion_params", "load_imprints", "load_scorer", "merged_classes"]

_BATCH = 512


@dataclass(frozen=True)
class Scorer:
    """Everything that turns image features [B, D] (unnormalised) into class probabilities [B, C].

    Attributes:
        loaded: The anchors; classes stand in the order of `loaded.bank.class_ids`, ascending.
        saved: The trained head.
        imprint_class_ids: int64 [R], classes whose visual row was imprinted.
        imprint_weight: float32 [R, D], as `fusion.imprint_row` gives them.
        imprint_bias: float32 [R].
        params: Fusion weight, temperatures and margin; strength and lift of the imprinted rows.
        merged: A class that was merged into another, to that one: its visual row is the other's now.
    """

    loaded: LoadedBank
    saved: SavedHead
    imprint_class_ids: Tensor
    imprint_weight: Tensor
    imprint_bias: Tensor
    params: FusionParams
    merged: Mapping[int, int] = field(default_factory=dict)

    @property
    def bank(self) -> AnchorBank:
        """The anchors."""
        return self.loaded.bank

    @property
    def class_ids(self) -> Tensor:
        """int64 [C], the class of each column."""
        return self.bank.class_ids

    @property
    def row_class(self) -> Tensor:
        """int64 [C_v + R], the column each visual row belongs to; -1 for a class that is gone."""
        rows = torch.cat([self.row_owners, self.imprint_class_ids])
        return class_positions(self.class_ids, rows)

    @property
    def row_owners(self) -> Tensor:
        """int64 [C_v], the class each trained row belongs to now, after merges."""
        if not self.merged:
            return self.saved.class_ids
        return torch.tensor([self.merged.get(i, i) for i in self.saved.class_ids.tolist()])

    @property
    def trained(self) -> Tensor:
        """bool [C], the classes that the head was trained on."""
        return torch.isin(self.class_ids, self.row_owners)

    def visual_logits(self, features: Tensor) -> Tensor:
        """Logits of all visual rows, trained then imprinted, [B, C_v + R]."""
        logits = self.saved.head.visual_logits(features)
        if not len(self.imprint_class_ids):
            return logits
        extra = features.to(self.imprint_weight.dtype) @ self.imprint_weight.T + self.imprint_bias
        return torch.cat([logits, moderate(extra, self.trained_level, self.params).to(logits.dtype)], dim=1)

    def moderate_rows(self) -> tuple[Tensor, Tensor]:
        """The imprinted rows with strength and lift in them: weight float32 [R, D], bias float32 [R]."""
        bias = moderate(self.imprint_bias, self.trained_level, self.params)
        return self.params.imprint_strength * self.imprint_weight, bias

    @cached_property
    def trained_level(self) -> float:
        """The trained rows' mean logit at the training mean."""
        with torch.inference_mode():
            return float(self.saved.head.visual_logits(self.saved.training_mean[None]).double().mean())

    def fuse(self, visual_logits: Tensor, text_logits: Tensor) -> FusedScores:
        """Both branches to one distribution."""
        return fuse(visual_logits, text_logits, self.row_class, self.trained, self.params)

    @torch.inference_mode()
    def exhaustive(self, features: Tensor) -> FusedScores:
        """Score features [B, D] against every class, in batches."""
        parts = [
            self.fuse(self.visual_logits(part), self.saved.head.text_logits(part, self.bank))
            for part in features.split(_BATCH)
        ]
        return FusedScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def with_params(self, params: FusionParams) -> Scorer:
        """The same scorer with other fusion values."""
        return replace(self, params=params)


def load_scorer(workspace: Workspace, snapshot: Snapshot) -> Scorer:
    """Load what a commit names.

    Raises:
        MissingStepError: If anchors or head are not there yet.
        WorkspaceError: If the head's files are damaged.
        FingerprintMismatch: If the head was trained on another encoder's vectors.
    """
    loaded = load_bank(snapshot)
    commit = snapshot.commit
    assert commit is not None
    if not commit.head:
        raise MissingStepError("no head has been trained yet", "Run: vlltr train lgr")
    saved = load_head(workspace.whole_object("heads", commit.head))
    for what, mine, theirs in (
        ("sentence", saved.text_fp, commit.text_fp),
        ("image", saved.image_fp, commit.image_fp),
    ):
        if mine != theirs:
            raise FingerprintMismatch(
                f"the head was trained on {what} vectors of encoder {mine}, the workspace's are of {theirs}",
                "Train it again: vlltr train lgr",
            )
    params = fusion_params(commit.fusion or workspace.recipe.fusion)
    ids, weight, bias = load_imprints(snapshot, commit.head, saved.head.dim)
    return Scorer(loaded, saved, ids, weight, bias, params, merged_classes(snapshot))


def fusion_params(config: FusionConfig) -> FusionParams:
    """The part of a configuration's `fusion` section that puts the branches together."""
    return FusionParams(**{f.name: getattr(config, f.name) for f in fields(FusionParams)})


def merged_classes(snapshot: Snapshot) -> dict[int, int]:
    """The classes that were merged into others, and into which; no chains."""
    noted = snapshot.commit.info.get("merged", {}) if snapshot.commit is not None else {}
    return {int(gone): kept for gone, kept in noted.items()}


def load_imprints(snapshot: Snapshot, head: str, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Imprinted visual rows that go with a head: class ids int64 [R], weight float32 [R, D], bias float32 [R]."""
    rows = snapshot.table("imprints") if snapshot.has("imprints") else None
    if rows is not None and rows.num_rows:
        rows = rows.filter([h == head for h in rows["head"].to_pylist()]).sort_by("class_id")
    if rows is None or not rows.num_rows:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dim), torch.empty(0)
    ids = torch.tensor(rows["class_id"].to_pylist(), dtype=torch.int64)
    return ids, torch.tensor(rows["vector"].to_pylist()), torch.tensor(rows["bias"].to_pylist()).float()
