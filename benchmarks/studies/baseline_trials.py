"""Settings of the image-only baseline, each judged on fonts or families of the training split that it did not see.

    python -m benchmarks baseline_trials run --trial 0 --dir runs    one of TRIALS, resumable; with --data icons_lt too

The training images of 20 font groups, or families of icons, are
held out; a trial trains on the others as the study long_tailed does and is judged by the accuracy on the
held-out ones, each class counted alike. The test split is not read. There are as many trials as the method had.
"""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.workspaces import DATA, GLYPHS, StepSeconds, add_data, by_data, dataset, files_of
from benchmarks.study import Command, Study, add_folder
from vlltr_index.embedding.loading import usable_images
from vlltr_index.heads.weighing import balanced_accuracy
from vlltr_index.pipelines.baseline_scores import score_baselines
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.train_baseline import train_baseline_stage
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

HELD_GROUPS = 20
TRIALS: tuple[tuple[str, ...], ...] = (
    ("baseline.lr=2e-3",),  # the method's
    ("baseline.lr=1e-3",),
    ("baseline.lr=4e-3",),
    ("baseline.lr=2e-3", "baseline.weight_decay=0.2"),
    ("baseline.lr=2e-3", "baseline.logit_adjustment=1.0"),
)
SETTINGS = ("lr", "weight_decay", "logit_adjustment")
FEW = 20
FEW5 = 5


def held_groups(table: pa.Table) -> list[str]:
    """The font groups or families of split train whose images are held out, by a hash of their names."""
    rows = table.filter(pc.equal(table["split"], "train"))
    groups = {source.split("/")[0] for source in rows["source"].to_pylist()}
    return sorted(groups, key=lambda g: hashlib.sha256(f"held:{g}".encode()).hexdigest())[:HELD_GROUPS]


def without_held(table: pa.Table, held: Sequence[str]) -> pa.Table:
    """Split train with the held-out groups' images in split `held`; classes that have no others are left out."""
    rows = table.filter(pc.equal(table["split"], "train"))
    names = set(held)
    out = pa.array([source.split("/")[0] in names for source in rows["source"].to_pylist()])
    stay = pc.unique(rows.filter(pc.invert(out))["label"])
    rows = rows.set_column(rows.column_names.index("split"), "split", pc.if_else(out, "held", "train"))
    return rows.filter(pc.is_in(rows["label"], stay))


def run(data: str, trial: int, folder: Path) -> None:
    """Train and judge one trial; a trial that was stopped goes on."""
    files = files_of(data)
    recipe = override(load_recipe(f"{data}/ours"), TRIALS[trial])
    path = folder / f"trial-{trial}"
    seconds = StepSeconds(folder / f"seconds-trial-{trial}.json")
    table = pq.read_table(files.images)
    held = held_groups(table)
    workspace = Workspace.open(path) if (path / "vlltr.toml").exists() else Workspace.create(path, recipe)
    images = folder / f"trial-{trial}.parquet"
    pq.write_table(without_held(table, held), images)
    for split in ("train", "held"):
        ingest_images(workspace, images, split)
    with seconds("train baseline fc"):
        train_baseline_stage(workspace, recipe.baseline)
    result = {
        "held": held,
        "dataset": dataset(files),
        "recipe": recipe.name,
        "settings": {key: getattr(recipe.baseline, key) for key in SETTINGS},
        **surroundings(),
        "seconds": seconds.values,
        **_judge(workspace),
    }
    keep("baseline_trials", f"{data}/{trial}", result)


def _judge(workspace: Workspace) -> dict[str, Any]:
    """Accuracy on split `held`, each class counted alike: over all classes, and over those with few images."""
    snapshot = workspace.snapshot()
    images = usable_images(snapshot, "held", [])
    owners = torch.tensor(images["class_id"].to_pylist())
    rows: dict[str, Any] = {}
    counts: Tensor | None = None
    for row, scores in score_baselines(workspace, snapshot, "held", images["image_id"].to_pylist()):
        labels = class_positions(row.class_ids, owners)
        if counts is None:
            counts = training_counts(snapshot, row.class_ids)[labels]
        parts = {"overall": counts > 0, "few": counts <= FEW, "few5": counts <= FEW5}
        rows[row.label] = {
            name: round(balanced_accuracy(scores[part], labels[part]), 4) for name, part in parts.items()
        }
    return {"images": len(owners), "top1": rows}


def parts() -> dict[str, str]:
    """Return the trials of each data set."""
    kept = read("baseline_trials")
    found = {data: {n: t for n, t in kept.items() if n.startswith(f"{data}/")} for data in DATA}
    tables = {data: generated(trials) for data, trials in found.items() if trials}
    return {"results/baseline_trials.md": by_data(tables)} if tables else {}


def generated(trials: Mapping[str, Any]) -> str:
    """Return the trials as Markdown."""
    first = next(iter(trials.values()))
    what = "font groups" if first["recipe"].startswith(GLYPHS) else "families"
    lines = [
        f"{len(trials)} trials, recipe `{first['recipe']}`, seed 0, judged on {first['images']:,} images of"
        f" {len(first['held'])} {what} of the training split that the trial did not see; top-1 in per cent, each"
        " class counted alike (few, few5: classes with at most 20, 5 training images that are left).",
        "",
        "| lr | weight decay | logit adjustment in training | row | overall | few | few5 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, trial in sorted(trials.items()):
        settings = " | ".join(f"{trial['settings'][key]:g}" for key in SETTINGS)
        for name, figures in trial["top1"].items():
            cells = " | ".join(f"{100 * figures[k]:.1f}" for k in ("overall", "few", "few5"))
            lines.append(f"| {settings} | {name} | {cells} |")
    return "\n".join(lines) + "\n"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--trial", type=int, required=True, choices=range(len(TRIALS)))
    add_folder(parser)
    add_data(parser)


STUDY = Study({"run": Command(run, _arguments)}, parts)
