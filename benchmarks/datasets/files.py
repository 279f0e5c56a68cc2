"""The files of Glyphs-LT and Icons-LT in this repository."""

from __future__ import annotations

import hashlib
import json
from argparse import ArgumentParser
from pathlib import Path

import pyarrow.parquet as pq

from vlltr_index.data.glyphs import GlyphFiles, glyph_files

__all__ = [
    "DATA",
    "GLYPHS",
    "ICONS",
    "NAMES",
    "RECIPES",
    "add_data",
    "digest",
    "files_of",
    "training_pictures",
]

RECIPES = Path(__file__).parents[2] / "recipes"
GLYPHS, ICONS = DATA = ("glyphs_lt", "icons_lt")
NAMES = {GLYPHS: "Glyphs-LT", ICONS: "Icons-LT"}


def add_data(parser: ArgumentParser) -> None:
    """Add `--data`, one of the data sets."""
    parser.add_argument("--data", choices=DATA, default=GLYPHS)


def files_of(data: str) -> GlyphFiles:
    """Return the files of one of `DATA`. Icons-LT is in the repository alone."""
    if data == GLYPHS:
        return glyph_files()
    folder = RECIPES / data / "data"
    return GlyphFiles(folder / f"{data}.parquet", folder / "texts.json", folder / "heldout.json", folder)


def training_pictures(data: str) -> tuple[list[bytes], list[str]]:
    """Return the training pictures of one of `DATA` as files, and the names of their classes."""
    columns = ["image", "label"]
    table = pq.read_table(files_of(data).images, columns=columns, filters=[("split", "=", "train")])
    return table["image"].to_pylist(), table["label"].to_pylist()


def digest(files: GlyphFiles) -> str:
    """Return the SHA-256 of a data set: of its content, or of the list of its files' hashes."""
    manifest = (files.folder / "manifest.json").read_bytes()
    return str(json.loads(manifest).get("content_sha256") or hashlib.sha256(manifest).hexdigest())
