"""Images out of a COCO-like JSON file with one category an image, as iNaturalist publishes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlltr_index.data.files import ListedFiles
from vlltr_index.data.names import ClassNames, category_names, read_json_file
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord, Skipped

__all__ = ["read_coco"]

_EXPECTED = (
    'Expected iNaturalist\'s layout: {"images": [{"id": 1, "file_name": "train_val2018/..."}, ...], '
    '"annotations": [{"image_id": 1, "category_id": 0}, ...]}'
)


def read_coco(
    path: Path, split: str, root: Path, names: ClassNames | None
) -> Iterator[ImageRecord | Skipped]:
    """Stream the images of a JSON file with `images` and `annotations`; no image is opened.

    Args:
        path: The file.
        split: The split the images go to.
        root: What each `file_name` is relative to.
        names: Names of the category ids; default: the file's own `categories`, else the ids themselves.

    Raises:
        InputError: If the file is cut off or malformed, two images have one id, an annotation points to no image
            or to a category without a name, a path leaves the root, or no file can be used.
    """
    facts = read_json_file(path, _EXPECTED)
    images, notes = _part(facts, "images", path), _part(facts, "annotations", path)
    if names is None and isinstance(facts.get("categories"), list) and facts["categories"]:
        names = category_names(facts["categories"], str(path))
    by_id = _by_id(path, images)
    labels, doubled = _labels(path, notes, by_id)
    files = ListedFiles(root)
    found = missing = 0
    example = ""
    for image_id, entry in by_id.items():
        where = f"{path}: image {image_id}"
        full = files.path(entry, where)
        why = "no annotation" if image_id not in labels else files.problem(full)
        why = "annotations of two categories" if image_id in doubled else why
        if why:
            missing += 1
            example = example or full
            yield Skipped(where, f"{entry}: {why}")
            continue
        found += 1
        label = labels[image_id]
        name = names.name(label, where) if names is not None else str(label)
        yield ImageRecord(files.source(full), full, name, split)
    if not found:
        raise files.none_usable(path, missing, example)


def _part(facts: Any, key: str, path: Path) -> list[Any]:
    rows = facts.get(key) if isinstance(facts, dict) else None
    if not isinstance(rows, list) or not rows:
        hint = _EXPECTED
        if key == "annotations" and isinstance(facts, dict) and facts.get("images"):
            hint = "A test file without labels cannot be used: give the training or the validation file."
        raise InputError(f"{path} has no {key}", hint)
    return rows


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _by_id(path: Path, images: list[Any]) -> dict[int | str, str]:
    found: dict[int | str, str] = {}
    for n, row in enumerate(images):
        if not (isinstance(row, dict) and _is_id(row.get("id")) and isinstance(row.get("file_name"), str)):
            raise InputError(f"{path}: image {n} has no id and file_name", _EXPECTED)
        if "\0" in row["file_name"] or not row["file_name"]:
            raise InputError(f"{path}: image {row['id']} has no usable file_name", _EXPECTED)
        if row["id"] in found:
            raise InputError(
                f"{path}: two images have the id {row['id']}", "Give each image an id of its own."
            )
        found[row["id"]] = row["file_name"]
    return found


def _labels(
    path: Path, notes: list[Any], images: dict[int | str, str]
) -> tuple[dict[int | str, int], set[int | str]]:
    """Category of each image, and the images that are given more than one."""
    labels: dict[int | str, int] = {}
    doubled: set[int | str] = set()
    for n, row in enumerate(notes):
        category = row.get("category_id") if isinstance(row, dict) else None
        if not isinstance(category, int) or isinstance(category, bool) or not _is_id(row.get("image_id")):
            raise InputError(f"{path}: annotation {n} has no image_id and category_id", _EXPECTED)
        image_id = row["image_id"]
        if image_id not in images:
            raise InputError(
                f"{path}: annotation {n} points to image {image_id}, which is not among the images",
                "Are images and annotations of one file? Fetch it again.",
            )
        if category < 0:
            raise InputError(f"{path}: annotation {n} has the category {category}, below 0", _EXPECTED)
        if labels.setdefault(image_id, category) != category:
            doubled.add(image_id)
    return labels, doubled
