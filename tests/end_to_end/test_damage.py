"""Damaged tables, tags, commits, heads and checkpoints: every use says what is damaged, and what mends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors import SafetensorError

from tests.support.commands import run
from tests.support.objects import put
from tests.support.tablerows import class_rows
from vlltr_index.encoders.openclip import make_tokenizer
from vlltr_index.errors import EncoderError, WorkspaceError
from vlltr_index.evaluation.records import Missing
from vlltr_index.heads.checkpoint import load_head
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.report import gather_report
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.opening import open_index
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.tables import Store
from vlltr_index.store.workspace import Workspace

HINT = (
    "Look at the disk, its permissions or the network; bring damaged files back from a backup, or make a "
    "new workspace: vlltr init DIR"
)


def damage(folder: Path) -> None:
    """Turn over every 97th byte of every file."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), 97):
            content[at] ^= 0xFF
        path.write_bytes(content)


USES: list[tuple[str, Callable[[Store], Any]]] = [
    ("read", lambda store: store.read("classes")),
    ("written", lambda store: store.upsert("classes", class_rows([1, 99]), "class_id")),
    ("indexed", lambda store: store.index_text("classes", "name")),
    ("merged", lambda store: store.optimize("classes")),
]


def test_damaged_data(tmp_path: Path) -> None:
    """Whatever reads the rows says so, with LanceDB's own error and the way out."""
    store = Store(tmp_path / "lance")
    store.create("classes", CLASSES, "class_id")
    for number in range(5):
        store.append("classes", class_rows([2 * number, 2 * number + 1]))
    damage(tmp_path / "lance" / "classes.lance" / "data")
    for what, use in USES:
        with pytest.raises(WorkspaceError) as error:
            use(store)
        assert error.value.message.startswith(f"table 'classes' in {store.uri} cannot be {what}: ")
        assert error.value.hint == HINT


