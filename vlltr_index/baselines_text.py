"""Baselines that read an image by its class's text and a few kept images: pure tensors and strings, no files.

Tip-Adapter (Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022)
and the random-words control of WaffleCLIP (Roth et al., "Waffling around for Performance: Visual Classification
with Random Words and Broad Concepts", ICCV 2023).
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.baselines import HeadTraining, best_setting, cosine_logits, minimise
from vlltr_index.errors import InputError
from vlltr_index.tensors import check_labels, check_matrix, unit_rows, working_dtype

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

__all__ = [
    "TipCache",
    "cache_logits",
    "choose_tip",
    "first_of_each_class",
    "tip_logits",
    "tune_cache_keys",
    "waffle_noise",
    "waffle_text",
]

_BATCH = 512


@dataclass(frozen=True, eq=False)
class TipCache:
    """The key-value cache and the text classifier it is added to.

    Attributes:
        keys: Float [K, D], features of the kept images; used normalised.
        labels: Int64 [K], their classes.
        prototypes: Float [C, D], the text classifier; used normalised.
        scale: Multiplier of the text cosines.
    """

    keys: Tensor
    labels: Tensor
    prototypes: Tensor
    scale: float


def first_of_each_class(labels: Tensor, limit: int) -> Tensor:
    """Positions int64 [K], ascending, of the first `limit` images of each class of labels int64 [N].

    Images are in the order of their ids, which are hashes: the first are as good as drawn.
    """
    check_labels("labels", labels)
    if limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    order = labels.argsort(stable=True)
    counts = torch.unique_consecutive(labels[order], return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.arange(len(labels)) - starts
    kept: Tensor = order[within < limit].sort().values
    return kept


def cache_logits(features: Tensor, keys: Tensor, labels: Tensor, num_classes: int, beta: float) -> Tensor:
    """exp(-beta (1 - f F^T)) L, the cache's part of Tip-Adapter; [N, C].

    Args:
        features: Float [N, D], normalised or not.
        keys: Float [K, D], normalised or not.
        labels: Integers [K].
        num_classes: C.
        beta: Sharpness.

    Raises:
        InputError: If the shapes do not fit.
    """
    check_matrix("keys", keys)
    check_matrix("features", features, columns=keys.shape[1])
    check_labels("labels", labels, keys.shape[0], num_classes)
    affinity = torch.exp(-beta * (1.0 - cosine_logits(features, keys)))
    sums = torch.zeros(len(features), num_classes, dtype=affinity.dtype, device=affinity.device)
    return sums.index_add(1, labels, affinity)


def tip_logits(features: Tensor, cache: TipCache, alpha: float, beta: float) -> Tensor:
    """alpha exp(-beta (1 - f F^T)) L + scale f W^T (Zhang et al. 2022) of features [N, D]; [N, C]."""
    classes = cache.prototypes.shape[0]
    parts = [
        alpha * cache_logits(part, cache.keys, cache.labels, classes, beta)
        + cosine_logits(part, cache.prototypes, cache.scale)
        for part in features.split(_BATCH)
    ]
    return torch.cat(parts) if parts else features.new_empty(0, classes)


def choose_tip(
    features: Tensor, labels: Tensor, cache: TipCache, alphas: Sequence[float], betas: Sequence[float]
) -> tuple[float, float, float]:
    """The pair (alpha, beta) with the best class-balanced top-1 accuracy, and that accuracy; of equals the first.

    Args:
        features: Float [N, D] of images that are not in the cache.
        labels: Integers [N].
        cache: The cache.
        alphas: Weights to try.
        betas: Sharpnesses to try.

    Raises:
        InputError: If there is nothing to choose from, or the shapes do not fit.
    """
    classes = cache.prototypes.shape[0]
    text = cosine_logits(features, cache.prototypes, cache.scale)
    found: list[tuple[float, float, float]] = []
    for beta in betas:
        parts = [cache_logits(p, cache.keys, cache.labels, classes, beta) for p in features.split(_BATCH)]
        kept = torch.cat(parts)
        alpha, accuracy = best_setting(alphas, partial(_weighted, text, kept), labels)
        found.append((alpha, beta, accuracy))
    if not found:
        raise InputError("nothing to choose from: no beta")
    return max(found, key=lambda pair: pair[2])


def _weighted(text: Tensor, kept: Tensor, alpha: float) -> Tensor:
    return text + alpha * kept


def tune_cache_keys(
    views: Tensor,
    labels: Tensor,
    cache: TipCache,
    alpha: float,
    beta: float,
    training: HeadTraining,
    progress: Progress | None = None,
) -> TipCache:
    """Tip-Adapter-F: the keys learn by cross-entropy on the kept images, values and text stay.

    Args:
        views: Float [V, K, D], views of the kept images.
        labels: Integers [K].
        cache: Where the keys start.
        alpha: Weight of the cache while training.
        beta: Sharpness while training.
        training: Its numbers.
        progress: Called after every step.

    Returns:
        The cache with the learned keys, normalised.

    Raises:
        VlltrError: If the loss is not finite.
    """
    dtype = working_dtype(views, cache.keys)
    keys = unit_rows(cache.keys.to(dtype)).requires_grad_()
    prototypes = unit_rows(cache.prototypes.to(dtype))
    rows = unit_rows(views.to(dtype))

    def logits(batch: Tensor) -> Tensor:
        text = cache.scale * (batch @ prototypes.T)
        return text + alpha * cache_logits(batch, keys, cache.labels, len(prototypes), beta)

    minimise([keys], logits, rows, labels, len(prototypes), training, "train cache keys", progress)
    return TipCache(unit_rows(keys.detach()), cache.labels, cache.prototypes, cache.scale)


def waffle_noise(words: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` meaningless descriptors: two words at a time, and the same with random letters, in turn.

    They are the same for every class, as in WaffleCLIP (Roth et al. 2023): only the name tells.

    Args:
        words: What random words are drawn from; with none, all are letters.
        count: How many.
        seed: Of the draw.
    """
    draw = random.Random(seed)
    noise = []
    for number in range(count):
        if words and number % 2 == 0:
            pair = [draw.choice(words) for _ in range(2)]
            noise.append(" ".join(pair))
        else:
            lengths = [len(draw.choice(words)) if words else draw.randint(4, 8) for _ in range(2)]
            noise.append(" ".join("".join(draw.choices(string.ascii_lowercase, k=n)) for n in lengths))
    return noise


def waffle_text(prompt: str, noise: str) -> str:
    """`a photo of a tench, which has NOISE.` of the prompt `a photo of a tench.`"""
    return f"{prompt.rstrip('. ')}, which has {noise}."
