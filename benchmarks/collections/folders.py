"""Folders of pictures that chose nothing: emoji and flags as vendors draw them, letters of scripts by their fonts.

A class is an emoji, a flag or a letter with at least four pictures, of which no two are nearly equal. Emoji and flags
are of the npm packages `emoji-datasource-VENDOR`, unpacked into `VENDOR-VERSION` below one folder; their emoji.json
tells names and kinds. Letters are drawn by the fonts of this machine that fontconfig lists for a language: in each
letter 4 to 11 of them, drawn by chance.
"""

from __future__ import annotations

import json
import random
import subprocess
import unicodedata
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.study import Command

KINDS = {
    "Flags": "flags",
    "Animals & Nature": "emoji",
    "Food & Drink": "emoji",
    "Objects": "emoji",
    "Travel & Places": "emoji",
    "Activities": "emoji",
}
LETTERS = {
    "th": [(0xE01, 0xE2F)],
    "he": [(0x5D0, 0x5EB)],
    "ar": [(0x627, 0x63B), (0x641, 0x64B)],
    "ka": [(0x10D0, 0x10F1)],
    "bn": [(0x995, 0x9A9), (0x9AA, 0x9B1)],
}
_FEWEST = 4
_MOST = 11  # fonts of a letter
_EQUAL = 0.02  # mean difference of small grey copies, of 1
_SIDE = 64
_HEIGHT = 44  # of a font
_NARROW = 6  # pixels: a font without the letter draws nothing
Pictures = Iterator[tuple[str, Image.Image]]


def make(packages: Path, to: Path) -> None:
    """Write the folders `emoji`, `flags` and `scripts` below `to`."""
    places = {path.name: path for path in sorted(packages.iterdir())}
    newest = max(places, key=lambda name: int(name.rpartition("-")[2].split(".")[0]))
    for row in json.loads((places[newest] / "emoji.json").read_text(encoding="utf-8")):
        if kind := KINDS.get(row["category"]):
            name = row["short_name"].replace("/", "-")
            _write(to / kind / name, _of_vendors(places, row["image"]))
    for language, ranges in LETTERS.items():
        fonts = _fonts(language)
        for letter in (chr(code) for first, end in ranges for code in range(first, end)):
            if name := unicodedata.name(letter, ""):
                _write(to / "scripts" / name.lower().replace(" ", "-"), _by_fonts(letter, fonts))


def _of_vendors(places: dict[str, Path], file: str) -> Pictures:
    """Yield the pictures of an emoji, of each vendor's release that has it."""
    for name, place in places.items():
        path = place / "img" / name.rpartition("-")[0] / "64" / file
        if path.exists():
            with Image.open(path) as picture:
                yield name, _on_white(picture)


def _by_fonts(letter: str, fonts: list[Path]) -> Pictures:
    """Yield a letter as some fonts draw it, in the middle."""
    chance = random.Random(letter)
    wanted = chance.randint(_FEWEST, _MOST)
    for path in chance.sample(fonts, len(fonts)):
        picture = Image.new("RGB", (_SIDE, _SIDE), "white")
        pen = ImageDraw.Draw(picture)
        font = ImageFont.truetype(path, _HEIGHT)
        left, top, right, bottom = pen.textbbox((0, 0), letter, font=font)
        if wanted and right - left >= _NARROW:
            pen.text(
                ((_SIDE - left - right) / 2, (_SIDE - top - bottom) / 2), letter, fill="black", font=font
            )
            yield path.stem, picture
            wanted -= 1


def _fonts(language: str) -> list[Path]:
    """Return the files of the fonts that have a language, by fontconfig."""
    told = subprocess.run(
        ["fc-list", f":lang={language}", "file"], check=True, capture_output=True, text=True
    )
    return sorted(Path(line.partition(":")[0]) for line in told.stdout.splitlines())


def _write(folder: Path, pictures: Pictures) -> None:
    """Write the pictures of a class, but those nearly equal to one before; nothing if there are too few."""
    kept = list[tuple[str, Image.Image]]()
    seen = list[NDArray[np.float64]]()
    for name, picture in pictures:
        small = (
            np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float64) / 255
        )
        if all(np.abs(small - other).mean() >= _EQUAL for other in seen):
            seen.append(small)
            kept.append((name, picture))
    if len(kept) >= _FEWEST:
        folder.mkdir(parents=True)
        for name, picture in kept:
            picture.save(folder / f"{name}.png")


def _on_white(picture: Image.Image) -> Image.Image:
    whole = Image.new("RGBA", picture.size, "white")
    whole.alpha_composite(picture.convert("RGBA"))
    return whole.convert("RGB")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--packages", type=Path, required=True, help="folders VENDOR-VERSION of unpacked packages"
    )
    parser.add_argument("--to", type=Path, required=True, help="where the folders are written")


COMMAND = Command(make, _arguments)
