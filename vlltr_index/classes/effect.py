"""What a change of classes does to the others: their top-1 accuracy before and after, on images held out of training.

These are those of split val, or of a cross-validation, each answered by the model that was fitted without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vlltr_index.embedding import loading
from vlltr_index.errors import MissingStepError
from vlltr_index.recognition.folds import open_folds
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.records import FEW_UNITS
from vlltr_index.tensors import class_positions

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.recognition.folds import Fold, Folds
    from vlltr_index.recognition.state import Anchors, ModelState

# The effect is measured on as many validation images as keep images times classes below _SCORES, within these bounds.
_SCORES = 4_000_000
_FEWEST = 300
_MOST = 1000
_BATCH = 256
_HARM = 0.01  # loss of the other classes' accuracy from which on there is a warning
_STILL = 1e-3  # range of a class's loss changes below which its text logits are kept


@dataclass(frozen=True)
class Effect:
    """Top-1 accuracy of the classes that a change did not touch, before and after, on images held out of training.

    Both are None if there are no such images, or the change cannot have an effect.
    """

    before: float | None = None
    after: float | None = None
    images: int = 0
    unmeasured: bool = False  # there may be an effect, but no validation image to measure it on

    @property
    def warning(self) -> str | None:
        """What is said if the accuracy fell by more than a point; of few images nothing."""
        if self.before is None or self.after is None or self.images < FEW_UNITS:
            return None
        if self.before - self.after <= _HARM:
            return None
        return f"Warning: the old classes lose {100 * (self.before - self.after):.1f} points."


@dataclass(frozen=True, eq=False)
class _Columns:
    """What columns of text logits were computed from: the anchors of C_a classes.

    Attributes:
        class_ids: Int64 [C_a], ascending.
        offsets: Int64 [C_a + 1]; class c has the anchors offsets[c] to offsets[c + 1].
        keys: Int64 [A].
        losses: Float [A].
    """

    class_ids: Tensor
    offsets: Tensor
    keys: Tensor
    losses: Tensor

    @classmethod
    def of(cls, anchors: Anchors) -> _Columns:
        """Take them from a model's anchors."""
        bank = anchors.bank
        return cls(bank.class_ids, bank.offsets, anchors.keys, bank.losses)

    def after(self, older: _Columns) -> tuple[_Columns, Tensor]:
        """Find the classes whose columns stay: those with the same anchors, whose losses moved almost equally.

        Returns:
            The anchors that the columns are of then, and the older place of each class, int64 [C_a], -1 for a new one.
        """
        places = class_positions(older.class_ids, self.class_ids)
        counts = self.offsets.diff()
        owner = torch.repeat_interleave(counts)
        within = torch.arange(len(owner)) - self.offsets[owner]
        there = (places >= 0) & (older.offsets.diff()[places] == counts)
        rows = torch.where(there[owner], older.offsets[places[owner]] + within, 0)
        moved = self.losses - older.losses[rows]
        most = moved.new_zeros(len(counts)).scatter_reduce(0, owner, moved, "amax", include_self=False)
        least = moved.new_zeros(len(counts)).scatter_reduce(0, owner, moved, "amin", include_self=False)
        others = torch.zeros_like(counts).index_add_(0, owner, (self.keys != older.keys[rows]).long())
        same = there & (others == 0) & (most - least < _STILL)
        losses = torch.where(same[owner], older.losses[rows], self.losses)
        return replace(self, losses=losses), torch.where(same, places, -1)


@dataclass(frozen=True, eq=False)
class _Validation:
    """A model's answers to validation images, and its text logits, which take most of the time.

    Attributes:
        commit: The number of the model's commit.
        folds: The cross-validation whose model of fold `number` answers; None: these are images of split val.
        number: See `folds`.
        features: Float [V, D], stored vectors, unnormalised; V may be 0.
        image_ids: Their ids.
        columns: What its text logits were computed from.
        text_logits: Float [V, C_a], one column for each class of the anchor bank.
        answers: Int64 [V], the ids of the classes with the highest probability.
    """

    commit: int
    folds: Folds | None
    number: int
    features: Tensor
    image_ids: list[str]
    columns: _Columns
    text_logits: Tensor
    answers: Tensor

    def judge(self, model: Model) -> Model:
        """Return what answers these images for a model of the same head."""
        return model if self.folds is None else _fold(self.folds, model, self.number).model


_kept: WeakKeyDictionary[AnchorBank, list[_Validation]] = WeakKeyDictionary()
"""What is known of models that are in use, so that of a further change only what differs is computed."""


