"""Export a workspace: as a folder for `Recognizer.from_pretrained`, or as tables for `datasets`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError

from vlltr_index.data.decoding import image_bytes
from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.data.writing import digest_folder
from vlltr_index.errors import MissingStepError, PretrainedError, WorkspaceError, reason
from vlltr_index.heads.checkpoint import save_head
from vlltr_index.recognition.anchors import TEXT_COLUMNS, Anchors, read_anchors, texts_of
from vlltr_index.recognition.exported.card import licence_id, newest_results, save_card, write_card
from vlltr_index.recognition.exported.checks import CARD, FOLDERS, OPTIONAL, SENTENCES
from vlltr_index.recognition.exported.place import bring_back, new_folder, take_place
from vlltr_index.recognition.exported.reading import (
    SUMS,
    check_repository,
    read_config,
    read_sums,
    refused,
    verify,
)
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.exported import LIBRARY, ExportedConfig, anchors_schema, sentences_schema
from vlltr_index.schemas.fingerprint import digest_file
from vlltr_index.schemas.model import ModelRecord
from vlltr_index.store.parts import TABLES, write_base
from vlltr_index.store.tables import one_of, quote
from vlltr_index.version import VERSION
from vlltr_index.wording import preview

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

_ROWS = 128  # images in memory at once
_SPLIT = re.compile(r"\W+", re.ASCII)
_ADDED = {
    ".gitattributes",
    ".cache",
    "__pycache__",
}  # what the hub's tools, and the examples in it, add to a folder
_COLUMNS = ["image_id", "content_hash", "uri", "data", "class_id", "split", "width", "height"]


@dataclass(frozen=True)
class ExportReport:
    """Report of an export.

    Attributes:
        folder: The exported folder.
        commit: The exported commit; None for tables of a workspace without commits.
        rows: Number of rows of each table.
        bytes: Size of all files.
        notes: Remarks for the reader, such as the number of texts without a licence.
    """

    folder: str
    commit: int | None
    rows: dict[str, int]
    bytes: int
    notes: tuple[str, ...] = ()


def export_model(
    workspace: Workspace,
    folder: str | Path,
    at: int | None = None,
    *,
    force: bool = False,
    with_index: bool = False,
) -> ExportReport:
    """Write the folder that `Recognizer.from_pretrained` reads: encoder, head, part, sentences, card and digests.

    The folder appears whole or not at all. The same commit gives the same bytes. No image goes into it.

    Args:
        workspace: The workspace to export.
        folder: A new or empty folder.
        at: As of this commit; default: the newest.
        force: Replace an earlier export; a folder with anything else is refused all the same.
        with_index: Include the FAISS index, if there is one; without it the anchors are searched exactly.

    Raises:
        PretrainedError: If the folder may not be written.
        MissingStepError: If anchors or head are not there yet.
        FingerprintMismatch: If encoder, vectors and head do not belong together.
    """
    target = absolute(folder)
    snapshot = workspace.snapshot(at)
    with exporting_to(workspace, target, force) as new:
        model = Model.open(snapshot)
        commit = snapshot.commit
        sentences = _sentence_rows(snapshot, model.anchors)
        pq.write_table(sentences, new / SENTENCES)
        record = _write_objects(snapshot, model, new, with_index)
        config = _config(snapshot, model, sentences.num_rows, record)
        config.save(new / "config.json")
        names = [model.names[i] for i in snapshot.class_table().ids]
        write_card(
            new,
            config,
            names,
            sentences=sentences,
            results=newest_results(workspace, commit),
            texts=model.saved.texts,
            attends=model.rule.attends,
        )
    without = sentences["licence"].null_count
    unsaid = f"Sentences that state no licence: {without:,}. See whether you may share them."
    rows = {"classes": config.classes, "anchors": config.anchors, "sentences": config.sentences}
    notes = (unsaid,) if without else ()
    return ExportReport(str(target), commit.id, rows, folder_size(target), notes=notes)


def push_model(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload the exported folder as the model `repo_id` on the hub, in one commit; create the repository if needed.

    Args:
        folder: Written by `export_model`; its digests are checked first.
        repo_id: `user/name`.
        private: Whether a new repository is private; default: what the user or organisation has set.
        commit_message: Default: names the commit that was exported.
        token: For the hub; default: the one that is stored.

    Returns:
        The address of the hub's commit.

    Raises:
        UsageError: If `repo_id` is no name.
        PretrainedError: If the folder is damaged, or the hub does not take it.
    """
    check_repository(repo_id)
    files = verify(folder)
    config = read_config(folder)
    from huggingface_hub import HfApi

    api = HfApi(library_name=LIBRARY, library_version=VERSION, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload commit {config.model.commit} of recipe {config.recipe}",
            allow_patterns=[SUMS, *files],
            delete_patterns=list(OPTIONAL),  # leftovers of an earlier push; uploaded files are not deleted
        )
    except Exception as error:  # huggingface_hub and its HTTP library raise many kinds, as in `locate`
        raise refused(repo_id, error) from error
    return str(done.commit_url)


