"""`vlltr fit` and `vlltr train all` in a terminal: steps as commands, their reports, JSON, and the verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import drawings
from tests.support.commands import run, vlltr
from tests.support.commits import work
from vlltr_index.cli.context import Context
from vlltr_index.evaluation.baselines import Limits, Logistic
from vlltr_index.evaluation.metrics import AccuracyReport, EvaluationReport, Interval, Measure
from vlltr_index.pipelines.fit import FitResult
from vlltr_index.pipelines.ingest import IngestReport
from vlltr_index.pipelines.plan import Runner, Step
from vlltr_index.pipelines.report import ReportFile
from vlltr_index.store.workspace import Workspace

INGESTED = IngestReport(
    kind="images",
    source="birds",
    added=3,
    unchanged=0,
    classes_added=1,
    classes=1,
    prompts=0,
    skipped=0,
    notes=[],
    next_step="vlltr ingest text PATH",
)


@pytest.mark.parametrize(
    ("context", "out", "err"),
    [
        (Context(), True, False),
        (Context(as_json=True), False, True),
        (Context(quiet=True), False, False),
    ],
)
def test_a_step_in_a_terminal(
    capsys: pytest.CaptureFixture[str], context: Context, out: bool, err: bool
) -> None:
    """Title, command, report and time go to stdout, or to stderr beside JSON; the next command is left out."""
    step = Step("Pictures", ("-w", "a b", "ingest", "images", "birds"), lambda: INGESTED)
    runner = Runner(context.step, 2)
    runner.run(step)
    runner.pass_over(step, "done before")
    found = capsys.readouterr()
    for text, shown in ((found.out, out), (found.err, err)):
        assert text.startswith("\n[1/2] Pictures\n$ vlltr -w 'a b' ingest images birds\n" if shown else "")
        assert ("[2/2] Pictures: done before\n" in text) == shown
        assert "Next: " not in text
    assert ("birds: images 3 added." in found.out) == out
    assert "birds: images 3 added." not in found.err


@pytest.mark.slow
def test_from_a_folder_to_a_model(capsys: pytest.CaptureFixture[str], shots: Path, tmp_path: Path) -> None:
    """One command makes it, of all pictures, and measures it beside simple rules; again it adds what came."""
    (shots / "texts.json").write_text(json.dumps({"kestrel": ["It hovers."], "merlin": ["It is small."]}))
    code, out, err = run(capsys, "fit", shots, "--encoder", "vlltr-tiny:glyphs")
    assert code == 0, err
    assert "Top-1 on cross-validation: 14 images, 3 classes" in out
    for words in (
        "ncm",
        "discriminant",
        "logistic",
        "zero-shot",
        "Wrote ",
        "each shown to a model that was trained without it",
        "2 of 3 classes tested.",
        " groups, 2 of 3 classes.",
        "What to do with it:",
    ):
        assert words in out
    assert "with each class counted alike" not in out  # so few are counted by pictures
    workspace = Workspace.open(tmp_path / "shots-model")
    assert (
        workspace.snapshot().count("images"),
        workspace.snapshot().count("images", "split = 'train'"),
    ) == (15, 15)
    shutil.copy(shots / "merlin" / "0.png", shots / "merlin" / "more.png")
    code, out, err = run(capsys, "--json", "fit", shots, "--to", tmp_path / "shots-model")
    assert code == 0, err
    made = json.loads(out)
    assert (made["workspace"], made["unmeasured"]) == (str(tmp_path / "shots-model"), None)
    assert (made["evaluation"]["split"], made["evaluation"]["images"]) == ("cross-validation", 15)
    assert workspace.snapshot().count("images", "split = 'train'") == 16


@pytest.mark.slow
def test_a_baseline_above_its_limits_is_left_out(
    capsys: pytest.CaptureFixture[str], shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps, a warning and the report say so; the others are measured."""
    monkeypatch.setattr(Logistic, "limits", Limits(2, 20_000))
    code, out, err = run(capsys, "fit", shots, "--encoder", "vlltr-tiny:glyphs")
    assert code == 0, err
    why = "it is limited to 2 classes and 20,000 training images, and there are 3 classes and 15 images"
    assert f"the baseline logistic is absent: {why}" in err
    assert "A baseline on the same vectors: logistic regression: left out\n" in out
    assert f"logistic: absent, as {why}\n" in out
    assert "train baseline discriminant" in out
    assert "train baseline logistic" not in out


@pytest.mark.parametrize("units", [29, 30])
def test_by_what_it_was_measured_is_said_where_classes_count_alike(
    trained: Workspace, units: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that counts pictures; of few units pictures are counted anyway."""
    share = Interval(0.5, 0.4, 0.6, 40, units)
    rows = {"vl-ltr": AccuracyReport("release", {"overall": share}, {}, share)}
    measures = (Measure("balanced", "vl-ltr", None, None, None),)
    figures = EvaluationReport("test", 1, "release", 40, 3, "exhaustive", rows, measures, {})
    made = FitResult(trained, ReportFile("report.html", 1, 1, figures, ()))
    monkeypatch.setattr("vlltr_index.pipelines.fit.fit", lambda *_, **__: made)
    code, out, err = run(capsys, "fit", "birds", "--to", "w")
    assert code == 0, err
    said = (
        "Measured and compared with each class counted alike. Where classes will be as common as in the folder birds:"
        " vlltr -w w report --prior training\n"
    )
    assert (said in out) == (units == 30)


@pytest.mark.slow
def test_train_all_is_its_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It prints each step as a command, which does the same when it is typed."""
    settings = ("cvlp.epochs=1", "cvlp.batch_size=28", "lgr.epochs=1", "lgr.views=1", "lgr.batch_size=28")
    called = drawings.workspace(tmp_path, *settings)
    typed = Workspace.open(shutil.copytree(called.path, tmp_path / "typed"))
    code, out, err = run(capsys, "-w", called.path, "train", "all", "--device", "cpu")
    assert code == 0, err
    assert out.endswith("Trained, embedded, selected and indexed. Next: vlltr evaluate\n")
    commands = [
        line.removeprefix(f"$ vlltr -w {called.path} ") for line in out.splitlines() if line[:1] == "$"
    ]
    assert commands == [
        "train cvlp --device cpu",
        "embed --device cpu",
        "select --device cpu",
        "train lgr --device cpu",
        "index",
    ]
    for command in commands:
        vlltr("-w", typed.path, *command.split())
    assert typed.history.ids() == called.history.ids()
    for number in called.history.ids():
        assert work(typed, number) == work(called, number)
