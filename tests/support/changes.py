"""A small trained workspace for changes to its classes, and a plain model of what they mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vlltr_index.anchors.selection import select
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.data.text import class_prompts, text_hash
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import override
from vlltr_index.schemas.records import ImageRecord, SentenceRecord
from vlltr_index.schemas.tables import CLASSES, KEYS, class_stats
from vlltr_index.store.ingestion import image_rows, sentence_rows
from vlltr_index.store.workspace import Workspace

CLASSES_AT_FIRST = 10
PROMPTS = ("a sign like the {}.", "the {}, printed.")


@dataclass
class Kept:
    """A class of the model: its name, its texts by hash with their source, its training images."""

    name: str
    texts: dict[str, tuple[str, str]] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)

    def tell(self, text: str, source: str = "given") -> None:
        self.texts.setdefault(text_hash(text), (text, source))

    def prompt(self) -> None:
        for record in class_prompts(self.name, PROMPTS):
            self.tell(record.text, "prompt")


@dataclass
class World:
    """A workspace on disk, the model of its classes, and what is left to add."""

    folder: Path
    classes: dict[int, Kept]
    texts: dict[str, list[str]]  # of classes that can be added
    pictures: list[str]  # files of no class
    merged: dict[int, int] = field(default_factory=dict)


@contextmanager
def each_picture_alone() -> Iterator[None]:
    """Find no near duplicates, so that counts of pictures can be told without looking at them."""
    with patch("vlltr_index.heads.units.near_duplicates", lambda *_: torch.empty(0, 2, dtype=torch.int64)):
        yield


def build_world(folder: Path, trained: Workspace) -> World:
    """Ten classes with three or four images each, with the encoder of `trained` and a head of their own."""
    data = glyph_files(fast=True)
    texts: dict[str, list[str]] = json.loads(data.texts.read_text(encoding="utf-8"))
    names = sorted(texts)[:CLASSES_AT_FIRST]
    files = write_pictures(folder / "pictures", data.images, names)
    (folder / "texts.json").write_text(json.dumps({n: texts[n][:6] for n in names}), encoding="utf-8")
    overrides = ("lgr.views=1", "lgr.epochs=1", "select.images_per_class=3", "select.max_anchors=4")
    recipe = override(trained.recipe, overrides).model_copy(update={"prompts": PROMPTS})
    workspace = Workspace.create(folder / "workspace", recipe)
    ingest_text(workspace, folder / "texts.json")
    ingest_images(workspace, folder / "pictures" / "train", "train")
    ingest_images(workspace, folder / "pictures" / "val", "val")
    commit = trained.history.last()
    shutil.copytree(trained.path / "checkpoints", workspace.path / "checkpoints")
    with workspace.transaction("an encoder") as tx:
        tx.set(checkpoint=commit.checkpoint)
    embed(workspace)
    select(workspace, recipe.select)
    with each_picture_alone():
        train_lgr_stage(workspace, recipe.lgr)
    index_anchors(workspace)
    others = {name: texts[name][:8] for name in sorted(texts) if name not in names}
    return World(workspace.path, _model(workspace, names, texts), others, files)


def _model(workspace: Workspace, names: list[str], texts: dict[str, list[str]]) -> dict[int, Kept]:
    table = workspace.snapshot().class_table()
    classes = {}
    for name in names:
        kept = classes[table.lookup(name)] = Kept(name)
        for text in texts[name][:6]:
            kept.tell(text)
        kept.prompt()
        folder = workspace.path.parent / "pictures" / "train" / name
        kept.pictures = {str(p.resolve()) for p in folder.glob("*.png")}
    return classes


def write_pictures(folder: Path, parquet: Path, names: list[str]) -> list[str]:
    """PNG files: train and val of the classes at first, and a pool of others; returns the pool."""
    rows = pq.read_table(parquet, columns=["image", "label", "split"]).to_pylist()
    pool: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        split, name = row["split"], row["label"]
        if name not in names and (split != "train" or len(pool) >= 30):
            continue
        if split not in ("train", "val"):
            continue
        number = seen[split, name] = seen.get((split, name), -1) + 1
        if number >= (4 if split == "train" else 2):
            continue
        target = folder / (split if name in names else "pool") / name / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(row["image"])
        if name not in names:
            pool.append(str(target.resolve()))
    return pool


def rebuilt(world: World, source: Workspace, folder: Path) -> Workspace:
    """A new workspace from the model alone, with the encoder and head of `source`: embedded and selected anew."""
    fresh = Workspace.create(folder, source.recipe)
    commit = source.history.last()
    for kind in ("checkpoints", "heads"):
        shutil.copytree(source.path / kind, fresh.path / kind)
    rows = [
        {
            "class_id": i,
            "name": k.name,
            "aliases": [],
            "origin": "trained",
            "created_at": "2026",
            "retired_at": None,
        }
        for i, k in world.classes.items()
    ]
    sentences = {
        i: [SentenceRecord(k.name, text, source) for text, source in k.texts.values()]
        for i, k in world.classes.items()
    }
    pictures = {i: [ImageRecord(p, p, k.name, "train") for p in k.pictures] for i, k in world.classes.items()}
    with fresh.transaction("the final list") as tx:
        tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))
        tx.upsert("sentences", sentence_rows(sentences))
        tx.upsert("images", image_rows(pictures))
        tx.set(checkpoint=commit.checkpoint)
    embed(fresh)
    select(fresh, fresh.recipe.select)
    with fresh.transaction("the same head") as tx:
        tx.set(head=commit.head, fusion=commit.fusion)
        tx.note(merged=world.merged)
    _count(fresh)
    return fresh


def _count(fresh: Workspace) -> None:
    """The number of each class's training images and the sum of their normalised vectors, written out."""
    snapshot = fresh.snapshot()
    images = image_set(snapshot, "train")
    rows = []
    for class_id in sorted(set(images.class_ids.tolist())):
        own = images.features[images.class_ids == class_id].double()
        total = (own / own.norm(dim=1, keepdim=True)).sum(0)
        fp = snapshot.commit.image_fp if snapshot.commit else ""
        rows.append({"class_id": class_id, "image_fp": fp, "images": len(own), "sum": total.tolist()})
    with fresh.transaction("count") as tx:
        tx.upsert("class_stats", pa.Table.from_pylist(rows, schema=class_stats(len(total))))


