"""The pages of studies: each is made of the kept results, and leaves out nothing that was measured."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.__main__ import STUDIES, load
from benchmarks.kept import read
from benchmarks.speed.questions import QUESTIONS
from benchmarks.study import DOCS, placed

SLOW = {"long_tailed", "new_classes"}  # many intervals


def test_no_measured_size_is_left_out_of_the_page() -> None:
    """Each kept case is one that its question still asks, so that a miss cannot vanish by renaming."""
    for question, cases in read("speed").items():
        asked = {case.name for case in importlib.import_module(f"benchmarks.speed.{question}").CASES}
        assert set(cases) <= asked, question
        assert question in QUESTIONS


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STUDIES]
)
def test_pages_are_made_of_the_kept_results(name: str) -> None:
    """Run `python -m benchmarks NAME table` where this fails."""
    results = read(name)
    for page, generated in load(name).pages.items() if results else ():
        text = (DOCS / page).read_text(encoding="utf-8")
        assert placed(text, name, generated(results)) == text, page
