"""The speed page: it leaves out no size that was measured, and is made from the committed results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from benchmarks import scaling, speed_table
from benchmarks.__main__ import QUESTIONS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_no_measured_size_is_left_out_of_the_page() -> None:
    """Each case of a committed result is one that its question still asks, so that a miss cannot vanish by renaming."""
    for path in sorted(RESULTS.glob("speed-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        asked = {case.name for case in importlib.import_module(f"benchmarks.{result['question']}").CASES}
        assert set(result["cases"]) <= asked, path.name
        assert result["question"] in QUESTIONS


def test_the_committed_pages_are_made_from_the_committed_results() -> None:
    """Run `python -m benchmarks table` or `python -m benchmarks.scaling table` where this fails."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("speed-*.json"))]
    for part, page in ((speed_table, speed_table.page(results)), (scaling, scaling.page())):
        text = part.PAGE.read_text(encoding="utf-8")
        assert text.split(part.MARKS[0])[1].split(part.MARKS[1])[0] == f"\n\n{page}\n"
