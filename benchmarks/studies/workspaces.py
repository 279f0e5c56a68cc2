"""Workspaces over the shipped data sets that several studies measure: their files, recipes, steps and seconds."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.datasets.files import NAMES
from vlltr_index.anchors.selection import select
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.schemas.config import Recipe, WorkspaceConfig
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace

__all__ = [
    "SPLITS",
    "StepSeconds",
    "about",
    "bits",
    "by_data",
    "decided",
    "in_top5",
    "made",
    "permuted",
    "seeded",
]

SPLITS = ("train", "val", "test")


def about(workspace: Workspace) -> str:
    """Return which of `DATA` a workspace's recipe is for."""
    return workspace.recipe.name.partition("/")[0]


def seeded(data: str, seed: int) -> Recipe:
    """Return the recipe for one of `DATA`, every training in it from one seed."""
    parts = ("cvlp", "lgr", "baseline")
    recipe = load_recipe(f"{data}/ours")
    return override(recipe, tuple(f"{part}.seed={seed}" for part in parts))


def made(
    path: Path,
    recipe: Recipe,
    texts: Path,
    images: Path,
    seconds: StepSeconds,
    splits: Sequence[str] = SPLITS,
    left_out: Sequence[str] = (),
) -> Workspace:
    """Return the workspace in `path` with all steps done but those `left_out`; `vlltr.toml` is written anew."""
    there = (path / "vlltr.toml").exists()
    workspace = Workspace(path, WorkspaceConfig(recipe=recipe)) if there else Workspace.create(path, recipe)
    workspace.write_config()
    with seconds("ingest"):
        ingest_text(workspace, texts)
        for split in splits:
            ingest_images(workspace, images, split)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("train cvlp", lambda: train_cvlp_stage(workspace, recipe.cvlp)),
        ("embed", lambda: embed(workspace)),
        ("select", lambda: select(workspace, recipe.select)),
        ("train lgr", lambda: train_lgr_stage(workspace, recipe.lgr)),
        ("index", lambda: index_anchors(workspace)),
    ]
    done = {commit.command for commit in workspace.history.list()} | set(left_out)
    for name, step in steps:
        if name not in done:
            with seconds(name):
                step()
    return workspace


def permuted(texts: Path, target: Path) -> Path:
    """Write the texts with each class's sentences given to another one, the same at every call; returns `target`."""
    told: dict[str, list[str]] = json.loads(texts.read_text(encoding="utf-8"))
    order = sorted(told)
    random.Random(0).shuffle(order)  # a cycle through all classes: none keeps its own
    giver = dict(zip(order, [*order[1:], order[0]], strict=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({name: told[giver[name]] for name in told}), encoding="utf-8")
    return target


def decided(parts: RuleParameters) -> dict[str, Any]:
    """Return what `train lgr` decided."""
    return asdict(parts.weights) | {"text_r2": parts.shared.text_r2}


class StepSeconds:
    """Wall seconds of each step, kept in a file beside the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str) -> StepSeconds:
        self._name = name
        self._start = time.monotonic()
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.values.setdefault(self._name, round(time.monotonic() - self._start, 1))
        self._path.write_text(json.dumps(self.values))


def in_top5(scores: Tensor, labels: Tensor) -> Tensor:
    """Return whether each image's class int64 [N] is among the five best of scores [N, C], bool [N]."""
    return (scores.topk(min(5, scores.shape[1]), 1).indices == labels[:, None]).any(1)


def bits(values: Tensor) -> str:
    """Return booleans as a text of ones and zeros."""
    return "".join("1" if v else "0" for v in values.tolist())


def by_data(found: Mapping[str, str]) -> str:
    """Return parts of a page under the names of their data sets; they are given by data set."""
    return "\n".join(f"## {NAMES[data]}\n\n{part}" for data, part in found.items())
