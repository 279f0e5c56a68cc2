"""What a change of classes does to the others: their accuracy before and after, on images held out of training.

Each image is answered by the model of its fold, which was fitted without it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vlltr_index.heads.offsets import BOUNDED, BUDGET
from vlltr_index.heads.weighing import balanced_shares
from vlltr_index.recognition.added import fold_scores
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.records import FEW_UNITS
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.recognition.added import FoldScores


@dataclass(frozen=True)
class Effect:
    """Balanced accuracy on the classes that a change did not touch, before and after, on images held out of training.

    Attributes:
        before, after: None if there are no such images, or the change cannot have an effect.
        images, groups: How many it is measured on.
        right_groups: How many of the groups have an image that was classified correctly before.
        takes: How many images each touched class takes from one of the others, most first: the class, the number, and
            the class from which it takes most.
        unmeasured: Whether there may be an effect, but no image to measure it on.
    """

    before: float | None = None
    after: float | None = None
    images: int = 0
    groups: int = 0
    right_groups: int = 0
    takes: tuple[tuple[str, int, str], ...] = ()
    unmeasured: bool = False

    @property
    def warning(self) -> str | None:
        """What is said if the accuracy fell by more than the budget of added classes; of few images nothing."""
        if self.before is None or self.after is None or self.groups < FEW_UNITS:
            return None
        if self.before - self.after <= BUDGET:
            return None
        return (
            f"Warning: accuracy on existing classes drops by {100 * (self.before - self.after):.1f} points."
        )

    @property
    def certainty(self) -> str | None:
        """What is said where few groups were held out: the loss on new images may be larger."""
        if self.before is None or self.right_groups >= BOUNDED:
            return None
        right = plural(self.right_groups, "correctly classified group")
        return f"Measured on {right} of images: the loss on new images is not bounded."


_kept: WeakKeyDictionary[AnchorBank, tuple[int, FoldScores | None]] = WeakKeyDictionary()
"""Scores of a model that is in use, by its anchors and commit: of a further change they are those before it."""


def measure(before: Model, after: Model, touched: set[int]) -> tuple[Effect, dict[int, float]]:
    """Measure accuracy before and after a change on classes that are in both models and not in `touched`.

    Args:
        before: The model before.
        after: The model after; its offsets of added classes are not used.
        touched: Ids of the classes that changed.

    Returns:
        The effect, and the offsets of the added classes.
    """
    now = fold_scores(after)
    if now is None:
        return Effect(unmeasured=True), {}
    offsets = now.offsets()
    _kept[after.bank] = after.commit + 1, now
    only_added = after.saved is before.saved and not touched & set(before.class_ids.tolist())
    were = now if only_added and _within(before, now) else _scores_of(before)
    if were is None:
        return Effect(unmeasured=True), offsets
    others = torch.tensor(sorted(set(before.class_ids.tolist()) - touched), dtype=torch.int64)
    place = {image_id: row for row, image_id in enumerate(were.image_ids)}
    old = torch.tensor([place.get(image_id, -1) for image_id in now.image_ids])
    rows = (old >= 0) & torch.isin(now.labels, others) & torch.isin(now.labels, after.class_ids)
    if not bool(rows.any()):
        return Effect(unmeasured=True), offsets
    was = were.answers(before.class_ids, before.offsets)[old[rows]]
    found = now.answers(after.class_ids, offsets)[rows]
    labels = now.labels[rows]
    shares = balanced_shares(labels, now.groups[rows])
    accuracy = [float((answers == labels).double() @ shares) for answers in (was, found)]
    return Effect(
        before=accuracy[0],
        after=accuracy[1],
        images=len(labels),
        groups=len(now.groups[rows].unique()),
        right_groups=len(now.groups[rows][was == labels].unique()),
        takes=_takes(after, labels, was, found, touched),
    ), offsets


def _within(model: Model, scores: FoldScores) -> bool:
    return set(model.class_ids.tolist()) <= set(scores.class_ids.tolist())


def _scores_of(model: Model) -> FoldScores | None:
    """Return the scores before a change, which an earlier change in this process may have left."""
    kept = _kept.get(model.bank)
    return kept[1] if kept is not None and kept[0] == model.commit else fold_scores(model)


def _takes(
    model: Model, labels: Tensor, was: Tensor, found: Tensor, touched: set[int]
) -> tuple[tuple[str, int, str], ...]:
    """Count the correctly classified images that each touched class takes, see `Effect`."""
    names = model.names
    lost = (was == labels) & torch.isin(found, torch.tensor(sorted(touched), dtype=torch.int64))
    pairs = Counter(zip(found[lost].tolist(), labels[lost].tolist(), strict=True))
    takers = Counter[int]()
    for (taker, _), number in pairs.items():
        takers[taker] += number
    most = {
        taker: max((n, owner) for (one, owner), n in pairs.items() if one == taker)[1] for taker in takers
    }
    return tuple((names[taker], number, names[most[taker]]) for taker, number in takers.most_common())
