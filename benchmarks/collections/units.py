"""Collections in which pictures come in bursts or series, drawn at random; they know nothing of how units are found."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.datasets.files import training_pictures

CLASSES = 10
NAMED = r"name:^(\d+)-"
"""What tells the unit of a picture in collections whose file names do."""
_UNITS = (2, 10)  # units of a class that are learned from
_NEW = 48  # units of a class that are new
_SIDE = 96
_WHITE = (255, 255, 255)
_BRIGHT = 128
_CAMERAS = 4

Rng = np.random.Generator
Unit = list[Image.Image]
"""Pictures that belong together."""


@dataclass(frozen=True)
class Kind:
    """A kind of collection.

    Attributes:
        source: The data set of the drawings: `icons_lt`, which the shipped encoder does not suit, or `glyphs_lt`.
        unit: Makes the pictures of a unit out of its drawings.
        drawings: How many drawings a unit of the collection has, at most.
        named: Whether file names tell the unit, and `fit` is told so.
        timed: Whether files tell when they were taken.
        seen: How many draws were looked at while the search for near duplicates and the interval were made.
    """

    source: str
    unit: Callable[[Rng, Sequence[Image.Image]], Unit]
    drawings: int = 1
    named: bool = False
    timed: bool = False
    seen: int = 0


def bursts(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Show a sticker on a photograph one to five times, from almost the same place."""
    (drawing,) = drawings
    scene = _photograph(rng)
    colour = _dark(rng)
    x, y = rng.uniform(0.1, 0.35, 2)
    size = rng.uniform(0.45, 0.6)
    return [
        _taken(
            rng, _on(scene, drawing, colour, x=x + rng.normal(0, 0.01), y=y + rng.normal(0, 0.01), size=size)
        )
        for _ in range(rng.integers(1, 6))
    ]


