"""`python -m benchmarks.trust.cost BEFORE`: what durable commits cost, in pairs of runs with another version.

BEFORE is a folder with an installed tree of that version (`pip install --no-deps --target BEFORE .`). `classes add` by
sentences and by pictures, `ingest images` of many small pictures, and `predict`, run in turns with both; each run is a
process of its own, on a copy of the same workspace. The part that is spent in syncs is measured within the run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.harness import machine
from benchmarks.trust.workload import COMMANDS, arguments, prepare

RESULT = Path(__file__).parents[1] / "results" / "trust-cost.json"
_RUN = """
import json, os, sys, time
spent, real = [0.0, 0], os.fsync
def fsync(handle):
    began = time.perf_counter()
    real(handle)
    spent[0] += time.perf_counter() - began
    spent[1] += 1
os.fsync = fsync
calls = {"synced": 0.0}
try:
    import vlltr_index.store.storage as storage, vlltr_index.store.tables as tables
    def timed(call):
        def wrapped(*given, **more):
            began = time.perf_counter()
            result = call(*given, **more)
            calls["synced"] += time.perf_counter() - began
            return result
        return wrapped
    storage.sync_changed, tables.keep = timed(storage.sync_changed), timed(tables.keep)
except AttributeError:
    pass
import lancedb, open_clip, torch
from vlltr_index.cli.main import main
began = time.perf_counter()
try:
    main(sys.argv[1:])
except SystemExit as leave:
    assert not leave.code, leave.code
took = time.perf_counter() - began
print("\\n" + json.dumps({"seconds": took, "syncs": spent[1], "fsync_seconds": spent[0], **calls}))
"""
ADDED = 8
"""How many of `workload.COMMANDS` come before the addition by pictures."""


def once(tree: Path | None, command: Sequence[str]) -> dict[str, float]:
    """Seconds of one run, the syncs in it and their seconds.

    Raises:
        RuntimeError: If the command fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree)} if tree else dict(os.environ)
    program = [sys.executable, "-c", _RUN, *command]
    done = subprocess.run(  # not in this folder, which is looked into first
        program, capture_output=True, text=True, check=False, env=environment, cwd=tempfile.gettempdir()
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def many_pictures(folder: Path, count: int) -> None:
    """Small PNG files of one class."""
    from PIL import Image

    place = folder / "many" / "one"
    place.mkdir(parents=True)
    for number in range(count):
        color = (number % 256, number // 256 % 256, number // 65536)
        Image.new("RGB", (8, 8), color).save(place / f"{number}.png")


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("before", type=Path, help="An installed tree of the other version.")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=60_000)
    parsed = parser.parse_args()
    result: dict[str, Any] = {"pictures": parsed.pictures, "pairs": parsed.pairs}
    with tempfile.TemporaryDirectory(prefix="vlltr-cost-") as scratch:
        for name, tree in (("before", parsed.before.absolute()), ("after", None)):
            folder = Path(scratch) / name
            folder.mkdir()
            prepare(folder)
            for command in COMMANDS[:ADDED]:
                once(tree, arguments(folder, command))
        many_pictures(Path(scratch), parsed.pictures)
        pictures = ("ingest", "images", f"{scratch}/many", "--split", "train")
        questions = {
            "classes add, sentences": ("classes", "add", "zag", "--sentence", "A zag of many strokes."),
            "classes add, pictures": COMMANDS[ADDED],
            "ingest images": pictures,
            "predict, in a new process": ("predict", "{inputs}/more"),
        }
        for question, command in questions.items():
            runs: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
            for pair in range(parsed.pairs):
                for name in ("before", "after") if pair % 2 else ("after", "before"):
                    kept, work = Path(scratch) / name / "workspace", Path(scratch) / name / "kept"
                    shutil.copytree(kept, work)
                    tree = parsed.before.absolute() if name == "before" else None
                    runs[name].append(once(tree, arguments(Path(scratch) / name, command)))
                    shutil.rmtree(kept)
                    work.rename(kept)
            result[question] = {name: _medians(found) for name, found in runs.items()}
            pairs = zip(runs["after"], runs["before"], strict=True)
            result[question]["ratio"] = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
            sys.stdout.write(f"{question}: {json.dumps(result[question])}\n")
            sys.stdout.flush()
    result["machine"] = machine()
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}


if __name__ == "__main__":
    main()
