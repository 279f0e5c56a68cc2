"""Pictures that are held out on ingestion: what belongs together stays together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.sources import images, put
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


def test_what_belongs_to_a_picture_that_was_held_out_follows_it(workspace: Workspace, tmp_path: Path) -> None:
    """A second shot of a group that is in split test goes there, too; groups of several classes stay whole."""
    data = tmp_path / "data"
    for number in range(24):
        put(data / ("owl" if number % 3 else "tit") / f"g{number % 8}_{number}.png", number)
    grouped = {"group": r"name:^(g\d)_", "sync": True}

    def splits() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, (_, split) in images(workspace).items():
            found.setdefault(name.split("/")[1].split("_")[0], set()).add(split)
        return found

    ingest_images(workspace, data, "train", hold_out=0.3, **grouped)
    first = splits()
    assert {"test"} in first.values()
    assert all(len(splits) == 1 for splits in first.values())
    for number in range(24, 32):
        put(data / "owl" / f"g{number % 8}_{number}.png", number)
    ingest_images(workspace, data, "train", sync=True)
    assert splits() == first
    ingest_images(workspace, data, "train", hold_out=0.3, sync=True)
    assert splits() == first
