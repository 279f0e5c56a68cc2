"""Units of images that count as one observation: groups, bursts, and near duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vlltr_index.heads.bursts import AT_ONCE, bursts
from vlltr_index.heads.near_duplicates import near_duplicates


def units_of(
    features: Tensor | None,
    labels: Tensor,
    groups: Sequence[str | None],
    *,
    taken: Sequence[float | None] | None = None,
    places: Sequence[Hashable] | None = None,
    thumbnails: Tensor | None = None,
) -> list[str]:
    """Name the unit of each image: its group; or else, of images of one class, that of a burst and of near duplicates.

    A group may have images of several classes. An image without one that belongs to images of groups joins the first of
    these by name. Other units are named by the position of their first image.

    Args:
        features: Float [N, D], unnormalised; None: only thumbnails are compared.
        labels: Int64 [N], on the CPU.
        groups: The group of each image, None for one without.
        taken: When each image was taken, in seconds, None where that is not known; default: it is known of none.
        places: The folder of each image; default: all are in one.
        thumbnails: Small grey copies of the images, uint8 [N, S, S], all 0 where there is none; default: none.
    """
    pairs = [torch.empty(0, 2, dtype=torch.int64)]
    for own in labels.argsort(stable=True).split(labels.bincount().tolist()):
        vectors = None if features is None else features[own.to(features.device)]
        small = None if thumbnails is None else thumbnails[own]
        pairs.append(own[near_duplicates(vectors, small)])
    return units_by(torch.cat(pairs), labels, groups, taken=taken, places=places)


def units_by(
    pairs: Tensor,
    labels: Tensor,
    groups: Sequence[str | None],
    *,
    taken: Sequence[float | None] | None = None,
    places: Sequence[Hashable] | None = None,
) -> list[str]:
    """Name the unit of each image as `units_of` does, by near duplicates that are known.

    Two images of different groups stay apart, also near duplicates: a person said what belongs together.

    Args:
        pairs: Int64 [P, 2], positions of near duplicates, of one class or of two.
        labels, groups, taken, places: As for `units_of`.
    """
    count = len(groups)
    taken = [None] * count if taken is None else taken
    folders = [None] * count if places is None else places
    alone = [None if groups[n] else time for n, time in enumerate(taken)]
    burst_of = bursts(alone, list(zip(labels.tolist(), folders, strict=True)), AT_ONCE)
    joins = [(n, first) for n, first in enumerate(burst_of) if first is not None]
    joined = defaultdict[int, set[str]](set)  # by an image without a group, the groups of its near duplicates
    for one, other in pairs.tolist():
        mine = groups[one]
        theirs = groups[other]
        if not mine and not theirs:
            joins.append((one, other))
        elif mine and not theirs:
            joined[other].add(mine)
        elif theirs and not mine:
            joined[one].add(theirs)
    group_of: dict[int, str] = {}
    roots = _firsts(count, joins)
    for n, names in joined.items():
        root = roots[n]
        group_of[root] = min(*names, group_of.get(root, min(names)))
    found = [group or group_of.get(root) for group, root in zip(groups, roots, strict=True)]
    return [
        f"image {root}" if group is None else f"group {group}"
        for group, root in zip(found, roots, strict=True)
    ]


def join_copies(units: Sequence[str], contents: Sequence[Hashable]) -> list[str]:
    """Return units of which no two have images of one content, in whatever groups or classes: the first name stays.

    Args:
        units: The unit of each image.
        contents: What each image's content is known by.
    """
    names = list(dict.fromkeys(units))
    numbers = {name: n for n, name in enumerate(names)}
    first: dict[Hashable, int] = {}
    joins = [
        (numbers[unit], first.setdefault(content, numbers[unit]))
        for unit, content in zip(units, contents, strict=True)
    ]
    roots = _firsts(len(names), joins)
    return [names[roots[numbers[unit]]] for unit in units]


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group the numbers from 0 to `count` - 1 that pairs connect, in however many steps; ascending."""
    found = defaultdict[int, list[int]](list)
    for n, first in enumerate(_firsts(count, pairs)):
        found[first].append(n)
    return list(found.values())


def _firsts(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each number from 0 to `count` - 1 the smallest one that pairs connect it with."""
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, firsts = np.unique(labels, return_index=True)
    roots: list[int] = firsts[labels].tolist()
    return roots


def shared_units(units: Sequence[str]) -> list[str | None]:
    """Return the unit of each image that has others in it, of a group the group's name; None for an image by itself."""
    size = Counter(units)
    return [unit.removeprefix("group ") if size[unit] > 1 else None for unit in units]


def count_units(labels: Tensor, units: Tensor, classes: int) -> Tensor:
    """Count the units of each class, int64 [C], of labels and units int64 [N]; one of two classes counts in both."""
    owners, _ = torch.stack([labels, units]).unique(dim=1)
    return torch.bincount(owners, minlength=classes)


def number_observations(labels: Tensor, units: Sequence[str]) -> Tensor:
    """Number observations from 0, int64 [N]: the images of a unit that are of one class are one observation."""
    return number_names(list(zip(labels.tolist(), units, strict=True)))


def number_names(names: Sequence[Hashable]) -> Tensor:
    """Number names from 0 in the order in which they come first, int64 [N]."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)
