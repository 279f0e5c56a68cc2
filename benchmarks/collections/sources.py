"""Sources of random collections: glyphs, icons, folders, or names for vectors of CLIP's geometry; and their texts."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.collections.units import CLASSES, KINDS, NAMED, drawn_units
from benchmarks.datasets.files import ICONS as ICONS_LT
from benchmarks.datasets.files import files_of
from vlltr_index.data.glyphs import glyph_files

__all__ = [
    "TEXTS",
    "UNITS",
    "Draw",
    "Kind",
    "Picture",
    "draw",
    "of_units",
    "with_texts",
]

TEXTS = ("true", "swapped", "random", "none")
LEAST_TEST = 3  # test images a class at least
NEW_IMAGES = 5  # of the class that is added
SENTENCES = 12  # of a class whose vectors have CLIP's geometry
OTHERS = 10  # classes beside those of a draw
GLYPHS = ("heldout", "train")
ICONS = ("icons", "families")
UNITS = {name.split()[0].rstrip(","): name for name in KINDS if "times" not in name}
"""Kinds of collections of units by their names as a source."""
UNITS_SIZE = "9xall"
_NEW_UNITS = 16  # of each of their classes, for testing
Picture = tuple[str, bytes]  # without bytes where the name says it all
_WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class _Size:
    """Size of a collection, see `draw`."""

    classes: int
    images: int | None
    share: float = 1.0  # where `images` is None

    @classmethod
    def of(cls, name: str) -> _Size:
        """Read a size."""
        classes, images = name.split("x")
        if images == "half":
            return cls(int(classes), None, 0.5)
        return cls(int(classes), None if images == "all" else int(images))


@dataclass(frozen=True)
class Kind:
    """A class of a draw: its name and sentences, and pictures as (file name, PNG)."""

    name: str
    sentences: tuple[str, ...]
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]


@dataclass(frozen=True)
class Draw:
    """A collection, a class that is added to it, other classes of its source, ten at most, and what groups pictures."""

    kinds: tuple[Kind, ...]
    new: Kind
    others: tuple[Kind, ...]
    group: str | None = None


@dataclass(frozen=True)
class _Pool:
    """A class's pictures; without `test`, training and test pictures come out of one pool."""

    name: str
    sentences: tuple[str, ...]
    train: list[Picture]
    test: list[Picture]


def draw(source: str, size: str, number: int) -> Draw:
    """Draw collection `number` of a source; its classes and pictures depend on nothing else.

    Args:
        source: `heldout`, `train`, `icons`, `families`, `clip`, one of `UNITS`, or a folder of class folders.
        size: `CxK` for C classes of K training images each, `Cxall` for all images, `Cxhalf` for half of them;
            `UNITS_SIZE` for one of `UNITS`.
        number: Of the draw.

    Raises:
        ValueError: The source has no such size, or no class that could be added.
    """
    if source in UNITS:
        if size != UNITS_SIZE:
            raise ValueError(f"collections of {source} have one size: {UNITS_SIZE}")
        return of_units(source, number)
    wanted = _Size.of(size)
    fits = [p for p in _pools(source, number) if len(p.train) >= _least(source, wanted)]
    chance = random.Random(f"{Path(source).name}:{wanted.classes}:{number}")
    fits = chance.sample(fits, len(fits))
    new = next((p for p in fits if len(p.train) >= NEW_IMAGES), None)
    if new is None:
        raise ValueError(f"{source} has no class of {NEW_IMAGES} pictures that could be added")
    fits.remove(new)
    kinds = tuple(_kind(p, wanted, number) for p in fits[: wanted.classes])
    others = fits[wanted.classes : wanted.classes + OTHERS]
    few = _Size(0, NEW_IMAGES)
    return Draw(kinds, _kind(new, few, number), tuple(_kind(p, few, number) for p in others))


def of_units(source: str, number: int, others: int = 0) -> Draw:
    """Draw a collection without texts, nine classes and one that is added; its test pictures are of new units.

    Args:
        source: One of `UNITS`.
        number: Of the draw; the ten classes depend on nothing else.
        others: How many other classes there are besides.
    """
    kind = KINDS[UNITS[source]]
    pools = dict[int, _Pool]()
    learned, fresh = drawn_units(kind, number, _NEW_UNITS, CLASSES + others)
    for at, (label, unit, data) in enumerate([*learned, *fresh]):
        pool = pools.setdefault(label, _Pool(f"class {label}", (), [], []))
        part = pool.train if at < len(learned) else pool.test
        part.append((f"{unit}-{at}.jpg" if kind.named else f"{at}.jpg", data))
    found = [Kind(p.name, p.sentences, tuple(p.train), tuple(p.test)) for p in pools.values()]
    *kinds, new = found[:CLASSES]
    return Draw(tuple(kinds), new, tuple(found[CLASSES:]), NAMED if kind.named else None)


def _pools(source: str, number: int) -> list[_Pool]:
    if source == "clip":
        return _clip(number)
    if source in ICONS:
        return _icons(source)
    return _glyphs(source) if source in GLYPHS else _folder(Path(source))


