"""Near duplicates among images of different classes: the same picture under two labels.

What looks alike there is often an honest look-alike: an accent more, or the same place with another animal. Hence whole
pictures have to agree in each of their parts, not on the whole alone: one is turned and resized a little and slides
over the other, and the part in which the two then differ most counts. It may be larger for pictures that are many
times closer to each other than is usual in their own classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vlltr_index.heads.near_duplicates import (
    copies,
    flat_pictures,
    sample_of,
    standard,
    views_of_middle,
    window_lengths,
)
from vlltr_index.tensors import unit_rows

_NEAREST = 4  # candidates for each picture by its vector, and as many by its pixels
_ROWS = 512
_PAIRS = 256  # that are compared at once
_REACH = 1  # pixels that the middle slides each way
_VIEWS = ((-3.0, 1.0), (0.0, 1.0), (3.0, 1.0), (0.0, 0.95), (0.0, 1.05))
"""Degrees that the middle is turned by, and the part of the picture that is seen in its place."""
_PART = 8  # side of the parts that have to agree
_STEP = 4  # from a part to the next
_PLAIN = 0.5  # share of the mean contrast of all parts that is added to that of each

# Chosen on drawn products, scans, reposts, icons and characters.
_LEAST = 0.6  # correlation of candidates
_APART = 0.15  # largest distance of candidates of which the parts are compared, 1 less the correlation
_SAME = 0.05  # largest difference of a part, for pictures of any classes
_LIKE = 0.12  # the same, for pictures that are closer than is usual in their classes
_SHARE = 0.15  # distance of these, as a share of the median in the class
_FEW = 3  # images that it takes beside a picture to tell what is usual in its class


def near_duplicates_across(features: Tensor | None, thumbnails: Tensor | None, labels: Tensor) -> Tensor:
    """Find pairs of near duplicates among images of different classes.

    Pictures whose thumbnails are of one grey, or missing, are compared by their vectors alone.

    Args:
        features: Float [N, D], unnormalised; None: there are no vectors.
        thumbnails: Uint8 [N, S, S] on the CPU; None: there are none.
        labels: Int64 [N], on the CPU: classes, or what else pairs are to be found across, as the splits of one class.

    Returns:
        Int64 [P, 2], pairs of positions, those that are most alike first. Of many copies of a picture each is in a pair
        with a few.
    """
    vectors = None if features is None else unit_rows(features).float().cpu()
    flat = flat_pictures(thumbnails, len(labels))
    found = [torch.empty(0, 2, dtype=torch.int64)]
    drawn = (~flat).nonzero()[:, 0]
    if thumbnails is not None and len(drawn) > 1:
        own = None if vectors is None else vectors[drawn]
        found.append(drawn[_alike(thumbnails[drawn].float(), own, labels[drawn])])
    if vectors is not None and bool(flat.any()):
        same = copies(vectors, flat.nonzero()[:, 0]).sort(1).values.unique(dim=0)
        found.append(same[labels[same[:, 0]] != labels[same[:, 1]]])
    return torch.cat(found)


def _alike(pictures: Tensor, vectors: Tensor | None, labels: Tensor) -> Tensor:
    """Return the pairs of near duplicates among pictures, float32 [N, S, S], the most alike first."""
    pairs = _candidates(pictures, vectors, labels)
    apart, difference = _compare_parts(pictures, pairs)
    alike = difference <= _SAME
    likely = ((difference <= _LIKE) & ~alike).nonzero()[:, 0]
    if len(likely):
        rows, places = pairs[likely].unique(return_inverse=True)
        usual = _usual_distances(pictures, labels, rows)[places].amin(1)
        alike[likely] = (apart[likely] <= _SHARE * usual) & usual.isfinite()
    order = difference[alike].argsort(stable=True)
    return pairs[alike][order]


def _candidates(pictures: Tensor, vectors: Tensor | None, labels: Tensor) -> Tensor:
    """Return pairs of each picture and the few nearest of other classes, int64 [P, 2], the smaller position first."""
    pixels = standard(F.avg_pool2d(pictures[:, None], 2).flatten(1))
    found = []
    for rows in torch.arange(len(labels)).split(_ROWS):
        own = labels[rows][:, None] == labels
        for space in (pixels,) if vectors is None else (pixels, vectors):
            likeness = (space[rows] @ space.T).masked_fill_(own, -torch.inf)
            value, other = likeness.topk(min(_NEAREST, len(labels)))
            near = torch.stack([rows[:, None].expand_as(other), other], 2)
            found.append(near[value > -torch.inf])
    pairs: Tensor = torch.cat(found).sort(1).values.unique(dim=0)
    alike = [(pixels[one] * pixels[other]).sum(1) for one, other in (part.T for part in pairs.split(_ROWS))]
    likely: Tensor = pairs[torch.cat(alike) >= _LEAST]
    return likely


def _usual_distances(pictures: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Return the median distance of pictures to a sample of their class, [R]; infinity where it is too small."""
    owners, classes = labels[rows].unique(return_inverse=True)
    own = [(labels == owner).nonzero()[:, 0] for owner in owners]
    samples = pad_sequence([some[sample_of(pictures[some])] for some in own], True, -1)[classes]
    told = (samples >= 0) & (samples != rows[:, None])
    place, column = told.nonzero(as_tuple=True)
    distances = torch.full(samples.shape, torch.nan)
    distances[place, column] = _compare_parts(
        pictures, torch.stack([rows[place], samples[place, column]], 1)
    )[0]
    return distances.nanquantile(0.5, dim=1).masked_fill(told.sum(1) < _FEW, torch.inf)


