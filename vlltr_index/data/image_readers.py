"""Readers of images: folders of class folders, `path label` lists, COCO-like JSON, Parquet."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from vlltr_index.data.decoding import ENDINGS
from vlltr_index.data.files import (
    LINK,
    check_column,
    check_image_column,
    files_below,
    is_hidden,
    open_parquet,
    read_json,
    read_lines,
    require,
    rows_at_once,
    unfit,
)
from vlltr_index.data.names import Category, ClassNames, category_names
from vlltr_index.data.objects import is_address, object_names
from vlltr_index.data.text import check_split, clean_name
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.wording import plural

_log = logging.getLogger(__name__)

_NUMBER = re.compile(r"-?[0-9]{1,9}")
_LISTS = (".txt", ".lst", ".list", ".tsv")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_LAYOUT = "Put each class's images into a folder named after the class: DIR/tench/1.jpg"
_COCO = (
    'Expected iNaturalist\'s layout: {"images": [{"id": 1, "file_name": "train_val2018/..."}, ...], '
    '"annotations": [{"image_id": 1, "category_id": 0}, ...]}; a file without labels cannot be used.'
)
_Items = Iterator[ImageRecord | Skipped]


def read_images(
    path: Path | str,
    split: str | None = None,
    list_root: Path | None = None,
    label_names: ClassNames | None = None,
    class_name: str | None = None,
    with_data: bool = True,
    follow_links: bool = False,
    group_column: str | None = None,
) -> _Items:
    """Yield the images of a source, without opening them.

    In a folder the first level names the classes, and all that lies deeper belongs to them. A list has a path and a
    label on each line, separated by a tab or the last space. A JSON file has images and annotations, as iNaturalist's.
    A Parquet file has the columns image (binary, or a struct with `bytes`) and label (or class, as `vlltr export
    --tables` writes it): text, or a number whose name is in `label_names` or in the file's own metadata. Its optional
    columns are split, source, and group (images of one group are held out together). A row is identified by `source` if
    that is different for every row, else by its number.

    Args:
        path: A folder, a list, a JSON file or a Parquet file; or, as text, the address of a folder in object storage.
        split: The split of the images; of a Parquet file with a column `split`, only the rows of that split are read.
        list_root: Folder that the paths of a list or JSON file are relative to; None: the file's own folder.
        label_names: Names of numeric labels 0, 1, 2 ...
        class_name: The class of all images, whatever their folder is; for folders only.
        with_data: Whether to read the bytes in a Parquet file; without, its records have no data.
        follow_links: Whether links that leave the folder, and links to folders, are followed.
        group_column: The column of a table that names each image's group; None: `group`, where there is one.

    Raises:
        InputError: The path is missing or of no known kind, holds no image, or something in it is malformed.
        UsageError: The split is missing or not a valid name; or a column is asked for of what has none.
    """
    path = str(path) if is_address(path) else require(Path(path))
    kind = os.path.splitext(path)[1].lower()
    if split is not None:
        check_split(split)
    if kind == ".parquet" and os.path.isfile(path):
        with open_parquet(path, ["image"]) as file:
            yield from _read_parquet(
                Path(path), file, split, names=label_names, with_data=with_data, group_column=group_column
            )
    elif group_column is not None:
        raise UsageError(
            f"--group column:{group_column}: {path} has no columns",
            "Group by folder, name:REGEX or seconds:N.",
        )
    elif split is None:
        raise UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")
    elif not isinstance(path, Path):
        names = [name for name in object_names(path) if not is_hidden(name)]
        yield from _by_folder(
            path.rstrip("/"), ((name, "") for name in names), split, class_name=class_name, tell=with_data
        )
    elif path.is_dir():
        files = files_below(path.resolve(), follow_links=follow_links)
        yield from _by_folder(str(path.resolve()), files, split, class_name=class_name, tell=with_data)
    elif kind in (*_LISTS, ".json"):
        rows = _list_rows(path, label_names) if kind in _LISTS else _coco_rows(path, label_names)
        yield from _listed(path, rows, list_root or path.parent, split=split, follow_links=follow_links)
    else:
        raise InputError(
            f"{path}: unknown kind of image source {kind!r}",
            "Expected a folder of class folders, a .txt list of `path label` lines, a .json file of images and "
            "annotations, or a .parquet file. A single image must lie in a class folder, too.",
        )


def _by_folder(
    root: str, files: Iterable[tuple[str, str]], split: str, class_name: str | None, tell: bool
) -> _Items:
    """Make records of files, given by path below `root` and why they are unusable; the first folder is the class."""
    found = 0
    links = 0
    below = dict[str, set[str]]()
    for name, why in files:
        folder, *inner = name.split("/")[:-1] or [""]
        below.setdefault(folder, set()).update(inner[:1])
        where = f"{root}/{name}"
        own = class_name or folder
        if not why and not name.lower().endswith(ENDINGS):
            why = "not an image by its ending"
        if why or not own:
            links += why == LINK
            yield Skipped(where, why or "an image outside every class folder", where)
        else:
            found += 1
            label = clean_name(own, where)
            yield ImageRecord(f"{label}/{name}" if class_name else name, where, label, split)
    folders = sorted(below.keys() - {""})
    if not class_name and len(folders) > 1 and all(name.lower() in _SPLIT_NAMES for name in folders):
        raise InputError(
            f"{root} holds splits ({', '.join(folders)}), not classes",
            f"Give one at a time: vlltr ingest images {root}/{folders[0]} --split {folders[0]}",
        )
    if not found and links:
        raise InputError(
            f"no image in a class folder of {root} but links that leave it: {plural(links, 'link')}",
            "To read what they lead to: --follow-links",
        )
    if not found:
        raise InputError(
            f"no image in a class folder of {root}: looked for {', '.join(ENDINGS)}",
            f"{_LAYOUT}. Of Parquet files give one.",
        )
    deep = [name for name in folders if len(below[name]) > 1]
    if tell and deep and not class_name:
        _log.warning(
            "folders below a class folder are no classes of their own; all below these is of one class each: %s",
            ", ".join(deep[:5]) + (", ..." if len(deep) > 5 else ""),
        )


def _listed(
    listing: Path,
    rows: Iterable[tuple[str, str, str | None, str]],
    root: Path,
    *,
    split: str,
    follow_links: bool,
) -> _Items:
    """Make records of listed files, given by place, path below `root`, class, and why they are unusable."""
    if not root.is_dir():
        raise InputError(f"no such folder: {root}", "Name the one that the paths are relative to: --root DIR")
    root = root.resolve()
    inside = cache(lambda folder: Path(os.path.realpath(folder)).is_relative_to(root))
    found = 0
    example = ""
    for where, entry, name, why in rows:
        full = os.path.normpath(os.path.join(root, entry))
        if not full.startswith(os.path.join(root, "")):
            raise InputError(
                f"{where}: the path {entry!r} leaves the folder {root}",
                "Paths must lie below the list's folder, or below the one given by --root DIR",
            )
        why = why or unfit(full, root, follow_links)
        if not why and not follow_links and not inside(os.path.dirname(full)):
            why = LINK
        if why:
            example = example or f", for example {full}"
            yield Skipped(where, f"{entry}: {why}", full)
        else:
            found += 1
            yield ImageRecord(full[len(str(root)) :].lstrip("/"), full, name, split)
    if not found:
        raise InputError(
            f"no file that {listing} names can be used{example}",
            "Name the folder that the paths are relative to: --root DIR",
        )


def _list_rows(path: Path, names: ClassNames | None) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield place, path and class of each line of a list."""
    for where, raw in read_lines(path):
        line = raw.strip()
        if line:
            entry, _, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
            if not entry or not label:
                raise InputError(
                    f"{where}: expected a path and a label, got {line[:80]!r}",
                    "For example: train/tench/1.jpg 0   (a tab between them if labels have spaces)",
                )
            value = int(label) if _NUMBER.fullmatch(label.strip()) else label
            yield where, entry.strip(), _class(value, names, where), ""


