"""How each step is set up at one size; what is returned does the step and nothing else."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed import anss, lgr_common
from benchmarks.speed.anss.common import tensors
from benchmarks.speed.lgr_training.ours import prepare as lgr_step
from benchmarks.speed.retrieval import inputs as retrieval_inputs
from benchmarks.speed.retrieval.common import State, built
from benchmarks.speed.store.common import schema, table
from vlltr_index.anchors.anss import score_sentences
from vlltr_index.anchors.index import build_index
from vlltr_index.anchors.selection import select
from vlltr_index.classes import add_class
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.tables import Store
from vlltr_index.store.workspace import Workspace

__all__ = ["MAKERS"]

Work = Callable[[], object]
_DIM = 128
_ANCHORS = 16


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="vlltr-growth-"))


def _workspace(folder: Path, *overrides: str) -> Workspace:
    return Workspace.create(
        folder / "ws", load_recipe("glyphs_lt/ours", ("encoder.pretrained=glyphs", *overrides))
    )


def _texts(folder: Path, classes: int, each: int) -> Path:
    path = folder / "texts.json"
    names = (f"class {c:05}" for c in range(classes))
    path.write_text(
        json.dumps({n: [f"Sentence {i} of {n} is about it." for i in range(each)] for n in names})
    )
    return path


def _images(folder: Path, classes: int, each: int) -> Path:
    rng = np.random.default_rng(0)
    for c, i in itertools.product(range(classes), range(each)):
        path = folder / "images" / f"class {c:05}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(path)
    return folder / "images"


def ingest_sentences(size: int) -> Work:
    """`vlltr ingest text` into an empty workspace."""
    source = _texts(_folder(), size // 10, 10)
    return lambda: ingest_text(_workspace(_folder()), source)


def ingest_pictures(size: int) -> Work:
    """`vlltr ingest images` into an empty workspace."""
    source = _images(_folder(), size // 10, 10)
    return lambda: ingest_images(_workspace(_folder()), source, "train")


def write_vectors(size: int) -> Work:
    """Vectors appended to a new table, as `vlltr embed` does."""
    vectors = np.random.default_rng(0).standard_normal((size, _DIM), dtype=np.float32)
    rows = table({"vectors": vectors}, {"rows": size, "dim": _DIM, "portion": 1.0})

    def work() -> None:
        store = Store(_folder())
        store.create("t", schema(_DIM), "text_hash")
        store.append("t", rows)

    return work


def _select(sentences: int, images: int) -> Work:
    values = {"classes": 100, "sentences": sentences, "images": images, "dim": _DIM, "portion": 1.0}
    state = tensors(anss.inputs(values), values)
    return lambda: score_sentences(*state, anss.SCALE).loss


def _state(classes: int) -> tuple[State, dict[str, Any]]:
    values = {"classes": classes, "anchors": _ANCHORS, "dim": _DIM, "portion": 1.0}
    return built(retrieval_inputs(values), values, "auto"), values


def index(size: int) -> Work:
    """The kind that the product picks, over 16 anchors a class."""
    state, _ = _state(size)
    return lambda: build_index(state.unit, state.keys)


def retrieve(size: int) -> Work:
    """One image, by way of the index."""
    state, _ = _state(size)
    image = state.images[:1]
    return lambda: state.score(image)


def step(size: int) -> Work:
    """Forward, backward and optimizer, B = 64."""
    values = {"classes": size, "anchors": _ANCHORS, "dim": _DIM, "batch": 64, "portion": 1.0}
    made = lgr_step(lgr_common.inputs(values), values)
    made()
    return made


def add(size: int) -> Work:
    """`vlltr classes add` of one class with three sentences and two images, into a workspace of so many classes."""
    folder = _folder()
    workspace = _workspace(folder, "lgr.views=1", "lgr.epochs=1")
    ingest_text(workspace, _texts(folder, size, 3))
    ingest_images(workspace, _images(folder, size, 2), "train")
    embed(workspace)
    select(workspace, workspace.recipe.select)
    train_lgr_stage(workspace, workspace.recipe.lgr)
    index_anchors(workspace)
    numbers = itertools.count()

    def work() -> object:
        name = f"new {next(numbers)}"
        new = _images(_folder(), 1, 2) / "class 00000"
        return add_class(workspace, name, [f"The {name} has {n} corners." for n in range(3)], new)

    work()
    return work


MAKERS: dict[tuple[str, str], Callable[[int], Work]] = {
    ("ingest text", "sentences"): ingest_sentences,
    ("ingest images", "images"): ingest_pictures,
    ("write vectors", "sentences"): write_vectors,
    ("select", "sentences"): lambda size: _select(size, 2_000),
    ("select", "images"): lambda size: _select(2_000, size),
    ("index", "classes"): index,
    ("retrieve one image", "classes"): retrieve,
    ("LGR step", "classes"): step,
    ("classes add", "classes"): add,
}
