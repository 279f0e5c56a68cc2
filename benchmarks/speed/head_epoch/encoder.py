"""The frozen visual tower on every image, then a step of the head."""

from __future__ import annotations

from typing import Any

import open_clip
import torch

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import DEVICE, bank_of, wait
from benchmarks.speed.lgr_training.step import Step
from vlltr_index.heads.lgr import LGRHead


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Tower with random weights, head, 32 images."""
    torch.manual_seed(0)
    model = open_clip.create_model(values["model"]).eval().to(DEVICE)
    bank = bank_of(inputs, {**values, "portion": 1.0})
    head = LGRHead(values["dim"], bank.num_classes, logit_scale=50.0).to(DEVICE)
    pixels = torch.from_numpy(inputs["pixels"]).to(DEVICE)
    labels = torch.from_numpy(inputs["labels"][: len(pixels)]).to(DEVICE)
    step = Step(
        head,
        lambda images: (head.visual_logits(images), head.text_logits(images, bank)),
        head.query_proj.weight,
        pixels,
        labels,
    )
    return model, pixels, step


def run(state: Any) -> Arrays:
    """A quarter of a batch."""
    model, pixels, step = state
    with torch.inference_mode():
        features = model.encode_image(pixels).float()
    step.images = features.clone()
    logits = step()["logits"]
    wait()
    return {"loss": logits.mean(keepdims=True)[0]}
