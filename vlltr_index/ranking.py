"""Rankings: the nearest of many vectors, batch by batch, and two rankings made one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fuse_ranks", "nearest"]

_RRF = 60  # of reciprocal rank fusion (Cormack et al. 2009)


def nearest(
    batches: Iterable[tuple[pa.Array, Tensor]], query: Tensor, allowed: pa.Array, top: int
) -> tuple[list[tuple[str, float]], int]:
    """The `top` keys of greatest cosine to a query, and how many were compared; equal ones go by key.

    Args:
        batches: Keys [b] and vectors float32 [b, D], unnormalised; the keys are distinct.
        query: Float32 [D], unnormalised.
        allowed: The keys that count.
        top: At least 1.
    """
    wanted = F.normalize(query.float().cpu(), dim=0)
    best: list[tuple[float, str]] = []
    compared = 0
    for keys, vectors in batches:
        counts = torch.from_numpy(pc.is_in(keys, value_set=allowed).to_numpy(zero_copy_only=False))
        rows = counts.nonzero().squeeze(1)
        if not len(rows):
            continue
        compared += len(rows)
        scores = F.normalize(vectors[rows], dim=1) @ wanted
        least = scores.topk(min(top, len(scores))).values[-1]
        chosen = (scores >= least).nonzero().squeeze(1)  # with all that are equal to the last one
        names = keys.take(pa.array(rows[chosen].numpy())).to_pylist()
        best += zip((-scores[chosen]).tolist(), names, strict=True)
        best = sorted(best)[:top]
    return [(key, -negative) for negative, key in best], compared


def fuse_ranks(*rankings: Sequence[str], constant: int = _RRF) -> dict[str, float]:
    """Reciprocal rank fusion: the sum over the rankings of 1 / (constant + rank), rank from 1, by key."""
    fused: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, 1):
            fused[key] = fused.get(key, 0.0) + 1 / (constant + rank)
    return fused