class _Image(BaseModel):
    """An image in a COCO-like file."""

    id: int | str
    file_name: str


class _Annotation(BaseModel):
    """An annotation in a COCO-like file: the class of an image."""

    image_id: int | str
    category_id: int


class _Coco(BaseModel):
    """Content of a COCO-like file."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[Category] = []


def _coco_rows(path: Path, names: ClassNames | None) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield place, path and class of each image of a COCO-like file, and why it is unusable."""
    facts: _Coco = read_json(path, _Coco, _COCO)
    if names is None and facts.categories:
        names = category_names(facts.categories, str(path))
    labels: dict[int | str, set[int]] = {image.id: set() for image in facts.images}
    if len(labels) < len(facts.images):
        raise InputError(f"{path}: two images have one id", "Give each image an id of its own.")
    for number, note in enumerate(facts.annotations):
        if note.image_id not in labels:
            raise InputError(
                f"{path}: annotation {number} points to image {note.image_id}, which is not among the images",
                "Are images and annotations of one file? Fetch it again.",
            )
        labels[note.image_id].add(note.category_id)
    for image in facts.images:
        where = f"{path}: image {image.id}"
        own = labels[image.id]
        why = ""
        if len(own) != 1:
            why = "annotations of two categories" if own else "no annotation"
        yield where, image.file_name, None if why else _class(min(own), names, where), why


