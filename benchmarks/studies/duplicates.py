"""The same picture under two labels: planted copies that are found, and pairs that are none, beside a plain rule.

    python -m benchmarks duplicates run
    python -m benchmarks duplicates whole
    python -m benchmarks duplicates table

One picture in five of a collection, at most 140, has a copy in another class; one copy in five is alone there. A copy
is found if it is in a pair with a picture of its unit. A pair of pictures that are of different classes by right counts
as false; one of a copy and another unit of its right class shows the wrong label, too, and is counted by itself. The
plain rule is `near_duplicates`, which is made for one class, over the whole collection as if it were one. `whole`
counts the pairs of whole data sets, into which nothing is planted.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.collections.sources import UNITS, draw
from benchmarks.collections.units import KINDS, Picture, drawn_units
from benchmarks.datasets.files import DATA, NAMES, training_pictures
from benchmarks.intervals import clustered
from benchmarks.kept import draws_of, keep, surroundings
from benchmarks.studies.vectors import features_of
from benchmarks.study import Command, Results, Setting, Study, table
from vlltr_index.data.decoding import open_image, probe
from vlltr_index.embedding.loading import thumbnail_tensor
from vlltr_index.heads.duplicates_across import near_duplicates_across
from vlltr_index.heads.near_duplicates import near_duplicates

ACROSS, PLAIN = RULES = ("across classes", "plain")
_OF_UNITS = "9xall"
_SIZES = {"40x8": range(10, 12), "60xall": range(10, 11), "99x3": range(10, 11)}
DRAWS = {
    **{(source, _OF_UNITS): range(4) for source in ("augmented", "pages", "bursts", "films", "single")},
    **{(source, _OF_UNITS): range(10, 13) for source in ("products", "scans", "reposts")},
    **{(source, size): _SIZES[size] for source in ("icons", "train", "families") for size in _SIZES},
    ("heldout", "40x8"): range(10, 12),
}
"""Draws by source and setting; on others of products, scans, reposts, icons and train the thresholds were chosen."""
_NEW = 16  # units of a class beside those that are learned from
_EACH = 5  # one picture in so many has a copy
_MOST = 140  # copies of a collection
_ALONE = 0.2  # share of the copies that are alone in their class
_HARD = ("resized", "cropped", "mixed")


def settings() -> list[Setting]:
    """Return the collections."""
    return [
        Setting(f"{source}-{size}", numbers, partial(measured, source, size))
        for (source, size), numbers in DRAWS.items()
    ]


def whole() -> None:
    """Count the pairs among all training pictures of each data set, and the pairs of classes that they are of."""
    for data in DATA:
        files, names = training_pictures(data)
        labels = torch.from_numpy(np.unique(names, return_inverse=True)[1])
        pairs = near_duplicates_across(features_of(files), _thumbnails(files), labels)
        found = {
            "pictures": len(files),
            "pairs": len(pairs),
            "classes": len(labels[pairs].sort(1).values.unique(dim=0)),
            "same_file": sum(files[one] == files[other] for one, other in pairs.tolist()),
        }
        keep("duplicates", data, {**surroundings(), **found})


def measured(source: str, size: str, number: int) -> dict[str, Any]:
    """Return how many copies of each kind there are in a draw, and what each rule finds."""
    pictures = _pictures(source, size, number)
    copies = _copies(pictures, random.Random(f"{source}:{size}:{number}"))
    every = [*pictures, *copies]
    files = [picture.data for picture in every]
    labels = torch.tensor([picture.label for picture in every])
    units = torch.tensor([picture.unit for picture in every])
    owners = {picture.unit: picture.label for picture in pictures}
    right = torch.tensor([owners[picture.unit] for picture in every])
    features = features_of(files)
    thumbnails = _thumbnails(files)
    plain = near_duplicates(features, thumbnails).sort(1).values.unique(dim=0)
    found = {
        ACROSS: near_duplicates_across(features, thumbnails, labels),
        PLAIN: plain[labels[plain[:, 0]] != labels[plain[:, 1]]],
    }
    kinds = [_kind(place) for place in range(len(copies))]
    scores = {rule: _scores(pairs, units, right, kinds) for rule, pairs in found.items()}
    return {"pictures": len(pictures), "copies": Counter(kinds), **scores}


def _scores(pairs: Tensor, units: Tensor, right: Tensor, kinds: Sequence[str]) -> dict[str, Any]:
    """Count the copies, which come last, that are found; and pairs of different units by whether the class is one."""
    same = units[pairs[:, 0]] == units[pairs[:, 1]]
    found = set(pairs[same].flatten().tolist())
    other = right[pairs[~same]]
    one_class = int((other[:, 0] == other[:, 1]).sum())
    return {
        "found": Counter(kind for place, kind in enumerate(kinds, len(units) - len(kinds)) if place in found),
        "one_class": one_class,
        "false": len(other) - one_class,
    }


def _pictures(source: str, size: str, number: int) -> list[Picture]:
    """Return all pictures of a draw; where none belong together each is a unit."""
    if source in UNITS:
        learned, fresh = drawn_units(KINDS[UNITS[source]], number, _NEW)
        return [*learned, *fresh]
    kinds = draw(source, size, number).kinds
    files = [(label, data) for label, kind in enumerate(kinds) for _, data in (*kind.train, *kind.test)]
    return [Picture(label, unit, data) for unit, (label, data) in enumerate(files)]


def _thumbnails(files: Sequence[bytes]) -> Tensor:
    return thumbnail_tensor([probe(data).thumbnail for data in files])


def _copies(pictures: Sequence[Picture], chance: random.Random) -> list[Picture]:
    """Copy some pictures, each kind in turn, into other classes."""
    classes = 1 + max(picture.label for picture in pictures)
    chosen = chance.sample(pictures, min(len(pictures) // _EACH, _MOST))
    copies = []
    for place, (label, unit, data) in enumerate(chosen):
        other = chance.randrange(classes - 1)
        target = classes + place if chance.random() < _ALONE else other + (other >= label)
        copies.append(Picture(target, unit, _changed(data, _kind(place), chance)))
    return copies


def _kind(place: int) -> str:
    """Return the kind of a copy by its place among them."""
    return list(CHANGES)[place % len(CHANGES)]


def _changed(data: bytes, kind: str, chance: random.Random) -> bytes:
    """Change a picture's file as a kind of copies does; without changes the bytes stay."""
    if not CHANGES[kind]:
        return data
    image = open_image(data)
    for change in CHANGES[kind]:
        image = change(image, chance)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _recompressed(image: Image.Image, chance: random.Random, least: int = 30) -> Image.Image:
    """Compress with a quality of 60, 45 or 30, `least` at least."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=chance.choice(range(least, 61, 15)))
    return Image.open(out).convert("RGB")


def _lit(image: Image.Image, chance: random.Random) -> Image.Image:
    """Make darker or brighter."""
    factor = chance.choice((0.75, 1.2))
    return Image.eval(image, lambda value: min(255, int(value * factor)))


def _turned(image: Image.Image, chance: random.Random) -> Image.Image:
    """Turn by three degrees either way; what comes in is of the colour of the edge."""
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edge, axis=0).astype(int).tolist()
    return image.rotate(chance.choice((-3, 3)), Image.Resampling.BICUBIC, fillcolor=(red, green, blue))


def _resized(image: Image.Image, chance: random.Random) -> Image.Image:
    factor = chance.choice((0.5, 0.7, 1.6))
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, chance: random.Random, share: float = 0.05) -> Image.Image:
    """Take a share of the width and of the height away, at both sides together."""
    width, height = round((1 - share) * image.width), round((1 - share) * image.height)
    left = round(chance.random() * share * image.width)
    top = round(chance.random() * share * image.height)
    return image.crop((left, top, left + width, top + height))


CHANGES: Mapping[str, Sequence[Callable[[Image.Image, random.Random], Image.Image]]] = {
    "exact": (),
    "recompressed": (_recompressed,),
    "brightness": (_lit,),
    "turned": (_turned,),
    "resized": (_resized,),
    "cropped": (_cropped,),
    "mixed": (partial(_cropped, share=0.03), _lit, _resized, partial(_recompressed, least=60)),
}
"""What is done to a picture for each kind of copy."""


def generated(results: Results) -> str:
    """Return the tables as Markdown, and what whole data sets have."""
    found: dict[str, list[dict[str, Any]]] = {}
    for source, size in DRAWS:
        if unit := results.get(f"{source}-{size}"):
            found.setdefault(source, []).extend(draws_of(unit))
    whole_sets = [
        f"- All {one['pictures']:,} training pictures of {NAMES[data]}, nothing planted: {one['pairs']:,} pairs, of"
        f" {one['classes']:,} pairs of classes; in {one['same_file']:,} the files are the same."
        for data in DATA
        if (one := results.get(data))
    ]
    return "\n".join([*_by_kind(found), "", *_by_source(found), "", *whole_sets]) + "\n"


def _by_kind(found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Return what each rule finds of each kind of copies."""
    draws = [(source, draw) for source, some in found.items() for draw in some]
    clusters = np.unique([source for source, _ in draws], return_inverse=True)[1]
    rows = []
    for kind in CHANGES:
        cells = [kind]
        for rule in RULES:
            one = clustered([_share(draw, rule, kind) for _, draw in draws], clusters)
            cells.append(f"{100 * one.mean:.0f} [{100 * one.low:.0f}, {100 * one.high:.0f}]")
        rows.append(cells)
    return [
        f"Copies that are found, per cent: means over {len(draws)} collections; for their 95 % intervals sources are"
        " drawn, then collections of each.",
        "",
        *table(["copies", *RULES], rows),
    ]


