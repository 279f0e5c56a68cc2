"""Commits as files: written once, whole or not at all; damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commits import commit
from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.config import FusionConfig
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
    return LocalHistory(tmp_path)


def test_no_history_is_no_commit(history: LocalHistory) -> None:
    """Before the first commit there is none, not even the folder."""
    assert (history.last(), list(history.list()), list(history.ids())) == (NOTHING, [], [])
    with pytest.raises(WorkspaceError) as error:
        history.read(1)
    assert str(error.value) == (
        "there is no commit 1; nothing has been committed yet\nSee which commits there are: vlltr history"
    )


def test_commits_come_back_in_order(history: LocalHistory) -> None:
    """All fields survive the file, and ten comes after nine."""
    fields = {"tables": {"classes": 3}, "fusion": FusionConfig(alpha=0.7), "info": {"next": {"anchors": 5}}}
    commits = [commit(n, text_fp="t", index={"digest": "d"}, **fields) for n in range(1, 12)]
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
        (b'{"id": 2}', "parent: Field required"),
        (None, "it says it is commit 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"text_fp": "../x"}, "text_fp: String should match pattern '^[A-Za-z0-9_.-]+$'"),
        ({"info": {"logit_scale": float("nan")}}, "info.logit_scale: Input should be a finite number"),
    ],
)
def test_damage_is_named(history: LocalHistory, content: bytes | dict[str, Any] | None, why: str) -> None:
    """Each kind of damage says which file, what is wrong, and how to go on."""
    history.append(commit(1))
    path = history.folder / "2.json"
    if content is None:
        path.write_bytes((history.folder / "1.json").read_bytes())
    elif isinstance(content, dict):
        path.write_text(json.dumps(commit(2).model_dump(mode="json") | content))
    else:
        path.write_bytes(content)
    with pytest.raises(WorkspaceError) as error:
        history.last()
    assert error.value.message.startswith(f"{path} is damaged: ")
    assert why.casefold() in error.value.message.casefold()
    assert error.value.hint == (
        "Bring the file back from a backup. To go back to commit 1 and lose what this one added, delete it."
    )


def test_damage_in_the_middle_has_no_easy_way_out(history: LocalHistory) -> None:
    """An older commit that is damaged cannot be deleted away."""
    for number in (1, 2):
        history.append(commit(number))
    (history.folder / "1.json").write_text("")
    with pytest.raises(WorkspaceError) as error:
        history.list()
    assert error.value.hint == "Bring the file back from a backup."
    assert history.last() == commit(2)


def test_a_commit_without_the_encoders_scale() -> None:
    """It may lack it until something was embedded; who needs it is told."""
    assert commit(2, info={"logit_scale": 3}).logit_scale == 3.0
    with pytest.raises(WorkspaceError, match=r"commit 2 has no logit_scale\nNote it again: vlltr embed"):
        commit(2).logit_scale  # noqa: B018 - reading it is the test
