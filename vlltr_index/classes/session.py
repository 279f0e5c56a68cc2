"""What changes to a workspace need loaded: encoder, scorer, and how the validation images score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.classes.reports import Effect
from vlltr_index.embedding.loading import (
    LoadedBank,
    anchor_losses,
    class_stats,
    image_vectors_of,
    open_encoder,
    usable_images,
)
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.recognition.scorer import Scorer, load_scorer
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.store.tables import one_of

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

# Validation images that the effect is seen through: so many that their scores stay within this, whatever the number
# of classes, but no fewer and no more than these.
_SCORES, _FEWEST, _MOST = 4_000_000, 300, 1000
_RIVALS = 3
_STILL = 1e-3  # of losses
_FEW = 1000  # sentences that are worth a condition instead of a scan


@dataclass(frozen=True)
class View:
    """A state of the workspace that scores images, and the validation images it is looked at through.

    Attributes:
        scorer: Of that state.
        features: Float [V, D], stored vectors of split val, unnormalised; V may be 0.
        owners: int64 [V], class ids.
    """

    scorer: Scorer
    features: Tensor
    owners: Tensor

    @classmethod
    def load(cls, workspace: Workspace, snapshot: Snapshot) -> View:
        """Read a state as a whole."""
        scorer = load_scorer(workspace, snapshot)
        most = max(_FEWEST, min(_MOST, _SCORES // len(scorer.class_ids)))
        rows = usable_images(snapshot, "val", []).slice(
            0, most
        )  # by their ids, which are hashes: as good as drawn
        owners = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
        if not len(owners):
            return cls(scorer, torch.empty(0, scorer.saved.head.dim), owners)
        try:
            features = image_vectors_of(snapshot, rows["image_id"].to_pylist())
        except MissingStepError:  # not embedded yet: the effect is not shown
            return cls(scorer, torch.empty(0, scorer.saved.head.dim), owners[:0])
        return cls(scorer, features, owners)

    @cached_property
    def text_logits(self) -> Tensor:
        """Of the validation images, [V, C_a], a column an anchor bank's class."""
        return self._text_logits(self.scorer.bank)

    @torch.inference_mode()
    def _text_logits(self, bank: AnchorBank) -> Tensor:
        if not len(self.features) or not bank.num_classes:
            return torch.empty(len(self.features), bank.num_classes)
        head = self.scorer.saved.head
        return torch.cat([head.text_logits(part, bank) for part in self.features.split(256)])

    def updated(self, tx: Transaction, merged: Mapping[int, int]) -> View:
        """The state after a change, at the cost of what differs in its anchors and rows."""
        loaded = _updated_bank(tx, self.scorer.loaded)
        saved = self.scorer.saved
        scorer = Scorer.build(loaded, saved, class_stats(tx, saved.head.dim), self.scorer.fusion, merged)
        after = View(scorer, self.features, self.owners)
        after.__dict__["text_logits"] = self._columns_after(loaded)
        return after

    def _columns_after(self, loaded: LoadedBank) -> Tensor:
        """Text logits after a change: columns of classes with the same anchors are taken over."""
        before, after = _anchors_of(self.scorer.loaded), _anchors_of(loaded)
        if not before:  # no class had a sentence
            return self._text_logits(loaded.bank)
        place = {c: n for n, c in enumerate(before)}
        taken = [place[c] if before.get(c) == a else -1 for c, a in after.items()]
        same = torch.tensor(taken, dtype=torch.int64)
        logits = self.text_logits[:, same.clamp(min=0)]
        changed = (same < 0).nonzero()[:, 0]
        if len(changed):
            logits[:, changed] = self._text_logits(loaded.bank.select(changed))
        return logits

    def effect(self, before: View, touched: set[int]) -> Effect:
        """Top-1 of the classes that are in both states and not in `touched`."""
        there = torch.isin(self.owners, self.scorer.class_ids)
        there &= torch.isin(self.owners, before.scorer.class_ids)
        there &= ~torch.isin(self.owners, torch.tensor(sorted(touched), dtype=torch.int64))
        if not bool(there.any()):
            return Effect(unmeasured=True)
        was, now = (float(view.right[there].double().mean()) for view in (before, self))
        return Effect(was, now, int(there.sum()))

    @cached_property
    def right(self) -> Tensor:
        """Whether the class of each validation image comes first, bool [V]."""
        with torch.inference_mode():
            scorer = self.scorer
            fused = scorer.fuse(scorer.image_side(self.features), scorer.whole(self.text_logits))
            best = fused.probabilities.argmax(1)
        return self.scorer.class_ids[best] == self.owners


