"""Image sources to records: folders of class folders, `path label` lists, Parquet."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlltr_index.corpus.clean import clean_name
from vlltr_index.corpus.files import read_lines, require
from vlltr_index.errors import InputError, UsageError
from vlltr_index.images.decode import ENDINGS
from vlltr_index.schemas.records import ImageRecord, Skipped

__all__ = ["check_split", "read_images", "read_label_names"]

_SPLIT = re.compile(r"[\w.-]{1,64}")
_LISTS = (".txt", ".lst", ".list", ".tsv")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_LOOKED_FOR = ", ".join(ENDINGS)
_LAYOUT = "Put each class's images into a folder named after the class: DIR/tench/1.jpg"


def read_images(
    path: Path,
    split: str | None = None,
    list_root: Path | None = None,
    label_names: Sequence[str] | None = None,
    class_name: str | None = None,
    with_data: bool = True,
) -> Iterator[ImageRecord | Skipped]:
    """Stream the images of a source; no image is opened.

    In a folder, the first level names the classes, and whatever lies deeper belongs to them. A list has a path and a
    label on each line, with a tab or the last space between. A Parquet file has the columns image and label, and
    perhaps split and source.

    Args:
        path: A folder, a list or a Parquet file.
        split: The split the images go to; of a Parquet file with a column `split`, only the rows of that split.
        list_root: What the paths of a list are relative to; default: the list's own folder.
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
    if path.suffix.lower() == ".parquet" and path.is_file():
        from vlltr_index.images.parquet import read_parquet

        yield from read_parquet(path, split, label_names, with_data)
        return
    if split is None:
        raise UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")
    if path.is_dir():
        yield from _read_folder(path, split, class_name)
    elif path.suffix.lower() in _LISTS:
        yield from _read_list(path, split, list_root or path.parent, label_names)
    elif path.suffix.lower() in ENDINGS:
        raise InputError(f"{path} is a single image", _LAYOUT + ", and give DIR.")
    else:
        raise InputError(
            f"{path}: unknown kind of image source {path.suffix!r}",
            "Expected a folder of class folders, a .txt list of `path label` lines, or a .parquet file.",
        )


def check_split(split: str) -> str:
    """`split`, if it can be the name of one.

    Raises:
        UsageError: If it cannot.
    """
    if not _SPLIT.fullmatch(split):
        raise UsageError(
            f"{split[:80]!r} is no name for a split: letters, digits, '_', '-' and '.', up to 64",
            "For example: --split train",
        )
    return split


def read_label_names(path: Path) -> list[str]:
    """The lines of a file of class names: line n names the label n, from 0.

    Raises:
        InputError: If the file is missing, empty, or a line of it is.
    """
    require(path)
    names = [clean_name(line, f"{path}:{number}") for number, line in read_lines(path)]
    if not names:
        raise InputError(f"{path} is empty", "Write one class name on each line.")
    return names


def label_name(label: int, names: Sequence[str] | None, where: str) -> str:
    """The class name of a numeric label.

    Raises:
        InputError: If there are names and it is beyond them.
    """
    if names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise InputError(
            f"{where}: the label {label} has no name: there are {len(names)}, from 0",
            "Give a file with one class name a line: --names FILE",
        )
    return names[label]


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
    if entry.is_symlink():
        if entry.is_dir():
            return "a link to a folder"
        if not Path(os.path.realpath(entry.path)).is_relative_to(root):
            return "a link that leaves the folder"
    if not entry.name.lower().endswith(ENDINGS):
        return "not an image by its ending"
    return "" if entry.is_file() else "not a file"


def _read_list(
    path: Path, split: str, list_root: Path, names: Sequence[str] | None
) -> Iterator[ImageRecord | Skipped]:
    if not list_root.is_dir():
        raise InputError(
            f"no such folder: {list_root}", "Name the one that the paths are relative to: --root DIR"
        )
    root = list_root.resolve()
    parents: dict[str, bool] = {}  # folders seen, and whether they really lie below the root
    found = missing = 0
    example = ""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        entry, name = _parse_line(line, names, where)
        full = _below(root, entry, where)
        why = _file_problem(full, root, parents)
        if why:
            missing += 1
            example = example or full
            yield Skipped(where, f"{entry}: {why}")
        else:
            found += 1
            yield ImageRecord(full[len(str(root)) :].lstrip("/"), full, name, split)
    if not found and missing:
        raise InputError(
            f"none of the {missing:,} files that {path} names can be used, for example {example}",
            "Name the folder that the paths are relative to: --root DIR",
        )
    if not found:
        raise InputError(f"{path} is empty", "Write a path and a label on each line: tench/1.jpg tench")


def _parse_line(line: str, names: Sequence[str] | None, where: str) -> tuple[str, str]:
    """Path and class name of a line."""
    line = line.strip()
    entry, _, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
    entry, label = entry.strip(), label.strip()
    if not entry or not label or "\0" in entry:
        raise InputError(
            f"{where}: expected a path and a label, got {line[:80]!r}",
            "For example: train/tench/1.jpg 0   (a tab between them if labels have spaces)",
        )
    if label.isascii() and label.isdecimal() and len(label) < 10:
        return entry, clean_name(label_name(int(label), names, where), where)
    return entry, clean_name(label, where)


def _below(root: Path, entry: str, where: str) -> str:
    """The full path of a list's entry, which must lie below the root."""
    full = os.path.normpath(os.path.join(root, entry))
    if not full.startswith(os.path.join(root, "")):
        raise InputError(
            f"{where}: the path {entry!r} leaves the folder {root}",
            "Paths must lie below the list's folder, or below the one given by --root DIR",
        )
    return full


def _file_problem(full: str, root: Path, parents: dict[str, bool]) -> str:
    """Why a listed file cannot be taken, or an empty string."""
    parent = os.path.dirname(full)
    if parent not in parents:
        parents[parent] = Path(os.path.realpath(parent)).is_relative_to(root)
    try:
        facts = os.lstat(full)
        if stat.S_ISLNK(facts.st_mode):
            if not Path(os.path.realpath(full)).is_relative_to(root):
                return "a link that leaves the folder"
            facts = os.stat(full)
    except OSError:
        return "no such file"
    if not parents[parent]:
        return "a link that leaves the folder"
    return "" if stat.S_ISREG(facts.st_mode) else "not a file"
