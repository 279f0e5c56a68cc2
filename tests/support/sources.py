"""Folders of small pictures, and what a workspace holds of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.support.pictures import encoded
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.workspace import Workspace

RECIPE = Recipe(name="test", prompts=("a photo of a {}.",))


@cache
def png(number: int) -> bytes:
    """A small PNG of its own."""
    return encoded(Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 4, 3), np.uint8)))


def put(path: Path, number: int) -> Path:
    """Write an image file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def images(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """Class and split of each image, by its folder and name."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = snapshot.table("images", ["uri", "class_id", "split"]).to_pylist()
    return {"/".join(Path(r["uri"]).parts[-2:]): (names[r["class_id"]], r["split"]) for r in rows}


def sentences(workspace: Workspace) -> set[tuple[str, str]]:
    """Class and text of each sentence but prompts."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = snapshot.table("sentences", ["class_id", "text"], "source != 'prompt'").to_pylist()
    return {(names[r["class_id"]], r["text"]) for r in rows}


def relabel(workspace: Workspace, uri: str, class_id: int) -> None:
    """Correct an image's class."""
    with workspace.transaction("relabel") as tx:
        rows = tx.table("images", where=f"uri = '{uri}'").to_pylist()
        tx.upsert(
            "images", pa.Table.from_pylist([{**r, "class_id": class_id} for r in rows], tx.schema("images"))
        )


def rename(workspace: Workspace, class_id: int, name: str) -> None:
    """Give a class another name."""
    with workspace.transaction("rename") as tx:
        (row,) = tx.table("classes", where=f"class_id = {class_id}").to_pylist()
        tx.upsert("classes", pa.Table.from_pylist([{**row, "name": name}], CLASSES))
