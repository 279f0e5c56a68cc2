"""Nearest anchors of an image: which kind of index suits, building it, its files, and searching with FAISS.

An index is immutable. What was added or removed since is searched beside it (`WithDelta`) until it is built
again. All kinds can be built again from the anchors' vectors at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.anchors.exact import AnchorIndex, TorchIndex, WithDelta, check_anchors, check_search, padded
from vlltr_index.errors import InputError, MissingStepError, WorkspaceError

__all__ = [
    "KINDS",
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

_EXACT_FLOATS = 2**27  # up to here an exact search takes about 6 ms an image on two cores
_GPU_FLOATS = 2**32  # 16 GiB of float32
_FORMAT = 1
_GPU_MAX_K = 2048  # FAISS refuses more on a GPU
_SECONDS_A_FLOAT = 4.4e-11  # exact search, a query of 128, on two cores


class FaissIndex:
    """A FAISS index whose ids are positions in `keys`. Make it with `build_index` or load it.

    Args:
        index: The FAISS index, over inner products.
        kind: `flat`, `ivf` or `hnsw`.
        keys: Int64 [A].

    A flat index is answered by the GPU where FAISS sees one.
    """

    def __init__(self, index: Any, kind: str, keys: Tensor) -> None:
        self.index, self.kind, self.keys = index, kind, keys
        self._gpu: _OnGpu | None = _to_gpu(index) if kind == "flat" else None

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
        keys = torch.where(rows < 0, -1, self.keys[rows.clamp(min=0)])
        return padded(scores.masked_fill(rows < 0, float("-inf")), keys, k, queries.device)

    def _once(self, queries: Tensor, k: int, effort: int) -> tuple[Tensor, Tensor]:
        faiss, array = _faiss(), queries.numpy()
        if self.kind == "flat":
            index = self._gpu.index if self._gpu is not None and k <= _GPU_MAX_K else self.index
            found = index.search(array, k)
        elif self.kind == "ivf":
            found = self.index.search(
                array, k, params=faiss.SearchParametersIVF(nprobe=self._probes(k, effort))
            )
        else:
            params = faiss.SearchParametersHNSW(efSearch=self._breadth(k, effort))
            found = self.index.search(array, k, params=params)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def _probes(self, k: int, effort: int) -> int:
        """Cells to look into: enough to meet about 16 k anchors."""
        cells = int(self.index.nlist)
        usual = max(32, cells // 32, math.ceil(16 * k * cells / self.size))
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
        kind, _ = plan(vectors.shape[0], vectors.shape[1], gpu=gpu_count() > 0)
    if kind == "torch":
        return TorchIndex(vectors, keys)
    if kind not in KINDS:
        raise InputError(f"an index is one of {', '.join(KINDS)} or auto, got {kind!r}")
    return FaissIndex(_build_faiss(_faiss(), vectors, kind, seed), kind, keys)


def plan(size: int, dim: int, gpu: bool = False) -> tuple[Literal["torch", "flat", "ivf"], str]:
    """Which kind suits `size` anchors of width `dim`, and why in words.

    Exact search as long as it is fast enough: on a GPU up to 16 GiB of vectors, otherwise up to 2^27 numbers.
    Beyond that cells (IVF) without compression; compressed vectors lose too many neighbours. HNSW is
    built only on request: it takes long to build and finds no more.
    """
    numbers = f"{size:,} anchors of width {dim:,}"
    if gpu and size * dim <= _GPU_FLOATS:
        return "flat", f"{numbers} fit a GPU, which searches them exactly"
    milliseconds = size * dim * _SECONDS_A_FLOAT * 1000
    if size * dim <= _EXACT_FLOATS:
        return (
            "torch",
            f"{numbers}: exact search takes about {max(milliseconds, 0.1):.1f} ms an image on two cores",
        )
    where = "do not fit a GPU" if gpu else f"would take about {milliseconds:.0f} ms an image exactly"
    return "ivf", f"{numbers} {where}; looking into the nearest cells alone is about ten times faster"


def gpu_count() -> int:
    """GPUs that FAISS can use; 0 without FAISS, or with its CPU build."""
    try:
        return int(_faiss().get_num_gpus())
    except MissingStepError:
        return 0


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
    except ImportError as error:
        raise MissingStepError(
            f"this kind of index needs FAISS, which cannot be imported: {error}",
            'Run: pip install "vlltr-index[cpu]" (with an NVIDIA GPU: pip install "vlltr-index[gpu]").\n'
            "Without FAISS: vlltr index --kind torch",
        ) from None
    return faiss


def _build_faiss(faiss: Any, vectors: Tensor, kind: str, seed: int) -> Any:
    size, dim = vectors.shape
    array = vectors.numpy()
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "ivf":
        cells = _cells(size)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.spherical, index.cp.min_points_per_centroid = seed, True, 1
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


def _to_gpu(index: Any) -> _OnGpu | None:
    """A copy on the first GPU, or None. FAISS ends the process if asked without one."""
    if gpu_count() < 1:
        return None
    faiss = _faiss()
    resources = faiss.StandardGpuResources()
    return _OnGpu(resources, faiss.index_cpu_to_gpu(resources, 0, index))
