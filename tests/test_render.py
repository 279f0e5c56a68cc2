"""What people read in a terminal: nothing is wider than it, and numbers stay whole."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from vlltr_index.cli.render import (
    difference_lines,
    evaluation_table,
    explanation_lines,
    prediction_lines,
)
from vlltr_index.evaluation.metrics import AccuracyReport, EvaluationReport, Interval
from vlltr_index.schemas.records import ClassScore, Prediction, SentenceShare

LONG = "A very large and heavy bird with a grey head, a chestnut breast and a back that is barred in black and gold."


def score(name: str) -> ClassScore:
    """A class with a long and a short sentence."""
    shares = tuple(
        SentenceShare(text, "wikipedia", None, None, attention=0.5, share=0.2, effect=-0.1)
        for text in (LONG, "It walks.")
    )
    return ClassScore(0, name, 0.75, 0.5, 0.25, 0.4, shares)


def prediction() -> Prediction:
    """Two classes for one image."""
    return Prediction("bird.jpg", (score("great bustard"), score("little bustard")), 0.0, "faiss", 1)


@pytest.mark.parametrize("width", [60, 120])
def test_sentences_are_broken_below_their_beginning(width: int) -> None:
    """No line is wider than the terminal; every word is still there; what the numbers are is said once."""
    for lines in (
        prediction_lines(prediction(), width),
        explanation_lines("bird.jpg", prediction().classes, width),
    ):
        for line in lines:
            assert len(line) <= width or line.lstrip().startswith(("75.0 %", "effect:"))
        assert " ".join(" ".join(lines).split()).count(LONG) == 2
    lines = prediction_lines(prediction(), width)
    assert sum("effect:" in line for line in lines) == 1
    assert lines[1] == "   75.0 %  great bustard   (image branch 50.0 + text branch 25.0; cosine 0.400)"
    assert lines[2] == "           effect   share"
    assert lines[3].startswith("           -0.100  +0.200  A very large and heavy bird")


def test_sentences_without_weight_are_said_to_decide_nothing() -> None:
    """Where the text gave none of the log-odds; not where it gave some, or where there is no sentence."""
    told = "  The text has no weight in this head (vlltr train lgr says why): no sentence decided anything."
    mute = [replace(one, unit="log-odds", text_part=0.0) for one in prediction().classes]
    some = [mute[0], replace(mute[1], text_part=0.1)]
    bare = [replace(one, sentences=()) for one in mute]
    for scores, said in ((mute, 1), (some, 0), (bare, 0)):
        assert prediction_lines(replace(prediction(), classes=tuple(scores))).count(told) == said
    assert explanation_lines("bird.jpg", mute).count(told) == 1
    assert explanation_lines("bird.jpg", prediction().classes).count(told) == 0


def report() -> EvaluationReport:
    """Five bins, and a baseline with a long name."""
    bins = ("overall", "many", "medium", "few", "few5")
    interval = Interval(0.912, 0.9, 0.93, 100)
    rows = {
        name: AccuracyReport("release", dict.fromkeys(bins, interval), dict.fromkeys(bins, interval))
        for name in ("vl-ltr", "image branch", "image-only + logit adjustment")
    }
    gain = dict.fromkeys(bins, Interval(0.018, 0.01, 0.025, 100))
    return EvaluationReport(
        "test", 1, "release", 100, 20, "exhaustive", rows, {"vl-ltr": 0.05}, gain, next(reversed(rows))
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width: int) -> None:
    """At 80 columns names are broken and numbers are not; the paired difference stands below, a bin a line."""
    target = StringIO()
    Console(file=target, width=width).print(evaluation_table(report()))
    shown = target.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("91.2 ±1.5") == 15
    assert "vl-ltr" in shown
    lines = difference_lines(report())
    assert lines[0] == "vl-ltr less image-only + logit adjustment, in points [95 % of the paired bootstrap]"
    assert lines[1] == "  overall  +1.8 [+1.0, +2.5]"
    assert len(lines) == 6