def _least(source: str, size: _Size) -> int:
    """How many pictures a class has to have for training; in a pool, for testing too."""
    if source == "heldout":  # there are few: a class has what it has
        return 0
    if source in ("train", "families", "clip"):
        return size.images or 1
    return LEAST_TEST + (1 if size.images is None else max(size.images, NEW_IMAGES))


def _kind(pool: _Pool, size: _Size, number: int) -> Kind:
    """A class with its pictures in an order of the draw's, so that more training pictures contain fewer."""
    order = random.Random(f"{number}:{pool.name}").sample(pool.train, len(pool.train))
    taken = math.ceil(size.share * len(order)) if size.images is None else size.images
    if pool.test:
        return Kind(pool.name, pool.sentences, tuple(order[:taken]), tuple(pool.test))
    if size.images is None:
        if size.share == 1.0:
            taken = min(taken, len(order) - max(LEAST_TEST, len(order) // 5))
        return Kind(pool.name, pool.sentences, tuple(order[:taken]), tuple(order[taken:]))
    taken = min(taken, len(order) - LEAST_TEST)
    return Kind(pool.name, pool.sentences, tuple(order[:taken]), tuple(order[max(taken, NEW_IMAGES) :]))


@cache
def _glyphs(source: str) -> list[_Pool]:
    """Read classes of Glyphs-LT: trained ones with test images in unseen fonts, or those held out for development."""
    files = glyph_files()
    if source == "train":
        texts = json.loads(files.texts.read_text(encoding="utf-8"))
        splits = ("train", "test")
    else:
        texts = files.heldout_classes("dev")
        splits = ("dev_support", "dev_test")
    pools = {n: _Pool(n, tuple(t), [], []) for n, t in sorted(texts.items())}
    rows = pq.read_table(files.images, columns=["image", "label", "split"], filters=[("split", "in", splits)])
    for at, row in enumerate(rows.to_pylist()):
        pool = pools[row["label"]]
        part = pool.test if row["split"] == "test" else pool.train
        part.append((f"{at}.png", row["image"]))
    return list(pools.values())


@cache
def _icons(source: str) -> list[_Pool]:
    """Trained classes of Icons-LT: all pictures in one pool, or test pictures of other families than training ones."""
    files = files_of(ICONS_LT)
    texts = json.loads(files.texts.read_text(encoding="utf-8"))
    pools = {n: _Pool(n, tuple(t), [], []) for n, t in sorted(texts.items())}
    splits = ("train", "val", "test") if source == "icons" else ("train", "test")
    rows = pq.read_table(files.images, columns=["image", "label", "split"], filters=[("split", "in", splits)])
    for at, row in enumerate(rows.to_pylist()):
        pool = pools[row["label"]]
        apart = source == "families" and row["split"] == "test"
        (pool.test if apart else pool.train).append((f"{at}.png", row["image"]))
    return list(pools.values())


@cache
def _folder(place: Path) -> list[_Pool]:
    """Classes of a folder of class folders, without texts: all pictures in one pool."""
    pools = []
    for folder in sorted(path for path in place.iterdir() if path.is_dir()):
        pictures = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]
        pools.append(_Pool(folder.name, (), pictures, []))
    return pools


def with_texts(drawn: Draw, texts: str, number: int) -> Draw:
    """The same pictures under other names and sentences, for its classes but not for the one that is added.

    `swapped` gives each class the name and the sentences of another, `random` words of other classes in their number,
    `none` takes the sentences away.
    """
    chance = random.Random(f"{texts}:{number}")
    kinds = drawn.kinds
    if texts == "swapped":
        order = list(range(len(kinds)))
        while any(at == to for at, to in enumerate(order)):
            chance.shuffle(order)
        told = [(kinds[to].name, kinds[to].sentences) for to in order]
    elif texts == "random":
        words = sorted({w for k in kinds for s in k.sentences for w in _WORD.findall(s)})
        told = [
            (
                f"{_scrambled(k.name, words, chance)} {at}",
                tuple(_scrambled(s, words, chance) for s in k.sentences),
            )
            for at, k in enumerate(kinds)
        ]
    else:
        told = [(k.name, k.sentences if texts == "true" else ()) for k in kinds]
    renamed = tuple(replace(k, name=n, sentences=s) for k, (n, s) in zip(kinds, told, strict=True))
    return replace(drawn, kinds=renamed)


def _scrambled(text: str, words: Sequence[str], chance: random.Random) -> str:
    return " ".join(chance.choices(words, k=max(3, len(text.split()))))


def _clip(number: int) -> list[_Pool]:
    """Classes of one world, with as many training pictures as the glyph classes have, and six for testing."""
    pools = []
    for at, like in enumerate(_glyphs("train")):
        name = f"kind-{number}-{at}"
        pictures = [(f"{name}.{n}.png", b"") for n in range(len(like.train) + 6)]
        said = tuple(f"{name} has mark {n}." for n in range(SENTENCES))
        pools.append(_Pool(name, said, pictures[6:], pictures[:6]))
    return pools
