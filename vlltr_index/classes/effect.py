"""What a change of classes does to the others: their top-1 accuracy before and after, on images held out of training.

These are those of split val, or the first part of a cross-validation, answered by the model that was fitted without it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vlltr_index.embedding import loading
from vlltr_index.errors import MissingStepError
from vlltr_index.recognition.folds import open_folds

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.recognition.folds import Folds
    from vlltr_index.recognition.model import Model
    from vlltr_index.recognition.state import Anchors

# The effect is measured on as many validation images as keep images times classes below _SCORES, within these bounds.
_SCORES = 4_000_000
_FEWEST = 300
_MOST = 1000
_BATCH = 256
_STILL = 1e-3  # range of a class's loss changes below which its text logits are kept

_AnchorsOfClass = tuple[tuple[str, ...], tuple[float, ...]]  # sentence ids and losses of a class's anchors


@dataclass(frozen=True)
class Effect:
    """Top-1 accuracy of the classes that a change did not touch, before and after, on images held out of training.

    Both are None if there are no such images, or the change cannot have an effect.
    """

    before: float | None = None
    after: float | None = None
    images: int = 0
    unmeasured: bool = False  # there may be an effect, but no validation image to measure it on


@dataclass(frozen=True, eq=False)
class _Validation:
    """A model's answers to validation images, and its text logits, which take most of the time.

    Attributes:
        commit: The number of the model's commit.
        folds: The cross-validation whose first part the images are, and whose model answers; None: split val.
        features: Float [V, D], stored vectors, unnormalised; V may be 0.
        image_ids: Their ids.
        anchors_of: By class, in the anchor bank's order, the anchors that its column was computed from.
        text_logits: Float [V, C_a], one column for each class of the anchor bank.
        answers: Int64 [V], the ids of the classes with the highest probability.
    """

    commit: int
    folds: Folds | None
    features: Tensor
    image_ids: list[str]
    anchors_of: dict[int, _AnchorsOfClass]
    text_logits: Tensor
    answers: Tensor


_kept: WeakKeyDictionary[AnchorBank, _Validation] = WeakKeyDictionary()
"""What is known of models that are in use, so that of a further change only what differs is computed."""


def measure(before: Model, after: Model, touched: set[int]) -> Effect:
    """Measure top-1 accuracy before and after a change on classes that are in both models and not in `touched`.

    Args:
        before: The model before; its state has the validation images.
        after: The model after.
        touched: Ids of the classes that changed.
    """
    was = _load(before)
    same_head = after.saved is before.saved
    if was.folds is not None and not same_head:
        return Effect(unmeasured=True)
    now = _changed(after, was, same_head)
    owners = _owners(after, was)
    there = torch.isin(owners, before.class_ids) & torch.isin(owners, after.class_ids)
    there &= ~torch.isin(owners, torch.tensor(sorted(touched), dtype=torch.int64))
    if not bool(there.any()):
        return Effect(unmeasured=True)
    accuracy_before = float((was.answers == owners)[there].double().mean())
    accuracy_after = float((now.answers == owners)[there].double().mean())
    return Effect(accuracy_before, accuracy_after, int(there.sum()))


def _load(model: Model) -> _Validation:
    """Read the validation images of a model's commit, and answer them, unless the edit before has left that."""
    snapshot = model.state.snapshot
    known = _kept.get(model.bank)
    if known is not None and known.commit != model.commit:  # commits may share a bank
        known = None
    most = max(_FEWEST, min(_MOST, _SCORES // len(model.class_ids)))
    # Ordered by ids, which are hashes, so that the first ones are a random sample.
    ids: list[str] = loading.usable_images(snapshot, "val", []).slice(0, most)["image_id"].to_pylist()
    if known is not None and ids and known.image_ids == ids:
        return known
    features = torch.empty(0, model.saved.head.dim)
    if ids:
        with suppress(MissingStepError):  # not embedded yet, so the effect is not measured
            features = loading.image_vectors_of(snapshot, ids)
    judge = model
    folds = None if len(features) else open_folds(snapshot)
    if folds is not None:
        fold = folds.open(model, 0, own_anchors=False)
        judge = fold.model
        features = fold.features[:most]
        ids = fold.image_ids[:most]
        if known is not None and known.image_ids == ids:
            return replace(known, folds=folds)
    logits = _text_logits(judge, features, judge.bank)
    found = _Validation(
        commit=model.commit,
        folds=folds,
        features=features,
        image_ids=ids[: len(features)],
        anchors_of=_anchors_of(model.anchors),
        text_logits=logits,
        answers=_answers(judge, features, logits),
    )
    _kept[model.bank] = found
    return found


def _owners(model: Model, known: _Validation) -> Tensor:
    """Return the class ids of the validation images in a model's commit, int64 [V]; -1 for one that is gone."""
    split = "val" if known.folds is None else "train"
    rows = loading.usable_images(model.state.snapshot, split, [])
    owner_of = dict(zip(rows["image_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
    return torch.tensor([owner_of.get(i, -1) for i in known.image_ids], dtype=torch.int64)


def _changed(model: Model, was: _Validation, same_head: bool) -> _Validation:
    """Return what a model answers after a change; columns of classes with the same anchors are those of before.

    New images change the loss of every sentence a little; a class whose losses moved almost equally keeps its column.
    """
    judge = model if was.folds is None else was.folds.open(model, 0, own_anchors=False).model
    anchors_of = dict[int, _AnchorsOfClass]()
    places = []
    place = {class_id: n for n, class_id in enumerate(was.anchors_of)}
    for class_id, one in _anchors_of(model.anchors).items():
        old = was.anchors_of.get(class_id)
        same = same_head and old is not None and _alike(old, one)
        places.append(place[class_id] if same else -1)
        anchors_of[class_id] = old if same and old is not None else one
    at = torch.tensor(places, dtype=torch.int64)
    logits = was.features.new_empty(len(was.features), len(at))
    logits[:, at >= 0] = was.text_logits[:, at[at >= 0]]
    new = (at < 0).nonzero()[:, 0]
    if len(new):
        bank = model.bank if len(new) == len(at) else model.bank.select(new)
        logits[:, new] = _text_logits(judge, was.features, bank)
    answers = _answers(judge, was.features, logits)
    found = replace(was, commit=was.commit + 1, anchors_of=anchors_of, text_logits=logits, answers=answers)
    _kept[model.bank] = found
    return found


def _alike(old: _AnchorsOfClass, new: _AnchorsOfClass) -> bool:
    """Say whether a class has the same anchors as before, whose losses moved almost equally, which changes nothing."""
    if old[0] != new[0]:
        return False
    moves = [b - a for a, b in zip(old[1], new[1], strict=True)]
    return max(moves) - min(moves) < _STILL


def _anchors_of(anchors: Anchors) -> dict[int, _AnchorsOfClass]:
    """Return the anchors of each class with their losses, in the bank's order."""
    bounds = anchors.bank.bounds
    losses = anchors.bank.losses.tolist()
    return {
        class_id: (tuple(anchors.sentence_ids[first:last]), tuple(losses[first:last]))
        for class_id, first, last in zip(
            anchors.bank.class_ids.tolist(), bounds[:-1], bounds[1:], strict=True
        )
    }


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
