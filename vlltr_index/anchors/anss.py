"""Anchor sentence selection (AnSS): which sentences of a class tell it best from all the others.

L_lin(t) = logsumexp_i s(t, i) - mean over the class's images of s(t, i), with s = scale * cosine. The mean
is linear in the images, so only the logsumexp needs all products; it is taken in chunks and kept a
sentence, so that later images change it without the old ones.
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
_TEXT_BYTES = 64 * 2**20  # of normalised texts
_COLUMNS = 2048  # images of a chunk on a CPU
_ROWS = 8192  # at a time in float64


@dataclass(frozen=True)
class SentenceScores:
    """Both terms of L_lin for each sentence, kept so that images can come and go.

    Attributes:
        lse: logsumexp over all images, float64 [N_t].
        last_exact_lse: The value below which removals are measured: the largest `lse` since it was last
            computed from all images, float64 [N_t].
        positive: scale * mean cosine with the class's images (without images: with its mean sentence),
            float64 [N_t].
    """

    lse: Tensor
    last_exact_lse: Tensor
    positive: Tensor

    @property
    def loss(self) -> Tensor:
        """L_lin, float64 [N_t]; the smaller, the better the sentence tells its class."""
        return self.lse - self.positive


class Selection(NamedTuple):
    """Chosen sentences, ordered by class and rank.

    Attributes:
        positions: Int64 [A], places in the input.
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

    Features on the CPU are worked on where `choose_device` says, and the scores come back to them in one piece; labels
    are best left on the CPU: then a GPU is waited for once, whatever the size.

    Args:
        text_features: Float [N_t, D], normalised or not.
        text_labels: Integers [N_t], class ids. A class without an image is scored against its mean
            sentence, so all its sentences must be here.
        image_features: Float [N_i, D], normalised or not. Where there is none at all, the classes' mean sentences
            stand in for them, one a class.
        image_labels: Integers [N_i], class ids.
        logit_scale: The multiplier of the cosine, not its logarithm.

    Returns:
        The scores. Memory stays at one chunk of products and 64 MiB of normalised texts beside the inputs.
    """
    if image_features.shape[0] == 0:
        image_labels, means = class_means(text_features, text_labels)
        image_features = means.to(working_dtype(text_features))
    scale = float(logit_scale)
    device = work_device(text_features)
    images = image_features.to(device, non_blocking=True)
    lse = _logsumexp_cosines(text_features, images, scale)
    positive = positive_terms(text_features, text_labels, images, image_labels, scale)
    lse, positive = torch.stack([lse, positive]).to(text_features.device)
    return SentenceScores(lse, lse.clone(), positive)


def shift_images(
    scores: SentenceScores, text_features: Tensor, came: Tensor, went: Tensor, logit_scale: float | Tensor
) -> tuple[SentenceScores, Tensor]:
    """The logsumexp after images came and went, from these alone; what went is subtracted in the log domain.

    Args:
        scores: Scores of the sentences before.
        text_features: Float [N_t, D], the sentences the scores belong to.
        came: Float [N_new, D], normalised or not.
        went: Float [N_gone, D], normalised or not.
        logit_scale: The multiplier the scores were computed with.

    Returns:
        The scores, their positive terms as before: those of classes whose images changed are `positive_terms`. And
        bool [N_t]: rows whose logsumexp fell more than ln 2 below their `last_exact_lse`, which have lost the digits
        that subtraction needs and must be scored again.
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
    """The positive term of L_lin: scale * mean cosine with the class's images, else with its mean sentence.

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
        text_features, text_labels, images, image_labels, logit_scale, renormalise=False
    )
    if len(bare):
        text = text_features[_at(bare, text_features)]
        labels = text_labels[bare]
        by_text = _against_means(text, labels, text, labels, logit_scale, renormalise=True)
        positive.index_copy_(0, _at(bare, positive), by_text)
    return positive


def select_anchors(
    losses: Tensor,
    text_labels: Tensor,
    sentence_ids: Sequence[str] | Sequence[int] | Tensor,
    max_per_class: int | Tensor,
    mode: Literal["anss", "cutoff"] = "anss",
) -> Selection:
    """Keep at most `max_per_class` sentences of each class.

    Args:
        losses: L_lin, float [N_t]; ignored by `cutoff`.
        text_labels: Integers [N_t], class ids.
        sentence_ids: [N_t] strings or integers that break ties, so that the input's order does not matter.
        max_per_class: M, at least 1; or integers [N_t], the M of each sentence's class.
        mode: `anss`: the smallest losses, ties by sentence id. `cutoff`: the first M in the input's order
            (the paper's baseline).

    Returns:
        Positions ordered by class, then loss, then sentence id, and their ranks.

    Raises:
        InputError: A loss is NaN.
    """
    limits = torch.as_tensor(max_per_class).cpu().expand(losses.shape[0])
    ids = np.asarray(sentence_ids)
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
    """How many anchors the class of each sentence may have: at most `most`, and at most a share of its sentences.

    Args:
        text_labels: Integers [N_t], class ids.
        prompts: Bool [N_t], which sentences are prompts.
        ranked: Bool [N_t], which sentences were scored against images of their class. Where there are none, the scores
            do not tell good sentences from bad ones, so none is left out for its rank: the share is 1.
        most: M, at least 1.
        share: Of the class's own sentences, rounded down, but no fewer than 2; as many of its prompts beside them, or
            this share of these where it has nothing else. None: no such limit.

    Returns:
        int64 [N_t], the same for all sentences of a class.
    """
    if share is None:
        return torch.full_like(text_labels, most, dtype=torch.int64)
    classes, group = torch.unique(text_labels, return_inverse=True)
    own, every = (torch.bincount(group[part], minlength=len(classes)) for part in (~prompts, slice(None)))
    counted = torch.where(own > 0, own, every)
    shares = torch.where(ranked, torch.tensor(share, dtype=torch.float64), 1.0)  # in float32 1e-9 is lost
    return (counted[group] * shares + 1e-9).long().clamp(min=2, max=most)


def ranks_in_runs(labels: Tensor) -> Tensor:
    """Position of each element of integers [N] within its run of equal ones: int64 [N], from 0."""
    _, sizes = torch.unique_consecutive(labels, return_counts=True)
    return torch.arange(len(labels)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)


def _at(places: Tensor, values: Tensor) -> Tensor:
    """Places int64 on the CPU, where `values` lie; a GPU is not waited for."""
    return places.to(values.device, non_blocking=True)


def _logsumexp_cosines(text_features: Tensor, images: Tensor, scale: float) -> Tensor:
    """logsumexp_i scale * cos(t, i) of every sentence, float64 [N_t] on the working device, by chunks of products.

    Beside it lie 64 MiB of normalised sentences, or one chunk of them. A GPU gets the images all at once, sentences in
    blocks, and is not waited for.
    """
    dtype = working_dtype(text_features, images)
    device = work_device(text_features)
    images = images.to(device, non_blocking=True)
    # On a CPU a chunk that stays near the caches is twice as fast as the largest one that fits the budget.
    columns = min(max(1, images.shape[0]), _COLUMNS if images.device.type == "cpu" else 4 * _COLUMNS)
    # Three buffers of a chunk's size may live at once.
    rows = max(1, min(1024, _MEMORY_BYTES // (3 * columns * dtype.itemsize)))
    result = torch.full((text_features.shape[0],), -math.inf, dtype=torch.float64, device=device)
    # Texts are normalised once, images once a block of texts.
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
    """Means of the normalised `features` [N, D] of each class: the labels int64 [G], ascending, and float64 [G, D].

    Labels are where they were given, the means where the features lie.
    """
    classes, group = torch.unique(labels, return_inverse=True)
    counts, group = (_at(one, features) for one in (torch.bincount(group, minlength=len(classes)), group))
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
    """scale * t . mean of the class's normalised `features`, float64 [N_t] on the working device; labels on the CPU.

    Zero for a class without any.
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
