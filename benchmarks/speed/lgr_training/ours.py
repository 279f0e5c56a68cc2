"""`vlltr_index.heads.lgr.LGRHead` in a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import DEVICE, bank_of, images_of
from benchmarks.speed.lgr_training.step import Step
from vlltr_index.heads.lgr import LGRHead


def prepare(inputs: Arrays, values: dict[str, Any]) -> Step:
    """Head, anchors, optimizer, batch."""
    bank = bank_of(inputs, values)
    head = LGRHead(values["dim"], bank.num_classes, logit_scale=100.0)
    with torch.no_grad():
        head.query_proj.weight.copy_(torch.from_numpy(inputs["projections"][0]))
        head.key_proj.weight.copy_(torch.from_numpy(inputs["projections"][1]))
    head.to(DEVICE)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        return head.visual_logits(images), head.text_logits(images, bank)

    return Step(head, both, head.query_proj.weight, *images_of(inputs))


def run(state: Step) -> Arrays:
    """One step."""
    return state()
