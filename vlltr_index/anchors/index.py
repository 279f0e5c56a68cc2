"""Nearest anchors of an image: which kind of index suits, building it, its files, and searching with FAISS.

An index is immutable. What was added or removed since is searched beside it (`WithDelta`) until it is built
again. All kinds can be built again from the anchors' vectors at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.anchors.exact import AnchorIndex, TorchIndex, WithDelta, check_anchors, check_search, padded
from vlltr_index.errors import InputError, MissingStepError, WorkspaceError

__all__ = [
    "KINDS",
    "MANY_ANCHORS",
    "AnchorIndex",
    "FaissIndex",
    "TorchIndex",
    "WithDelta",
    "build_index",
    "gpu_count",
    "load_index",
    "plan",
    "save_index",
]

KINDS = ("torch", "flat", "ivf", "hnsw")
"""`torch` and `flat` are exact, `ivf` and `hnsw` approximate; `torch` does without FAISS."""

MANY_ANCHORS = 64_000
"""From here on retrieval is quicker than scoring all classes: four times for clustered anchors."""

_FORMAT = 1
# Anchors a cell that cells are fitted to; with 256 it takes four times as long and finds no more.
_SAMPLE = 64
_GPU_MAX_K = 2048  # FAISS refuses more on a GPU
_GPU_SCRATCH = 2**28  # bytes of a GPU that FAISS keeps for its own work
_log = logging.getLogger(__name__)


class FaissIndex:
    """A FAISS index whose ids are positions in `keys`. Make it with `build_index` or load it.

    Args:
        index: The FAISS index, over inner products.
        kind: `flat`, `ivf` or `hnsw`.
        keys: Int64 [A].

    Queries on a GPU are answered there, by a copy of a `flat` or `ivf` index, one search at a time, since such
    indexes are not safe between threads; by the CPU where the GPU has no room for it, and where k exceeds 2,048.
    """

    def __init__(self, index: Any, kind: str, keys: Tensor) -> None:
        self.index, self.kind, self.keys = index, kind, keys
        self._lock, self._copies = Lock(), dict[torch.device, _OnGpu | None]()

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self.index.d)

    @property
    def size(self) -> int:
        """Number of anchors."""
        return int(self.index.ntotal)

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `AnchorIndex.search`."""
        wanted, count, effort = check_search(queries, k, self.dim), min(k, self.size), 1
        scores, rows = self._once(wanted, count, effort)
        short = (rows < 0).any(1)
        while bool(short.any()) and self._can_try_harder(count, effort):
            effort *= 4
            scores[short], rows[short] = self._once(wanted[short], count, effort)
            short = (rows < 0).any(1)
        keys = torch.where(rows < 0, -1, self.keys.to(rows.device)[rows.clamp(min=0)])
        return padded(scores.masked_fill(rows < 0, float("-inf")), keys, k)

    def _once(self, queries: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
        faiss, device, options = _faiss(), queries.device, None
        if self.kind == "ivf":
            options = faiss.SearchParametersIVF(nprobe=self._probes(k, effort))
        elif self.kind == "hnsw":
            options = faiss.SearchParametersHNSW(efSearch=self._breadth(k, effort))
        if device.type == "cuda" and self.kind != "hnsw" and k <= _GPU_MAX_K:
            with self._lock:
                try:
                    if device not in self._copies:
                        self._copies[device] = _to_gpu(self.index, device)
                    if (copy := self._copies[device]) is not None:
                        return _search(copy.index, queries, k, options)
                except RuntimeError as error:
                    _log.warning("FAISS searches on the CPU, since on %s it fails: %s", device, error)
                    self._copies[device] = None
        scores, rows = _search(self.index, queries.cpu(), k, options)
        return scores.to(device), rows.to(device)

    def _probes(self, k: int, effort: int) -> int:
        """Cells to look into: four, or more to meet about 512 anchors and 16 k."""
        cells = int(self.index.nlist)
        usual = max(4, math.ceil(max(512, 16 * k) * cells / self.size))
        return min(cells, usual * effort)

    def _breadth(self, k: int, effort: int) -> int:
        return max(256, 2 * k) * effort

    def _can_try_harder(self, k: int, effort: int) -> bool:
        if self.kind == "ivf":
            return self._probes(k, effort) < int(self.index.nlist)
        return self.kind == "hnsw" and self._breadth(k, effort) < self.size


def build_index(vectors: Tensor, keys: Tensor, kind: str = "auto", seed: int = 0) -> AnchorIndex:
    """An index over anchors.

    Args:
        vectors: Float [A, D], normalised.
        keys: Int64 [A], distinct and not negative.
        kind: One of `KINDS`, or `auto`, which asks `plan`.
        seed: Of the clustering of `ivf`.

    Raises:
        InputError: Shapes do not fit, a vector is not normalised, keys repeat, there is no anchor, or
            the kind is unknown.
        MissingStepError: The kind needs FAISS and it is not installed.
    """
    vectors, keys = check_anchors(vectors, keys)
    if not len(keys):
        raise InputError("there are no anchors to index", "Run: vlltr select")
    if kind == "auto":
        kind, _ = plan(len(vectors))
    if kind == "torch":
        return TorchIndex(vectors, keys)
    if kind not in KINDS:
        raise InputError(f"an index is one of {', '.join(KINDS)} or auto, got {kind!r}")
    return FaissIndex(_build_faiss(_faiss(), vectors, kind, seed), kind, keys)


def plan(size: int) -> tuple[Literal["torch", "ivf"], str]:
    """Which kind suits `size` anchors, and why in words.

    Few are scored all at once whatever the index. Beyond, cells (IVF) without compression; compressed vectors lose too
    many neighbours. HNSW is built only on request: it takes long to build and finds no more.
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
    """GPUs that FAISS can use; 0 with its CPU build.

    Raises:
        MissingStepError: FAISS cannot be imported.
    """
    return int(_faiss().get_num_gpus())


def save_index(index: AnchorIndex, folder: Path) -> None:
    """Write `index.json`, `anchors.safetensors` and, for FAISS kinds, `index.faiss` into an existing folder.

    Raises:
        InputError: The index has a delta beside it, which must be merged by building it again.
    """
    names = ["anchors.safetensors"]
    tensors = {"keys": index.keys}
    if isinstance(index, TorchIndex):
        tensors["vectors"] = index.vectors
    elif isinstance(index, FaissIndex):
        names.append("index.faiss")
        _faiss().write_index(index.index, str(folder / "index.faiss"))
    else:
        raise InputError("an index with a delta cannot be saved", "Build it again: vlltr index")
    save_file(tensors, folder / "anchors.safetensors")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names
    }
    facts = {"format": _FORMAT, "kind": index.kind, "dim": index.dim, "size": index.size, "files": files}
    (folder / "index.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_index(folder: Path, mmap: bool = True, verify: bool = True) -> FaissIndex | TorchIndex:
    """Read what `save_index` wrote.

    Args:
        folder: The folder it was written into.
        mmap: Map FAISS's file into memory instead of reading it; `torch` is always mapped.
        verify: Check the files' digests (about a second a GB); their sizes are checked in any case.

    Raises:
        WorkspaceError: A file is missing, cut short or changed, or what it holds does not fit together.
        MissingStepError: It is a FAISS kind and FAISS is not installed.
    """
    try:
        facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT or facts["kind"] not in KINDS:
            raise ValueError(f"format {facts['format']}, kind {facts['kind']!r} is not known to this version")
        for name in ["anchors.safetensors"] + ["index.faiss"] * (facts["kind"] != "torch"):
            _check_file(folder / name, facts["files"][name], verify)
        return _read(folder, facts, mmap)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, (KeyError, TypeError)) else str(error)
        raise WorkspaceError(
            f"the index in {folder} cannot be used: {what}", "Build it again: vlltr index"
        ) from None


def _read(folder: Path, facts: dict[str, Any], mmap: bool) -> FaissIndex | TorchIndex:
    tensors = load_file(folder / "anchors.safetensors")
    index: FaissIndex | TorchIndex
    if facts["kind"] == "torch":
        index = TorchIndex(tensors["vectors"], tensors["keys"])
    else:
        faiss = _faiss()
        found = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        if found.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("index.faiss does not search by inner product")
        index = FaissIndex(found, facts["kind"], tensors["keys"])
    stated, held = (facts["dim"], facts["size"], facts["size"]), (index.dim, index.size, len(index.keys))
    if stated != held or index.keys.dtype != torch.int64:
        raise ValueError(f"width, anchors and keys are {held}, expected {stated}")
    return index


def _check_file(path: Path, stated: dict[str, Any], verify: bool) -> None:
    size = path.stat().st_size
    if size != stated["bytes"]:
        raise ValueError(
            f"{path.name} has {size:,} bytes, expected {stated['bytes']:,}: it was cut short or changed"
        )
    if verify and _sha256(path) != stated["sha256"]:
        raise ValueError(f"{path.name} is not the file that was written: its SHA-256 differs")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _faiss() -> Any:
    """The faiss module.

    Raises:
        MissingStepError: It is not installed.
    """
    try:
        import faiss
    except (ImportError, RuntimeError) as error:  # RuntimeError: a GPU build that finds no usable driver
        raise MissingStepError(
            f"this kind of index needs FAISS, which cannot be imported: {error}",
            'Run: pip install "vlltr-index[cpu]" (with an NVIDIA GPU: pip install "vlltr-index[gpu]").\n'
            "Without FAISS: vlltr index --kind torch",
        ) from None
    return faiss


def _search(index: Any, queries: Tensor, k: int, options: Any) -> tuple[Tensor, Tensor]:
    """Scores float32 and rows int64, both [B, k], of queries that lie where the index does.

    By address, as `faiss.contrib.torch_utils` has it, which takes no options and changes FAISS for the whole process.
    """
    faiss, shape = _faiss(), (len(queries), k)
    scores, rows = queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)
    asked, best = (faiss.cast_integer_to_float_ptr(part.data_ptr()) for part in (queries, scores))
    index.search_c(len(queries), asked, k, best, faiss.cast_integer_to_idx_t_ptr(rows.data_ptr()), options)
    return scores, rows


def _build_faiss(faiss: Any, vectors: Tensor, kind: str, seed: int) -> Any:
    size, dim = vectors.shape
    array = vectors.numpy()
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "ivf":
        cells = _cells(size)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.spherical, index.cp.min_points_per_centroid = seed, True, 1
        index.cp.max_points_per_centroid = _SAMPLE
        index.train(array)
    else:
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 128
    index.add(array)
    return index


def _cells(size: int) -> int:
    """About 4 sqrt(size) cells, a power of two, with at least 16 anchors a cell on average."""
    power = math.log2(max(1.0, min(4 * math.sqrt(size), size / 16)))
    return 1 << int(power)


class _OnGpu(NamedTuple):
    resources: Any  # must outlive the index
    index: Any


def _to_gpu(index: Any, device: torch.device) -> _OnGpu | None:
    """A copy on a GPU, or None with FAISS's CPU build. FAISS ends the process if asked without a GPU."""
    if not gpu_count():
        return None
    faiss = _faiss()
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_SCRATCH)
    resources.setDefaultNullStreamAllDevices()  # torch's: what it wrote is there when FAISS reads
    return _OnGpu(resources, faiss.index_cpu_to_gpu(resources, device.index or 0, index))
