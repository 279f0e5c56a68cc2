"""Near duplicates among the images of one class: by what their small grey copies have in common, and by their vectors.

The middle of one picture, turned a little either way, resized or mirrored, slides over the other, and the best
correlation counts. This is done twice. Whole pictures that are many times closer than is usual for both in their class
are near duplicates: the scans of a drawing, say. They are also compared by their fine structure, each less its blurred
self. What a fit is worth is told by how well pictures of the class fit each other in general, and by how well the
middle fits the other way round (mirrored if it was not), upside down or on its side: that has the same strokes and
texture and is not the same picture. This finds a class that is one burst, too. Last, a pair is left out if the pictures
that its two are like differ too much, so that a likeness by chance does not make two sets of copies one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.tensors import unit_rows

_BLUR = 5  # pixels
_REACH = 4  # pixels that the middle slides each way
_VIEWS = ((-12.0, 1.0), (-6.0, 1.0), (0.0, 1.0), (6.0, 1.0), (12.0, 1.0), (0.0, 0.85), (0.0, 1.18))
"""Degrees that the middle is turned by, and the part of the picture that is seen in its place; each mirrored, too."""
_REACH_OF_WHOLE = 2  # the same of whole pictures, of which a larger part is compared
_VIEWS_OF_WHOLE = ((-3.0, 1.0), (0.0, 1.0), (3.0, 1.0))
_NEARLY_1 = 0.999
_LITTLE = 1e-3  # so that a picture without structure fits none

_ALL = 24  # images of a class up to which all pairs are compared
_NEAREST = 8  # else so many for each image
_SAMPLE = 16  # of its images by which it is told how well those of a class fit each other in general
_MANY = 8192  # images of a class from which those to compare are found more coarsely
_ROWS = 512

# Chosen on generated bursts, series and copies, and on drawn icons and characters.
_GAP = 0.25  # distance of whole pictures that are _HARDLY_APART, too, as a share of the median to those of the class
_GAP_OF_NEAR = 0.2  # the same, where the vectors are near
_HARDLY_APART = 0.02  # 1 less the correlation
_SURE = 6.5  # spreads by which a fit is above the class's in general
_LIKELY = 4.0  # the same, where the vectors are near, too
_ABOVE_OTHERWISE = 0.2  # by which it is above the best fit the other way round
_NEAR = 0.5  # largest distance of such vectors, as a share of that to most of the class
_SPREAD = 0.1  # spread of detailed pictures; of simpler ones more spreads are asked for
_GENERAL = 0.4  # most that is taken for a fit of detailed pictures in general, for a class that is one burst
_SAME_PIXELS = 0.985  # least correlation of copies whose cosine is at least _SAME_VECTOR
_SAME_PIXELS_ALONE = 0.995  # without vectors
_SAME_VECTOR = 0.997
_COPY = 0.9995  # least cosine of copies without thumbnails
_AGREE = 0.4  # of the pictures that are like one of two, themselves among them, the share that are like both


def near_duplicates(features: Tensor | None, thumbnails: Tensor | None) -> Tensor:
    """Find pairs of near duplicates among the images of one class.

    Pictures whose thumbnails are of one grey, or missing, are compared by their vectors alone.

    Args:
        features: Float [N, D], unnormalised; None: there are no vectors.
        thumbnails: Uint8 [N, S, S] on the CPU; None: there are none.

    Returns:
        Int64 [P, 2], pairs of positions; near duplicates of a near duplicate may be in no pair with each other.
    """
    flat = flat_pictures(thumbnails, 0 if features is None else len(features))
    found = [torch.empty(0, 2, dtype=torch.int64)]
    vectors = None if features is None else unit_rows(features).float().cpu()
    if vectors is not None and bool(flat.any()):
        found.append(copies(vectors, flat.nonzero()[:, 0]))
    drawn = (~flat).nonzero()[:, 0]
    if thumbnails is not None and len(drawn) > 1:
        own = None if vectors is None else vectors[drawn]
        found.append(drawn[_alike(thumbnails[drawn], own)])
    return torch.cat(found)


def flat_pictures(thumbnails: Tensor | None, count: int) -> Tensor:
    """Tell which pictures are of one grey, bool [N]; without thumbnails all of `count` are."""
    if thumbnails is None:
        return torch.ones(count, dtype=torch.bool)
    pixels = thumbnails.flatten(1)
    return pixels.amax(1) == pixels.amin(1)


def copies(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return the pairs of an image of `rows` and any other that have nearly the same direction."""
    found = [torch.empty(0, 2, dtype=torch.int64)]
    for part in rows.split(_ROWS):
        pairs = (vectors[part] @ vectors.T > _COPY).nonzero()
        pairs[:, 0] = part[pairs[:, 0]]
        found.append(pairs[pairs[:, 0] != pairs[:, 1]])
    return torch.cat(found)