def measure(before: ModelState, after: Model, touched: set[int]) -> Effect:
    """Measure top-1 accuracy before and after a change on classes that are in both models and not in `touched`.

    Args:
        before: The state before, whose commit has the validation images; without any its anchors are not read.
        after: The model after.
        touched: Ids of the classes that changed.
    """
    same_head = after.saved is before.head
    was = _load(before, same_head)
    if not was:
        return Effect(unmeasured=True)
    now = [_changed(after, one, same_head) for one in was]
    _kept[after.bank] = now
    owners = _owners(after, was)
    there = torch.isin(owners, Model.of(before).class_ids) & torch.isin(owners, after.class_ids)
    there &= ~torch.isin(owners, torch.tensor(sorted(touched), dtype=torch.int64))
    if not bool(there.any()):
        return Effect(unmeasured=True)
    accuracy_before, accuracy_after = (
        float((torch.cat([one.answers for one in answered]) == owners)[there].double().mean())
        for answered in (was, now)
    )
    return Effect(accuracy_before, accuracy_after, int(there.sum()))


def _load(state: ModelState, same_head: bool) -> list[_Validation]:
    """Read the validation images of a commit, and answer them, unless the edit before has left that.

    Those of a cross-validation are in a part for each model; it says nothing of another head.
    Without an image there is no part.
    """
    snapshot = state.snapshot
    most = max(_FEWEST, min(_MOST, _SCORES // max(1, len(state.classes))))
    # Ordered by ids, which are hashes, so that the first ones are a random sample.
    ids: list[str] = loading.usable_images(snapshot, "val", []).slice(0, most)["image_id"].to_pylist()
    found = []
    if ids:
        known = _known(state)
        if [one.image_ids for one in known] == [ids]:
            return known
        with suppress(MissingStepError):  # not embedded yet
            features = loading.image_vectors_of(snapshot, ids)
            model = Model.of(state)
            found = [_answered(model, model, features, ids)]
    folds = open_folds(snapshot) if same_head and not found else None
    if folds is not None:
        found = _of_folds(state, folds, -(-most // folds.number))
    if found:
        _kept[state.anchors.bank] = found
    return found


def _of_folds(state: ModelState, folds: Folds, most: int) -> list[_Validation]:
    """Answer at most `most` images of each fold."""
    model = Model.of(state)
    known = {tuple(one.image_ids): one for one in _known(state)}
    found = []
    for number in range(folds.number):
        fold = _fold(folds, model, number)
        ids = fold.image_ids[:most]
        if not ids:
            continue
        one = known.get(tuple(ids)) or _answered(model, fold.model, fold.features[:most], ids)
        found.append(replace(one, folds=folds, number=number))
    return found


def _fold(folds: Folds, model: Model, number: int) -> Fold:
    return folds.open(model, number, own_anchors=False)


def _answered(model: Model, judge: Model, features: Tensor, image_ids: list[str]) -> _Validation:
    """Return what `judge`, which has the anchors of `model`, answers."""
    logits = _text_logits(judge, features, judge.bank)
    return _Validation(
        commit=model.commit,
        folds=None,
        number=0,
        features=features,
        image_ids=image_ids,
        columns=_Columns.of(model.anchors),
        text_logits=logits,
        answers=_answers(judge, features, logits),
    )


def _known(state: ModelState) -> list[_Validation]:
    """Return what an edit before has left of this commit: others may share the bank."""
    return [one for one in _kept.get(state.anchors.bank, []) if one.commit == state.record.commit]


def _owners(model: Model, known: Sequence[_Validation]) -> Tensor:
    """Return the class ids of the validation images in a model's commit, int64 [V]; -1 for one that is gone."""
    split = "val" if known[0].folds is None else "train"
    rows = loading.usable_images(model.state.snapshot, split, [])
    owner_of = dict(zip(rows["image_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
    return torch.tensor([owner_of.get(i, -1) for one in known for i in one.image_ids], dtype=torch.int64)


def _changed(model: Model, was: _Validation, same_head: bool) -> _Validation:
    """Return what a model answers after a change; columns of classes with the same anchors are those of before.

    New images change the loss of every sentence a little; a class whose losses moved almost equally keeps its column.
    """
    judge = was.judge(model)
    columns = _Columns.of(model.anchors)
    at = torch.full_like(columns.class_ids, -1)
    if same_head and len(was.columns.class_ids):
        columns, at = columns.after(was.columns)
    logits = was.features.new_empty(len(was.features), len(at))
    logits[:, at >= 0] = was.text_logits[:, at[at >= 0]]
    new = (at < 0).nonzero()[:, 0]
    if len(new):
        bank = model.bank if len(new) == len(at) else model.bank.select(new)
        logits[:, new] = _text_logits(judge, was.features, bank)
    answers = _answers(judge, was.features, logits)
    return replace(was, commit=was.commit + 1, columns=columns, text_logits=logits, answers=answers)


@torch.inference_mode()
def _text_logits(model: Model, features: Tensor, bank: AnchorBank) -> Tensor:
    if not len(features) or not bank.num_classes:
        return torch.empty(len(features), bank.num_classes)
    head = model.saved.head
    return torch.cat([head.text_logits(part, bank) for part in features.split(_BATCH)])


@torch.inference_mode()
def _answers(model: Model, features: Tensor, text_logits: Tensor) -> Tensor:
    """Return the ids of the classes with the highest probability, int64 [V]."""
    fused = model.fuse(model.visual_scores(features), model.whole(text_logits))
    return model.class_ids[fused.probabilities.argmax(1)]
