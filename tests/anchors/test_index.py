"""One set of tests for every kind of index; rankings are compared tie-aware, against a naive search."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tests.support.rounding import rounding
from vlltr_index.anchors import index as exact
from vlltr_index.anchors.index import (
    KINDS,
    AnchorIndex,
    FaissIndex,
    TorchIndex,
    WithDelta,
    build_index,
    load_index,
    plan,
    save_index,
)
from vlltr_index.errors import InputError, MissingStepError, WorkspaceError

DIM = 16
HALF = 5e-4
"""Bound of the error of cosines with vectors in float16, which an index of kind `ivf` has."""
EXACTLY = 1e-5


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


def within(kind: str) -> float:
    """The bound of the error of a kind's cosines."""
    return HALF if kind == "ivf" else EXACTLY


def check_hits(
    scores: Tensor, keys: Tensor, wanted: Tensor, vectors: Tensor, own_keys: Tensor, near: float = EXACTLY
) -> None:
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
        torch.testing.assert_close(scores[row, : len(hits)], own, atol=near, rtol=0)
        assert bool((own.diff() <= 2 * near).all())


def recall(scores: Tensor, best: Tensor, near: float) -> float:
    """Share of hits that reach the last of the true best scores: ties count as found."""
    return float((scores.double() >= best[:, -1:] - near).double().mean())


EXACT = ("torch", "flat")
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("k", [1, 5, 40])
def test_finds_the_nearest(kind: str, k: int) -> None:
    """All kinds give true cosines in falling order: the exact ones the best, the others nearly all."""
    vectors, keys = anchors(600)
    index = build_index(vectors, keys, kind)
    scores, found = index.search(queries(), k)
    assert (index.kind, index.dim, index.size) == (kind, DIM, 600)
    torch.testing.assert_close(index.keys, keys)
    check_hits(scores, found, queries(), vectors, keys, within(kind))
    best = naive(vectors, queries(), k)
    if kind in EXACT:
        torch.testing.assert_close(scores.double(), best, atol=1e-5, rtol=0)
    assert recall(scores, best, within(kind)) >= 0.95


@every_kind
def test_pads_what_is_not_there(kind: str) -> None:
    """More neighbours than anchors: every anchor is found, and the rest is padding; no query has no answer."""
    vectors, keys = anchors(50)
    scores, found = build_index(vectors, keys, kind).search(queries(), 60)
    assert found.shape == scores.shape == (7, 60)
    check_hits(scores, found, queries(), vectors, keys, within(kind))
    assert bool((found[:, :50] >= 0).all())
    assert bool((found[:, 50:] == -1).all())
    scores, found = build_index(vectors[:1], keys[:1], kind).search(torch.empty(0, DIM), 3)
    assert scores.shape == found.shape == (0, 3)