def _alike(thumbnails: Tensor, vectors: Tensor | None) -> Tensor:
    """Return the pairs of near duplicates among pictures with thumbnails that are not of one grey."""
    structure = fine_structure(thumbnails)
    pixels = standard(thumbnails.flatten(1).float())
    count = len(thumbnails)
    sample = sample_of(thumbnails)
    sampled = torch.cartesian_prod(torch.arange(count), sample)
    sampled = sampled[sampled[:, 0] != sampled[:, 1]]
    every = sampled if count <= _ALL else torch.cat([sampled, _nearest(structure, pixels)])
    every = every.sort(1).values.unique(dim=0)
    usual = partial(_usual, pairs=every, sample=sample, count=count)
    one, other = every.T
    near = torch.zeros(len(every), dtype=torch.bool)
    same_vector = torch.ones(len(every), dtype=torch.bool)
    if vectors is not None:
        distances = 1 - (vectors[one] * vectors[other]).sum(1)
        near = distances <= _NEAR * -usual(-distances, 0.25)
        same_vector = 1 - distances >= _SAME_VECTOR
    apart = 1 - torch.tanh(compare(thumbnails.float(), every, _REACH_OF_WHOLE, _VIEWS_OF_WHOLE).fit)
    share = apart / -usual(-apart, 0.5)
    alike = ((share <= _GAP) & (apart <= _HARDLY_APART)) | ((share <= _GAP_OF_NEAR) & near)
    alike |= _fine_alike(compare(structure, every), usual, near)
    least = _SAME_PIXELS_ALONE if vectors is None else _SAME_PIXELS
    alike |= same_vector & ((pixels[one] * pixels[other]).sum(1) >= least)
    return _agreed(every[alike], every)


def _agreed(alike: Tensor, compared: Tensor) -> Tensor:
    """Return the pairs, int64 [P, 2] of [Q, 2] compared, whose two pictures are like the same others.

    These are enough of those that either is like, or all that one of the two is like: copies of a picture may be like
    it and not each other. A picture counts as like itself, and others count if they were compared with both.
    """
    like = _neighbours(alike)
    known = _neighbours(compared)
    kept = []
    for one, other in alike.tolist():
        of_one = like[one] & known[other]
        of_other = like[other] & known[one]
        both = len(of_one & of_other)
        kept.append(both >= _AGREE * len(of_one | of_other) or both == min(len(of_one), len(of_other)))
    return alike[torch.tensor(kept, dtype=torch.bool)]


def _neighbours(pairs: Tensor) -> dict[int, set[int]]:
    """Return for each picture of pairs those that it is in a pair with, and itself."""
    found: dict[int, set[int]] = {}
    for one, other in pairs.tolist():
        found.setdefault(one, {one}).add(other)
        found.setdefault(other, {other}).add(one)
    return found


