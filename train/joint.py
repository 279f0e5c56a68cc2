"""The joint stage: each image is classified among classes given by one sentence each, beside a visual classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlltr_index.train.losses import (
    joint_log_adjustment,
    logit_adjusted_cross_entropy,
    sampler_prior,
    text_classification_loss,
)

__all__ = ["Candidates", "JointPriors", "draw_candidates", "joint_losses"]


@dataclass(frozen=True)
class Candidates:
    """The classes that a step's images are told apart from.

    Attributes:
        classes: int64 [K]; first the classes in the batch, ascending, then the extra ones.
        targets: int64 [B], the place of each image's class among them.
        in_batch: How many of them are in the batch.
    """

    classes: Tensor
    targets: Tensor
    in_batch: int


@dataclass(frozen=True)
class JointPriors:
    """What is added to the logits: log p_c - log pi_c for the text branch, log p_c for the visual one; both [C]."""

    text: Tensor
    visual: Tensor

    @classmethod
    def build(cls, class_counts: Tensor, power: float, batch_size: int, extra: int) -> JointPriors:
        """For a sampler with weights n_c^-power, `batch_size` images a step and `extra` classes drawn beside them."""
        prior = sampler_prior(class_counts, power)
        return cls(joint_log_adjustment(prior, batch_size, extra).float(), prior.log().float())


def draw_candidates(labels: Tensor, present: Tensor, extra: int, generator: torch.Generator) -> Candidates:
    """The classes in the batch and `extra` others.

    Args:
        labels: int64 [B], the classes of all processes' images.
        present: int64 [P], the classes that have training images.
        extra: Others to draw, uniformly and without replacement; fewer where there are no more.
        generator: The same in every process.
    """
    own, targets = labels.unique(return_inverse=True)
    others = present[~torch.isin(present, own)]
    drawn = others[torch.randperm(len(others), generator=generator)[:extra]]
    return Candidates(torch.cat([own, drawn]), targets, len(own))


def joint_losses(
    image_features: Tensor,
    text_features: Tensor,
    visual_logits: Tensor,
    labels: Tensor,
    candidates: Candidates,
    priors: JointPriors,
    logit_scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """The text and the visual loss of a step, both logit-adjusted.

    Args:
        image_features: Float [B, D], unnormalised.
        text_features: Float [K, D], one sentence of each candidate, unnormalised.
        visual_logits: Float [B, C].
        labels: int64 [B].
        candidates: See `draw_candidates`.
        priors: See `JointPriors`.
        logit_scale: The multiplier of the cosine.
    """
    device = image_features.device
    adjustment = priors.text[candidates.classes].to(device)
    text = text_classification_loss(
        image_features, text_features, candidates.targets.to(device), adjustment, logit_scale
    )
    visual = logit_adjusted_cross_entropy(visual_logits, labels.to(device), priors.visual.to(device))
    return text, visual
