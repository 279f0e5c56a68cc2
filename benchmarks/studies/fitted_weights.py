"""Why the weights of a Glyphs-LT run are not those that test images would have given, and how sure it is.

    python -m benchmarks fitted_weights run --workspace runs/seed-2-permuted

The images that stage 1 left out are long-tailed, test images are not: 300 test images are drawn evenly, and as the
training images are spread over the classes, and weigh the parts; 25 draws each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.long_tailed import weights_of
from benchmarks.studies.workspaces import decided
from benchmarks.study import Command, Study
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

DRAWS = 25
IMAGES = 300
PARTS = ("image", "generative", "text")


def run(workspace: Path) -> None:
    """Weigh the parts by the images held out and by draws of test images."""
    snapshot = Workspace.open(workspace).snapshot()
    scorer = Model.open(snapshot)
    test = image_set(snapshot, "test")
    counts = training_counts(snapshot, scorer.class_ids)
    labels = class_positions(scorer.class_ids, test.class_ids)
    parts = scorer.saved.parts
    generator = torch.Generator().manual_seed(0)
    assert parts is not None
    assert parts.held_out is not None
    found = {
        "decided": decided(parts),
        "held out": sureness(parts.held_out.probabilities.float(), parts.held_out.labels),
        "test": sureness(scorer.exhaustive(test.features).probabilities, labels),
    }
    for how, chances in (("evenly", torch.ones(len(labels))), ("as training", counts[labels].float())):
        drawn = [torch.multinomial(chances, IMAGES, generator=generator) for _ in range(DRAWS)]
        weights = [weights_of(scorer, test.features[at], labels[at], counts) for at in drawn]
        found[how] = {
            name: [round(fmean(values), 4), round(stdev(values), 4)]
            for name in PARTS
            for values in [[getattr(w, name) for w in weights]]
        }
    keep("fitted_weights", workspace.name, surroundings() | found)


def sureness(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the share of N images that are right, and the mean probability of the answers [N, C]."""
    best, answers = probabilities.max(1)
    return {
        "images": len(labels),
        "right": round(float((answers == labels).double().mean()), 4),
        "mean probability": round(float(best.double().mean()), 4),
    }


def parts() -> dict[str, str]:
    """Return a table of each workspace."""
    tables = [f"**{name}**\n\n{generated(one)}" for name, one in read("fitted_weights").items()]
    return {"results/fitted_weights.md": "\n".join(tables)} if tables else {}


def generated(result: Mapping[str, Any]) -> str:
    """Return the weights by the images that gave them, as Markdown."""
    ways = {
        "300 test images, as training images are spread": "as training",
        "300 test images, evenly": "evenly",
    }
    lines = [f"| weighed by | {' | '.join(PARTS)} |", "| --- |" + " --- |" * len(PARTS)]
    own = " | ".join(f"{result['decided'][part]:.3g}" for part in PARTS)
    lines.append(f"| the images held out | {own} |")
    for shown, way in ways.items():
        cells = " | ".join("{:.3g} ± {:.2g}".format(*result[way][part]) for part in PARTS)
        lines.append(f"| {shown} | {cells} |")
    return "\n".join(lines) + "\n"


STUDY = Study(
    {"run": Command(run, lambda parser: parser.add_argument("--workspace", type=Path, required=True))}, parts
)