def _class(label: str | int | None, names: ClassNames | None, where: str) -> str | None:
    """Return the class name of a label; null and negative numbers have none."""
    if label is None or (isinstance(label, int) and label < 0):
        return None
    if isinstance(label, int) and names is not None:
        return names.name(label, where)
    return clean_name(str(label), where)


def _read_parquet(
    path: Path,
    file: pq.ParquetFile,
    split: str | None,
    *,
    names: ClassNames | None,
    with_data: bool,
    group_column: str | None,
) -> _Items:
    """Yield the images of a Parquet file, see `read_images`."""
    schema = file.schema_arrow
    label = "class" if "class" in schema.names and "label" not in schema.names else "label"
    group = group_column or "group"
    _check_types(path, schema, label, group, wanted=group_column is not None)
    if split is None and "split" not in schema.names:
        raise UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")
    names = names or _own_names(path, schema)
    columns = [c for c in (label, "split", group) if c in schema.names]
    if with_data:
        columns.append("image")
    if _has_own_sources(file, schema):
        columns.append("source")
    number = -1
    found = 0
    uri = str(path.resolve())
    at_once = rows_at_once(path, file, columns, 64 if with_data else 8192)
    for batch in file.iter_batches(at_once, columns=columns):
        for row in batch.to_pylist():
            number += 1
            own = row.get("split", split)
            where = f"{uri}#{number}"
            data = row.get("image")
            if split is not None and own != split:
                continue
            found += 1
            data = data.get("bytes") if isinstance(data, dict) else data
            if not own or (with_data and data is None):
                yield Skipped(where, "the row has no image bytes" if own else "the row names no split", where)
                continue
            name = _class(row[label], names, where)
            source = row.get("source") or f"{path.name}#{number}"
            yield ImageRecord(
                source=source,
                uri=where,
                class_name=name,
                split=check_split(own),
                data=data,
                group=_group_name(row.get(group)),
            )
    if not found:
        there = file.read(["split"])["split"].unique().to_pylist() if "split" in schema.names else []
        raise InputError(
            f"{path} has no row" + (f" of split {split!r}" if split else ""),
            f"Its splits: {', '.join(sorted(map(str, there))) or 'none'}.",
        )


def _group_name(value: str | int | None) -> str | None:
    """Return the name of a group; None for an empty one."""
    return None if value is None or value == "" else str(value)


def _check_types(path: Path, schema: pa.Schema, label: str, group: str, wanted: bool) -> None:
    """Refuse a file whose columns are missing or of other types; the column of groups may be missing if not wanted."""
    text = [pa.types.is_string, pa.types.is_large_string]
    numbered = ("text or whole numbers", [*text, pa.types.is_integer])
    allowed = {
        **{name: ("text", text) for name in ("split", "source") if name in schema.names},
        **{name: numbered for name in (label, group) if name in schema.names},
    }
    if wanted and group not in schema.names:
        raise InputError(
            f"{path}: no column {group!r}; it has {', '.join(map(repr, schema.names))}",
            "Name the one that says what belongs together: --group column:NAME",
        )
    if label not in schema.names:
        raise InputError(
            f"{path}: no column 'label'; it has {', '.join(map(repr, schema.names))}",
            "Name the columns image (encoded bytes) and label (and split, source, group, if you have them).",
        )
    check_image_column(path, schema)
    for name, (expected, tests) in allowed.items():
        check_column(path, schema, name, expected, tests)


def _own_names(path: Path, schema: pa.Schema) -> ClassNames | None:
    """Read the names of numeric labels from the metadata that Hugging Face's `datasets` writes."""
    try:
        facts: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = facts["info"]["features"]["label"]["names"]
        cleaned = (clean_name(name, f"{path}: its own label names") for name in names)
        return ClassNames.of(cleaned, where=f"{path}: its own label names")
    except (KeyError, ValueError, TypeError, RecursionError):
        return None


def _has_own_sources(file: pq.ParquetFile, schema: pa.Schema) -> bool:
    """Say whether the column `source` identifies the rows of each split."""
    if "source" not in schema.names:
        return False
    keys = [name for name in ("split", "source") if name in schema.names]
    table = file.read(columns=keys)
    distinct = table.group_by(keys).aggregate([]).num_rows
    return distinct == table.num_rows and not table["source"].null_count
