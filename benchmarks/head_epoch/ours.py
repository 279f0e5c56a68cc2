"""`vlltr_index.train.recognition.train_lgr` on stored vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.harness import Arrays
from benchmarks.lgr_common import DEVICE, bank_of, wait
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.train.recognition import train_lgr


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Vectors, labels, anchors."""
    features = torch.from_numpy(inputs["features"]).to(DEVICE)
    return features[None], torch.from_numpy(inputs["labels"]), bank_of(inputs, {**values, "portion": 1.0})


def run(state: Any) -> Arrays:
    """Ten batches of the epoch."""
    features, labels, bank = state
    log: list[dict[str, float]] = []
    train_lgr(features, labels, bank, LGRConfig(epochs=1, batch_size=128), logit_scale=50.0, log=log)
    wait()
    return {"loss": np.array([log[-1]["loss"]])}