def absolute(folder: str | Path) -> Path:
    """Return a folder's absolute path, with `~` expanded."""
    return Path(os.path.expanduser(folder)).absolute()


def _check_target(folder: Path, force: bool) -> None:
    """Check that `folder` may be written: it is new or empty, or with `force` an exported folder and nothing else.

    Raises:
        PretrainedError: If it may not.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise PretrainedError(f"{folder} is not a folder", "Choose another: vlltr export DIR")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    own = {SUMS, *read_sums(folder)} if {SUMS, CARD} <= there else set[str]()
    added = {name for name in there if own and name.split("/")[0] in _ADDED}
    others = sorted(there - own - added)
    if others:
        raise PretrainedError(
            f"{folder} holds other things than an export, and is left as it is: {preview(others)}",
            "Move them away, or choose a new folder: vlltr export DIR",
        )
    if there and not force:
        raise PretrainedError(
            f"{folder} holds an export already", "Replace it: the same command with --force"
        )


@contextmanager
def exporting_to(workspace: Workspace, folder: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder to write into; at the end digests are added, and it becomes `folder`.

    Raises:
        PretrainedError: If `folder` may not be written, which is checked before the block runs, or the disk refuses.
    """
    bring_back(folder)
    if workspace.owns(folder):
        what = f"{folder} lies in a folder of the workspace, which deletes what it does not know"
        raise PretrainedError(what, "Choose another: vlltr export DIR")
    _check_target(folder, force)
    try:
        with new_folder(workspace, folder) as built:
            yield built
            names = sorted(p.relative_to(built).as_posix() for p in built.rglob("*") if p.is_file())
            lines = [f"{digest_file(built / name)}  {name}\n" for name in names]
            (built / SUMS).write_text("".join(lines), encoding="utf-8")
            take_place(built, folder)
    except (OSError, SafetensorError) as error:
        raise PretrainedError(
            f"{folder} cannot be written: {reason(error)}", "Make room, or choose another folder."
        ) from None


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _sentence_rows(snapshot: Snapshot, anchors: Anchors | None) -> pa.Table:
    """Return the sentences of all classes in use, by class and position; anchors have their rank."""
    table = snapshot.class_table()
    columns = ["sentence_id", "class_id", "text", "source", "source_ref", "licence", "position"]
    rows = snapshot.table("sentences", columns, one_of("class_id", table.ids))
    order = [("class_id", "ascending"), ("position", "ascending"), ("sentence_id", "ascending")]
    rows = rows.sort_by(order)
    _check_sentences(snapshot, rows)
    names = pa.array([table.names[i] for i in rows["class_id"].to_pylist()], pa.string())
    ranks: dict[str, int] = {}
    if anchors is not None:  # ranks are the anchors' places within their class, from 0
        places = (place for n in anchors.bank.offsets.diff().tolist() for place in range(n))
        ranks = dict(zip(anchors.sentence_ids, places, strict=True))
    rank = pa.array([ranks.get(i) for i in rows["sentence_id"].to_pylist()], pa.int32())
    rows = rows.append_column("class", names).append_column("rank", rank)
    return rows.select(sentences_schema().names).cast(sentences_schema())


def _check_sentences(snapshot: Snapshot, rows: pa.Table) -> None:
    """Check that rows of the table of sentences are unchanged.

    Raises:
        WorkspaceError: If one was changed.
    """
    columns = ["sentence_id", "class_id", *TEXT_COLUMNS[1:]]
    keys, owners, texts, *beside = rows.select(columns).to_pydict().values()
    known = texts_of(snapshot.rows("anchors")) if snapshot.commit.parts else {}
    for key, class_id, text, *facts in zip(keys, owners, texts, *beside, strict=True):
        if sentence_id(class_id, text_hash(text)) != key or known.get(key, (text, *facts)) != (text, *facts):
            raise WorkspaceError(
                f"the table 'sentences' is damaged: {key!r} of class {class_id} is not the sentence that was written",
                "Bring the folder lance/sentences.lance back from a backup.",
            )