def _fine_alike(fits: PairFit, usual: Callable[[Tensor, float], Tensor], near: Tensor) -> Tensor:
    """Tell of pairs whether they fit by their fine structure; detailed ones are so in a class that is, too."""
    spread = fits.spread.clamp(min=_LITTLE)
    simple = (torch.maximum(spread, usual(spread, 0.5)) / _SPREAD).clamp(min=1)
    general = usual(fits.fit, 0.25)
    general = torch.where(simple > 1, general, general.clamp(max=_GENERAL))
    above = (fits.fit - general) / spread
    alike = (above >= _SURE * simple) | ((above >= _LIKELY) & near & (simple <= 1))
    return alike & (fits.fit - fits.otherwise >= _ABOVE_OTHERWISE)


def sample_of(thumbnails: Tensor) -> Tensor:
    """Choose a few pictures, all if they are few, in whatever order they are given."""
    flat = thumbnails.flatten(1).long()
    weights = torch.arange(1, flat.shape[1] + 1) ** 2
    order = ((flat * weights).sum(1) * 2_654_435_761 % 1_000_003).argsort(stable=True)
    return order[: len(order) if len(order) <= _ALL else _SAMPLE]


def _usual(values: Tensor, share: float, *, pairs: Tensor, sample: Tensor, count: int) -> Tensor:
    """Return that quantile of the values that a picture has with those of a sample, the larger of a pair's two, [P]."""
    table = torch.full((count, count if count <= _ALL else _SAMPLE), torch.nan)
    place = torch.full((count,), -1)
    place[sample] = torch.arange(len(sample))
    for one, other in (pairs.T, pairs.flip(1).T):
        told = place[other] >= 0
        table[one[told], place[other[told]]] = values[told]
    quantile: Tensor = table.nanquantile(share, dim=1, interpolation="lower")
    return quantile[pairs].amax(1)


