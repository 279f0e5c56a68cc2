"""The data set behind the weights "glyphs": characters that Glyphs-LT has no class for, in its training fonts.

Commands:
    python -m benchmarks.datasets.glyphs_lt.pretrain data --fonts UNPACKED --out PRETRAIN
    python -m benchmarks.datasets.glyphs_lt.pretrain weights --checkpoint WORKSPACE/checkpoints/DIGEST --out OUT
Between the two lies `vlltr train cvlp`, see pretrained/README.md. Hardware: two CPU cores. Expected time: five minutes
for the data. Needs: fonttools, pillow, numpy, pyarrow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.glyphs_lt import build, fonts, homoglyphs, render, splits, texts, unicode_data
from benchmarks.datasets.glyphs_lt.assemble import Dataset
from benchmarks.datasets.glyphs_lt.designs import Design, make_designs
from benchmarks.datasets.glyphs_lt.licences import copyright_holder, copyright_text
from benchmarks.datasets.glyphs_lt.unicode_data import Character

LOG = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
DATA = Path(__file__).resolve().parents[3] / "recipes" / "glyphs_lt" / "data"
LEAST_IMAGES = 3
MOST_IMAGES = 40
LEAST_TEXTS = 8
NAME = "pretrain"
# Ideographs and syllable blocks have numbers for names, Braille cells too: nothing to read.
_NAMELESS = frozenset(["Han", "Hangul", "Braille"])
_KINDS = frozenset("LNSP")
# Of these forms the look is that of the character they stand for.
_SAME_LOOK = (
    "<font>",
    "<wide>",
    "<narrow>",
    "<noBreak>",
    "<compat>",
    "<super>",
    "<sub>",
    "<vertical>",
    "<small>",
)


@dataclass(frozen=True, slots=True)
class Known:
    """What Glyphs-LT already has: the codes of its classes, and what may not be said of the held-out ones."""

    codes: frozenset[int]
    held_out: dict[str, tuple[list[str], str]] = field(default_factory=dict)  # name -> (names, character)
    aliases: frozenset[str] = frozenset()  # of all classes: what was merged with them, and other names

    @classmethod
    def read(cls, path: Path) -> Known:
        """Read classes.json of Glyphs-LT."""
        classes: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        secret = {n: ([n, *c["aliases"]], c["char"]) for n, c in classes.items() if c["heldout"]}
        aliases = frozenset(alias.casefold() for c in classes.values() for alias in c["aliases"])
        return cls(frozenset(ord(c["char"]) for c in classes.values()), secret, aliases)


def is_candidate(char: Character, table: Mapping[int, Character]) -> bool:
    """Say whether a character may be drawn: letters, numbers, signs, punctuation and combining marks with a name.

    What it is made of must have a name too.
    """
    pieces = [int(piece, 16) for piece in char.decomposition.split() if not piece.startswith("<")]
    if char.script in _NAMELESS or not all(piece in table for piece in pieces):
        return False
    return char.category[0] in _KINDS or char.category == "Mn"


def stands_for(char: Character) -> int | None:
    """Return the one character that `char` is another form of, or None."""
    *tag, last = char.decomposition.split() or [""]
    if not last or len(tag) > 1 or (tag and not tag[0].startswith("<")):
        return None
    return int(last, 16) if not tag or tag[0] in _SAME_LOOK else None


def excluded_codes(merged: Mapping[int, int], table: Mapping[int, Character], known: Known) -> set[int]:
    """Return the codes that are a class of Glyphs-LT, look like one, have its name, or are another form of one."""
    roots = {merged[code] for code in known.codes if code in merged}
    out = {code for code, root in merged.items() if root in roots or table[code].name in known.aliases}
    out |= known.codes
    grown = True
    while grown:  # a form of a form
        more = {c for c in merged if c not in out and stands_for(table[c]) in out}
        grown = bool(more)
        out |= more
    return out


def relative_distances(left: Floats, right: Floats) -> Floats:
    """Return the relative squared L2 distance of each of images [N, P] to each of [M, P], rounded, shape (N, M)."""
    squares = np.einsum("ij,ij->i", left, left), np.einsum("ij,ij->i", right, right)
    squared = squares[0][:, None] + squares[1][None, :] - 2.0 * (left @ right.T)
    distances: Floats = np.round(squared / np.sqrt(squares[0][:, None] * squares[1][None, :]), 4)
    return distances


def drop_lookalikes(
    images: Mapping[int, render.Image], out: set[int], shipped: Floats
) -> tuple[dict[int, render.Image], int]:
    """Return the images of one design that are drawn like no image of a class, and how many others there were.

    Args:
        images: code -> image.
        out: the codes that look like a class; none of their images is returned or counted.
        shipped: the images of Glyphs-LT, all splits, shape (M, pixels), values 0 to 1.
    """
    mine = [code for code in sorted(images) if code not in out]
    if not mine:
        return {}, 0
    left = flat([images[code] for code in mine])
    right = np.concatenate([shipped, flat([images[code] for code in sorted(images) if code in out])])
    near = np.full(len(mine), np.inf)
    for start in range(0, len(right), 8192):
        near = np.minimum(near, relative_distances(left, right[start : start + 8192]).min(axis=1))
    kept = [code for code, distance in zip(mine, near, strict=True) if distance >= homoglyphs.ALIKE]
    return {code: images[code] for code in kept}, len(mine) - len(kept)


def flat(images: Sequence[render.Image]) -> Floats:
    """Return images as rows of values 0 to 1, shape (N, pixels)."""
    stacked = np.asarray(images, dtype=np.float32).reshape(len(images), render.SIDE * render.SIDE)
    return stacked / np.float32(255)


def read_shipped(path: Path) -> Floats:
    """Return every image of Glyphs-LT, see `flat`."""
    import pyarrow.parquet as pq

    return flat(
        [render.from_png(data) for data in pq.read_table(path, columns=["image"])["image"].to_pylist()]
    )


def describe(
    char: Character, table: Mapping[int, Character], twins: Sequence[int], known: Known
) -> tuple[list[str], int]:
    """Return the sentences about a character that name no held-out class, and how many were struck."""
    every = texts.sentences_of(char, table, twins)
    clean = [s for s in every if not any(texts.gives_away(s, n, sign) for n, sign in known.held_out.values())]
    return clean, len(every) - len(clean)


def assemble(
    designs: Sequence[Design], merged: Mapping[int, int], table: Mapping[int, Character], known: Known
) -> Dataset:
    """Choose the classes, share out their images of training groups, write their sentences."""
    twins: dict[int, list[int]] = {}
    for code, standing in merged.items():
        if code != standing:
            twins.setdefault(standing, []).append(code)
    data = Dataset()
    for label, pictures in splits.pictures_of(designs, merged).items():
        own = [p for p in pictures if p.group not in splits.TEST_GROUPS]
        if len(own) < LEAST_IMAGES:
            continue
        char = table[label]
        clean, struck = describe(char, table, twins.get(label, []), known)
        data.struck += struck
        if len(clean) < LEAST_TEXTS:
            continue
        own = splits.take(own, MOST_IMAGES, "pretrain")
        val = splits.take(own, splits.val_count(len(own)), "val")
        data.rows += [(char.name, "val" if p in val else "train", p) for p in own]
        data.texts[char.name] = clean
    data.rows.sort(key=lambda row: (row[1], row[0], row[2].source))
    return data


def make(folder: Path, out: Path, jobs: int) -> dict[str, Any]:
    """Build the data set from a folder of unpacked packages into `out`; return its manifest."""
    out.mkdir(parents=True, exist_ok=True)
    place = next(iter(sorted(folder.glob("unicode-data_*"))))
    table = unicode_data.read_unicode(place / "usr" / "share" / "unicode")
    known = Known.read(DATA / "classes.json")
    codes = tuple(sorted({code for code, char in table.items() if is_candidate(char, table)} | known.codes))
    faces = fonts.collect(folder)
    LOG.info("%d families, %d characters", len(faces), len(codes))
    made, _ = make_designs(faces, build.draw(faces, codes, jobs))
    merged = homoglyphs.merge_homoglyphs([design.images for design in made])
    clean, _ = homoglyphs.drop_miscoded([design.images for design in made], merged)
    clean, _ = homoglyphs.drop_faint(clean, merged)
    out_codes = excluded_codes(merged, table, known)
    alike, shipped = 0, read_shipped(DATA / f"{build.NAME}.parquet")
    for design, images in zip(made, clean, strict=True):
        mine = {} if design.group in splits.TEST_GROUPS else images
        design.images, dropped = drop_lookalikes(mine, out_codes, shipped)
        alike += dropped
    left = {code: standing for code, standing in merged.items() if code not in out_codes}
    data = assemble(made, left, table, known)
    build.write_json(out / "texts.json", data.texts)
    (out / f"{NAME}.parquet").write_bytes(build.encoded(build.picture_table(data, made)))
    (out / "FONTS.md").write_text(fonts_page(folder, faces, made, data), encoding="utf-8")
    manifest = {
        "name": f"glyphs_lt/{NAME}",
        "files": {n: _sha256(out / n) for n in (f"{NAME}.parquet", "texts.json", "FONTS.md")},
        "characters_excluded": len(out_codes),
        "images_like_a_class": alike,
        **counts(data, table),
    }
    build.write_json(out / "manifest.json", manifest)
    return manifest


def fonts_page(folder: Path, faces: Sequence[fonts.Face], made: Sequence[Design], data: Dataset) -> str:
    """Return the table of the fonts drawn on, see `fonts_markdown`."""
    used = Counter(made[p.number].source[p.code] for _, _, p in data.rows)
    places = {face.package: folder / f"{face.package}_{face.version}" for face in faces}
    holders = {name: copyright_holder(copyright_text(place, name)) for name, place in places.items()}
    return fonts.fonts_markdown(faces, used, holders)


def counts(data: Dataset, table: Mapping[int, Character]) -> dict[str, Any]:
    """Return how many classes, images and sentences there are, and the classes of each script."""
    labels = {name: p.label for name, _, p in data.rows}
    return {
        "classes": len(labels),
        "images": dict(sorted(Counter(split for _, split, _ in data.rows).items())),
        "groups": len({p.group for _, _, p in data.rows}),
        "sentences": sum(map(len, data.texts.values())),
        "sentences_struck": data.struck,
        "scripts": dict(sorted(Counter(table[code].script for code in labels.values()).items())),
        "rules": {"images": [LEAST_IMAGES, MOST_IMAGES], "least_sentences": LEAST_TEXTS},
    }


def pack(checkpoint: Path, out: Path) -> int:
    """Copy an encoder, its matrices in float16, the rest as it is; write the digest beside it; return its bytes.

    Args:
        checkpoint: what `vlltr train cvlp` wrote: encoder.json, model.safetensors, words.json.
        out: the folder of the weights.
    """
    from safetensors.numpy import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    state = load_file(checkpoint / "model.safetensors")
    small = {
        name: value.astype(np.float16) if value.dtype == np.float32 and value.ndim > 1 else value
        for name, value in state.items()
    }
    save_file(small, out / "model.safetensors")
    for name in ("encoder.json", "words.json"):
        (out / name).write_bytes((checkpoint / name).read_bytes())
    lines = [f"{_sha256(out / name)}  {name}" for name in ("encoder.json", "model.safetensors", "words.json")]
    (out / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return (out / "model.safetensors").stat().st_size


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.datasets.glyphs_lt.pretrain", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="draw the characters and write their sentences")
    data.add_argument(
        "--fonts", type=Path, required=True, help="folder of unpacked packages, named package_version"
    )
    data.add_argument("--jobs", type=int, default=2, help="processes that draw (default 2)")
    weights = commands.add_parser("weights", help="make a trained encoder small enough to ship")
    weights.add_argument("--checkpoint", type=Path, required=True, help="folder of the trained encoder")
    for command in (data, weights):
        command.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.command == "weights":
        LOG.info("%d bytes", pack(options.checkpoint, options.out))
        return 0
    manifest = make(options.fonts, options.out, options.jobs)
    LOG.info("%d classes, images %s", manifest["classes"], manifest["images"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
