"""From drawn families to designs: screens, clusters, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.glyphs_lt.fonts import COMPLETES, LETTERS, Face, cluster_designs, group_names, slug

LEAST_RECOGNISED = 0.6
MOST_UNICASE = 5
UNICASE_DISTANCE = 0.15
_SAME_FORM = frozenset("cosuvwxz")

Image = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Design:
    """One design: its group, the families it unites (widest first), and one image for each character."""

    group: str
    name: str
    families: list[str]
    images: dict[int, Image]
    source: dict[int, str]


def alphabet(images: dict[int, Image]) -> npt.NDArray[np.float64]:
    """Return the A-Za-z images as shape (52, pixels), values 0 to 1."""
    return np.stack([images[ord(letter)].ravel() for letter in LETTERS]).astype(np.float64) / 255.0


def unicase_letters(letters: npt.NDArray[np.float64]) -> int:
    """Count the letters whose small form is drawn like the capital, at the same size."""
    half = len(letters) // 2
    gap = np.linalg.norm(letters[:half] - letters[half:], axis=1) / np.linalg.norm(letters[:half], axis=1)
    return int((gap < UNICASE_DISTANCE).sum())


def recognised_share(letters: npt.NDArray[np.float64], groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """For each family, the share of its letters whose nearest letter in other groups is the same letter.

    Cosine similarity; the capitals and small letters of c, o, s, u, v, w, x, z count as the same.

    Args:
        letters: shape (families, 52, pixels).
        groups: a group for each family.
    """
    flat = letters / np.linalg.norm(letters, axis=2, keepdims=True)
    count, width = len(letters), letters.shape[1]
    rows = flat.reshape(count * width, -1)
    same = np.array([ord(x.lower()) if x.lower() in _SAME_FORM else ord(x) for x in LETTERS])
    names = np.array(groups)
    shares = np.zeros(count)
    for index in range(count):
        other = np.repeat(names != names[index], width)
        nearest = np.where(other[None, :], rows[index * width : (index + 1) * width] @ rows.T, -1.0).argmax(
            axis=1
        )
        shares[index] = float((same[nearest % width] == same).mean())
    return shares


def make_designs(
    faces: Sequence[Face], drawn: Sequence[dict[int, Image]]
) -> tuple[list[Design], dict[str, str]]:
    """Screen the families, cluster them into designs, name the groups.

    Returns:
        The designs sorted by group and name, and family -> reason for every family screened out.
    """
    dropped: dict[str, str] = {}
    kept: list[int] = []
    for index, face in enumerate(faces):
        if face.family in COMPLETES:
            continue
        if not all(ord(letter) in drawn[index] for letter in LETTERS):
            dropped[face.family] = "some of A-Za-z blank, too large or missing"
        elif unicase_letters(alphabet(drawn[index])) > MOST_UNICASE:
            dropped[face.family] = "small letters drawn as capitals"
        else:
            kept.append(index)
    letters = np.stack([alphabet(drawn[index]) for index in kept])
    families = [faces[index].family for index in kept]
    shares = recognised_share(letters, group_names(families, list(range(len(families)))))
    good = [place for place, share in enumerate(shares) if share >= LEAST_RECOGNISED]
    dropped.update(
        {families[p]: "letters unlike those of other fonts" for p in set(range(len(kept))) - set(good)}
    )
    letters, families, kept = letters[good], [families[p] for p in good], [kept[p] for p in good]
    owners = cluster_designs(letters.reshape(len(kept), -1))
    groups = group_names(families, owners)
    members: dict[int, list[int]] = {}
    for place, owner in enumerate(owners):
        members.setdefault(owner, []).append(place)
    extra = {face.family: index for index, face in enumerate(faces) if face.family in COMPLETES}
    designs = []
    for owner, places in members.items():
        order = sorted(places, key=lambda p: (-len(drawn[kept[p]]), families[p]))
        indices = [kept[p] for p in order]
        indices += [index for name, index in extra.items() if COMPLETES[name] in {families[p] for p in order}]
        designs.append(_design(groups[owner], [(faces[i].family, drawn[i]) for i in indices]))
    return sorted(designs, key=lambda design: (design.group, design.name)), dict(sorted(dropped.items()))


def _design(group: str, parts: Sequence[tuple[str, dict[int, Image]]]) -> Design:
    images: dict[int, Image] = {}
    source: dict[int, str] = {}
    for family, drawn in parts:
        for code in sorted(drawn):
            if code not in images:
                images[code], source[code] = drawn[code], family
    return Design(group, slug(parts[0][0]), [family for family, _ in parts], images, source)
