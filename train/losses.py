"""Losses of the first stage and of the head: class-wise contrast, distillation, the joint stage's text loss.

Pure functions: tensors in, tensors out. All of them compute in float32 at least, also under autocast, because a
bfloat16 cosine times a scale of 100 is off by whole units. Targets and priors may lie on the CPU while logits lie on a
GPU: they are moved there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.errors import InputError
from vlltr_index.tensors import cosine_logits, full_precision, working_dtype


def class_contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    logit_scale: float | Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Compute the class-wise contrastive loss: image and sentence of one class are a positive pair (VL-LTR, Eq. 2).

    Args:
        image_features: Float [N_i, D], normalised or not.
        text_features: Float [N_t, D], normalised or not; N_t may differ from N_i.
        image_labels: Integers [N_i].
        text_labels: Integers [N_t].
        logit_scale: The multiplier of the cosine, not its logarithm.
        label_smoothing: Share of each target row spread evenly over all its columns.

    Returns:
        The image-to-text and the text-to-image loss, scalars. Rows without a positive are left out of the
        mean; a side without any positive is zero and still has gradients.
    """
    with full_precision(image_features.device):
        logits = cosine_logits(image_features, text_features, logit_scale)
        positives = image_labels[:, None] == text_labels[None, :]
        return _side(logits, positives, label_smoothing), _side(logits.T, positives.T, label_smoothing)


def class_sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
) -> Tensor:
    """Compute SigLIP's loss (Zhai et al., ICCV 2023, Eq. 1): an image and a sentence of one class are a positive pair.

    With logits scale * cosine + bias this is the sum of -log sigmoid(logit) over the positive pairs and of
    -log sigmoid(-logit) over all others, divided by the number of images.

    Args:
        image_features: Float [N_i, D], normalised or not.
        text_features: Float [N_t, D], normalised or not.
        image_labels: Integers [N_i].
        text_labels: Integers [N_t].
        logit_scale: The multiplier of the cosine, not its logarithm.
        logit_bias: What is added to every logit.

    Returns:
        A scalar.
    """
    with full_precision(image_features.device):
        logits = cosine_logits(image_features, text_features, logit_scale) + logit_bias
        signs = (image_labels[:, None] == text_labels[None, :]).to(logits.dtype) * 2 - 1
        return -F.logsigmoid(signs * logits).sum() / logits.shape[0]


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, mode: Literal["full", "paired"] = "full"
) -> Tensor:
    """Compute the loss of distillation from a frozen copy of the initial model (VL-LTR, Eq. 3).

    Args:
        student_logits: Float [N_i, N_t], scaled cosines; rows are images.
        teacher_logits: Float [N_i, N_t], the same of the teacher. No gradient flows into it.
        mode: `full`: cross-entropy with the teacher's whole rows and columns, mean of the two sides (what the
            release runs). `paired`: the equation as printed, diagonal terms only, sum of the two sides; N_t is N_i.

    Returns:
        A scalar.
    """
    dtype = working_dtype(student_logits, teacher_logits)
    student = student_logits.to(dtype)
    teacher = teacher_logits.detach().to(dtype)
    with full_precision(student.device):
        sides = []
        for s, t in ((student, teacher), (student.T, teacher.T)):
            terms = t.softmax(1) * s.log_softmax(1)
            sides.append(-terms.diagonal().mean() if mode == "paired" else -terms.sum(1).mean())
        return sides[0] + sides[1] if mode == "paired" else (sides[0] + sides[1]) / 2


def sampler_prior(class_counts: Tensor, power: float = 0.5) -> Tensor:
    """Compute the class prior of a sampler that draws images by weights n_c^-power: n_c^(1 - power), normalised.

    Args:
        class_counts: Training images of each class, [C]; classes without any get probability zero.
        power: 0 draws images uniformly, 0.5 is the square-root sampler, 1 draws classes uniformly.

    Returns:
        Probabilities, float64 [C].

    Raises:
        InputError: A negative count, or no image at all.
    """
    counts = class_counts.to(torch.float64)
    if counts.numel() == 0 or bool((counts < 0).any()) or not bool((counts > 0).any()):
        raise InputError("class_counts must hold no negative number and at least one positive one")
    mass = torch.where(counts > 0, counts.clamp(min=1e-300) ** (1.0 - power), counts)
    return mass / mass.sum()


