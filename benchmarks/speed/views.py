"""Embedding of augmented views: vectors a second, an image decoded once for all its views or once for each.

    python -m benchmarks views run

*once a view*: each view decodes all images anew, two threads ahead, and the main thread augments. The two take turns in
one process, on the same pictures, weights and augmentation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import torch

from benchmarks.kept import keep, read
from benchmarks.speed.embedding.common import photographs
from benchmarks.study import Command, Study, no_arguments
from vlltr_index.data.decoding import open_image
from vlltr_index.embedding.vectors import Augment, LocalEngine
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.train.augment import ViewAugment

_IMAGES = 512
_BATCH = 64
_VIEWS = range(6)
_ROUNDS = 3
OURS = "ours, two processes"
OTHER = "once a view"


def once_a_view(encoder: Encoder, augment: Augment, batches: list[list[tuple[str, str]]]) -> int:
    """Vectors made, view by view."""
    count = 0
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for view in _VIEWS:
            read = [[pool.submit(_pixels, encoder, path) for _, path in batch] for batch in batches]
            for number, batch in enumerate(read):
                pixels = torch.stack([one.result() for one in batch])
                seeds = [number * _BATCH + place for place in range(len(batch))]
                count += len(encoder.encode_pixels(augment(pixels, seeds) if view else pixels))
    return count


def _pixels(encoder: Encoder, path: str) -> torch.Tensor:
    return encoder.transform(open_image(path))


def ours(encoder: Encoder, augment: Augment, batches: Iterable[list[tuple[str, str]]]) -> int:
    """Vectors made, an image decoded once."""
    engine = LocalEngine(encoder, augment, workers=2)
    return sum(found.vectors.shape[:2].numel() for found in engine.images(batches, _VIEWS))


def run() -> None:
    """Measure both in turns."""
    encoder = Encoder.scratch("vlltr-tiny", seed=0, texts=["a bird"]).eval()
    augment = ViewAugment(AugmentConfig(kind="photo"), encoder)
    paths = [(path.name, str(path)) for path in photographs(_IMAGES)]
    batches = [paths[start : start + _BATCH] for start in range(0, _IMAGES, _BATCH)]
    ways: dict[str, Callable[[], int]] = {
        OTHER: lambda: once_a_view(encoder, augment, batches),
        OURS: lambda: ours(encoder, augment, batches),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            start = time.monotonic()
            assert way() == _IMAGES * len(_VIEWS)
            rates[name].append(round(_IMAGES * len(_VIEWS) / (time.monotonic() - start), 1))
    result = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "vectors_per_second": rates}
    keep("views", "vlltr-tiny", result)


def parts() -> dict[str, str]:
    """Return the medians and their ratio."""
    kept = read("views")
    return {"results/views.md": generated(kept["vlltr-tiny"])} if kept else {}


def generated(found: dict[str, Any]) -> str:
    """Return the medians and their ratio as a sentence."""
    rates = {name: median(values) for name, values in found["vectors_per_second"].items()}
    return (
        f"Vectors a second, {len(_VIEWS)} views (all but one augmented) of {_IMAGES} JPEG files of 800 x 600, "
        f"vlltr-tiny, {found['cores']} cores, load {found['load']}: {rates[OURS]:.0f} with two processes that read, "
        f"{rates[OTHER]:.0f} where each view decodes anew: {rates[OURS] / rates[OTHER]:.1f} times (goal: 3).\n"
    )


STUDY = Study({"run": Command(run, no_arguments)}, parts)
