"""Why the weights of a Glyphs-LT run are not those that test images would have given, and how sure it is.

    python -m benchmarks.fitted_weights runs/seed-2-permuted      to results/fitted_weights-seed-2-permuted.json

The images that stage 1 left out are long-tailed, test images are not: 300 test images are drawn evenly, and as the
training images are spread over the classes, and weigh the parts; 25 draws each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from benchmarks.long_tailed import RESULTS, decided, surroundings, weights_of
from vlltr_index.embedding.loading import image_set
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.model import Model
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

DRAWS, IMAGES = 25, 300


def main() -> None:
    """Parse the command line and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    workspace = Workspace.open(parser.parse_args().workspace)
    snapshot = workspace.snapshot()
    scorer, test = Model.open(snapshot), image_set(snapshot, "test")
    counts, labels = (
        training_counts(snapshot, scorer.class_ids),
        class_positions(scorer.class_ids, test.class_ids),
    )
    parts, generator = scorer.saved.parts, torch.Generator().manual_seed(0)
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
            for name in ("image", "generative", "text")
            for values in [[getattr(w, name) for w in weights]]
        }
    path = RESULTS / f"fitted_weights-{workspace.path.name}.json"
    path.write_text(json.dumps(surroundings() | found, indent=1) + "\n", encoding="utf-8")


def sureness(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of N images that are right, and the mean probability of the answers [N, C]."""
    best, answers = probabilities.max(1)
    return {
        "images": len(labels),
        "right": round(float((answers == labels).double().mean()), 4),
        "mean probability": round(float(best.double().mean()), 4),
    }


if __name__ == "__main__":
    main()
