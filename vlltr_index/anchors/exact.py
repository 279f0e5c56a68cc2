"""What an anchor index is, its exact twin without FAISS, and an exact delta beside any of them.

All answer by inner product of vectors of length one, that is by cosine, and name anchors by their keys.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.errors import InputError
from vlltr_index.tensors import check_labels, check_matrix, full_precision

__all__ = ["AnchorIndex", "TorchIndex", "WithDelta", "check_anchors", "check_search", "padded"]

_SCORES_AT_ONCE = 2**24


class AnchorIndex(Protocol):
    """Something that finds the anchors nearest to an image."""

    @property
    def kind(self) -> str:
        """`torch`, `flat`, `ivf` or `hnsw`."""
        ...

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        ...

    @property
    def size(self) -> int:
        """Number of anchors that can be found."""
        ...

    @property
    def keys(self) -> Tensor:
        """Keys of the anchors that can be found, int64 [size]."""
        ...

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest anchors of each query, best first.

        Args:
            queries: Float [B, D], normalised.
            k: At least 1; where it exceeds `size`, the rest is padded.

        Returns:
            Cosines float32 [B, k] (padding: -inf) and keys int64 [B, k] (padding: -1), on the queries'
            device. `hnsw` may pad earlier, where it reaches nothing more.

        Raises:
            InputError: The shape or dtype does not fit, a query is not finite, or k is below 1.
        """
        ...


class TorchIndex:
    """Exact search by matrix product; needs no FAISS.

    Args:
        vectors: Float32 [A, D], normalised.
        keys: Int64 [A], distinct.
    """

    kind = "torch"

    def __init__(self, vectors: Tensor, keys: Tensor) -> None:
        self.vectors, self.keys = vectors, keys
        self._copies = dict[torch.device, Tensor]()

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.vectors.shape[1]

    @property
    def size(self) -> int:
        """Number of anchors."""
        return self.vectors.shape[0]

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `AnchorIndex.search`."""
        wanted = check_search(queries, k, self.dim)
        with full_precision(queries.device):
            if wanted.device not in self._copies:
                self._copies[wanted.device] = self.vectors.to(wanted.device)
            vectors = self._copies[wanted.device]
            parts = [self._part(vectors, part, min(k, self.size)) for part in torch.split(wanted, 512)]
        scores, rows = (torch.cat(column) for column in zip(*parts, strict=True))
        return padded(scores, self.keys.to(rows.device)[rows], k)

    def _part(self, vectors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Best k rows, taken over pieces of the anchors so that no [B, A] matrix is ever held."""
        rows_at_once = max(_SCORES_AT_ONCE // max(len(queries), 1), k, 1)
        best, rows = queries.new_empty((len(queries), 0)), torch.empty_like(queries[:, :0], dtype=torch.int64)
        for start in range(0, self.size, rows_at_once):
            scores, found = (queries @ vectors[start : start + rows_at_once].T).topk(
                min(k, self.size - start, rows_at_once)
            )
            best, rows = torch.cat([best, scores], 1), torch.cat([rows, found + start], 1)
            best, order = best.topk(min(k, best.shape[1]))
            rows = rows.gather(1, order)
        return best, rows


class WithDelta:
    """A base index with later anchors beside it and removed ones struck out; exact where the base is.

    Args:
        base: Any index.
        added_vectors: Float [N, D], normalised; N may be 0.
        added_keys: Int64 [N], distinct. A key that the base has too replaces the base's.
        removed_keys: Int64 [R]; keys that the base does not have are ignored.

    Raises:
        InputError: Shapes do not fit, vectors are not normalised, or a key is both added and removed.
    """

    def __init__(
        self, base: AnchorIndex, added_vectors: Tensor, added_keys: Tensor, removed_keys: Tensor
    ) -> None:
        vectors, keys = check_anchors(added_vectors, added_keys, base.dim)
        check_labels("removed_keys", removed_keys)
        removed = torch.unique(removed_keys.detach().cpu().long())
        both = keys[torch.isin(keys, removed)]
        if len(both):
            raise InputError(f"anchor key {int(both[0])} is both added and removed")
        self.base, self.delta, self.kind = base, TorchIndex(vectors, keys), base.kind
        hidden = torch.isin(base.keys, torch.cat([removed, keys]))
        self._hidden = base.keys[hidden]
        self.keys = torch.cat([base.keys[~hidden], keys])

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.base.dim

    @property
    def size(self) -> int:
        """Number of anchors that can be found."""
        return len(self.keys)

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `AnchorIndex.search`."""
        wanted = check_search(queries, k, self.dim)
        scores, keys = self._live(wanted, k)
        if self.delta.size:
            new = self.delta.search(wanted, k)
            scores, keys = torch.cat([scores, new[0]], 1), torch.cat([keys, new[1]], 1)
        best, order = scores.topk(min(k, scores.shape[1]))
        return padded(best, keys.gather(1, order), k)

    def _live(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """At least the best k of the base that are not hidden; asks deeper only where that was not enough."""
        most = min(self.base.size, k + len(self._hidden))
        depth = min(most, k + min(k, len(self._hidden)))
        while True:
            scores, keys = self.base.search(queries, max(depth, 1))
            scores = scores.masked_fill(torch.isin(keys, self._hidden.to(keys.device)), float("-inf"))
            if depth >= most or bool((scores.isfinite().sum(1) >= k).all()):
                return scores, keys.masked_fill(scores.isneginf(), -1)
            depth = min(most, 2 * depth)


def check_anchors(vectors: Tensor, keys: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Vectors [A, D] as contiguous float32 and keys [A] as int64, both on the CPU, after a look at them."""
    check_matrix("vectors", vectors, columns=dim)
    check_labels("keys", keys, size=vectors.shape[0])
    vectors, keys = vectors.detach().cpu().float().contiguous(), keys.detach().cpu().long().contiguous()
    if len(keys) and (int(keys.min()) < 0 or len(torch.unique(keys)) != len(keys)):
        raise InputError("anchor keys must be distinct and not negative")
    wrong = ((torch.linalg.vector_norm(vectors, dim=1) - 1).abs() <= 1e-3).logical_not().nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        raise InputError(
            f"anchor vectors must be normalised and finite: the one with key {int(keys[row])} has length"
            f" {float(vectors[row].norm()):.4g} ({len(wrong)} such)",
            "Normalise them first; where a stored vector is broken: vlltr embed",
        )
    return vectors, keys


def check_search(queries: Tensor, k: int, dim: int) -> Tensor:
    """Queries [B, D] as contiguous float32 where they lie, after a look at them."""
    check_matrix("queries", queries, columns=dim)
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    if not bool(queries.isfinite().all()):
        raise InputError("a query holds values that are not finite")
    return queries.detach().float().contiguous()


def padded(scores: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Results [B, at most k] widened to [B, k]."""
    missing = k - scores.shape[1]
    return F.pad(scores, (0, missing), value=float("-inf")), F.pad(keys, (0, missing), value=-1)