def test_autocast_does_not_narrow() -> None:
    """An ambient autocast changes no score."""
    index = build_index(*anchors(100), "torch")
    plain = index.search(queries(), 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(index.search(queries(), 4), plain)


def test_ivf_looks_further_until_k_are_found() -> None:
    """With many cells all neighbours asked for come back, also where the nearest cells do not hold them."""
    vectors, keys = anchors(4000)
    index = build_index(vectors, keys, "ivf")
    assert isinstance(index, FaissIndex)
    assert index.index.nlist == 128
    scores, found = index.search(queries(), 2500)
    assert bool((found >= 0).all())
    assert index.search(queries(), 4000)[0].sort(1).values.isfinite().all()
    check_hits(scores[:1, :50], found[:1, :50], queries()[:1], vectors, keys, HALF)


# ---- files


@every_kind
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    """What is loaded answers as what was saved."""
    index = build_index(*anchors(300), kind)
    save_index(index, tmp_path)
    loaded = load_index(tmp_path)
    assert (loaded.kind, loaded.dim, loaded.size) == (kind, DIM, 300)
    torch.testing.assert_close(loaded.keys, index.keys)
    torch.testing.assert_close(loaded.search(queries(), 9), index.search(queries(), 9))


@pytest.mark.parametrize("kind", ["torch", "ivf"])
def test_a_file_cut_short_is_refused(kind: str, tmp_path: Path) -> None:
    """Or one that is gone; the mending command is named."""
    save_index(build_index(*anchors(100), kind), tmp_path)
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        for wrong in (data[: len(data) // 2], b"", None):
            path.unlink() if wrong is None else path.write_bytes(wrong)
            with pytest.raises(WorkspaceError, match=f"the index in {tmp_path} cannot be used: ") as caught:
                load_index(tmp_path)
            assert caught.value.hint == "Build it again: vlltr index"
        path.write_bytes(data)
    assert load_index(tmp_path).size == 100


@pytest.mark.parametrize("kind", ["torch", "ivf"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (torch.arange(99), "ValueError: it has 100 anchors, and there are 99 keys, torch.int64"),
        (torch.arange(101), "ValueError: it has 100 anchors, and there are 101 keys, torch.int64"),
        (torch.rand(100), "ValueError: it has 100 anchors, and there are 100 keys, torch.float32"),
        (torch.tensor(1), "TypeError: len() of a 0-d tensor"),
    ],
)
def test_keys_that_do_not_fit_are_refused(kind: str, keys: Tensor, message: str, tmp_path: Path) -> None:
    """In a folder from elsewhere; FAISS's answers would point outside of them."""
    save_index(build_index(*anchors(100), kind), tmp_path)
    path = tmp_path / "anchors.safetensors"
    save_file(load_file(path) | {"keys": keys}, path)
    with pytest.raises(WorkspaceError, match=re.escape(message)):
        load_index(tmp_path)


def test_facts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """`index.json` must be of this format."""
    save_index(build_index(*anchors(100), "flat"), tmp_path)
    path = tmp_path / "index.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"format": 2}))
    with pytest.raises(
        WorkspaceError,
        match=r"ValueError: index\.json has format 2, but this vlltr-index .* reads format 1: ",
    ):
        load_index(tmp_path)


# ---- without FAISS, and with a GPU


def test_without_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch`, which `auto` takes for few anchors, does without; other kinds say how to get it, and what to do else."""
    vectors, keys = anchors(100)
    (tmp_path / "flat").mkdir()
    save_index(build_index(vectors, keys, "flat"), tmp_path / "flat")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: build_index(vectors, keys, "hnsw"), lambda: load_index(tmp_path / "flat")):
        with pytest.raises(MissingStepError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith("this kind of index needs FAISS, which cannot be imported: ")
        assert 'pip install "vlltr-index[cpu]"' in text
        assert 'pip install "vlltr-index[gpu]"' in text
        assert "vlltr index --kind torch" in text
    save_index(build_index(vectors, keys), tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.kind == "torch"
    assert plan(64_000) == (
        "torch",
        "64,000 anchors would be searched faster by FAISS, which is not installed",
    )
    torch.testing.assert_close(
        loaded.search(queries(), 5)[0].double(), naive(vectors, queries(), 5), atol=1e-5, rtol=0
    )


CARD = torch.device("cuda", 1)


class OnCard(Tensor):
    """A tensor that says that it lies on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute in torch's annotations
        """Where it says that it lies."""
        return CARD


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """FAISS with a GPU whose indexes are those of the CPU: what was asked of it, and what it fails with."""
    seen = SimpleNamespace(asked=[], made=0, error=None, resources={})

    def to_gpu(resources: object, device: int, index: Any) -> SimpleNamespace:
        def search_c(count: int, queries: object, k: int, *rest: object) -> None:
            if seen.error is not None:
                raise seen.error
            seen.asked.append(k)
            index.search_c(count, queries, k, *rest)

        assert device == 1
        seen.made += 1
        return SimpleNamespace(search_c=search_c)

    def resources() -> SimpleNamespace:
        return SimpleNamespace(
            setTempMemory=lambda size: seen.resources.update(scratch=size),
            setDefaultNullStreamAllDevices=lambda: seen.resources.update(stream="torch's"),
        )

    to = Tensor.to

    def moved(tensor: Tensor, *where: Any, **options: Any) -> Tensor:
        return tensor.as_subclass(OnCard) if where == (CARD,) else to(tensor, *where, **options)

    monkeypatch.setattr(Tensor, "to", moved)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    return seen


@every_kind
def test_a_gpu_answers_queries_that_lie_there(kind: str, card: SimpleNamespace) -> None:
    """One copy, in bounded memory, up to the number of neighbours that a GPU can give; not for a graph, or on a CPU."""
    vectors, keys = anchors(2100)
    index = build_index(vectors, keys, kind)
    for k in (5, 2048, 2049):
        plain, found = index.search(queries(2), k), index.search(queries(2).as_subclass(OnCard), k)
        assert found[0].device == found[1].device == CARD
        torch.testing.assert_close(
            [part.as_subclass(Tensor) for part in found], list(plain), atol=2 * rounding(DIM), rtol=0
        )
    if kind in ("flat", "ivf"):
        assert (sorted(set(card.asked)), card.made) == ([5, 2048], 1)
        assert card.resources == {"scratch": 2**28, "stream": "torch's"}
    else:
        assert (card.asked, card.made) == ([], 0)


def test_a_gpu_that_fails(card: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    """The CPU answers, now and later, and a warning says so once."""
    vectors, keys = anchors(300)
    index, asked = build_index(vectors, keys, "flat"), queries(2).as_subclass(OnCard)
    card.error = RuntimeError("out of memory")
    found = index.search(asked, 4)[0]
    card.error = None
    torch.testing.assert_close(index.search(asked, 4)[0], found)
    torch.testing.assert_close(found.as_subclass(Tensor), index.search(queries(2), 4)[0])
    assert (card.asked, card.made) == ([], 1)
    (line,) = caplog.messages
    assert line == "FAISS searches on the CPU, since on cuda:1 it fails: out of memory"


# ---- the plan, and what is refused


def test_plan() -> None:
    """The kind goes by the number of anchors, and the reason says why."""
    assert plan(63_999) == ("torch", "63,999 anchors: scoring every class takes no longer than a search")
    assert plan(64_000)[0] == "ivf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, k: (v * torch.nan, k), "has length nan"),
        (lambda v, k: (v, k[:-1]), r"keys must have shape \[20\], got \[19\]"),
        (lambda v, k: (v, torch.zeros_like(k)), "keys must be distinct and not negative"),
        (lambda v, k: (v[:0], k[:0]), "there are no anchors to index\nRun: vlltr select"),
    ],
)
def test_anchors_that_do_not_fit(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    """What cannot be indexed is refused with its reason."""
    with pytest.raises(InputError, match=message):
        build_index(*change(*anchors(20)))


def test_a_kind_that_there_is_not() -> None:
    """The message names those that there are."""
    with pytest.raises(InputError, match="an index is one of torch, flat, ivf, hnsw or auto, got 'pq'"):
        build_index(*anchors(3), "pq")


@pytest.mark.parametrize(
    ("wanted", "k", "message"),
    [
        (torch.ones(2, DIM + 1), 3, rf"queries must have shape \[N, {DIM}\], got \[2, {DIM + 1}\]"),
        (torch.full((2, DIM), torch.nan), 3, "a query holds values that are not finite"),
        (torch.ones(2, DIM), 0, "k must be at least 1, got 0"),
    ],
)
def test_queries_that_do_not_fit(wanted: Tensor, k: int, message: str) -> None:
    """They are refused before any search."""
    with pytest.raises(InputError, match=message):
        build_index(*anchors(10)).search(wanted, k)


# ---- in pieces, and with a delta

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
    torch.testing.assert_close(scores, rebuilt.search(queries(), k)[0], atol=2 * rounding(DIM), rtol=0)
    check_hits(scores, found, queries(), vectors, keys, within(kind))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_delta_beside_an_approximate_index(kind: str) -> None:
    """Removed anchors never come back, and added ones are always found."""
    index, _, vectors, keys = delta_and_rebuilt(kind, 40, 200)
    scores, found = index.search(queries(), 20)
    check_hits(scores, found, queries(), vectors, keys, within(kind))
    assert recall(scores, naive(vectors, queries(), 20), within(kind)) >= 0.95
