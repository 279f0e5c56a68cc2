"""Run the competitors of one question on the same inputs, in turns, and compare their answers.

A question is a package with `CASES`, `COMPETITORS` (module names, the product last), `inputs(values)` and
`agree(case, answers)`. A competitor is a module with `prepare(inputs, values)` and `run(state)`, which returns arrays
by name. Every competitor lives in a process of its own, so that memory is its own; inputs are files mapped into all
of them, and rounds go around the competitors, so that a busy machine is busy for all.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.clock import Clock

__all__ = ["Case", "Disagreement", "machine", "run_case"]

Arrays = dict[str, NDArray[Any]]
_VERSIONS = (
    "torch",
    "numpy",
    "faiss-cpu",
    "faiss-gpu",
    "lancedb",
    "open_clip_torch",
    "click",
    "vlltr-index",
)


@dataclass(frozen=True)
class Case:
    """One size at which a question is asked.

    Attributes:
        name: As the table shows it.
        values: What `inputs` makes the inputs from.
        portion: For competitors that need too much time or memory: the part of the work they do. Their time is
            extrapolated, and marked so.
        rounds: Timed runs of each competitor, after one that is not timed.
        skip: Competitors that are left out, each with the reason.
    """

    name: str
    values: dict[str, Any]
    portion: dict[str, float] = field(default_factory=dict)
    rounds: int = 3
    skip: dict[str, str] = field(default_factory=dict)


class Disagreement(Exception):
    """Competitors gave different answers."""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for name in _VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": _gpu(),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def run_case(question: str, case: Case, say: Callable[[str], None]) -> dict[str, Any]:
    """All competitors at one size: seconds of each round, peak memory, and how well they agree.

    Raises:
        Disagreement: If a competitor's answer differs by more than the question's tolerance.
    """
    module = importlib.import_module(f"benchmarks.speed.{question}")
    with tempfile.TemporaryDirectory() as folder:
        for name, array in module.inputs(case.values).items():
            np.save(Path(folder, f"{name}.npy"), array)
        names = [name for name in module.COMPETITORS if name not in case.skip]
        workers = {name: _Worker(question, name, case, Path(folder)) for name in names}
        try:
            _rounds(f"{question} {case.name}", case.rounds, workers, say)
            answers = {name: worker.answer() for name, worker in workers.items()}
            rows = {name: worker.row() for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()
    agreement = module.agree(case, answers)
    return {
        "case": case.name,
        "values": case.values,
        "skipped": case.skip,
        "rows": rows,
        "agreement": agreement,
    }


def _rounds(what: str, rounds: int, workers: Mapping[str, _Worker], say: Callable[[str], None]) -> None:
    for round_ in range(rounds + 1):
        order = list(workers.items())
        for name, worker in reversed(order) if round_ % 2 else order:  # nobody always goes first
            seconds = worker.run(warm=round_ == 0)
            say(f"{what} round {round_}: {name} {seconds:.3f} s")


class _Worker:
    """A competitor in its own process."""

    def __init__(self, question: str, name: str, case: Case, folder: Path) -> None:
        self.portion = case.portion.get(name, 1.0)
        self.path = folder / f"answer-{name}.npz"
        order = json.dumps(
            {
                "question": question,
                "name": name,
                "values": {**case.values, "portion": self.portion},
                "folder": str(folder),
                "answer": str(self.path),
            }
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.harness", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0.0
        self.extra: dict[str, Any] = {}

    def run(self, warm: bool) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        reply = self._read()
        self.peak = max(self.peak, reply["peak_mib"])
        if not warm:
            self.seconds.append(reply["seconds"])
            self.cpu.append(reply["cpu_seconds"])
            self.extra = reply["extra"]
        return float(reply["seconds"])

    def answer(self) -> Arrays:
        with np.load(self.path) as file:
            return dict(file)

    def row(self) -> dict[str, Any]:
        scaled = [round(s / self.portion, 6) for s in self.seconds]
        return {
            "seconds": scaled,
            "median": float(np.median(scaled)),
            "cpu_median": round(float(np.median(self.cpu)) / self.portion, 6),
            "portion": self.portion,
            "prepare_seconds": self.ready["seconds"],
            "resident_mib": self.ready["resident_mib"],
            "peak_extra_mib": round(self.peak, 1),
            **self.extra,
        }

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a competitor ended early: {self.process.args!r}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _memory(key: str) -> float:
    """A line of /proc/self/status in MiB; 0 where there is none."""
    for line in _lines("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak is then that of the whole process
        return


def _serve(order: Mapping[str, Any]) -> None:
    """The life of a competitor's process: prepare, then answer each line with one timed run."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    folder = Path(order["folder"])
    inputs = {
        path.stem: np.load(path, mmap_mode="c") for path in folder.glob("*.npy")
    }  # copy on write: torch warns about read-only arrays
    for array in inputs.values():
        array.max()  # so that every page is in memory before a peak is taken
    competitor: ModuleType = importlib.import_module(f"benchmarks.speed.{order['question']}.{order['name']}")
    start = time.perf_counter()
    state = competitor.prepare(inputs, order["values"])
    ready = {"seconds": round(time.perf_counter() - start, 4), "resident_mib": round(_memory("VmRSS"), 1)}
    _reply(out, ready)
    for _ in sys.stdin:
        before = _memory("VmRSS")
        _reset_peak()
        clock = Clock()
        answer = competitor.run(state)
        took = clock.read()
        peak = _memory("VmHWM") - before
        extra = answer.pop("_extra", {})
        # A competitor may time itself where part of a run is not to count (a process's start, a clean-up).
        took = {key: extra.pop(key, value) for key, value in took.items()}
        np.savez(order["answer"], **answer)
        _reply(out, {**took, "peak_mib": peak, "extra": extra})


def _reply(out: Any, values: dict[str, Any]) -> None:
    out.write(json.dumps(values) + "\n")
    out.flush()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
