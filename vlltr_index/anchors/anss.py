"""Anchor sentence selection (AnSS): the sentences of a class that distinguish it best from the other classes.

L_lin(t) = logsumexp_i s(t, i) - mean over the class's images of s(t, i), with s = scale * cosine. The mean is linear in
the images, so only the logsumexp needs all products. It is computed in chunks and stored for each sentence, so that it
can be updated for added or removed images without the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.tensors import full_precision, unit_rows, work_device, working_dtype

_MEMORY_BYTES = 256 * 2**20
_TEXT_BYTES = 64 * 2**20  # most bytes of normalised texts
_COLUMNS = 2048  # images of a chunk on a CPU
_ROWS = 8192  # at a time in float64


@dataclass(frozen=True)
class SentenceScores:
    """Both terms of L_lin for each sentence, from which it can be updated when images are added or removed.

    Attributes:
        lse: Logsumexp over all images, float64 [N_t].
        last_exact_lse: The largest `lse` since it was last computed from all images, float64 [N_t]; how far `lse` has
            fallen below it tells how many digits removals have cost.
        positive: scale * mean cosine with the class's images (without images: with its mean sentence), float64 [N_t].
    """

    lse: Tensor
    last_exact_lse: Tensor
    positive: Tensor

    @property
    def loss(self) -> Tensor:
        """L_lin, float64 [N_t]; the smaller it is, the better the sentence distinguishes its class."""
        return self.lse - self.positive


class Selection(NamedTuple):
    """Selected sentences, ordered by class and rank.

    Attributes:
        positions: Int64 [A], positions in the input.
        ranks: Int64 [A], from 0 within each class.
    """

    positions: Tensor
    ranks: Tensor


def score_sentences(
    text_features: Tensor,
    text_labels: Tensor,
    image_features: Tensor,
    image_labels: Tensor,
    logit_scale: float | Tensor,
) -> SentenceScores:
    """Score sentences against the score images of all classes.

    Features on the CPU are moved to the device of `choose_device`, and the scores come back to the CPU in one transfer;
    labels are best left on the CPU: then a GPU is waited for only once.

    Args:
        text_features: Float [N_t, D], normalised or not.
        text_labels: Integers [N_t], class ids. A class without an image is scored against its mean
            sentence, so all its sentences must be here.
        image_features: Float [N_i, D], normalised or not. If there is none at all, the mean sentence of each class
            takes the place of its images.
        image_labels: Integers [N_i], class ids.
        logit_scale: The multiplier of the cosine, not its logarithm.

    Returns:
        The scores. Beside the inputs memory is used for one chunk of products and 64 MiB of normalised texts.
    """
    if image_features.shape[0] == 0:
        image_labels, means = class_means(text_features, text_labels)
        image_features = means.to(working_dtype(text_features))
    scale = float(logit_scale)
    device = work_device(text_features)
    images = image_features.to(device, non_blocking=True)
    lse = _logsumexp_cosines(text_features, images, scale)
    positive = positive_terms(
        text_features, text_labels, images, image_labels=image_labels, logit_scale=scale
    )
    lse, positive = torch.stack([lse, positive]).to(text_features.device)
    return SentenceScores(lse, lse.clone(), positive)


def shift_images(
    scores: SentenceScores, text_features: Tensor, came: Tensor, went: Tensor, logit_scale: float | Tensor
) -> tuple[SentenceScores, Tensor]:
    """Update the logsumexp by added and removed images alone; removed ones are subtracted in the log domain.

    Args:
        scores: Scores of the sentences before the change.
        text_features: Float [N_t, D], the sentences that the scores belong to.
        came: Float [N_new, D], the added images, normalised or not.
        went: Float [N_gone, D], the removed images, normalised or not.
        logit_scale: The multiplier that the scores were computed with.

    Returns:
        The scores, with the old positive terms: where a class's images changed, compute them by `positive_terms`. And
        bool [N_t]: rows whose logsumexp fell more than ln 2 below their `last_exact_lse`, which have lost too many
        digits to subtraction and must be scored again.
    """
    scale = float(logit_scale)
    lse = scores.lse
    last = scores.last_exact_lse
    if len(came):
        lse = torch.logaddexp(lse, _logsumexp_cosines(text_features, came, scale).to(lse.device))
        last = torch.maximum(last, lse)
    if len(went):
        gone = _logsumexp_cosines(text_features, went, scale).to(lse.device)
        lse = lse + torch.log1p(-torch.exp(gone - lse).clamp(max=1.0))
    return SentenceScores(lse, last, scores.positive), lse < last - math.log(2.0)


def positive_terms(
    text_features: Tensor,
    text_labels: Tensor,
    images: Tensor,
    image_labels: Tensor,
    logit_scale: float,
) -> Tensor:
    """Compute the positive term of L_lin: scale * mean cosine with the class's images, else with its mean sentence.

    Args:
        text_features: Float [N_t, D], normalised or not; all sentences of a class that has no image.
        text_labels: Integers [N_t], class ids.
        images: Float [N_i, D], the images of these classes, normalised or not.
        image_labels: Integers [N_i], class ids.
        logit_scale: The multiplier of the cosine.

    Returns:
        Float64 [N_t], on the working device.
    """
    text_labels = text_labels.cpu()
    image_labels = image_labels.cpu()
    bare = (~torch.isin(text_labels, image_labels)).nonzero()[:, 0]
    positive = _against_means(
        text_features, text_labels, images, labels=image_labels, scale=logit_scale, renormalise=False
    )
    if len(bare):
        text = text_features[_at(bare, text_features)]
        labels = text_labels[bare]
        by_text = _against_means(text, labels, text, labels=labels, scale=logit_scale, renormalise=True)
        positive.index_copy_(0, _at(bare, positive), by_text)
    return positive


def select_anchors(
    losses: Tensor,
    text_labels: Tensor,
    keys: Sequence[str] | Sequence[int] | Tensor,
    max_per_class: int | Tensor,
    mode: Literal["anss", "cutoff"] = "anss",
) -> Selection:
    """Keep at most `max_per_class` sentences of each class.

    Args:
        losses: L_lin, float [N_t]; ignored by `cutoff`.
        text_labels: Integers [N_t], class ids.
        keys: [N_t] strings or integers that break ties, so that the input's order does not matter.
        max_per_class: M, at least 1; or integers [N_t], the M of each sentence's class.
        mode: `anss`: the smallest losses, ties by key. `cutoff`: the first M in the input's order
            (the paper's baseline).

    Returns:
        Positions ordered by class, then loss, then key, and their ranks.

    Raises:
        InputError: A loss is NaN.
    """
    limits = torch.as_tensor(max_per_class).cpu().expand(losses.shape[0])
    ids = np.asarray(keys)
    labels = text_labels.detach().cpu()
    values = losses.detach().cpu().to(torch.float64).numpy()
    if mode == "anss" and np.isnan(values).any():
        raise InputError(f"the loss of sentence {ids[np.isnan(values)][0]} is not a number")
    by = (ids, values, labels.numpy()) if mode == "anss" else (labels.numpy(),)
    order = torch.from_numpy(np.lexsort(by))  # stable
    ranks = ranks_in_runs(labels[order])
    kept = ranks < limits[order]
    return Selection(order[kept], ranks[kept])


def anchor_limits(
    text_labels: Tensor, prompts: Tensor, ranked: Tensor, most: int, share: float | None
) -> Tensor:
    """Compute how many anchors the class of each sentence may have: at most `most` and a share of its sentences.

    The limit holds for the class's own sentences and for its prompts separately.

    Args:
        text_labels: Integers [N_t], class ids.
        prompts: Bool [N_t], which sentences are prompts.
        ranked: Bool [N_t], which sentences were scored against images of their class. Without such images the scores do
            not separate good sentences from bad ones, so the share is 1.
        most: M, at least 1.
        share: The share of the class's own sentences, or of its prompts if it has nothing else; rounded down, but at
            least 2. None: no such limit.

    Returns:
        Int64 [N_t], the same for all sentences of a class.
    """
    if share is None:
        return torch.full_like(text_labels, most, dtype=torch.int64)
    classes, group = torch.unique(text_labels, return_inverse=True)
    own = torch.bincount(group[~prompts], minlength=len(classes))
    every = torch.bincount(group, minlength=len(classes))
    counted = torch.where(own > 0, own, every)
    shares = torch.where(
        ranked, torch.tensor(share, dtype=torch.float64), 1.0
    )  # float32 would lose the 1e-9 below
    return (counted[group] * shares + 1e-9).long().clamp(min=2, max=most)


def ranks_in_runs(labels: Tensor) -> Tensor:
    """Compute the position of each element of integers [N] within its run of equal ones: int64 [N], from 0."""
    _, sizes = torch.unique_consecutive(labels, return_counts=True)
    return torch.arange(len(labels)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)


def _at(places: Tensor, values: Tensor) -> Tensor:
    """Move positions, int64 on the CPU, to the device of `values`, without waiting for a GPU."""
    return places.to(values.device, non_blocking=True)


def _logsumexp_cosines(text_features: Tensor, images: Tensor, scale: float) -> Tensor:
    """Compute logsumexp_i scale * cos(t, i) of every sentence, float64 [N_t] on the working device, in chunks.

    In memory are one chunk of products and 64 MiB of normalised sentences, or one chunk of these if that is more. On a
    GPU all images are moved at once, and sentences in blocks, without waiting for it.
    """
    dtype = working_dtype(text_features, images)
    device = work_device(text_features)
    images = images.to(device, non_blocking=True)
    # On a CPU a chunk that fits into the caches is twice as fast as the largest one that fits into the budget.
    columns = min(max(1, images.shape[0]), _COLUMNS if images.device.type == "cpu" else 4 * _COLUMNS)
    # Up to three buffers of a chunk's size exist at once.
    rows = max(1, min(1024, _MEMORY_BYTES // (3 * columns * dtype.itemsize)))
    result = torch.full((text_features.shape[0],), -math.inf, dtype=torch.float64, device=device)
    # Texts are normalised once, images once for each block of texts.
    block = rows * max(1, _TEXT_BYTES // (rows * max(1, text_features.shape[1]) * dtype.itemsize))
    with torch.no_grad(), full_precision(device):
        for start in range(0, text_features.shape[0], block):
            text = scale * unit_rows(
                text_features[start : start + block].to(device, dtype, non_blocking=True)
            )
            total = result[start : start + block]
            for first in range(0, images.shape[0], columns):
                unit = unit_rows(images[first : first + columns].to(dtype)).T
                for row in range(0, text.shape[0], rows):
                    logits = text[row : row + rows] @ unit
                    top = logits.amax(1, keepdim=True)
                    part = logits.sub_(top).exp_().sum(1).to(torch.float64).log_() + top[:, 0]
                    total[row : row + rows] = torch.logaddexp(total[row : row + rows], part)
    return result


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean of each class's normalised `features` [N, D]: labels int64 [G], ascending, and float64 [G, D].

    The labels stay on their device, the means are on the features' device.
    """
    classes, group = torch.unique(labels, return_inverse=True)
    counts = _at(torch.bincount(group, minlength=len(classes)), features)
    group = _at(group, features)
    sums = features.new_zeros((len(classes), features.shape[1]), dtype=torch.float64)
    for start in range(0, features.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        sums.index_add_(0, group[part], unit_rows(features[part].to(torch.float64)))
    return classes, sums / counts[:, None]


def _against_means(
    text_features: Tensor,
    text_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    scale: float,
    renormalise: bool,
) -> Tensor:
    """Compute scale * t . mean of the class's normalised `features`: float64 [N_t], on the working device.

    Zero for a class without any. Labels lie on the CPU.
    """
    device = work_device(text_features)
    with torch.no_grad(), full_precision(device):
        classes, means = class_means(features.to(device, non_blocking=True), labels)
        means = torch.cat([unit_rows(means) if renormalise else means, means.new_zeros(1, means.shape[1])])
        own = torch.searchsorted(classes, text_labels.contiguous())
        found = torch.isin(text_labels, classes)
        own = _at(torch.where(found, own, len(classes)), means)  # the last row of `means` is zero
        result = torch.empty(text_features.shape[0], dtype=torch.float64, device=device)
        for start in range(0, text_features.shape[0], _ROWS):
            part = slice(start, start + _ROWS)
            text = unit_rows(text_features[part].to(device, non_blocking=True).double())
            result[part] = scale * (text * means[own[part]]).sum(1)
        return result
