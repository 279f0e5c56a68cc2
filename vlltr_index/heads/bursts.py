"""Bursts: pictures that were taken right after one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise

AT_ONCE = 2.0
"""Seconds between pictures of one folder and class that are one unit where nothing says what belongs together."""


def bursts(taken: Sequence[float | None], places: Sequence[Hashable], seconds: float) -> list[int | None]:
    """Find the burst of each picture: in it each was taken at most `seconds` after the one before, at one place.

    Args:
        taken: When each of N pictures was taken, in seconds; None where that is not known.
        places: Where each was taken: its folder, for example.
        seconds: The longest time between two pictures of a burst.

    Returns:
        For each picture the position of the burst's first one, in time; None for a picture alone.
    """
    at_place = defaultdict[Hashable, list[tuple[float, int]]](list)
    for n, (time, place) in enumerate(zip(taken, places, strict=True)):
        if time is not None:
            at_place[place].append((time, n))
    found: list[int | None] = [None] * len(taken)
    for pictures in at_place.values():
        pictures.sort()
        first = pictures[0][1]
        for (before, earlier), (time, n) in pairwise(pictures):
            if time - before > seconds:
                first = n
            else:
                found[earlier] = first
                found[n] = first
    return found


def folder_of(uri: str) -> str:
    """Return the folder of an image's file, or of the table that has it: what is before the last slash of its URI."""
    return uri.rpartition("/")[0]
