"""Collecting upright regular faces, clustering them into designs, and designs into groups."""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.glyphs_lt.licences import copyright_text, is_confirmed, licence_table

LOG = logging.getLogger(__name__)

LETTERS = string.ascii_uppercase + string.ascii_lowercase
DESIGN_DISTANCE = 0.2
_STYLE_WORDS = frozenset(
    [
        "thin",
        "hairline",
        "extralight",
        "ultralight",
        "light",
        "book",
        "regular",
        "roman",
        "normal",
        "medium",
        "demi",
        "demibold",
        "semibold",
        "bold",
        "extrabold",
        "ultrabold",
        "heavy",
        "black",
        "italic",
        "oblique",
        "slanted",
        "condensed",
        "semicondensed",
        "extracondensed",
        "semi",
        "cond",
    ]
)
# Single-script families that carry no Latin letters; their glyphs complete the design named here.
COMPLETES = {
    "Noto Sans Armenian": "Noto Sans",
    "Noto Sans Georgian": "Noto Sans",
    "Noto Serif Armenian": "Noto Serif",
    "Noto Serif Georgian": "Noto Serif",
}
EXCLUDED = {
    "Ecolier court": "drawn at a fraction of its cap height",
    "TT2020 Style F": "letters worn away",
    "TT2020 Style F (ASCII)": "letters worn away",
    "Train One": "railway tracks in place of strokes",
    "Cabin Sketch": "shaded construction lines in place of strokes",
    "DejaVu Math TeX Gyre": "the glyphs of DejaVu Serif again",
    "TeX Gyre DejaVu Math": "the glyphs of DejaVu Serif again",
}
# Glyphs known to be wrong: start of the family name -> codes. The Korean families draw a won sign as the backslash.
WRONG_GLYPHS = {"Nanum": frozenset({0x5C, 0xFF}), "D2Coding": frozenset({0x5C})}
_SLOPED = re.compile(
    r"italic|oblique|slanted|slant\b|backslant|\bback\b|inclined|bold|black|heavy|extrabold", re.IGNORECASE
)
# Dingbats, construction sheets and fonts whose glyphs carry boxes, ruling lines or several letters.
_UNWANTED = re.compile(
    r"emoji|dingbat|ornament|symbols? ?2|barcode|outline|stencil|shadow|lines?$|initials?|swash|smallcaps|caps$|\bsc\b"
    r"|\bcaps\b|unicase|fraktur math|color|\bfill\b|keyboard|blocks",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Face:
    """One upright regular face of one family: where it lies, and what it can draw."""

    package: str
    version: str
    licence: str
    family: str
    path: Path
    number: int
    weight: int
    chars: frozenset[int]
    has_letters: bool

    @property
    def rank(self) -> tuple[int, int, str]:
        """Order of preference among the faces of a family: nearest to weight 400, widest, then by file name."""
        return abs(self.weight - 400), -len(self.chars), self.path.name


def plain_family(name: str) -> str:
    """Strip words of weight and width from the end of a family name ("Averia Libre Light" -> "Averia Libre")."""
    words = name.replace("_", " ").split()
    while len(words) > 1 and words[-1].lower() in _STYLE_WORDS:
        words.pop()
    return " ".join(words)


def _name(table: Any, *numbers: int) -> str:
    for number in numbers:
        text = table.getDebugName(number)
        if text:
            return str(text)
    return ""


def read_face(font: Any, package: str, version: str, licence: str, path: Path, number: int) -> Face | None:
    """Describe an opened fontTools font, or return None if it is sloped, bold, unwanted or has no outlines."""
    if not ({"glyf", "CFF ", "CFF2"} & set(font.keys())) or "cmap" not in font or "OS/2" not in font:
        return None
    family = plain_family(_name(font["name"], 16, 1))
    style = f"{_name(font['name'], 17, 2)} {path.stem}"
    os2 = font["OS/2"]
    weight = int(os2.usWeightClass)
    if not family or family in EXCLUDED or _SLOPED.search(style) or _UNWANTED.search(f"{family} {path.stem}"):
        return None
    if os2.fsSelection & 1 or not 250 <= weight <= 500 or int(os2.usWidthClass) not in (0, 4, 5, 6):
        return None
    cmap = font.getBestCmap() or {}
    order = set(font.getGlyphOrder()[:1])
    wrong = {code for start, codes in WRONG_GLYPHS.items() if family.startswith(start) for code in codes}
    chars = frozenset(code for code, glyph in cmap.items() if glyph not in order and code not in wrong)
    has_letters = all(ord(letter) in chars for letter in LETTERS)
    return Face(package, version, licence, family, path, number, weight, chars, has_letters)


def collect(folder: Path) -> list[Face]:
    """Return one face for each family in a folder of unpacked packages named `package_version`, sorted by family.

    Only packages of the licence table whose copyright file confirms the licence are read.
    """
    from fontTools.ttLib import TTCollection, TTFont

    allowed = licence_table()
    best: dict[str, Face] = {}
    for place in sorted(folder.iterdir()):
        package, _, version = place.name.partition("_")
        licence = allowed.get(package)
        if licence is None:
            continue
        if not is_confirmed(licence, copyright_text(place, package)):
            LOG.warning("%s: its copyright file does not confirm %s; left out", package, licence)
            continue
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() not in (".ttf", ".otf", ".ttc") or path.is_symlink():
                continue
            fonts = (
                TTCollection(path, lazy=True).fonts
                if path.suffix.lower() == ".ttc"
                else [TTFont(path, lazy=True)]
            )
            for number, font in enumerate(fonts):
                face = read_face(font, package, version, licence, path, number)
                if face is None or not (face.has_letters or face.family in COMPLETES):
                    continue
                held = best.get(face.family)
                if held is None or face.rank < held.rank:
                    best[face.family] = face
    return [best[family] for family in sorted(best)]


def relative_distance(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Return the L2 distance of two images over the root of the product of their norms."""
    norm = float(np.sqrt(np.linalg.norm(left) * np.linalg.norm(right)))
    return float(np.linalg.norm(left - right)) / norm if norm else np.inf


def cluster_designs(alphabets: npt.NDArray[np.float64], limit: float = DESIGN_DISTANCE) -> list[int]:
    """Cluster families by their A-Za-z renderings, complete linkage: every pair within a cluster lies within `limit`.

    Args:
        alphabets: shape (families, values), not normalised.
        limit: largest relative L2 distance between two families of one design.

    Returns:
        For each family the index of the first family of its cluster.
    """
    count = len(alphabets)
    squares = np.einsum("ij,ij->i", alphabets, alphabets)
    squared = np.maximum(squares[:, None] + squares[None, :] - 2.0 * (alphabets @ alphabets.T), 0.0)
    norms = np.sqrt(np.maximum(squares, 1e-12))
    distance = np.round(np.sqrt(squared / (norms[:, None] * norms[None, :])), 6)
    members = {index: [index] for index in range(count)}
    owner = list(range(count))
    rows, columns = np.nonzero(np.triu(distance <= limit, 1))
    for value, row, column in sorted(zip(distance[rows, columns], rows, columns, strict=True)):
        del value
        left, right = sorted((owner[row], owner[column]))
        if left == right or distance[np.ix_(members[left], members[right])].max() > limit:
            continue
        members[left] += members.pop(right)
        for index in members[left]:
            owner[index] = left
    return owner


def group_names(families: Sequence[str], owners: Sequence[int]) -> list[str]:
    """Join families that share a design or the first word of their names; a group is called by its first family."""
    parent = list(range(len(families)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first_of: dict[str, int] = {}
    for index, family in enumerate(families):
        word = re.split(r"[ \-0-9]", family.lower())[0] or family.lower()
        for other in (first_of.setdefault(word, index), owners[index]):
            low, high = sorted((root(index), root(other)))
            parent[high] = low
    return [slug(families[root(index)]) for index in range(len(families))]


def slug(name: str) -> str:
    """Return a name in lower case with dashes for everything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fonts_markdown(faces: Sequence[Face], used: Mapping[str, int], holders: Mapping[str, str]) -> str:
    """Return the table of packages, versions, families, licences and holders as Markdown.

    Args:
        faces: the faces that were considered.
        used: images taken from each family; families without any are not listed.
        holders: package -> copyright line.
    """
    rows: dict[tuple[str, str, str], list[str]] = {}
    for face in faces:
        if used.get(face.family):
            rows.setdefault((face.package, face.version, face.licence), []).append(face.family)
    lines = [
        "# Fonts drawn on",
        "",
        "Each package was read from Debian; its copyright file was checked for the licence named here. Only small",
        "greyscale renderings of single characters are shipped, no font file.",
        "",
        "| package | version | licence | families | copyright line |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (package, version, licence), families in sorted(rows.items()):
        names = ", ".join(sorted(families)).replace("|", "/")
        lines.append(f"| {package} | {version} | {licence} | {names} | {holders.get(package, '')} |")
    return "\n".join(lines) + "\n"
