"""Going back to earlier commits, and what lies between two: rows, fields, numbers, predictions."""

from __future__ import annotations

import io
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.support import commands
from tests.support.commits import killed, run, state
from tests.support.tablerows import anchor_rows, class_rows, image_rows, sentence_rows, stats_rows
from vlltr_index.classes import add_class, remove_classes
from vlltr_index.cli.render import report_lines
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.pipelines.history import diff, rollback, undone
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def grown(workspace: Workspace) -> Workspace:
    """Five commits, each of which changes rows, tables or fields."""
    with workspace.transaction("ingest text") as tx:
        tx.upsert("classes", class_rows([0, 1]))
        tx.upsert("sentences", sentence_rows(range(3)))
    with workspace.transaction("ingest images") as tx:
        tx.upsert("images", image_rows(range(3)))
        tx.set(text_fp="t", image_fp="i")
        tx.note(dim=3)
    with workspace.transaction("select") as tx:
        tx.upsert("anchors", anchor_rows([tx.next_id("anchors")]))
        tx.upsert("class_stats", stats_rows([1], 3))
        tx.set(selection_id="s", fusion=FusionConfig(alpha=0.3))
    with workspace.transaction("classes add") as tx:
        tx.upsert("classes", class_rows([tx.next_id("classes")]))
        tx.upsert("sentences", sentence_rows([7, 8], class_id=2))
        tx.upsert("anchors", anchor_rows([tx.next_id("anchors")]))
        tx.upsert("class_stats", stats_rows([1], 5))
        tx.set(fusion=FusionConfig(alpha=0.9))
    with workspace.transaction("classes remove") as tx:
        tx.upsert("classes", class_rows([0], retired=[0]))
        tx.delete("images", "image_id = 'train1'")
        tx.delete("sentences", "class_id = 0")
    return workspace


@pytest.mark.parametrize("target", [1, 3, 5])
def test_going_back_brings_all_back(grown: Workspace, target: int) -> None:
    """Rows, tables and fields are those of the target; every earlier commit reads as before."""
    before = [state(grown, n) for n in range(1, 6)]
    report = rollback(grown, target)
    assert (report.changed, report.commit) == (target != 5, 6 if target != 5 else 5)
    assert state(grown) == before[target - 1]
    assert [state(grown, n) for n in range(1, 6)] == before
    last = grown.history.last()
    assert last.state == target
    assert undone(grown, 5) == ([f"rollback {target}"] if target != 5 else [])


@pytest.mark.parametrize("target", [1, 4])
def test_later_writes_build_on_what_came_back(grown: Workspace, target: int) -> None:
    """The next command starts from the state gone back to, and puts nothing back."""
    rollback(grown, target)
    kept = [state(grown, n) for n in range(1, 7)]
    with grown.transaction("ingest text") as tx:
        tx.upsert("sentences", sentence_rows([20]))
        tx.upsert("images", image_rows([9]))
    snapshot = grown.snapshot()
    assert snapshot.count("sentences") == grown.snapshot(target).count("sentences") + 1
    assert snapshot.count("images") == grown.snapshot(target).count("images") + 1
    assert snapshot.commit.state == snapshot.commit.id == 7
    assert [state(grown, n) for n in range(1, 7)] == kept
    rollback(grown, 6)
    assert state(grown) == kept[target - 1]


def test_an_unanswered_question_changes_nothing(
    grown: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal, or by anything but yes, the command ends and says how it can be had without a question."""
    before = grown.history.last().id
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, _, err = commands.run(capsys, "-w", grown.path, "rollback", "1")
    assert code == 1
    assert err.endswith("Nothing was changed. With --yes there is no question.\n")
    assert grown.history.last().id == before


def test_an_interrupted_rollback_leaves_the_newest_commit(
    grown: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the tables went back and before the commit: the next writer puts the newest state back."""
    before = state(grown)
    with monkeypatch.context() as patch:
        killed(patch)
        patch.setattr("vlltr_index.store.snapshot.History.append", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rollback(grown, 1)
    assert state(grown) == before
    with grown.transaction("ingest text") as tx:
        assert tx.count("anchors") == 2
    assert state(grown) == before


def test_missing_commits_and_files(grown: Workspace) -> None:
    """A commit that is not there, and one whose head was deleted, are refused before anything is written."""
    with pytest.raises(WorkspaceError, match="there is no commit 9; there are 1 to 5"):
        rollback(grown, 9)
    with grown.transaction("train lgr") as tx:
        tx.set(head="ab" * 32, selection_id=None)
    with grown.transaction("train lgr") as tx:
        tx.set(head=None)
    with pytest.raises(MissingStepError, match="Make it again: vlltr train lgr"):
        rollback(grown, 6)
    with pytest.raises(WorkspaceError) as error:
        rollback(grown, 5, newest=5)
    assert str(error.value) == (
        "commit 7 (train lgr) has come since, and going back would undo it too\n"
        "See what there is: vlltr history; then, if that is meant: vlltr rollback 5"
    )
    assert list(grown.history.ids())[-1] == 7


def test_diff_says_what_changed(grown: Workspace) -> None:
    """Names of classes and numbers of rows, with the commands between."""
    assert report_lines(diff(grown, 3, 5)) == [
        "from commit 3 to commit 5",
        "  ran: vlltr classes add",
        "  ran: vlltr classes remove",
        "  class added: class 2",
        "  class removed: class 0",
        "  sentences: 3 -> 2",
        "  images: 3 -> 2",
        "  anchors: 1 -> 2",
    ]

    with grown.transaction("classes rename") as tx:
        tx.upsert("classes", class_rows([1], name="new"))
    report = diff(grown, 5, 6)
    assert (report.classes_renamed, report.classes_added) == ((("class 1", "new 1"),), ())


def test_the_commands(grown: Workspace) -> None:
    """Going back says how to take it back; history and diff show it."""
    said = run(grown, "rollback", "3", "--yes")
    assert said.startswith(
        "Commit 6 has the state of commit 3 (select). Nothing is lost: vlltr rollback 5 takes"
    )
    assert run(grown, "rollback", "3").startswith("The workspace is in the state of commit 3")
    assert "rollback 3" in run(grown, "history").splitlines()[0]
    assert '"classes_added"' in run(grown, "--json", "diff", "3", "4")
    assert run(grown, "diff", "3", "6").splitlines()[-1] == "  anchors: 1 -> 1"


@pytest.mark.slow
def test_predictions_come_back_byte_for_byte(small: Workspace, pictures: Path) -> None:
    """`predict --json` after changes and a rollback is what it was before, with both ways of retrieval."""
    images = [str(p) for p in sorted(pictures.glob("known-*.png"))[:2]]
    commands = [["--json", "predict", *images, "--retrieval", kind] for kind in ("faiss", "exhaustive")]
    before = [run(small, *command) for command in commands]
    target = max(small.history.ids())
    add_class(small, "zigzag", sentences=("A zigzag of many strokes.", "It looks like a saw."))
    remove_classes(small, [small.snapshot().class_table().names[0]])
    train_lgr_stage(small, small.recipe.lgr.model_copy(update={"seed": 5}))
    assert [run(small, *command) for command in commands] != before
    rollback(small, target)
    assert [run(small, *command) for command in commands] == before
    assert run(small, *commands[0], "--at", str(target)) == before[0]
