"""Commits as files: written once, whole or not at all; damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.support.commits import commit
from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.store.snapshot import NOTHING, History
from vlltr_index.store.storage import Storage


class LocalHistory(History):
    """A history in a folder, which tests look into."""

    def __init__(self, root: Path) -> None:
        super().__init__(Storage(root))
        self.folder = root / "history"


@pytest.fixture
def history(tmp_path: Path) -> LocalHistory:
    """An empty history."""
    history = LocalHistory(tmp_path)
    history.begin()
    return history


def test_before_the_first_commit_there_is_none(history: LocalHistory) -> None:
    """Nothing is found, and who asks for a commit is told."""
    assert (history.last(), list(history.list()), list(history.ids())) == (NOTHING, [], [])
    with pytest.raises(WorkspaceError) as error:
        history.read(1)
    assert str(error.value) == (
        "there is no commit 1; nothing has been committed yet\nSee which commits there are: vlltr history"
    )


def test_commits_come_back_in_order(history: LocalHistory) -> None:
    """All fields survive the file, and ten comes after nine."""
    fields = {"tables": {"classes": 3}, "fusion": FusionConfig(alpha=0.7), "info": {"next": {"anchors": 5}}}
    commits = [
        commit(n, text_fp="t", index={"digest": "d", "kind": "flat", "text_fp": "t"}, **fields)
        for n in range(1, 12)
    ]
    for one in commits:
        history.append(one)
    assert list(history.list()) == commits
    assert history.last() == commits[-1]
    with pytest.raises(WorkspaceError, match="there is no commit 99; there are 1 to 11"):
        history.read(99)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"[" * 100_000, "recursion"),
        (b'{"id": 2}', "it is not the file that was written"),
        (None, "it says it is commit 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"text_fp": "../x"}, "text_fp: String should match pattern '^[A-Za-z0-9_.-]+$'"),
        (b'{"id": NaN}', "Invalid JSON"),
    ],
)
def test_damage_is_named(history: LocalHistory, content: bytes | dict[str, Any] | None, why: str) -> None:
    """Each kind of damage says which file, what is wrong, and how to go on."""
    history.append(commit(1))
    path = history.folder / "2.json"
    if content is None:
        path.write_bytes((history.folder / "1.json").read_bytes())
    elif isinstance(content, dict):
        values = commit(2).model_dump(mode="json") | content
        path.write_text(json.dumps({**values, "digest": digest_json(values)}))
    else:
        path.write_bytes(content)
    with pytest.raises(WorkspaceError) as error:
        history.last()
    assert error.value.message.startswith(f"{path} is damaged: ")
    assert why.casefold() in error.value.message.casefold()
    assert error.value.hint == (
        "Bring the file back from a backup, or go on from commit 1 without it: vlltr rollback 1"
    )


def test_damage_in_the_middle(history: LocalHistory) -> None:
    """The newest commit is read as before; who looks at all is told."""
    for number in (1, 2):
        history.append(commit(number))
    (history.folder / "1.json").write_text("")
    with pytest.raises(WorkspaceError) as error:
        history.list()
    assert error.value.hint == (
        "Bring the file back from a backup, or go on from commit 2 without it: vlltr rollback 2"
    )
    assert history.last() == commit(2)
    commits, wrong = history.look()
    assert (commits, [one.message for one in wrong]) == ([commit(2)], [error.value.message])


def test_nothing_can_be_read(history: LocalHistory) -> None:
    """Where there is no commit to go on from, only a backup helps."""
    history.append(commit(1))
    (history.folder / "1.json").write_text("")
    with pytest.raises(WorkspaceError) as error:
        history.look()
    assert error.value.hint == "Bring the file back from a backup, or make a new workspace: vlltr init DIR"


def test_a_newest_commit_that_is_gone(history: LocalHistory) -> None:
    """It is missed, and with it the number that the next one must not have."""
    for number in (1, 2):
        history.append(commit(number))
    (history.folder / "2.json").unlink()
    for look in (history.last, history.ids, history.list):
        with pytest.raises(WorkspaceError) as error:
            look()
        assert str(error.value) == (
            f"commit 2 is gone from {history.folder}: the newest there is commit 1\n"
            "Bring 2.json back from a backup, or go on from commit 1 without it: vlltr rollback 1"
        )
    assert history.highest() == 2
    assert history.newer_than(2)
    (history.folder / "1.json").unlink()
    with pytest.raises(WorkspaceError) as error:
        history.last()
    assert str(error.value) == (
        f"commit 2 is gone from {history.folder}: no commit is there\n"
        "Bring 2.json back from a backup, or make a new workspace: vlltr init DIR"
    )


def test_a_commit_whose_number_was_not_noted(history: LocalHistory) -> None:
    """Its writer was killed in between: it is the newest all the same."""
    history.append(commit(1))
    (history.folder / "newest").write_text("0\n")
    assert history.last() == commit(1)
    history.note_newest(history.last())
    assert (history.folder / "newest").read_text() == "1\n"


@pytest.mark.parametrize("content", [None, b"", b"many", b"\xff"])
def test_the_newest_number_is_missing(history: LocalHistory, content: bytes | None) -> None:
    """Then no commit counts as the newest; of an empty folder nothing is known at all."""
    history.append(commit(1))
    marker = history.folder / "newest"
    if content is None:
        marker.unlink()
    else:
        marker.write_bytes(content)
    with pytest.raises(WorkspaceError) as error:
        history.last()
    assert str(error.value) == (
        f"{marker} is missing or damaged: commit 1 may not be the newest\n"
        "Bring it back from a backup, or go on from commit 1 without it: vlltr rollback 1"
    )
    shutil.rmtree(history.folder)
    for make in (lambda: None, history.folder.mkdir):
        make()
        with pytest.raises(WorkspaceError) as error:
            history.last()
        assert str(error.value) == (
            f"{history.folder} is missing, or what was in it is\n"
            "Bring it back from a backup, or make a new workspace: vlltr init DIR"
        )


def test_a_folder_that_cannot_be_listed(history: LocalHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no empty one."""
    history.append(commit(1))
    refused = Mock(side_effect=PermissionError(13, "Permission denied", str(history.folder)))
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refused)
        with pytest.raises(WorkspaceError) as error:
            history.last()
    assert error.value.message == f"{history.folder} cannot be listed: Permission denied"
    shutil.rmtree(history.folder)
    history.folder.write_text("a file")
    with pytest.raises(WorkspaceError, match="history/newest cannot be read: Not a directory"):
        history.last()


def test_a_commit_without_the_encoders_scale() -> None:
    """It may lack it until something was embedded; who needs it is told."""
    assert commit(2, info={"logit_scale": 3}).logit_scale == 3.0
    with pytest.raises(WorkspaceError, match=r"commit 2 has no logit_scale\nNote it again: vlltr embed"):
        commit(2).logit_scale  # noqa: B018 - reading it is the test
