"""Every baseline beside the method on Glyphs-LT, over the workspaces that the study long_tailed made.

    python -m benchmarks baselines run --seed 0 --dir runs    one seed, resumable

All rows of one seed are evaluated on the same images. What a baseline can choose, it chooses on split val. Rows of the
image-only tower do not depend on the method: without one in the workspace they are those of an earlier result.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.kept import surroundings
from benchmarks.studies.paired import (
    BINS,
    METHOD,
    WITHOUT_BRANCH,
    Runs,
    difference,
    keep_run,
    mean,
    read_runs,
    spread,
)
from benchmarks.studies.random_words import control
from benchmarks.studies.without_text import without_branch
from benchmarks.studies.workspaces import StepSeconds, bits, dataset
from benchmarks.study import Command, Study, add_folder
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.embedding.loading import image_set
from vlltr_index.evaluation.compared import ADJUSTED
from vlltr_index.evaluation.metrics import expected_calibration_error
from vlltr_index.pipelines.baseline_scores import FC, score_baselines
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.pipelines.train_baseline import possible_baselines, train_baseline
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.records import BASELINES
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

OF_FC = {"ncm", "crt", "tau-norm", "lws"}  # made from the image-only tower
COPIED = (FC, ADJUSTED, *OF_FC)
OWN = (METHOD, WITHOUT_BRANCH, "text branch")


def run(seed: int, folder: Path) -> None:
    """Make the baselines of one seed's workspace and evaluate them; one that is made is not made again."""
    path = folder / f"seed-{seed}"
    if not (path / "vlltr.toml").exists():
        raise SystemExit(
            f"{path} is no workspace; run: python -m benchmarks long_tailed run --seed {seed} --dir {folder}"
        )
    workspace = Workspace.open(path)
    seconds = StepSeconds(folder / f"seconds-baselines-{seed}.json")
    config = workspace.recipe.baselines.model_copy(update={"seed": seed})
    info = workspace.history.last().info
    for name in possible_baselines(workspace):
        if name not in info.baselines and (info.baseline_fc or name not in OF_FC):
            with seconds(name):
                train_baseline(workspace, name, config)
    recipe = workspace.recipe
    result = {
        "seed": seed,
        "recipe": recipe.name,
        "protocol": recipe.protocol,
        "dataset": dataset(glyph_files()),
        **surroundings(),
        "seconds": seconds.values,
        **_measure(workspace, seed),
    }
    keep_run("baselines", str(seed), result, stay=() if info.baseline_fc else COPIED)


def _measure(workspace: Workspace, seed: int) -> dict[str, Any]:
    snapshot = workspace.snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    labels = class_positions(scorer.class_ids, test.class_ids)
    found: dict[str, Any] = {
        "counts": training_counts(snapshot, scorer.class_ids)[labels].tolist(),
        "labels": labels.tolist(),
        "right": {},
        "top5": {},
        "calibration_error": {},
        "notes": {},
        "settings": {},
    }

    def add(
        label: str, class_ids: Tensor, scores: Tensor, probabilities: bool = True, note: str = ""
    ) -> None:
        best = class_ids[scores.topk(5, 1).indices]
        right = best[:, 0] == test.class_ids
        found["right"][label] = bits(right)
        found["top5"][label] = bits((best == test.class_ids[:, None]).any(1))
        if probabilities:
            confidence = scores.softmax(1).max(1).values
            found["calibration_error"][label] = round(expected_calibration_error(confidence, right), 4)
        if note:
            found["notes"][label] = note

    fused = scorer.exhaustive(test.features)
    own = {
        METHOD: fused.probabilities,
        WITHOUT_BRANCH: without_branch(scorer, test.features),
        "text branch": fused.by_text,
    }
    for label, chances in own.items():  # their logarithms are scores as any other row's
        add(label, scorer.class_ids, chances.clamp(min=1e-30).log())
    for row, scores in score_baselines(workspace, snapshot, "test", test.image_ids):
        add(row.label, row.class_ids, scores, row.probabilities, row.note)
        if row.settings:
            found["settings"][row.label] = row.settings
    for label, class_ids, scores, note in control(workspace, seed, test.features):
        add(label, class_ids, scores, note=note)
    return found