def _compare_parts(pictures: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Compare pairs of pictures, each way, and return the better.

    Args:
        pictures: Float32 [N, S, S].
        pairs: Int64 [P, 2], positions of different pictures.

    Returns:
        The distance, 1 less the best correlation, [P]; and the largest difference of a part, [P], infinity for pictures
        that are more than `_APART` from each other.
    """
    both = torch.cat([pairs, pairs.flip(1)])
    found = torch.empty(2, len(both))
    order = both[:, 0].argsort(stable=True)
    for part in order.split(_PAIRS) if len(order) else ():
        found[:, part] = _compare_one_way(pictures, both[part])
    (apart, other_apart), (difference, other_difference) = found.unflatten(1, (2, len(pairs)))
    better = apart <= other_apart
    return torch.where(better, apart, other_apart), torch.where(better, difference, other_difference)


def _compare_one_way(pictures: Tensor, pairs: Tensor) -> Tensor:
    """Slide the middle of the first of each pair over the other; return distances and differences, [2, P]."""
    side = pictures.shape[1] - 2 * _REACH
    first, place = pairs[:, 0].unique(return_inverse=True)
    views = standard(views_of_middle(pictures[first], _REACH, _VIEWS).flatten(2))[place]
    others = pictures[pairs[:, 1]]
    windows = others.unfold(1, side, 1).unfold(2, side, 1).flatten(3).flatten(1, 2)
    products = views @ windows.mT / window_lengths(others, _REACH)[:, None]
    correlation, best = products.flatten(1).max(1)
    apart = 1 - correlation
    difference = torch.full_like(apart, torch.inf)
    near = (apart <= _APART).nonzero()[:, 0]
    view = views[near, best[near] // windows.shape[1]]
    window = standard(windows[near, best[near] % windows.shape[1]])
    difference[near] = _largest_difference(
        view.unflatten(1, (1, side, side)), window.unflatten(1, (1, side, side))
    )
    return torch.stack([apart, difference])


def _largest_difference(one: Tensor, other: Tensor) -> Tensor:
    """Return how much pictures [P, 1, s, s] differ in the part that differs most, a share of its contrast, [P].

    Each part may be a pixel off. Parts with little contrast differ little.
    """
    side = one.shape[2]
    contrast = _contrast(other)
    padded = F.pad(one, (1, 1, 1, 1), mode="replicate")
    least = torch.full_like(contrast, torch.inf)
    for y in range(3):
        for x in range(3):
            moved = padded[:, :, y : y + side, x : x + side]
            both = contrast + _contrast(moved)
            share = _contrast(moved - other) / (both + _PLAIN * both.mean((2, 3), keepdim=True))
            torch.minimum(least, share, out=least)
    return least.flatten(1).amax(1)


def _contrast(pictures: Tensor) -> Tensor:
    """Return the variance of each part of pictures [P, 1, s, s]."""
    mean = F.avg_pool2d(pictures, _PART, _STEP)
    return (F.avg_pool2d(pictures.square(), _PART, _STEP) - mean.square()).clamp(min=0)
