"""Explained predictions on Icons-LT, right and wrong, drawn by a rule: docs/explained.md and docs/explained.png.

    python -m benchmarks.explained --workspace DIR

DIR is a finished workspace of `benchmarks.long_tailed`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.long_tailed import GLYPHS, about
from benchmarks.long_tailed_table import NAMES
from vlltr_index.cli.render import prediction_lines
from vlltr_index.embedding.loading import class_positions, image_set, usable_images
from vlltr_index.pipelines.evaluate import training_counts
from vlltr_index.recognition.sheet import Panel, Picture, write_sheet
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace

DOCS = Path(__file__).parents[1] / "docs"
KINDS = {
    "Text mended it": "The image side alone is wrong, the whole answer is right.",
    "Text spoilt it": "The image side alone is right, the whole answer is wrong.",
    "Both wrong": "Neither the image side nor the whole answer is right.",
}
EACH, FEW, WIDTH = 3, 20, 110


def of_each_kind(image_right: Tensor, right: Tensor, few: Tensor) -> list[list[int]]:
    """Places of the first images of each of `KINDS` among those of few-shot classes; all are bool [N]."""
    masks = (~image_right & right, image_right & ~right, ~image_right & ~right)
    return [(mask & few).nonzero()[:EACH, 0].tolist() for mask in masks]


def write(path: Path) -> None:
    """Write the page and its picture."""
    workspace = Workspace.open(path)
    assert about(workspace) != GLYPHS
    snapshot, recognizer = workspace.snapshot(), Recognizer.open(path)
    test, scorer = image_set(snapshot, "test"), recognizer.scorer
    labels = class_positions(scorer.class_ids, test.class_ids)
    said = scorer.exhaustive(test.features)
    few = training_counts(snapshot, scorer.class_ids)[labels] <= FEW
    found = of_each_kind(said.by_image.argmax(1) == labels, said.probabilities.argmax(1) == labels, few)
    rows = usable_images(snapshot, "test", ["data", "uri"])
    counts = training_counts(snapshot, scorer.class_ids)
    names = recognizer.names
    parts, panels = [], []
    for (kind, what), places in zip(KINDS.items(), found, strict=True):
        parts += [f"## {kind}", "", what, ""]
        pictures = []
        for at in places:
            data, name = rows["data"][at].as_py(), names[int(test.class_ids[at])]
            prediction = recognizer.predict([data], top=2, explain=2)[0]
            lines = prediction_lines(prediction, WIDTH)[1:]
            images = int(counts[labels[at]])
            parts += [
                f"**{name}**, {images} training image{'s' * (images > 1)}:",
                "",
                "```text",
                *lines,
                "```",
                "",
            ]
            pictures.append(Picture(data, (name, f"said: {prediction.classes[0].name}")))
        panels.append(Panel(kind, tuple(pictures)))
    write_sheet(DOCS / "explained.png", f"{NAMES[about(workspace)]}, few-shot classes", panels, columns=EACH)
    head = [
        "# Explained predictions",
        "",
        f"From the run of seed {workspace.recipe.lgr.seed} on {NAMES[about(workspace)]}"
        " (`python -m benchmarks.explained`). Of the test images of classes with at most 20 training images, ordered by"
        f" their keys, the first {EACH} of each kind: none was picked by hand. What the lines say is told in"
        " [How it works](concepts.md).",
        "",
        "![The pictures](explained.png)",
        "",
    ]
    (DOCS / "explained.md").write_text("\n".join([*head, *parts]).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, required=True)
    write(parser.parse_args().workspace)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
