"""None of these, on Glyphs-LT: images of the test split against images of held-out classes.

    python -m benchmarks reject run --seed 0 --dir runs            a workspace of long_tailed; dev classes
    python -m benchmarks reject run --seed 0 --dir runs --final    the final held-out classes too

The score is the sum by which `vlltr predict --reject` goes, and the level the head's own; beside it stands what the
best log-likelihood alone and the largest probability would do.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.heldout import read_group
from benchmarks.studies.paired import spread
from benchmarks.studies.workspaces import dataset
from benchmarks.study import Command, Study, add_folder
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.embedding.loading import image_set, open_encoder
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace

SCORE = "the sum"
LIKELIHOOD = "best log-likelihood"
LARGEST = "largest probability"
GROUPS = {"dev": "100 for development", "final": "100 for final figures"}


def run(seed: int, folder: Path, final: bool = False) -> None:
    """Measure one seed's workspace; nothing is written to it."""
    data = glyph_files()
    snapshot = Workspace.open(folder / f"seed-{seed}").snapshot()
    scorer = Model.open(snapshot)
    encoder = open_encoder(snapshot).eval()
    known = image_set(snapshot, "test").features
    groups = {}
    for group in GROUPS if final else ("dev",):
        with tempfile.TemporaryDirectory() as support:
            unknown = read_group(data, group, encoder, Path(support)).features
        groups[group] = rates(scorer, known, unknown)
    keep("reject", str(seed), {"seed": seed, "dataset": dataset(data), **surroundings(), "groups": groups})


def auroc(scores: Tensor, positives: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Args:
        scores: Float [N], larger means more likely positive.
        positives: Bool [N]; for rejection: the image is of a known class.

    Raises:
        ValueError: Lengths differ, a score is NaN, or one of the two sides is empty.
    """
    values, right = _two_sides(scores, positives)
    ordered = values[~right].sort().values
    above = torch.searchsorted(ordered, values[right]) + torch.searchsorted(
        ordered, values[right], right=True
    )
    return float(above.double().mean() / (2 * len(ordered)))


def fpr95(scores: Tensor, positives: Tensor) -> float:
    """Share of negatives accepted at the highest threshold that accepts at least 95 % of the positives.

    Args:
        scores: Float [N], larger means more likely positive; a score at the threshold is accepted.
        positives: Bool [N].

    Raises:
        ValueError: As `auroc`.
    """
    values, right = _two_sides(scores, positives)
    accepted = values[right].sort(descending=True).values
    threshold = accepted[-(-95 * len(accepted) // 100) - 1]
    return float((values[~right] >= threshold).double().mean())


def _two_sides(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    right = positives.bool()
    if bool(scores.isnan().any()) or not bool(right.any()) or bool(right.all()):
        raise ValueError("scores must be numbers, with at least one positive and one negative")
    return scores.double(), right


def rates(scorer: Model, known: Tensor, unknown: Tensor) -> dict[str, Any]:
    """Both scores of images [N, D] of the scorer's classes and of others, and the shares that the head would accept."""
    parts = scorer.saved.parts
    assert parts is not None
    assert parts.ood_threshold is not None
    sides = [_scores(scorer, features) for features in (known, unknown)]
    truth = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).bool()
    found = {}
    for name in sides[0]:
        values = torch.cat([side[name] for side in sides])
        found[name] = {"auroc": round(auroc(values, truth), 4), "fpr95": round(fpr95(values, truth), 4)}
    accepted = [float((side[SCORE] >= parts.ood_threshold).double().mean()) for side in sides]
    return {
        "images": [len(known), len(unknown)],
        "scores": found,
        "accepted": [round(value, 4) for value in accepted],
    }


@torch.inference_mode()
def _scores(scorer: Model, features: Tensor) -> dict[str, Tensor]:
    """Float [N] each."""
    return {
        SCORE: scorer.fits(features),
        LIKELIHOOD: scorer.log_likelihoods(features).amax(1),
        LARGEST: scorer.exhaustive(features).probabilities.amax(1),
    }


def parts() -> dict[str, str]:
    """Return the table of all seeds."""
    runs = list(read("reject").values())
    return {"results/reject.md": generated(runs)} if runs else {}


def generated(runs: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown."""
    first = runs[0]
    groups = [group for group in GROUPS if all(group in run["groups"] for run in runs)]
    known = first["groups"][groups[0]]["images"][0]
    lines = [
        f"Known: the {known:,} test images; unknown: the test images of held-out classes, none added. FPR: per cent of"
        f" unknown images accepted where 95 % of the known are; then what `vlltr predict --reject` accepts. Seeds"
        f" {', '.join(str(r['seed']) for r in runs)}; data set `{first['dataset'][:16]}`.",
        "",
        "| held-out classes | score | AUROC | FPR | known accepted | unknown accepted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group in groups:
        found = [run["groups"][group] for run in runs]
        for name in found[0]["scores"]:
            area = np.mean([f["scores"][name]["auroc"] for f in found])
            cells = [f"{area:.3f}", spread([f["scores"][name]["fpr95"] for f in found])]
            cells += [
                spread([f["accepted"][side] for f in found]) if name == SCORE else "-" for side in (0, 1)
            ]
            lines.append(f"| {GROUPS[group]} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, required=True)
    add_folder(parser)
    parser.add_argument("--final", action="store_true", help="measure the final held-out classes too")


STUDY = Study({"run": Command(run, _arguments)}, parts)
