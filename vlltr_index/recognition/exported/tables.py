"""A workspace's tables as Parquet files in a folder that `datasets.load_dataset` reads by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlltr_index.data.decoding import image_bytes
from vlltr_index.embedding.loading import load_bank
from vlltr_index.errors import MissingStepError
from vlltr_index.recognition.exported.card import licence_id, save_card
from vlltr_index.recognition.exported.layout import check_target, write_folder
from vlltr_index.recognition.exported.writing import ExportReport, anchor_rows, folder_size, sentence_rows
from vlltr_index.schemas.exported import LIBRARY
from vlltr_index.store.arrow import one_of, quote

if TYPE_CHECKING:
    from vlltr_index.embedding.loading import LoadedBank
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

__all__ = ["export_tables", "images_schema"]

_ROWS = 128  # images held at once
_SPLIT = re.compile(r"\W+", re.ASCII)
_COLUMNS = ["image_id", "content_hash", "uri", "data", "class_id", "split", "width", "height"]

_Files = dict[str, dict[str, str]]
"""Configuration name to split name to file."""


def images_schema() -> pa.Schema:
    """The columns of `images`; the metadata tells `datasets` that `image` is one, to be decoded as it is read."""
    columns = [
        pa.field("image_id", pa.string()),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("class_id", pa.int32()),
        pa.field("class", pa.string()),
        pa.field("split", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("content_hash", pa.string()),
    ]
    features: dict[str, Any] = {
        f.name: {"_type": "Image"} if f.name == "image" else {"dtype": str(f.type), "_type": "Value"}
        for f in columns
    }
    return pa.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})


def export_tables(
    workspace: Workspace,
    folder: str | Path,
    at: int | None = None,
    *,
    force: bool = False,
    embed_images: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write classes, sentences, images and anchors, those of classes in use, as Parquet files with a README.md.

    `datasets.load_dataset(folder, "sentences")` reads them by name; so do pandas, polars and DuckDB. The folder appears
    whole or not at all. Images that cannot be read are left out, and counted.

    Args:
        workspace: What to export.
        folder: A new or empty folder.
        at: As of this commit; default: the newest.
        force: Replace an export that is there; anything else is left alone all the same.
        embed_images: Put the bytes of image files in. Without, only images that came out of Parquet have theirs, and
            the others the path on this machine.
        progress: Called as images are written.

    Raises:
        PretrainedError: If the folder may not be written.
        MissingStepError: If there are no classes.
        InputError: If an image file that is to be embedded cannot be read any more.
    """
    target = Path(folder).expanduser().absolute()
    check_target(target, force)
    snapshot = workspace.snapshot(at)
    if not snapshot.class_table().ids:
        raise MissingStepError("there are no classes to export", "Run: vlltr ingest text PATH")
    number = snapshot.commit.id or None
    rows: dict[str, int] = {}
    notes: list[str] = []

    def build(new: Path) -> None:
        loaded = _bank(snapshot)
        sentences = sentence_rows(snapshot, loaded)
        tables = {"classes": _classes(snapshot), "sentences": sentences}
        if loaded is not None:
            tables["anchors"] = anchor_rows(sentences, loaded)
        files: _Files = {}
        for name, table in tables.items():
            pq.write_table(table, new / f"{name}.parquet")
            rows[name], files[name] = table.num_rows, {"train": f"{name}.parquet"}
        files["images"], rows["images"], paths = _write_images(snapshot, new, embed_images, progress)
        broken = snapshot.count("images", "problem IS NOT NULL")
        if broken:
            notes.append(f"Images that cannot be read, left out: {broken:,}.")
        if paths:
            notes.append(
                f"Images named by their path on this machine: {paths:,}; --embed-images puts them in."
            )
        _write_card(new, files, sentences, rows=rows, recipe=workspace.recipe.name, commit=number)

    write_folder(target, force, build)
    return ExportReport(str(target), number, rows, folder_size(target), tuple(notes))


def _bank(snapshot: Snapshot) -> LoadedBank | None:
    try:
        return load_bank(snapshot)
    except MissingStepError:  # nothing has been selected yet
        return None


def _classes(snapshot: Snapshot) -> pa.Table:
    rows = snapshot.table("classes", where="retired_at IS NULL").sort_by("class_id")
    return rows.drop_columns(["retired_at"])


def _write_images(
    snapshot: Snapshot, folder: Path, embed: bool, progress: Progress | None
) -> tuple[dict[str, str], int, int]:
    """One file a split; gives the files, the number of images, and how many of them are only a path."""
    owned = f"({one_of('class_id', snapshot.class_table().ids)} OR class_id IS NULL) AND problem IS NULL"
    counts = pc.value_counts(snapshot.table("images", ["split"], owned)["split"].combine_chunks())
    number = {str(item["values"]): int(item["counts"]) for item in counts.to_pylist()}
    total, done, paths, files = sum(number.values()), 0, 0, dict[str, str]()
    for split in sorted(number):
        name = _split_name(split, files)
        files[name] = f"images/{name}.parquet"
        (folder / "images").mkdir(exist_ok=True)
        with pq.ParquetWriter(folder / files[name], images_schema()) as writer:
            where = f"split = {quote(split)} AND {owned}"
            for batch in snapshot.scan("images", _COLUMNS, where, _ROWS):
                table, without = _image_rows(batch, snapshot.class_table().names, embed)
                writer.write_table(table)
                done, paths = done + table.num_rows, paths + without
                if progress:
                    progress("export images", done, total)
    return files, total, paths


def _split_name(split: str, taken: Mapping[str, str]) -> str:
    """A name that `datasets` allows: letters, digits and underlines; different for each split."""
    name = base = _SPLIT.sub("_", split).strip("_") or "split"
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _image_rows(batch: pa.RecordBatch, names: Mapping[int, str], embed: bool) -> tuple[pa.Table, int]:
    images, without = [], 0
    for uri, data in zip(batch["uri"].to_pylist(), batch["data"].to_pylist(), strict=True):
        if data is None and embed:
            data = image_bytes(uri)
        without += data is None
        images.append({"bytes": data, "path": uri if data is None else re.split(r"[/\\]", uri)[-1]})
    schema = images_schema()
    columns: dict[str, Any] = {
        "image": pa.array(images, schema.field("image").type),
        "class": pa.array([names.get(i) for i in batch["class_id"].to_pylist()], pa.string()),
    }
    arrays = [columns.get(name, batch[name] if name in batch.schema.names else None) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema), without


def _write_card(folder: Path, files: _Files, sentences: pa.Table, **facts: Any) -> None:
    from huggingface_hub import DatasetCardData

    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in parts.items()],
            **({"default": True} if name == "sentences" else {}),
        }
        for name, parts in files.items()
        if parts
    ]
    licence = licence_id(sentences["licence"].unique().to_pylist())
    data = DatasetCardData(license=licence, tags=[LIBRARY], configs=configs)
    save_card(folder, "dataset_card.md", data, sentences, **facts)
