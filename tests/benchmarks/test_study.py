"""The harness of studies: a run that resumes, tables, and parts of pages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept
from benchmarks.study import Setting, Study, chosen, commands, placed, run_draws, table


def test_a_run_resumes(tmp_path: Path) -> None:
    """A draw that is done is not done again, one that failed is; the first draws can be measured before the others."""
    asked = Counter[int]()

    def measure(seed: int) -> dict[str, Any]:
        asked[seed] += 1
        return {"failed": "once"} if seed == 2 and asked[2] == 1 else {"seed": seed}

    settings = [Setting("some", (1, 2, 3), measure)]
    run_draws("study", settings, 2, {"commit": "abc"}, tmp_path)
    assert asked == {1: 1, 2: 1}
    run_draws("study", settings, None, {"commit": "def"}, tmp_path)
    assert asked == {1: 1, 2: 2, 3: 1}
    found = kept.read("study", tmp_path)["some"]
    assert found == {"commit": "def", "draws": {str(seed): {"seed": seed} for seed in (1, 2, 3)}}


def test_settings_are_chosen_by_name() -> None:
    """Without names all of them; one that is missing ends the run with those that there are."""
    every = [Setting(name, (1,), lambda seed: {}) for name in ("one", "two")]
    assert chosen(every, None) == every
    assert chosen(every, ["two"]) == every[1:]
    with pytest.raises(SystemExit, match="no setting three; --settings takes: one; two"):
        chosen(every, ["two", "three"])


def test_a_study_is_its_settings_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` keeps the results in its file, and `table` writes them to its page."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.study.DOCS", tmp_path)
    study = Study(
        {"page.md": lambda results: f"{len(kept.draws_of(results['some']))} draws\n"},
        lambda: [Setting("some", range(5), lambda seed: {"seed": seed})],
    )
    found = commands("any_name", study)
    with pytest.raises(SystemExit, match="no results; see: python -m benchmarks any_name run --help"):
        found["table"].work()
    found["run"].work(draws=2, settings=None)
    found["table"].work()
    assert {"versions", "machine", "draws"} == kept.read("any_name")["some"].keys()
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith(
        "# Any name\n\n<!-- generated: python -m benchmarks any_name table -->\n\n2 draws\n"
    )


def test_a_table_has_a_line_for_its_head_and_for_each_row() -> None:
    """An empty cell is one space."""
    assert table(["", "a"], [["x", "1"], ["y", ""]]) == ["| | a |", "| --- | --- |", "| x | 1 |", "| y | |"]


def test_a_part_is_placed_between_its_own_marks() -> None:
    """What stands around it and the parts of other studies stay."""
    page = "".join(
        f"{name}\n<!-- generated: python -m benchmarks {name} table -->\nold\n<!-- end of the generated part -->\n"
        for name in ("one", "two")
    )
    found = placed(page, "two", "new")
    assert found.replace("\n\nnew\n", "\nold\n") == page
    assert placed(found, "two", "new") == found
