"""The figures on Glyphs-LT or Icons-LT: the method, image-only at equal image budget, and the method without text.

    python -m benchmarks long_tailed run --seed 0 --dir runs                     resumable; with --data icons_lt too
    python -m benchmarks long_tailed run --seed 0 --dir runs --texts permuted
    python -m benchmarks long_tailed table

hypothesis: vl-ltr less linear + generative without text is above 0 on few-shot classes

Each row of one seed is evaluated on the same images; differences are paired, their intervals cluster by class. With
`--texts permuted` each class has another one's sentences from stage 1 on. The image-only rows are those of an earlier
result of the seed, which does not depend on the method; `--baseline` trains them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.datasets.files import add_data, digest, files_of
from benchmarks.kept import read, surroundings
from benchmarks.studies.long_tailed.table import page, summary
from benchmarks.studies.long_tailed.without_text import (
    WHOLE,
    held_out,
    rows_without_text,
    training_data,
    without_branch,
)
from benchmarks.studies.paired import METHOD, WITHOUT_BRANCH, keep_run
from benchmarks.studies.workspaces import (
    StepSeconds,
    bits,
    decided,
    in_top5,
    made,
    permuted,
    seeded,
)
from benchmarks.study import Command, Study, add_folder
from vlltr_index.embedding.loading import image_set, usable_images
from vlltr_index.evaluation.compared import ADJUSTED
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.heads.weighing import fit_temperature
from vlltr_index.pipelines.baseline_scores import FC, score_baselines
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.train_baseline import train_baseline_stage
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions
from vlltr_index.train.training_set import TrainingSet

TEXTS = ("true", "permuted")


def run(data: str, seed: int, folder: Path, texts: str = "true", baseline: bool = False) -> None:
    """Train and evaluate one seed; a step that is done is not done again."""
    name = f"seed-{seed}" if texts == "true" else f"seed-{seed}-{texts}"
    files = files_of(data)
    recipe = seeded(data, seed)
    seconds = StepSeconds(folder / f"seconds-{name}.json")
    told = files.texts if texts == "true" else permuted(files.texts, folder / "texts-permuted.json")
    workspace = made(folder / name, recipe, told, files.images, seconds)
    if baseline and "train baseline fc" not in {c.command for c in workspace.history.list()}:
        with seconds("train baseline fc"):
            train_baseline_stage(workspace, recipe.baseline)
    result = {
        "seed": seed,
        "texts": texts,
        "recipe": recipe.name,
        "epochs": recipe.baseline.epochs,
        "dataset": digest(files),
        **surroundings(),
        "seconds": seconds.values,
        **measure(workspace, baseline),
    }
    unit = f"{data}/{texts}/{seed}"
    earlier = read("long_tailed").get(f"{data}/true/{seed}")
    if earlier is not None and not baseline:
        facts = {key: earlier[key] for key in ("versions", "machine")}
        facts["seconds"] = earlier["seconds"].get("train baseline fc")
        result["baseline"] = earlier.get("baseline", facts)
    keep_run("long_tailed", unit, result, stay=() if baseline else (FC, ADJUSTED))


def measure(workspace: Workspace, baseline: bool) -> dict[str, Any]:
    """Which test images each row has right, and what was decided; the image-only rows where there is a `baseline`."""
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    counts = training_counts(snapshot, scorer.class_ids)
    labels = class_positions(scorer.class_ids, test.class_ids)
    fused = scorer.exhaustive(test.features)
    data = training_data(workspace, snapshot)
    plain, parts = rows_without_text(data, scorer, test.features)
    tempered = _tempered(data, scorer, test.features)
    rows = (
        {METHOD: fused.probabilities, WITHOUT_BRANCH: without_branch(scorer, test.features)}
        | tempered
        | plain
    )
    if baseline:
        found = score_baselines(workspace, snapshot, "test", test.image_ids)
        rows |= {row.label: scores for row, scores in found if row.label in (FC, ADJUSTED)}
    chances = {METHOD: fused.probabilities, WHOLE: rows[WHOLE].softmax(1)}
    chances |= {name: scores.softmax(1) for name, scores in tempered.items()}
    assert scorer.saved.parts is not None
    return {
        "counts": counts[labels].tolist(),
        "labels": labels.tolist(),
        "groups": usable_images(snapshot, "test", ["group"])["group"].to_pylist(),
        "right": {name: bits(scores.argmax(1) == labels) for name, scores in rows.items()},
        "top5": {name: bits(in_top5(scores, labels)) for name, scores in rows.items()},
        "calibration_error": {
            name: round(expected_calibration_error(shares.amax(1), shares.argmax(1) == labels), 4)
            for name, shares in chances.items()
        },
        "decided": {
            METHOD: decided(scorer.saved.parts),
            WHOLE: decided(parts),
        },
    }


@torch.inference_mode()
def _tempered(data: TrainingSet, scorer: Model, features: Tensor) -> dict[str, Tensor]:
    """Logits [N, C] of the linear layer and the text branch, each at the temperature of the images held out."""
    held, labels, weights = held_out(data, scorer.trained)
    rows = {}
    for name, logits in (("linear layer", scorer.rule.linear_logits), ("text branch", scorer.text_logits)):
        factor = fit_temperature(logits(held)[:, scorer.trained], labels, weights)
        rows[name] = factor * torch.cat([logits(part) for part in features.split(512)])
    return rows


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, required=True)
    add_folder(parser)
    parser.add_argument("--texts", choices=TEXTS, default="true")
    parser.add_argument("--baseline", action="store_true", help="train the image-only baseline too")
    add_data(parser)


STUDY = Study(
    {"results/long_tailed.md": page, "results.md": summary}, commands={"run": Command(run, _arguments)}
)