def parts() -> dict[str, str]:
    """Return the tables of all seeds."""
    runs = list(read_runs("baselines").values())
    return {"results/baselines.md": generated(runs)} if runs else {}


def _rows(runs: Runs) -> list[str]:
    """Return the names of the rows, the method's first."""
    return sorted(runs[0]["right"], key=lambda name: (name not in OWN, name))


def generated(runs: Runs) -> str:
    """Accuracy of every row, what the method gains over each, what was chosen, and the seconds, as Markdown."""
    first = runs[0]
    versions = first["versions"]
    machine = first["machine"]
    timed = [name for name in BASELINES if any(name in r["seconds"] for r in runs)]
    lines = [
        f"Data set `{first['dataset'][:16]}` (sha256), recipe `{first['recipe']}`, "
        f"protocol {first['protocol']}, "
        f"seeds {', '.join(str(r['seed']) for r in runs)}; {len(first['counts']):,} test images; torch "
        f"{versions['torch']}, open_clip {versions['open_clip_torch']}; {machine['cores']} cores, "
        f"{machine['threads']} thread a run. Top-1 in per cent, mean over the seeds and their standard deviation; "
        "release bounds (many >= 100, few <= 20; few5 <= 5). ECE: expected calibration error in per cent, of rows that "
        "give probabilities.",
        "",
        "| | " + " | ".join(BINS) + " | top-5 | ECE |",
        "| --- |" + " --- |" * (len(BINS) + 2),
        *(_accuracy_line(runs, name) for name in _rows(runs)),
        "",
        f"What {METHOD} gains over each row, in points: mean over the seeds, 95 % bootstrap over classes and images.",
        "",
        f"| {METHOD} less | " + " | ".join(BINS) + " |",
        "| --- |" + " --- |" * len(BINS),
        *(_difference_line(runs, name) for name in _rows(runs) if name != METHOD),
        "",
        *_chosen(runs),
        "",
        "Seconds, one thread (embedding what the rows before had not embedded included):",
        "",
        "| seed | " + " | ".join(timed) + " |",
        "| --- |" + " --- |" * len(timed),
        *(
            f"| {r['seed']} | " + " | ".join(f"{r['seconds'].get(n, 0):.0f}" for n in timed) + " |"
            for r in runs
        ),
    ]
    return "\n".join(lines) + "\n"


def _accuracy_line(runs: Runs, name: str) -> str:
    cells = [spread([mean(r, name, b) for r in runs]) for b in BINS]
    cells.append(spread([r["top5"][name] for r in runs]))
    errors = [r["calibration_error"][name] for r in runs if name in r["calibration_error"]]
    cells.append(f"{100 * np.mean(errors):.1f}" if errors else "-")
    return f"| {name} | " + " | ".join(cells) + " |"


def _difference_line(runs: Runs, name: str) -> str:
    return f"| {name} | " + " | ".join(difference(runs, b, against=name) for b in BINS) + " |"


def _chosen(runs: Runs) -> list[str]:
    """What was chosen on split val, and the rows' notes."""
    lines = []
    for name in _rows(runs):
        parts = []
        for key in ("tau", "lr", "k", "alpha", "beta"):
            values = [r["settings"][name][key] for r in runs if key in r["settings"].get(name, {})]
            if values:
                parts.append(f"{key} {', '.join(f'{v:g}' for v in values)}")
        notes = list(dict.fromkeys(r["notes"][name] for r in runs if name in r["notes"]))
        if parts:
            parts = [f"chosen on {runs[0]['settings'][name]['chosen_on']}: {'; '.join(parts)}"]
        if parts or notes:
            lines.append(f"- {name}: {'; '.join([*parts, *notes])}.")
    return lines


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, required=True)
    add_folder(parser)


STUDY = Study({"run": Command(run, _arguments)}, parts)
