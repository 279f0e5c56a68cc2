"""`vlltr predict --out` on many small pictures: images a second beside the bare model, memory, and a kill on the way.

    python -m benchmarks predicting run --workspace DIR [--images N]

The pictures are those of Glyphs-LT over and over, in one Parquet file. `bare` decodes and encodes the same pictures by
the same encoder in batches, and drops the vectors: layer by layer as torch has them, and with BatchNorm folded into the
convolutions as in the product. All are programs of their own, in turns, each in halves of the pictures; the product is
killed (SIGKILL) in its second half and started again. Processor time is that of the whole program; by the clock each
has what other programs leave.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.kept import keep, read, surroundings
from benchmarks.study import Command, Study
from vlltr_index.data.glyphs import glyph_files

_LOOKS = 0.2  # seconds between looks at the memory


def write_pictures(folder: Path, images: int) -> tuple[Path, Path]:
    """Two Parquet files of half the pictures each."""
    rows = pq.read_table(glyph_files().images, columns=["image"])["image"].combine_chunks()
    halves = []
    for half in range(2):
        wanted = [(half * images // 2 + n) % len(rows) for n in range(images // 2)]
        halves.append(folder / f"half-{half}.parquet")
        pq.write_table(pa.table({"image": rows.take(pa.array(wanted))}), halves[-1], row_group_size=4096)
    return halves[0], halves[1]


def bare(workspace: Path, pictures: Path, folded: bool) -> None:
    """Decode and encode all pictures, and no more."""
    from torch import nn

    from vlltr_index.data.unlabelled import unlabelled_images
    from vlltr_index.embedding.loading import open_encoder
    from vlltr_index.embedding.pixels import in_batches
    from vlltr_index.embedding.vectors import LocalEngine
    from vlltr_index.encoders.openclip import ConvNorm
    from vlltr_index.store.workspace import Workspace

    if not folded:
        ConvNorm.forward = nn.Sequential.forward  # type: ignore[method-assign]  # as if there were no such class
    opened = Workspace.open(workspace)
    engine = LocalEngine(open_encoder(opened.snapshot()).eval())
    for _ in engine.images(in_batches(unlabelled_images([str(pictures)])), [0]):
        pass


def watched(command: list[str], kill_after: float | None = None) -> dict[str, Any]:
    """Run a program; its seconds, and of the processor, and its memory in MiB after a third of its time and at most."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    seen = list[int]()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(_LOOKS)
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        seen += [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")]
        if kill_after is not None and time.monotonic() - start > kill_after:
            process.kill()
    process.wait()
    if kill_after is None and process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    third = len(seen) // 3
    return {
        "seconds": time.monotonic() - start,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "mib_a_third_in": seen[third],
        "mib_at_most": max(seen[third:]),
    }


def run(workspace: Path, images: int) -> None:
    """Measure, and write the result."""
    from vlltr_index.recognizer import Recognizer

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first, second = write_pictures(folder, images)
        ours = [sys.executable, "-m", "vlltr_index.cli", "-w", str(workspace), "predict"]
        plain = [
            sys.executable,
            "-m",
            "benchmarks",
            "predicting",
            "bare",
            "--workspace",
            str(workspace),
            "--pictures",
        ]
        alone = watched([*plain, str(first)])
        encoder = watched([*plain, str(first), "--folded"])
        whole_run = watched([*ours, str(first), "--out", str(folder / "a.parquet")])
        began = whole_run["seconds"] / 2
        killed = watched([*ours, str(second), "--out", str(folder / "b.parquet")], kill_after=began)
        kept = sum(1 for _ in (folder / "b.parquet.part").open(encoding="utf-8")) - 1
        again = watched([*ours, str(second), "--out", str(folder / "b.parquet")])
        names = pq.read_table(folder / "b.parquet", columns=["image"])["image"].to_pylist()
        whole = names == [f"{second}#{n}" for n in range(images // 2)]
    found = {
        "images": images,
        "classes": len(Recognizer.open(workspace).current().class_ids),
        "bare": alone,
        "folded": encoder,
        "predict": whole_run,
        "killed_after": killed["seconds"],
        "kept": kept,
        "again": again,
        "whole": whole,
        **surroundings(),
    }
    keep("predicting", "vlltr-tiny", found)


def parts() -> dict[str, str]:
    """Return the figures."""
    kept = read("predicting")
    return {"results/predicting.md": generated(kept["vlltr-tiny"])} if kept else {}


def generated(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    half = found["images"] // 2
    mine = found["predict"]
    theirs = found["bare"]
    lines = [
        f"{half:,} small pictures each, vlltr-tiny, {found['classes']:,} classes, {found['machine']['cores']} cores,"
        " start of the programs included:",
        "",
        "| | images/s by the clock | processor, ms an image | MiB a third in | MiB at most |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in (
        ("the bare model", theirs),
        ("the same with BatchNorm folded, as in the product", found["folded"]),
        ("`vlltr predict --out answers.parquet`", mine),
    ):
        rate = half / row["seconds"]
        cost = 1000 * row["cpu_seconds"] / half
        lines.append(f"| {name} | {rate:.0f} | {cost:.2f} | {row['mib_a_third_in']} | {row['mib_at_most']} |")
    whole = (
        "no picture is missing or there twice"
        if found["whole"]
        else "**pictures are missing or there twice**"
    )
    lines += [
        "",
        f"{theirs['cpu_seconds'] / mine['cpu_seconds']:.2f} of the bare model's rate by processor time,"
        f" {theirs['seconds'] / mine['seconds']:.2f} by the clock (goal 0.95)."
        f" Killed after {found['killed_after']:.0f} s with"
        f" {found['kept']:,} answers kept, and started again: {whole}.",
    ]
    return "\n".join(lines) + "\n"


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)


def _bare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--folded", action="store_true")


STUDY = Study({"run": Command(run, _run_arguments), "bare": Command(bare, _bare_arguments)}, parts)