def _anchor_rows(sentences: pa.Table, anchors: Anchors) -> pa.Table:
    """Return the anchors in the bank's order, with their losses and vectors.

    Args:
        sentences: From `_sentence_rows`.
        anchors: The anchors.
    """
    schema = anchors_schema(anchors.bank.dim)
    ids = pa.array(anchors.sentence_ids, pa.string())
    rows = sentences.take(pc.index_in(ids, value_set=sentences["sentence_id"].combine_chunks()))
    flat = pa.array(anchors.bank.vectors.float().contiguous().view(-1).numpy())
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    rows = rows.append_column("anchor_key", pa.array(anchors.keys.numpy()))
    rows = rows.append_column("loss", pa.array(anchors.bank.losses.numpy()))
    return rows.append_column("vector", vectors).select(schema.names).cast(schema)


def _write_objects(snapshot: Snapshot, model: Model, folder: Path, with_index: bool) -> ModelRecord:
    """Write encoder, head and a base, and the index if it is wanted; return the record that names them.

    The record names the commit's index also where it was not written: readers then search exactly.
    """
    record = snapshot.record
    model.encoder.save(folder / FOLDERS["checkpoints"])
    (folder / FOLDERS["heads"]).mkdir()
    save_head(model.saved, folder / FOLDERS["heads"])
    part = folder / FOLDERS["parts"]
    part.mkdir()
    write_base(_answering_rows(snapshot), model.bank.dim, part, record.reading)
    if with_index and record.index is not None:
        kept = snapshot.objects.whole("index", record.index.digest)
        (folder / FOLDERS["index"]).mkdir()
        for file in kept.iterdir():
            shutil.copyfile(file, folder / FOLDERS["index"] / file.name)
    facts = {
        "commit": record.first_commit,
        "encoder": digest_folder(folder / FOLDERS["checkpoints"]),
        "head": digest_folder(folder / FOLDERS["heads"]),
        "parts": (digest_folder(part),),
        "fusion": model.fusion,
    }
    return record.model_copy(update=facts)


def _answering_rows(snapshot: Snapshot) -> dict[str, pa.Table]:
    """Return the rows that answers rest on, in the order of their keys; what was removed is left out."""
    rows = {name: snapshot.rows(name).sort_by(key) for name, key in TABLES.items()}
    rows["classes"] = rows["classes"].filter(pc.is_null(rows["classes"]["retired_at"]))
    stats = rows["class_stats"]
    rows["class_stats"] = stats.filter(pc.equal(stats["image_fp"], snapshot.commit.image_fp))
    return rows


def _config(snapshot: Snapshot, model: Model, sentences: int, record: ModelRecord) -> ExportedConfig:
    commit = snapshot.commit
    encoder = model.encoder
    return ExportedConfig(
        program_version=VERSION,
        created_at=commit.created_at,
        recipe=commit.info.recipe or snapshot.recipe.name,
        protocol=commit.info.protocol or snapshot.recipe.protocol,
        settings=commit.info.model_dump(mode="json", include={"cvlp", "select", "lgr"}),
        encoder=encoder.name,
        dim=model.bank.dim,
        preprocess=encoder.config["preprocess_cfg"],
        tokenizer=encoder.tokenizer.identity(),
        rejects=model.rule.threshold is not None,
        classes=len(snapshot.class_table().ids),
        anchors=len(model.anchors.keys),
        sentences=sentences,
        model=record,
    )


