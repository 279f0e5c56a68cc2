"""How far the texts of classes are trusted that stage 1 did not see."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.weighing import level_with_best

_TRUSTS = (1.0, 0.75, 0.5, 0.25, 0.0)
_FEWEST = 3


def fit_trust(model: PLDA) -> float:
    """Find how far the texts of classes are to be trusted that the encoder was not trained on, see `PLDA`.

    Of five values the largest is taken with which the classes' mean images are about as likely as with the best: by at
    most a standard error over the classes.

    Args:
        model: Of such classes alone, each with images and text; with fewer than three of them texts are trusted.
    """
    classes = len(model.counts)
    if classes < _FEWEST:
        return 1.0
    alike = torch.ones(classes, dtype=torch.float64)
    costs = [
        -replace(model, trust=trust * alike.to(model.sums.device)).text_evidence.cpu() for trust in _TRUSTS
    ]
    level = level_with_best(torch.stack(costs), alike, torch.arange(classes))
    return _TRUSTS[int(level[0])]
