"""The paper's and the release's protocols beside ours, each image seen as often.

    python -m benchmarks protocols run --protocol paper --dir runs    resumable; with --data icons_lt too
    python -m benchmarks protocols run --protocol release --dir runs

All are of seed 0 and of 12 epochs of the tower; the paper's and the release's are six a stage. Ours are the rows of the
study long_tailed.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from benchmarks.kept import surroundings
from benchmarks.studies.long_tailed.table import of_data
from benchmarks.studies.paired import BINS, METHOD, WITHOUT_BRANCH, Run, difference, keep_run, mean, read_runs
from benchmarks.studies.workspaces import (
    DATA,
    StepSeconds,
    add_data,
    bits,
    by_data,
    dataset,
    files_of,
    in_top5,
    made,
)
from benchmarks.study import Command, Study, add_folder
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

PROTOCOLS = ("paper", "release")
ROWS = {METHOD: "both branches", WITHOUT_BRANCH: "image branch", "text branch": "text branch"}


def run(data: str, protocol: str, folder: Path) -> None:
    """Train and evaluate; a step that is done is not done again."""
    files = files_of(data)
    recipe = load_recipe(f"{data}/{protocol}")
    seconds = StepSeconds(folder / f"seconds-{data}-{protocol}.json")
    workspace = made(folder / f"{data}-{protocol}", recipe, files.texts, files.images, seconds)
    result = {
        "recipe": recipe.name,
        "dataset": dataset(files),
        **surroundings(),
        "seconds": seconds.values,
        **_measure(workspace),
    }
    keep_run("protocols", f"{data}/{protocol}", result)


def _measure(workspace: Workspace) -> dict[str, Any]:
    embed(workspace)  # the paper's second stage tuned the visual tower
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    labels = class_positions(scorer.class_ids, test.class_ids)
    fused = scorer.exhaustive(test.features)
    rows = {METHOD: fused.probabilities, WITHOUT_BRANCH: fused.by_image, "text branch": fused.by_text}
    return {
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
        "labels": labels.tolist(),
        "right": {name: bits(scores.argmax(1) == labels) for name, scores in rows.items()},
        "top5": {name: bits(in_top5(scores, labels)) for name, scores in rows.items()},
    }


def generated(found: dict[str, Run]) -> str:
    """Return the table as Markdown, of results by the name of their protocol; `ours` is among them."""
    ours = found["ours"]
    lines = [
        f"Data set `{ours['dataset'][:16]}`, seed 0, {len(ours['counts']):,} test images; top-1 in per cent.",
        "",
        "| protocol | row | " + " | ".join(BINS) + " | top-5 |",
        "| --- | --- |" + " --- |" * (len(BINS) + 1),
    ]
    for protocol, result in found.items():
        for row, shown in ROWS.items():
            cells = [f"{100 * mean(result, row, name):.1f}" for name in BINS]
            cells.append(f"{100 * result['top5'][row]:.1f}")
            lines.append(f"| {protocol} | {shown} | {' | '.join(cells)} |")
    lines += ["", "Both branches of ours less theirs, with the 95 % interval over classes:", ""]
    lines += ["| less | " + " | ".join(BINS) + " |", "| --- |" + " --- |" * len(BINS)]
    for protocol in list(found)[1:]:
        cells = [difference([ours], name, METHOD, others=[found[protocol]]) for name in BINS]
        lines.append(f"| {protocol} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parts() -> dict[str, str]:
    """Return the tables of the data sets that were measured."""
    kept = read_runs("protocols")
    tables = {}
    for data in DATA:
        theirs = {one: kept[f"{data}/{one}"] for one in PROTOCOLS if f"{data}/{one}" in kept}
        if theirs:
            ours = next(run for run in of_data(data) if run["seed"] == 0)
            tables[data] = generated({"ours": ours, **theirs})
    return {"results/protocols.md": by_data(tables)} if tables else {}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    add_folder(parser)
    add_data(parser)


STUDY = Study({"run": Command(run, _arguments)}, parts)
