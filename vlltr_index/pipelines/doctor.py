"""Check versions, the device, and whether a workspace opens and its files are undamaged (`vlltr doctor`)."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement

from vlltr_index.errors import MissingStepError, UsageError, VlltrError
from vlltr_index.recognition.exported.place import beside, unfinished
from vlltr_index.store.objects import Kind
from vlltr_index.store.parts import BACK, differences
from vlltr_index.store.snapshot import NOTHING
from vlltr_index.store.transaction import check_tags
from vlltr_index.store.workspace import Workspace
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import Commit

State = Literal["ok", "note", "problem"]

_NAME = "vlltr-index"
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs")
"""Packages of FAISS, of which one is installed."""

_CU12_CARDS = (7, 0), (8, 9)  # lowest and highest compute capability, from the package's page


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: What was checked.
        state: `problem` stops the work, `note` is worth knowing.
        value: What was found, and what is needed.
        mend: The command that mends it.
    """

    name: str
    state: State
    value: str
    mend: str | None = None


def diagnose(start: str | os.PathLike[str] | None = None) -> list[Check]:
    """Run every check.

    Args:
        start: A workspace; default: the nearest one upward from the current folder, if there is one.
    """
    python = f"{platform.python_version()} (needs {metadata.metadata(_NAME)['Requires-Python']})"
    return [Check("python", "ok", python), *_packages(), *_faiss(), _device(), *check_workspace(start)]


def _packages() -> list[Check]:
    """Check the packages that are needed, and the optional ones that are installed."""
    found: dict[str, Check] = {}
    for needed in map(Requirement, metadata.requires(_NAME) or ()):
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = None
        optional = needed.marker is not None and not needed.marker.evaluate({"extra": ""})
        if not optional or version is not None:
            found.setdefault(needed.name, check_requirement(needed, version))
    return list(found.values())


def check_requirement(needed: Requirement, version: str | None) -> Check:
    """Check that a package is installed, in a version within its bounds."""
    bounds = str(needed.specifier) or "any"
    mend = f'pip install "{needed.name}{needed.specifier}"'
    if version is None:
        return Check(needed.name, "problem", f"not installed, needs {bounds}", mend)
    if not needed.specifier.contains(version, prereleases=True):
        return Check(needed.name, "problem", f"{version}, needs {bounds}", mend)
    return Check(needed.name, "ok", f"{version} (needs {bounds})")


def _faiss() -> Iterator[Check]:
    """Check that one build of FAISS is installed and imports, and that it supports the GPUs."""
    try:
        from vlltr_index.anchors.index import gpu_count
    except Exception:  # a broken torch can raise anything; `_device` reports it
        return
    builds = [d.name for d in metadata.distributions() if d.name in FAISS]
    again = f'pip uninstall -y {" ".join(builds)} && pip install "vlltr-index[{{}}]"'
    if len(builds) > 1:
        what = f"{' and '.join(sorted(builds))} are the same module, of which one overwrote the other"
        yield Check("faiss", "problem", what, again.format("cpu" if "faiss-cpu" in builds else "gpu"))
        return
    try:
        count = gpu_count() if builds else 0
    except MissingStepError as error:
        yield Check("faiss", "problem", error.message, again.format("cpu"))
        return
    cards = _cards() if builds == ["faiss-gpu-cu12"] else {}
    (least, most) = _CU12_CARDS
    wrong = [f"{name} has {c[0]}.{c[1]}" for name, c in cards.items() if not least <= c <= most]
    if wrong:
        what = f"faiss-gpu-cu12 is made for compute capability 7.0 to 8.9, {', '.join(wrong)}"
        yield Check("faiss", "problem", what, again.format("gpu"))
    elif builds and builds != ["faiss-cpu"]:
        yield Check("faiss", "ok" if count else "note", f"{builds[0]} sees {plural(count, 'GPU')}")


def _cards() -> dict[str, tuple[int, int]]:
    """Return the GPUs that torch sees, with their compute capability."""
    import torch

    numbers = range(torch.cuda.device_count())
    return {torch.cuda.get_device_name(n): torch.cuda.get_device_capability(n) for n in numbers}


