"""Rows of classes, sentences and images that several changes write or read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlltr_index.data.image_readers import read_images
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.schemas.tables import CLASSES, IMAGES
from vlltr_index.store.ingestion import image_id, image_rows
from vlltr_index.store.tables import one_of

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction

__all__ = ["change_class", "chosen_ids", "classes_of", "new_image_rows"]

_LEAST = 6  # characters of an id that may stand for it


def classes_of(rows: pa.Table) -> set[int]:
    """The classes that own `rows`."""
    return set(rows["class_id"].to_pylist())


def change_class(tx: Transaction, class_id: int, **fields: Any) -> None:
    """Write some fields of a class anew."""
    row = tx.table("classes", where=f"class_id = {class_id}").to_pylist()[0]
    tx.upsert("classes", pa.Table.from_pylist([{**row, **fields}], schema=CLASSES))


def new_image_rows(
    tx: Transaction,
    paths: Mapping[int, Sequence[Path | tuple[str, bytes]]],
    names: Mapping[int, str],
    skipped: list[str],
) -> pa.Table:
    """Rows of `images` in split train for files and folders of each class, each image decoded to see if it can be used.

    An image's key is made of its path and content: a file that changed is another image.

    Args:
        tx: Where they are to go.
        paths: Class to files, folders, and names with encoded images: of these the bytes are kept.
        names: Class to name.
        skipped: Gains what was left out, and why.

    Raises:
        InputError: If a folder holds no image, or an image is another class's already.
    """
    records = {i: _records(some, names[i], skipped) for i, some in paths.items()}
    rows = image_rows(records)
    rows = pa.Table.from_pylist([{**row, "image_id": _key(row)} for row in rows.to_pylist()], schema=IMAGES)
    skipped += [f"{row['uri']}: {row['problem']}" for row in rows.to_pylist() if row["problem"]]
    ids = rows["image_id"].to_pylist()
    there = tx.table("images", ["image_id", "class_id"], one_of("image_id", ids))
    owner = dict(zip(there["image_id"].to_pylist(), there["class_id"].to_pylist(), strict=True))
    for key, class_id, uri in zip(
        *(rows[c].to_pylist() for c in ("image_id", "class_id", "uri")), strict=True
    ):
        if owner.setdefault(key, class_id) != class_id:
            other = tx.class_table().names.get(owner[key], "another class")
            raise InputError(
                f"{uri} is an image of class {other!r} already",
                f"Take it away there: vlltr images remove {key}",
            )
    return rows


def _key(row: Mapping[str, Any]) -> str:
    content = row["content_hash"] or ""
    return image_id(row["split"], f"{row['uri']}#{content[:16]}")


def _records(paths: Sequence[Path | tuple[str, bytes]], name: str, skipped: list[str]) -> list[ImageRecord]:
    found: list[ImageRecord] = []
    for path in paths:
        if isinstance(path, tuple):
            given, data = path
            found.append(ImageRecord(given, f"given#{given}", name, "train", data))
        elif path.is_file():
            full = str(path.resolve())
            found.append(ImageRecord(full, full, name, "train"))
        elif path.is_dir():
            for item in read_images(path, "train", class_name=name):
                if isinstance(item, ImageRecord):
                    found.append(item)
                else:
                    skipped.append(f"{item.where}: {item.why}")
        else:
            skipped.append(f"{path}: no such file")
    return found


def chosen_ids(given: Sequence[str], there: Sequence[str], what: str, where: str) -> list[str]:
    """Ids as they are stored, for ids or their first characters (six at least).

    Raises:
        InputError: If one is not there, or could be several.
    """
    chosen: list[str] = []
    for key in given:
        fits = [i for i in there if i == key or (len(key) >= _LEAST and i.startswith(key.lower()))]
        if len(fits) != 1:
            why = "there is none" if not fits else f"{len(fits)} begin so"
            raise InputError(f"no {what} {key!r} can be told: {why}", where)
        chosen.append(fits[0])
    return list(dict.fromkeys(chosen))
