"""Characters that most faces draw alike become one class; glyphs under a wrong code are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

ALIKE = 0.03
SHARE = 0.4
LEAST_FACES = 2
FAINT = 0.2

Image = npt.NDArray[np.uint8]
Drawn = Mapping[int, Image]


def alike_pairs(drawn: Drawn, limit: float = ALIKE) -> list[tuple[int, int]]:
    """Return the pairs of codes of one face whose relative squared L2 distance is below `limit`, low code first."""
    codes = sorted(drawn)
    if len(codes) < 2:
        return []
    flat = np.stack([drawn[code] for code in codes]).reshape(len(codes), -1).astype(np.float64) / 255.0
    squares = np.einsum("ij,ij->i", flat, flat)
    squared = squares[:, None] + squares[None, :] - 2.0 * (flat @ flat.T)
    relative = np.round(squared / np.sqrt(squares[:, None] * squares[None, :]), 9)
    rows, columns = np.nonzero(np.triu(relative < limit, 1))
    return [(codes[row], codes[column]) for row, column in zip(rows, columns, strict=True)]


def merge_homoglyphs(
    designs: Sequence[Drawn], share: float = SHARE, least: int = LEAST_FACES, limit: float = ALIKE
) -> dict[int, int]:
    """Return code -> the code that stands for its class, over all designs.

    Two codes are joined when at least `least` designs have both and at least `share` of those draw them alike.
    The widest-covered code of a joined set stands for it (the lowest code on a tie).
    """
    coverage: dict[int, int] = {}
    alike: dict[tuple[int, int], int] = {}
    for drawn in designs:
        for code in drawn:
            coverage[code] = coverage.get(code, 0) + 1
        for pair in alike_pairs(drawn, limit):
            alike[pair] = alike.get(pair, 0) + 1
    parent = {code: code for code in coverage}

    def root(code: int) -> int:
        while parent[code] != code:
            code = parent[code]
        return code

    for (left, right), near in sorted(alike.items()):
        both = sum(1 for drawn in designs if left in drawn and right in drawn)
        if both < least or near < share * both:
            continue
        ends = sorted((root(left), root(right)), key=lambda code: (-coverage[code], code))
        parent[ends[1]] = ends[0]
    return {code: root(code) for code in sorted(coverage)}


def drop_miscoded(designs: Sequence[Drawn], merged: Mapping[int, int]) -> tuple[list[dict[int, Image]], int]:
    """Drop a glyph that its own face also draws, to the pixel, under a code of a wider-covered class.

    Returns the designs without such glyphs, and how many were dropped.
    """
    coverage: dict[int, int] = {}
    for drawn in designs:
        for standing in {merged[code] for code in drawn}:
            coverage[standing] = coverage.get(standing, 0) + 1
    kept: list[dict[int, Image]] = []
    dropped = 0
    for drawn in designs:
        seen: dict[bytes, int] = {}
        clean: dict[int, Image] = {}
        for code in sorted(drawn, key=lambda c: (-coverage[merged[c]], c)):
            holder = seen.setdefault(drawn[code].tobytes(), merged[code])
            if holder == merged[code]:
                clean[code] = drawn[code]
            else:
                dropped += 1
        kept.append(dict(sorted(clean.items())))
    return kept, dropped


def drop_faint(
    designs: Sequence[Drawn], merged: Mapping[int, int], share: float = FAINT
) -> tuple[list[dict[int, Image]], int]:
    """Drop a glyph with less than `share` of its class's median ink: a mark without its letter, or a worn away one.

    Returns the designs without such glyphs, and how many were dropped.
    """
    ink: dict[int, list[int]] = {}
    for drawn in designs:
        for code, image in drawn.items():
            ink.setdefault(merged[code], []).append(int(image.sum(dtype=np.int64)))
    least = {label: share * float(np.median(values)) for label, values in ink.items()}
    kept = [
        {
            code: image
            for code, image in drawn.items()
            if int(image.sum(dtype=np.int64)) >= least[merged[code]]
        }
        for drawn in designs
    ]
    return kept, sum(map(len, designs)) - sum(map(len, kept))