def _device() -> Check:
    """Check the device that torch computes on."""
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything
        why = f"torch cannot be imported: {type(error).__name__}: {error}"
        return Check("device", "problem", why, "pip install --force-reinstall torch")
    from vlltr_index.tensors import choose_device, cuda_problem, device_name

    try:
        device = choose_device()
    except UsageError as error:
        return Check("device", "problem", error.message, error.hint)
    if device.type == "cpu":
        no_gpu = cuda_problem(torch.device("cuda")) if torch.version.cuda else None
        return Check("device", "ok", device_name(device) + (f"; no GPU: {no_gpu}" if no_gpu else ""))
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Check("device", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")


def check_workspace(start: str | os.PathLike[str] | None = None) -> list[Check]:
    """Check that the workspace opens, and that the files its newest commit names are there and undamaged."""
    name = "workspace"
    found = list[Check]()
    try:
        workspace = Workspace.find() if start is None else Workspace.open(start)
        name = "commit"
        found = [Check("workspace", "ok", workspace.address), *_exports(workspace)]
        commits, wrong = workspace.history.look()
        commit = commits[-1] if commits else NOTHING
        found += [Check(name, "problem", error.message, error.hint) for error in wrong]
        if commit.id != workspace.history.highest():  # the newest commit cannot be read
            return found
        check_tags(workspace.store, commit)
    except VlltrError as error:
        missing = start is None and "no workspace" in error.message
        return [*found, Check(name, "note" if missing else "problem", error.message, error.hint)]
    if not commit.id:
        return found
    if problems := list(_problems(workspace, commit)):
        return found + problems
    whole = f"{commit.id} ({commit.command}): its tables open, and its files are those that were written"
    if commit.parts:
        whole += "; its tables of classes, what lies above them, their statistics and their anchors say what it answers"
        return [*found, Check("commit", "ok", whole)]
    found.append(Check("commit", "ok", whole))
    if commit.head:
        what = f"commit {commit.id} names none: it answers from the tables, whose content nothing checks"
        found.append(Check("parts", "note", what, f"vlltr rollback {commit.id}"))
    return found


def _exports(workspace: Workspace) -> Iterator[Check]:
    """Check for exports that were killed, and say what they left."""
    for folder in unfinished(workspace):
        lost = "" if folder.is_dir() else f", and moved what {folder} held there"
        found = f"one to {folder} was killed: it left {beside(folder)}{lost}"
        again = f"vlltr export --force {shlex.quote(str(folder))}"
        yield Check("export", "problem" if lost else "note", found, f"{again} puts that in order.")


def _problems(workspace: Workspace, commit: Commit) -> Iterator[Check]:
    """Yield the commit's tables that do not open or whose rows fail their checksums, and its files that are damaged or
    gone."""
    snapshot = workspace.snapshot(commit.id)
    looks: list[tuple[str, Callable[[], object]]] = [
        (f"table {name}", partial(snapshot.count, name)) for name in sorted(commit.tables)
    ]
    named: list[tuple[str, Kind, str | None]] = [
        ("encoder", "checkpoints", commit.checkpoint),
        ("head", "heads", commit.head),
        ("index", "index", commit.index.digest if commit.index else None),
        ("baseline fc", "checkpoints", commit.info.baseline_fc),
    ]
    if commit.info.folds:
        named.append(("folds", "heads", commit.info.folds))
    named += [(f"baseline {name}", "heads", digest) for name, digest in commit.info.baselines.items()]
    named += [(name, "parts", digest) for name, digest in zip(("base", "delta"), commit.parts, strict=False)]
    looks += [
        (what, partial(workspace.objects.whole, kind, digest)) for what, kind, digest in named if digest
    ]
    whole = True
    for what, look in looks:
        try:
            look()
        except VlltrError as error:
            whole = False
            yield Check(what, "problem", error.message, error.hint)
    if not whole:
        return  # damaged files cannot be compared
    try:
        for told in differences(snapshot):
            yield Check("tables", "problem", told, BACK)
    except VlltrError as error:
        hint = BACK if "vlltr doctor" in (error.hint or "") else error.hint  # other commands point here
        yield Check("tables", "problem", error.message, hint)
