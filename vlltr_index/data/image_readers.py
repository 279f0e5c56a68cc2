"""Image sources to records: folders of class folders, `path label` lists, COCO-like JSON, Parquet."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlltr_index.data.decoding import ENDINGS
from vlltr_index.data.files import ListedFiles, read_lines, require
from vlltr_index.data.names import ClassNames, category_names, read_json_file
from vlltr_index.data.objects import is_address, object_names
from vlltr_index.data.text import check_split, clean_name
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, Skipped

__all__ = ["read_coco", "read_images", "read_parquet"]

_log = logging.getLogger(__name__)

_NUMBER = re.compile(r"-?[0-9]{1,9}")
_WORDNET = re.compile(r"(?:^|/)(n\d{8})(?=/)")
_LISTS = (".txt", ".lst", ".list", ".tsv")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_LOOKED_FOR = ", ".join(ENDINGS)
_LAYOUT = "Put each class's images into a folder named after the class: DIR/tench/1.jpg"


def read_images(
    path: Path | str,
    split: str | None = None,
    list_root: Path | None = None,
    label_names: ClassNames | Sequence[str] | None = None,
    class_name: str | None = None,
    with_data: bool = True,
) -> Iterator[ImageRecord | Skipped]:
    """Stream the images of a source; no image is opened.

    In a folder, the first level names the classes, and whatever lies deeper belongs to them. A list has a path and a
    label on each line, with a tab or the last space between. A JSON file has images and annotations, as
    iNaturalist's. A Parquet file has the columns image and label (or class, as `vlltr export --tables` writes
    it), and perhaps split and source.

    Args:
        path: A folder, a list, a JSON file or a Parquet file; or as text the address of a folder in object storage.
        split: The split the images go to; of a Parquet file with a column `split`, only the rows of that split.
        list_root: What the paths of a list or JSON file are relative to; default: its own folder.
        label_names: Names of numeric labels 0, 1, 2 ...
        class_name: The class of all images, whatever their folder; folders only.
        with_data: Whether to read the bytes out of a Parquet file; without, its records have no data.

    Raises:
        InputError: If the path is missing or of no known kind, holds no image, or something in it is malformed.
        UsageError: If the split is missing or is no name for one.
    """
    if split is not None:
        check_split(split)
    if is_address(path):
        yield from _read_objects(str(path), split)
        return
    path = require(Path(path))
    if label_names is not None and not isinstance(label_names, ClassNames):
        label_names = ClassNames.of(clean_name(name, "label_names") for name in label_names)
    if path.suffix.lower() == ".parquet" and path.is_file():
        yield from read_parquet(path, split, label_names, with_data)
        return
    if split is None:
        raise _which_split(path)
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


def _which_split(path: Path | str) -> UsageError:
    return UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")


def _read_objects(address: str, split: str | None) -> Iterator[ImageRecord | Skipped]:
    """As a folder's, by their keys."""
    if split is None:
        raise _which_split(address)
    root, found, below = address.rstrip("/"), 0, dict[str, set[str]]()
    names = [name for name in object_names(root) if not name.startswith(".") and "/." not in name]
    for name in names:
        for folder, *inner in [name.split("/")[:-1]] if "/" in name else ():
            below.setdefault(folder, set()).update(inner[:1])
    _refuse_splits(root, list(below))
    for name in names:
        folder, where = name.rpartition("/")[0].partition("/")[0], f"{root}/{name}"
        if not name.lower().endswith(ENDINGS):
            yield Skipped(where, "not an image by its ending")
        elif not folder:
            yield Skipped(where, "an image outside every class folder")
        else:
            found += 1
            yield ImageRecord(name, where, clean_name(folder, where), split)
    _tell_of(root, tuple(folder for folder, inner in below.items() if len(inner) > 1))
    if not found:
        raise InputError(f"no image in a class folder of {root}: looked for {_LOOKED_FOR}", _LAYOUT)


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
    _refuse_splits(folder, inside)
    deep = list[str]()
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            why = _unfit(entry, root) or "an image outside every class folder"
            yield Skipped(entry.path, why)
            continue
        name = clean_name(os.fsencode(entry.name).decode("utf-8", "replace"), entry.path)
        if sum(inner.is_dir(follow_symlinks=False) for inner in _entries(Path(entry.path))) > 1:
            deep.append(name)
        found = 0
        for file, why in _walk(Path(entry.path), root):
            if why:
                yield Skipped(file, why)
            else:
                found += 1
                yield ImageRecord(file[len(str(root)) :].lstrip("/"), file, name, split)
        if not found:
            yield Skipped(entry.path, "no image in this class folder")
    _tell_of(str(root), tuple(deep))


def _refuse_splits(folder: Path | str, inside: Sequence[str]) -> None:
    if len(inside) > 1 and all(name.lower() in _SPLIT_NAMES for name in inside):
        raise InputError(
            f"{folder} holds splits ({', '.join(inside)}), not classes",
            f"Give one at a time: vlltr ingest images {folder}/{inside[0]} --split {inside[0]}",
        )


@lru_cache(maxsize=64)  # a source is read more than once
def _tell_of(source: str, deep: tuple[str, ...]) -> None:
    if deep:
        _log.warning(
            "folders below a class folder are no classes of their own; all below these is of one class each: %s",
            ", ".join(deep[:5]) + ", ..." * (len(deep) > 5),
        )


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


_ROWS = 64  # decoded at once


