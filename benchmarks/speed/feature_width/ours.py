"""`vlltr_index.train.stage_two.fit_stage_two`, as `vlltr train lgr` calls it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.harness import Arrays
from vlltr_index.data.words import number_words
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.moments import class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.stage_two import fit_stage_two
from vlltr_index.train.stage_two_data import StageTwoData


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Images, and a name of each class in words of which classes share one; no text tower has read it."""
    classes = values["classes"]
    labels = torch.from_numpy(inputs["labels"].copy())
    names = [f"group{number // 5} kind{number}" for number in range(classes)]
    every = torch.arange(classes)
    data = StageTwoData(
        features=torch.from_numpy(inputs["features"].copy())[None],
        labels=labels,
        bank=AnchorBank.build(torch.zeros(classes, values["dim"]), every, every, words=number_words(names)),
        places=every,
        units=[str(number) for number in range(len(labels))],
        unseen=torch.zeros_like(labels, dtype=torch.bool),
        unseen_classes=torch.zeros(classes, dtype=torch.bool),
        visual_init=None,
        logit_scale=100.0,
    )
    return data, torch.from_numpy(inputs["queries"].copy())


def run(state: Any) -> Arrays:
    """Fit, and compute the log-likelihoods of other images."""
    data, queries = state
    parts = fit_stage_two(data, LGRConfig(views=1)).parts
    assert parts is not None
    counts, sums = class_sums(unit_rows(data.features[0]), data.labels, data.classes)
    told = data.anchored(parts.shared.kernel)
    found = PLDA(parts.shared, counts, sums, told).log_likelihoods(unit_rows(queries).double())
    return {"log_likelihoods": found.numpy()}
