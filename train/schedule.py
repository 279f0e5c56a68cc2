"""Learning rate schedule, and parameter groups with their weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

Schedule = Callable[[float, int], float]
"""Gives the learning rate by its peak and the step, counted from 0."""


def cosine_factor(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """Compute the share of the peak learning rate at `step`, from 0, of `total`: `warmup` linear steps, then a cosine.

    The first step is never zero, and the share at `step == total` would be `floor`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    fallen = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
    return floor + (1.0 - floor) * fallen


@dataclass(frozen=True)
class Cosine:
    """Schedule of `total` steps by `cosine_factor`, the first `warmup` of them linear.

    A rate ends at `min_lr`; one with a lower peak stays at its peak.
    """

    total: int
    warmup: int
    min_lr: float

    def __call__(self, peak: float, step: int) -> float:
        """Compute the rate."""
        floor = min(1.0, self.min_lr / peak)
        return peak * cosine_factor(step, self.total, self.warmup, floor)


@dataclass(frozen=True)
class Constant:
    """Schedule that stays at the peak after `warmup` linear steps."""

    warmup: int

    def __call__(self, peak: float, step: int) -> float:
        """Compute the rate."""
        return peak * min(1.0, (step + 1) / self.warmup)


def set_rates(optimizer: Optimizer, schedule: Schedule, step: int) -> None:
    """Set the learning rate of each group of `parameter_groups` for a step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule(group["peak"], step)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    lr_by_prefix: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Group the parameters that learn by learning rate and weight decay, for an optimizer.

    Args:
        named: Names and parameters; those without `requires_grad` are left out.
        lr: Peak learning rate, kept in each group as `peak`.
        weight_decay: Weight decay, but zero for vectors and scalars, biases, and the logit scale.
        lr_by_prefix: Other peaks for names that start with a prefix; the first that matches counts. Zero freezes.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        peak = next((v for p, v in (lr_by_prefix or {}).items() if name.startswith(p)), lr)
        if parameter.requires_grad and peak > 0:
            decays = parameter.ndim > 1 and not name.endswith(("bias", "logit_scale"))
            groups.setdefault((peak, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]
