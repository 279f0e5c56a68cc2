"""`vlltr fit`, and pictures held out on ingestion."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commands import run
from vlltr_index.cli.fit import plan_fit, verdict
from vlltr_index.errors import InputError, UsageError
from vlltr_index.evaluation.metrics import AccuracyReport, EvaluationReport, Interval
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def shots(tmp_path: Path, pictures: Path) -> Path:
    """Three classes of 10, 4 and 1 pictures, and texts about them."""
    sources = sorted(pictures.glob("**/*.png"))
    for name, count in {"kestrel": 10, "merlin": 4, "hobby": 1}.items():
        (tmp_path / "shots" / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(sources[number % len(sources)], tmp_path / "shots" / name / f"{number}.png")
    return tmp_path / "shots"


def splits(workspace: Workspace) -> dict[tuple[str, str], int]:
    """How many images there are, by class and split."""
    rows, names = (
        workspace.snapshot().table("images", ["class_id", "split"]),
        workspace.snapshot().class_table().names,
    )
    owners = zip(rows["class_id"].to_pylist(), rows["split"].to_pylist(), strict=True)
    return dict(Counter((names[class_id], split) for class_id, split in owners))


@pytest.mark.parametrize(
    ("less", "said"),
    [((0.1, 0.02, 0.2), " The model is better."), ((-0.1, -0.2, -0.02), " That is better."),
     ((-0.1, -0.2, 0.1), " That may be chance."), ((0.0, -0.1, 0.1), "")],
)  # fmt: skip
def test_the_verdict(less: tuple[float, float, float], said: str) -> None:
    """The model beside the best simple rule, and whether the difference is more than chance."""

    def row(value: float) -> AccuracyReport:
        return AccuracyReport("release", {"overall": Interval(value, 0.0, 1.0, 40)}, {})

    rows = {"vl-ltr": row(0.5), "ncm": row(0.5 - less[0])}
    report = EvaluationReport(
        "test", 1, "release", 40, 3, "exhaustive", rows, {}, {"overall": Interval(*less, 40)}, "ncm"
    )
    alone = "Of 40 pictures that it had not seen, the model named 50.0 % rightly"
    assert verdict(report) == f"{alone}; the best simple rule, ncm, {50 - 100 * less[0]:.1f} %.{said}"
    assert verdict(replace(report, against=None)) == f"{alone}."


def test_pictures_are_held_out_and_taken_back(workspace: Workspace, shots: Path) -> None:
    """A share of each class, the same each time; a class keeps one picture, and none is in both splits."""
    expected = {
        ("kestrel", "train"): 8,
        ("kestrel", "test"): 2,
        ("merlin", "train"): 3,
        ("merlin", "test"): 1,
    }
    for share in (0.2, 0.2):
        ingest_images(workspace, shots, "train", hold_out=share)
        assert splits(workspace) == {**expected, ("hobby", "train"): 1}
    commits = len(workspace.history.ids())
    ingest_images(workspace, shots, "train", hold_out=0.9)
    assert splits(workspace)["kestrel", "train"] == 1
    report = ingest_images(workspace, shots, "train", hold_out=0.0)
    assert report.splits == {"train": 15}
    assert splits(workspace) == {("kestrel", "train"): 10, ("merlin", "train"): 4, ("hobby", "train"): 1}
    assert len(workspace.history.ids()) == commits + 2
    (shots.parent / "other" / "kestrel").mkdir(parents=True)
    shutil.copy(shots / "kestrel" / "0.png", shots.parent / "other" / "kestrel" / "0.png")
    ingest_images(workspace, shots.parent / "other", "test")
    ingest_images(workspace, shots, "train", hold_out=0.0)
    assert splits(workspace)["kestrel", "test"] == 1, "a test picture of the same name is another one"
    with pytest.raises(UsageError, match="held out of the training split"):
        ingest_images(workspace, shots, "val", hold_out=0.2)


def test_the_plan_follows_the_folder(shots: Path, tmp_path: Path) -> None:
    """Classes alone are parted; the folders train and test are taken as they are, and no picture is learned twice."""
    parted = [words for _, words in plan_fit(shots, None, 0.2)]
    assert parted[0] == ("ingest", "images", str(shots), "--split", "train", "--hold-out", "0.2")
    assert [args for args in parted if args[0] == "ingest"][-1][-1] == "0"
    assert ("train", "baseline", "zero-shot") not in parted
    unmeasured = [words for _, words in plan_fit(shots, None, 0.0)]
    assert [args[0] for args in unmeasured] == ["ingest", "embed", "select", "train", "index"]
    shutil.copytree(shots, tmp_path / "alone" / "train")
    assert plan_fit(tmp_path / "alone", None, 0.2)[0][1][2] == str(tmp_path / "alone" / "train")
    shutil.move(shots, tmp_path / "data" / "train")
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "val")
    (tmp_path / "texts").mkdir()
    given = [words for _, words in plan_fit(tmp_path / "data", tmp_path / "texts", 0.2)]
    assert given[2] == ("ingest", "images", str(tmp_path / "data" / "val"), "--split", "test")
    assert len([args for args in given if args == ("train", "lgr")]) == 1


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ([], "has no class folder"),
        (["train/owl", "moon"], "has a folder train, which is no class, and not train and test"),
        (["test/owl"], "has a folder test, which is no class"),
        (None, "is no folder"),
    ],
)
def test_folders_that_are_no_classes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folders: list[str] | None, said: str
) -> None:
    """Refused before a workspace is made."""
    for name in ["", *folders] if folders is not None else ():
        (tmp_path / "data" / name).mkdir(parents=True)
    code, _, err = run(capsys, "fit", tmp_path / "data", "--encoder", "vlltr-tiny:glyphs")
    assert code == 1
    assert said in err
    assert not (tmp_path / "data-model").exists()


def test_a_workspace_and_texts_that_are_not_there(workspace: Workspace, shots: Path) -> None:
    """Are no folder of pictures, and no texts."""
    with pytest.raises(InputError, match="is a workspace"):
        plan_fit(workspace.path, None, 0.2)
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        plan_fit(shots, shots / "nowhere", 0.2)


def test_no_picture_can_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It stops there."""
    (tmp_path / "bad" / "owl").mkdir(parents=True)
    (tmp_path / "bad" / "owl" / "1.png").write_bytes(b"no picture")
    code, _, err = run(capsys, "fit", tmp_path / "bad", "--encoder", "vlltr-tiny:glyphs")
    assert code == 1
    assert "none of the pictures can be read" in err


