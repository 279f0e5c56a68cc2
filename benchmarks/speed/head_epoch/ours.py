"""`vlltr_index.train.lgr.train_until` on stored vectors, for one epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import DEVICE, bank_of, wait
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.train.lgr import StoredImages, new_head, train_until


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Vectors, labels, anchors."""
    features = torch.from_numpy(inputs["features"]).to(DEVICE)
    return features[None], torch.from_numpy(inputs["labels"]), bank_of(inputs, {**values, "portion": 1.0})


def run(state: Any) -> Arrays:
    """Ten batches of the epoch."""
    features, labels, bank = state
    config = LGRConfig(epochs=1, batch_size=128)
    head = new_head(bank, config, None, 50.0)
    images = StoredImages(features, labels, bank, torch.arange(bank.num_classes))
    _, log = train_until(head, images, config, None)
    wait()
    return {"loss": np.array([log[-1]["loss"]])}
