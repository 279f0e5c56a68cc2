"""The figures on Glyphs-LT: method and image-only baseline at equal image budget, new classes from text alone.

    python -m benchmarks.glyphs_lt run --seed 0 --dir runs    one seed, resumable; to results/glyphs_lt-0.json
    python -m benchmarks.glyphs_lt table                      all seeds' results to docs/results.md and results.json

Each row of one seed is evaluated on the same images; differences are paired. The final held-out classes are read here
and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vlltr_index.classes import NewClass, add_classes
from vlltr_index.glyphs import GlyphFiles, glyph_files
from vlltr_index.loading import class_positions, image_set
from vlltr_index.recipe import load_recipe, override
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.scoring import load_scorer
from vlltr_index.selection import select
from vlltr_index.stages.baselines import score_fc
from vlltr_index.stages.build_index import index_anchors
from vlltr_index.stages.embed import embed
from vlltr_index.stages.evaluate import training_counts
from vlltr_index.stages.ingest import ingest_images, ingest_text
from vlltr_index.stages.train_baseline import train_baseline_stage
from vlltr_index.stages.train_cvlp import train_cvlp_stage
from vlltr_index.stages.train_lgr import train_lgr_stage
from vlltr_index.workspace import Workspace

RESULTS = Path(__file__).parent / "results"
RECIPE = "glyphs_lt/ours"


def run(seed: int, folder: Path) -> None:
    """Train and evaluate one seed; a step that is done is not done again."""
    data, seconds = glyph_files(), Clock(folder / f"seconds-{seed}.json")
    recipe = override(load_recipe(RECIPE), (f"cvlp.seed={seed}", f"lgr.seed={seed}", f"baseline.seed={seed}"))
    path = folder / f"seed-{seed}"
    workspace = Workspace.open(path) if (path / "vlltr.toml").exists() else Workspace.create(path, recipe)
    workspace.write_config(
        WorkspaceConfig(recipe=recipe)
    )  # the fusion values may be newer than the workspace
    with seconds("ingest"):
        ingest_text(workspace, data.texts)
        for split in ("train", "val", "test"):
            ingest_images(workspace, data.images, split)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("train cvlp", lambda: train_cvlp_stage(workspace, recipe.cvlp)),
        ("embed", lambda: embed(workspace)),
        ("select", lambda: select(workspace, recipe.select)),
        ("train lgr", lambda: train_lgr_stage(workspace, recipe.lgr)),
        ("index", lambda: index_anchors(workspace)),
        ("train baseline fc", lambda: train_baseline_stage(workspace, recipe.baseline)),
    ]
    done = {commit.command for commit in workspace.history.list()}
    for name, step in steps:
        if name not in done:
            with seconds(name):
                step()
    with workspace.transaction("fusion values of the recipe") as tx:
        tx.set(fusion=recipe.fusion)
    result = {
        "seed": seed,
        "recipe": recipe.model_dump(mode="json"),
        "protocol": recipe.protocol,
        "dataset": json.loads((data.folder / "manifest.json").read_text(encoding="utf-8"))["content_sha256"],
        **surroundings(),
        "seconds": seconds.values,
        **_measure(workspace, data),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"glyphs_lt-{seed}.json").write_text(json.dumps(result, sort_keys=True, indent=1) + "\n")


def surroundings() -> dict[str, Any]:
    """Versions of the libraries, and the machine."""
    names = ("torch", "open_clip_torch", "lancedb", "faiss-cpu", "vlltr-index")
    return {
        "versions": {n: version(n) for n in names},
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


class Clock:
    """Wall seconds of each step, kept in a file beside the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str) -> Clock:
        self._name, self._start = name, time.monotonic()
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.values.setdefault(self._name, round(time.monotonic() - self._start, 1))
        self._path.write_text(json.dumps(self.values))


def _measure(workspace: Workspace, data: GlyphFiles) -> dict[str, Any]:
    snapshot = workspace.snapshot()
    scorer, test = load_scorer(workspace, snapshot), image_set(snapshot, "test")
    counts = training_counts(snapshot, scorer.class_ids)
    labels = class_positions(scorer.class_ids, test.class_ids)
    fused = scorer.exhaustive(test.features)
    rows = {
        "vl-ltr": fused.probabilities,
        "image branch": fused.by_image,
        "text branch": fused.by_text,
        **{row.label: row.scores for row in score_fc(workspace, snapshot, "test", test.image_ids)},
    }
    right = {name: bits(scores.argmax(1) == labels) for name, scores in rows.items()}
    top5 = {
        name: bits((scores.topk(5, 1).indices == labels[:, None]).any(1)) for name, scores in rows.items()
    }
    return {
        "counts": counts[labels].tolist(),
        "right": right,
        "top5": top5,
        "new": {group: _new_classes(workspace, data, group) for group in ("dev", "final")},
    }


def _new_classes(workspace: Workspace, data: GlyphFiles, group: str) -> dict[str, Any]:
    """Add the held-out classes of a group from text alone to a copy of the workspace, and measure."""
    copy = workspace.path.with_name(f"{workspace.path.name}-{group}")
    shutil.rmtree(copy, ignore_errors=True)
    other = Workspace.open(shutil.copytree(workspace.path, copy))
    test = image_set(other.snapshot(), "test")
    alone = load_scorer(other, other.snapshot())
    before = alone.class_ids[alone.exhaustive(test.features).probabilities.argmax(1)] == test.class_ids
    add_classes(other, [NewClass(name, tuple(texts)) for name, texts in data.heldout_classes(group).items()])
    ingest_images(other, data.images, f"{group}_test")
    embed(other, views=1)
    snapshot = other.snapshot()
    scorer, new = load_scorer(other, snapshot), image_set(snapshot, f"{group}_test")
    chances = scorer.exhaustive(new.features).probabilities
    after = scorer.class_ids[scorer.exhaustive(test.features).probabilities.argmax(1)] == test.class_ids
    best = scorer.class_ids[chances.topk(5, 1).indices]
    shutil.rmtree(copy)
    return {
        "right": bits(best[:, 0] == new.class_ids),
        "top5": bits((best == new.class_ids[:, None]).any(1)),
        "old_before": bits(before),
        "old_after": bits(after),
    }


def bits(values: torch.Tensor) -> str:
    """Booleans as a text of ones and zeros."""
    return "".join("1" if v else "0" for v in values.tolist())


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--dir", type=Path, required=True)
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "run":
        args.dir.mkdir(parents=True, exist_ok=True)
        run(args.seed, args.dir)
    else:
        from benchmarks.glyphs_lt_table import write

        write()


if __name__ == "__main__":
    main()
