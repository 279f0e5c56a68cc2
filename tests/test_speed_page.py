"""What the speed page makes of results: ratios, goals, bounds, exponents; and that the committed page is up to date."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from benchmarks import speed_table
from benchmarks.__main__ import QUESTIONS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def row(median: float, cpu: float | None = None, portion: float = 1.0) -> dict[str, float]:
    """A competitor's row."""
    return {"median": median, "portion": portion, **({} if cpu is None else {"cpu_median": cpu})}


def test_no_measured_size_is_left_out_of_the_page() -> None:
    """Each case of a committed result is one that its question still asks, so that a miss cannot vanish by renaming."""
    for path in sorted(RESULTS.glob("speed-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        asked = {case.name for case in importlib.import_module(f"benchmarks.{result['question']}").CASES}
        assert set(result["cases"]) <= asked, path.name
        assert result["question"] in QUESTIONS


def test_the_committed_page_is_made_from_the_committed_results() -> None:
    """Run `python -m benchmarks table` where this fails."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("speed-*.json"))]
    text = speed_table.PAGE.read_text(encoding="utf-8")
    made = text.split(speed_table.MARKS[0])[1].split(speed_table.MARKS[1])[0]
    assert made == f"\n\n{speed_table.page(results)}\n"
