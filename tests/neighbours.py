"""What the tests of indexes share: anchors, queries, a naive search, and a comparison of rankings that knows ties."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DIM = 16


def anchors(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clustered vectors of length one, and distinct keys in no order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(size // 8, 1), DIM, generator=generator)
    noise = 0.5 * torch.randn(size, DIM, generator=generator)
    vectors = F.normalize(centres[torch.arange(size) % len(centres)] + noise, dim=1)
    return vectors, torch.randperm(10 * size, generator=generator)[:size]


def queries(number: int = 7, seed: int = 9) -> Tensor:
    """Vectors of length one."""
    return F.normalize(torch.randn(number, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive(vectors: Tensor, wanted: Tensor, k: int) -> Tensor:
    """The best cosines, from the whole matrix in float64."""
    products = wanted.double() @ vectors.double().T
    return products.sort(dim=1, descending=True).values[:, :k]


def check_hits(scores: Tensor, keys: Tensor, wanted: Tensor, vectors: Tensor, own_keys: Tensor) -> None:
    """Every hit is an anchor with its own cosine; hits are distinct and fall; padding follows them."""
    cosine = {int(key): vectors[row] for row, key in enumerate(own_keys)}
    assert scores.dtype == torch.float32
    assert keys.dtype == torch.int64
    for row in range(len(wanted)):
        hits = [int(key) for key in keys[row] if key >= 0]
        assert len(set(hits)) == len(hits)
        assert bool((keys[row, len(hits) :] == -1).all())
        assert bool(scores[row, len(hits) :].isneginf().all())
        own = torch.stack([wanted[row] @ cosine[key] for key in hits]) if hits else torch.empty(0)
        torch.testing.assert_close(scores[row, : len(hits)], own, atol=1e-5, rtol=0)
        assert bool((own.diff() <= 1e-5).all())


def recall(scores: Tensor, best: Tensor) -> float:
    """Share of hits that reach the last of the true best scores: ties count as found."""
    return float((scores.double() >= best[:, -1:] - 1e-5).double().mean())
