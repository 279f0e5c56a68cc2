"""A history that is missing, older than the tables, or damaged: nothing is dropped, and a command goes on behind it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.commits import state
from tests.support.tablerows import class_rows, image_rows, sentence_rows
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.doctor import check_workspace
from vlltr_index.pipelines.history import diff, prune, rollback
from vlltr_index.pipelines.status import status
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.tables import CLASSES, KEYS, SENTENCES
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def grown(workspace: Workspace) -> Workspace:
    """Three commits; the last one has made the table of images."""
    for number in range(2):
        with workspace.transaction(f"ingest text {number}") as tx:
            tx.upsert("classes", class_rows([number]))
            tx.upsert("sentences", sentence_rows([number]))
    with workspace.transaction("ingest images") as tx:
        tx.upsert("images", image_rows([0, 1]))
        tx.upsert("classes", class_rows([2]))
    return workspace


def write(workspace: Workspace) -> None:
    """A command that makes a commit."""
    with workspace.transaction("ingest text") as tx:
        tx.upsert("classes", class_rows([7]))


def contents(workspace: Workspace) -> dict[str, object]:
    """The tables with their versions, and the files of the history."""
    versions = {name: workspace.store.version(name) for name in workspace.store.names()}
    files = {path.name: path.read_bytes() for path in (workspace.path / "history").glob("*")}
    return {**versions, **files}


def newest(workspace: Workspace) -> Path:
    """The newest commit's file."""
    return workspace.path / "history" / "3.json"


def gone(workspace: Workspace) -> None:
    """The whole folder is moved away."""
    shutil.move(workspace.path / "history", workspace.path.parent / "elsewhere")


def emptied(workspace: Workspace) -> None:
    """The folder is there, without anything in it."""
    gone(workspace)
    (workspace.path / "history").mkdir()


def of_a_new_workspace(workspace: Workspace) -> None:
    """The folder is that of a workspace in which nothing has been committed."""
    gone(workspace)
    other = Workspace.create(workspace.path.parent / "other", Recipe(name="test"))
    shutil.copytree(other.path / "history", workspace.path / "history")


def older(workspace: Workspace) -> None:
    """The folder is as it was after the first commit."""
    for name in ("2.json", "3.json"):
        (workspace.path / "history" / name).unlink()
    (workspace.path / "history" / "newest").write_text("1\n")


def no_commits(workspace: Workspace) -> None:
    """All commits were deleted."""
    for number in (1, 2, 3):
        (workspace.path / "history" / f"{number}.json").unlink()


def damaged(workspace: Workspace) -> None:
    """The newest commit's file was cut short."""
    newest(workspace).write_bytes(newest(workspace).read_bytes()[:40])


def newest_gone(workspace: Workspace) -> None:
    """The newest commit's file was deleted."""
    newest(workspace).unlink()


def marker_gone(workspace: Workspace) -> None:
    """What says which commit is the newest was deleted."""
    (workspace.path / "history" / "newest").unlink()


LOSSES: list[tuple[Callable[[Workspace], None], str]] = [
    (gone, "history is missing, or what was in it is"),
    (emptied, "history is missing, or what was in it is"),
    (of_a_new_workspace, "commit 3 is gone: table "),
    (no_commits, "commit 3 is gone from .*history: no commit is there"),
    (damaged, "3.json is damaged: "),
    (newest_gone, "commit 3 is gone from .*history: the newest there is commit 2"),
    (marker_gone, "newest is missing or damaged: commit 3 may not be the newest"),
]


@pytest.mark.parametrize(("lose", "why"), LOSSES)
def test_nothing_is_dropped(grown: Workspace, lose: Callable[[Workspace], None], why: str) -> None:
    """Writers and readers, `status` and `doctor` say what is missing; the tables stay as they are."""
    lose(grown)
    before = contents(grown)
    for use in (write, status, lambda workspace: prune(workspace, 1)):
        with pytest.raises(WorkspaceError, match=why):
            use(Workspace.open(grown.path))
    (problem,) = (check for check in check_workspace(grown.path) if check.state == "problem")
    assert why.partition(".*")[0] in problem.value
    assert problem.mend
    assert contents(grown) == before


def test_an_older_history(grown: Workspace) -> None:
    """It looks whole, but the tables bear tags of later commits."""
    older(grown)
    before = contents(grown)
    with pytest.raises(WorkspaceError) as error:
        write(grown)
    assert str(error.value) == (
        f"commit 3 is gone: table 'classes' in {grown.store.uri} bears its tag, and the newest in its history is "
        "commit 1\n"
        "Bring the folder history back from a backup, or go on from it: vlltr rollback 1"
    )
    (problem,) = (check for check in check_workspace(grown.path) if check.state == "problem")
    assert problem.value == error.value.message
    assert contents(grown) == before


