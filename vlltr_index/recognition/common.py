"""How common a model's classes are among images without labels (`--prior folder`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.heads.frequencies import BEST, choose_strength, estimate
from vlltr_index.heads.units import number_observations, units_of

if TYPE_CHECKING:
    from vlltr_index.recognition.scorer import Scorer

_log = logging.getLogger(__name__)
_BATCH = 512


def frequencies_among(scorer: Scorer, features: Tensor, groups: Sequence[str | None] | None = None) -> Tensor:
    """Estimate how common each class is among images, float64 [C]; see `Model.frequencies_among`.

    Args:
        scorer: A model that knows no prior.
        features: Float [N, D], unnormalised; they are moved to the device of its anchors part by part.
        groups: The group of each image, None for one without; default: none has one.
    """
    classes = len(scorer.class_ids)
    level, held_out = scorer.held_out("how common classes are")
    strength = choose_strength(held_out)
    if strength is None or not len(features):
        _log.warning("how common the classes are cannot be told: they are taken to be equally common")
        return torch.ones(classes, dtype=torch.float64)
    device = scorer.bank.vectors.device
    scores = []
    columns = []
    known = []
    for part in features.split(_BATCH):
        there = part.to(device)
        top = scorer.exhaustive(there).log_scores.topk(min(BEST, classes))
        scores.append(top.values.cpu())
        columns.append(top.indices.cpu())
        known.append(scorer.fits(there).cpu() >= level)
    found = torch.cat(columns)
    best = found[:, 0]
    places = number_observations(best, units_of(features, best, groups or [None] * len(features)))
    votes = torch.cat(known) / torch.bincount(places)[places].double()
    _log.info("%d of %d images tell how common the classes are", int((votes > 0.0).sum()), len(features))
    return estimate(torch.cat(scores), found, classes, votes, strength).exp()
