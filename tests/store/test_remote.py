"""Workspaces in object storage: the whole way by URI with the answers of a folder, the cache, and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.buckets import Bucket
from tests.support.commands import run
from tests.support.objects import put
from tests.support.tablerows import class_rows
from vlltr_index.data.glyphs import glyph_files, write_sample
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import Recipe
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
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
    steps: list[tuple[str | Path, ...]] = [
        ("ingest", "images", files / "images", "--split", "train"),
        ("ingest", "text", files / "texts.json"),
        *(("embed",), ("select",), ("train", "lgr"), ("index", "--kind", "flat")),
    ]
    for place in (str(folder), address):
        code, out, err = run(capsys, "--json", "init", place, *chosen)
        assert (code, json.loads(out)["workspace"]) == (0, place), err
        for step in steps:
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
    assert len(reader.current().names) == CLASSES
    code, out, err = run(
        capsys, "-q", "-w", address, "classes", "add", "zigzag", "--sentence", "A zigzag of three strokes."
    )
    assert code == 0, err
    reader.predict(images[:1])
    assert "zigzag" in reader.current().names.values()
    assert run(capsys, "-q", "-w", address, "evaluate", "--split", "train")[0] == 0
    assert [name for name in remote.storage.names("reports") if name.startswith("evaluate-train-")]


def test_objects_are_brought_here_and_checked(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another machine fetches an object once; one that is not what was put there is refused, and stays out."""
    address = bucket.address()
    workspace = Workspace.create(address, Recipe(name="test"))
    with workspace.transaction("train") as tx:
        digest = put(workspace, "heads", lambda folder: (folder / "a.bin").write_bytes(b"x" * 40_000_000))
        tx.set(head=digest)
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "elsewhere"))
    there = Workspace.open(address)
    assert there.path.is_relative_to(tmp_path / "elsewhere")
    assert there.objects.path("heads", digest).joinpath("a.bin").read_bytes() == b"x" * 40_000_000
    asked = bucket.asked
    there.objects.path("heads", digest)
    assert bucket.asked == asked
    copy = there.objects.whole("heads", digest)
    (copy / "a.bin").write_bytes(b"y")
    with pytest.raises(WorkspaceError) as damaged:
        there.objects.whole("heads", digest)
    assert damaged.value.message == f"{copy} is damaged: its files are not those that were written"
    assert damaged.value.hint == f"Delete this copy, and it is fetched again: rm -r {copy}"
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "third"))
    third = Workspace.open(address)
    third.storage.write(f"heads/{digest[:16]}/a.bin", b"y")
    with pytest.raises(WorkspaceError) as error:
        third.objects.path("heads", digest)
    assert str(error.value) == (
        f"{address}/heads/{digest[:16]} is damaged: its content has another digest\n"
        "Bring it back from a backup, or make it again: vlltr train lgr"
    )
    assert list((third.path / "heads").iterdir()) == []


def test_a_refusal_in_the_middle(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table and the storage's own words; once the lock is cleared, the next writer puts back what was written."""
    address = bucket.address()
    workspace = Workspace.create(address, Recipe(name="test"))
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([0]))
    with pytest.raises(WorkspaceError) as error, workspace.transaction("ingest") as tx:  # noqa: PT012 - as it happens
        tx.upsert("classes", class_rows([1]))
        monkeypatch.setattr(bucket, "refuse", True)
        tx.upsert("classes", class_rows([2]))
    monkeypatch.setattr(bucket, "refuse", False)
    assert error.value.message.startswith(f"table 'classes' in {address}/lance cannot be ")
    assert "403" in error.value.message
    workspace.storage.unlock()
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([3]))
    assert sorted(Workspace.open(address).snapshot().table("classes")["class_id"].to_pylist()) == [0, 3]


def test_storage_that_cannot_be_used(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address, the storage's own words and what to look at, soon, for reading and for writing."""
    with pytest.raises(WorkspaceError, match=r"s3://bees/w cannot be used: .*NoSuchBucket"):
        Workspace.create("s3://bees/w", Recipe(name="test"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    address = bucket.address()
    for use in (Workspace.open, lambda place: Workspace.create(place, Recipe(name="test"))):
        with pytest.raises(WorkspaceError, match=f"{address}/vlltr.toml cannot be used: ") as error:
            use(address)
        assert str(error.value.hint).startswith(
            "Look at the network, the address, and what the environment says"
        )


def test_without_the_extra(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it is in the message."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingStepError) as error:
        Workspace.open(bucket.address())
    assert error.value.message.startswith("object storage needs a library that cannot be imported: ")
    assert error.value.hint == 'Run: pip install "vlltr-index[remote]"'


def test_a_cache_that_cannot_be_written(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that names another is in the message."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(WorkspaceError) as error:
        Workspace.open(bucket.address())
    assert error.value.hint == "Name a folder that can be written: export VLLTR_CACHE_DIR=FOLDER"
