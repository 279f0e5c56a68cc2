"""The whole way on a small set by URI, through the command line: the same answers as in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from buckets import Bucket

from tests.commands import run
from vlltr_index.data.glyphs import glyph_files, write_sample
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace

CLASSES = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and texts.json of a few classes, and test.png."""
    folder, data = tmp_path_factory.mktemp("files"), glyph_files(fast=True)
    texts = json.loads(data.texts.read_text(encoding="utf-8"))
    names = sorted(texts)[:CLASSES]
    (folder / "texts.json").write_text(json.dumps({name: texts[name] for name in names}), encoding="utf-8")
    for number, name in enumerate(names):
        write_sample(data.images, "train", name, folder / "images" / name / "0.png")
        write_sample(data.images, "test", name, folder / f"test-{number}.png")
    return folder


def steps(files: Path) -> list[list[str | Path]]:
    """The commands after `init`, up to the index."""
    return [
        ["ingest", "images", files / "images", "--split", "train"],
        ["ingest", "text", files / "texts.json"],
        ["embed"],
        ["select"],
        ["train", "lgr"],
        ["index", "--kind", "flat"],
    ]


@pytest.mark.slow
def test_the_whole_way_by_uri(
    files: Path,
    bucket: Bucket,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Predictions are the same, also on a machine that has nothing of it yet; an open reader follows."""
    address, folder = bucket.address(), tmp_path / "w"
    chosen = ["--recipe", "glyphs_lt/fast", "--set", "encoder.pretrained=glyphs", "--set", "lgr.epochs=1"]
    images = sorted(files.glob("test-*.png"))
    answers = []
    for place in (str(folder), address):
        code, out, err = run(capsys, "--json", "init", place, *chosen)
        assert (code, json.loads(out)["workspace"]) == (0, place), err
        for step in steps(files):
            code, out, err = run(capsys, "-q", "-w", place, *step)
            assert code == 0, (step, err)
        code, out, err = run(capsys, "-q", "--json", "-w", place, "predict", *images, "--explain", "2")
        assert code == 0, err
        answers.append(json.loads(out))
    assert answers[0] == answers[1]
    local, remote = Workspace.open(folder), Workspace.open(address)
    heads = [w.history.last() for w in (local, remote)]
    assert heads[0] is not None
    assert heads[1] is not None
    assert (heads[0].head, heads[0].index) == (heads[1].head, heads[1].index)
    assert not any((remote.path / name).exists() for name in ("vlltr.toml", "history", "lance", "lock"))

    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "another machine"))
    code, out, err = run(capsys, "-q", "--json", "-w", address, "predict", *images, "--explain", "2")
    assert (code, json.loads(out)) == (0, answers[0]), err
    code, out, err = run(capsys, "--json", "-w", address, "status")
    facts = json.loads(out)
    assert (code, facts["workspace"], facts["stale"], facts["writing"]) == (0, address, [], None), err

    reader = Recognizer.open(address)
    assert len(reader.names) == CLASSES
    code, out, err = run(
        capsys, "-q", "-w", address, "classes", "add", "zigzag", "--sentence", "A zigzag of three strokes."
    )
    assert code == 0, err
    reader.predict(images[:1])
    assert "zigzag" in reader.names.values()
    assert run(capsys, "-q", "-w", address, "evaluate", "--split", "train")[0] == 0
    assert [name for name in remote.storage.names("reports") if name.startswith("evaluate-train-")]


def test_errors_leave_as_a_message(
    bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, nothing on stdout, no traceback."""
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = run(capsys, "-w", "s3://birds/w", "status")
    assert (code, out) == (1, "")
    assert err.startswith("Error: s3://birds/w/vlltr.toml cannot be used: ")
    assert "Traceback" not in err
