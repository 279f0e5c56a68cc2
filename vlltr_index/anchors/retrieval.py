"""An answer over all classes at the cost of a few: promising classes are scored exactly, the others estimated.

Candidates are the classes that the answer rests on when each is known by its prototype (the mean anchor, as attention
without an image would weigh it), and those of an image's nearest anchors, since attended anchors can come nearer to the
image than their mean. Every other class stays in the denominator with its prototype's logit, raised by what attention
gave the candidates on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.anchors.index import AnchorIndex
from vlltr_index.embedding.loading import class_positions
from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.fusion import FusedScores
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.tensors import unit_rows

Fuse = Callable[[Tensor, Tensor], tuple[FusedScores, Tensor]]
"""Called with image rows int64 [b] and text logits [b, C]; gives fused scores and how much of an answer rests on each
class's text logit, [b, C]."""

_FEW = 1 / 16  # of the classes: an image that wants more is scored on all, which a batch does in one product


class AnchorClasses:
    """Which class an anchor belongs to.

    Args:
        keys: Integers [A], distinct anchor keys, at least one.
        classes: Integers [A], the class *position*, 0 to num_classes - 1, of each.
        num_classes: C.
    """

    def __init__(self, keys: Tensor, classes: Tensor, num_classes: int) -> None:
        self.num_classes = num_classes
        self._keys, order = keys.long().sort()
        self._classes = classes.long()[order]

    def positions(self, keys: Tensor) -> Tensor:
        """Class position of each of `keys`, same shape, int64; -1 for keys that are not there, such as padding."""
        at = class_positions(self._keys, keys.to(self._keys.device))
        return torch.where(at < 0, -1, self._classes[at]).to(keys.device)


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What retrieval gives.

    Attributes:
        fused: Scores of all classes [B, C]; its text logits are exact for the candidates and estimated for the others.
        candidates: Bool [B, C].
        residual: Float [B], how much of the probability rests on estimates: all of that of the classes that are not
            candidates, under `paper` its text part.
    """

    fused: FusedScores
    candidates: Tensor
    residual: Tensor


def nearest_classes(
    image_features: Tensor, index: AnchorIndex, anchor_classes: AnchorClasses, neighbours: int
) -> Tensor:
    """The classes of each image's nearest anchors, bool [B, C].

    Args:
        image_features: Float [B, D], unnormalised or not.
        index: Over the normalised anchors.
        anchor_classes: From anchor key to class position.
        neighbours: Nearest anchors whose classes are taken; may be 0.
    """
    shape = len(image_features), anchor_classes.num_classes + 1
    found = torch.zeros(shape, dtype=torch.bool, device=image_features.device)
    if neighbours:
        positions = anchor_classes.positions(index.search(unit_rows(image_features), neighbours)[1])
        found.scatter_(1, positions.where(positions >= 0, shape[1] - 1), True)  # the last column is padding's
    return found[:, :-1]


def estimated_text_logits(prototype_logits: Tensor, exact_logits: Tensor, candidate_mask: Tensor) -> Tensor:
    """Exact logits for candidates, for all others the prototype's logit and the candidates' mean lift.

    The lift of a class is what attention adds: exact logit less prototype logit. An estimate stays below the image's
    best candidate.

    Args:
        prototype_logits: Float [B, C].
        exact_logits: Float [B, C]; only the candidates' values count.
        candidate_mask: Bool [B, C], at least one a row.

    Returns:
        Float [B, C].
    """
    lifts = torch.where(candidate_mask, exact_logits - prototype_logits, 0.0)
    lift = lifts.sum(1, keepdim=True) / candidate_mask.sum(1, keepdim=True)
    best = exact_logits.masked_fill(~candidate_mask, float("-inf")).amax(1, keepdim=True)
    ceiling = best - 1e-6 * (1.0 + best.abs())
    return torch.where(candidate_mask, exact_logits, torch.minimum(prototype_logits + lift, ceiling))


@torch.no_grad()
def retrieve(
    image_features: Tensor,
    head: LGRHead,
    bank: AnchorBank,
    index: AnchorIndex,
    anchor_classes: AnchorClasses,
    visual_scores: Tensor,
    fuse: Fuse,
    *,
    neighbours: int = 32,
    best: int = 8,
    max_residual: float = 0.05,
) -> Retrieved:
    """Scores of all classes, where only candidates are scored exactly.

    Candidates are first the `best` of each side, those that the answer by prototypes rests on but for half of
    `max_residual`, and those of the nearest anchors. Where more than `max_residual` of the answer still rests on
    estimates, or an estimated class would win, the best estimated classes join, until it is not so. An image that
    wants many classes is scored on all of them. What an image gets does not depend on the images beside it.

    Args:
        image_features: Float [B, D], unnormalised.
        head: The head.
        bank: Its anchors, of C classes.
        index: Over the normalised anchors.
        anchor_classes: From anchor key to position in the bank.
        visual_scores: Float [B, C], what the image side says; under `paper` minus infinity for classes without a row.
        fuse: Puts image side and text logits together.
        neighbours: Nearest anchors whose classes are candidates; may be 0.
        best: At least 1: candidates by the prototypes, as many by the image side, and as many at least by both and in
            each later round.
        max_residual: Between 0 and 1.

    Raises:
        InputError: There is no class.
    """
    if not bank.num_classes:
        raise InputError("there is no class to score", "Run: vlltr select")
    known = head.prototype_logits(image_features, bank)
    rows = torch.arange(len(known), device=known.device)
    whole, text_part = fuse(rows, known)
    mask = _of_best(known, best) | _of_best(visual_scores, best) | _largest(text_part, max_residual, best)
    some = rows[_are_few(mask)]
    mask[some] |= nearest_classes(image_features[some], index, anchor_classes, neighbours)
    exact = torch.zeros_like(known)
    residual = known.new_zeros(len(known))
    pending = mask
    at: Tensor | slice = slice(None)
    while len(rows):
        few = _are_few(mask[at])
        mask[rows[~few]] = True
        if 2 * int(few.sum()) < len(rows):
            few = torch.zeros_like(few)  # the product with all anchors is made anyway
        all_of = rows[~few]
        if len(all_of):
            exact[all_of] = head.text_logits(image_features[all_of], bank).to(exact.dtype)
        _score_pairs(head, image_features, bank, rows[few], pending[few], exact)
        fused, text_part = fuse(rows, estimated_text_logits(known[at], exact[at], mask[at]))
        whole = _put(whole, fused, rows)
        text_part = text_part.masked_fill(mask[at], 0.0)
        residual[at] = text_part.sum(1).to(residual.dtype)
        winner = _of_best(fused.probabilities, 1) & ~mask[at]
        unsettled = (residual[at] > max_residual) | winner.any(1)
        at = rows = rows[unsettled]
        best *= 2
        pending = (_largest(text_part[unsettled], max_residual, best) | winner[unsettled]) & ~mask[at]
        mask[at] |= pending
    return Retrieved(whole, mask, residual)


def _are_few(mask: Tensor) -> Tensor:
    """Whether so few classes are wanted, bool [b, C], that scoring these alone is quicker: bool [b]."""
    return mask.sum(1) <= _FEW * mask.shape[1]


def _put(whole: FusedScores, part: FusedScores, rows: Tensor) -> FusedScores:
    """`whole` with `part` in its rows."""
    if len(rows) == len(whole.probabilities):
        return part
    for values, new in zip(whole, part, strict=True):
        values[rows] = new
    return whole


def _score_pairs(
    head: LGRHead, image_features: Tensor, bank: AnchorBank, rows: Tensor, wanted: Tensor, exact: Tensor
) -> None:
    """Put the exact logits of the classes `wanted` [b, C] by the images `rows` [b] into `exact` [B, C]."""
    images, classes = wanted.nonzero().unbind(1)
    order = classes.argsort()  # images that want the same class read its anchors one after the other
    at = rows[images[order]]
    classes = classes[order]
    exact[at, classes] = head.pair_text_logits(image_features, bank, at, classes).to(exact.dtype)


def _of_best(values: Tensor, number: int) -> Tensor:
    """Where each row has its largest values, bool [B, C]; minus infinity never counts."""
    best, at = values.topk(min(number, values.shape[1]))
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, at, best > float("-inf"))


def _largest(text_part: Tensor, max_residual: float, least: int) -> Tensor:
    """Where each row has its largest text parts, bool [b, C].

    At least `least`, and so many that all others add up to no more than half of `max_residual`.
    """
    best, at = text_part.topk(min(least, text_part.shape[1]))
    taken = torch.zeros_like(text_part, dtype=torch.bool).scatter_(1, at, True)
    short = text_part.sum(1) - best.sum(1) > max_residual / 2
    parts, order = text_part[short].sort(dim=1, descending=True)
    left = parts.flip(1).cumsum(1).flip(1)  # of this class and all smaller ones
    taken[short] |= torch.zeros_like(taken[short]).scatter_(1, order, left > max_residual / 2)
    return taken
