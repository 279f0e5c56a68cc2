"""Folds of an outer cross-validation: units dealt so that every class with two of them is tested."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor


def deal_units(labels: Tensor, units: Sequence[str], folds: int) -> Tensor:
    """Deal units into folds, int64 [N] with -1 for images that are never held out.

    A unit stays whole. Each fold has about as many units of each class; a unit of which every class has no other is not
    held out. The deal does not depend on the order of the images.

    Args:
        labels: Int64 [N], classes.
        units: The unit of each image; images of several classes may be one.
        folds: How many, at least 2.
    """
    owners = labels.tolist()
    classes_of: dict[str, set[int]] = {}
    for owner, unit in zip(owners, units, strict=True):
        classes_of.setdefault(unit, set()).add(owner)
    number = Counter(owner for those in classes_of.values() for owner in those)
    dealt: dict[str, int] = {}
    of_class: dict[int, list[int]] = {owner: [0] * folds for owner in number}
    sizes = [0] * folds
    for unit in sorted(classes_of, key=_order):
        those = classes_of[unit]
        if all(number[owner] == 1 for owner in those):
            dealt[unit] = -1
            continue
        fold = min(range(folds), key=partial(_crowding, those, number, of_class, sizes))
        dealt[unit] = fold
        sizes[fold] += 1
        for owner in those:
            of_class[owner][fold] += 1
    return torch.tensor([dealt[unit] for unit in units], dtype=torch.int64)


def _crowding(
    classes: set[int], number: Counter[int], of_class: dict[int, list[int]], sizes: list[int], fold: int
) -> tuple[int, int, int, int]:
    """Return how ill a unit of some classes fits a fold: first, of how many it would be the last unit outside."""
    last = sum(of_class[c][fold] + 1 == number[c] > 1 for c in classes)
    return last, sum(of_class[c][fold] for c in classes), sizes[fold], fold


def answerable(labels: Tensor, fold: Tensor) -> Tensor:
    """Say which images are held out of a fold in which their class has others to be learned from, bool [N].

    Args:
        labels: Int64 [N], classes.
        fold: Int64 [N], see `deal_units`.
    """
    owners = labels.unique(return_inverse=True)[1]
    classes = int(owners.max()) + 1 if len(owners) else 0
    pairs = torch.zeros(classes, int(fold.max()) + 2 if len(fold) else 1, dtype=torch.int64)
    pairs.index_put_((owners, fold + 1), torch.ones_like(owners), accumulate=True)
    return (fold >= 0) & (pairs[owners, fold + 1] < pairs.sum(1)[owners])


def _order(unit: str) -> str:
    """Return a sort key for a fixed pseudo-random order that depends on nothing but `unit`."""
    return hashlib.sha256(f"deal:{unit}".encode()).hexdigest()
