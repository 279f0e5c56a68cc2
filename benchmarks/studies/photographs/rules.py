"""The baselines of the study, on the vectors of a draw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.draws.rules import choose, rules, text_means
from benchmarks.studies.side_by_side.driver import Job
from benchmarks.studies.side_by_side.worker import ADDITIONS, PROMPT, Draw, hits_by_class, measured
from vlltr_index.heads.units import number_observations

__all__ = ["RULE_NAMES", "measure_rules"]

ZERO_SHOT = "zero-shot"
RULE_NAMES = {
    "class means": "class means",
    "shrunk discriminant": "discriminant",
    "logistic regression": "logistic regression",
    ZERO_SHOT: "prompts alone",
    "Tip-Adapter": "Tip-Adapter",
}
"""Names in the tables, by those that `draws` uses."""


def measure_rules(job: Job, path: Path) -> dict[str, Any]:
    """Fit each rule on a draw, and measure it as the worker measures the method."""
    draw = Draw.load(path)
    rows: dict[str, Any] = {}
    for name, (scores, seconds) in _scores(draw, 0, 0, torch.from_numpy(draw.test), job.seed).items():
        labels = torch.from_numpy(draw.test_labels)
        rows[name] = measured(scores.softmax(1), labels, draw.classes) | {"seconds": round(seconds, 3)}
    additions = [(count, shots) for count, shots in ADDITIONS if draw.can_add(count, shots)]
    added: dict[str, dict[str, Any]] = {}
    for count, shots in additions:
        classes = draw.classes + count
        new = draw.added_test_labels < classes
        features = torch.from_numpy(np.concatenate([draw.test, draw.added_test[new]]))
        labels = torch.from_numpy(np.concatenate([draw.test_labels, draw.added_test_labels[new]]))
        for name, (scores, _) in _scores(draw, count, shots, features, job.seed).items():
            hits = {"classes": hits_by_class(scores, labels, classes)}
            added.setdefault(name, {})[f"{count} x {shots}"] = hits
    return {"rows": rows, "added by rule": added}


def _scores(
    draw: Draw, count: int, shots: int, queries: Tensor, seed: int
) -> dict[str, tuple[Tensor, float]]:
    """Return the scores [Q, C] of each rule, and its processor seconds; classes without images have prompts alone."""
    images = draw.images(count, shots)
    classes = draw.classes + count
    prompts = draw.text_roles == PROMPT
    prompts &= draw.text_owners < classes
    prototypes: dict[str, Tensor] = {}
    if np.isin(np.arange(classes), draw.text_owners[prompts]).all() and draw.texts.any():
        owners = torch.from_numpy(draw.text_owners[prompts])
        prototypes["prompts"] = text_means(torch.from_numpy(draw.texts[prompts]), owners, classes)
    usable = rules(classes, prototypes, draw.logit_scale)
    if count and not shots:
        usable = {ZERO_SHOT: usable[ZERO_SHOT]} if ZERO_SHOT in usable else {}
    observations = number_observations(images.labels, images.units)
    found: dict[str, tuple[Tensor, float]] = {}
    for name, rule in usable.items():
        started = time.process_time()
        one = choose({name: rule}, images.features[0], images.labels, queries, seed, observations)
        if name in one:
            found[RULE_NAMES[name]] = (one[name].scores, time.process_time() - started)
    return found
