"""`vlltr doctor`: whether what is installed, the machine and the workspace can do the work."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from vlltr_index.errors import VlltrError
from vlltr_index.workspace import Kind, Workspace

if TYPE_CHECKING:
    from vlltr_index.history import Commit

__all__ = [
    "Check",
    "check_disk",
    "check_extras",
    "check_faiss",
    "check_python",
    "check_requirement",
    "check_threads",
    "check_workspace",
    "diagnose",
]

State = Literal["ok", "note", "problem"]

_NAME = "vlltr-index"
_IMPORTED = ("torch", "torchvision", "open_clip", "lancedb")  # whose libraries may be broken though installed
_FAISS = {"faiss-cpu": "cpu", "faiss-gpu": "gpu", "faiss-gpu-cu11": "gpu", "faiss-gpu-cu12": "gpu"}
_QUIET_EXTRAS = ("cpu", "gpu", "dev", "test", "docs")  # FAISS has a check of its own
_LITTLE = 2**30  # bytes free that are too few to write an encoder and its vectors
_SCARCE = 10 * 2**30
_WEIGHT_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What.
        state: `problem` is what stops the work; `note` is worth knowing.
        value: What was found, and what is needed.
        mend: The command that mends it.
    """

    name: str
    state: State
    value: str
    mend: str | None = None


def diagnose(start: str | os.PathLike[str] | None = None, named: bool = False) -> list[Check]:
    """Look at everything.

    Args:
        start: A workspace, or a folder in one; default: the current folder.
        named: Whether `start` must be a workspace.
    """
    needed = [Requirement(text) for text in metadata.requires(_NAME) or ()]
    core = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    python = metadata.metadata(_NAME).get_all("Requires-Python") or [""]
    return [
        check_python(platform.python_version(), python[0]),
        *(check_requirement(r, _version(r.name)) for r in core),
        *_broken(),
        check_faiss({name: version for name in _FAISS if (version := _version(name))}, needed),
        *_torch(),
        *_weights(),
        *check_extras(needed, _version),
        *check_workspace(start, named),
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_python(version: str, bounds: str) -> Check:
    """Whether Python itself is new enough."""
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return Check("python", "ok", f"{version} (needs {bounds or 'any'})")
    return Check(
        "python", "problem", f"{version}, needs {bounds}", "Make an environment with a newer Python."
    )


def check_requirement(needed: Requirement, version: str | None) -> Check:
    """Whether a package is there, in a version within its bounds."""
    bounds = str(needed.specifier) or "any"
    mend = f'pip install "{needed.name}{needed.specifier}"'
    if version is None:
        return Check(needed.name, "problem", f"not installed, needs {bounds}", mend)
    if not needed.specifier.contains(version, prereleases=True):
        return Check(needed.name, "problem", f"{version}, needs {bounds}", mend)
    return Check(needed.name, "ok", f"{version} (needs {bounds})")


def _broken() -> list[Check]:
    """Packages that are installed and cannot be imported."""
    found = []
    for name in _IMPORTED:
        try:
            import_module(name)
        except Exception as error:  # whatever a half-installed package raises
            package = "open_clip_torch" if name == "open_clip" else name
            why = f"cannot be imported: {type(error).__name__}: {error}"
            found.append(Check(name, "problem", why, f"pip install --force-reinstall {package}"))
    return found


def check_faiss(installed: Mapping[str, str], needed: Sequence[Requirement]) -> Check:
    """Which FAISS there is: two of them overwrite each other's files."""
    if len(installed) > 1:
        both = " and ".join(sorted(installed))
        mend = f'pip uninstall -y {" ".join(sorted(installed))} && pip install "{_NAME}[cpu]"'
        return Check("faiss", "problem", f"{both} are both installed, in the same folder", mend)
    if not installed:
        value = "not installed: only exact indexes without FAISS can be built"
        return Check("faiss", "note", value, f'pip install "{_NAME}[cpu]"   (or [gpu])')
    ((name, version),) = installed.items()
    bounds = next((r.specifier for r in needed if canonicalize_name(r.name) == name), SpecifierSet())
    if not bounds.contains(version, prereleases=True):
        return Check("faiss", "problem", f"{name} {version}, needs {bounds}", f'pip install "{name}{bounds}"')
    try:
        from vlltr_index.index import gpu_count

        gpus = gpu_count()
    except Exception as error:  # whatever a half-installed package raises
        why = f"{name} {version} cannot be imported: {error}"
        return Check("faiss", "problem", why, f"pip install --force-reinstall {name}")
    if _FAISS[name] == "gpu" and not gpus:
        value = f"{name} {version}, and FAISS sees no GPU: it works on the processor"
        return Check("faiss", "note", value)
    return Check("faiss", "ok", f"{name} {version}" + (f", {gpus} GPU" if gpus else ""))


def _torch() -> list[Check]:
    """The GPU, and how many threads there are."""
    try:
        import torch
    except Exception:  # reported by `_broken`
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        _gpu(torch.cuda.is_available(), torch.version.cuda),
        check_threads(torch.get_num_threads(), cores, os.environ.get("OMP_NUM_THREADS")),
    ]


