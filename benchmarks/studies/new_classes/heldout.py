"""The held-out classes of a data set: what is known of each, and features of their images."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.studies.vectors import features_of
from vlltr_index.data.glyphs import GlyphFiles
from vlltr_index.encoders.encoder import Encoder

__all__ = ["Group", "drawn", "read_group"]


@dataclass(frozen=True)
class Group:
    """Held-out classes: their names, sentences, support images as files, and features of their test images."""

    names: list[str]
    texts: dict[str, list[str]]
    files: dict[str, list[Path]]
    support: dict[str, Tensor]  # [n, D] a class
    features: Tensor
    labels: Tensor  # positions in `names`


def read_group(data: GlyphFiles, name: str, encoder: Encoder, folder: Path) -> Group:
    """Read the group `dev` or `final`; its support images are written to files below `folder`."""
    texts = data.heldout_classes(name)
    names = sorted(texts)
    rows = pq.read_table(data.images, columns=["image", "label", "split"]).to_pylist()
    files: dict[str, list[Path]] = {n: [] for n in names}
    for row in rows:
        if row["split"] == f"{name}_support":
            path = folder / str(names.index(row["label"])) / f"{len(files[row['label']])}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
            files[row["label"]].append(path)
    support = {n: features_of([path.read_bytes() for path in files[n]], encoder) for n in names}
    tests = [row for row in rows if row["split"] == f"{name}_test"]
    labels = torch.tensor([names.index(row["label"]) for row in tests])
    return Group(names, texts, files, support, features_of([row["image"] for row in tests], encoder), labels)


def drawn(name: str, there: int, shots: int, draw: int) -> list[int]:
    """Return which of a class's support images a draw takes."""
    order = list(range(there))
    random.Random(f"{draw}:{name}").shuffle(order)
    return order[:shots]