def _images_schema() -> pa.Schema:
    """Return the columns of `images`; the metadata tells `datasets` to decode column `image`."""
    columns = {"image_id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
    columns |= {"class_id": pa.int32(), "class": pa.string(), "split": pa.string()}
    columns |= {"width": pa.int32(), "height": pa.int32(), "content_hash": pa.string()}
    features = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in columns.items()}
    features["image"] = {"_type": "Image"}
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
    """Write classes, sentences, images and anchors of the classes in use as Parquet files with a README.md.

    `datasets.load_dataset(folder, "sentences")` reads them by name; so do pandas, polars and DuckDB. The folder appears
    whole or not at all. Images that cannot be read are left out, and counted.

    Args:
        workspace: The workspace to export.
        folder: A new or empty folder.
        at: As of this commit; default: the newest.
        force: Replace an earlier export; a folder with anything else is refused all the same.
        embed_images: Include the bytes of image files. Without it only images that came from Parquet have theirs, and
            the others the path on this machine.
        progress: Called as images are written.

    Raises:
        PretrainedError: If the folder may not be written.
        MissingStepError: If there are no classes.
        InputError: If an image file that is to be embedded cannot be read any more.
    """
    target = absolute(folder)
    snapshot = workspace.snapshot(at)
    if not snapshot.class_table().ids:
        raise MissingStepError("there are no classes to export", "Run: vlltr ingest text PATH")
    number = snapshot.commit.id or None
    with exporting_to(workspace, target, force) as new:
        anchors = read_anchors(snapshot) if snapshot.commit.selection_id else None
        sentences = _sentence_rows(snapshot, anchors)
        tables = {"classes": _classes(snapshot), "sentences": sentences}
        if snapshot.count("taxonomy"):
            tables["taxonomy"] = snapshot.table("taxonomy").sort_by("name")
        if anchors is not None:
            tables["anchors"] = _anchor_rows(sentences, anchors)
        rows = dict[str, int]()
        files = dict[str, dict[str, str]]()
        for name, table in tables.items():
            pq.write_table(table, new / f"{name}.parquet")
            rows[name] = table.num_rows
            files[name] = {"train": f"{name}.parquet"}
        files["images"], rows["images"], paths = _write_images(snapshot, new, embed_images, progress)
        _write_card(new, files, sentences, rows=rows, recipe=workspace.recipe.name, commit=number)
    notes = []
    broken = snapshot.count("images", "problem IS NOT NULL")
    if broken:
        notes.append(f"Images that cannot be read, left out: {broken:,}.")
    if paths:
        notes.append(f"Images named by their path on this machine: {paths:,}; --embed-images puts them in.")
    return ExportReport(str(target), number, rows, folder_size(target), notes=tuple(notes))


def _classes(snapshot: Snapshot) -> pa.Table:
    rows = snapshot.answering("classes").sort_by("class_id")
    return rows.filter(pc.is_null(rows["retired_at"])).drop_columns(["retired_at"])


def _write_images(
    snapshot: Snapshot, folder: Path, embed: bool, progress: Progress | None
) -> tuple[dict[str, str], int, int]:
    """Write one file a split; return the files, the number of images, and how many are stored as a path only."""
    owned = f"({one_of('class_id', snapshot.class_table().ids)} OR class_id IS NULL) AND problem IS NULL"
    counts = pc.value_counts(snapshot.table("images", ["split"], owned)["split"].combine_chunks())
    number = {str(item["values"]): int(item["counts"]) for item in counts.to_pylist()}
    total = sum(number.values())
    done = 0
    paths = 0
    files = dict[str, str]()
    for split in sorted(number):
        name = _split_name(split, files)
        files[name] = f"images/{name}.parquet"
        (folder / "images").mkdir(exist_ok=True)
        with pq.ParquetWriter(folder / files[name], _images_schema()) as writer:
            where = f"split = {quote(split)} AND {owned}"
            for batch in snapshot.scan("images", _COLUMNS, where, _ROWS):
                table, without = _image_rows(batch, snapshot.class_table().names, embed)
                writer.write_table(table)
                done = done + table.num_rows
                paths = paths + without
                if progress:
                    progress("export images", done, total)
    return files, total, paths


def _split_name(split: str, taken: Mapping[str, str]) -> str:
    """Return a name that `datasets` allows (letters, digits, underscores), different for each split."""
    name = _SPLIT.sub("_", split).strip("_") or "split"
    while name in taken:
        name += "_2"
    return name


def _image_rows(batch: pa.RecordBatch, names: Mapping[int, str], embed: bool) -> tuple[pa.Table, int]:
    images = []
    without = 0
    for uri, data in zip(batch["uri"].to_pylist(), batch["data"].to_pylist(), strict=True):
        if data is None and embed:
            data = image_bytes(uri)
        without += data is None
        images.append({"bytes": data, "path": uri if data is None else re.split(r"[/\\]", uri)[-1]})
    schema = _images_schema()
    columns: dict[str, Any] = {
        "image": pa.array(images, schema.field("image").type),
        "class": pa.array([names.get(i) for i in batch["class_id"].to_pylist()], pa.string()),
    }
    arrays = [columns.get(name, batch[name] if name in batch.schema.names else None) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema), without


def _write_card(
    folder: Path, files: Mapping[str, Mapping[str, str]], sentences: pa.Table, **facts: Any
) -> None:
    from huggingface_hub import DatasetCardData

    configs: list[dict[str, Any]] = []
    for name, parts in files.items():
        if parts:
            paths = [{"split": split, "path": path} for split, path in parts.items()]
            configs.append({"config_name": name, "data_files": paths})
            if name == "sentences":
                configs[-1]["default"] = True
    licence = licence_id(sentences["licence"].unique().to_pylist())
    data = DatasetCardData(license=licence, tags=[LIBRARY], configs=configs)
    save_card(folder, "dataset_card.md", data, sentences, **facts)
