"""The speed of all parts, measured question by question: each figure with its commit, compared with an earlier one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import kept
from benchmarks.speed import questions, table
from benchmarks.speed.harness import Case, Disagreement
from tests.support import small_clip

_SECONDS = {"bare": 2.0, "ours": 3.0}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two questions of two sizes that take no time; the sizes that were measured, in their order."""
    seen = list[str]()

    def measure(question: str, case: Case, say: object) -> dict[str, Any]:
        seen.append(f"{question} {case.name}")
        rows = {
            name: {
                "median": seconds,
                "cpu_median": seconds,
                "portion": 1.0,
                "resident_mib": 1,
                "peak_extra_mib": 1,
            }
            for name, seconds in _SECONDS.items()
        }
        return {"case": case.name, "values": {}, "skipped": {}, "rows": rows, "agreement": {}}

    module = SimpleNamespace(
        __doc__="A question.",
        CASES=[Case("small", {}), Case("large", {})],
        COMPETITORS=("bare", "ours"),
        goals=lambda values, rows, gpu: [],
    )
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    monkeypatch.setattr(questions, "QUESTIONS", ("one", "two"))
    for name in questions.QUESTIONS:
        monkeypatch.setitem(sys.modules, f"benchmarks.speed.{name}", module)
    monkeypatch.setattr(questions, "run_case", measure)
    monkeypatch.setattr(questions, "commit", lambda: "aaa")
    return seen


def test_all_questions_are_measured_once_a_commit(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped goes on; one that is named is measured anew, and so are all on another commit."""
    usual = questions.run_case
    every = ["one small", "one large", "two small", "two large"]

    def stopped(question: str, case: Case, say: Any) -> dict[str, Any]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        return usual(question, case, say)

    monkeypatch.setattr(questions, "run_case", stopped)
    with pytest.raises(KeyboardInterrupt):
        questions.run()
    assert list(kept.read("speed")) == ["one"]
    monkeypatch.setattr(questions, "run_case", usual)
    questions.run()
    assert measured == every
    questions.run()
    questions.run("two", "small")
    assert measured == [*every, "two small"]
    for code in ("bbb", "bbb+", "bbb+"):  # changes that are in no commit may be others by now
        monkeypatch.setattr(questions, "commit", lambda code=code: code)
        measured.clear()
        questions.run()
        assert measured == every
        assert {case["commit"] for cases in kept.read("speed").values() for case in cases.values()} == {code}


def test_competitors_that_disagree_hold_up_no_other_question(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are measured and kept, and the error is told in the end."""
    usual = questions.run_case

    def differing(question: str, case: Case, say: Any) -> dict[str, Any]:
        if (question, case.name) == ("one", "small"):
            raise Disagreement("ours is off")
        return usual(question, case, say)

    monkeypatch.setattr(questions, "run_case", differing)
    with pytest.raises(SystemExit, match="one, small: the competitors disagree: ours is off"):
        questions.run()
    assert {name: set(cases) for name, cases in kept.read("speed").items()} == {
        "one": {"large"},
        "two": {"small", "large"},
    }


@pytest.mark.parametrize(
    ("ours", "told"), [(4.5, "slower by 50%"), (2.0, "faster by 50%"), (3.2, ""), (2.8, "")]
)
def test_the_page_tells_what_became_slower(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, ours: float, told: str
) -> None:
    """It is compared by the other program of each run, whatever the machine did to both."""
    questions.run()
    assert "All figures are of commit aaa." in table.page(kept.read("speed"))
    monkeypatch.setattr(questions, "commit", lambda: "bbb")
    monkeypatch.setitem(_SECONDS, "ours", 10 * ours)
    monkeypatch.setitem(_SECONDS, "bare", 10 * _SECONDS["bare"])
    for _ in range(2):  # measured again on this commit, it is still compared with the earlier one
        questions.run("two", "large")
        page = table.page(kept.read("speed"))
        lines = [line for line in page.splitlines() if "than on commit" in line]
        assert lines == ([f"- {told} than on commit aaa, beside bare: large"] if told else [])
        assert "several commits: aaa (`one`, `two`), bbb (`two`)." in page
        assert "(small), commit aaa" in page
        assert "(large), commit bbb" in page


def test_the_commit_of_a_tree(tmp_path: Path) -> None:
    """Changes are marked, new files too; those of results and pages, which measuring itself makes, are no matter."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for path in (results / "speed.json", tmp_path / "docs" / "page.md", tmp_path / "program.py"):
        path.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    clean = kept.commit(tmp_path)
    assert clean
    for path in (results / "speed.json", tmp_path / "docs" / "new.md"):
        path.write_text("2")
    assert kept.commit(tmp_path) == clean
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "Measured"], check=True)
    assert kept.commit(tmp_path) == clean
    (tmp_path / "new.py").write_text("2")
    assert kept.commit(tmp_path) == f"{clean}+"


@pytest.mark.slow
def test_an_epoch_from_memory_is_the_one_from_files() -> None:
    """The competitors of the training loader train on the same pixels."""
    from benchmarks.speed import training_loader
    from benchmarks.speed.training_loader import bare, ours

    values = {"number": 4, "model": small_clip.NAME, "batch": 2, "side": 64}
    given = training_loader.inputs(values)
    answers = {one.__name__.rpartition(".")[2]: one.run(one.prepare(given, values)) for one in (bare, ours)}
    case = Case("small", values)
    assert training_loader.agree(case, answers)["largest difference of a loss"] < 1e-6
