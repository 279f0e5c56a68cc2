"""A workspace in which some classes have pictures alone and others texts alone, from the first step to an export."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.parts import check_parts
from vlltr_index.examination import Examination
from vlltr_index.glyphs import glyph_files
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import EncoderConfig, LGRConfig, Recipe
from vlltr_index.selection import select
from vlltr_index.stages.build_index import index_anchors
from vlltr_index.stages.embed import embed
from vlltr_index.stages.evaluate import evaluate
from vlltr_index.stages.ingest import ingest_images, ingest_text
from vlltr_index.stages.train_lgr import train_lgr_stage
from vlltr_index.workspace import Workspace

CLASSES, TRAIN, TEST = 6, 5, 2


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Folders `train` and `test` with some pictures of six classes, and the classes' names."""
    folder, data = tmp_path_factory.mktemp("glyphs"), glyph_files(fast=True)
    rows = pq.read_table(data.images, columns=["image", "label", "split"]).to_pylist()
    of = {split: [r for r in rows if r["split"] == split] for split in ("train", "test")}
    counts = {r["label"]: 0 for r in of["train"]}
    for row in of["train"]:
        counts[row["label"]] += 1
    names = sorted(name for name, count in counts.items() if count >= TRAIN)[3::8][:CLASSES]
    for split, most in (("train", TRAIN), ("test", TEST)):
        for name in names:
            for number, row in enumerate([r for r in of[split] if r["label"] == name][:most]):
                target = folder / split / name / f"{number}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(row["image"])
    return folder, names


def build(folder: Path, images: Path, texts: dict[str, list[str]]) -> Workspace:
    """A workspace of the shipped encoder, with a head and an index; no prompts."""
    recipe = Recipe(
        name="test",
        prompts=(),
        encoder=EncoderConfig(model="vlltr-tiny", pretrained="glyphs"),
        lgr=LGRConfig(views=1, lr=3e-2, projection_lr=3e-2, batch_size=16),
    )
    workspace = Workspace.create(folder / "workspace", recipe)
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    ingest_text(workspace, folder / "texts.json")
    for split in ("train", "test"):
        ingest_images(workspace, images / split, split)
    embed(workspace)
    select(workspace, recipe.select)
    train_lgr_stage(workspace, recipe.lgr)
    index_anchors(workspace)
    return workspace


def answered(workspace: Workspace, image: Path, folder: Path) -> list[str]:
    """What it answers, best first: the same by the index, in full, and from an export; parts add up."""
    recognizer = Recognizer.open(workspace)
    names = []
    recognizer.export(folder / "model")
    for asked in (recognizer, Recognizer.from_pretrained(folder / "model")):
        for retrieval in ("faiss", "exhaustive"):
            (found,) = asked.predict([image], top=99, explain=2, retrieval=retrieval)
            assert found.problem is None
            check_parts(found.classes)
            names.append([one.name for one in found.classes])
        assert asked.explain(image, names[0][0]).name == names[0][0]
    assert all(one == names[0] for one in names)
    looked = Examination.of(recognizer.current(), image).best(99)
    assert [one.name for one in looked] == names[0]
    return names[0]


def test_some_classes_by_pictures_and_some_by_texts(glyphs: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Two classes have no sentence, and two no image: all are answered, and those with images are trained."""
    images, names = glyphs
    texts = json.loads(glyph_files(fast=True).texts.read_text(encoding="utf-8"))
    others = [name for name in sorted(texts) if name not in names][:2]
    workspace = build(tmp_path, images, {name: texts[name] for name in (*names[2:], *others)})
    scorer = Recognizer.open(workspace).scorer
    assert int(scorer.trained.sum()) == CLASSES
    assert sorted(answered(workspace, images / "test" / names[0] / "0.png", tmp_path)) == sorted(
        [*names, *others]
    )
    assert evaluate(workspace, bootstrap=5).rows["vl-ltr"].top1["overall"].value > 0.8