def scans(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Scan a printed drawing two to four times."""
    (drawing,) = drawings
    paper = _paper(rng, 225)
    printed = _on(paper, drawing, (20, 20, 25), x=0.15, y=0.15, size=0.7)
    copies = []
    for _ in range(rng.integers(2, 5)):
        turned = printed.rotate(
            rng.normal(0, 1.0), Image.Resampling.BICUBIC, fillcolor=paper.getpixel((0, 0))
        )
        side = int(rng.integers(80, 120))
        copies.append(_taken(rng, turned.resize((side, side), Image.Resampling.BICUBIC)))
    return copies


def films(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Let a sticker move across a photograph, in three to seven frames."""
    (drawing,) = drawings
    scene = _photograph(rng)
    colour = _dark(rng)
    start, end = rng.uniform(0.02, 0.5, (2, 2))
    size = rng.uniform(0.35, 0.48)
    frames = int(rng.integers(3, 8))
    path = [start + (end - start) * step / (frames - 1) for step in range(frames)]
    return [_taken(rng, _on(scene, drawing, colour, x=x, y=y, size=size)) for x, y in path]


def products(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Show a drawing in two to five colours, some mirrored."""
    (drawing,) = drawings
    shown = []
    for _ in range(rng.integers(2, 6)):
        ground = _paper(rng, 170)
        placed = _on(ground, drawing, _dark(rng), x=0.15, y=0.15, size=0.7)
        mirrored = placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else placed
        shown.append(_taken(rng, mirrored))
    return shown


def single(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Show a drawing once."""
    (drawing,) = drawings
    ground = Image.new("RGB", (_SIDE, _SIDE), _WHITE)
    return [_taken(rng, _on(ground, drawing, _dark(rng), x=0.15, y=0.15, size=0.7))]


def visits(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Show a sticker that walks before one of a few fixed cameras, in one to six pictures."""
    (drawing,) = drawings
    camera = _photograph(np.random.default_rng(int(rng.integers(_CAMERAS))))
    light = rng.uniform(0.5, 1.1)
    scene = Image.eval(camera, lambda value: int(value * light))
    colour = _dark(rng)
    x, y = rng.uniform(0.0, 0.6, 2)
    size = rng.uniform(0.3, 0.45)
    taken = []
    for _ in range(rng.integers(1, 7)):
        taken.append(_taken(rng, _on(scene, drawing, colour, x=x, y=y, size=size)))
        x, y = np.clip([x + rng.normal(0, 0.1), y + rng.normal(0, 0.05)], 0, 0.6)
    return taken


def pages(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Cut drawings out of one page: its paper, its stains and its ink."""
    stains = np.asarray(_photograph(rng).filter(ImageFilter.GaussianBlur(4)), np.float64)
    paper = 200 + rng.uniform(0, 20, 3) + 0.2 * (stains - stains.mean())
    page = Image.fromarray(paper.clip(0, 255).astype(np.uint8))
    ink = _dark(rng)
    return [
        _taken(rng, _on(page, drawing, ink, x=rng.uniform(0.05, 0.2), y=rng.uniform(0.05, 0.2), size=0.7))
        for drawing in drawings
    ]


def augmented(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Turn, move and resize a drawing three to six times, as people do who want more pictures."""
    (drawing,) = drawings
    paper = Image.new("RGB", (_SIDE, _SIDE), _WHITE)
    colour = _dark(rng)
    copies = []
    for _ in range(rng.integers(3, 7)):
        size = rng.uniform(0.6, 0.8)
        x, y = rng.uniform(0.02, 0.95 - size, 2)
        placed = _on(paper, drawing, colour, x=x, y=y, size=size)
        copies.append(
            _taken(rng, placed.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC, fillcolor=_WHITE))
        )
    return copies


def copies(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Put one to four copies beside a drawing, turned, moved and half of them mirrored."""
    (drawing,) = drawings
    paper = Image.new("RGB", (_SIDE, _SIDE), _WHITE)
    first = _on(paper, drawing, _dark(rng), x=0.15, y=0.15, size=0.7)
    shown = [first]
    for _ in range(rng.integers(1, 5)):
        right, down = rng.integers(-8, 9, 2).tolist()
        turned = first.rotate(
            rng.uniform(-20, 20), Image.Resampling.BICUBIC, translate=(right, down), fillcolor=_WHITE
        )
        shown.append(turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else turned)
    return shown


def reposts(rng: Rng, drawings: Sequence[Image.Image]) -> Unit:
    """Crop, scale and compress a sticker on a photograph two to four times, as it is passed on."""
    (drawing,) = drawings
    x, y = rng.uniform(0.15, 0.35, 2)
    first = _on(_photograph(rng), drawing, _dark(rng), x=x, y=y, size=rng.uniform(0.4, 0.5))
    copies = [_taken(rng, first)]
    for _ in range(rng.integers(1, 4)):
        left, top, right, bottom = rng.uniform(0, 0.1, 4) * _SIDE
        side = int(rng.integers(60, 160))
        cut = first.crop((round(left), round(top), _SIDE - round(right), _SIDE - round(bottom)))
        passed = io.BytesIO()
        cut.resize((side, side), Image.Resampling.BICUBIC).save(
            passed, "JPEG", quality=int(rng.integers(30, 80))
        )
        copies.append(Image.open(passed).convert("RGB"))
    return copies


KINDS: Mapping[str, Kind] = {
    "bursts on photographs": Kind("icons_lt", bursts, seen=10),
    "scans": Kind("glyphs_lt", scans, seen=10),
    "films": Kind("icons_lt", films, seen=10),
    "films with times": Kind("glyphs_lt", films, timed=True, seen=10),
    "products, named": Kind("icons_lt", products, named=True, seen=10),
    "single": Kind("icons_lt", single, seen=10),
    "visits to cameras, with times": Kind("icons_lt", visits, timed=True),
    "pages, named": Kind("glyphs_lt", pages, drawings=4, named=True),
    "augmented": Kind("glyphs_lt", augmented, seen=12),
    "mirrored copies": Kind("icons_lt", copies, seen=12),
    "reposts": Kind("icons_lt", reposts, seen=60),
}


@dataclass(frozen=True)
class Collection:
    """A collection that was drawn.

    Attributes:
        folder: Its class folders.
        units: How many units they have.
        new: By class, pictures of new units, one a unit.
    """

    folder: Path
    units: int
    new: Mapping[str, Sequence[bytes]]


def write_collection(kind: Kind, number: int, folder: Path) -> Collection:
    """Write draw `number` of a kind of collection into class folders: long-tailed, ten classes."""
    rng = np.random.default_rng([number, sum(map(ord, kind.unit.__name__))])
    drawings = _drawings(kind.source, _UNITS[1] * kind.drawings + _NEW)
    new: dict[str, list[bytes]] = {}
    second = 0.0
    units = 0
    for name in rng.permutation(sorted(drawings))[:CLASSES]:
        own = drawings[name]
        order = iter(rng.permutation(len(own)))
        count = int(np.exp(rng.uniform(*np.log(_UNITS))) + 0.5)
        place = folder / name
        place.mkdir(parents=True)
        for _ in range(count):
            second += rng.uniform(60, 6000)
            shown = [_image(own[at]) for at in islice(order, int(rng.integers(1, kind.drawings + 1)))]
            for copy, image in enumerate(kind.unit(rng, shown)):
                label = f"{units}-{copy}" if kind.named else rng.bytes(6).hex()
                (place / f"{label}.jpg").write_bytes(
                    _file(rng, image, second + 0.7 * copy if kind.timed else None)
                )
            units += 1
        fresh = [kind.unit(rng, [_image(own[at])]) for at in islice(order, _NEW)]
        new[name] = [_file(rng, unit[int(rng.integers(len(unit)))], None) for unit in fresh]
    return Collection(folder, units, new)


class Picture(NamedTuple):
    """A picture of a unit: its class and unit by number, and the file."""

    label: int
    unit: int
    data: bytes


def drawn_units(
    kind: Kind, number: int, new: int, classes: int = CLASSES
) -> tuple[list[Picture], list[Picture]]:
    """Draw a collection as `write_collection` does, and whole units of each class that are new to it, `new` of them.

    The first classes are the same for any number of classes.
    """
    rng = np.random.default_rng([number, new, sum(map(ord, kind.unit.__name__))])
    drawings = _drawings(kind.source, (_UNITS[1] + new) * kind.drawings)
    learned: list[Picture] = []
    fresh: list[Picture] = []
    unit = 0
    for label, name in enumerate(rng.permutation(sorted(drawings))[:classes]):
        own = drawings[name]
        order = iter(rng.permutation(len(own)))
        count = int(np.exp(rng.uniform(*np.log(_UNITS))) + 0.5)
        for place in range(count + new):
            shown = [_image(own[at]) for at in islice(order, int(rng.integers(1, kind.drawings + 1)))]
            files_of_unit = [_file(rng, image, None) for image in kind.unit(rng, shown)]
            (learned if place < count else fresh).extend(Picture(label, unit, data) for data in files_of_unit)
            unit += 1
    return learned, fresh


@cache
def _drawings(source: str, least: int) -> dict[str, list[bytes]]:
    """Read the training pictures of the classes that have at least so many, by class."""
    found: dict[str, list[bytes]] = {}
    for image, label in zip(*training_pictures(source), strict=True):
        found.setdefault(label, []).append(image)
    return {label: images for label, images in found.items() if len(images) >= least}


def _image(data: bytes) -> Image.Image:
    """Read a drawing, dark on light, as grey values."""
    grey = Image.open(io.BytesIO(data)).convert("L")
    return grey if np.asarray(grey)[0].mean() > _BRIGHT else Image.eval(grey, lambda value: 255 - value)


@cache
def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(picture) for picture in load_sample_images().images]


def _photograph(rng: Rng) -> Image.Image:
    """Cut a square out of a photograph."""
    photographs = _photographs()
    whole = photographs[int(rng.integers(len(photographs)))]
    side = int(rng.integers(120, 360))
    x = int(rng.integers(whole.width - side))
    y = int(rng.integers(whole.height - side))
    return whole.crop((x, y, x + side, y + side)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _paper(rng: Rng, least: int) -> Image.Image:
    """Return a plain ground, each of its colours at least so bright."""
    red, green, blue = rng.integers(least, 256, 3).tolist()
    return Image.new("RGB", (_SIDE, _SIDE), (red, green, blue))


def _dark(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 140, 3).tolist()
    return red, green, blue


def _on(
    scene: Image.Image, drawing: Image.Image, colour: tuple[int, int, int], *, x: float, y: float, size: float
) -> Image.Image:
    """Put a drawing in a colour on a scene, at a place and of a size that are shares of its side."""
    side = round(size * _SIDE)
    mask = Image.eval(drawing.resize((side, side), Image.Resampling.BICUBIC), lambda value: 255 - value)
    picture = scene.copy()
    picture.paste(Image.new("RGB", (side, side), colour), (round(x * _SIDE), round(y * _SIDE)), mask)
    return picture


def _taken(rng: Rng, picture: Image.Image) -> Image.Image:
    """Take a picture: exposure, noise and focus differ a little."""
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), np.float32)
    noise = rng.standard_normal(values.shape, np.float32)
    values = values * rng.uniform(0.92, 1.08) + noise * rng.uniform(1, 5)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _file(rng: Rng, picture: Image.Image, second: float | None) -> bytes:
    """Return a JPEG file, with the time it was taken where that is known."""
    out = io.BytesIO()
    exif = Image.Exif()
    if second is not None:
        day, rest = divmod(int(second), 86400)
        clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
        exif[0x0132] = f"2024:05:{1 + day:02} {clock}"
    picture.save(out, "JPEG", quality=int(rng.integers(70, 96)), exif=exif)
    return out.getvalue()


def files(new: Mapping[str, Sequence[bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield class and file of each new picture."""
    for name, pictures in new.items():
        for data in pictures:
            yield name, data
