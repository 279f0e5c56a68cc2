"""Which images of an ingestion go to split `test` instead of `train` (`ingest images --hold-out`)."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from vlltr_index.data.decoding import Probe
from vlltr_index.embedding.loading import thumbnail_tensor
from vlltr_index.heads.bursts import folder_of
from vlltr_index.heads.units import units_of
from vlltr_index.schemas.records import ImageRecord


def draw(
    images: Sequence[tuple[ImageRecord, Probe]], share: float, kept: Mapping[str, bool]
) -> frozenset[str]:
    """Choose the images to hold out: at most `share` of each class's, whole units only, and never all.

    Args:
        images: The images, each with its class and group, and what was found in it.
        share: From 0 to 1.
        kept: By source, images that stay held out or not as they were, unless none would be left.

    Returns:
        Their sources.
    """
    of_class = defaultdict[str, list[tuple[str, str]]](list)
    for (record, _), order in zip(images, _orders(images), strict=True):
        of_class[record.class_name or ""].append((order, record.source))
    held: list[str] = []
    for own in map(sorted, of_class.values()):
        last = min(round(share * len(own)), len(own) - 1)
        # Move back to the start of a unit, so that none is split.
        while 0 < last < len(own) and own[last - 1][0] == own[last][0]:
            last -= 1
        drawn = {source for _, source in own[:last]}
        chosen = [(unit, source) for unit, source in own if kept.get(source, source in drawn)]
        if len(chosen) == len(own):
            chosen = [(unit, source) for unit, source in own if unit != own[-1][0]]
        held += [source for _, source in chosen]
    return frozenset(held)


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
    least: dict[str, str] = {}
    for unit, (record, _) in zip(units, images, strict=True):
        own = hashlib.sha256(os.fsencode(record.group or record.source)).hexdigest()
        least[unit] = min(own, least.get(unit, own))
    return [least[unit] for unit in units]