def _gpu(available: bool, cuda: str | None) -> Check:
    if available:
        import torch

        seen = []
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            seen.append(f"{facts.name} ({facts.total_memory / 2**30:.0f} GiB)")
        return Check("gpu", "ok", f"{', '.join(seen)}; CUDA {cuda}")
    if shutil.which("nvidia-smi") is None:
        return Check("gpu", "ok", "none: everything runs on the processor")
    value = f"there is one, and torch does not see it ({f'CUDA {cuda}' if cuda else 'a build without CUDA'})"
    mend = "See that nvidia-smi works, and install the build of torch for your CUDA: pytorch.org/get-started"
    return Check("gpu", "note", value, mend)


def check_threads(threads: int, cores: int, asked: str | None) -> Check:
    """Whether as many threads run as there are cores to run on."""
    value = f"{threads} of {cores} cores" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    if threads > cores:
        return Check(
            "threads", "note", f"{value}: they get in each other's way", f"export OMP_NUM_THREADS={cores}"
        )
    return Check("threads", "ok", value)


def _weights() -> list[Check]:
    """Where downloaded weights are kept."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    except ImportError:
        return []
    folder, found = Path(HF_HUB_CACHE), []
    size = sum(p.stat().st_size for p in folder.glob("*/blobs/*") if p.is_file()) if folder.is_dir() else 0
    offline = "; HF_HUB_OFFLINE is set: nothing is fetched" if HF_HUB_OFFLINE else ""
    value = f"{folder}: {size / 2**20:,.0f} MiB{offline}"
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(existing, os.W_OK):
        found.append(Check("weights cache", "ok", value))
    else:
        mend = "export HF_HOME=FOLDER   (one that can be written)"
        found.append(Check("weights cache", "note", f"{folder} cannot be written{offline}", mend))
    return found


def check_extras(needed: Iterable[Requirement], version_of: Callable[[str], str | None]) -> list[Check]:
    """Which optional parts are there."""
    parts: dict[str, list[Requirement]] = {}
    for requirement in needed:
        if requirement.marker is None or "extra" not in str(requirement.marker):
            continue
        for extra in metadata.metadata(_NAME).get_all("Provides-Extra") or ():
            if extra not in _QUIET_EXTRAS and requirement.marker.evaluate({"extra": extra}):
                parts.setdefault(extra, []).append(requirement)
    found = []
    for extra, requirements in sorted(parts.items()):
        checks = [check_requirement(r, version_of(r.name)) for r in requirements]
        missing = [r.name for r, c in zip(requirements, checks, strict=True) if c.state != "ok"]
        if missing:
            mend = f'pip install "{_NAME}[{extra}]"'
            found.append(Check(f"extra {extra}", "note", f"without {', '.join(missing)}", mend))
        else:
            found.append(Check(f"extra {extra}", "ok", "installed"))
    return found


def check_workspace(start: str | os.PathLike[str] | None = None, named: bool = False) -> list[Check]:
    """Whether the workspace opens, can be written, has room, and holds what its newest commit names.

    Without a workspace: the folder in its place.
    """
    try:
        workspace = Workspace.open(start) if named and start is not None else Workspace.find(start)
    except VlltrError as error:
        missing = not named and "no workspace" in error.message
        first = Check("workspace", "note" if missing else "problem", error.message, error.hint)
        return [first, check_disk(Path.cwd())]
    return [
        Check("workspace", "ok", workspace.address),
        _writable(workspace),
        check_disk(workspace.path),
        *_commit(workspace),
    ]


def _writable(workspace: Workspace) -> Check:
    folder = workspace.address
    try:
        workspace.storage.try_write()
    except OSError as error:
        mend = f"chmod -R u+w '{folder}'   (or copy it where you may write)"
        return Check("writing", "problem", f"{folder} cannot be written: {error.strerror}", mend)
    except VlltrError as error:
        return Check("writing", "problem", error.message, error.hint)
    return Check("writing", "ok", "the workspace can be written")


def check_disk(folder: Path, free: int | None = None) -> Check:
    """Whether there is room for an encoder and its vectors."""
    free = shutil.disk_usage(folder).free if free is None else free
    value = f"{free / 2**30:,.1f} GiB free at {folder}"
    if free < _LITTLE:
        mend = "Make room, or give up old commits: vlltr prune --keep 3"
        return Check("disk", "problem", f"{value}; 1 GiB is the least to work with", mend)
    return Check("disk", "note" if free < _SCARCE else "ok", value)


def _commit(workspace: Workspace) -> list[Check]:
    """Whether the newest commit can be read, and what it names is there and whole."""
    try:
        commit = workspace.history.last()
        workspace.history.oldest_kept()
    except VlltrError as error:
        return [Check("commit", "problem", error.message, error.hint)]
    weights = _workspace_weights(workspace, commit)
    if commit is None:
        return weights
    problems = [*_tables(workspace, commit), *_objects(workspace, commit)]
    if problems:
        return [*weights, *problems]
    value = f"{commit.id} ({commit.command}): its tables can be read, and the files that it names are whole"
    return [*weights, Check("commit", "ok", value)]


def _tables(workspace: Workspace, commit: Commit) -> Iterator[Check]:
    """Tables that the commit names, or whose vectors it uses, and that cannot be read."""
    try:
        from vlltr_index.schemas.tables import KEYS, image_vectors_name, sentence_vectors_name
        from vlltr_index.snapshot import Snapshot, check_named

        snapshot = Snapshot(workspace.store, commit)
    except Exception:  # a half-installed package: reported by `_broken`
        return
    store = snapshot.store
    yield from _problem("tables", lambda: check_named(store, commit, store.names()))
    for name in sorted(commit.tables):
        yield from _problem(f"table {name}", partial(_read, snapshot.scan, name, KEYS.get(name)))
    if commit.text_fp and commit.selection_id:
        name = sentence_vectors_name(commit.text_fp)
        yield from _problem("text vectors", partial(_read, store.scan, name, "text_hash"), "vlltr embed")
    if commit.image_fp and store.exists(name := image_vectors_name(commit.image_fp)):
        yield from _problem("image vectors", partial(_read, store.scan, name, "vector_key"), "vlltr embed")


def _read(scan: Callable[..., Iterator[object]], name: str, key: str | None) -> None:
    """Read all keys of a table, for which every part of it is opened, and one whole row."""
    for _ in scan(name, None if key is None else [key]):
        pass
    next(scan(name, batch_rows=1), None)


def _objects(workspace: Workspace, commit: Commit) -> Iterator[Check]:
    """Folders that the commit names and that are gone, or whose files are not those that were written."""
    named: list[tuple[str, Kind, str | None, str | None]] = [
        ("encoder", "checkpoints", commit.checkpoint, None),
        ("head", "heads", commit.head, None),
        ("index", "index", commit.index["digest"] if commit.index else None, None),
        ("baseline fc", "checkpoints", commit.info.get("baseline_fc"), "vlltr train baseline fc"),
    ]
    for name, digest in commit.info.get("baselines", {}).items():
        named.append((f"baseline {name}", "heads", digest, f"vlltr train baseline {name}"))
    for what, kind, digest, mend in named:
        if digest:
            yield from _problem(what, partial(_look_into, workspace, kind, digest), mend)


def _look_into(workspace: Workspace, kind: Kind, digest: str) -> None:
    workspace.check_object(kind, digest)
    local = workspace.path / kind / digest[:16]
    if local.is_dir():  # of object storage only what was brought here: no downloads
        workspace.whole_object(kind, digest)


def _problem(what: str, look: Callable[[], object], mend: str | None = None) -> list[Check]:
    """What looking at a part of the workspace gives away: nothing where it is in order."""
    try:
        look()
    except VlltrError as error:
        return [Check(what, "problem", error.message, mend or error.hint)]
    except Exception as error:  # whatever a library makes of damaged files
        value = f"cannot be read: {type(error).__name__}: {error}"
        return [Check(what, "problem", value, mend or "Bring the workspace back from a backup.")]
    return []


def _workspace_weights(workspace: Workspace, commit: Commit | None) -> list[Check]:
    """Whether the file is there that the recipe's encoder starts from."""
    config = workspace.recipe.encoder
    given = config.pretrained
    if not given or not given.endswith(_WEIGHT_ENDINGS) or Path(given).exists():
        return []
    value = f"the recipe starts {config.model} from {given}, which is not there"
    if commit is not None and commit.checkpoint:
        return [Check("weights", "note", f"{value}; the trained encoder is")]
    mend = f"Put it back, or change encoder.pretrained in {workspace.storage.at('vlltr.toml')}"
    return [Check("weights", "problem", value, mend)]
