"""Retrieval: answers over all classes, in which only the promising classes are scored exactly.

These candidates are the most probable classes when each is represented by its prototype (the mean of its anchors,
weighed by their losses), and the classes of the image's nearest anchors, since attended anchors can be nearer to the
image than their mean. Every other class stays in the denominator of the softmax: its logit is estimated as that of its
prototype, raised by what attention added to the candidates' logits on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.anchors.index import AnchorIndex
from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.fusion import FusedScores
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.schemas.options import Prior
from vlltr_index.schemas.records import MANY_ANCHORS
from vlltr_index.tensors import class_positions, unit_rows

Fuse = Callable[[Tensor, Tensor], tuple[FusedScores, Tensor]]
"""Takes image rows int64 [b] and text logits [b, C]; gives fused scores, and how much an answer depends on each class's
text logit, [b, C]."""

_DENSE = 32  # anchors per class
_FEW = (
    1 / 16
)  # of the classes: an image with more candidates is scored on all, which takes one product for a batch


def scores_every_class(retrieval: str) -> bool:
    """Say whether a retrieval scores every class exactly."""
    return retrieval == "exhaustive"


def possible_retrieval(retrieval: str, prior: Prior, among_some: bool = False) -> str:
    """Return a requested retrieval, or `exhaustive` where an index cannot be used.

    An index finds the best of all classes, and takes them to be equally common.

    Args:
        retrieval: One of `RETRIEVALS`.
        prior: The class prior of the answers.
        among_some: Whether the answers are among some of the classes.
    """
    return "exhaustive" if among_some or prior != "balanced" else retrieval


def choose_index(
    retrieval: str,
    images: int,
    bank: AnchorBank,
    device: torch.device,
    open_index: Callable[[], AnchorIndex | None],
) -> AnchorIndex | None:
    """Return the index to retrieve classes with, or None to score every class.

    `auto` uses the index where it is quicker: on a CPU, with many anchors and an index that does not search all of
    them; for several images only with many anchors per class, since retrieval scores each class's prototype.

    Args:
        retrieval: One of `RETRIEVALS`.
        images: How many images are scored at once.
        bank: The anchors.
        device: Where images are scored.
        open_index: Opens the index of the anchors, if there is one; called only if it may be used.
    """
    if scores_every_class(retrieval):
        return None
    if retrieval != "auto":
        return open_index()
    anchors = len(bank.vectors)
    is_quick = device.type != "cuda" and anchors >= MANY_ANCHORS
    is_quick = is_quick and (images == 1 or anchors >= _DENSE * bank.num_classes)
    index = open_index() if is_quick else None
    return None if index is None or index.is_exact else index


def retrieval_of(index: AnchorIndex | None) -> str:
    """Return what answers call the retrieval by an index; None: every class is scored."""
    return "exhaustive" if index is None else "faiss"


class AnchorClasses:
    """Map from anchor keys to the classes that they belong to.

    Args:
        keys: Integers [A], distinct anchor keys, at least one.
        classes: Integers [A], the class *position*, 0 to num_classes - 1, of each anchor.
        num_classes: Number of classes, C.
    """

    def __init__(self, keys: Tensor, classes: Tensor, num_classes: int) -> None:
        self.num_classes = num_classes
        self._keys, order = keys.long().sort()
        self._classes = classes.long()[order]

    def positions(self, keys: Tensor) -> Tensor:
        """Return the class position of each of `keys`, same shape, int64; -1 for unknown keys, such as padding."""
        at = class_positions(self._keys, keys.to(self._keys.device))
        return torch.where(at < 0, -1, self._classes[at]).to(keys.device)


@dataclass(frozen=True, eq=False)
class Retrieved:
    """Result of retrieval.

    Attributes:
        fused: Scores of all classes [B, C]; the text logits are exact for candidates and estimated for other classes.
        candidates: Bool [B, C].
        residual: Float [B], how much of the probability depends on estimates: that of all classes that are not
            candidates; under `paper` its text part.
    """

    fused: FusedScores
    candidates: Tensor
    residual: Tensor


def nearest_classes(
    image_features: Tensor, index: AnchorIndex, anchor_classes: AnchorClasses, neighbours: int
) -> Tensor:
    """Find the classes of each image's nearest anchors, bool [B, C].

    Args:
        image_features: Float [B, D], normalised or not.
        index: The index of the normalised anchors.
        anchor_classes: Map from anchor key to class position.
        neighbours: Number of nearest anchors whose classes are taken; may be 0.
    """
    shape = len(image_features), anchor_classes.num_classes + 1
    found = torch.zeros(shape, dtype=torch.bool, device=image_features.device)
    if neighbours:
        positions = anchor_classes.positions(index.search(unit_rows(image_features), neighbours)[1])
        found.scatter_(
            1, positions.where(positions >= 0, shape[1] - 1), True
        )  # padding goes to an extra column
    return found[:, :-1]


def estimated_text_logits(prototype_logits: Tensor, exact_logits: Tensor, candidate_mask: Tensor) -> Tensor:
    """Combine exact logits of candidates with estimates for all others: prototype logit plus the candidates' mean lift.

    The lift of a class is its exact logit less its prototype logit, which attention adds. An estimate stays below the
    image's best candidate.

    Args:
        prototype_logits: Float [B, C].
        exact_logits: Float [B, C]; only the candidates' values are used.
        candidate_mask: Bool [B, C], at least one candidate in each row.

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
    """Score all classes, only the candidates exactly.

    The first candidates of an image are the `best` classes by prototypes and by visual scores, the most probable
    classes by both until at most half of `max_residual` is left, and the classes of its nearest anchors. While more
    than `max_residual` of the answer depends on estimates, or an estimated class would win, the best estimated classes
    become candidates, and their number doubles in each round. An image with many candidates is scored on all classes.
    Its answer does not depend on the other images of the batch.

    Args:
        image_features: Float [B, D], unnormalised.
        head: The head.
        bank: The head's anchors, of C classes.
        index: The index of the normalised anchors.
        anchor_classes: Map from anchor key to position in the bank.
        visual_scores: Float [B, C], scores without text; under `paper` minus infinity for classes without a row.
        fuse: Fuses visual scores with text logits.
        neighbours: Number of nearest anchors whose classes are candidates; may be 0.
        best: At least 1: number of candidates by prototypes, as many by visual scores, and as many at least by both.
        max_residual: Largest part of an answer that may depend on estimates, between 0 and 1.

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
            few = torch.zeros_like(few)  # most rows need the product with all anchors anyway
        all_of = rows[~few]
        if len(all_of):
            exact[all_of] = head.text_logits(image_features[all_of], bank).to(exact.dtype)
        _score_pairs(head, image_features, bank, rows=rows[few], wanted=pending[few], exact=exact)
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
    """Say for each row of bool [b, C] whether it has so few classes that scoring these alone is quicker: bool [b]."""
    return mask.sum(1) <= _FEW * mask.shape[1]


def _put(whole: FusedScores, part: FusedScores, rows: Tensor) -> FusedScores:
    """Put the scores `part` into the rows of `whole`, in place, and return the result."""
    if len(rows) == len(whole.probabilities):
        return part
    for values, new in zip(whole.tensors, part.tensors, strict=True):
        values[rows] = new
    return whole


def _score_pairs(
    head: LGRHead, image_features: Tensor, bank: AnchorBank, rows: Tensor, wanted: Tensor, exact: Tensor
) -> None:
    """Write the exact logits of the classes `wanted` [b, C] for the images `rows` [b] into `exact` [B, C]."""
    images, classes = wanted.nonzero().unbind(1)
    order = classes.argsort()  # so that the anchors of a class are read for all its images in turn
    at = rows[images[order]]
    classes = classes[order]
    exact[at, classes] = head.pair_text_logits(image_features, bank, at, classes).to(exact.dtype)


def _of_best(values: Tensor, number: int) -> Tensor:
    """Mark the largest values of each row, bool [B, C]; minus infinity never counts."""
    best, at = values.topk(min(number, values.shape[1]))
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, at, best > float("-inf"))


def _largest(text_part: Tensor, max_residual: float, least: int) -> Tensor:
    """Mark the largest text parts of each row, bool [b, C].

    At least `least` are marked, and so many that all others add up to at most half of `max_residual`.
    """
    best, at = text_part.topk(min(least, text_part.shape[1]))
    taken = torch.zeros_like(text_part, dtype=torch.bool).scatter_(1, at, True)
    short = text_part.sum(1) - best.sum(1) > max_residual / 2
    parts, order = text_part[short].sort(dim=1, descending=True)
    left = parts.flip(1).cumsum(1).flip(1)  # sum of this part and all smaller ones
    taken[short] |= torch.zeros_like(taken[short]).scatter_(1, order, left > max_residual / 2)
    return taken
