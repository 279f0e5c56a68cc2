"""`add_images` for new images, `score_sentences` for the rows of new sentences, as `vlltr classes add` does."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.anss import SCALE
from benchmarks.anss.common import tensors, wait
from benchmarks.harness import Arrays
from vlltr_index.anchors import add_images, score_sentences


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The terms of the sentences that were there against the images that were there."""
    texts, labels, images, owners = tensors(inputs, {**values, "sentences": len(inputs["texts"])})
    n, m = values["sentences"], values["images"]
    known = score_sentences(texts[:n], labels[:n], images[:m], owners[:m], SCALE)
    return known, texts, labels, images, owners, n, m


def run(state: Any) -> Arrays:
    """Only what is new."""
    known, texts, labels, images, owners, n, m = state
    old = texts[:n], labels[:n]
    losses = add_images(known, *old, images[m:], owners[m:], owners[:m], SCALE).loss
    if n < len(texts):
        losses = torch.cat([losses, score_sentences(texts[n:], labels[n:], images, owners, SCALE).loss])
    wait()
    return {"losses": losses.cpu().numpy()}
