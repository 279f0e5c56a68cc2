"""Indexes of anchors, with FAISS and without: choosing the kind, building, files, and search for the nearest ones.

All kinds search by inner product of vectors of length one, that is by cosine, and identify anchors by their keys. An
index never changes. Anchors added or removed since are handled beside it (`WithDelta`) until it is built again from the
anchors' vectors, which is possible at any time.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.errors import InputError, MissingStepError, WorkspaceError, reason
from vlltr_index.schemas.manifests import IndexManifest
from vlltr_index.schemas.records import MANY_ANCHORS, IndexKind
from vlltr_index.tensors import check_labels, check_matrix, full_precision, unit_rows

KINDS = get_args(IndexKind)
"""`torch` and `flat` are exact, `ivf` and `hnsw` approximate; `torch` does not need FAISS. `ivf` has the vectors in
float16."""

INDEX_FILES = ("index.json", "anchors.safetensors", "index.faiss")
"""Files that `save_index` writes; the last one for FAISS kinds alone."""

_EXACT = ("torch", "flat")
_SCORES_AT_ONCE = 2**24
# Anchors per cell that k-means is fitted on; with 256 it takes four times as long and recall is no better.
_SAMPLE = 64
_GPU_MAX_K = 2048  # FAISS refuses more on a GPU
_GPU_SCRATCH = 2**28  # bytes of a GPU that FAISS keeps for its own work
_log = logging.getLogger(__name__)


class AnchorIndex(ABC):
    """Index that finds the anchors nearest to an image; the base class of all kinds.

    Attributes:
        kind: `torch`, `flat`, `ivf` or `hnsw`.
        dim: Width D of the vectors.
        keys: Keys of the anchors that can be found, int64 [size].
    """

    kind: str
    dim: int
    keys: Tensor

    @property
    def size(self) -> int:
        """Number of anchors that can be found."""
        return len(self.keys)

    @property
    def is_exact(self) -> bool:
        """Whether a search looks at every anchor, which takes as long as scoring all classes."""
        return self.kind in _EXACT

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest anchors of each query, best first.

        Args:
            queries: Float [B, D], normalised.
            k: At least 1; results beyond `size` are padding.

        Returns:
            Cosines float32 [B, k] (padding: -inf) and keys int64 [B, k] (padding: -1), on the queries'
            device. `ivf` gives three digits; `hnsw` may return more padding, if its graph leads to fewer anchors.

        Raises:
            InputError: The shape or dtype does not fit, a query is not finite, or k is below 1.
        """
        check_matrix("queries", queries, columns=self.dim)
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        if not bool(queries.isfinite().all()):
            raise InputError("a query holds values that are not finite")
        scores, keys = self._best(queries.detach().float().contiguous(), k)
        padding = 0, k - scores.shape[1]
        return F.pad(scores, padding, value=float("-inf")), F.pad(keys, padding, value=-1)

    @abstractmethod
    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search with contiguous float32 queries, as `search` does; fewer than k columns are allowed."""


class TorchIndex(AnchorIndex):
    """Exact search by matrix product; needs no FAISS.

    Args:
        vectors: Float32 [A, D], normalised.
        keys: Int64 [A], distinct.
    """

    kind = "torch"

    def __init__(self, vectors: Tensor, keys: Tensor) -> None:
        self.vectors = vectors
        self.keys = keys
        self.dim = vectors.shape[1]
        self._copies = dict[torch.device, Tensor]()

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search by matrix products on the queries' device, to which the vectors are copied once."""
        with full_precision(queries.device):
            if queries.device not in self._copies:
                self._copies[queries.device] = self.vectors.to(queries.device)
            vectors = self._copies[queries.device]
            parts = [self._part(vectors, part, min(k, self.size)) for part in torch.split(queries, 512)]
        scores = torch.cat([found for found, _ in parts])
        rows = torch.cat([found for _, found in parts])
        return scores, self.keys.to(rows.device)[rows]

    def _part(self, vectors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the best k rows, piece by piece of the anchors, so that no matrix [B, A] is needed."""
        rows_at_once = max(_SCORES_AT_ONCE // max(len(queries), 1), k, 1)
        best = queries.new_empty((len(queries), 0))
        rows = torch.empty_like(queries[:, :0], dtype=torch.int64)
        for start in range(0, self.size, rows_at_once):
            products = queries @ vectors[start : start + rows_at_once].T
            scores, found = products.topk(min(k, self.size - start, rows_at_once))
            best = torch.cat([best, scores], 1)
            rows = torch.cat([rows, found + start], 1)
            best, order = best.topk(min(k, best.shape[1]))
            rows = rows.gather(1, order)
        return best, rows


class WithDelta(AnchorIndex):
    """Base index with anchors that were added later, and without those that were removed; exact if the base is.

    Args:
        base: Any index.
        added_vectors: Float32 [N, D], normalised; N may be 0.
        added_keys: Int64 [N], distinct, none of them the base's.
        removed_keys: Int64 [R], distinct keys of the base.
    """

    def __init__(
        self, base: AnchorIndex, added_vectors: Tensor, added_keys: Tensor, removed_keys: Tensor
    ) -> None:
        delta = TorchIndex(added_vectors, added_keys)
        self.base = base
        self.delta = delta
        self.kind = base.kind
        self.dim = base.dim
        self._hidden = removed_keys
        self.keys = torch.cat([base.keys[~torch.isin(base.keys, removed_keys)], added_keys])

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search base and added anchors, and merge the results."""
        scores, keys = self._live(queries, k)
        if self.delta.size:
            new = self.delta.search(queries, k)
            scores = torch.cat([scores, new[0]], 1)
            keys = torch.cat([keys, new[1]], 1)
        best, order = scores.topk(min(k, scores.shape[1]))
        return best, keys.gather(1, order)

    def _live(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find at least the best k of the base that were not removed, searching deeper until there are so many."""
        most = min(self.base.size, k + len(self._hidden))
        depth = min(most, k + min(k, len(self._hidden)))
        while True:
            scores, keys = self.base.search(queries, max(depth, 1))
            scores = scores.masked_fill(torch.isin(keys, self._hidden.to(keys.device)), float("-inf"))
            if depth >= most or bool((scores.isfinite().sum(1) >= k).all()):
                return scores, keys.masked_fill(scores.isneginf(), -1)
            depth = min(most, 2 * depth)


def current_index(base: AnchorIndex, vectors: Tensor, keys: Tensor) -> AnchorIndex:
    """Return an index of the anchors that there are now.

    Args:
        base: The index as it was built.
        vectors: Float [A, D], the anchors' vectors, unnormalised.
        keys: Int64 [A], distinct.
    """
    added = ~torch.isin(keys, base.keys)
    removed = base.keys[~torch.isin(base.keys, keys)]
    if not bool(added.any()) and not len(removed):
        return base
    return WithDelta(base, unit_rows(vectors[added].float()), keys[added], removed)


def exact_index(vectors: Tensor, keys: Tensor) -> AnchorIndex:
    """Return an index that looks at every anchor.

    Args:
        vectors: Float [A, D], unnormalised.
        keys: Int64 [A], distinct.
    """
    return TorchIndex(F.normalize(vectors, dim=1), keys)


class FaissIndex(AnchorIndex):
    """FAISS index whose ids are positions in `keys`. Make it with `build_index` or `load_index`.

    Args:
        index: The FAISS index, over inner products.
        kind: `flat`, `ivf` or `hnsw`.
        keys: Int64 [A].

    Queries on a GPU are answered there, by a copy of a `flat` or `ivf` index, one search at a time, since such copies
    are not thread-safe; on the CPU if the GPU has no room for the copy, or if k exceeds 2,048.
    """

    def __init__(self, index: Any, kind: str, keys: Tensor) -> None:
        self.index = index
        self.kind = kind
        self.keys = keys
        self.dim = int(index.d)
        self._lock = Lock()
        self._copies = dict[torch.device, Any]()

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search a part of the index, and all of it for queries that found too few anchors."""
        k = min(k, self.size)
        looked_at = max(512, 16 * k) if self.kind == "ivf" else max(256, 2 * k)
        scores, rows = self._once(queries, k, looked_at)
        short = (rows < 0).any(1)
        if bool(short.any()):
            scores[short], rows[short] = self._once(queries[short], k, self.size)
        keys = torch.where(rows < 0, -1, self.keys.to(rows.device)[rows.clamp(min=0)])
        return scores.masked_fill(rows < 0, float("-inf")), keys

    def _once(self, queries: Tensor, k: int, looked_at: int) -> tuple[Tensor, Tensor]:
        """Find the best k of about `looked_at` anchors: in at least four cells, or along the graph."""
        faiss = _faiss()
        device = queries.device
        options = None
        if self.kind == "ivf":
            cells = int(self.index.nlist)
            probes = min(cells, max(4, math.ceil(looked_at * cells / self.size)))
            options = faiss.SearchParametersIVF(nprobe=probes)
        elif self.kind == "hnsw":
            options = faiss.SearchParametersHNSW(efSearch=looked_at)
        if device.type == "cuda" and self.kind != "hnsw" and k <= _GPU_MAX_K:
            with self._lock:
                try:
                    if device not in self._copies:
                        self._copies[device] = _to_gpu(self.index, device)
                    copy = self._copies[device]
                    if copy is not None:
                        return _search(copy[1], queries, k, options)
                except RuntimeError as error:
                    _log.warning("FAISS searches on the CPU, since on %s it fails: %s", device, error)
                    self._copies[device] = None
        scores, rows = _search(self.index, queries.cpu(), k, options)
        return scores.to(device), rows.to(device)


def build_index(vectors: Tensor, keys: Tensor, kind: str = "auto") -> FaissIndex | TorchIndex:
    """Build an index of anchors.

    Args:
        vectors: Float [A, D], normalised.
        keys: Int64 [A], distinct and not negative.
        kind: One of `KINDS`, or `auto` for that of `plan`.

    Raises:
        InputError: Shapes do not fit, a vector is not normalised, keys repeat, there is no anchor, or
            the kind is unknown.
        MissingStepError: The kind needs FAISS and it is not installed.
    """
    check_matrix("vectors", vectors)
    check_labels("keys", keys, size=vectors.shape[0])
    vectors = vectors.detach().cpu().float().contiguous()
    keys = keys.detach().cpu().long().contiguous()
    if not len(keys):
        raise InputError("there are no anchors to index", "Run: vlltr select")
    if int(keys.min()) < 0 or len(torch.unique(keys)) != len(keys):
        raise InputError("anchor keys must be distinct and not negative")
    wrong = ((torch.linalg.vector_norm(vectors, dim=1) - 1).abs() <= 1e-3).logical_not().nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        raise InputError(
            f"anchor vectors must be normalised and finite: the one with key {int(keys[row])} has length"
            f" {float(vectors[row].norm()):.4g} ({len(wrong)} such)",
            "Normalise them first; where a stored vector is broken: vlltr embed",
        )
    if kind == "auto":
        kind, _ = plan(len(vectors))
    if kind == "torch":
        return TorchIndex(vectors, keys)
    if kind not in KINDS:
        raise InputError(f"an index is one of {', '.join(KINDS)} or auto, got {kind!r}")
    return FaissIndex(_build_faiss(_faiss(), vectors, kind), kind, keys)


def plan(size: int) -> tuple[Literal["torch", "ivf"], str]:
    """Choose the kind of index for `size` anchors, and say why.

    Small numbers of anchors are all scored at once, whatever the index is. Larger ones get cells (IVF) of vectors in
    float16: quantised further they lose too many neighbours. HNSW is built only on request, for building it takes long
    and it finds no more neighbours.
    """
    if size < MANY_ANCHORS:
        return "torch", f"{size:,} anchors: scoring every class takes no longer than a search"
    try:
        _faiss()
    except MissingStepError:
        return "torch", f"{size:,} anchors would be searched faster by FAISS, which is not installed"
    return (
        "ivf",
        f"{size:,} anchors: looking into the nearest cells alone is quicker than scoring every class",
    )


def gpu_count() -> int:
    """Return the number of GPUs that FAISS can use; 0 with its CPU build.

    Raises:
        MissingStepError: FAISS cannot be imported.
    """
    return int(_faiss().get_num_gpus())


def save_index(index: FaissIndex | TorchIndex, folder: Path) -> None:
    """Write `index.json`, `anchors.safetensors` and, for FAISS kinds, `index.faiss` into an existing folder.

    Raises:
        OSError: A file cannot be written; safetensors raises a SafetensorError.
    """
    tensors = {"keys": index.keys}
    if isinstance(index, TorchIndex):
        tensors["vectors"] = index.vectors
    else:
        try:
            _faiss().write_index(index.index, str(folder / "index.faiss"))
        except RuntimeError as error:
            raise OSError(reason(error)) from error
    save_file(tensors, folder / "anchors.safetensors")
    IndexManifest.model_validate({"kind": index.kind}).save(folder / "index.json")


def load_index(folder: Path) -> FaissIndex | TorchIndex:
    """Read an index that `save_index` wrote, mapped into memory; the caller checks the digests of its files.

    Raises:
        WorkspaceError: A file is missing or cut short, or the files do not fit together.
        MissingStepError: It is a FAISS kind and FAISS is not installed.
    """
    try:
        kind = IndexManifest.load(folder / "index.json").kind
        tensors = load_file(folder / "anchors.safetensors")
        index: FaissIndex | TorchIndex
        if kind == "torch":
            index = TorchIndex(tensors["vectors"], tensors["keys"])
            held = len(index.vectors)
        else:
            faiss = _faiss()
            found = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
            index = FaissIndex(found, kind, tensors["keys"])
            held = found.ntotal
        if held != index.size or index.keys.dtype != torch.int64:
            raise ValueError(f"it has {held} anchors, and there are {index.size} keys, {index.keys.dtype}")
        return index
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise WorkspaceError(
            f"the index in {folder} cannot be used: {type(error).__name__}: {error}",
            "Build it again: vlltr index",
        ) from None


def _faiss() -> Any:
    """Import faiss.

    Raises:
        MissingStepError: It is not installed.
    """
    try:
        import faiss
    except (ImportError, RuntimeError) as error:  # RuntimeError: a GPU build that finds no usable driver
        raise MissingStepError(
            f"this kind of index needs FAISS, which cannot be imported: {error}",
            'Run: pip install "vlltr-index[cpu]" (with an NVIDIA GPU: pip install "vlltr-index[gpu]"). '
            "Without FAISS: vlltr index --kind torch",
        ) from None
    return faiss


def _search(index: Any, queries: Tensor, k: int, options: Any) -> tuple[Tensor, Tensor]:
    """Search with queries on the index's device: scores float32 and rows int64, both [B, k].

    FAISS gets the tensors' addresses, as in `faiss.contrib.torch_utils`, which has no options and patches FAISS for the
    whole process.
    """
    faiss = _faiss()
    shape = (len(queries), k)
    scores = queries.new_empty(shape)
    rows = queries.new_empty(shape, dtype=torch.int64)
    asked = faiss.cast_integer_to_float_ptr(queries.data_ptr())
    best = faiss.cast_integer_to_float_ptr(scores.data_ptr())
    found = faiss.cast_integer_to_idx_t_ptr(rows.data_ptr())
    index.search_c(len(queries), asked, k, best, found, options)  # SWIG: no argument has a name
    return scores, rows


def _build_faiss(faiss: Any, vectors: Tensor, kind: str) -> Any:
    """Build a FAISS index of the given kind over vectors float32 [A, D]."""
    size, dim = vectors.shape
    array = vectors.numpy()
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "ivf":
        cells = _cells(size)
        half = faiss.ScalarQuantizer.QT_fp16
        cell_centres = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(
            cell_centres, dim, cells, half, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.seed = 0
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = _SAMPLE
        index.train(array)
    else:  # hnsw
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 128
    index.add(array)
    return index


def _cells(size: int) -> int:
    """Return the number of cells: about 4 sqrt(size), a power of two, with at least 16 anchors per cell on average."""
    power = math.log2(max(1.0, min(4 * math.sqrt(size), size / 16)))
    return 1 << int(power)


def _to_gpu(index: Any, device: torch.device) -> tuple[Any, Any] | None:
    """Copy an index to a GPU; return the resources, which must live as long as the copy, and the copy.

    None with FAISS's CPU build, which would end the process if it were called.
    """
    if not gpu_count():
        return None
    faiss = _faiss()
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_SCRATCH)
    resources.setDefaultNullStreamAllDevices()  # torch's stream, so that FAISS reads after torch has written
    return resources, faiss.index_cpu_to_gpu(resources, device.index or 0, index)
