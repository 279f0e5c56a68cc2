"""Image sources to records: folders of class folders, `path label` lists, COCO-like JSON, Parquet."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlltr_index.data.coco import read_coco
from vlltr_index.data.decoding import ENDINGS
from vlltr_index.data.files import ListedFiles, read_lines, require
from vlltr_index.data.names import ClassNames
from vlltr_index.data.parquet import read_parquet
from vlltr_index.data.text import check_split, clean_name
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, Skipped

__all__ = ["read_images"]

_NUMBER = re.compile(r"-?[0-9]{1,9}")
_WORDNET = re.compile(r"(?:^|/)(n\d{8})(?=/)")
_LISTS = (".txt", ".lst", ".list", ".tsv")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_LOOKED_FOR = ", ".join(ENDINGS)
_LAYOUT = "Put each class's images into a folder named after the class: DIR/tench/1.jpg"


def read_images(
    path: Path,
    split: str | None = None,
    list_root: Path | None = None,
    label_names: ClassNames | Sequence[str] | None = None,
    class_name: str | None = None,
    with_data: bool = True,
) -> Iterator[ImageRecord | Skipped]:
    """Stream the images of a source; no image is opened.

    In a folder, the first level names the classes, and whatever lies deeper belongs to them. A list has a path and a
    label on each line, with a tab or the last space between. A JSON file has images and annotations, as
    iNaturalist's. A Parquet file has the columns image and label, and perhaps split and source.

    Args:
        path: A folder, a list, a JSON file or a Parquet file.
        split: The split the images go to; of a Parquet file with a column `split`, only the rows of that split.
        list_root: What the paths of a list or JSON file are relative to; default: its own folder.
        label_names: Names of numeric labels 0, 1, 2 ...
        class_name: The class of all images, whatever their folder; folders only.
        with_data: Whether to read the bytes out of a Parquet file; without, its records have no data.

    Raises:
        InputError: If the path is missing or of no known kind, holds no image, or something in it is malformed.
        UsageError: If the split is missing or is no name for one.
    """
    require(path)
    if split is not None:
        check_split(split)
    if label_names is not None and not isinstance(label_names, ClassNames):
        label_names = ClassNames.of(clean_name(name, "label_names") for name in label_names)
    if path.suffix.lower() == ".parquet" and path.is_file():
        yield from read_parquet(path, split, label_names, with_data)
        return
    if split is None:
        raise UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")
    if path.is_dir():
        yield from _read_folder(path, split, class_name)
    elif path.suffix.lower() in _LISTS:
        yield from _read_list(path, split, list_root or path.parent, label_names)
    elif path.suffix.lower() == ".json":
        yield from read_coco(path, split, list_root or path.parent, label_names)
    elif path.suffix.lower() in ENDINGS:
        raise InputError(f"{path} is a single image", _LAYOUT + ", and give DIR.")
    else:
        raise InputError(
            f"{path}: unknown kind of image source {path.suffix!r}",
            "Expected a folder of class folders, a .txt list of `path label` lines, a .json file of images and "
            "annotations, or a .parquet file.",
        )


def _read_folder(folder: Path, split: str, class_name: str | None) -> Iterator[ImageRecord | Skipped]:
    root = folder.resolve()
    found = 0
    for item in _one_class(root, class_name, split) if class_name else _class_folders(folder, root, split):
        found += isinstance(item, ImageRecord)
        yield item
    if not found:
        parquet = sorted(p.name for p in root.iterdir() if p.suffix.lower() == ".parquet")
        raise InputError(
            f"no image in {'' if class_name else 'a class folder of '}{folder}: looked for {_LOOKED_FOR}",
            f"The folder holds Parquet files: give one, such as {folder / parquet[0]}"
            if parquet
            else _LAYOUT,
        )


def _one_class(root: Path, class_name: str, split: str) -> Iterator[ImageRecord | Skipped]:
    name = clean_name(class_name, str(root))
    for file, why in _walk(root, root):
        if why:
            yield Skipped(file, why)
        else:
            yield ImageRecord(f"{name}/{Path(file).relative_to(root).as_posix()}", file, name, split)


def _class_folders(folder: Path, root: Path, split: str) -> Iterator[ImageRecord | Skipped]:
    entries = _entries(root)
    inside = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
    if len(inside) > 1 and all(name.lower() in _SPLIT_NAMES for name in inside):
        raise InputError(
            f"{folder} holds splits ({', '.join(inside)}), not classes",
            f"Give one at a time: vlltr ingest images {folder / inside[0]} --split {inside[0]}",
        )
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            why = _unfit(entry, root) or "an image outside every class folder"
            yield Skipped(entry.path, why)
            continue
        name = clean_name(os.fsencode(entry.name).decode("utf-8", "replace"), entry.path)
        found = 0
        for file, why in _walk(Path(entry.path), root):
            if why:
                yield Skipped(file, why)
            else:
                found += 1
                yield ImageRecord(file[len(str(root)) :].lstrip("/"), file, name, split)
        if not found:
            yield Skipped(entry.path, "no image in this class folder")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Files in and below `folder`, each with why it cannot be taken, or an empty string."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), root)
        else:
            yield entry.path, _unfit(entry, root)


def _unfit(entry: os.DirEntry[str], root: Path) -> str:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    try:
        if entry.is_symlink():
            if entry.is_dir():
                return "a link to a folder"
            if not Path(os.path.realpath(entry.path)).is_relative_to(root):
                return "a link that leaves the folder"
        if not entry.name.lower().endswith(ENDINGS):
            return "not an image by its ending"
        return "" if entry.is_file() else "not a file"
    except OSError as error:  # a link that leads back to itself
        return f"cannot be looked at: {error.strerror}"


def _read_list(
    path: Path, split: str, root: Path, names: ClassNames | None
) -> Iterator[ImageRecord | Skipped]:
    files = ListedFiles(root)
    found = missing = 0
    example = ""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        entry, name = _parse_line(line, names, where)
        full = files.path(entry, where)
        why = files.problem(full)
        if why:
            missing += 1
            example = example or full
            yield Skipped(where, f"{entry}: {why}")
        else:
            found += 1
            yield ImageRecord(files.source(full), full, name, split)
    if not found and missing:
        raise files.none_usable(path, missing, example)
    if not found:
        raise InputError(f"{path} is empty", "Write a path and a label on each line: tench/1.jpg tench")


def _parse_line(line: str, names: ClassNames | None, where: str) -> tuple[str, str]:
    """Path and class name of a line."""
    line = line.strip()
    entry, _, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
    entry, label = entry.strip(), label.strip()
    if not entry or not label or "\0" in entry:
        raise InputError(
            f"{where}: expected a path and a label, got {line[:80]!r}",
            "For example: train/tench/1.jpg 0   (a tab between them if labels have spaces)",
        )
    if not _NUMBER.fullmatch(label):
        return entry, clean_name(label, where)
    if names is None:
        if label.startswith("-"):
            raise InputError(f"{where}: the label {label} is below 0", "Number the classes 0, 1, 2 ...")
        return entry, clean_name(str(int(label)), where)
    name = names.name(int(label), where)
    if names.keys:
        _check_key(entry, int(label), names, where)
    return entry, name


def _check_key(entry: str, label: int, names: ClassNames, where: str) -> None:
    """A path through a folder named by another class's WordNet id: list and names are not of one order."""
    folder = _WORDNET.search(entry)
    if folder and folder[1] != names.keys[label]:
        raise InputError(
            f"{where}: {entry} lies in the folder {folder[1]}, but the label {label} is {names.keys[label]} "
            f"({names.names[label]}) according to {names.where}",
            "Are list and names of one release? ImageNet-LT numbers the classes by WordNet id.",
        )
