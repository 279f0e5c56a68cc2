"""Results of studies: a file each, unit by unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kept


def test_units_are_kept_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is replaced, the other stays; without a file there is none; a unit is a line."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    assert kept.read("some") == {}
    for unit, value in (("b", 1), ("a", {"z": [1, 2], "y": "ä"}), ("b", 2)):
        kept.keep("some", unit, value)
    assert kept.read("some") == {"a": {"z": [1, 2], "y": "ä"}, "b": 2}
    assert len((tmp_path / "some.json").read_text(encoding="utf-8").splitlines()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]


def test_draws_are_kept_one_by_one(tmp_path: Path) -> None:
    """A draw is added to those that are there, facts are replaced, and others stay."""
    kept.keep("after", "some", {"draws": {"1": {"x": 1}}, "commit": "old", "size": 3}, tmp_path)
    kept.keep_draw("after", "some", 2, {"x": 2}, {"commit": "new"}, tmp_path)
    kept.keep_draw("after", "other", 1, {"x": 3}, {}, tmp_path)
    found = kept.read("after", tmp_path)
    assert found["some"] == {"draws": {"1": {"x": 1}, "2": {"x": 2}}, "commit": "new", "size": 3}
    assert kept.draws_of(found["other"]) == [{"x": 3}]
