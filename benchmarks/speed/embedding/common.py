"""Weights, files and sentences of the embedding question."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

_WORDS = ["a", "small", "bird", "with", "long", "grey", "wings", "near", "water"]


def weights(model: str) -> Path:
    """Random weights in a file."""
    torch.manual_seed(0)
    path = Path(tempfile.mkdtemp(prefix="vlltr-embedding-")) / "weights.safetensors"
    save_file(open_clip.create_model(model).state_dict(), path)
    return path


def photographs(number: int) -> list[Path]:
    """JPEG files of 800 x 600 with something in them."""
    folder = Path(tempfile.mkdtemp(prefix="vlltr-embedding-")) / "only"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        noise = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((800, 600), Image.Resampling.BICUBIC).save(
            folder / f"{i:05}.jpg", quality=90
        )
    return sorted(folder.glob("*.jpg"))


def sentences(number: int) -> list[str]:
    """Different sentences of 4 to 40 words."""
    rng = np.random.default_rng(0)
    return [f"{' '.join(rng.choice(_WORDS, int(rng.integers(3, 40))))} number {i}." for i in range(number)]


def arrays(vectors: Any) -> Any:
    """float32 on the CPU."""
    return np.asarray(vectors, dtype=np.float32)
