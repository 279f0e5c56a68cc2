"""The exact twin in pieces, and the delta against an index built from scratch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbours import anchors, check_hits, naive, queries, recall
from torch import Tensor

from vlltr_index.anchors import index as exact
from vlltr_index.anchors.index import AnchorIndex, TorchIndex, WithDelta, build_index

exact_kinds = pytest.mark.parametrize("kind", ["torch", "flat"])


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 60), k=st.integers(1, 70), chunk=st.integers(1, 500), seed=st.integers(0, 99))
def test_exact_search_in_pieces(size: int, k: int, chunk: int, seed: int) -> None:
    """Exact search gives the naive ranking whatever the size of its pieces."""
    vectors, keys = anchors(size, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_SCORES_AT_ONCE", chunk)
        scores, found = TorchIndex(vectors, keys).search(queries(), k)
    check_hits(scores, found, queries(), vectors, keys)
    torch.testing.assert_close(
        scores[:, : min(k, size)].double(), naive(vectors, queries(), k), atol=1e-5, rtol=0
    )


def delta_and_rebuilt(kind: str, extra: int, removed: int) -> tuple[WithDelta, AnchorIndex, Tensor, Tensor]:
    """An index with a delta, and one built from the same anchors."""
    vectors, keys = anchors(300 + extra)
    base = build_index(vectors[:300], keys[:300], kind)
    index = WithDelta(base, vectors[300:], keys[300:], keys[:removed])
    return index, build_index(vectors[removed:], keys[removed:], kind), vectors[removed:], keys[removed:]


@exact_kinds
@pytest.mark.parametrize(("extra", "removed"), [(40, 0), (0, 40), (40, 290), (1, 300)])
@pytest.mark.parametrize("k", [1, 400])
def test_delta_equals_a_rebuild(kind: str, extra: int, removed: int, k: int) -> None:
    """Additions and removals beside an exact index give what an index built from scratch gives."""
    index, rebuilt, vectors, keys = delta_and_rebuilt(kind, extra, removed)
    scores, found = index.search(queries(), k)
    assert index.size == rebuilt.size
    assert sorted(index.keys.tolist()) == sorted(rebuilt.keys.tolist())
    torch.testing.assert_close(scores, rebuilt.search(queries(), k)[0], atol=1e-6, rtol=0)
    check_hits(scores, found, queries(), vectors, keys)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_delta_beside_an_approximate_index(kind: str) -> None:
    """Removed anchors never come back, and added ones are always found."""
    index, _, vectors, keys = delta_and_rebuilt(kind, 40, 200)
    scores, found = index.search(queries(), 20)
    check_hits(scores, found, queries(), vectors, keys)
    assert recall(scores, naive(vectors, queries(), 20)) >= 0.95


def test_an_added_key_replaces_the_base_one() -> None:
    """A key that both have is answered with the added vector, once."""
    vectors, keys = anchors(10)
    index = WithDelta(build_index(vectors, keys), -vectors[:1], keys[:1], torch.empty(0, dtype=torch.int64))
    scores, found = index.search(-vectors[:1], 10)
    assert int(found[0, 0]) == int(keys[0])
    assert float(scores[0, 0]) == pytest.approx(1.0)
    assert sorted(found[0].tolist()) == sorted(keys.tolist())
