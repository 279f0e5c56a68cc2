"""The plan of `quickstart`; it is run by tests/end_to_end/test_quickstart.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import parse
from vlltr_index.cli.main import vlltr
from vlltr_index.pipelines.init import init
from vlltr_index.pipelines.plan import StepMaker
from vlltr_index.pipelines.quickstart import Size, plan_quickstart


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("size", "count"), [("fast", 15), ("full", 21)])
def test_each_step_names_a_command(tmp_path: Path, size: Size, count: int) -> None:
    """The program takes its words, with the device; what shows a result is shown again by a second run."""
    workspace = init(tmp_path / "quick", recipe="glyphs_lt/fast")
    steps = plan_quickstart(StepMaker(workspace, str(workspace.path), "cpu", None), size)
    assert len(steps) == count
    for step in steps:
        parse(vlltr, list(step.argv), "vlltr")
        assert ("cpu" in step.argv) == (step.argv[2] not in ("ingest", "index"))
    shown = [step.argv[2] for step in steps if step.shows]
    assert shown[:3] == ["evaluate", "predict", "predict"]
    assert set(shown) == {"evaluate", "predict"}
    assert (workspace.path / "samples" / "unseen.txt").is_file()