def tagged(workspace: Workspace) -> set[str]:
    """Tags of commits that are no more."""
    there = {f"c{number}" for number in workspace.history.ids()}
    tags = {tag for name in workspace.store.names() for tag in workspace.store.tags(name)}
    return {tag for tag in tags - there if tag.startswith("c")}


BACK = [(damaged, 2), (newest_gone, 2), (marker_gone, 3), (older, 1)]


@pytest.mark.parametrize(("lose", "target"), BACK)
def test_going_on_behind_it(grown: Workspace, lose: Callable[[Workspace], None], target: int) -> None:
    """`rollback` makes a commit with a number that none had; nothing that the lost ones named is gone."""
    old = state(grown, target)
    images, file = grown.snapshot(3).table("images"), newest(grown).read_bytes()
    lose(grown)
    report = rollback(Workspace.open(grown.path), target)
    assert (report.commit, report.changed) == (4, True)
    again = Workspace.open(grown.path)
    assert state(again) == old
    assert [check for check in check_workspace(again.path) if check.state == "problem"] == []
    write(again)
    assert again.history.last().id == 5
    assert diff(again, 1, 5).classes_added[-1] == "class 7"
    newest(again).write_bytes(file)  # from a backup
    assert again.snapshot(3).table("images").equals(images)
    prune(again, 1)
    assert tagged(again) == set()
    assert again.snapshot().class_table().ids[-1] == 7


def test_the_command(grown: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names it; it says what is given up and what became of the file."""
    damaged(grown)
    half = newest(grown).read_bytes()
    code, out, err = run(capsys, "-w", grown.path, "history")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (1, ["2", "1"])
    assert "go on from commit 2 without it: vlltr rollback 2\n" in err
    code, out, _ = run(capsys, "-w", grown.path, "rollback", "2", "--yes")
    assert code == 0
    assert out.splitlines()[:2] == [
        "Commit 4 has the state of commit 2 (ingest text 1).",
        "Commit 3 was given up: what is left of it is history/3.json.damaged.",
    ]
    assert (grown.path / "history" / "3.json.damaged").read_bytes() == half
    code, out, _ = run(capsys, "-w", grown.path, "history")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["4", "2", "1"])
    code, out, _ = run(capsys, "-w", grown.path, "--json", "status")
    assert json.loads(out)["commit"] == 4


def test_a_first_command_that_was_killed(workspace: Workspace) -> None:
    """A table without a commit's tag is dropped; one that has it is emptied, for a commit may name it."""
    store = workspace.store
    for name, schema, rows in (
        ("classes", CLASSES, class_rows([0])),
        ("sentences", SENTENCES, sentence_rows([0])),
    ):
        store.create(name, schema, KEYS[name])
        store.append(name, rows)
    store.tag("classes", store.version("classes"), "c1")
    kept = store.version("classes")
    with workspace.transaction("ingest text") as tx:
        assert (tx.has("classes"), tx.count("classes")) == (False, 0)
        tx.upsert("classes", class_rows([1]))
    assert store.names() == ["classes"]
    assert workspace.snapshot().class_table().ids == (1,)
    assert store.read("classes", version=kept)["class_id"].to_pylist() == [0]


def test_an_init_that_was_killed(tmp_path: Path) -> None:
    """It had said that nothing is committed, and no more: it can be run again."""
    place = tmp_path / "w"
    workspace = Workspace.create(place, Recipe(name="test"))
    (place / "vlltr.toml").unlink()
    assert Workspace.create(place, workspace.recipe).history.last().id == 0


def test_a_table_that_does_not_open_is_not_taken_for_half_made(grown: Workspace) -> None:
    """A commit names it: what is left of it stays, and every writer says so."""
    table = grown.path / "lance" / "sentences.lance"
    shutil.rmtree(table / "_versions")
    left = sorted(table.rglob("*"))
    assert left
    with pytest.raises(
        WorkspaceError, match=r"names the table 'sentences', which is gone from .* or does not open"
    ):
        write(Workspace.open(grown.path))
    assert sorted(table.rglob("*")) == left


def test_going_on_behind_a_damaged_commit_is_going_back(grown: Workspace) -> None:
    """The new commit has the state of the one that it goes on from: once more, there is nothing to do."""
    newest(grown).write_text("{")
    first = rollback(Workspace.open(grown.path), 2)
    assert (first.changed, first.damaged) == (True, (3,))
    assert newest(grown).with_name("3.json.damaged").read_text() == "{"
    again = Workspace.open(grown.path)
    assert again.history.last().state == 2
    assert not rollback(again, 2).changed


def test_a_damaged_commit_stays_where_nothing_came_of_it(
    grown: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full takes no new commit, and so the file of the damaged one keeps its name."""
    newest(grown).write_text("{")

    def full(*_: object) -> None:
        raise WorkspaceError("full")

    monkeypatch.setattr("vlltr_index.store.snapshot.History.append", full)
    with pytest.raises(WorkspaceError, match="full"):
        rollback(Workspace.open(grown.path), 2)
    assert newest(grown).read_text() == "{"
