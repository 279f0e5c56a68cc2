"""Pictures that are held out on ingestion: what belongs together stays together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.store.workspace import Workspace


def split_of(workspace: Workspace) -> dict[str, str]:
    """The split of each picture, by its file's name."""
    rows = workspace.snapshot().table("images", ["uri", "split"])
    names = [uri.rpartition("/")[2] for uri in rows["uri"].to_pylist()]
    return dict(zip(names, rows["split"].to_pylist(), strict=True))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Ten pictures of blots, each three times, next to alike, under names that do not tell it."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "series" / "blot"
    folder.mkdir(parents=True)
    for number in range(10):
        canvas = np.full((32, 32), 255, np.uint8)
        for row, column, size in rng.integers(2, 26, (6, 3)):
            canvas[row : row + size // 3, column : column + size // 4] = 0
        for copy in range(3):
            canvas[copy, 0] = 250
            Image.fromarray(canvas).save(folder / f"{copy}-{number}.png")
    return folder.parent


def test_near_duplicates_are_held_out_together(workspace: Workspace, series: Path) -> None:
    """All three pictures of a series are in one split; the same ones each time, also among more pictures."""
    report = ingest_images(workspace, series, "train", hold_out=0.3)
    first = split_of(workspace)
    splits = defaultdict[str, set[str]](set)
    for name, split in first.items():
        splits[name.rpartition("-")[2]].add(split)
    assert sorted(map(sorted, splits.values())) == [["test"]] * 3 + [["train"]] * 7
    assert report.splits == {"train": 21, "test": 9}
    assert ingest_images(workspace, series, "train", hold_out=0.3).unchanged == 30
    assert split_of(workspace) == first