def state(workspace: Workspace) -> dict[str, object]:
    """All rows that a reader sees, but when classes were made, and what the commit names."""
    snapshot = workspace.snapshot()
    commit = snapshot.commit
    rows = {n: snapshot.table(n).sort_by(KEYS[n]).to_pylist() for n in KEYS if snapshot.count(n)}
    for row in rows["classes"]:
        del row["created_at"]
    return {**rows, "head": commit.head, "fusion": commit.fusion, "info": commit.info}


def losses(workspace: Workspace) -> dict[str, float]:
    """Sentence id to the difference of both terms: L_lin, also where the class has no image to measure it by."""
    rows = workspace.snapshot().table("sentence_scores")
    terms = zip(*(rows[column].to_pylist() for column in ("sentence_id", "lse", "positive")), strict=True)
    return {sentence: lse - positive for sentence, lse, positive in terms}


def anchors(workspace: Workspace) -> dict[str, tuple[int, int]]:
    """Sentence id to class and rank."""
    rows = workspace.snapshot().table("anchors").to_pylist()
    return {r["sentence_id"]: (r["class_id"], r["rank"]) for r in rows}


def probabilities(workspace: Workspace, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class ids [C] and probabilities [B, C] with exhaustive retrieval."""
    scorer = Model.open(workspace.snapshot())
    return scorer.class_ids, scorer.exhaustive(features).probabilities