def _by_source(found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Return what each rule finds of the copies that are hardest to find, and the pairs that are not of one unit."""
    rows = []
    for source, draws in found.items():
        cells = [source, str(len(draws)), f"{sum(draw['pictures'] for draw in draws):,}"]
        for kind in _HARD:
            means = [np.mean([_share(draw, rule, kind) for draw in draws]) for rule in RULES]
            cells.append(" / ".join(f"{100 * mean:.0f}" for mean in means))
        for rule in RULES:
            counts = (sum(draw[rule][of] for draw in draws) for of in ("false", "one_class"))
            cells.append(" + ".join(f"{count:,}" for count in counts))
        rows.append(cells)
    others = [f"other pairs, {rule}" for rule in RULES]
    return [
        f"The same by source, {' / '.join(RULES)}. *Other pairs*: false ones, of different classes by right + those of"
        " a copy and another unit of its right class.",
        "",
        *table(["source", "collections", "pictures", *_HARD, *others], rows),
    ]


def _share(draw: Mapping[str, Any], rule: str, kind: str) -> float:
    """Return the share of a draw's copies of a kind that a rule finds."""
    return float(draw[rule]["found"].get(kind, 0) / draw["copies"][kind])


STUDY = Study({"results/duplicates.md": generated}, settings, commands={"whole": Command(whole)})
