"""Results of studies: a file each, unit by unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kept
from benchmarks.study import placed


def test_units_are_kept_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is replaced, the other stays; without a file there is none; a unit is a line."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    assert kept.read("some") == {}
    for unit, value in (("b", 1), ("a", {"z": [1, 2], "y": "ä"}), ("b", 2)):
        kept.keep("some", unit, value)
    assert kept.read("some") == {"a": {"z": [1, 2], "y": "ä"}, "b": 2}
    assert len((tmp_path / "some.json").read_text(encoding="utf-8").splitlines()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]


def test_a_part_is_placed_between_its_own_marks() -> None:
    """What stands around it and the parts of other studies stay."""
    page = "".join(
        f"{name}\n<!-- generated: python -m benchmarks {name} table -->\nold\n<!-- end of the generated part -->\n"
        for name in ("one", "two")
    )
    found = placed(page, "two", "new")
    assert found.replace("\n\nnew\n", "\nold\n") == page
    assert placed(found, "two", "new") == found
