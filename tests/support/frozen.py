"""The answers of five small models, made of stored vectors, labels and texts.

    python -m tests.support.frozen

writes `answers.json` again, for a change that is meant to alter answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.side_by_side import worker
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import SavedHead
from vlltr_index.heads.moments import class_sums
from vlltr_index.recognition.anchors import Anchors
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.parameters import ClassParameters, ClassStats
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.class_table import ClassTable
from vlltr_index.tensors import unit_rows
from vlltr_index.train.lgr import new_head
from vlltr_index.train.stage_two import StageTwoResult, fit_stage_two
from vlltr_index.train.training_set import TrainingSet

FOLDER = Path(__file__).parent / "data" / "frozen"
ANSWERS = FOLDER / "answers.json"
DRAWS = ("characters", "icons", "photographs", "image_tower")
"""Draws of `benchmarks.studies.side_by_side`; `stage_one` has the classifier of a stage 1, which saw most classes."""
STAGE_ONE = "stage_one"
_VECTORS = ("train", "test", "added", "added_test", "texts")  # kept in half precision
_ADDED = ((1, 0), (1, 5), (2, 0), (2, 5))  # classes, and images of each
_EXPLAINED = 3


def answers(name: str) -> dict[str, Any]:
    """Fit a model and return its probabilities, explanations and figures, as JSON has them.

    One thread computes them: several would round log-odds otherwise.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _answers(name)
    finally:
        torch.set_num_threads(threads)


def _answers(name: str) -> dict[str, Any]:
    scorer, decision, test, additions = _stage_one() if name == STAGE_ONE else _of_draw(name)
    scores = scorer.exhaustive(test)
    parts = decision.parts
    assert parts is not None
    assert parts.held_out is not None
    return {
        "probabilities": _rows(scores.probabilities),
        "image": _rows(scores.visual_part),
        "text": _rows(scores.text_part),
        "explained": _explained(scorer, test, scores.probabilities),
        "added": additions,
        "configuration": [int(parts.text_level), parts.shared.text_r2],
        "weights": [
            parts.weights.generative,
            parts.weights.text,
            parts.weights.image,
            parts.weights.combined,
        ],
        "rejection": [parts.ood_threshold, parts.ratio_weight, parts.unknown_accepted],
        "held out": _rows(parts.held_out.probabilities),
        "fold": [] if decision.fold_of is None else decision.fold_of.tolist(),
        "notes": decision.notes,
    }


def _of_draw(name: str) -> tuple[Model, StageTwoResult, torch.Tensor, dict[str, Any]]:
    draw = worker.Draw.load(FOLDER / f"{name}.npz")
    draw = replace(draw, **{field: getattr(draw, field).astype(np.float32) for field in _VECTORS})
    recipe = load_recipe("ours", (), draw.encoder)
    scorer, decision = worker.fit(draw, recipe)
    assert decision is not None
    additions: dict[str, Any] = {}
    test = torch.from_numpy(np.concatenate([draw.test, draw.added_test]))
    for count, shots in _ADDED:
        if draw.can_add(count, shots):
            found = worker.added(scorer, decision, draw, recipe, count, shots)
            chances = found.exhaustive(test).probabilities
            offsets = [found.offsets.get(draw.classes + n, 0.0) for n in range(count)]
            additions[f"{count} x {shots}"] = {"offsets": offsets, "probabilities": _rows(chances)}
    return scorer, decision, torch.from_numpy(draw.test), additions


def _stage_one() -> tuple[Model, StageTwoResult, torch.Tensor, dict[str, Any]]:
    with np.load(FOLDER / f"{STAGE_ONE}.npz", allow_pickle=False) as file:
        read = {key: file[key] for key in file.files}
    tensors = {key: torch.from_numpy(value) for key, value in read.items() if value.dtype.kind not in "U"}
    classes = len(tensors["biases"])
    labels = tensors["labels"]
    owners = tensors["anchor_owners"]
    bank = AnchorBank.build(
        tensors["anchors"].float(), owners, torch.arange(classes), tensors["losses"], tensors["words"]
    )
    data = TrainingSet(
        features=tensors["features"].float()[None],
        labels=labels,
        bank=bank,
        places=torch.arange(classes),
        units=read["units"].tolist(),
        keys=read["keys"].tolist(),
        unseen=tensors["unseen"],
        unseen_classes=tensors["unseen_classes"],
        visual_init=(tensors["weights"].float(), tensors["biases"]),
        logit_scale=float(read["logit_scale"]),
    )
    recipe = load_recipe("ours", (), None)
    rows = data.rows
    visual = tensors["weights"][rows].float(), tensors["biases"][rows]
    head = new_head(
        bank, recipe.lgr, visual, data.logit_scale
    )  # untrained, since training differs by machine
    decision = fit_stage_two(data, recipe.lgr, head=head.eval())
    every = torch.arange(classes)
    counts, sums = class_sums(unit_rows(data.features[0]), labels, classes, data.weights)
    assert decision.rows is not None
    known = ClassParameters(
        anchors=Anchors(bank, torch.arange(len(bank.vectors)), lambda _: None, ""),
        saved=SavedHead(decision.head, every[decision.rows], "", "", decision.parts),
        stats=ClassStats(every, counts, sums),
        merged={},
    )
    scorer = Model(known, recipe.fusion, ClassTable({}, {}))
    return scorer, decision, tensors["test"].float(), {}


def _explained(scorer: Model, test: torch.Tensor, chances: torch.Tensor) -> list[dict[str, Any]]:
    """Explain the best class of the first images by its sentences."""
    explainer = scorer.explainer
    found = []
    for image, best in zip(test[:_EXPLAINED], chances.argmax(1).tolist(), strict=False):
        place = explainer.places.get(int(scorer.class_ids[best]))
        if place is None:
            continue
        one = explainer.explain(image[None], place)
        found.append({"score": one.score, "shares": one.shares.tolist(), "effects": one.effects.tolist()})
    return found


def _rows(values: torch.Tensor) -> list[list[float]]:
    return [[round(one, 9) for one in row] for row in values.double().tolist()]


def stored() -> Mapping[str, Any]:
    """Read the answers that are expected."""
    found: Mapping[str, Any] = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write the answers."""
    found = {name: answers(name) for name in (*DRAWS, STAGE_ONE)}
    ANSWERS.write_text(json.dumps(found, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
