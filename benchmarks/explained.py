"""Explained predictions on Icons-LT, right and wrong, drawn by a rule: docs/explained.md and docs/explained.png.

    python -m benchmarks.explained DIR

DIR is a finished workspace of the study long_tailed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from vlltr_index.cli.answers import prediction_lines
from vlltr_index.embedding.loading import image_set, usable_images
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.sheet import Panel, Picture, write_sheet
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions

DOCS = Path(__file__).parents[1] / "docs"
KINDS = {
    "Right": "The answer is right.",
    "Wrong, the text alone right": "The answer is wrong; that of the text branch alone is right.",
    "Wrong": "Neither is right.",
}
EACH = 2
FEW = 20
WIDTH = 110


def of_each_kind(right: Tensor, text_right: Tensor, few: Tensor) -> list[list[int]]:
    """Places of the first images of each of `KINDS` among those of few-shot classes; all are bool [N]."""
    masks = (right, ~right & text_right, ~right & ~text_right)
    return [(mask & few).nonzero()[:EACH, 0].tolist() for mask in masks]


def write(path: Path) -> None:
    """Write the page and its picture."""
    workspace = Workspace.open(path)
    recognizer = Recognizer.open(path)
    snapshot = workspace.snapshot()
    scorer = recognizer.current()
    branch = scorer.with_rule(FusionConfig(rule="logits"))  # there text scores are those of the text branch
    names = scorer.names
    test = image_set(snapshot, "test")
    counts = training_counts(snapshot, scorer.class_ids)
    labels = class_positions(scorer.class_ids, test.class_ids)
    said = scorer.exhaustive(test.features)
    told = said.by_text.argmax(1)
    found = of_each_kind(said.probabilities.argmax(1) == labels, told == labels, counts[labels] <= FEW)
    rows = usable_images(snapshot, "test", ["data"])["data"]
    parts = list[str]()
    panels = []
    for (kind, what), places in zip(KINDS.items(), found, strict=True):
        parts += [f"## {kind}", "", what, ""]
        pictures = []
        for at in places:
            data = rows[at].as_py()
            name = names[int(test.class_ids[at])]
            images = int(counts[labels[at]])
            prediction = recognizer.predict([data], PredictOptions(top=2, explain=2))[0]
            lines = prediction_lines(prediction, WIDTH)[1:]
            plural = "s" * (images > 1)
            alone = branch.explain(data, names[int(scorer.class_ids[told[at]])])
            parts += [f"**{name}**, {images} training image{plural}:", "", "```text", *lines]
            parts += [f"  text alone says {alone.name}: {alone.folded[0][0].text}", "```", ""]
            pictures.append(Picture(data, (name, f"said: {prediction.classes[0].name}")))
        panels.append(Panel(kind, tuple(pictures)))
    write_sheet(DOCS / "explained.png", "Icons-LT, few-shot classes", panels, columns=EACH)
    head = [
        "# Explained predictions",
        "",
        f"By the run of seed {workspace.recipe.lgr.seed} on Icons-LT ([Results](results/long_tailed.md)): of the test"
        f" images of classes with at most {FEW}\ntraining images, ordered by their keys, the first {EACH} of each kind;"
        " none was picked by hand. [Concepts](concepts.md) tells\nwhat the lines mean. Written by `python -m"
        " benchmarks.explained`.",
        "",
        "![The six pictures, and what was said of them](explained.png)",
        "",
    ]
    (DOCS / "explained.md").write_text("\n".join([*head, *parts]).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
