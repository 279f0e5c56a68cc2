"""Text logits of all classes at the cost of a few: retrieved classes are scored exactly, the others estimated.

Candidates are the classes of an image's nearest anchors, those of its best prototypes (the mean anchor of a class, as
attention without an image would weigh it) and the best of the image side: the nearest anchors alone promise
nothing, because attended anchors can come nearer to the image than any single one. Every other class stays in the
denominator with its prototype's logit, raised by what attention gave the candidates on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.anchors.exact import AnchorIndex
from vlltr_index.errors import InputError
from vlltr_index.tensors import check_labels, check_matrix, unit_rows

__all__ = [
    "AnchorClasses",
    "Fuse",
    "Retrieved",
    "Score",
    "candidates",
    "estimated_text_logits",
    "retrieve_text_logits",
]

Score = Callable[[Tensor, Tensor | None], Tensor]
"""Called with image rows int64 [b] and class positions int64 [n], ascending, or None for all classes; gives exact
text logits [b, n]."""

Fuse = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Called with image rows int64 [b] and text logits [b, C]; gives probabilities and their text part, both [b, C]."""

_IMAGES_AT_ONCE = 4  # images scored against the union of their candidates
_GATHER_COST = 2.75  # a class gathered for one image, against a class of the whole bank (1 + images / 26)


class AnchorClasses:
    """Which class an anchor belongs to.

    Args:
        keys: Integers [A], distinct anchor keys.
        classes: Integers [A], the class *position*, 0 to num_classes - 1, of each.
        num_classes: C.

    Raises:
        InputError: Shapes do not fit, or a position is out of range.
    """

    def __init__(self, keys: Tensor, classes: Tensor, num_classes: int) -> None:
        check_labels("keys", keys)
        check_labels("classes", classes, size=keys.shape[0], classes=num_classes)
        self.num_classes = num_classes
        self._keys, order = keys.long().sort()
        self._classes = classes.long()[order]

    def positions(self, keys: Tensor) -> Tensor:
        """Class position of each of `keys`, same shape, int64; -1 for keys that are not there, such as padding."""
        if not len(self._keys):
            return torch.full_like(keys, -1)
        wanted = keys.to(self._keys.device)
        at = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[at] == wanted, self._classes[at], -1).to(keys.device)


@dataclass(frozen=True, eq=False)
class Retrieved:
    """What retrieval gives.

    Attributes:
        text_logits: Float [B, C], exact for the candidates and estimated for the others.
        candidates: Bool [B, C].
        residual: Float [B], how much of the probability rests on estimates: all of that of the classes that are not
            candidates, under `paper` its text part.
    """

    text_logits: Tensor
    candidates: Tensor
    residual: Tensor