def read_parquet(
    path: Path, split: str | None, names: ClassNames | None, with_data: bool
) -> Iterator[ImageRecord | Skipped]:
    """Stream the rows of a Parquet file; see `read_images`.

    `image` is binary or a struct with `bytes`; `label` is text, or a number whose name comes from `names` or else
    from the file's own metadata. A row is identified by `source` where that is different for every row, else by
    its number. Text in `group` says which images are held out together.

    Raises:
        InputError: If it is not a Parquet file, a column is missing or of another type, or no row is of that split.
        UsageError: If neither a column `split` nor an argument says which split the rows belong to.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from _rows(path, file, split, names, with_data)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}", "Write the file again.") from None


def _rows(
    path: Path, file: pq.ParquetFile, split: str | None, names: ClassNames | None, with_data: bool
) -> Iterator[ImageRecord | Skipped]:
    schema = file.schema_arrow
    _check_columns(path, schema)
    if split is None and "split" not in schema.names:
        raise UsageError(f"which split do the images of {path} belong to?", "Say so: --split train")
    names = names or _own_names(schema)
    named = _has_own_sources(file, schema)
    columns = [c for c in ("image", _label(schema), "split", "source", "group") if c in schema.names]
    if not with_data:
        columns.remove("image")
    if not named and "source" in columns:
        columns.remove("source")
    base, found = 0, 0
    for batch in file.iter_batches(_ROWS if with_data else 8192, columns=columns):
        for item in _batch(path, batch, base, split, names, with_data):
            found += 1
            yield item
        base += batch.num_rows
    if not found:
        raise InputError(_nothing(path, file, split), "Choose one of them: --split NAME" if base else None)


def _label(schema: pa.Schema) -> str:
    """The column that names classes: label, or class where there is no label."""
    return "class" if "class" in schema.names and "label" not in schema.names else "label"


def _check_columns(path: Path, schema: pa.Schema) -> None:
    named = _label(schema)
    missing = [name for name in ("image", named) if name not in schema.names]
    if missing:
        raise InputError(
            f"{path}: no column {' and no column '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, schema.names))}",
            "Name the columns image (encoded bytes) and label (and split, source, group, if you have them).",
        )
    image, label = schema.field("image").type, schema.field(named).type
    inner = (
        image.field("bytes").type
        if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
        else image
    )
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(
            f"{path}: the column 'image' holds {image}, expected binary, or a struct with bytes",
            "Store each image as the bytes of a PNG or JPEG file.",
        )
    value = label.value_type if pa.types.is_dictionary(label) else label
    if not (_is_text(value) or pa.types.is_integer(value)):
        raise InputError(
            f"{path}: the column {named!r} holds {label}, expected text or whole numbers",
            "Store class names as text.",
        )
    for name in {"split", "source", "group"} & set(schema.names):
        kind = schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not _is_text(value):
            raise InputError(
                f"{path}: the column {name!r} holds {kind}, expected text", f"Store {name} as text."
            )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _own_names(schema: pa.Schema) -> ClassNames | None:
    """Names of the numeric labels, as Hugging Face's `datasets` writes them into the metadata."""
    try:
        facts: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = facts["info"]["features"]["label"]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    return ClassNames.of(clean_name(name, "the file's own label names") for name in names)


def _has_own_sources(file: pq.ParquetFile, schema: pa.Schema) -> bool:
    """Whether `source` tells the rows of each split apart."""
    if "source" not in schema.names:
        return False
    keys = [name for name in ("split", "source") if name in schema.names]
    table = file.read(columns=keys)
    if table.column("source").null_count:
        return False
    return bool(table.group_by(keys).aggregate([]).num_rows == table.num_rows)


def _batch(
    path: Path,
    batch: pa.RecordBatch,
    base: int,
    split: str | None,
    names: ClassNames | None,
    with_data: bool,
) -> Iterator[ImageRecord | Skipped]:
    batch = batch.append_column("row", pa.array(range(base, base + batch.num_rows), pa.int64()))
    if "split" in batch.schema.names and split is not None:
        batch = batch.filter(pc.fill_null(pc.equal(batch.column("split").cast(pa.string()), split), False))
    uri = str(path.resolve())
    for row in batch.to_pylist():
        where = f"{uri}#{row['row']}"
        data = row.get("image")
        data = data.get("bytes") if isinstance(data, dict) else data
        if with_data and data is None:
            yield Skipped(where, "the row has no image bytes")
            continue
        own = row.get("split", split)
        if not own:
            yield Skipped(where, "the row names no split")
            continue
        source = row.get("source") or f"{path.name}#{row['row']}"
        name, group = _class(row[_label(batch.schema)], names, where), row.get("group") or None
        yield ImageRecord(source, where, name, check_split(own), data, group)


def _class(label: str | int | None, names: ClassNames | None, where: str) -> str | None:
    """The class name of a row's label; null and negative numbers stand for none."""
    if label is None or (isinstance(label, int) and label < 0):
        return None
    if isinstance(label, int):
        return names.name(label, where) if names is not None else str(label)
    return clean_name(label, where)


def _nothing(path: Path, file: pq.ParquetFile, split: str | None) -> str:
    if split is None or "split" not in file.schema_arrow.names or not file.metadata.num_rows:
        return f"{path} has no rows"
    there = sorted(str(s) for s in set(file.read(columns=["split"]).column("split").to_pylist()))
    return f"{path} has no row of split {split!r}; it has {', '.join(there[:20])}"