@pytest.mark.slow
def test_from_a_folder_to_a_model(capsys: pytest.CaptureFixture[str], shots: Path, tmp_path: Path) -> None:
    """One command makes it, measures it beside simple rules, and trains on all; again it adds what came."""
    (shots / "texts.json").write_text(json.dumps({"kestrel": ["It hovers."], "merlin": ["It is small."]}))
    code, out, err = run(capsys, "fit", shots, "--encoder", "vlltr-tiny:glyphs")
    assert code == 0, err
    assert "Top-1 on test: 3 images, 3 classes" in out
    for words in (
        "ncm",
        "discriminant",
        "zero-shot",
        "Wrote ",
        "Of 3 pictures that it had not seen",
        "What to do with it:",
    ):
        assert words in out
    workspace = Workspace.open(tmp_path / "shots-model")
    assert {split for _, split in splits(workspace)} == {"train"}
    shutil.copy(shots / "merlin" / "0.png", shots / "merlin" / "more.png")
    code, out, err = run(capsys, "--json", "fit", shots, "--to", tmp_path / "shots-model", "--hold-out", "0")
    assert code == 0, err
    assert json.loads(out) == {"workspace": str(tmp_path / "shots-model"), "evaluation": None}
    assert splits(workspace)["merlin", "train"] == 5
