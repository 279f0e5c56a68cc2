"""Rows of the same test images: how they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept
from benchmarks.studies.paired import keep_run, pack, read_runs, unpack


def result(**changed: Any) -> dict[str, Any]:
    """A run on three images of two classes."""
    facts = {"dataset": "d" * 64, "labels": [1, 0, 1], "counts": [30, 7, 30], "groups": ["b", "a", "b"]}
    return {**facts, "right": {"vl-ltr": "101"}, "top5": {"vl-ltr": "111"}, "seed": 3, **changed}


def test_ones_and_zeros_are_packed() -> None:
    """In a sixth of the letters, and they come back."""
    text = "1101" * 600 + "1"
    assert len(pack(text)) < len(text) / 5.9
    assert unpack(pack(text), len(text)).tolist() == [float(c) for c in text]


def test_a_run_comes_back_with_its_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the top five the share alone; images are kept once a data set, also where a run knows no groups."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    without = result()
    del without["groups"]
    keep_run("some", "first", without)
    keep_run("some", "second", result(seed=4))
    found = read_runs(kept.read("some"))
    assert [run["seed"] for run in found.values()] == [3, 4]
    for run in found.values():
        assert run["labels"].tolist() == [1, 0, 1]
        assert run["counts"].tolist() == [30, 7, 30]
        assert run["groups"].tolist() == ["b", "a", "b"]
        assert run["right"]["vl-ltr"].tolist() == [1, 0, 1]
        assert run["top5"]["vl-ltr"] == 1.0
    with pytest.raises(SystemExit, match="third is of other test images"):
        keep_run("some", "third", result(labels=[1, 1, 0]))
    assert set(read_runs(kept.read("some"))) == {"first", "second"}


def test_rows_of_an_earlier_result_stay_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that the new result has is its own; one of another data set is refused."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    keep_run("some", "one", result(right={"image-only": "000", "vl-ltr": "000", "other": "000"}))
    keep_run("some", "one", result(), stay=("image-only", "vl-ltr"))
    right = read_runs(kept.read("some"))["one"]["right"]
    assert {name: values.tolist() for name, values in right.items()} == {
        "image-only": [0, 0, 0],
        "vl-ltr": [1, 0, 1],
    }
    with pytest.raises(SystemExit, match="another data set"):
        keep_run("some", "one", result(dataset="e" * 64), stay=("image-only",))
