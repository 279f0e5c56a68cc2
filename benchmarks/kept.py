"""Results of studies, one small JSON file each, in units that are measured one by one."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

__all__ = ["RESULTS", "keep", "read", "surroundings"]

RESULTS = Path(__file__).parent / "results"


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
