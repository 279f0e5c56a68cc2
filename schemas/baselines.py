"""The recipe's section `baselines`: what the baselines on stored vectors may choose from, and how they train."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BaselinesConfig"]

_Positive = Annotated[float, Field(gt=0)]
_Whole = Annotated[int, Field(ge=1)]


class BaselinesConfig(BaseModel):
    """Baselines on stored vectors. Where several values stand, split val chooses (or held-back training images)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    epochs: int = Field(default=10, ge=1)  # crt and lws
    batch_size: int = Field(default=256, ge=1)
    lrs: tuple[_Positive, ...] = Field(default=(1e-3, 3e-3, 1e-2), min_length=1)  # crt and lws
    weight_decay: float = Field(default=0.0, ge=0)
    taus: tuple[float, ...] = Field(default=tuple(n / 10 for n in range(11)), min_length=1)  # tau-norm
    scales: tuple[_Positive, ...] = Field(default=(4.0, 8.0, 16.0, 32.0, 64.0), min_length=1)  # imprint
    neighbours: tuple[_Whole, ...] = Field(default=(1, 3, 10, 30, 100), min_length=1)  # knn
    cache_images: int = Field(default=16, ge=1)  # a class, tip-adapter
    alphas: tuple[_Positive, ...] = Field(default=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0), min_length=1)
    betas: tuple[_Positive, ...] = Field(default=(1.0, 3.0, 5.5, 10.0, 20.0, 40.0), min_length=1)
    tip_epochs: int = Field(default=20, ge=1)  # tip-adapter-f
    tip_lr: float = Field(default=1e-3, gt=0)
    waffle_seeds: int = Field(default=5, ge=1)
    held_back: float = Field(default=0.1, gt=0, lt=1)  # of the training images, where there is no split val
    seed: int = Field(default=0, ge=0, lt=2**63)
