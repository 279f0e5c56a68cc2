"""Readers of images: folders of class folders, files that name pictures and classes, Parquet with the images in it."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlltr_index.data.decoding import ENDINGS
from vlltr_index.data.files import (
    LINK,
    check_column,
    check_image_column,
    files_below,
    is_hidden,
    kept_ref,
    open_parquet,
    require,
    rows_at_once,
    unfit,
)
from vlltr_index.data.labelled import (
    KINDS,
    MEND_ROWS,
    Labelled,
    disputes,
    export_in,
    names_pictures,
    read_labelled,
)
from vlltr_index.data.names import ClassNames
from vlltr_index.data.objects import is_address, object_names
from vlltr_index.data.text import check_split, clean_name
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.wording import plural, preview

_log = logging.getLogger(__name__)

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_LAYOUT = "Put each class's images into a folder named after the class: DIR/tench/1.jpg"
NAME_ROOT = "Name the folder that the paths are relative to: --root DIR"
"""What to do where a file's pictures lie in another folder."""
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
    classes: Container[str] = (),
) -> _Items:
    """Yield the images of a source, without opening them.

    In a folder the first level names the classes, and all that lies deeper belongs to them. A file that names pictures
    and classes is a list, a table, JSONL, JSON, or an export of Label Studio or FiftyOne: see
    `data.labelled.read_labelled`; what cannot be used of it is named with its line. A folder that FiftyOne wrote is
    read by its labels.json or samples.json. A Parquet file with the images in it has the columns image (binary, or a
    struct with `bytes`) and label (or class, as `vlltr export --tables` writes it): text, or a number whose name is in
    `label_names` or in the file's own metadata. Its optional columns are split, source, and group (images of one group
    are held out together). A row is identified by `source` if that is different for every row, else by its number.

    Args:
        path: A folder or a file; or, as text, the address of a folder in object storage.
        split: The split of the images; of a file that names splits, only the rows of that split, and those without
            one, are read.
        list_root: Folder that the paths in a file are relative to; None: the file's own folder.
        label_names: Names of numeric labels 0, 1, 2 ...
        class_name: The class of all images, whatever their folder is; for folders only.
        with_data: Whether to read the bytes in a Parquet file; without, its records have no data.
        follow_links: Whether links that leave the folder, and links to folders, are followed.
        group_column: The column of a table that names each image's group; None: `group`, where there is one.
        classes: Names of classes that there are: see `data.labelled.read_labelled`.

    Raises:
        InputError: The path is missing or of no known kind, holds no image, or something in it is malformed.
        UsageError: The split is missing or not a valid name; or a column is asked for of what has none.
    """
    path = str(path) if is_address(path) else require(Path(path))
    kind = os.path.splitext(path)[1].lower()
    if split is not None:
        check_split(split)
    if isinstance(path, Path) and path.is_dir() and class_name is None:
        path = export_in(path) or path
        kind = path.suffix.lower()
    if isinstance(path, Path) and path.is_file() and _is_listing(path, kind):
        root = list_root or path.parent
        if not root.is_dir():
            raise InputError(
                f"no such folder: {root}", "Name the one that the paths are relative to: --root DIR"
            )
        rows = read_labelled(path, root, label_names, group_column, classes)
        yield from _listed(path, rows, root.resolve(), split=split, follow_links=follow_links)
    elif kind == ".parquet" and os.path.isfile(path):
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
        yield from _by_folder(path.rstrip("/"), ((name, "") for name in names), split, class_name=class_name)
    elif path.is_dir():
        files = files_below(path.resolve(), follow_links=follow_links)
        yield from _by_folder(str(path.resolve()), files, split, class_name=class_name)
    else:
        raise InputError(
            f"{path}: unknown kind of image source {kind!r}",
            "Expected a folder of class folders, or a file that names pictures and classes: "
            f"{', '.join(KINDS)}. A single image must lie in a class folder, too.",
        )


def holds_images(path: Path | str) -> bool:
    """Say whether a source is a Parquet file with the images in it."""
    return Path(path).suffix.lower() == ".parquet" and os.path.isfile(path) and not names_pictures(Path(path))


def _is_listing(path: Path, kind: str) -> bool:
    """Say whether a file names pictures and classes, and does not hold the pictures."""
    return kind in KINDS and (kind != ".parquet" or names_pictures(path))


