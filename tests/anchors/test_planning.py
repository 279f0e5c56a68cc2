"""`vlltr index --plan`: what each kind of index costs, from measured curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import run
from vlltr_index.anchors.index import KINDS
from vlltr_index.anchors.planning import plan_index

ROOT = Path(__file__).parents[2]


def test_costs_are_those_that_were_measured() -> None:
    """Each kind's times lie within the error that the fit states, and its disk within five in a hundred."""
    points = json.loads((ROOT / "benchmarks/results/scaling.json").read_text(encoding="utf-8"))["curves"][
        "curves"
    ]
    kinds = json.loads((ROOT / "vlltr_index/anchors/curves.json").read_text(encoding="utf-8"))["kinds"]
    assert set(kinds) == {"none", *KINDS}
    for point in points:
        kind = "none" if point["kind"] == "exhaustive" else point["kind"]
        (cost,) = (c for c in plan_index(point["anchors"], point["width"]).costs if c.kind == kind)
        pairs = {"one": (cost.one_image_seconds, point["one_cpu_s"])}
        pairs["batch"] = (cost.batch_seconds, point["batch_cpu_s"])
        if kind != "none":
            pairs["build"] = (cost.build_seconds, point["build"]["cpu_seconds"])
            assert cost.disk_mib == pytest.approx(point["disk_mib"], rel=0.05, abs=0.2)
        for what, (told, measured) in pairs.items():
            assert max(told / measured, measured / told) <= kinds[kind]["worst_error"][what] + 0.01
        assert not cost.beyond


def test_the_command_needs_no_workspace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a table that names the machine, and as JSON; what is larger than what was measured is marked."""
    monkeypatch.chdir(tmp_path)
    args = ("index", "--plan", "--classes", "100000", "--anchors", "16")
    code, out, _ = run(capsys, *args)
    assert code == 0
    assert out.startswith("Would build an index of kind ivf: 1,600,000 anchors: ")
    assert "1,600,000 anchors of width 512" in out
    assert "ivf *" in out
    assert "Reckoned from times of a processor, measured on " in out
    assert out.endswith("* larger than what was measured.\n")
    code, out, _ = run(capsys, "--json", *args, "--width", "64")
    told = json.loads(out)
    assert (told["kind"], told["anchors"], told["dim"], len(told["costs"])) == ("ivf", 1_600_000, 64, 5)
    small = plan_index(1_000, 128).costs
    large = plan_index(2_000_000, 128).costs
    for few, many in zip(small, large, strict=True):
        assert few.memory_mib < many.memory_mib
        assert few.batch_seconds <= many.batch_seconds
        assert few.build_seconds <= many.build_seconds
