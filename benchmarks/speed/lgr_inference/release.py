"""The release's head, which projects all anchors for every batch."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import ReleaseHead, images_of, wait


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Head and batch."""
    return ReleaseHead(inputs, values).eval(), images_of(inputs)[0]


@torch.inference_mode()
def run(state: Any) -> Arrays:
    """Both branches."""
    head, images = state
    _, text = head(images)
    wait()
    return {"logits": text.float().cpu().numpy()}