def joint_log_adjustment(prior: Tensor, batch_size: int, extra: int) -> Tensor:
    """Compute log p_c - log pi_c, which the joint loss adds to the logit of every candidate, including the target.

    pi_c is the probability that a class other than the image's own is among the candidates of a step. These are the
    classes in the batch and `extra` others, drawn uniformly among the rest that have training images:
    pi_c = 1 - (1 - p_c)^(B-1), plus the chance of being among the extra ones where it is not.

    Args:
        prior: The sampler's class prior p, [C], summing to one.
        batch_size: B, the images of a step over all processes.
        extra: Extra classes drawn a step.

    Returns:
        Float64 [C]; minus infinity for classes without training images, which keeps them out of the
        denominator.
    """
    p = prior.to(torch.float64)
    absent = torch.exp((batch_size - 1) * torch.log1p(-p.clamp(max=1.0 - 1e-15)))
    # The expected number of classes outside the batch, given that c is one of them.
    outside = torch.where(p > 0, torch.exp(batch_size * torch.log1p(-p.clamp(max=1.0 - 1e-15))), 0.0)
    others = 1.0 + outside.sum() - outside
    chance = (1.0 - absent) + absent * (extra / others).clamp(max=1.0)
    return p.log() - chance.clamp(min=1e-300).log()


def text_classification_loss(
    image_features: Tensor,
    candidate_text_features: Tensor,
    targets: Tensor,
    log_adjustment: Tensor,
    logit_scale: float | Tensor,
) -> Tensor:
    """Compute the cross-entropy of images among candidate classes, by logits scale * cosine + log p_c - log pi_c.

    Args:
        image_features: Float [B, D], normalised or not.
        candidate_text_features: Float [K, D], one sentence of each candidate class, normalised or not.
        targets: Int64 [B], positions among the candidates, none of one that is left out.
        log_adjustment: Float [K], see `joint_log_adjustment`; minus infinity leaves a candidate out.
        logit_scale: The multiplier of the cosine, not its logarithm.

    Returns:
        A scalar.
    """
    with full_precision(image_features.device):
        logits = cosine_logits(image_features, candidate_text_features, logit_scale)
    return adjusted_cross_entropy(logits, targets, log_adjustment)


def adjusted_cross_entropy(
    logits: Tensor, targets: Tensor, log_prior: Tensor, tau: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the cross-entropy of logits + tau * log prior (logit adjustment, Menon et al. 2021).

    Args:
        logits: Float [B, C].
        targets: Int64 [B], none of a class that is left out; or float [B, C], rows summing to one, as mixup and cutmix
            give them.
        log_prior: Float [C], the logarithm of the sampler's class prior; minus infinity leaves a class out.
        tau: Strength of the adjustment; 0 is plain cross-entropy (classes left out stay out).
        label_smoothing: Share of an int64 target spread evenly over the classes that are not left out; float targets
            are used as they are.

    Returns:
        A scalar.
    """
    dtype = working_dtype(logits)
    device = logits.device
    present = ~torch.isneginf(log_prior)
    adjustment = torch.where(present, tau * log_prior, log_prior).to(device, dtype, non_blocking=True)
    present = present.to(device, non_blocking=True)
    targets = targets.to(device, non_blocking=True)
    with full_precision(device):
        log_probabilities = (logits.to(dtype) + adjustment).log_softmax(1)
        kept = torch.where(present, log_probabilities, 0.0)
        if targets.is_floating_point():
            return -(targets.to(dtype) * kept).sum(1).mean()
        loss = F.nll_loss(log_probabilities, targets)
        if label_smoothing:
            spread = -kept.sum() / (present.sum() * len(logits))
            loss = (1.0 - label_smoothing) * loss + label_smoothing * spread
        return loss


def _side(logits: Tensor, positives: Tensor, label_smoothing: float) -> Tensor:
    """Compute the mean cross-entropy with the normalised positives, over the rows that have a positive."""
    counts = positives.sum(1)
    kept = counts > 0
    targets = positives.to(logits.dtype) / counts.clamp(min=1)[:, None]
    if label_smoothing:
        targets = (1.0 - label_smoothing) * targets + label_smoothing / logits.shape[1]
    rows = -(targets * logits.log_softmax(1)).sum(1)
    return torch.where(kept, rows, 0.0).sum() / kept.sum().clamp(min=1)
