"""Exporting a workspace: the folder that `Recognizer.from_pretrained` reads without the workspace."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.torch import save_file

from vlltr_index.anchors.index import save_index
from vlltr_index.errors import PretrainedError
from vlltr_index.heads.checkpoint import save_head
from vlltr_index.recognition.bundle import load_bundle
from vlltr_index.recognition.exported.card import newest_results, write_card
from vlltr_index.recognition.exported.layout import CARD, check_target, write_folder
from vlltr_index.recognition.exported.reading import read_config, verify
from vlltr_index.schemas.exported import ExportedClass, ExportedConfig, anchors_schema, sentences_schema
from vlltr_index.version import VERSION

if TYPE_CHECKING:
    from vlltr_index.embedding.loading import LoadedBank
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.recognition.scorer import Scorer
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

__all__ = ["ExportReport", "anchor_rows", "copy_model", "export_model", "folder_size", "sentence_rows"]


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        folder: Where it lies.
        commit: The commit whose predictions it gives; None for tables of a workspace without commits.
        rows: Rows of each table.
        bytes: Size of all files.
        notes: What a reader should know, such as texts without a licence.
    """

    folder: str
    commit: int | None
    rows: dict[str, int]
    bytes: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for people."""
        rows = ", ".join(f"{number:,} {name}" for name, number in self.rows.items())
        return [f"Wrote {self.folder}: {rows} ({self.bytes / 2**20:.1f} MiB).", *self.notes]


def export_model(
    workspace: Workspace,
    folder: str | Path,
    at: int | None = None,
    *,
    force: bool = False,
    with_index: bool = False,
) -> ExportReport:
    """Write what `Recognizer.from_pretrained` reads: encoder, head, anchors, sentences, a model card and digests.

    The folder appears whole or not at all. The same commit gives the same bytes. No image goes into it.

    Args:
        workspace: What to export.
        folder: A new or empty folder.
        at: As of this commit; default: the newest.
        force: Replace an export that is there; anything else is left alone all the same.
        with_index: Put the FAISS index in, where there is one; without, the anchors are searched exactly.

    Raises:
        PretrainedError: If the folder may not be written, or the encoder cannot be moved.
        MissingStepError: If anchors or head are not there yet.
        FingerprintMismatch: If encoder, vectors and head do not belong together.
    """
    target = Path(folder).expanduser().absolute()
    check_target(target, force)
    snapshot = workspace.snapshot(at)
    bundle, commit = load_bundle(workspace, snapshot), snapshot.commit
    scorer, encoder = bundle.scorer, bundle.encoder()
    check_movable(encoder)
    index = bundle.index() if with_index else None
    sentences = sentence_rows(snapshot, scorer.loaded)
    anchors = anchor_rows(sentences, scorer.loaded)
    config = _config(workspace, snapshot, scorer, encoder, sentences.num_rows)

    def build(new: Path) -> None:
        encoder.save(new / "encoder")
        (new / "head").mkdir()
        save_head(scorer.saved, new / "head")
        _save_stats(scorer, new / "class_stats.safetensors")
        pq.write_table(anchors, new / "anchors.parquet")
        pq.write_table(sentences, new / "sentences.parquet")
        if index is not None:
            (new / "index").mkdir()
            save_index(index, new / "index")
        text = json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
        write_card(new, config, sentences, newest_results(workspace, commit))

    write_folder(target, force, build)
    rows = {"classes": len(config.classes), "anchors": anchors.num_rows, "sentences": sentences.num_rows}
    return ExportReport(str(target), commit.id, rows, folder_size(target), _notes(sentences))


def copy_model(source: Path, folder: str | Path, *, force: bool = False) -> ExportReport:
    """Copy an exported folder: its own files alone, after a look at their digests; arguments as for `export_model`.

    Raises:
        PretrainedError: If the source is damaged, or the folder may not be written.
    """
    target = Path(folder).expanduser().absolute()
    check_target(target, force)
    config = read_config(source)
    files = verify(source)

    def build(new: Path) -> None:
        for name in {*files, CARD}:
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, new / name)

    write_folder(target, force, build)
    rows = {"classes": len(config.classes), "anchors": config.anchors, "sentences": config.sentences}
    return ExportReport(str(target), config.commit, rows, folder_size(target))


def check_movable(encoder: Encoder) -> None:
    """Refuse an encoder part of which is known by a name on the hub alone.

    Raises:
        PretrainedError: Naming the part.
    """
    text = encoder.config["model_cfg"].get("text_cfg") or {}
    if name := text.get("hf_model_name"):
        raise PretrainedError(
            f"the text tower of {encoder.name} is built by transformers from {name!r} on the hub: "
            "it cannot be put into a folder of its own",
            "Use an encoder that open_clip builds itself, such as ViT-B-16.",
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _notes(sentences: pa.Table) -> tuple[str, ...]:
    without = sentences["licence"].null_count
    if not without:
        return ()
    return (f"Sentences that state no licence: {without:,}. See whether you may share them.",)


def sentence_rows(snapshot: Snapshot, loaded: LoadedBank | None) -> pa.Table:
    """The sentences of all classes in use, by class and position; those that are anchors have their rank."""
    table = snapshot.class_table()
    columns = ["sentence_id", "class_id", "text", "source", "source_ref", "licence", "position"]
    rows = snapshot.table("sentences", columns)
    rows = rows.filter(pc.is_in(rows["class_id"], value_set=pa.array(table.ids, pa.int32())))
    order = [("class_id", "ascending"), ("position", "ascending"), ("sentence_id", "ascending")]
    rows = rows.sort_by(order)
    names = pa.array([table.names[i] for i in rows["class_id"].to_pylist()], pa.string())
    ranks = {} if loaded is None else dict(zip(loaded.sentence_ids, _ranks(loaded), strict=True))
    rank = pa.array([ranks.get(i) for i in rows["sentence_id"].to_pylist()], pa.int32())
    rows = rows.append_column("class", names).append_column("rank", rank)
    return rows.select(sentences_schema().names).cast(sentences_schema())


def _ranks(loaded: LoadedBank) -> list[int]:
    """Each anchor's place among its class's, from 0, in the bank's order."""
    return [place for n in loaded.bank.offsets.diff().tolist() for place in range(n)]


