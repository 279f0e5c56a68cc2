"""Folds of an outer cross-validation: units dealt so that every class with two of them is tested."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def deal_units(labels: Tensor, units: Sequence[str], folds: int) -> Tensor:
    """Deal units into folds, int64 [N] with -1 for images that are never held out.

    A unit stays whole. Each fold has about as many units of each class, and all images of a class are never in one
    fold: a class with one unit is not held out. The deal does not depend on the order of the images.

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
        if any(number[owner] == 1 for owner in those):
            dealt[unit] = -1
            continue
        fold = min(range(folds), key=lambda f: (sum(of_class[c][f] for c in those), sizes[f], f))
        dealt[unit] = fold
        sizes[fold] += 1
        for owner in those:
            of_class[owner][fold] += 1
    crowded = {
        owner: counts.index(number[owner]) for owner, counts in of_class.items() if number[owner] in counts
    }
    for unit, those in classes_of.items():
        if any(crowded.get(owner) == dealt[unit] for owner in those):
            dealt[unit] = -1
    return torch.tensor([dealt[unit] for unit in units], dtype=torch.int64)


def _order(unit: str) -> str:
    """Return a sort key for a fixed pseudo-random order that depends on nothing but `unit`."""
    return hashlib.sha256(f"deal:{unit}".encode()).hexdigest()
