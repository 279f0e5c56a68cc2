"""Offsets of added classes: calibrated stacking (Chao et al., ECCV 2016) with a budget for what base classes lose.

The margin of a held-out image is the largest score of a base class less that of an added class. With an offset delta,
the images whose margin is below delta go to the added class. The offset is the largest one, at most 0, with which an
estimated share of one hundredth is lost, each class counting alike. Few margins are that small: the tail of the tenth
that is nearest is taken to fall exponentially.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BUDGET = 0.01
"""Share of accuracy on base classes, each counting alike, that added classes may take."""
_TAIL = 0.1  # share of the images whose margins determine the tail
_FEWEST = 2  # groups in the tail
BOUNDED = 100
"""Groups of correctly classified held-out images below which the loss is not bounded."""


def class_offsets(margins: Tensor, shares: Tensor, groups: Tensor) -> Tensor:
    """Compute the offsets of K added classes, float64 [K], none above 0.

    Each class has the offset with which it alone takes the budget; all are lowered by the same amount so that together
    they take the budget, too. The order of the classes makes no difference. Without any image all are 0.

    Args:
        margins: Float64 [N, K], of held-out images that are classified correctly among the base classes.
        shares: Float64 [N], the share of each image in the accuracy on base classes.
        groups: Int64 [N], the group of each image.
    """
    columns = margins.T.contiguous()
    own = torch.tensor([_offset(margin, shares, groups) for margin in columns], dtype=torch.float64)
    if len(own) < 2 or not len(margins):
        return own
    return own + _offset((margins - own).amin(1), shares, groups)


def _offset(margins: Tensor, shares: Tensor, groups: Tensor) -> float:
    """Compute the offset, at most 0, with which the images of margins float64 [N] below it have the share `BUDGET`.

    The expected loss is above the budget where few groups are in the tail: p (1 + ln(p / BUDGET) / q)^-q for q groups
    with the share p.
    """
    if not len(margins):
        return 0.0
    margins, order = margins.sort()
    taken = shares[order].cumsum(0)
    inside = int((taken <= _TAIL * float(taken[-1])).sum())
    kinds = groups[order]
    while inside < len(margins) and len(kinds[:inside].unique()) < _FEWEST:
        inside += 1
    if inside == len(margins):
        return min(0.0, float(margins[0]))
    following = float(margins[inside])
    share = float(taken[inside - 1])
    if share <= BUDGET:
        return min(0.0, following)
    length = float((following - margins[:inside]) @ shares[order][:inside]) / share
    return min(0.0, following + length * math.log(BUDGET / share))
