"""Threads of a small model: images a second of stage 1, alone and beside a program that keeps one core busy.

    python -m benchmarks threads run

Each way is a process of its own that trains vlltr-tiny on random drawings: with as many threads as there are cores,
which wait by spinning (OpenMP's default) or asleep, and with one. Ways take turns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from io import BytesIO
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks.kept import keep, read
from benchmarks.study import Command, Study, no_arguments
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.schemas.config import AugmentConfig, CVLPConfig
from vlltr_index.train.cvlp import train_cvlp
from vlltr_index.train.data import TrainImages, TrainTexts

_CORES = str(os.cpu_count() or 1)
WAYS: dict[str, dict[str, str]] = {
    "a thread a core, spinning": {"OMP_NUM_THREADS": _CORES, "OMP_WAIT_POLICY": "ACTIVE"},
    "a thread a core, asleep: as vlltr does": {"OMP_NUM_THREADS": _CORES, "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
}
_IMAGES = 4096
_CLASSES = 64
_ROUNDS = 3


def train() -> None:
    """Say the images a second of one epoch, after one that is not timed."""
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder.scratch("vlltr-tiny", seed=0, texts=["a drawing"])
    pixels = torch.randint(0, 256, (_IMAGES, *encoder.image_size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(_IMAGES) % _CLASSES
    images = TrainImages([_png(one) for one in pixels], labels, encoder, AugmentConfig(kind="glyph"))
    texts = TrainTexts([[f"drawing {c}", f"a sign {c}"] for c in range(_CLASSES)], encoder)
    for _ in range(2):
        start = time.monotonic()
        train_cvlp(encoder, images, texts, CVLPConfig(epochs=1))
    sys.stdout.write(f"{_IMAGES / (time.monotonic() - start)}\n")


def _png(pixels: torch.Tensor) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels.numpy()).save(out, "PNG")
    return out.getvalue()


def run() -> None:
    """Measure all ways in turns, alone and beside a neighbour."""
    rows: dict[str, dict[str, list[float]]] = {way: {"alone": [], "beside": []} for way in WAYS}
    for _ in range(_ROUNDS):
        for beside in ("alone", "beside"):
            for way, values in WAYS.items():
                rows[way][beside].append(_measured(values, beside == "beside"))
    keep("threads", "vlltr-tiny", {"cores": int(_CORES), "images_per_second": rows})


def _measured(values: dict[str, str], neighbour: bool) -> float:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | values
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if neighbour else None
    try:
        command = [sys.executable, "-m", "benchmarks", "threads", "train"]
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return float(told.stdout)
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()


def parts() -> dict[str, str]:
    """Return the medians."""
    kept = read("threads")
    return {"results/threads.md": generated(kept["vlltr-tiny"])} if kept else {}


def generated(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"Images a second of stage 1, vlltr-tiny, {found['cores']} cores:",
        "",
        "| threads | alone | beside a busy program |",
        "| --- | --- | --- |",
    ]
    for way in WAYS:
        values = found["images_per_second"][way]
        lines.append(f"| {way} | {median(values['alone']):.0f} | {median(values['beside']):.0f} |")
    return "\n".join(lines) + "\n"


STUDY = Study({"run": Command(run, no_arguments), "train": Command(train, no_arguments)}, parts)
