"""`shift_images` for new images, `score_sentences` for the rows of new sentences, as `vlltr classes add` does."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.anss import SCALE
from benchmarks.speed.anss.common import tensors, wait
from benchmarks.speed.harness import Arrays
from vlltr_index.anchors.anss import positive_terms, score_sentences, shift_images


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The terms of the sentences that were there against the images that were there."""
    texts, labels, images, owners = tensors(inputs, {**values, "sentences": len(inputs["texts"])})
    n = values["sentences"]
    m = values["images"]
    known = score_sentences(texts[:n], labels[:n], images[:m], owners[:m], SCALE)
    return known, texts, labels, images, owners, n, m


def run(state: Any) -> Arrays:
    """Only what is new."""
    known, texts, labels, images, owners, n, m = state
    old = texts[:n], labels[:n]
    shifted, _ = shift_images(known, texts[:n], images[m:], images[:0], SCALE)
    losses = known.loss
    if m < len(images):
        losses = shifted.lse - positive_terms(*old, images, owners, SCALE).to(shifted.lse.device)
    if n < len(texts):
        losses = torch.cat([losses, score_sentences(texts[n:], labels[n:], images, owners, SCALE).loss])
    wait()
    return {"losses": losses.cpu().numpy()}
