"""The class prior: as given by name, or estimated from images without labels (`--prior folder`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.errors import PriorError, UnknownClassError
from vlltr_index.heads.frequencies import BEST, choose_strength, estimate
from vlltr_index.heads.units import number_observations, units_of
from vlltr_index.tensors import class_positions
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.recognition.model import Model

_log = logging.getLogger(__name__)
_BATCH = 512


def frequencies_given(model: Model, prior: Mapping[str, float]) -> Tensor:
    """Return the logarithm of how common each class is by names, float64 [C], up to a constant.

    Raises:
        PriorError: If there is no weight for a trained class, two for one, or one for what is no class.
    """
    class_ids = model.class_ids
    weights = torch.zeros(len(class_ids), dtype=torch.float64)
    named: dict[int, str] = {}
    for name, weight in prior.items():
        try:
            class_id = model.classes.lookup(name)
        except UnknownClassError as error:
            raise PriorError(f"the prior: {error.message}", error.hint) from None
        if class_id in named:
            what = f"the prior has two weights for class {model.names[class_id]!r}"
            raise PriorError(f"{what}: as {named[class_id]!r} and as {name!r}", "Write it one way.")
        named[class_id] = name
        column = int(class_positions(class_ids, torch.tensor(class_id)))
        if column >= 0:  # a class of which nothing is known is no answer
            weights[column] = weight
    given = weights > 0.0
    lacking = [model.names[i] for i in class_ids[~given & model.trained].tolist()]
    if lacking:
        what = f"the prior has no weight for {plural(len(lacking), 'class', 'classes')}"
        what += f", such as {lacking[0]!r}"
        raise PriorError(what, "Give each one, also those that cannot be the answer.")
    known = weights.log()
    known[~given] = known[given].mean()  # added classes
    return known


def frequencies_among(
    model: Model, features: Tensor, groups: Sequence[str | None] | None = None
) -> dict[str, float]:
    """Estimate how common each class is among images, by name; see `Model.frequencies_among`.

    Args:
        model: A model without a prior.
        features: Float [N, D], unnormalised; they are moved to the model's device part by part.
        groups: The group of each image, None for one without; default: none has one.
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
