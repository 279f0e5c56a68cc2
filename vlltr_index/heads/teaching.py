"""Which unlabelled pictures to label first, and groups of pictures that may be a class without a name.

Both use the basis of the generative model, see `SharedGaussian`, where pictures of a class have unit covariance; the
noise that was fitted beside it is not used: thresholds would depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from vlltr_index.heads.plda import SharedGaussian
from vlltr_index.heads.pooling import unit_means
from vlltr_index.tensors import unit_rows

_ONE_BY_ONE = 1000  # units
_LEAST = 3  # units of a group
_LIKELIER = (
    10.0  # least mean log-likelihood ratio of two groups that are joined; chosen on draws of glyphs and icons
)


def most_teaching(
    log_probabilities: Tensor,
    features: Tensor,
    units: Sequence[str],
    shared: SharedGaussian,
    number: int | None = None,
) -> Tensor:
    """Order pictures so that those come first from whose labels most is learned.

    The next is always the one with the greatest product of doubt and distance: the second largest probability as a
    share of the largest, times how far the picture is from the nearest one before it, at most as far as pictures of
    different classes are from each other. After the first thousand the distance is that to these. Of a unit the most
    doubtful picture is asked; the others come after all units.

    Args:
        log_probabilities: Float [N, C], C at least 2, of all classes as equally common.
        features: Float [N, D], unnormalised.
        units: The unit of each picture, see `units_of`.
        shared: Parameters of the generative model.
        number: How many pictures are wanted; default: all.

    Returns:
        Int64 [min(number, N)], positions.
    """
    number = len(units) if number is None else number
    best = log_probabilities.topk(2, dim=1).values
    doubt = (best[:, 1] - best[:, 0]).exp()
    first: dict[str, int] = {}
    for n in doubt.argsort(descending=True, stable=True).tolist():
        first.setdefault(units[n], n)
    asked = torch.tensor(list(first.values()), dtype=torch.int64)
    asked = asked[_spread_out(doubt[asked], _scaled(features[asked], shared), number)]
    place = {units[n]: at for at, n in enumerate(asked.tolist())}
    others = [n for n in range(len(units)) if first[units[n]] != n]
    others.sort(key=lambda n: place[units[n]])
    return torch.cat([asked, torch.tensor(others, dtype=torch.int64)])[:number]


def _scaled(features: Tensor, shared: SharedGaussian) -> Tensor:
    """Return features [N, D] in the basis, each direction by the share of its variance that is between classes.

    The mean squared distance of two pictures of different classes is 1.
    """
    shared = shared.whole
    share = shared.blank / (1.0 + shared.blank)
    scale = (share / (2.0 * shared.blank.sum())).sqrt()
    return (shared.coordinates(unit_rows(features).double()) * scale).float()


def _spread_out(doubt: Tensor, rows: Tensor, number: int) -> Tensor:
    """Order rows [U, D], each with the greatest doubt times distance to those before: int64 [U].

    Only the first `number` of them, a thousand at most, are chosen one by one.
    """
    squares = rows.square().sum(1)
    nearest = torch.ones_like(squares)
    score = doubt.float()
    chosen: list[int] = []
    for _ in range(min(number, _ONE_BY_ONE, len(rows))):
        n = int(score.argmax())
        chosen.append(n)
        apart = (squares + squares[n] - 2.0 * (rows @ rows[n])).clamp(min=0.0)
        nearest = torch.minimum(nearest, apart)
        score = doubt.float() * nearest.sqrt()
        score[chosen] = -1.0
    score[chosen] = 2.0 + torch.arange(len(chosen), 0, -1)
    return score.argsort(descending=True, stable=True)


def alike_groups(features: Tensor, units: Sequence[str], shared: SharedGaussian) -> list[Tensor]:
    """Find groups among rejected pictures that are likelier of one class than of different ones.

    Units are joined by average linkage of the log-likelihood ratio of one class for both to a class for each.

    Args:
        features: Float [R, D], unnormalised.
        units: The unit of each picture, see `units_of`; memory grows with the square of their number.
        shared: Parameters of the generative model.

    Returns:
        Positions of the pictures of each group of at least three units, int64 [n]; that with the most units first.
    """
    names = {unit: n for n, unit in enumerate(dict.fromkeys(units))}
    if len(names) < _LEAST:
        return []
    unit_of = torch.tensor([names[unit] for unit in units])
    z = shared.coordinates(unit_means(unit_rows(features).double(), unit_of))
    group_of = join_by_average(same_class_ratios(z, shared), _LIKELIER)
    sizes = torch.bincount(group_of)
    large = [n for n in sizes.argsort(descending=True, stable=True).tolist() if sizes[n] >= _LEAST]
    return [(group_of[unit_of] == n).nonzero()[:, 0] for n in large]


def same_class_ratios(z: Tensor, shared: SharedGaussian) -> Tensor:
    """Compute log p(z_i, z_j | one class) / p(z_i, z_j | two classes), of which nothing else is known: float64 [R, R].

    Args:
        z: Float64 [R, Z], pictures in the basis.
        shared: Parameters of the generative model.
    """
    own = 1.0 + shared.blank
    total = own + shared.blank
    square = z.square() @ (0.5 / own - 0.25 / total - 0.25)
    product = (z * (0.5 - 0.5 / total)) @ z.T
    return square[:, None] + square + product + shared.log_volume(own) - 0.5 * shared.log_volume(total)


def join_by_average(likeness: Tensor, least: float) -> Tensor:
    """Join the two groups with the greatest mean likeness while it is above `least` (average linkage): int64 [R].

    Args:
        likeness: Float [R, R], symmetric; the diagonal is not used. R is at least 2.
        least: Of two groups that are joined.
    """
    pairs = likeness.numpy()[np.triu_indices(len(likeness), 1)]
    largest = pairs.max()
    groups = fcluster(linkage(largest - pairs, "average"), largest - least, "distance")
    return torch.from_numpy(groups.astype(np.int64)) - 1
