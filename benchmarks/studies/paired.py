"""Rows that answered the same test images: how they are kept, their means, and what one gains over another."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import clustered
from benchmarks.kept import keep, read
from benchmarks.study import Results

__all__ = [
    "BINS",
    "METHOD",
    "WITHOUT_BRANCH",
    "Bits",
    "Run",
    "Runs",
    "bits_of",
    "compact",
    "difference",
    "keep_run",
    "mask",
    "mean",
    "pack",
    "read_runs",
    "share",
    "unpack",
]

METHOD = "vl-ltr"
WITHOUT_BRANCH = "without text branch"  # texts still give prior means
BINS = ("overall", "many", "medium", "few", "few5")
TEST_IMAGES = (
    "test_images"  # the class and the group of each test image: kept once a data set, beside the studies
)
Bits = NDArray[np.float64]
Run = Mapping[str, Any]
"""What was kept of a run, with `labels`, `counts` and `groups` [N] of its test images, and rows `right` [N] by name."""
Runs = Sequence[Run]
_BY_ROW = ("right", "top5", "calibration_error", "decided")
_OF_IMAGES = ("labels", "counts", "groups")


def bits_of(text: str) -> Bits:
    """Return a text of ones and zeros as numbers, float64 [N]."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.float64) - ord("0")


def pack(text: str) -> str:
    """Return ones and zeros, eight in a byte, as Base64."""
    return base64.b64encode(np.packbits(bits_of(text) > 0).tobytes()).decode()


def unpack(text: str, count: int) -> Bits:
    """Return the first `count` ones and zeros that `pack` packed, float64 [count]."""
    found = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count)
    return found.astype(np.float64)


def share(text: str) -> float:
    """Return the share of ones among ones and zeros, between 0 and 1."""
    return round(float(bits_of(text).mean()), 6)


def keep_run(study: str, unit: str, result: Mapping[str, Any], stay: Sequence[str] = ()) -> None:
    """Keep what tables need of a run, and its test images where they are not kept yet.

    Args:
        study: Where it is kept.
        unit: Under which name.
        result: `dataset`, `labels` and `counts` (a number an image), `right` and perhaps `top5` (ones and zeros by
            row), perhaps `groups`, and facts.
        stay: Rows that are those of an earlier result of the unit where this one lacks them.

    Raises:
        SystemExit: The test images are others than those of the data set that are kept, or the earlier result is of
            another data set.
    """
    name = result["dataset"][:16]
    images = _images_of(result)
    known = read(TEST_IMAGES).get(name, {})
    if any(known.get(key, value) != value for key, value in images.items()):
        raise SystemExit(f"{unit} is of other test images than those of {TEST_IMAGES}.json")
    found = compact(result)
    earlier = read(study).get(unit, {})
    if stay and earlier.get("dataset", result["dataset"]) != result["dataset"]:
        raise SystemExit(f"the earlier result {unit} is of another data set: its rows cannot stay")
    for key in _BY_ROW:
        old = earlier.get(key, {})
        rows = {row: old[row] for row in stay if row in old} | found.get(key, {})
        if rows:
            found[key] = rows
    if images.keys() - known.keys():
        keep(TEST_IMAGES, name, known | images)
    keep(study, unit, found)


def _images_of(result: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the class of each image, the training images of each class, and each image's group where it is known."""
    labels = np.asarray(result["labels"])
    counts = np.asarray(result["counts"])
    of_class = np.zeros(labels.max() + 1, dtype=np.int64)
    of_class[labels] = counts
    images = {"labels": labels.tolist(), "counts": of_class.tolist()}
    if "groups" in result:
        names, places = np.unique(np.asarray(result["groups"], dtype=str), return_inverse=True)
        images |= {"group_names": names.tolist(), "groups": places.tolist()}
    return images


def compact(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run without its test images: rows packed, of the top five the share alone."""
    found = {key: value for key, value in result.items() if key not in _OF_IMAGES}
    found["right"] = {name: pack(text) for name, text in result["right"].items()}
    if "top5" in result:
        found["top5"] = {name: share(text) for name, text in result["top5"].items()}
    return found


def read_runs(results: Results) -> dict[str, Run]:
    """Return the runs in the results of a study by unit, with their test images."""
    images: dict[str, dict[str, Any]] = {}
    for name, kept in read(TEST_IMAGES).items():
        labels = np.asarray(kept["labels"])
        images[name] = {"labels": labels, "counts": np.asarray(kept["counts"])[labels]}
        if "groups" in kept:
            images[name]["groups"] = np.asarray(kept["group_names"])[kept["groups"]]
    runs: dict[str, Run] = {}
    for unit, run in results.items():
        mine = images[run["dataset"][:16]]
        right = {name: unpack(text, len(mine["labels"])) for name, text in run["right"].items()}
        runs[unit] = {**run, **mine, "right": right}
    return runs


def mask(run: Run, name: str) -> NDArray[np.bool_]:
    """Return which images are of one bin, bool [N]."""
    counts = np.asarray(run["counts"])
    masks = {
        "overall": counts >= 0,
        "many": counts >= 100,
        "medium": (counts > 20) & (counts < 100),
        "few": counts <= 20,
        "few5": counts <= 5,
    }
    return masks[name]


def mean(run: Run, row: str, name: str) -> float:
    """Return the share of a bin's images that a row has right."""
    return float(run["right"][row][mask(run, name)].mean())


def difference(
    runs: Runs, name: str, against: str, others: Runs | None = None, row: str = METHOD, by: str = "labels"
) -> str:
    """Return `row` less the row `against` of the same runs, or of `others` of the same seeds, in one bin.

    The interval draws classes, or with `by="groups"` families.
    """
    pairs = zip(runs, runs if others is None else others, strict=True)
    values = np.mean([a["right"][row] - b["right"][against] for a, b in pairs], axis=0)
    kept = mask(runs[0], name)
    return clustered(values[kept], np.unique(runs[0][by], return_inverse=True)[1][kept]).shown()