def candidates(
    image_features: Tensor,
    index: AnchorIndex,
    prototype_logits: Tensor,
    visual_logits: Tensor,
    anchor_classes: AnchorClasses,
    want: int = 64,
    prototypes: int = 64,
    visual_top: int = 16,
) -> Tensor:
    """The classes worth scoring exactly for each image.

    Args:
        image_features: Float [B, D], unnormalised or not.
        index: Over the normalised anchors.
        prototype_logits: Float [B, C], scale * cosine with the mean anchor of each class.
        visual_logits: Float [B, C], what the image side says; under `paper` minus infinity for classes without a row.
        anchor_classes: From anchor key to class position.
        want: Distinct classes that the nearest anchors must give; neighbours are doubled until they do, or until
            the index has no more.
        prototypes: Best prototypes taken.
        visual_top: Best classes of the image side taken.

    Returns:
        Bool [B, C].

    Raises:
        InputError: Shapes do not fit, or a number is negative.
    """
    batch, classes = image_features.shape[0], anchor_classes.num_classes
    check_matrix("image_features", image_features, columns=index.dim)
    check_matrix("prototype_logits", prototype_logits, columns=classes, rows=batch)
    check_matrix("visual_logits", visual_logits, columns=classes, rows=batch)
    if min(want, prototypes, visual_top) < 0:
        raise InputError(f"numbers of candidates cannot be negative: {want}, {prototypes}, {visual_top}")
    if classes <= max(want, prototypes):
        return torch.ones_like(prototype_logits, dtype=torch.bool)
    chosen = _of_best(prototype_logits, prototypes) | _of_best(visual_logits, visual_top)
    if want and index.size:
        chosen |= _of_nearest(unit_rows(image_features), index, anchor_classes, want)
    return chosen


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

    Raises:
        InputError: Shapes do not fit, or an image has no candidate.
    """
    check_matrix("prototype_logits", prototype_logits)
    batch, classes = prototype_logits.shape
    check_matrix("exact_logits", exact_logits, columns=classes, rows=batch)
    if candidate_mask.shape != prototype_logits.shape or candidate_mask.dtype != torch.bool:
        raise InputError(f"candidate_mask must be bool {[batch, classes]}, got {list(candidate_mask.shape)}")
    if not bool(candidate_mask.any(1).all()):
        raise InputError("an image has no candidate class to estimate the others from")
    lifts = torch.where(candidate_mask, exact_logits - prototype_logits, 0.0)
    lift = lifts.sum(1, keepdim=True) / candidate_mask.sum(1, keepdim=True)
    best = exact_logits.masked_fill(~candidate_mask, float("-inf")).amax(1, keepdim=True)
    ceiling = best - 1e-6 * (1.0 + best.abs())
    return torch.where(candidate_mask, exact_logits, torch.minimum(prototype_logits + lift, ceiling))


@torch.no_grad()
def retrieve_text_logits(
    image_features: Tensor,
    index: AnchorIndex,
    anchor_classes: AnchorClasses,
    prototype_logits: Tensor,
    visual_logits: Tensor,
    score: Score,
    fuse: Fuse,
    *,
    want: int = 64,
    prototypes: int = 64,
    visual_top: int = 16,
    max_residual: float = 0.05,
) -> Retrieved:
    """Text logits of all classes, where only candidates are scored exactly.

    Where more than `max_residual` of an image's probability rests on estimates, or an estimated class would win,
    the best estimated classes become candidates too: enough of them to mend that as it looks, and at least as many
    as `prototypes`, next time twice as many.

    Args:
        image_features: As for `candidates`; so are `index`, `prototype_logits`, `visual_logits`,
            `anchor_classes`, `want`, `prototypes` and `visual_top`.
        score: Exact text logits of some images for some classes.
        fuse: Probabilities of some images from text logits.
        max_residual: Between 0 and 1.

    Raises:
        InputError: As `candidates`, or there is no class.
    """
    mask = candidates(
        image_features, index, prototype_logits, visual_logits, anchor_classes, want, prototypes, visual_top
    )
    if not mask.shape[1]:
        raise InputError("there is no class to score", "Run: vlltr select")
    mask |= _of_best(prototype_logits, 1)
    logits, exact = torch.empty_like(prototype_logits), torch.zeros_like(prototype_logits)
    residual = prototype_logits.new_zeros(len(mask))
    rows, pending, least = torch.arange(len(mask), device=mask.device), mask, max(prototypes, 1)
    while len(rows):
        _score(score, rows, pending, exact)
        logits[rows] = estimated_text_logits(prototype_logits[rows], exact[rows], mask[rows])
        probabilities, text_part = fuse(rows, logits[rows])
        estimated = ~mask[rows]
        text_part = torch.where(estimated, text_part, 0.0)
        residual[rows] = text_part.sum(1).to(residual.dtype)
        winner = _of_best(probabilities, 1) & estimated
        unsettled = ((residual[rows] > max_residual) | winner.any(1)) & estimated.any(1)
        joining = _largest(text_part[unsettled], max_residual, least) & estimated[unsettled]
        rows, pending, least = rows[unsettled], joining | winner[unsettled], 2 * least
        mask[rows] |= pending
    return Retrieved(logits, mask, residual)


def _of_best(values: Tensor, number: int) -> Tensor:
    """Where each row has its largest values, bool [B, C]; minus infinity never counts."""
    best, at = values.topk(min(number, values.shape[1]))
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, at, best > float("-inf"))


def _of_nearest(queries: Tensor, index: AnchorIndex, anchor_classes: AnchorClasses, want: int) -> Tensor:
    """Where each row has the `want` classes whose best anchors are nearest, bool [B, C]."""
    classes = anchor_classes.num_classes
    nearest = torch.full((len(queries), classes + 1), float("-inf"), device=queries.device)
    rows = torch.arange(len(queries), device=queries.device)
    k = min(want * max(4, index.size // (4 * classes)), index.size)
    while len(rows):
        scores, keys = index.search(queries[rows], k)
        positions = anchor_classes.positions(keys)
        best = nearest[rows].scatter_reduce(1, positions.where(positions >= 0, classes), scores, "amax")
        nearest[rows] = best
        if k >= index.size:
            break
        short = best[:, :classes].isfinite().sum(1) < min(want, classes)
        rows, k = rows[short], min(2 * k, index.size)
    return _of_best(nearest[:, :classes], want)


def _largest(text_part: Tensor, max_residual: float, least: int) -> Tensor:
    """Where each row has its largest text parts, bool [b, C].

    At least `least`, and so many that all others add up to no more than half of `max_residual`.
    """
    parts, order = text_part.sort(dim=1, descending=True)
    left = parts.flip(1).cumsum(1).flip(1)  # of this class and all smaller ones
    taken = left > max_residual / 2
    taken[:, :least] = True
    return torch.zeros_like(taken).scatter_(1, order, taken)


def _pieces(rows: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few images at a time."""
    for start in range(0, len(rows), _IMAGES_AT_ONCE):
        yield rows[start : start + _IMAGES_AT_ONCE], wanted[start : start + _IMAGES_AT_ONCE]


def _score(score: Score, rows: Tensor, wanted: Tensor, exact: Tensor) -> None:
    """Put the exact logits of the classes `wanted` [b, C] by `rows` [b] into `exact` [B, C].

    Images that together want most classes are scored against all of them, which needs no copy of anchors; but only
    what was wanted is kept, so that an image's answer does not depend on the images beside it.
    """
    images, classes = wanted.shape
    if int(wanted.sum()) * _GATHER_COST > classes * (1 + images / 26):
        exact[rows] = torch.where(wanted, score(rows, None).to(exact.dtype), exact[rows])
        return
    for some, mask in _pieces(rows, wanted):
        union = mask.any(0).nonzero()[:, 0]
        at = some[:, None], union[None, :]
        exact[at] = torch.where(mask[:, union], score(some, union).to(exact.dtype), exact[at])
