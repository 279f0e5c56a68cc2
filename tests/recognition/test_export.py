"""Exported models: the same answers without the workspace, the same bytes twice, and nothing of others overwritten."""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from click.testing import CliRunner

from tests.support.exports import ASKED, Shared, check_same
from vlltr_index.cli.main import vlltr
from vlltr_index.errors import PretrainedError, UsageError
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.recognition.exported import writing
from vlltr_index.recognition.exported.reading import SUMS
from vlltr_index.recognition.exported.writing import export_model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace


def test_answers_are_the_workspaces(exported: Recognizer, shared: Shared, pictures: Path) -> None:
    """Probabilities, parts, sentences and verdicts; explanations of trained and added classes."""
    images = sorted(pictures.glob("known-*.png"))
    for asked, answers in zip(ASKED, shared.answers, strict=True):
        check_same(exported.predict(images, asked), answers)
    image = images[0]
    check_same([exported.explain(image, score.name) for score in shared.explained], shared.explained)
    assert exported.explain(image, "the second").name in shared.names
    with pytest.raises(UsageError, match="an exported folder has no training images to show as neighbours"):
        exported.predict([image], PredictOptions(neighbours=1))


def test_the_cards_python_runs(
    shared: Shared, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands there, in the exported folder."""
    monkeypatch.chdir(shared.folder)
    card = Path("README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("photo.jpg", str(pictures / "known-0.png")), {})
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_no_pickle_and_true_digests(shared: Shared) -> None:
    """The folder has the files it should have, and `sha256sum` agrees with the digests."""
    names = {p.relative_to(shared.folder).as_posix() for p in shared.folder.rglob("*") if p.is_file()}
    assert names == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "encoder/encoder.json",
        "encoder/model.safetensors",
        "encoder/words.json",
        "head/head.json",
        "head/head.safetensors",
        "parts/anchors.arrow",
        "parts/class_stats.arrow",
        "parts/classes.arrow",
        "parts/part.json",
        "parts/ranks.arrow",
        "parts/taxonomy.arrow",
        "sentences.parquet",
    }
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=shared.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {p.stat().st_mode & 0o777 for p in shared.folder.rglob("*") if p.is_file()} == {0o644}


def test_the_same_commit_gives_the_same_bytes(trained: Workspace, tmp_path: Path) -> None:
    """Two exports, one of them as of an older commit by number, agree in every digest."""
    number = trained.history.ids()[-1]
    export_model(trained, tmp_path / "one", number)
    with trained.transaction("later") as tx:
        tx.set(index=None)
    export_model(trained, tmp_path / "two", number)
    assert (tmp_path / "one" / SUMS).read_text() == (tmp_path / "two" / SUMS).read_text()
    export_model(trained, tmp_path / "four")
    assert json.loads((tmp_path / "four" / "config.json").read_text())["model"]["index"] is None


def test_settings_are_those_of_the_training(trained: Workspace, tmp_path: Path) -> None:
    """Not what the recipe says by now."""
    changed = override(trained.recipe, ("cvlp.epochs=9", "lgr.epochs=9", "select.max_anchors=9"))
    export_model(Workspace(trained.path, WorkspaceConfig(recipe=changed)), tmp_path / "model")
    said = json.loads((tmp_path / "model" / "config.json").read_text())["settings"]
    for name in ("cvlp", "select", "lgr"):
        assert said[name] == getattr(trained.recipe, name).model_dump(mode="json")


def test_a_faiss_index_is_read_only_where_it_is_trusted(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """`with_index` puts it in; by default it is left unread, and the exact answers are the same."""
    images = sorted(pictures.glob("known-*.png"))
    index_anchors(trained, "flat")
    asked = Recognizer.open(trained)
    expected = asked.predict(images, PredictOptions(explain=2, retrieval="faiss"))
    assert {p.retrieval for p in expected} == {"faiss"}
    asked.export(tmp_path / "model", with_index=True)
    assert (tmp_path / "model" / "index" / "index.faiss").is_file()
    plain = Recognizer.from_pretrained(tmp_path / "model")
    trusting = Recognizer.from_pretrained(tmp_path / "model", trust_index=True)
    kinds = [r.current()._index.kind for r in (plain, trusting)]  # type: ignore[union-attr]  # both have one
    assert kinds == ["torch", "flat"]
    check_same(plain.predict(images, PredictOptions(explain=2, retrieval="faiss")), expected)
    check_same(trusting.predict(images, PredictOptions(explain=2, retrieval="faiss")), expected)


@pytest.mark.slow
def test_results_stand_in_the_card(
    trained: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without an evaluation the card says so, a damaged one is left out; with one it has its figures, which others by
    another rule or by the index leave as they are.
    """
    (trained.path / "reports").mkdir(exist_ok=True)
    for path in (trained.path / "reports").glob("evaluate-*"):
        path.unlink()
    damaged = trained.path / "reports" / "evaluate-test-1.json"
    damaged.write_text('{"commit": "x"')
    export_model(trained, tmp_path / "before")
    assert f"{damaged.name} is left out of the model card:  in {damaged.name}: Invalid JSON" in caplog.text
    damaged.unlink()
    text = (tmp_path / "before" / "README.md").read_text(encoding="utf-8")
    assert "None: no evaluation has been run" in text
    assert "model-index" not in text
    report = evaluate(trained)
    export_model(trained, tmp_path / "after")
    text = (tmp_path / "after" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    measured = front["model-index"][0]["results"][0]["metrics"]
    overall = report.rows["vl-ltr"].top1["overall"].value
    assert {"type": "accuracy", "value": round(overall, 4), "name": "top-1, overall"} in measured
    alike = round(report.rows["vl-ltr"].balanced.value, 4)
    assert (measured[0]["name"], measured[0]["value"]) == ("top-1, overall, each class counted alike", alike)
    assert f"| overall | {100 * overall:.1f} |" in text
    assert "Measured on this model: split test, " in text
    evaluate(trained, rule="paper")
    evaluate(trained, retrieval="faiss")
    export_model(trained, tmp_path / "other")
    assert (tmp_path / "other" / "README.md").read_text(encoding="utf-8") == text
    with trained.transaction("another head") as tx:
        tx.set(fusion=trained.recipe.fusion.model_copy(update={"alpha": 0.123}))
    export_model(trained, tmp_path / "later")
    text = (tmp_path / "later" / "README.md").read_text(encoding="utf-8")
    assert f"an earlier state of it (commit {report.commit}, this is {report.commit + 1})" in text
    assert "model-index" not in text


def test_what_is_not_an_export_is_left_alone(trained: Workspace, shared: Shared, tmp_path: Path) -> None:
    """Files, folders of other things and exports with something beside them stay, with `force` too."""
    for name in ("heads/mine", "lance", "runs/a"):
        with pytest.raises(PretrainedError, match="lies in a folder of the workspace"):
            export_model(trained, trained.path / name)
    target = tmp_path / "out"
    target.mkdir()
    (target / "file").write_text("mine")
    with pytest.raises(PretrainedError, match="file is not a folder"):
        export_model(trained, target / "file", force=True)
    with pytest.raises(
        PretrainedError, match="holds other things than an export, and is left as it is: 'file'"
    ):
        export_model(trained, target, force=True)
    (target / "file").unlink()
    export_model(trained, target)
    sums = (target / SUMS).read_text()
    with pytest.raises(PretrainedError, match="holds an export already") as caught:
        export_model(trained, target)
    assert caught.value.hint == "Replace it: the same command with --force"
    (target / "notes.txt").write_text("mine")
    with pytest.raises(PretrainedError, match=r"is left as it is: 'notes\.txt'"):
        export_model(trained, target, force=True)
    assert (target / "notes.txt").read_text() == "mine"
    (target / "notes.txt").unlink()
    (target / "README.md").write_text("edited")
    export_model(trained, target, force=True)
    assert (target / SUMS).read_text() == sums
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "trained"]
    with pytest.raises(UsageError, match="of an exported folder already"):
        Recognizer.from_pretrained(shared.folder).export(tmp_path / "copy")


def test_a_full_disk_leaves_nothing_half_written(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while writing leaves no folder, and under `force` the old one as it was."""
    export_model(trained, tmp_path / "old")
    before = (tmp_path / "old" / SUMS).read_text()
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(writing, "write_card", Mock(side_effect=full))
    for name, force in (("new", False), ("old", True)):
        with pytest.raises(PretrainedError, match=f"{name} cannot be written: No space left on device"):
            export_model(trained, tmp_path / name, force=force)
    assert [p.name for p in tmp_path.iterdir() if p.name != "trained"] == ["old"]
    assert (tmp_path / "old" / SUMS).read_text() == before


def test_neither_a_folder_nor_a_repository(tmp_path: Path, shared: Shared) -> None:
    """A name that can be neither is refused before anything is asked of the hub; a folder has no revision."""
    with pytest.raises(
        UsageError, match=r"'/no/such/model' is neither a folder here nor a name for a repository"
    ):
        Recognizer.from_pretrained("/no/such/model")
    with pytest.raises(UsageError, match="is a folder here: it has no revision 'v1'"):
        Recognizer.from_pretrained(shared.folder, revision="v1")
    with pytest.raises(PretrainedError, match="is not an exported folder: it has no file SHA256SUMS"):
        Recognizer.from_pretrained(tmp_path)


def test_the_command_writes_and_reports(trained: Workspace, tmp_path: Path) -> None:
    """`vlltr export DIR` prints what it wrote, `--json` its fields; a second time it says how to replace it."""
    target = tmp_path / "model"
    runner = CliRunner()
    done = runner.invoke(vlltr, ["-w", str(trained.path), "--json", "-q", "export", str(target)])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["commit"] == trained.history.ids()[-1]
    assert told["url"] is None
    assert told["rows"]["anchors"] == len(Recognizer.from_pretrained(target).current().anchors.keys)
    again = runner.invoke(vlltr, ["-w", str(trained.path), "-q", "export", str(target)])
    assert isinstance(again.exception, PretrainedError)
    forced = runner.invoke(vlltr, ["-w", str(trained.path), "export", "--force", str(target)])
    assert f"Wrote {target}: " in forced.stdout
    assert "See whether you may share them." in forced.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embed-images"], "--embed-images is for --tables: a model has no images"),
        (["--tables", "--index"], "--index is for a model, not for --tables"),
        (["--private"], "--private is for --push"),
        (["--push", "name"], "'name' is neither a folder here nor a name for a repository on the hub"),
    ],
)
def test_options_that_do_not_go_together(
    workspace: Workspace, tmp_path: Path, options: list[str], message: str
) -> None:
    """They are refused with exit code 2 before anything is written."""
    done = CliRunner().invoke(vlltr, ["-w", str(workspace.path), "export", str(tmp_path / "out"), *options])
    assert isinstance(done.exception, UsageError)
    assert done.exception.message == message
    assert done.exception.exit_code == 2
    assert not (tmp_path / "out").exists()
