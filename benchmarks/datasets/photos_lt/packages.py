"""Find the two Debian packages, and read the listed photographs and captions from them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.datasets.photos_lt.listing import Photo
from benchmarks.datasets.photos_lt.resources import ResourceFile
from vlltr_index.errors import InputError
from vlltr_index.schemas.fingerprint import digest_bytes

GCOMPRIS, TUXPAINT = "gcompris-qt-data", "tuxpaint-stamps-default"
FOLDERS = {GCOMPRIS: "usr/share/gcompris-qt/rcc", TUXPAINT: "usr/share/tuxpaint/stamps"}
VERSIONS = {GCOMPRIS: "25.0.12-1", TUXPAINT: "2025.03.31-1"}
"""Versions from which the photographs were listed."""
FETCH = (
    "apt-get update && apt-get download gcompris-qt-data tuxpaint-stamps-default && "
    'for deb in gcompris-qt-data_*.deb tuxpaint-stamps-default_*.deb; do dpkg -x "$deb" packages; done'
)
INSTALL = f"{FETCH}, then give --packages packages"
_MAX_BYTES = 256 * 2**20  # of a file in a package
_MAX_CAPTION = 300  # characters
_VERSION = re.compile(rb"^\S+ \(([^)\s]+)\)")


@dataclass(slots=True)
class Found:
    """What was read: bytes of photographs, their captions, and the listed photographs that are missing or differ."""

    data: dict[Photo, bytes] = field(default_factory=dict)
    captions: dict[Photo, str] = field(default_factory=dict)
    problems: dict[Photo, str] = field(default_factory=dict)


def check_packages(root: Path) -> None:
    """Check that both packages are below `root`.

    Raises:
        InputError: One is missing.
    """
    missing = [name for name, folder in FOLDERS.items() if not (root / folder).is_dir()]
    if missing:
        raise InputError(f"not found below {root}: {', '.join(missing)}", INSTALL)


def version_of(root: Path, package: str) -> str:
    """Return the version that a package's Debian changelog states, or `not stated`."""
    try:
        with gzip.open(root / "usr/share/doc" / package / "changelog.Debian.gz") as file:
            stated = _VERSION.match(file.readline(200))
    except (OSError, EOFError):
        stated = None
    return stated[1].decode("ascii", "replace") if stated else "not stated"


def read_photos(root: Path, listed: Iterable[Photo]) -> Found:
    """Read the listed photographs; only bytes whose SHA-256 is the listed one are taken.

    Raises:
        InputError: A resource file is malformed.
    """
    found = Found()
    opened: dict[str, ResourceFile | None] = {}
    for photo in listed:
        data = _from_resource(root, photo, opened) if photo.package == GCOMPRIS else _read(root / photo.path)
        if data is None:
            found.problems[photo] = "missing"
        elif digest_bytes(data) != photo.sha256:
            found.problems[photo] = "differs"
        else:
            found.data[photo] = data
            found.captions[photo] = photo.caption or _caption(root, photo)
    return found


def images_of(root: Path, package: str) -> Iterator[str]:
    """Yield the paths of a package's images: PNG of Tux Paint's stamps, WebP of GCompris' resource files."""
    folder = root / FOLDERS[package]
    if package == TUXPAINT:
        yield from (path.relative_to(root).as_posix() for path in sorted(folder.rglob("*.png")))
    else:
        for file in sorted(folder.glob("*.rcc")):
            yield from sorted(
                p for p in ResourceFile(file.read_bytes(), file.name).entries if p.endswith(".webp")
            )


def _from_resource(root: Path, photo: Photo, opened: dict[str, ResourceFile | None]) -> bytes | None:
    """Read a photograph of GCompris: the resource file has the name of its activity."""
    activity = photo.path.split("/")[3]
    if activity not in opened:
        data = _read(root / FOLDERS[GCOMPRIS] / f"{activity}.rcc")
        opened[activity] = None if data is None else ResourceFile(data, f"{activity}.rcc")
    resource = opened[activity]
    if resource is None or photo.path not in resource.entries:
        return None
    return resource.read(photo.path)


def _read(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return None
    return path.read_bytes()


def _caption(root: Path, photo: Photo) -> str:
    """Return the English caption of a stamp, the first line of its text file; empty if there is none."""
    if photo.package != TUXPAINT:
        return ""
    data = _read((root / photo.path).with_suffix(".txt"))
    line = (data or b"").decode("utf-8", "replace").partition("\n")[0]
    return " ".join(line.split())[:_MAX_CAPTION]
