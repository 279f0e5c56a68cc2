"""Draws as files, a worker process, and one line of JSON for each draw and side; an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from benchmarks.kept import commit
from benchmarks.studies.side_by_side import worker
from benchmarks.studies.side_by_side.worker import Draw
from benchmarks.study import add_folder

__all__ = [
    "AFTER",
    "BEFORE",
    "SIDES",
    "Job",
    "Workers",
    "add_side",
    "draw_file",
    "lines",
    "matched",
    "measure",
]

BEFORE, AFTER = SIDES = ("before", "after")
_OUTSIDE: Mapping[str, Any] = {
    "cwd": os.sep,
    "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
}
"""One thread, and no folder that holds another version of the library."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One draw to measure.

    Attributes:
        unit: Its setting.
        seed: Of the draw.
        make: Makes it.
        rows_only: Whether added classes and unknown images are left out.
    """

    unit: str
    seed: int
    make: Callable[[], Draw]
    rows_only: bool = False


def measure(
    jobs: Iterable[Job],
    side: str,
    version: Mapping[str, str],
    ask: Callable[[Job, Path], dict[str, Any]],
    folder: Path,
) -> None:
    """Measure the draws that a side has not measured yet, or failed on; a line is kept after each.

    Args:
        jobs: The draws.
        side: Names the file of lines.
        version: Facts of each line: which version was measured.
        ask: Measures the draw in a file.
        folder: For draws, vectors and lines.
    """
    path = folder / f"{side}.jsonl"
    done = {key for key, line in lines(path).items() if "failed" not in line["result"]}
    for job in jobs:
        if (job.unit, job.seed) in done:
            continue
        drawn = draw_file(job.unit, job.seed, folder)
        if not drawn.exists():
            drawn.parent.mkdir(exist_ok=True)
            job.make().save(drawn)
        found = ask(job, drawn)
        line = {"unit": job.unit, "seed": job.seed, "digest": _digest(drawn), **version, "result": found}
        with FileLock(path.with_suffix(".lock")), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        _log.info("%s, %s: %s", side, drawn.stem, found.get("failed") or _shown(found))


def _shown(found: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} {100 * row['balanced']:.1f}, NLL {row['nll']:.3f}" for name, row in found["rows"].items()
    )


def lines(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the lines of a file by unit and seed, the newest of each; a line that was cut off is left out."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[line["unit"], line["seed"]] = line
    return found


def matched(folder: Path, sides: Sequence[str] = SIDES) -> dict[str, dict[int, dict[str, dict[str, Any]]]]:
    """Return unit, seed and side to the line of each draw that all sides have measured.

    Raises:
        SystemExit: Sides measured different draws under one name.
    """
    by_side = {side: lines(folder / f"{side}.jsonl") for side in sides}
    found: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for unit, seed in sorted(set.intersection(*(set(some) for some in by_side.values()))):
        row = {side: some[unit, seed] for side, some in by_side.items()}
        if len({line["digest"] for line in row.values()}) > 1:
            raise SystemExit(f"the sides measured different draws of {unit}, seed {seed}: empty {folder}")
        found.setdefault(unit, {})[seed] = row
    return found


def draw_file(unit: str, seed: int, folder: Path) -> Path:
    """Return where a draw is kept."""
    name = re.sub(r"[^\w.]+", "-", f"{unit}-{seed}")
    return folder / "draws" / f"{name}.npz"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Workers:
    """Processes of one Python that measure draws; they end with the `with` block.

    Args:
        python: The Python that has the version of the library.

    Attributes:
        version: The commit of the library, and the version of torch.
    """

    def __init__(self, python: Path) -> None:
        self._python = python
        self._processes: dict[bool, subprocess.Popen[str]] = {}
        program = "import torch, vlltr_index; print(vlltr_index.__file__); print(torch.__version__)"
        answer = subprocess.run(
            [python, "-P", "-c", program], check=True, stdout=subprocess.PIPE, text=True, **_OUTSIDE
        )
        package, torch_version = answer.stdout.splitlines()
        self.version = {"commit": commit(Path(package).parents[1]), "torch": torch_version}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.communicate()

    def ask(self, job: Job, path: Path) -> dict[str, Any]:
        """Have a process measure a draw.

        Raises:
            SystemExit: The process ended.
        """
        if job.rows_only not in self._processes:
            self._processes[job.rows_only] = self._start(job.rows_only)
        process = self._processes[job.rows_only]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker ended with exit status {process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def _start(self, rows_only: bool) -> subprocess.Popen[str]:
        words = [str(self._python), "-P", worker.__file__, *(["--rows-only"] if rows_only else [])]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **_OUTSIDE)


def add_side(parser: ArgumentParser, sides: Sequence[str] = SIDES) -> None:
    """Add `--side`, `--python`, `--draws`, `--units` and `--dir`."""
    parser.add_argument("--side", choices=sides, required=True, help="what is measured")
    parser.add_argument(
        "--python",
        type=lambda name: Path(name).absolute(),  # not resolved: an environment's Python is a link
        default=Path(sys.executable),
        help="the Python that has this version of the library; default: this one",
    )
    parser.add_argument("--draws", type=int, help="the first draws of each setting; default: all")
    parser.add_argument("--units", nargs="+", metavar="NAME", help="these settings; default: all")
    add_folder(parser)
