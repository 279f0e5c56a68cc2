"""Digests of a tower's weights, and a cheap way to tell that they have not changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["revision", "weights_digest"]


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names.

    The device and the memory layout do not count, so a saved and opened copy has the same digest.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def revision(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes when one of the tensors is written in place or replaced: an optimiser's step, a load, a move."""
    return tuple((value._version, value.data_ptr()) for value in tensors)