def _by_folder(root: str, files: Iterable[tuple[str, str]], split: str, class_name: str | None) -> _Items:
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
        label = ""
        if not why and own:
            try:
                label = clean_name(own, where)
            except InputError as error:
                why = error.message.removeprefix(f"{where}: ")
        if not label:
            links += why == LINK
            yield Skipped(where, why or "an image outside every class folder", kept_ref(where, why))
        else:
            found += 1
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
            "Name the folders that they lead to."
            if class_name
            else "To read what they lead to: --follow-links",
        )
    if not found:
        where = f"in {root}" if class_name else f"in a class folder of {root}"
        hint = "Check the path." if class_name else f"{_LAYOUT}. Of Parquet files give one."
        raise InputError(f"no image {where}: looked for {', '.join(ENDINGS)}", hint)
    deep = [name for name in folders if len(below[name]) > 1]
    if deep and not class_name:
        _log.warning(
            "folders below a class folder are no classes of their own; all below these is of one class each: %s",
            ", ".join(deep[:5]) + (", ..." if len(deep) > 5 else ""),
        )


def _listed(
    listing: Path, rows: Iterable[Labelled], root: Path, *, split: str | None, follow_links: bool
) -> _Items:
    """Make records of the pictures that a file names, below `root`, a resolved folder."""
    folder = ListedFolder(root, follow_links)
    wanted = [row for row in rows if split is None or row.split in (None, split)]
    placed = [(folder.place(row), row) for row in wanted]
    disputed = disputes((full, row) for (full, why), row in placed if not (row.why or why))
    found = 0
    example = ""
    hint = "It has no row" + (f" of the split {split!r}." if split else ".")
    told = set[str]()
    for (full, misplaced), row in placed:
        why = row.why or misplaced or disputed.get(full, "")
        if why == disputed.get(full):
            if full in told:
                continue
            told.add(full)
        if why:
            if not example:
                example = f", for example {full}: {why}"
                hint = _placing(misplaced) if why == misplaced else MEND_ROWS
            yield Skipped(row.where, f"{row.entry}: {why}" if row.entry else why, kept_ref(full, why))
            continue
        own = row.split or split
        if own is None:
            raise UsageError(f"which split do the images of {listing} belong to?", "Say so: --split train")
        found += 1
        name = full[len(str(root)) :].lstrip("/")
        yield ImageRecord(name, full, row.class_name, own, group=row.group)
    if not found:
        raise InputError(f"no file that {listing} names can be used{example}", hint)


def _placing(why: str) -> str:
    """Say what makes a picture usable that lies elsewhere than a file says."""
    return "To read what links lead to: --follow-links" if why == LINK else NAME_ROOT


class ListedFolder:
    """The folder that a file's pictures lie in.

    Args:
        root: The folder, resolved.
        follow_links: Whether pictures behind links that leave it are usable.
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self._root = root
        self._below = os.path.join(root, "")
        self._follow_links = follow_links
        self._real: Callable[[str], str] = cache(os.path.realpath)

    def place(self, row: Labelled) -> tuple[str, str]:
        """Return the full path of a picture, and why it is no usable file; empty if it is one."""
        given = full = os.path.normpath(os.path.join(self._root, row.entry))
        if not full.startswith(self._below):  # a link may lead into the folder
            full = os.path.join(self._real(os.path.dirname(full)), os.path.basename(full))
        if not full.startswith(self._below):
            return given, f"the path leaves the folder {self._root}; another is named by --root DIR"
        why = unfit(full, self._root, self._follow_links)
        real = os.path.join(self._real(os.path.dirname(full)), "")
        if not why and not self._follow_links and not real.startswith(self._below):
            return full, LINK
        called = [path for name in row.names if why for path in self._by_name.get(name, ())]
        if len(called) > 1:
            return full, f"several files have its name: {preview(called)}"
        return (os.path.join(self._root, called[0]), "") if called else (full, why)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The usable files below the folder, by their names alone."""
        found = defaultdict[str, list[str]](list)
        for path, why in files_below(self._root, follow_links=self._follow_links):
            if not why:
                found[path.rpartition("/")[2]].append(path)
        return found


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
        check_column(path, schema, name, expected=expected, tests=tests)


def _own_names(path: Path, schema: pa.Schema) -> ClassNames | None:
    """Read the names of numeric labels from the metadata that Hugging Face's `datasets` writes; None if there are none.

    Raises:
        InputError: A name is no name for a class, or two are the same.
    """
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
