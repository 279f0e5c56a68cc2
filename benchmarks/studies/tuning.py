"""Stage 1 without a GPU, on Glyphs-LT: no stage 1, the text tower alone, and all weights.

    python -m benchmarks tuning run --tune text --dir runs    resumable; also --tune none

`none` and `text` start from the shipped encoder, whose image tower they keep; all weights are those of the study
long_tailed, seed 0, trained from a random start.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from benchmarks.kept import surroundings
from benchmarks.studies.draws.bench import prototypes
from benchmarks.studies.long_tailed.table import of_data
from benchmarks.studies.paired import (
    BINS,
    METHOD,
    WITHOUT_BRANCH,
    Runs,
    difference,
    keep_run,
    mean,
    read_runs,
)
from benchmarks.studies.without_text import without_branch
from benchmarks.studies.workspaces import GLYPHS, StepSeconds, bits, dataset, files_of, made, seeded
from benchmarks.study import Command, Study, add_folder
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import override
from vlltr_index.tensors import class_positions, cosine_logits

WAYS = ("none", "text")
ROWS = (METHOD, WITHOUT_BRANCH, "text branch", "zero-shot")


def run(tune: str, folder: Path) -> None:
    """Train and evaluate one way; a step that is done is not done again."""
    data = files_of(GLYPHS)
    name = f"tuning-{tune}"
    seconds = StepSeconds(folder / f"seconds-{name}.json")
    settings = ("encoder.pretrained=glyphs", *(("cvlp.tune=text",) if tune == "text" else ()))
    recipe = override(seeded(GLYPHS, 0), settings)
    left_out = () if tune == "text" else ("train cvlp",)
    workspace = made(folder / name, recipe, data.texts, data.images, seconds, left_out=left_out)
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    labels = class_positions(scorer.class_ids, test.class_ids)
    said = scorer.exhaustive(test.features)
    means = prototypes(workspace, scorer.class_ids)[0]["own sentences"]
    rows = (
        said.probabilities,
        without_branch(scorer, test.features),
        said.by_text,
        cosine_logits(test.features.double(), means),
    )
    result = {
        "tune": tune,
        "dataset": dataset(data),
        **surroundings(),
        "seconds": seconds.values,
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
        "labels": labels.tolist(),
        "right": {n: bits(row.argmax(1) == labels) for n, row in zip(ROWS, rows, strict=True)},
    }
    keep_run("tuning", tune, result)


def parts() -> dict[str, str]:
    """Return the table of both ways beside the run of seed 0 with all weights."""
    runs = list(read_runs("tuning").values())
    whole = next(run for run in of_data(GLYPHS) if run["seed"] == 0)
    return {"results/tuning.md": generated([*runs, {**whole, "tune": "full"}])} if runs else {}


def generated(runs: Runs) -> str:
    """The table as Markdown; the last run has all weights tuned."""
    lines = [
        f"Top-1 in per cent on {len(runs[0]['labels']):,} test images, one seed. `none` and `text` keep the image tower"
        " of the shipped encoder, `full` trains all weights from a random start. Below: vl-ltr of `full` less that of"
        " the row, with the 95 % bootstrap interval.",
        "",
        "| cvlp.tune | row | " + " | ".join(BINS) + " |",
        "| --- | --- |" + " --- |" * len(BINS),
    ]
    for run in runs:
        for name in (n for n in ROWS if n in run["right"]):
            cells = " | ".join(f"{100 * mean(run, name, b):.1f}" for b in BINS)
            lines.append(f"| {run['tune']} | {name} | {cells} |")
    lines += ["", "| full less | " + " | ".join(BINS) + " |", "| --- |" + " --- |" * len(BINS)]
    for run in runs[:-1]:
        cells = " | ".join(difference(runs[-1:], b, METHOD, [run]) for b in BINS)
        lines.append(f"| {run['tune']} | {cells} |")
    lines += ["", "Seconds a step, on a machine with other work:", ""]
    for run in runs[:-1]:
        lines.append(f"- {run['tune']}: " + ", ".join(f"{n} {s:.0f}" for n, s in run["seconds"].items()))
    return "\n".join(lines) + "\n"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tune", choices=WAYS, required=True)
    add_folder(parser)


STUDY = Study({"run": Command(run, _arguments)}, parts)
