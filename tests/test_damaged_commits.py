"""The newest commit's file, changed by hand: every command says what is wrong with it, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlltr_index.cli.main import main
from vlltr_index.workspace import Workspace


def spoil(workspace: Workspace, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change what the newest commit's file holds."""
    path = workspace.path / "history" / f"{max(workspace.history.ids())}.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def said(capsys: pytest.CaptureFixture[str], workspace: Workspace, *args: str) -> str:
    """What a command that fails says; a traceback would not be an exit code of 1."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["-w", str(workspace.path), *args])
    assert left.value.code == 1
    return capsys.readouterr().err


def test_every_command_names_the_damage(
    trained: Workspace,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reading and writing commands alike; the tables stay as they were."""
    before = {name: trained.store.version(name) for name in trained.store.names()}
    path = spoil(trained, lambda v: v.update(index={"digest": 5}))
    picture = str(pictures / "known-0.png")
    for args in (("status",), ("history",), ("predict", picture), ("select",), ("train", "lgr")):
        assert f"Error: {path} is damaged: index.digest: Input should be a valid string" in said(
            capsys, trained, *args
        )
    assert {name: trained.store.version(name) for name in trained.store.names()} == before


def test_facts_that_are_missing(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A commit without facts is read; what needs one of them says so."""
    path = spoil(trained, lambda v: v.update(info={}))
    number = path.stem
    for args in (("select",), ("train", "lgr", "--set", "lgr.views=1")):
        assert f"Error: commit {number} is damaged: its info has no logit_scale" in said(
            capsys, trained, *args
        )


def test_augmented_views_of_an_unknown_kind(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """How the views were drawn is part of what they are called."""
    spoil(trained, lambda v: v["info"].update(views=2, augment={"kind": "x"}))
    file = trained.path / "vlltr.toml"
    file.write_text(
        file.read_text().replace("augmented = false", "augmented = true").replace("views = 1", "views = 2")
    )
    assert "the newest commit is damaged: info.augment: Input should be 'photo', 'glyph' or 'none'" in said(
        capsys, trained, "select"
    )
