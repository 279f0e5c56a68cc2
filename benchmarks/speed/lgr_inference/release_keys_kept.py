"""The release's head with its keys projected once and kept: what anyone would do first."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import ReleaseHead, images_of, wait


@torch.inference_mode()
def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Head, keys and batch."""
    head = ReleaseHead(inputs, values).eval()
    return head, head.key_proj(head.key_norm(head.anchors)), images_of(inputs)[0]


@torch.inference_mode()
def run(state: Any) -> Arrays:
    """Both branches."""
    head, keys, images = state
    head.visual(images)
    query = head.query_proj(head.query_norm(images))
    attention = torch.einsum("bd,cmd->bcm", query, keys) / query.shape[1] ** 0.5
    attended = torch.einsum("bcm,cmd->bcd", attention.softmax(2), head.anchors)
    cosine = torch.einsum("bd,bcd->bc", F.normalize(images, dim=1), F.normalize(attended, dim=2))
    wait()
    return {"logits": (head.scale * cosine).float().cpu().numpy()}
