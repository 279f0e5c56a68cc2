"""Damaged tables, broken tags, panics: every use of the store says what is damaged, and pruning gives nothing up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tablerows import class_rows, vector_rows
from test_rollback import state

from tests.commands import run
from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.tables import CLASSES, sentence_vectors, sentence_vectors_name
from vlltr_index.stages.prune import prune
from vlltr_index.store import Store
from vlltr_index.workspace import Workspace

HINT = "Bring the folder back from a backup, or make a new workspace: vlltr init DIR"


def damage(folder: Path) -> None:
    """Turn over every 97th byte of every file."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), 97):
            content[at] ^= 0xFF
        path.write_bytes(content)


def many_commits(workspace: Workspace) -> Workspace:
    """Four commits, and a table of vectors beside them."""
    for number in range(4):
        with workspace.transaction(f"step {number}") as tx:
            tx.upsert("classes", class_rows([number]))
            tx.set(text_fp="new")
            tx.store.create(sentence_vectors_name("new"), sentence_vectors(3), "text_hash")
    return workspace


USES: list[tuple[str, Callable[[Store], Any]]] = [
    ("read", lambda store: store.read("classes")),
    ("read", lambda store: store.count("classes", "class_id = 3")),
    ("read", lambda store: store.full_text("classes", "name", "class", 3)),
    ("read", lambda store: store.keys("classes", "name")),
    ("written", lambda store: store.upsert("classes", class_rows([1, 99]), "class_id")),
    ("merged", lambda store: store.optimize("classes")),
    ("merged", lambda store: store.clean("classes")),
]


@pytest.mark.parametrize(("what", "use"), USES)
def test_damaged_data(tmp_path: Path, what: str, use: Callable[[Store], Any]) -> None:
    """Whatever reads the rows says so, with the way out and without places in LanceDB's source."""
    store = Store(tmp_path / "lance")
    store.create("classes", CLASSES, "class_id")
    for number in range(5):
        store.append("classes", class_rows([2 * number, 2 * number + 1]))
    damage(tmp_path / "lance" / "classes.lance" / "data")
    with pytest.raises(WorkspaceError) as error:
        use(store)
    assert error.value.message.startswith(f"table 'classes' in {store.uri} cannot be {what}: ")
    assert ".rs:" not in error.value.message
    assert error.value.hint == HINT


def test_damaged_tags(tmp_path: Path) -> None:
    """A tag's file that is no JSON is an error wherever it is read."""
    store = Store(tmp_path / "lance")
    store.create("classes", CLASSES, "class_id")
    store.tag("classes", 1, "c1")
    (tmp_path / "lance" / "classes.lance" / "_refs" / "tags" / "c1.json").write_text("{")
    uses: tuple[Callable[[], Any], ...] = (
        lambda: store.tags("classes"),
        lambda: store.tagged("classes", "c1"),
        lambda: store.clean("classes"),
    )
    for use in uses:
        with pytest.raises(
            WorkspaceError, match=r"table 'classes' in .* cannot be (asked for its tags|merged): "
        ) as error:
            use()
        assert error.value.hint == HINT


def test_tables_that_cannot_be_listed(tmp_path: Path) -> None:
    """A file in place of the tables' folder."""
    (tmp_path / "lance").write_text("")
    with pytest.raises(WorkspaceError) as error:
        Store(tmp_path / "lance").names()
    assert error.value.message.startswith(f"the tables in {tmp_path / 'lance'} cannot be listed: ")
    assert error.value.hint == "Look at the folder's permissions, or bring it back from a backup."


@pytest.mark.parametrize("table", ["classes", sentence_vectors_name("new")])
def test_pruning_looks_at_the_tables_first(workspace: Workspace, table: str) -> None:
    """With a damaged table no commit is given up, and what can be read is read as before."""
    store = many_commits(workspace).store
    if table != "classes":
        store.append(table, vector_rows(["h"], [[1, 2, 3]]))
    files = sorted(path for path in workspace.path.rglob("*") if path.is_file())
    damage(workspace.path / "lance" / f"{table}.lance" / "data")
    with pytest.raises(WorkspaceError) as error:
        prune(workspace, 1)
    assert error.value.message.startswith(
        f"nothing was pruned: table {table!r} in {store.uri} cannot be read: "
    )
    assert error.value.hint == HINT
    assert sorted(path for path in workspace.path.rglob("*") if path.is_file()) == files
    assert workspace.history.oldest_kept() == 1


def test_pruning_looks_at_the_tags_first(workspace: Workspace) -> None:
    """A broken tag stops it before a commit is given up; once it is mended, pruning works."""
    many_commits(workspace)
    tag = workspace.path / "lance" / "classes.lance" / "_refs" / "tags" / "c2.json"
    whole = tag.read_text()
    before = {number: state(workspace, number) for number in range(1, 5)}
    tag.write_text("{")
    with pytest.raises(WorkspaceError, match=r"^nothing was pruned: table 'classes' in .* for its tags: "):
        prune(workspace, 1)
    assert workspace.history.oldest_kept() == 1
    assert {number: state(workspace, number) for number in range(1, 5)} == before
    tag.write_text(whole)
    assert prune(workspace, 1).pruned == (1, 2, 3)


def test_pruning_that_stops_half_way(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while tables are merged: the message says what is left to do, and the kept commit is whole."""
    many_commits(workspace)
    before = state(workspace, 4)

    def full(store: Store, name: str) -> bool:
        raise WorkspaceError(f"{store.uri} is full: no space is left on its disk", "Free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "optimize", full)
        with pytest.raises(WorkspaceError) as error:
            prune(workspace, 1)
    assert error.value.message == (
        f"pruning stopped half-way: {workspace.store.uri} is full: no space is left on its disk"
    )
    assert error.value.hint == (
        "The commits that stay are whole. Once that is mended, run the same command again: it finishes the work."
    )
    assert state(workspace, 4) == before
    prune(workspace, 1)
    assert state(workspace, 4) == before


def test_commands_on_damaged_anchors(
    trained: Workspace, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They end with a message and exit code 1, and write nothing."""
    damage(trained.path / "lance" / "anchors.lance" / "data")
    newest = trained.history.ids()[-1]
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"new one": ["a circle around a dot."]}))
    for command in (
        ("predict", str(pictures / "known-0.png")),
        ("classes", "add", "--from", str(texts)),
        ("prune", "--keep", "1", "--yes"),
    ):
        code, _, err = run(capsys, "-w", trained.path, *command)
        assert code == 1
        assert f"table 'anchors' in {trained.store.uri} cannot be read: " in err
        assert f"{HINT}\n" in err
    assert trained.history.ids()[-1] == newest
    assert trained.history.oldest_kept() == 1
