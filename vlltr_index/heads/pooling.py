"""The answer to the images of a unit together: the mean of what each says, as sure as they are independent.

Of m images of which two are alike by rho the mean is worth w = m / (1 + (m - 1) rho) independent ones. The answer has
the log-scores w log(mean of the images' probabilities): the best class is that of the mean, whatever rho is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlltr_index.heads.fusion import FusedScores, Rule

_AT_ONCE = 512


def worths(units: Tensor, correlation: float) -> Tensor:
    """Return of how many independent images those of each unit are worth, float64 [U].

    Args:
        units: Int64 [N], 0 to U - 1, each of them there: the unit of each image.
        correlation: rho, from 0, where images of a unit are independent, to 1, where they are copies.
    """
    sizes = torch.bincount(units).double()
    return sizes / (1.0 + (sizes - 1.0) * correlation)


def log_means(logarithms: Tensor, units: Tensor) -> Tensor:
    """Compute log(mean over each unit of exp(logarithms)): float [U, C] of float [N, C], `units` as for `worths`."""
    sizes = torch.bincount(units)
    return _log_sums(logarithms, units, len(sizes)) - sizes.to(logarithms).log()[:, None]


def _log_sums(logarithms: Tensor, units: Tensor, count: int) -> Tensor:
    """Compute log(sum over each unit of exp(logarithms [N, C])), minus infinity for a unit without any: [U, C]."""
    least = torch.finfo(logarithms.dtype).min
    highest = logarithms.new_full((count, logarithms.shape[1]), least)
    highest = highest.scatter_reduce(0, units[:, None].expand_as(logarithms), logarithms, "amax")
    sums = torch.zeros_like(highest).index_add_(0, units, (logarithms - highest[units]).exp())
    return highest + sums.log()


def unit_means(rows: Tensor, units: Tensor) -> Tensor:
    """Return the mean of values [N] or rows [N, K] over each unit: [U] or [U, K]; `units` as for `worths`."""
    sizes = torch.bincount(units)
    sums = rows.new_zeros(len(sizes), *rows.shape[1:]).index_add_(0, units, rows)
    return sums / sizes.to(sums).reshape(-1, *[1] * (rows.dim() - 1))


def together(
    score: Callable[[Tensor], FusedScores], features: Tensor, units: Tensor, rule: Rule, correlation: float
) -> FusedScores:
    """Score units, each by all its images: [U, C]; part by part, so that memory does not grow with the images.

    The image part is what the score is if no class has a text, the text part the rest. The prior part is a mean, for
    how common a class is counts once. Under the rule `paper` all is a mean.

    Args:
        score: Returns the scores of images, float [B, D], on the CPU.
        features: Float [N, D], unnormalised.
        units: As for `worths`.
        rule: The rule of the scores.
        correlation: As for `worths`.
    """
    sizes = torch.bincount(units)
    means: list[Tensor] = []
    logs: list[Tensor] = []
    for rows, own in zip(features.split(_AT_ONCE), units.split(_AT_ONCE), strict=True):
        found = score(rows)
        sums = [
            values.new_zeros(len(sizes), values.shape[1]).index_add_(0, own, values)
            for values in found.tensors
        ]
        means = [one + more for one, more in zip(means, sums, strict=True)] if means else sums
        if rule != "paper":
            likely = (found.visual_part + found.text_part, found.visual_part)
            more = [_log_sums(values.log_softmax(1), own, len(sizes)) for values in likely]
            logs = [torch.logaddexp(*both) for both in zip(logs, more, strict=True)] if logs else more
    mean = FusedScores(*(values / sizes.to(values)[:, None] for values in means))
    if rule == "paper":
        return mean
    worth = worths(units, correlation).to(mean.text_part)[:, None]
    whole, image = (worth * (values - sizes.to(values).log()[:, None]) for values in logs)
    pooled = mean._replace(visual_part=image, text_part=whole - image)
    return pooled._replace(probabilities=pooled.log_scores.softmax(1))
