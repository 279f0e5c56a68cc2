"""Folds of a grouped cross-validation, which follow from the images' contents alone.

Each class is split by itself: its groups are sorted by the hash of their contents and go into the folds in turn, from a
fold that the class's own hash determines. So no fold depends on the order of images or classes, and another image moves
only groups of its own class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from vlltr_index.schemas.fingerprint import digest_bytes

FOLDS = 5
"""Number of folds of the cross-validation, and into which the groups of a single held-out part are split."""


def row_keys(features: Tensor) -> list[str]:
    """Return a key of each row's content, for images that have no file: a digest of the bytes of float32 [N, D]."""
    return [digest_bytes(row.numpy().tobytes()) for row in features.float().cpu()]


def deal_groups(labels: Tensor, groups: Sequence[str], keys: Sequence[str], folds: int) -> Tensor:
    """Assign groups to folds, int64 [N].

    The groups of a class are spread over the folds evenly. A group of several classes is one of the class of its first
    image by key.

    Args:
        labels: Int64 [N], classes.
        groups: The group of each image, which stays whole.
        keys: A key of each image's content.
        folds: Number of folds.
    """
    place_of = {owner: place for place, owner in enumerate(class_order(labels, keys))}
    first: dict[str, tuple[str, int]] = {}
    for group, key, owner in zip(groups, keys, labels.tolist(), strict=True):
        found = (_hash(key), place_of[owner])
        first[group] = min(found, first.get(group, found))
    of_class: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for group, (smallest, owner) in first.items():
        of_class[owner].append((smallest, group))
    fold_of: dict[str, int] = {}
    for members in of_class.values():
        members.sort()
        start = int(members[0][0][:8], 16)
        fold_of |= {group: (start + place) % folds for place, (_, group) in enumerate(members)}
    return torch.tensor([fold_of[group] for group in groups], dtype=torch.int64)


def group_folds(groups: Sequence[str], keys: Sequence[str], folds: int) -> Tensor:
    """Assign groups to folds by their own hashes, int64 [N], so that another group moves none.

    Args:
        groups, keys, folds: As for `deal_groups`.
    """
    hashes = _hashes(groups, keys)
    return torch.tensor([int(hashes[group][:8], 16) % folds for group in groups], dtype=torch.int64)


def group_order(groups: Sequence[str], keys: Sequence[str]) -> Tensor:
    """Number each image's group from 0, int64 [N], in a pseudo-random order that follows from the contents."""
    hashes = _hashes(groups, keys)
    number = {group: place for place, group in enumerate(sorted(hashes, key=lambda one: hashes[one]))}
    return torch.tensor([number[group] for group in groups], dtype=torch.int64)


def class_order(labels: Tensor, keys: Sequence[str]) -> list[int]:
    """Return the classes that have an image, in a pseudo-random order that follows from the images' contents."""
    hashes: dict[int, list[str]] = defaultdict(list)
    for owner, key in zip(labels.tolist(), keys, strict=True):
        hashes[owner].append(_hash(key))
    # All hashes of a class are compared, since two classes may share the smallest one.
    return sorted(hashes, key=lambda owner: sorted(hashes[owner]))


def answerable(labels: Tensor, fold: Tensor) -> Tensor:
    """Return which images are in a fold without which their class still has images, bool [N].

    Args:
        labels: Int64 [N], classes.
        fold: Int64 [N], -1 for images of no fold.
    """
    owners = labels.unique(return_inverse=True)[1]
    classes = int(owners.max()) + 1 if len(owners) else 0
    pairs = torch.zeros(classes, int(fold.max()) + 2 if len(fold) else 1, dtype=torch.int64)
    pairs.index_put_((owners, fold + 1), torch.ones_like(owners), accumulate=True)
    return (fold >= 0) & (pairs[owners, fold + 1] < pairs.sum(1)[owners])


def _hashes(groups: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """Return the smallest hash of each group's images."""
    hashes: dict[str, str] = {}
    for group, key in zip(groups, keys, strict=True):
        own = _hash(key)
        hashes[group] = min(own, hashes.get(group, own))
    return hashes


def _hash(key: str) -> str:
    return digest_bytes(f"fold:{key}".encode())
