"""A workspace in another format is refused in one sentence, not misread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.commits import amend
from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import FORMAT
from vlltr_index.store.workspace import Workspace
from vlltr_index.version import VERSION


def refusal(place: Path, has: str, writer: str) -> str:
    """The sentence."""
    return (
        f"{place} has {has}, but this vlltr-index {VERSION} reads format {FORMAT}: the {writer} that wrote it can read"
        " it, and `vlltr export --tables DIR` of that version saves the tables"
    )


@pytest.fixture
def used(workspace: Workspace) -> Workspace:
    """A workspace with one commit, which version 0.0.9 made."""
    with workspace.transaction("test") as tx:
        tx.set(text_fp="t")
    amend(workspace, program_version="0.0.9")
    return workspace


def write_format(workspace: Workspace, line: str) -> Path:
    """Replace the line of `vlltr.toml` that names the format."""
    file = workspace.path / "vlltr.toml"
    text = file.read_text(encoding="utf-8")
    assert f"format = {FORMAT}\n" in text
    file.write_text(text.replace(f"format = {FORMAT}\n", line), encoding="utf-8")
    return file


@pytest.mark.parametrize("command", [("status",), ("history",), ("rollback", "1"), ("ingest", "text", ".")])
def test_commands_refuse_another_format(
    used: Workspace, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """With exit code 1, nothing else, and the version that wrote the newest commit."""
    file = write_format(used, f"format = {FORMAT - 1}\n")
    code, out, err = run(capsys, "-w", used.path, *command)
    sentence = refusal(file, f"format {FORMAT - 1}", "vlltr-index 0.0.9")
    assert (code, out, err) == (1, "", f"Error: {sentence}\n")


@pytest.mark.parametrize(
    ("line", "has"),
    [
        (f"format = {FORMAT + 1}\n", f"format {FORMAT + 1}"),
        (f'format = "{FORMAT}"\n', f"format '{FORMAT}'"),
        ("", "no format"),
    ],
)
def test_what_names_no_version(workspace: Workspace, line: str, has: str) -> None:
    """A workspace without commits."""
    file = write_format(workspace, line)
    with pytest.raises(WorkspaceError) as caught:
        Workspace.open(workspace.path)
    assert str(caught.value) == refusal(file, has, "version")


def test_a_newest_commit_that_cannot_be_read(used: Workspace) -> None:
    """Names no version."""
    file = write_format(used, f"format = {FORMAT - 1}\n")
    for content in (b"[]", b"{", None):
        path = used.path / "history" / "1.json"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(WorkspaceError) as caught:
            Workspace.open(used.path)
        assert str(caught.value) == refusal(file, f"format {FORMAT - 1}", "version")


def test_a_commit_in_another_format(used: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Where somebody edited `vlltr.toml`: it is not taken for a damaged one, which a rollback would give up."""
    amend(used, format=FORMAT - 1)
    file = used.path / "history" / "1.json"
    for command in (("status",), ("rollback", "1")):
        code, _, err = run(capsys, "-w", used.path, *command)
        assert (code, err) == (1, f"Error: {refusal(file, f'format {FORMAT - 1}', 'vlltr-index 0.0.9')}\n")
    assert json.loads(file.read_text(encoding="utf-8"))["format"] == FORMAT - 1
