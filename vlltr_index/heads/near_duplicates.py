"""Near duplicates among the images of one class."""

from __future__ import annotations

import torch
from torch import Tensor

from vlltr_index.tensors import unit_rows

_ALIKE = 0.9995  # least cosine of near duplicates


def near_duplicates(features: Tensor | None, thumbnails: Tensor | None) -> Tensor:
    """Find pairs, int64 [P, 2]."""
    if features is None:
        return torch.empty(0, 2, dtype=torch.int64)
    images = unit_rows(features)
    return ((images @ images.T) > _ALIKE).triu(1).nonzero().cpu()
