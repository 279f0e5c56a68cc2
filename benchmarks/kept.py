"""Results as JSON files by unit, which is a setting with its draws by seed, or a run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

__all__ = ["RESULTS", "cleared", "commit", "draws_of", "keep", "keep_draw", "read", "surroundings"]

RESULTS = Path(__file__).parent / "results"


def read(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the units of a file of results by name; none where nothing was measured yet.

    Args:
        name: Of the study, or in another folder of what was measured.
        folder: Has the file; default: `RESULTS`.
    """
    path = _file(name, folder)
    units: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return units


def draws_of(unit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of a setting's draws."""
    return list(unit["draws"].values())


def keep(name: str, unit: str, result: Any, folder: Path | None = None) -> None:
    """Write one unit; other processes may write other units meanwhile."""
    with _locked(name):
        _write(name, folder, read(name, folder) | {unit: result})


def keep_draw(
    name: str,
    unit: str,
    seed: int,
    result: Mapping[str, Any],
    facts: Mapping[str, Any],
    folder: Path | None = None,
) -> None:
    """Write one draw of a setting, and facts next to the draws; other processes may write other draws meanwhile."""
    with _locked(name):
        units = read(name, folder)
        earlier = units.get(unit, {})
        draws = earlier.get("draws", {}) | {str(seed): result}
        _write(name, folder, units | {unit: {**earlier, **facts, "draws": draws}})


def _file(name: str, folder: Path | None) -> Path:
    return (folder or RESULTS) / f"{name}.json"


def _locked(name: str) -> FileLock:
    return FileLock(Path(tempfile.gettempdir()) / f"vlltr-study-{name}.lock")


def _write(name: str, folder: Path | None, units: Mapping[str, Any]) -> None:
    path = _file(name, folder)
    lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(units[n], sort_keys=True)}" for n in sorted(units))
    part = path.with_suffix(".part")
    part.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def cleared(place: Path) -> Iterator[None]:
    """Remove what an interrupted draw left in a folder, and in the end the folder."""
    shutil.rmtree(place, ignore_errors=True)
    yield
    shutil.rmtree(place)


def commit(tree: Path = RESULTS.parents[1]) -> str:
    """Return the last commit of a tree that changed more than results and pages; with a + if the tree differs."""

    def git(*words: str) -> str:
        answer = subprocess.run(["git", "-C", tree, *words], check=True, capture_output=True, text=True)
        return answer.stdout.strip()

    program = "--", ".", ":(exclude)benchmarks/results", ":(exclude)docs"
    return git("log", "-1", "--format=%h", *program) + "+" * bool(git("status", "--porcelain", *program))


def surroundings() -> dict[str, Any]:
    """Return the versions of the libraries, and the machine."""
    names = ("torch", "open_clip_torch", "lancedb", "faiss-cpu", "vlltr-index")
    return {
        "versions": {n: version(n) for n in names},
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
