"""How common a model's classes are among images without labels (`--prior estimated`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.heads.frequencies import BEST, choose_strength, estimate
from vlltr_index.heads.units import number_observations, units_of

if TYPE_CHECKING:
    from vlltr_index.recognition.model import Model

_log = logging.getLogger(__name__)
_BATCH = 512


@torch.inference_mode()
def frequencies_among(
    model: Model, features: Tensor, groups: Sequence[str | None] | None = None
) -> dict[str, float]:
    """Estimate how common each class is among images without labels, by name.

    Images of a group, and near copies, that are of one class have one vote together, and an image that fits the
    classes worse than 95% of the held-out images has none. How strongly the result is drawn to equal frequencies is
    chosen on the head's held-out images; if every choice loses there, all classes are equally common, with a warning.

    Args:
        model: A model without a prior.
        features: Float [N, D], unnormalised; they are moved to the model's device part by part.
        groups: The group of each image, None for one without; default: none has one.

    Raises:
        MissingStepError: If no image was held out when the head was trained, or for another protocol.
    """
    names = [model.names[i] for i in model.class_ids.tolist()]
    level, held_out = model.rule.held_out("how common classes are")
    strength = choose_strength(held_out)
    if strength is None or not len(features):
        _log.warning("how common the classes are cannot be told: they are taken to be equally common")
        return dict.fromkeys(names, 1.0)
    scores = []
    columns = []
    known = []
    for part in features.split(_BATCH):
        there = part.to(model.device)
        top = model.exhaustive(there).log_scores.topk(min(BEST, len(names)))
        scores.append(top.values.cpu())
        columns.append(top.indices.cpu())
        known.append(model.rule.known_scores(there).cpu() >= level)
    found = torch.cat(columns)
    best = found[:, 0]
    places = number_observations(best, units_of(features, best, groups or [None] * len(features)))
    votes = torch.cat(known) / torch.bincount(places)[places].double()
    _log.info("%d of %d images tell how common the classes are", int((votes > 0.0).sum()), len(features))
    frequencies = estimate(torch.cat(scores), found, len(names), votes, strength).exp()
    return dict(zip(names, frequencies.tolist(), strict=True))
