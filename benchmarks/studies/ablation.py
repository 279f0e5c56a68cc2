"""The ablation of Table 4 (Tian et al. 2022) on Glyphs-LT.

    python -m benchmarks ablation run --seed 0 --dir runs    one seed, resumable

One seed is three runs of stage 1, and a head or votes for each of the seven rows. `--rows 1 7` runs those alone: what
is done is kept, and the result is written once all seven rows are.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.workspaces import SPLITS, StepSeconds, dataset
from benchmarks.study import Command, Study, add_folder
from vlltr_index.data.glyphs import GlyphFiles, glyph_files
from vlltr_index.embedding.loading import image_set
from vlltr_index.evaluation.metrics import AccuracyReport, accuracy_report
from vlltr_index.evaluation.rules import HeadTraining, best_setting, fc_head, linear_logits
from vlltr_index.pipelines.baseline_scores import score_baselines
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate, training_counts
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_baseline import train_baseline
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.schemas.config import Recipe, WorkspaceConfig
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

RECIPE = "glyphs_lt/ablation"
BINS = ("overall", "many", "medium", "few", "few5", "new")
GOALS = (
    (1, 7, "AnSS less cut-off"),
    (1, 2, "CVLP less none"),
    (1, 4, "with distillation less without"),
    (4, 3, "pretrained weights less none"),
    (1, 5, "LGR less FC"),
    (1, 6, "LGR less KNN"),
)


@dataclass(frozen=True)
class Row:
    """What a row of the table is about, in the table's words."""

    weights: str
    cvlp: str
    head: str
    sentences: str


ROWS = {
    1: Row("yes", "with distillation", "LGR", "AnSS"),
    2: Row("yes", "none", "LGR", "AnSS"),
    3: Row("no", "without distillation", "LGR", "AnSS"),
    4: Row("yes", "without distillation", "LGR", "AnSS"),
    5: Row("yes", "with distillation", "FC", "-"),
    6: Row("yes", "with distillation", "KNN", "-"),
    7: Row("yes", "with distillation", "LGR", "cut-off"),
}


def run(seed: int, folder: Path, rows: Sequence[int]) -> None:
    """Run rows of one seed; a row that is done is not done again, and the result is kept once all are."""
    data = glyph_files()
    cells = []
    for number in rows:
        path = folder / f"ablation-{seed}-{number}.json"
        if not path.exists():
            cell = _cell(data, folder, number, seed)
            path.write_text(json.dumps(cell, sort_keys=True, indent=1) + "\n", encoding="utf-8")
        cells.append(json.loads(path.read_text(encoding="utf-8")))
    if len(cells) == len(ROWS):
        facts = {"seed": seed, "dataset": dataset(data), "recipe": RECIPE, "cells": cells}
        keep("ablation", str(seed), {**facts, "protocol": load_recipe(RECIPE).protocol})


def recipe_of(row: Row, seed: int) -> Recipe:
    """The recipe as the row needs it; everything that the row does not name stays."""
    values = [f"cvlp.seed={seed}", f"lgr.seed={seed}"]
    if row.weights == "no":
        values.append("encoder.pretrained=none")
    if row.cvlp != "with distillation":
        values += ["cvlp.distillation='none'", "cvlp.distillation_weight=0.0"]
    if row.sentences == "cut-off":
        values.append("select.mode=cutoff")
    return override(load_recipe(RECIPE), tuple(values))