def rivals(bank: AnchorBank, class_ids: Sequence[int]) -> dict[int, list[int]]:
    """The classes whose mean anchor is nearest to that of each of `class_ids`, nearest first."""
    prototypes, ids, found = F.normalize(bank.prototypes(), dim=1), bank.class_ids, dict[int, list[int]]()
    for class_id in class_ids:
        place = (ids == class_id).nonzero()[:, 0].tolist()
        if not place:  # without a sentence
            found[class_id] = []
            continue
        position = place[0]
        near = (prototypes @ prototypes[position]).topk(min(_RIVALS + 1, len(ids))).indices.tolist()
        found[class_id] = [int(ids[i]) for i in near if i != position][:_RIVALS]
    return found


def _anchors_of(loaded: LoadedBank) -> dict[int, tuple[tuple[str, float], ...]]:
    """The sentences of each class with their losses, in the bank's order."""
    bounds, ids = loaded.bank.bounds, loaded.bank.class_ids.tolist()
    anchors = list(zip(loaded.sentence_ids, loaded.bank.losses.tolist(), strict=True))
    return {c: tuple(anchors[bounds[n] : bounds[n + 1]]) for n, c in enumerate(ids)}


def _updated_bank(tx: Snapshot, before: LoadedBank) -> LoadedBank:
    """`load_bank` after a change, where only vectors that `before` does not have are read."""
    assert tx.commit.text_fp is not None
    anchors = tx.table("anchors").sort_by([("class_id", "ascending"), ("rank", "ascending")])
    sentence_ids: list[str] = anchors["sentence_id"].to_pylist()
    row_of = {s: n for n, s in enumerate(before.sentence_ids)}
    at = torch.tensor([row_of.get(s, -1) for s in sentence_ids], dtype=torch.int64)
    vectors = before.bank.vectors.new_empty(len(at), before.bank.dim)
    if row_of:
        vectors = before.bank.vectors[at.clamp(min=0)]
    new = (at < 0).nonzero()[:, 0]
    if len(new):
        wanted = [sentence_ids[i] for i in new.tolist()]
        where = one_of("sentence_id", wanted) if len(wanted) <= _FEW else None
        rows = tx.table("sentences", ["sentence_id", "text_hash"], where)
        hash_of = dict(zip(rows["sentence_id"].to_pylist(), rows["text_hash"].to_pylist(), strict=True))
        name = sentence_vectors_name(tx.commit.text_fp)
        vectors[new] = tx.store.vectors(name, "text_hash", [hash_of[s] for s in wanted])[1]
    owner = torch.from_numpy(anchors["class_id"].to_numpy().copy())
    counts = torch.unique_consecutive(owner, return_counts=True)[1]
    losses = settled_losses(anchor_losses(tx, sentence_ids), before.bank.losses, at, counts)
    return LoadedBank.of(anchors, vectors, losses, before.selection_id)


def settled_losses(losses: Tensor, before: Tensor, at: Tensor, counts: Tensor) -> Tensor:
    """Losses after a change, float [A], but a class's old ones where the differences among them hardly moved.

    New images change the loss of every sentence a little; so the columns of classes far from them can be taken over.

    Args:
        losses: Float [A], as they are now, by class.
        before: Float [A'], as they were.
        at: int64 [A], the place of each anchor among those before; -1: it is new.
        counts: int64 [C], anchors of each class.
    """
    if not len(before):
        return losses
    moved = torch.where(at < 0, torch.inf, losses - before[at.clamp(min=0)])
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    high, low = (
        moved.new_zeros(len(counts)).scatter_reduce(0, owner, moved, way, include_self=False)
        for way in ("amax", "amin")
    )
    still = (high - low)[owner] < _STILL  # infinite less infinite is no number, and not less
    return torch.where(still, before[at.clamp(min=0)], losses)


class Session:
    """Keeps a workspace's encoder and scorer loaded from one change to the next, so that each costs what it changes.

    Args:
        workspace: The workspace whose changes are made through it.

    A change by another process is noticed: the scorer is read again then.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._encoder: tuple[tuple[str | None, ...], Encoder] | None = None
        self._view: tuple[int, View] | None = None

    def encoder(self, snapshot: Snapshot) -> Encoder:
        """The commit's encoder, in eval mode."""
        commit = snapshot.commit
        facts = (commit.checkpoint, commit.text_fp, commit.image_fp)
        if self._encoder is None or self._encoder[0] != facts:
            self._encoder = (facts, open_encoder(self.workspace, snapshot))
        return self._encoder[1]

    def view(self, snapshot: Snapshot) -> View:
        """The commit's state."""
        number = snapshot.commit.id
        if self._view is None or self._view[0] != number:
            self._view = (number, View.load(self.workspace, snapshot))
        return self._view[1]

    def keep(self, commit_id: int, view: View) -> None:
        """Take `view` for the state of a commit that was just made."""
        self._view = (commit_id, view)
