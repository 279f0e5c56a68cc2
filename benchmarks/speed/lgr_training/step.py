"""One step of training a head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.harness import Arrays
from benchmarks.speed.lgr_common import wait


class Step:
    """Forward, both losses, backward, AdamW at a rate of zero, so that every round does the same."""

    def __init__(
        self,
        head: nn.Module,
        forward: Callable[[Tensor], tuple[Tensor, Tensor]],
        watched: nn.Parameter,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        self.forward = forward
        self.watched = watched
        self.images = images
        self.labels = labels
        self.optimizer = torch.optim.AdamW(head.parameters(), lr=0.0, weight_decay=0.0)

    def __call__(self) -> Arrays:
        self.optimizer.zero_grad(set_to_none=True)
        visual, text = self.forward(self.images)
        (F.cross_entropy(visual, self.labels) + F.cross_entropy(text, self.labels)).backward()
        self.optimizer.step()
        wait()
        gradient = self.watched.grad
        assert gradient is not None
        return {"logits": text.detach().float().cpu().numpy(), "gradient": gradient.float().cpu().numpy()}