def anchor_rows(sentences: pa.Table, loaded: LoadedBank) -> pa.Table:
    """The anchors in the bank's order, with their losses and vectors.

    Args:
        sentences: As `sentence_rows` gives them.
        loaded: The anchors.
    """
    schema = anchors_schema(loaded.bank.dim)
    ids = pa.array(loaded.sentence_ids, pa.string())
    rows = sentences.take(pc.index_in(ids, value_set=sentences["sentence_id"].combine_chunks()))
    flat = pa.array(loaded.bank.vectors.float().contiguous().view(-1).numpy())
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    rows = rows.append_column("anchor_key", pa.array(loaded.keys.numpy()))
    rows = rows.append_column("loss", pa.array(loaded.bank.losses.numpy()))
    return rows.append_column("vector", vectors).select(schema.names).cast(schema)


def _save_stats(scorer: Scorer, path: Path) -> None:
    """What is known of the classes' images, where there is a generative model."""
    if scorer.model is not None:
        stats = scorer.stats
        tensors = {"class_ids": stats.class_ids, "counts": stats.counts, "sums": stats.sums}
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def _config(
    workspace: Workspace, snapshot: Snapshot, scorer: Scorer, encoder: Encoder, sentences: int
) -> ExportedConfig:
    commit = snapshot.commit
    recipe = workspace.recipe
    return ExportedConfig(
        program_version=VERSION,
        commit=commit.state,
        created_at=commit.created_at,
        recipe=recipe.name,
        protocol=recipe.protocol,
        settings=recipe.model_dump(mode="json", include={"cvlp", "select", "lgr"}),
        encoder=encoder.name,
        text_fp=scorer.saved.text_fp,
        image_fp=scorer.saved.image_fp,
        dim=scorer.bank.dim,
        preprocess=encoder.config["preprocess_cfg"],
        tokenizer=encoder.tokenizer.identity(),
        selection_id=scorer.loaded.selection_id,
        fusion=scorer.fusion,
        rejects=scorer.saved.parts is not None and scorer.saved.parts.accept_above is not None,
        classes=_classes(snapshot),
        merged=dict(scorer.merged),
        anchors=len(scorer.loaded.keys),
        sentences=sentences,
        index=own.kind if (own := commit.own_index) is not None else None,
    )


def _classes(snapshot: Snapshot) -> tuple[ExportedClass, ...]:
    rows: list[dict[str, Any]] = snapshot.table("classes").sort_by("class_id").to_pylist()
    fields = ("class_id", "name", "aliases", "origin")
    return tuple(
        ExportedClass(**{name: row[name] for name in fields}) for row in rows if row["retired_at"] is None
    )
