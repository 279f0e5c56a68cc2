"""Results of studies, one small JSON file each, in units that are measured one by one."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

__all__ = ["RESULTS", "cleared", "commit", "keep", "keep_draws", "read", "surroundings"]

RESULTS = Path(__file__).parent / "results"
_log = logging.getLogger(__name__)


def read(study: str) -> dict[str, Any]:
    """Return the units of a study by name; none where nothing was measured yet."""
    path = RESULTS / f"{study}.json"
    units: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return units


def keep(study: str, unit: str, result: Any) -> None:
    """Write one unit of a study; other processes may write other units meanwhile."""
    path = RESULTS / f"{study}.json"
    with FileLock(Path(tempfile.gettempdir()) / f"vlltr-study-{study}.lock"):
        units = read(study) | {unit: result}
        lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(units[n], sort_keys=True)}" for n in sorted(units))
        part = path.with_suffix(".part")
        part.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        part.replace(path)


def keep_draws(
    study: str,
    unit: str,
    draws: Iterable[int],
    measure: Callable[[int], dict[str, Any]],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Measure the draws of a unit that are not measured yet, and keep the result after each, beside the `facts`."""
    done: dict[str, Any] = read(study).get(unit, {}).get("draws", {})
    for number in draws:
        if str(number) not in done:
            done[str(number)] = measure(number)
            _log.info("%s, draw %d: %s", unit, number, done[str(number)])
            keep(study, unit, {**(facts or {}), **surroundings(), "draws": done})


@contextmanager
def cleared(place: Path) -> Iterator[None]:
    """Take away what an interrupted draw left in a folder, and in the end the folder."""
    shutil.rmtree(place, ignore_errors=True)
    yield
    shutil.rmtree(place)


def commit(tree: Path = RESULTS.parents[1]) -> str:
    """Return the last commit of a tree that changed more than results and pages; with a + if the tree differs."""

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", tree, *words], check=True, capture_output=True, text=True)
        return told.stdout.strip()

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
