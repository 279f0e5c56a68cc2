"""Draws of Photos-LT: groups and near duplicates stay on one side of the split."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.collections.sources import Kind
from benchmarks.datasets.photos_lt.listing import CUTOUT, MOST_TEST, SCENE, facts
from vlltr_index.data.decoding import probe
from vlltr_index.embedding.loading import thumbnail_tensor
from vlltr_index.heads.units import number_names, units_of

__all__ = ["ADDED", "GROUP", "SETTINGS", "Photograph", "drawn", "read_photographs"]

LONG_TAIL = "long tail"
BY_KIND = "cut-outs to scenes"
ADDED = "added classes"
SHOTS = {"3 per class": 3, "5 per class": 5, "10 per class": 10}
SETTINGS = (*SHOTS, LONG_TAIL, BY_KIND, ADDED)
GROUP = "name:^(.+)--"
"""What tells the group of a photograph by its file's name."""
_ADDED = 10  # classes
_LEAST_TEST = 2
_TRIES = 100
_KEPT = 0.8  # of the groups of a class's cut-outs


@dataclass(frozen=True)
class Photograph:
    """A photograph: its file's name and bytes, class, kind (scene or cut-out), caption, and the group it belongs to."""

    name: str
    data: bytes
    label: str
    kind: str
    caption: str
    group: int


@cache
def read_photographs(folder: Path) -> tuple[Photograph, ...]:
    """Read the data set in a folder that `benchmarks.datasets.photos_lt.build` wrote, its two sides as one."""
    with (folder / "LICENCES.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    data = [(folder / row["path"]).read_bytes() for row in rows]
    labels = number_names([row["class"] for row in rows])
    thumbnails = thumbnail_tensor([probe(one).thumbnail for one in data])
    groups = [row["group"] or None for row in rows]
    numbers = number_names(units_of(None, labels, groups, thumbnails=thumbnails))
    return tuple(
        Photograph(Path(row["path"]).name, one, row["class"], row["kind"], row["caption"], number)
        for row, one, number in zip(rows, data, numbers.tolist(), strict=True)
    )


def drawn(photographs: Sequence[Photograph], setting: str, seed: int) -> tuple[list[Kind], list[Kind]]:
    """Return the classes of a draw, and those that are added to them.

    Args:
        photographs: All.
        setting: One of `SETTINGS`.
        seed: Of the draw.
    """
    by_label = defaultdict[str, list[Photograph]](list)
    for one in photographs:
        by_label[one.label].append(one)
    sides = {label: _split(some, setting, seed) for label, some in sorted(by_label.items())}
    kinds = _kinds({label: pair for label, pair in sides.items() if pair is not None})
    if setting != ADDED:
        return kinds, []
    order = random.Random(f"added:{seed}").sample(kinds, len(kinds))
    return sorted(order[_ADDED:], key=lambda kind: kind.name), order[:_ADDED]


_Sides = tuple[list[Photograph], list[Photograph]]


def _split(photographs: Sequence[Photograph], setting: str, seed: int) -> _Sides | None:
    """Return the training and the test images of a class; None if it has too few."""
    groups = defaultdict[int, list[Photograph]](list)
    for one in photographs:
        groups[one.group].append(one)
    whole = list(groups.values())
    for attempt in range(_TRIES):
        chance = random.Random(f"{seed}:{attempt}:{photographs[0].label}")
        order = chance.sample(whole, len(whole))
        if setting in SHOTS:
            train, test = _first(order, SHOTS[setting])
        elif setting == BY_KIND:
            train, test = _by_kind(order)
        else:
            train, test = _tail(order)
        if train and len(train) >= SHOTS.get(setting, 1) and len(test) >= _LEAST_TEST:
            return train, test[:MOST_TEST]
    return None


def _first(groups: Sequence[Sequence[Photograph]], images: int) -> _Sides:
    """Train on so many images, and test on the groups that none of them is of."""
    train: list[Photograph] = []
    test: list[Photograph] = []
    for group in groups:
        (train if len(train) < images else test).extend(group)
    return train[:images], test


def _tail(groups: Sequence[Sequence[Photograph]]) -> _Sides:
    """Test on up to half of the images, at most 15."""
    most = min(sum(map(len, groups)) // 2, MOST_TEST)
    train: list[Photograph] = []
    test: list[Photograph] = []
    for group in groups:
        (test if len(test) + len(group) <= most else train).extend(group)
    return train, test


def _by_kind(groups: Sequence[Sequence[Photograph]]) -> _Sides:
    """Train on the cut-outs of most groups that have no scene, and test on scenes."""
    cutouts = [group for group in groups if {one.kind for one in group} == {CUTOUT}]
    train = [one for group in cutouts[: max(1, round(_KEPT * len(cutouts)))] for one in group]
    return train, [one for group in groups for one in group if one.kind == SCENE]


def _kinds(sides: dict[str, _Sides]) -> list[Kind]:
    """Make the classes; their sentences are those of the data set and the captions of training images.

    A caption that a test image has, too, is left out.
    """
    tested = {one.caption.casefold() for _, test in sides.values() for one in test}
    known = facts()
    found = []
    for label, (train, test) in sides.items():
        captions = [one.caption for one in train if one.caption and one.caption.casefold() not in tested]
        pictures = [tuple((one.name, one.data) for one in some) for some in (train, test)]
        found.append(Kind(label, tuple(dict.fromkeys([*known[label], *captions])), pictures[0], pictures[1]))
    return found
