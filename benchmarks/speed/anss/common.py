"""What the competitors share: inputs as tensors, cut to the part of the sentences they score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.harness import Arrays

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tensors(inputs: Arrays, values: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts, their labels, images, their labels."""
    kept = max(1, round(values["sentences"] * values["portion"]))
    texts = torch.from_numpy(inputs["texts"][:kept])
    labels = torch.from_numpy(inputs["text_labels"][:kept])
    images = torch.from_numpy(inputs["images"])
    owners = torch.from_numpy(inputs["image_labels"])
    return texts.to(DEVICE), labels.to(DEVICE), images.to(DEVICE), owners.to(DEVICE)


def wait() -> None:
    """Let queued GPU work end, so that it is in the time."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