def test_commands_on_damaged_anchors(
    trained: Workspace, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers come from the parts, as before; a change ends with a message and exit code 1, and writes nothing."""
    picture = str(pictures / "known-0.png")
    _, before, _ = run(capsys, "-w", trained.path, "predict", picture)
    damage(trained.path / "lance" / "anchors.lance" / "data")
    newest = trained.history.ids()[-1]
    assert run(capsys, "-w", trained.path, "predict", picture)[:2] == (0, before)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"new one": ["a circle around a dot."]}))
    code, _, err = run(capsys, "-w", trained.path, "classes", "add", "--from", str(texts))
    assert code == 1
    assert f"table 'anchors' in {trained.store.uri} cannot be read: " in err
    assert f"{HINT}\n" in err
    assert trained.history.ids()[-1] == newest


def test_a_disk_that_fills_while_a_command_writes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LanceDB's error is in the message, though undoing fails too; afterwards the same command works."""
    full = Mock(side_effect=RuntimeError("lance error: No space left on device (os error 28)"))
    with workspace.transaction("first") as tx:
        tx.upsert("classes", class_rows([0]))
    table = type(workspace.store._open("classes"))

    def second(patch: pytest.MonkeyPatch) -> None:
        with workspace.transaction("second") as tx:
            tx.upsert("classes", class_rows([1]))
            patch.setattr(table, "add", full)
            patch.setattr(table, "restore", full)
            tx.upsert("classes", class_rows([2]))

    with (
        monkeypatch.context() as patch,
        pytest.raises(WorkspaceError, match=r"written: .*No space left on device"),
    ):
        second(patch)
    assert workspace.snapshot().count("classes") == 1
    with workspace.transaction("second") as tx:
        assert tx.count("classes") == 1


def test_an_object_that_does_not_fit(workspace: Workspace) -> None:
    """Nothing half-written is left."""

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(WorkspaceError, match=r"heads cannot be written: .*No space left"):
        put(workspace, "heads", lambda folder: full(folder / "head.safetensors"))
    assert not list((workspace.path / "heads").iterdir())


def test_a_damaged_commit(trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading and writing commands name the damage in the newest commit's file; the tables stay as they were."""
    before = {name: trained.store.version(name) for name in trained.store.names()}
    path = trained.path / "history" / f"{max(trained.history.ids())}.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**whole, "index": {"digest": 5}}), encoding="utf-8")
    picture = str(pictures / "known-0.png")
    for args in (("status",), ("history",), ("predict", picture), ("select",), ("train", "lgr")):
        code, _, err = run(capsys, "-w", trained.path, *args)
        assert code == 1
        assert f"Error: {path} is damaged: it is not the file that was written" in err
    assert {name: trained.store.version(name) for name in trained.store.names()} == before


def head_of(workspace: Workspace) -> Path:
    """The folder of the newest commit's head."""
    return workspace.objects.path("heads", str(workspace.history.last().head))


@pytest.mark.parametrize("name", ["index.json", "anchors.safetensors", "index.faiss"])
def test_flipped_bytes_in_an_index_are_noticed(trained: Workspace, name: str) -> None:
    """Before any of its files is read."""
    folder = trained.objects.path("index", str(index_anchors(trained, "flat").digest))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WorkspaceError) as error:
        _ = open_index(trained.snapshot())
    assert error.value.message == f"{folder} is damaged: its files are not those that were written"
    assert "make it again: vlltr index. " in str(error.value.hint)


@pytest.mark.slow
def test_flipped_bytes_in_a_head_are_noticed(trained: Workspace, pictures: Path) -> None:
    """One byte of the weights is enough; training it again puts the files right, and the answers are as before."""
    asked = [str(pictures / "known-0.png")]
    before = Recognizer.open(trained).predict(asked)
    folder = head_of(trained)
    weights = bytearray((folder / "head.safetensors").read_bytes())
    weights[-100] ^= 0x40
    (folder / "head.safetensors").write_bytes(weights)
    with pytest.raises(WorkspaceError) as error:
        Recognizer.open(Workspace.open(trained.path)).predict(asked)
    assert error.value.message == f"{folder} is damaged: its files are not those that were written"
    assert error.value.hint == (
        "Bring it back from a backup, or make it again: vlltr train lgr. "
        "To go back to a commit that does without it: vlltr history, then vlltr rollback ID"
    )
    (folder / ".DS_Store").write_text("of a file manager")
    train_lgr_stage(trained, trained.recipe.lgr)
    assert head_of(trained) == folder
    (folder / ".DS_Store").write_text("of a file manager")
    assert Recognizer.open(Workspace.open(trained.path)).predict(asked) == before


def test_status_and_report_outlast_damaged_json(trained: Workspace) -> None:
    """Deeply nested JSON in a head or a checkpoint is damage like any other; so are facts of another type."""
    commit = trained.history.last()
    head = head_of(trained)
    checkpoint = trained.objects.path("checkpoints", str(commit.checkpoint))
    whole = json.loads((head / "head.json").read_text(encoding="utf-8"))
    for path in (head / "head.json", head / "train.json", checkpoint / "encoder.json"):
        path.write_text("[" * 100_000, encoding="utf-8")
    report = status(trained)
    assert report.stale[0].startswith("the head's files are damaged: ")
    assert report.next == "vlltr train lgr"
    assert report.encoder.startswith("vlltr-tiny, trained here (")
    damaged = Missing("Stage 2 (LGR): its log cannot be read", "Train it again: vlltr train lgr")
    assert damaged in gather_report(trained, commit.id).curves
    with pytest.raises(WorkspaceError, match=r"the head in .* cannot be read: "):
        load_head(head)
    for values, why in (
        (
            {**whole, "normalise_values": "x"},
            r"normalise_values in head\.json: Input should be a valid boolean",
        ),
        ({**whole, "visual": "magic"}, r"visual in head\.json: Input should be 'linear', 'mlp' or 'cosine'"),
        ({}, r"dim in head\.json: Field required"),
    ):
        (head / "head.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(WorkspaceError, match=f"the head in .* cannot be read: {why}"):
            load_head(head)


@pytest.mark.parametrize("word", ["NaN", '"\\ud800"', "7"])
def test_a_vocabulary_that_is_no_text(word: str, tmp_path: Path) -> None:
    """What is no text in words.json is told as damage."""
    (tmp_path / "words.json").write_text(f'["one", {word}]', encoding="utf-8")
    config = {"tokenizer": "words", "model_cfg": {"text_cfg": {"context_length": 8}}}
    with pytest.raises(EncoderError, match=r"words\.json must hold words: "):
        make_tokenizer(config, tmp_path)
