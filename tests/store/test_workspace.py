"""The folder, its configuration, its objects, and writers that race or are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.objects import put
from vlltr_index.errors import ConfigError, MissingStepError, UsageError, WorkspaceError
from vlltr_index.schemas.config import FORMAT, AugmentConfig, CVLPConfig, Recipe
from vlltr_index.store.workspace import Workspace


def test_no_value_survives_the_file(tmp_path: Path) -> None:
    """TOML has no null; a field that is null though its default is not comes back null, and "none" stays a word."""
    augment = AugmentConfig(kind="none", auto_augment=None)
    recipe = Recipe(name="x", cvlp=CVLPConfig(clip_grad=None, distillation="none", augment=augment))
    workspace = Workspace.create(tmp_path / "w", recipe)
    assert Workspace.open(workspace.path).recipe == recipe
    assert 'clip_grad = "none"' in (workspace.path / "vlltr.toml").read_text()


def test_what_create_takes_and_refuses(tmp_path: Path) -> None:
    """Not what is no folder; but an empty one, and one that an interrupted `create` left."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"notes\.txt cannot be made: "):
        Workspace.create(tmp_path / "notes.txt", Recipe(name="test"))
    with pytest.raises(WorkspaceError, match="cannot be made"):
        Workspace.create(tmp_path / "notes.txt" / "below", Recipe(name="test"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".vlltr.toml.x1y2").write_text("half")
    Workspace.create(tmp_path / "empty", Recipe(name="test"))


def test_a_place_is_named_without_detours(tmp_path: Path) -> None:
    """As a person would; an export that lies there is named with what opens it."""
    Workspace.create(tmp_path / "w", Recipe(name="test"))
    (tmp_path / "away").mkdir()
    assert Workspace.open(tmp_path / "away" / ".." / "w").address == str(tmp_path / "w")
    (tmp_path / "away" / "SHA256SUMS").touch()
    with pytest.raises(WorkspaceError) as caught:
        Workspace.open(tmp_path / "away")
    assert caught.value.hint == (
        "It is an export: open it in Python by Recognizer.from_pretrained, or by HTTP:"
        f" vlltr serve {tmp_path / 'away'}"
    )


@pytest.mark.parametrize("address", ["ftp://host/w", "s3://", "s3://bucket/../w", "s3://bucket/a//b"])
def test_other_addresses_are_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no bucket cannot hold a workspace; nothing is made."""
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=f"{address} is not an address that can hold a workspace"):
        Workspace.create(address, Recipe(name="test"))
    assert not (tmp_path / "cache").exists()


def test_find_goes_upward(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The nearest folder upward with a vlltr.toml is it."""
    below = workspace.path / "reports" / "deep"
    below.mkdir(parents=True)
    assert Workspace.find(below).path == workspace.path
    monkeypatch.chdir(below)
    assert Workspace.find().path == workspace.path
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError) as error:
        Workspace.find()
    assert str(error.value) == (
        f"no workspace: neither {tmp_path} nor a folder above it has a vlltr.toml\n"
        "Make one: vlltr init DIR, or name one: vlltr -w DIR ..."
    )


def test_a_damaged_configuration_is_named(workspace: Workspace) -> None:
    """The file and the key are in the message."""
    (workspace.path / "vlltr.toml").write_text(f'format = {FORMAT}\n[recipe]\nname = "x"\nepoch = 3\n')
    with pytest.raises(ConfigError) as error:
        Workspace.open(workspace.path)
    assert str(workspace.path / "vlltr.toml") in error.value.message
    assert "recipe.epoch: Extra inputs are not permitted" in error.value.message


def test_objects_are_named_by_their_content(workspace: Workspace) -> None:
    """The same files give the same digest and one folder, put right if damaged; other bytes or names give another."""

    def build(name: str, data: str) -> str:
        def write(folder: Path) -> None:
            (folder / "deep").mkdir()
            (folder / "deep" / name).write_text(data)

        return put(workspace, "heads", write)

    first = build("a", "1")
    assert build("a", "1") == first
    assert len({first, build("a", "2"), build("b", "1")}) == 3
    path = workspace.objects.path("heads", first) / "deep" / "a"
    assert path.read_text() == "1"
    path.write_text("changed since")
    assert build("a", "1") == first
    assert path.read_text() == "1"
    assert all(len(name) == 16 for name in os.listdir(workspace.path / "heads"))
    for kind, digest in (("checkpoints", "ab" * 32), ("heads", "../history")):  # gone, and no digest
        with pytest.raises(MissingStepError, match="Make it again: vlltr train "):
            workspace.objects.path(kind, digest)  # type: ignore[arg-type]  # two of its kinds


@pytest.mark.slow
def test_status_and_history_load_no_torch(workspace: Workspace) -> None:
    """Opening, reading and status work without torch, open_clip and faiss."""
    code = (
        "import sys; from vlltr_index import Workspace; from vlltr_index.pipelines.status import status\n"
        f"w = Workspace.open({str(workspace.path)!r}); status(w); w.history.list()\n"
        "print(sorted({'torch', 'open_clip', 'faiss'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
