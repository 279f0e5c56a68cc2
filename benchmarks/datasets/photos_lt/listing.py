"""The photographs of Photos-LT, chosen by eye, and how they are split. It needs no package."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parents[3] / "recipes" / "photos_lt"
SEED = "photos-lt-1"
MOST_TEST = 15
"""Most test images of a class; it has no more than half of its photographs."""
SPLITS = ("random", "kind")
SCENE, CUTOUT = "scene", "cutout"


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph, as `photos.csv` lists it."""

    package: str
    path: str  # in the package; of gcompris-qt-data in the tree of its resource files
    label: str
    kind: str  # SCENE or CUTOUT
    subject: str  # what several photographs of a class show; empty if it is the only one
    caption: str  # our own; empty: the package's, if it has one
    licence: str
    author: str
    stated_in: str
    sha256: str

    @property
    def group(self) -> str:
        """What stays on one side of a split: the subject, or the photograph itself."""
        return self.subject or f"{self.package}/{self.path}"

    @property
    def name(self) -> str:
        """The file's name in the data set, unique in it: the subject if there is one, and the path."""
        short = re.sub(r"^gcompris/src/activities/|^usr/share/tuxpaint/stamps/|resource/", "", self.path)
        words = f"{self.package.split('-')[0]}-{short.rsplit('.', 1)[0]}"
        ending = "jpg" if self.kind == SCENE else "png"
        return (
            f"{_slug(self.subject)}--{_slug(words)}.{ending}" if self.subject else f"{_slug(words)}.{ending}"
        )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")


def photos() -> list[Photo]:
    """Return the photographs, sorted by class, package and path."""
    with (HERE / "photos.csv").open(newline="", encoding="utf-8") as file:
        return [Photo(label=row.pop("class"), **row) for row in csv.DictReader(file)]


def facts() -> dict[str, list[str]]:
    """Return the sentences about each class that were written for this data set."""
    found: dict[str, list[str]] = json.loads((HERE / "facts.json").read_text(encoding="utf-8"))
    return found


def left_out() -> list[tuple[str, str, str]]:
    """Return package, pattern and reason of what is left out; the first pattern that fits counts."""
    with (HERE / "left_out.csv").open(newline="", encoding="utf-8") as file:
        return [(row["package"], row["pattern"], row["reason"]) for row in csv.DictReader(file)]


def reason_for(package: str, path: str, patterns: Iterable[tuple[str, str, str]]) -> str | None:
    """Return why an image of a package is left out, or None."""
    return next(
        (why for name, pattern, why in patterns if name == package and fnmatchcase(path, pattern)), None
    )


def split(listed: Sequence[Photo], by: str = "random") -> dict[Photo, str]:
    """Return `train` or `test` for each photograph.

    Args:
        listed: Photographs.
        by: `random`: up to half of each class is for the test, drawn by the SHA-256 of the seed and the group.
            `kind`: cut-outs are for training and scenes for the test, in the classes that have both.
    """
    classes: dict[str, list[Photo]] = defaultdict(list)
    for photo in listed:
        classes[photo.label].append(photo)
    sides: dict[Photo, str] = {}
    for members in classes.values():
        if by == "random":
            tested = _drawn(members)
            sides.update({photo: "test" if photo.group in tested else "train" for photo in members})
        elif {photo.kind for photo in members} == {SCENE, CUTOUT}:
            sides.update({photo: "test" if photo.kind == SCENE else "train" for photo in members})
    return sides


def _drawn(members: Sequence[Photo]) -> set[str]:
    """Draw the groups of a class that are for the test."""
    sizes: dict[str, int] = defaultdict(int)
    for photo in members:
        sizes[photo.group] += 1
    most = min(len(members) // 2, MOST_TEST)
    drawn: set[str] = set()
    count = 0
    for group in sorted(sizes, key=lambda group: _digest(f"{SEED}/{group}")):
        if count + sizes[group] <= most:
            drawn.add(group)
            count += sizes[group]
    return drawn


def split_hash(sides: Mapping[Photo, str]) -> str:
    """Return the SHA-256 of a split: its sorted lines of split, class and file name."""
    return _digest("\n".join(sorted(f"{side}/{photo.label}/{photo.name}" for photo, side in sides.items())))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def texts(captions: Mapping[Photo, str], sides: Mapping[Photo, str]) -> dict[str, list[str]]:
    """Return the sentences of each class: our own, then the captions of its training images.

    A caption that a test image has, too, is left out.
    """
    tested = {captions[photo].casefold() for photo, side in sides.items() if side == "test"}
    known = facts()
    found = {label: list(known[label]) for label in sorted({photo.label for photo in sides})}
    for photo in sides:
        caption = captions[photo]
        sentences = found[photo.label]
        if caption and caption.casefold() not in tested and caption not in sentences:
            sentences.append(caption)
    return found
