"""None of these: scores that say whether an image is of any known class, and the threshold that calibration fits.

A probability over the known classes cannot say it: it sums to one for every image. These scores are not normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.fusion import FusionParams, fuse
from vlltr_index.retrieval import best_row_logits
from vlltr_index.tensors import check_vector

__all__ = ["SCORES", "RejectionFit", "Score", "fit_rejection", "known_scores"]

Score = Literal["text", "visual", "fused", "evidence"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True)
class RejectionFit:
    """The score that tells known from unknown images best, and its threshold.

    Attributes:
        score: The one with the largest AUROC.
        threshold: An image that scores less is of none of the classes.
        tpr: Share of the known images that this accepts; at least what was asked for.
        auroc: Of each score.
        fpr: Of each score: share of the unknown images accepted at its own such threshold.
    """

    score: Score
    threshold: float
    tpr: float
    auroc: dict[Score, float]
    fpr: dict[Score, float]


def known_scores(
    visual_logits: Tensor,
    text_logits: Tensor,
    row_class: Tensor,
    trained: Tensor,
    params: FusionParams,
    wanted: tuple[Score, ...] = SCORES,
) -> dict[Score, Tensor]:
    """How much speaks for an image being of a known class, larger for more; each float [B].

    After temperature and margin: `text`, the largest text logit (scale * cosine); `visual`, the largest visual logit;
    `fused`, the largest alpha * visual + (1 - alpha) * text of a class (text alone for a class without a row);
    `evidence`, the largest text logit plus the log of the largest fused probability. Without any live visual row
    `visual` is `text`.

    Args:
        visual_logits: Float [B, C_v], as for `fuse`; so are `text_logits`, `row_class`, `trained` and `params`.
        wanted: Which scores.

    Raises:
        InputError: Shapes do not fit, or there is no such score.
    """
    if unknown := set(wanted) - set(SCORES):
        raise InputError(f"no such score: {', '.join(sorted(unknown))}; there are {', '.join(SCORES)}")
    fused = fuse(visual_logits, text_logits, row_class, trained, params)
    dtype = fused.probabilities.dtype
    text = text_logits.to(dtype) / params.tau_text - params.margin * trained.to(dtype)
    visual = best_row_logits(visual_logits.to(dtype) / params.tau_visual, row_class, text.shape[1])
    has_row = visual.isfinite().all(0)
    found: dict[Score, Tensor] = {}
    for score in wanted:
        if score == "visual" and bool(has_row.any()):
            found[score] = visual.amax(1)
        elif score == "fused":
            mixed = params.alpha * visual.where(has_row, 0.0) + (1.0 - params.alpha) * text
            found[score] = torch.where(has_row, mixed, text).amax(1)
        elif score == "evidence":
            best = fused.probabilities.amax(1)
            found[score] = text.amax(1) + best.clamp(min=torch.finfo(dtype).tiny).log()
        else:
            found[score] = text.amax(1)
    return found


def fit_rejection(
    known: Mapping[Score, Tensor],
    unknown: Mapping[Score, Tensor],
    weights: Tensor | None = None,
    tpr: float = 0.95,
) -> RejectionFit:
    """Choose the score by AUROC, and the highest threshold that accepts `tpr` of the known images.

    Args:
        known: Scores float [N] of images of known classes.
        unknown: The same scores, float [M], of images of none of them.
        weights: Of the known images, float [N], summing to one; None: all alike.
        tpr: Between 0 and 1.

    Raises:
        InputError: There is no image on one of the sides, or lengths differ.
    """
    if not 0.0 < tpr < 1.0:
        raise InputError(f"the share of known images to accept must lie between 0 and 1, got {tpr}")
    auroc: dict[Score, float] = {}
    fpr: dict[Score, float] = {}
    thresholds: dict[Score, float] = {}
    for score, values in known.items():
        other = unknown[score]
        check_vector(f"known[{score}]", values)
        check_vector(f"unknown[{score}]", other)
        if not values.numel() or not other.numel():
            raise InputError("a threshold needs images of known and of unknown classes")
        share = torch.full((len(values),), 1.0 / len(values)) if weights is None else weights
        check_vector("weights", share, len(values))
        thresholds[score] = _threshold(values.double(), share.double(), tpr)
        auroc[score] = _auroc(values.double(), other.double(), share.double())
        fpr[score] = float((other.double() >= thresholds[score]).double().mean())
    best = max(auroc, key=lambda name: auroc[name])
    share = torch.full((len(known[best]),), 1.0 / len(known[best])) if weights is None else weights
    accepted = float(share.double()[known[best].double() >= thresholds[best]].sum())
    return RejectionFit(best, thresholds[best], accepted, auroc, fpr)


def _threshold(values: Tensor, weights: Tensor, tpr: float) -> float:
    """The largest value such that those at or above it weigh `tpr` at least."""
    ordered, order = values.sort(descending=True)
    reached = weights[order].cumsum(0) >= tpr * float(weights.sum()) - 1e-12
    return float(ordered[int(reached.double().argmax())])


def _auroc(known: Tensor, unknown: Tensor, weights: Tensor) -> float:
    """Probability that a known image, drawn by weight, scores above an unknown one; ties count half."""
    ordered = unknown.sort().values
    above = torch.searchsorted(ordered, known) + torch.searchsorted(ordered, known, right=True)
    return float((above.double() * weights).sum() / (2 * len(ordered) * weights.sum()))
