"""Near duplicates among the sentences of one class."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vlltr_index.corpus.clean import normalise_text

__all__ = ["NEAR", "near_duplicates", "word_set"]

NEAR = 0.9
"""Two sentences are near duplicates if their sets of words agree to this Jaccard index or more."""


def word_set(text: str) -> frozenset[str]:
    """The words of a sentence without case; numbers count as words."""
    return frozenset(re.findall(r"\w+", normalise_text(text).casefold()))


def near_duplicates(texts: Sequence[str], known: Iterable[str] = (), threshold: float = NEAR) -> list[int]:
    """Positions of the texts that nearly repeat an earlier one that stays, or one of `known`; ascending.

    Two texts nearly repeat each other if |A & B| >= threshold |A | B| for their sets of words A and B. Only pairs
    that share one of their rarest words are compared, which finds the same: a pair as alike as that must agree in
    one of the first |A| - ceil(threshold |A|) + 1 words of any common order.

    Args:
        texts: Sentences.
        known: Sentences that stay in any case.
        threshold: Above 0, at most 1.
    """
    sets = [word_set(text) for text in texts]
    stay = [word_set(text) for text in known]
    frequency = Counter(word for words in (*stay, *sets) for word in words)
    kept: list[frozenset[str]] = []
    where: dict[str, list[int]] = {}

    def rare(words: frozenset[str]) -> list[str]:
        ordered = sorted(words, key=lambda word: (frequency[word], word))
        return ordered[: len(ordered) - math.ceil(threshold * len(ordered) - 1e-9) + 1]

    def keep(words: frozenset[str]) -> None:
        for word in rare(words):
            where.setdefault(word, []).append(len(kept))
        kept.append(words)

    for words in stay:
        keep(words)
    found: list[int] = []
    for position, words in enumerate(sets):
        near = {i for word in rare(words) for i in where.get(word, ())}
        if any(_alike(words, kept[i], threshold) for i in near):
            found.append(position)
        else:
            keep(words)
    return found


def _alike(one: frozenset[str], other: frozenset[str], threshold: float) -> bool:
    shared = len(one & other)
    return shared >= threshold * (len(one) + len(other) - shared)
