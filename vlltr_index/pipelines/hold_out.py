"""Which images of an ingestion go to split `test` instead of `train` (`ingest images --hold-out`)."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch

from vlltr_index.data.decoding import Probe
from vlltr_index.embedding.loading import thumbnail_tensor
from vlltr_index.heads.bursts import folder_of
from vlltr_index.heads.units import join_copies, units_of
from vlltr_index.schemas.records import ImageRecord


def draw(
    images: Sequence[tuple[ImageRecord, Probe]], share: float, kept: Mapping[str, bool]
) -> frozenset[str]:
    """Choose the images to hold out: at most `share` of each class's, whole units only, and never all of a class.

    Args:
        images: The images, each with its class and group, and what was found in it.
        share: From 0 to 1.
        kept: By source, images that stay held out or not as they were; their units follow them.

    Returns:
        Their sources.
    """
    units = defaultdict[str, list[ImageRecord]](list)
    for (record, _), order in zip(images, _orders(images), strict=True):
        units[order].append(record)
    number = Counter(record.class_name for record, _ in images)
    left = {name: min(round(share * count), count - 1) for name, count in number.items()}
    held: dict[str, Counter[str | None]] = {}
    for order in sorted(units):
        sizes = Counter(record.class_name for record in units[order])
        said = [kept[record.source] for record in units[order] if record.source in kept]
        if any(said) or (not said and all(left[name] >= size for name, size in sizes.items())):
            held[order] = sizes
            left = {name: count - sizes[name] for name, count in left.items()}
    for name, count in number.items():
        mine = [order for order, sizes in held.items() if name in sizes]
        if sum(held[order][name] for order in mine) == count:
            del held[mine[-1]]
    return frozenset(record.source for order in held for record in units[order])


def _orders(images: Sequence[tuple[ImageRecord, Probe]]) -> list[str]:
    """Return a sort key of each image that is the same in a unit: the smallest hash of a group or source in it."""
    names = sorted({record.class_name or "" for record, _ in images})
    number = {name: n for n, name in enumerate(names)}
    units = units_of(
        None,
        torch.tensor([number[record.class_name or ""] for record, _ in images]),
        [record.group for record, _ in images],
        taken=[found.taken for _, found in images],
        places=[folder_of(record.uri) for record, _ in images],
        thumbnails=thumbnail_tensor([found.thumbnail for _, found in images]),
    )
    units = join_copies(units, [found.content_hash or record.uri for record, found in images])
    least: dict[str, str] = {}
    for unit, (record, _) in zip(units, images, strict=True):
        own = hashlib.sha256(os.fsencode(record.group or record.source)).hexdigest()
        least[unit] = min(own, least.get(unit, own))
    return [least[unit] for unit in units]