def _cell(data: GlyphFiles, folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Train and evaluate one row; rows with the same stage 1 share a workspace."""
    row = ROWS[number]
    recipe = recipe_of(ROWS[number], seed)
    name = f"ablation-{seed}-{row.weights}-{row.cvlp}".replace(" ", "-")
    stage = StepSeconds(folder / f"seconds-{name}.json")
    head = StepSeconds(folder / f"seconds-{name}-{number}.json")
    path = folder / name
    workspace = Workspace.open(path) if (path / "vlltr.toml").exists() else Workspace.create(path, recipe)
    workspace.write_config(WorkspaceConfig(recipe=recipe))
    ingest_text(workspace, data.texts)
    for split in SPLITS:
        ingest_images(workspace, data.images, split)
    if row.cvlp != "none" and workspace.history.last().checkpoint is None:
        with stage("stage 1"):
            train_cvlp_stage(workspace, recipe.cvlp)
    with head("the rest"):
        report = _report(workspace, row.head)
    seconds = {"stage 1": 0.0, **stage.values, **head.values}
    return {"row": number, "seed": seed, "seconds": seconds, **surroundings(), **asdict(report)}


def _report(workspace: Workspace, head: str) -> AccuracyReport:
    if head == "LGR":
        train_all(workspace, workspace.recipe, stage_one=False)
        return evaluate(workspace).rows["vl-ltr"]
    embed(workspace)
    test = image_set(workspace.snapshot(), "test")
    if head == "KNN":
        train_baseline(workspace, "knn", workspace.recipe.baselines)
        ((row, scores),) = score_baselines(workspace, workspace.snapshot(), "test", test.image_ids)
        class_ids = row.class_ids
    else:
        class_ids, scores = _linear(workspace, test.features)
    best = scores.topk(5, dim=1).indices
    labels = class_positions(class_ids, test.class_ids)
    return accuracy_report(best, labels, training_counts(workspace.snapshot(), class_ids))


def _linear(workspace: Workspace, features: Tensor) -> tuple[Tensor, Tensor]:
    """Class ids [C], and scores [N, C] by a linear layer trained on stored vectors in all views with stage 2's numbers.

    The learning rate is the one of the recipe's `baselines.lrs` that does best on split val.
    """
    snapshot = workspace.snapshot()
    recipe = workspace.recipe.lgr
    train = image_set(snapshot, "train")
    val = image_set(snapshot, "val")
    rest = [image_set(snapshot, "train", view, recipe.augment).features for view in range(1, recipe.views)]
    class_ids, labels = torch.unique(train.class_ids, return_inverse=True)
    views = torch.stack([train.features, *rest])

    def trained(lr: float) -> tuple[Tensor, Tensor]:
        training = HeadTraining(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            lr=lr,
            sampler_power=recipe.sampler_power,
            logit_adjustment=recipe.logit_adjustment,
            seed=recipe.seed,
        )
        return fc_head(views, labels, len(class_ids), training)

    heads = [trained(lr) for lr in workspace.recipe.baselines.lrs]
    best, _ = best_setting(
        heads,
        lambda head: linear_logits(val.features, *head),
        class_positions(class_ids, val.class_ids),
    )
    return class_ids, linear_logits(features, *best)


def parts() -> dict[str, str]:
    """Return the tables of all seeds."""
    runs = list(read("ablation").values())
    return {"results/ablation.md": generated(runs)} if runs else {}


def generated(runs: Sequence[dict[str, Any]]) -> str:
    """The table, what each part is worth, and how long it took, as Markdown."""
    first = runs[0]
    cells = [cell for run in runs for cell in run["cells"]]
    versions = cells[0]["versions"]
    machine = cells[0]["machine"]
    lines = [
        f"Data set `{first['dataset'][:16]}` (sha256), recipe `{first['recipe']}`, protocol "
        f"{first['protocol']}, seeds {', '.join(str(r['seed']) for r in runs)}; "
        f"{cells[0]['top1']['overall']['images']:,} test images; torch {versions['torch']}, open_clip "
        f"{versions['open_clip_torch']}; {machine['cores']} cores, {machine['threads']} thread a run. Top-1 in per "
        "cent, mean over the seeds and their standard deviation; release bounds (many >= 100, few <= 20; few5 <= 5).",
        "",
        markdown(cells),
        "The same seeds compared, in points:",
        "",
        "| | overall | few |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {_difference(runs, a, b, 'overall')} | {_difference(runs, a, b, 'few')} |"
            for a, b, name in GOALS
        ),
        "",
        "Seconds, one thread (rows 1, 5, 6 and 7 share a stage 1):",
        "",
        "| seed | " + " | ".join(f"row {n}" for n in ROWS) + " |",
        "| --- |" + " --- |" * len(ROWS),
        *(f"| {r['seed']} | " + " | ".join(_seconds(c) for c in r["cells"]) + " |" for r in runs),
    ]
    return "\n".join(lines) + "\n"


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """The table of the rows there are: top-1 in per cent, mean and (with several seeds) standard deviation."""
    bins = [name for name in BINS if name in cells[0]["top1"]]
    head = ["", "weights", "CVLP", "head", "sentences", *bins]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --- |" * (len(head) - 1)]
    for number, row in ROWS.items():
        mine = [cell for cell in cells if cell["row"] == number]
        if mine:
            figures = (_spread([100 * cell["top1"][name]["value"] for cell in mine]) for name in bins)
            lines.append("| " + " | ".join([str(number), *asdict(row).values(), *figures]) + " |")
    return "\n".join(lines) + "\n"


def _difference(runs: Sequence[dict[str, Any]], first: int, second: int, name: str) -> str:
    def top1(run: dict[str, Any], row: int) -> float:
        return float(next(c for c in run["cells"] if c["row"] == row)["top1"][name]["value"])

    return _spread([100 * (top1(run, first) - top1(run, second)) for run in runs], "+")


def _spread(values: Sequence[float], sign: str = "") -> str:
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _seconds(cell: dict[str, Any]) -> str:
    return f"{cell['seconds']['stage 1']:.0f} + {cell['seconds']['the rest']:.0f}"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, required=True)
    add_folder(parser)
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=tuple(ROWS))


STUDY = Study({"run": Command(run, _arguments)}, parts)
