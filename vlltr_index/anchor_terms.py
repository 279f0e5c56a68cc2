"""The two terms of a sentence's L_lin: logsumexp over all images in chunks, and products with class means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlltr_index.tensors import full_precision, unit_rows, work_device, working_dtype

__all__ = ["against_means", "class_means", "logsumexp_cosines"]

_MEMORY_BYTES = 256 * 2**20
_TEXT_BYTES = 64 * 2**20  # of normalised texts


def logsumexp_cosines(
    text_features: Tensor, images: Tensor, scale: float, chunk_rows: int | None, chunk_images: int | None
) -> Tensor:
    """logsumexp_i scale * cos(t, i) of every sentence, float64 [N_t], one chunk of products at a time.

    Beside it lie 64 MiB of normalised sentences, or one chunk of them. Features on the CPU are worked on by a GPU
    where there is one: the images all at once, sentences in blocks.
    """
    dtype, device = working_dtype(text_features, images), work_device(text_features)
    images = images.to(device)
    # On a CPU a chunk that stays near the caches is twice as fast as the largest one that fits the budget.
    columns = chunk_images or min(max(1, images.shape[0]), 2048 if images.device.type == "cpu" else 8192)
    # Three buffers of a chunk's size may live at once.
    rows = chunk_rows or max(1, min(1024, _MEMORY_BYTES // (3 * columns * dtype.itemsize)))
    result = text_features.new_full((text_features.shape[0],), -math.inf, dtype=torch.float64)
    # Texts are normalised once, images once a block of texts.
    block = rows * max(1, _TEXT_BYTES // (rows * max(1, text_features.shape[1]) * dtype.itemsize))
    with torch.no_grad(), full_precision(device):
        for start in range(0, text_features.shape[0], block):
            text = scale * unit_rows(text_features[start : start + block].to(device, dtype))
            total = result[start : start + block]
            for first in range(0, images.shape[0], columns):
                unit = unit_rows(images[first : first + columns].to(dtype)).T
                for row in range(0, text.shape[0], rows):
                    logits = text[row : row + rows] @ unit
                    top = logits.amax(1, keepdim=True)
                    part = logits.sub_(top).exp_().sum(1).to(torch.float64).log_() + top[:, 0]
                    total[row : row + rows] = torch.logaddexp(total[row : row + rows], part.to(result.device))
    return result


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the normalised `features` [N, D] of each class: the labels int64 [G], ascending, and float64 [G, D]."""
    classes, group = torch.unique(labels, return_inverse=True)
    sums = features.new_zeros((len(classes), features.shape[1]), dtype=torch.float64)
    for start in range(0, features.shape[0], 8192):
        part = slice(start, start + 8192)
        sums.index_add_(0, group[part], unit_rows(features[part].to(torch.float64)))
    return classes, sums / torch.bincount(group, minlength=len(classes))[:, None]


def against_means(
    text_features: Tensor,
    text_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    scale: float,
    renormalise: bool,
) -> Tensor:
    """scale * t . mean of the class's normalised `features`, float64 [N_t]; zero for a class without any."""
    with torch.no_grad(), full_precision(text_features.device):
        classes, means = class_means(features, labels)
        means = torch.cat([unit_rows(means) if renormalise else means, means.new_zeros(1, means.shape[1])])
        own = torch.searchsorted(classes, text_labels.contiguous())
        found = torch.isin(text_labels, classes)
        own = torch.where(found, own, len(classes))  # the last row of `means` is zero
        result = text_features.new_empty((text_features.shape[0],), dtype=torch.float64)
        for start in range(0, text_features.shape[0], 8192):
            part = slice(start, start + 8192)
            result[part] = scale * (unit_rows(text_features[part].to(torch.float64)) * means[own[part]]).sum(
                1
            )
        return result
