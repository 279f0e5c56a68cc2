"""Tiny trees in the layouts of ImageNet-LT, Places-LT, iNaturalist 2018 and the VL-LTR release's text corpora."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDNET = ("n01440764", "n01443537", "n02012849", "n03126707")
IMAGENET = ("tench", "goldfish", "crane (n02012849)", "crane (n03126707)")
PLACES = ("airfield", "apartment building outdoor", "art studio")
SPECIES = ("Acer rubrum", "Bubo bubo", "Parus major")

ARTICLE = """The {0} is the first thing here. Mr. Smith saw a {0} in the U.S. It was large.


== Description ==
The {0} has a colour.
=== Size ===
It is as long as an arm.

== See also ==
List of things.

== References ==
Smith, J. (1999). A book.
=== Cited ===
A second book.

== Habitat ==
It lives outdoors.
"""
"""Summary, kept sections, dropped sections, and a dropped section's own subsection."""


def picture(path: Path, number: int) -> Path:
    """An image file of its own, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (16, 12, 3), np.uint8)
    Image.fromarray(noise).save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None)
    return path


def _lists(folder: Path, name: str, lines: dict[str, list[tuple[str, int]]]) -> None:
    number = 0
    for split, rows in lines.items():
        for path, _ in rows:
            if not (folder / path).exists():
                number += 1
                picture(folder / path, number)
        text = "".join(f"{path} {label}\n" for path, label in rows)
        (folder / f"{name}_{split}.txt").write_text(text, encoding="utf-8")


def articles(folder: Path, names: tuple[str, ...]) -> None:
    """`wiki/desc_<class number>.txt`; the second file is GBK."""
    (folder / "wiki").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        spoken = name.partition(" (")[0]
        data = ARTICLE.format(spoken).encode("utf-8")
        if number == 1:
            data = (ARTICLE.format(spoken) + "鱼是动物。\n").encode("gbk")
        (folder / "wiki" / f"desc_{number}.txt").write_bytes(data)


def imagenet_lt(folder: Path) -> Path:
    """Four classes, two of them cranes; test lines lie under val/; labels.txt is not in order."""
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, key in enumerate(WORDNET):
        rows["train"] += [(f"train/{key}/{key}_{n}.JPEG", label) for n in range(4 - label)]
        rows["val"].append((f"train/{key}/{key}_9.JPEG", label))
        rows["test"].append((f"val/{key}/ILSVRC2012_val_0000000{label}.JPEG", label))
    _lists(folder, "ImageNet_LT", rows)
    spoken = ["tench", "goldfish", "crane", "crane"]
    lines = [f"{key} {7 * n + 1} {name}\n" for n, (key, name) in enumerate(zip(WORDNET, spoken, strict=True))]
    (folder / "labels.txt").write_text("".join(lines[::-1]), encoding="utf-8")
    articles(folder, IMAGENET)
    return folder


def places_lt(folder: Path) -> Path:
    """Three classes, one with `_` and `/` in its name; labels.txt has the name first and the number last."""
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("airfield", "apartment_building-outdoor", "art_studio")):
        rows["train"] += [(f"train/{name}/0000{n}.jpg", label) for n in range(3 - label)]
        rows["val"].append((f"train/{name}/00009.jpg", label))
        rows["test"].append((f"val/{name}/Places365_val_0000000{label}.jpg", label))
    _lists(folder, "Places_LT", rows)
    names = "art_studio 2\nairfield 0\napartment_building/outdoor 1\n"
    (folder / "labels.txt").write_text(names, encoding="utf-8")
    articles(folder, PLACES)
    return folder


def inat2018(folder: Path) -> Path:
    """Three species; JSON files and, beside them, the same as lists."""
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    for label in range(len(SPECIES)):
        place = f"train_val2018/{('Plantae', 'Aves', 'Aves')[label]}/{label}"
        rows["train"] += [(f"{place}/{label}{n}ab.jpg", label) for n in range(3 - label)]
        rows["val"].append((f"{place}/{label}9cd.jpg", label))
    _lists(folder, "iNaturalist18", rows)
    for split, images in rows.items():
        (folder / f"{split}2018.json").write_text(json.dumps(coco(images)), encoding="utf-8")
    ranks = ("supercategory", "kingdom", "phylum", "class", "order", "family", "genus")
    kinds = [{"id": n, "name": name, **{r: f"{r} of all" for r in ranks}} for n, name in enumerate(SPECIES)]
    (folder / "categories.json").write_text(json.dumps(kinds), encoding="utf-8")
    articles(folder, SPECIES)
    return folder


def coco(rows: list[tuple[str, int]]) -> dict[str, Any]:
    """Images and annotations as iNaturalist writes them."""
    images = [
        {"id": 100 + n, "file_name": path, "width": 12, "height": 16, "license": 0, "rights_holder": "A"}
        for n, (path, _) in enumerate(rows)
    ]
    notes = [{"id": 500 + n, "image_id": 100 + n, "category_id": c} for n, (_, c) in enumerate(rows)]
    return {"info": {"year": 2018}, "licenses": [], "images": images, "annotations": notes}
