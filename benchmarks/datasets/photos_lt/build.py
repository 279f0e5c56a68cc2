"""Build Photos-LT from the Debian packages gcompris-qt-data and tuxpaint-stamps-default.

Command: python -m benchmarks.datasets.photos_lt.build --packages UNPACKED --out photos-lt
Hardware: one CPU core. Expected time: about a minute. The folder is for `vlltr fit`; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from benchmarks.datasets.photos_lt import listing
from benchmarks.datasets.photos_lt.listing import Photo
from benchmarks.datasets.photos_lt.packages import (
    FOLDERS,
    INSTALL,
    VERSIONS,
    Found,
    check_packages,
    read_photos,
    version_of,
)
from vlltr_index.cli.errors import error_lines
from vlltr_index.data.decoding import open_image
from vlltr_index.data.writing import scratch_folder, settle
from vlltr_index.errors import InputError, VlltrError

LOG = logging.getLogger(__name__)
LONGEST = 512  # pixels of the longer side, at most
QUALITY = 92  # of JPEG
_SHOWN = 10  # problems that the message of an error names
COLUMNS = (
    "path",
    "class",
    "split",
    "group",
    "kind",
    "package",
    "version",
    "original",
    "licence",
    "author",
    "stated_in",
    "caption",
    "sha256",
)


def build(root: Path, out: Path, by: str = "random", partial: bool = False) -> dict[str, Any]:
    """Write the data set into a new folder and return its manifest.

    Args:
        root: Folder in which the packages are unpacked; `/` if they are installed.
        out: Folder to write.
        by: How photographs are split, one of `SPLITS`.
        partial: Build from what is there, if listed files are missing or differ.

    Raises:
        InputError: A package is missing, `out` exists, or listed files are missing or differ.
    """
    check_packages(root)
    if out.exists():
        raise InputError(f"{out} exists already", "Choose another --out, or remove that folder.")
    sides = listing.split(listing.photos(), by)
    versions = {package: version_of(root, package) for package in FOLDERS}
    found = read_photos(root, sides)
    if found.problems and not partial:
        raise _problems(found.problems, versions)
    kept = {photo: side for photo, side in sides.items() if photo in found.data}
    with scratch_folder(out.absolute().parent) as folder:
        for photo, side in kept.items():
            place = folder / side / photo.label / photo.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encoded(found.data[photo], photo.kind))
        manifest = _write_tables(folder, kept, found, versions, by)
        settle(folder, out.absolute())
    return manifest


def _problems(problems: Mapping[Photo, str], versions: Mapping[str, str]) -> InputError:
    lines = [f"{what}: {photo.package}: {photo.path}" for photo, what in problems.items()]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    have = ", ".join(f"{name} {version}" for name, version in versions.items())
    want = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    return InputError(
        "\n".join(
            [
                f"{len(lines)} listed photographs are missing or differ; found {have}; expected {want}:",
                *lines[:_SHOWN],
                *more,
            ]
        ),
        f"Unpack those versions: {INSTALL}; or build without these photographs: --partial",
    )


def encoded(data: bytes, kind: str) -> bytes:
    """Return a photograph as JPEG, a cut-out as PNG on white; the longer side has at most `LONGEST` pixels."""
    image = open_image(data)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if kind == listing.SCENE:
        image.save(buffer, "JPEG", quality=QUALITY)
    else:
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _write_tables(
    folder: Path, sides: Mapping[Photo, str], found: Found, versions: Mapping[str, str], by: str
) -> dict[str, Any]:
    """Write LICENCES.csv, texts.json, left_out.csv and manifest.json; return the manifest."""
    with (folder / "LICENCES.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for photo, side in sides.items():
            table.writerow(
                [
                    f"{side}/{photo.label}/{photo.name}",
                    photo.label,
                    side,
                    photo.subject,
                    photo.kind,
                    photo.package,
                    versions[photo.package],
                    photo.path,
                    photo.licence,
                    photo.author,
                    photo.stated_in,
                    found.captions[photo],
                    photo.sha256,
                ]
            )
    sentences = listing.texts(found.captions, sides)
    manifest = {
        "name": "photos_lt",
        "split": by,
        "seed": listing.SEED,
        "split_sha256": listing.split_hash(sides),
        "counts": counts(sides),
        "sentences": sum(map(len, sentences.values())),
        "versions": dict(versions),
        "pillow": PIL.__version__,
        "not_built": [
            {"package": p.package, "path": p.path, "why": why} for p, why in found.problems.items()
        ],
    }
    for name, value in (("texts.json", sentences), ("manifest.json", manifest)):
        text = json.dumps(value, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return manifest


def counts(sides: Mapping[Photo, str]) -> dict[str, Any]:
    """Count photographs by split and kind, and by class: train, test, scenes, cut-outs."""
    labels = sorted({photo.label for photo in sides})
    by_split = Counter((photo.label, side) for photo, side in sides.items())
    by_kind = Counter((photo.label, photo.kind) for photo in sides)
    return {
        "photographs": len(sides),
        "classes": len(labels),
        **{side: sum(1 for value in sides.values() if value == side) for side in ("train", "test")},
        **{kind: sum(1 for photo in sides if photo.kind == kind) for kind in (listing.SCENE, listing.CUTOUT)},
        "by_class": {
            label: {
                "train": by_split[label, "train"],
                "test": by_split[label, "test"],
                listing.SCENE: by_kind[label, listing.SCENE],
                listing.CUTOUT: by_kind[label, listing.CUTOUT],
            }
            for label in labels
        },
    }


def failure(error: VlltrError | OSError) -> tuple[int, str]:
    """Return the exit status and the message for an error that ends a command."""
    message, hint = error_lines(error) or (f"Error: {error}", None)
    return getattr(error, "exit_code", 1), f"{message}\n" + (f"Hint: {hint}\n" if hint else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.datasets.photos_lt.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--packages",
        type=Path,
        default=Path("/"),
        help="folder in which the packages are unpacked (default: /, where they are installed)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument(
        "--split",
        choices=listing.SPLITS,
        default="random",
        help="random: up to half of each class for the test; kind: train on cut-outs, test on scenes (default: random)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="build without listed files that are missing or differ; manifest.json names them",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        manifest = build(options.packages, options.out, options.split, options.partial)
    except (VlltrError, OSError) as error:
        parser.exit(*failure(error))
    found = manifest["counts"]
    LOG.info("%d photographs of %d classes in %s", found["photographs"], found["classes"], options.out)
    LOG.info("train %d, test %d, split %s", found["train"], found["test"], manifest["split_sha256"])
    for problem in manifest["not_built"]:
        LOG.warning("%s: %s: %s", problem["why"], problem["package"], problem["path"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
