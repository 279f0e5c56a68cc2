"""From drawn icons to classes: near-duplicates, nouns that are drawn alike, and drawings that stand for two nouns."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.icons_lt.collect import Icon
from benchmarks.datasets.icons_lt.render import Floats, alike
from benchmarks.datasets.icons_lt.wordnet import WordNet

LEAST_FAMILIES = 3
MERGED_SHARE, SYNONYM_SHARE = 0.4, 0.1
_CHUNK = 2000


def order_key(text: str) -> str:
    """The SHA-256 of a text in hex: the order of every choice that is not made by coverage."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(slots=True)
class Classes:
    """Numbers of icons by class, names of merged nouns by class, and what was dropped."""

    members: dict[str, list[int]]
    merged: dict[str, list[str]]
    twins: dict[str, list[str]]
    repeated: list[tuple[int, int]]
    ambiguous: int = 0


def make_classes(icons: Sequence[Icon], vectors: Floats, nouns: WordNet) -> Classes:
    """Sort icons into classes.

    Args:
        icons: Sorted by noun and source.
        vectors: Their features, float32 [N, 576].
        nouns: For synonyms.
    """
    by_noun: dict[str, list[int]] = defaultdict(list)
    for number, icon in enumerate(icons):
        by_noun[icon.noun].append(number)
    repeated: list[tuple[int, int]] = []
    distinct = {noun: _distinct(numbers, icons, vectors, repeated) for noun, numbers in by_noun.items()}
    owner = {number: noun for noun, numbers in distinct.items() for number in numbers}
    pairs = _pairs(sorted(owner), vectors, owner)
    known = {n for n, numbers in distinct.items() if _families(numbers, icons) >= LEAST_FAMILIES}
    into = _merges(
        pairs, {noun: numbers for noun, numbers in distinct.items() if noun in known}, owner, nouns
    )
    joined: dict[str, list[int]] = defaultdict(list)
    merged: dict[str, list[str]] = defaultdict(list)
    for noun in sorted(known):
        joined[into.get(noun, noun)] += distinct[noun]
        if noun in into:
            merged[into[noun]].append(noun)
    place = {number: noun for noun, numbers in joined.items() for number in numbers}
    twins: dict[str, set[str]] = defaultdict(set)
    torn: set[int] = set()
    for one, two in pairs:
        for mine, other in ((one, two), (two, one)):
            if mine in place and place[mine] != place.get(other):
                twins[place[mine]].add(owner[other])
                if other in place:
                    torn.add(mine)
    found = Classes({}, dict(merged), {}, repeated, len(torn))
    for noun, numbers in joined.items():
        kept = _distinct([n for n in numbers if n not in torn], icons, vectors, repeated)
        if _families(kept, icons) >= LEAST_FAMILIES:
            found.members[noun] = sorted(kept)
            found.twins[noun] = sorted(twins[noun])
    return found


def _families(numbers: Iterable[int], icons: Sequence[Icon]) -> int:
    return len({icons[number].family for number in numbers})


def _distinct(
    numbers: Sequence[int], icons: Sequence[Icon], vectors: Floats, repeated: list[tuple[int, int]]
) -> list[int]:
    """Icons in the order of their hashes, without those near one before them; these go to `repeated` with it."""
    ranked = sorted(numbers, key=lambda n: order_key(icons[n].source))
    near = alike(vectors[ranked], vectors[ranked])
    kept: list[int] = []
    for place in range(len(ranked)):
        before = [k for k in kept if near[place, k]]
        if before:
            repeated.append((ranked[place], ranked[before[0]]))
        else:
            kept.append(place)
    return [ranked[place] for place in kept]


def _pairs(numbers: Sequence[int], vectors: Floats, owner: Mapping[int, str]) -> list[tuple[int, int]]:
    """Pairs of near-duplicates under different nouns, the smaller number first."""
    every: npt.NDArray[np.int64] = np.asarray(numbers)
    found: list[tuple[int, int]] = []
    for start in range(0, len(every), _CHUNK):
        rows = every[start : start + _CHUNK]
        for one, two in zip(*np.nonzero(alike(vectors[rows], vectors[every[start:]])), strict=True):
            first, second = int(rows[one]), int(every[start + two])
            if first < second and owner[first] != owner[second]:
                found.append((first, second))
    return found


def _merges(
    pairs: Sequence[tuple[int, int]],
    distinct: Mapping[str, Sequence[int]],
    owner: Mapping[int, str],
    nouns: WordNet,
) -> dict[str, str]:
    """Noun -> the noun that it goes into: the one with more drawings of those that are drawn alike.

    Two nouns are drawn alike if MERGED_SHARE of the drawings of one have a near-duplicate under the other, or
    SYNONYM_SHARE and the nouns share a sense of WordNet.
    """
    shared: dict[tuple[str, str], set[int]] = defaultdict(set)
    for one, two in pairs:
        shared[owner[one], owner[two]].add(one)
        shared[owner[two], owner[one]].add(two)
    into: dict[str, str] = {}
    ranked = sorted(distinct, key=lambda noun: (-len(distinct[noun]), noun))
    for place, larger in enumerate(ranked):
        if larger in into:
            continue
        for smaller in ranked[place + 1 :]:
            if smaller in into or (smaller, larger) not in shared:
                continue
            share = len(shared[smaller, larger]) / len(distinct[smaller])
            synonyms = set(nouns.index[smaller]) & set(nouns.index[larger])
            if share >= MERGED_SHARE or (synonyms and share >= SYNONYM_SHARE):
                into[smaller] = larger
    return into
