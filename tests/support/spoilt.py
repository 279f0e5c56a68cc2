"""A small trained workspace with wrong labels and copies, for tests of what `vlltr review` lists."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from tests.support.pictures import put
from vlltr_index.anchors.selection import select
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.schemas.config import EncoderConfig, Recipe
from vlltr_index.store.workspace import Workspace

CLASSES = 5
PICTURES = 24
RECIPE = Recipe(name="test", encoder=EncoderConfig(model="vlltr-tiny", pretrained="glyphs"))


def characters() -> dict[str, list[bytes]]:
    """Pictures of five characters."""
    rows = pq.read_table(
        glyph_files(fast=True).images, columns=["image", "label"], filters=[("split", "=", "train")]
    ).to_pylist()
    common = [name for name, _ in Counter(row["label"] for row in rows).most_common(CLASSES)]
    return {name: [r["image"] for r in rows if r["label"] == name][:PICTURES] for name in common}


def written(folder: Path, drawn: dict[str, list[bytes]]) -> list[str]:
    """Write pictures as class folders with plain names, and return the names of the classes."""
    names = [f"class {n}" for n in range(len(drawn))]
    for name, pictures in zip(names, drawn.values(), strict=True):
        for number, data in enumerate(pictures):
            put(folder / name / f"{number}.png", data)
    return names


def with_head(made: Workspace) -> Workspace:
    """Embed the images of a workspace, and train its head."""
    embed(made)
    select(made, made.recipe.select)
    train_lgr_stage(made, made.recipe.lgr)
    return made


def trained_on(place: Path, folder: Path) -> Workspace:
    """Make a workspace of class folders with a head."""
    made = Workspace.create(place, RECIPE)
    ingest_images(made, folder, "train")
    return with_head(made)


def spoilt_workspace(place: Path) -> Workspace:
    """Make a workspace of the characters in `place` / workspace.

    Two of the pictures lie in a wrong folder, one is in two folders, and one is in a folder twice, darkened.
    """
    folder = place / "pictures"
    written(folder, characters())
    shutil.move(folder / "class 0" / "3.png", folder / "class 1" / "wrong.png")
    shutil.move(folder / "class 2" / "4.png", folder / "class 3" / "wrong.png")
    shutil.copy(folder / "class 4" / "5.png", folder / "class 0" / "twice.png")
    darker = ImageEnhance.Brightness(Image.open(folder / "class 4" / "7.png").convert("RGB")).enhance(0.9)
    darker.save(folder / "class 4" / "darker.png")
    return trained_on(place / "workspace", folder)