def _nearest(structure: Tensor, pixels: Tensor) -> Tensor:
    """Return pairs of each picture and a few that may be near duplicates of it, int64 [P, 2]; some more than once."""
    count = len(structure)
    small = F.avg_pool2d(structure[:, None], 2)[:, 0]
    reach = _REACH // 2
    side = small.shape[1] - 2 * reach
    middle = small[:, reach : reach + side, reach : reach + side]
    both_ways = [standard(one.flatten(1)) for one in (middle, middle.flip(2))]
    shifts = range(0, 2 * reach + 1, 1 if count < _MANY else 2)
    windows = [standard(small[:, y : y + side, x : x + side].flatten(1)) for y in shifts for x in shifts]
    found = []
    for rows in torch.arange(count).split(_ROWS):
        best = torch.full((len(rows), count), -1.0)
        for window in windows:
            for middles in both_ways:
                torch.maximum(best, middles[rows] @ window.T, out=best)
        for likeness, most in ((best, _NEAREST), (pixels[rows] @ pixels.T, _NEAREST // 2)):
            likeness[torch.arange(len(rows)), rows] = -1.0
            other = likeness.topk(most).indices
            found.append(torch.stack([rows[:, None].expand_as(other), other], 2).flatten(0, 1))
    return torch.cat(found)


class PairFit(NamedTuple):
    """How well P pairs of pictures fit each other, float32 [P] each.

    Attributes:
        fit: Fisher's z (the inverse hyperbolic tangent) of the best correlation.
        spread: The root of the mean square of z the other way round: mirrored if the best was not, else plain; upside
            down; or on its side.
        otherwise: The largest such z.
    """

    fit: Tensor
    spread: Tensor
    otherwise: Tensor


def fine_structure(thumbnails: Tensor) -> Tensor:
    """Subtract a blurred copy from pictures, uint8 [N, S, S], and return float32 [N, S, S]."""
    pixels = thumbnails.float()[:, None]
    around = F.pad(pixels, (_BLUR // 2,) * 4, mode="reflect")
    return (pixels - F.avg_pool2d(around, _BLUR, 1))[:, 0]


def compare(
    structure: Tensor,
    pairs: Tensor,
    reach: int = _REACH,
    views: Sequence[tuple[float, float]] = _VIEWS,
) -> PairFit:
    """Compare pairs of pictures, each way.

    Args:
        structure: Float32 [N, S, S], see `fine_structure`, or whole pictures.
        pairs: Int64 [P, 2], positions of different pictures.
        reach: Pixels that the middle slides each way.
        views: Degrees that it is turned by, and the part of the picture that is seen in its place, (0.0, 1.0) among
            them; each is compared mirrored, too.
    """
    templates = _templates(structure, reach, views)
    lengths = window_lengths(structure, reach)
    plain = views.index((0.0, 1.0))
    side = structure.shape[1] - 2 * reach
    both = torch.cat([pairs, pairs.flip(1)])
    order = both[:, 1].argsort(stable=True)
    found = torch.empty(3, len(both))
    start = 0
    targets, counts = both[order, 1].unique_consecutive(return_counts=True)
    for target, count in zip(targets.tolist(), counts.tolist(), strict=True):
        own = order[start : start + count]
        start += count
        windows = structure[target].unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)
        products = templates[both[own, 0]] @ windows.T / lengths[target]
        z = torch.atanh(products.clamp(-_NEARLY_1, _NEARLY_1))
        both_ways = z[:, : 2 * len(views)].unflatten(1, (2, len(views)))
        found[0, own], way = both_ways.amax((2, 3)).max(1)
        other_way = both_ways[torch.arange(count), 1 - way, plain]
        otherwise = torch.cat([other_way, z[:, 2 * len(views) :].flatten(1)], 1)
        found[1, own] = otherwise.square().mean(1)
        found[2, own] = otherwise.amax(1)
    one, other = found.split(len(pairs), 1) if len(pairs) else (found, found)
    return PairFit(
        torch.maximum(one[0], other[0]), ((one[1] + other[1]) / 2).sqrt(), torch.maximum(one[2], other[2])
    )


def window_lengths(structure: Tensor, reach: int) -> Tensor:
    """Return the length of each window of the middle's size less its mean, [N, (2 reach + 1) ** 2]."""
    side = structure.shape[1] - 2 * reach
    mean = F.avg_pool2d(structure[:, None], side, 1)
    square = F.avg_pool2d(structure.square()[:, None], side, 1)
    return ((square - mean.square()).clamp(min=0).sqrt() * side + _LITTLE).flatten(1)


def standard(vectors: Tensor) -> Tensor:
    """Make vectors of mean 0 and length 1; of a constant one 0."""
    vectors = vectors - vectors.mean(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (lengths + _LITTLE)


def _templates(structure: Tensor, reach: int, views: Sequence[tuple[float, float]]) -> Tensor:
    """Return the middle of each picture in V views, in these mirrored, and tipped three ways, [N, 2 V + 3, s * s]."""
    inner = slice(reach, structure.shape[1] - reach)
    middle = structure[:, inner, inner]
    tipped = torch.stack([middle.flip(1), middle.flip(1, 2), middle.transpose(1, 2)], 1)
    seen = views_of_middle(structure, reach, views)
    return standard(torch.cat([seen, seen.flip(3), tipped], 1).flatten(2))


def views_of_middle(pictures: Tensor, reach: int, views: Sequence[tuple[float, float]]) -> Tensor:
    """Return the middle of each picture in each of V views, [N, V, s, s], see `compare`."""
    count = len(pictures)
    inner = slice(reach, pictures.shape[1] - reach)
    seen = []
    for angle, part in views:
        c = part * math.cos(math.radians(angle))
        s = part * math.sin(math.radians(angle))
        turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(count, 2, 3)
        grid = F.affine_grid(turn, [count, 1, *pictures.shape[1:]], align_corners=False)
        turned = F.grid_sample(pictures[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
        seen.append((pictures if (angle, part) == (0.0, 1.0) else turned)[:, inner, inner])
    return torch.stack(seen, 1)
