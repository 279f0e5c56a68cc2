"""open_clip on tensors that are in memory already: decoding, resizing and tokenising are not in the time."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from PIL import Image

from benchmarks.speed.embedding import common
from benchmarks.speed.harness import Arrays

_BATCH = 64


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Model, and pixels or tokens."""
    name = values["model"]
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(common.weights(name)))
    model.eval()
    if values["what"] == "images":
        pixels = [preprocess(Image.open(p).convert("RGB")) for p in common.photographs(values["number"])]
        return model.encode_image, torch.stack(pixels)
    return model.encode_text, open_clip.get_tokenizer(name)(common.sentences(values["number"]))


@torch.inference_mode()
def run(state: Any) -> Arrays:
    """Batches, one after the other."""
    encode, data = state
    return {"vectors": common.arrays(torch.cat([encode(part) for part in data.split(_BATCH)]))}
