"""Two versions of the library on the same draws: draws as files, and a process of each version's Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.kept import commit, read
from benchmarks.studies.side_by_side import worker
from benchmarks.studies.side_by_side.worker import Draw
from benchmarks.study import add_draws, add_folder

__all__ = ["AFTER", "BEFORE", "SIDES", "Worker", "add_side", "draw_file", "matched", "measured"]

BEFORE, AFTER = SIDES = ("before", "after")
_OUTSIDE: Mapping[str, Any] = {
    "cwd": os.sep,
    "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
}
"""One thread, and no folder that holds another version of the library."""


def measured(
    path: Path, make: Callable[[], Draw], measure: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """Measure the draw in a file, which is made if it is missing; the result has the digest of the draw."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        make().save(path)
    return {"digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16], **measure(path)}


def draw_file(unit: str, seed: int, folder: Path) -> Path:
    """Return where a draw is kept."""
    name = re.sub(r"[^\w.]+", "-", f"{unit}-{seed}")
    return folder / "draws" / f"{name}.npz"


def matched(folder: Path, sides: Sequence[str] = SIDES) -> dict[str, dict[str, dict[str, Any]]]:
    """Return unit, seed and side to the result of each draw that all sides have measured.

    Raises:
        SystemExit: Sides measured different draws under one name.
    """
    by_side = {side: read(side, folder) for side in sides}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for unit in sorted(set.intersection(*(set(units) for units in by_side.values()))):
        draws = {side: units[unit]["draws"] for side, units in by_side.items()}
        for seed in sorted(set.intersection(*(set(some) for some in draws.values()))):
            row = {side: some[seed] for side, some in draws.items()}
            if len({result["digest"] for result in row.values()}) > 1:
                raise SystemExit(f"the sides measured different draws of {unit}, seed {seed}: empty {folder}")
            found.setdefault(unit, {})[seed] = row
    return found


class Worker:
    """A process of one Python that measures draws; it ends with the `with` block.

    Args:
        python: The Python that has the version of the library.

    Attributes:
        version: The commit of the library, and the version of torch.
    """

    def __init__(self, python: Path) -> None:
        program = "import torch, vlltr_index; print(vlltr_index.__file__); print(torch.__version__)"
        answer = subprocess.run(
            [python, "-P", "-c", program], check=True, stdout=subprocess.PIPE, text=True, **_OUTSIDE
        )
        package, torch_version = answer.stdout.splitlines()
        self.version = {"commit": commit(Path(package).parents[1]), "torch": torch_version}
        words = [str(python), "-P", worker.__file__]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **_OUTSIDE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def ask(self, path: Path, rows_only: bool = False) -> dict[str, Any]:
        """Have the process measure the draw in a file, unless `rows_only` also with added classes and unknown images.

        Raises:
            SystemExit: The process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"path": str(path), "rows_only": rows_only}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker ended with exit status {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found


def add_side(parser: ArgumentParser, sides: Sequence[str] = SIDES) -> None:
    """Add `--side`, `--python`, `--dir`, `--draws` and `--settings`."""
    parser.add_argument("--side", choices=sides, required=True, help="what is measured")
    parser.add_argument(
        "--python",
        type=lambda name: Path(name).absolute(),  # not resolved: an environment's Python is a link
        default=Path(sys.executable),
        help="the Python that has this version of the library; default: this one",
    )
    add_folder(parser)
    add_draws(parser)
