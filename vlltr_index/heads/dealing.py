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
_MANY_IMAGES = 5000  # from so many on, one part is held out
_PARTS = 10  # of which the first is held out, ...
_MOST_HELD = 1000  # ... unless it would hold more images than this: then twice as many parts


def row_keys(features: Tensor) -> list[str]:
    """Return a key of each row's content, for images that have no file: a digest of the bytes of float32 [N, D]."""
    return [digest_bytes(row.numpy().tobytes()) for row in features.float().cpu()]


def held_out_folds(
    labels: Tensor, groups: Sequence[str], keys: Sequence[str], one_part: bool = False
) -> Tensor:
    """Return the fold that each image is held out in, int64 [N], -1 for one that never is.

    There are five folds. With `one_part`, and from 5,000 images on, there is one: the first of ten. Above 10,000 images
    it is the first of twenty, above 20,000 of forty, and so on, so that it has about 500 to 1,000 images.

    Args:
        labels, groups, keys: As for `deal_groups`.
        one_part: Whether one part is held out of fewer images, too.
    """
    if not one_part and len(labels) < _MANY_IMAGES:
        return deal_groups(labels, groups, keys, FOLDS)
    parts = _PARTS
    while len(labels) > parts * _MOST_HELD:
        parts *= 2
    return torch.where(deal_groups(labels, groups, keys, parts) == 0, 0, -1)


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
    hashes = [_hash(key) for key in keys]
    place_of = {owner: place for place, owner in enumerate(_by_hashes(labels, hashes))}
    first: dict[str, tuple[str, int]] = {}
    for group, smallest, owner in zip(groups, hashes, labels.tolist(), strict=True):
        found = (smallest, place_of[owner])
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


def class_order(labels: Tensor, keys: Sequence[str]) -> list[int]:
    """Return the classes that have an image, in a pseudo-random order that follows from the images' contents."""
    return _by_hashes(labels, [_hash(key) for key in keys])


def _by_hashes(labels: Tensor, hashes: Sequence[str]) -> list[int]:
    """Order classes by all their images' hashes, since two classes may share the smallest one."""
    of_class: dict[int, list[str]] = defaultdict(list)
    for owner, own in zip(labels.tolist(), hashes, strict=True):
        of_class[owner].append(own)
    return sorted(of_class, key=lambda owner: sorted(of_class[owner]))


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
