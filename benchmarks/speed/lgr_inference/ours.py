"""`vlltr_index.heads.lgr.LGRHead` over all classes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import DEVICE, bank_of, images_of, wait
from vlltr_index.heads.lgr import LGRHead


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """Head, anchors, batch."""
    bank = bank_of(inputs, values)
    head = LGRHead(values["dim"], bank.num_classes, logit_scale=100.0)
    with torch.no_grad():
        head.query_proj.weight.copy_(torch.from_numpy(inputs["projections"][0]))
        head.key_proj.weight.copy_(torch.from_numpy(inputs["projections"][1]))
    return head.to(DEVICE).eval(), bank, images_of(inputs)[0]


@torch.inference_mode()
def run(state: Any) -> Arrays:
    """Both branches."""
    head, bank, images = state
    head.visual_logits(images)
    text = head.text_logits(images, bank)
    wait()
    return {"logits": text.float().cpu().numpy()}
