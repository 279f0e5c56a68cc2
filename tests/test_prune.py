"""Giving up old commits: what stays answers as before, what goes is named, and an interruption costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tablerows import class_rows, image_rows, sentence_rows, vector_rows
from test_rollback import killed, run, state

from vlltr_index import storage as storage_module
from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.schemas.tables import sentence_vectors, sentence_vectors_name
from vlltr_index.stages import prune as prune_module
from vlltr_index.stages.history import diff, rollback
from vlltr_index.stages.prune import PruneReport, prune
from vlltr_index.stages.train_lgr import train_lgr_stage
from vlltr_index.storage import LocalStorage
from vlltr_index.store import Store
from vlltr_index.workspace import Workspace


def head(workspace: Workspace, text: str) -> str:
    """A head of one file."""

    def build(folder: Path) -> None:
        (folder / "head.json").write_text(text)

    return workspace.put_object("heads", build)


@pytest.fixture
def old(workspace: Workspace) -> Workspace:
    """Six commits, each with its own rows and head; the first two with another encoder's vectors."""
    for number in range(6):
        with workspace.transaction(f"step {number}") as tx:
            fp = "old" if number < 2 else "new"
            tx.upsert("classes", class_rows([number]))
            tx.replace("sentences", sentence_rows(range(number, number + 300)))
            if number in (1, 4):
                tx.upsert("images", image_rows([number], data=b"x" * 1000))
            tx.store.create(sentence_vectors_name(fp), sentence_vectors(3), "text_hash")
            tx.store.append(sentence_vectors_name(fp), vector_rows([f"h{number}"], [[1, 2, 3]]))
            tx.set(head=head(workspace, f"head {number}"), text_fp=fp, image_fp=fp)
            tx.note(baseline_fc=head(workspace, "the baseline"))
    return workspace


def heads(workspace: Workspace) -> set[str]:
    """What the heads that are left say."""
    return {path.read_text() for path in (workspace.path / "heads").glob("*/head.json")}


def test_what_is_kept_reads_as_before(old: Workspace) -> None:
    """Rows and files of the newest commits stay; heads, vectors and versions of the others are gone, and counted."""
    before = {n: state(old, n) for n in range(1, 7)}
    left = old.path / "history" / ".7.99.tmp"
    left.write_text("of a killed writer")
    report = prune(old, 2)
    assert not left.exists()
    assert (report.kept, report.pruned) == ((5, 6), (1, 2, 3, 4))
    assert {n: state(old, n) for n in (5, 6)} == {n: before[n] for n in (5, 6)}
    assert heads(old) == {"head 4", "head 5", "the baseline"}
    assert report.vectors == (sentence_vectors_name("old"),)
    assert len(report.objects) == 4
    assert report.freed["heads"] == 4 * len("head 0")
    assert report.freed["vectors"] > 0
    assert old.store.count(sentence_vectors_name("new")) == 4
    assert set(old.store.tags("classes")) <= {"c5", "c6", "p6"}
    assert report.lines()[0] == "Pruned commits 1 to 4; kept: 5 to 6."
    with pytest.raises(WorkspaceError):
        old.store.count("classes", version=1)


def test_pruned_commits_are_named(old: Workspace) -> None:
    """Reading, going back to and comparing with a pruned commit says so, and which are left."""
    prune(old, 2)
    message = "commit 3 was pruned; kept: 5 to 6"
    for use in (
        old.snapshot,
        lambda n: rollback(old, n),
        lambda n: diff(old, n, 6),
        lambda n: diff(old, 6, n),
    ):
        with pytest.raises(WorkspaceError) as error:
            use(3)
        assert str(error.value) == f"{message}\nSee which commits are left: vlltr history"
    prune(old, 1)
    with pytest.raises(WorkspaceError, match=r"commit 5 was pruned; kept: 6\n"):
        old.snapshot(5)


def test_later_commits_go_on_from_the_merged_tables(old: Workspace) -> None:
    """The next writer puts nothing back, and its commit, rollbacks and more pruning work."""
    before = state(old)
    prune(old, 3)
    version = old.store.version("sentences")
    with old.transaction("more") as tx:
        assert tx.store.version("sentences") == version
        tx.upsert("classes", class_rows([99]))
    rollback(old, 6)
    assert state(old) == before
    rollback(old, 4)
    prune(old, 1)
    assert old.snapshot().table("sentences").num_rows == 300
    assert {99, 5}.isdisjoint(old.snapshot().class_table().ids)
    assert set(old.history.ids()) == set(range(1, 10))


def test_pruning_twice_changes_nothing(old: Workspace) -> None:
    """Nothing is left to do the second time; keeping more than there are gives up none."""
    assert prune(old, 100).pruned == ()
    prune(old, 2)
    again = prune(old, 2)
    assert (again.pruned, again.objects, again.vectors) == ((), (), ())
    assert prune(old, 5).kept == (5, 6)
    assert old.history.ids()[-1] == 6


def test_a_dry_run_removes_nothing(old: Workspace) -> None:
    """It names the same commits and files, and the bytes that do not depend on cleaning tables."""
    before = sorted(p for p in old.path.rglob("*") if p.is_file())
    planned = prune(old, 2, dry_run=True)
    assert sorted(p for p in old.path.rglob("*") if p.is_file()) == before
    done = prune(old, 2)
    assert (planned.pruned, planned.objects, planned.vectors) == (done.pruned, done.objects, done.vectors)
    assert planned.freed["heads"] == done.freed["heads"]
    assert planned.lines()[0] == "Would prune commits 1 to 4; kept: 5 to 6."


def test_an_empty_workspace_and_a_silly_number(workspace: Workspace) -> None:
    """There is nothing to prune, and the newest commit always stays."""
    assert prune(workspace, 3).lines()[0] == "Pruned no commit; kept: none."
    with pytest.raises(UsageError) as error:
        prune(workspace, 0)
    assert error.value.message == "at least the newest commit stays: --keep takes 1 or more, got 0"


def test_a_damaged_note_of_what_was_pruned(old: Workspace) -> None:
    """It is named with the way out."""
    prune(old, 2)
    path = old.path / "history" / "pruned.json"
    path.write_text("{")
    with pytest.raises(WorkspaceError) as error:
        old.snapshot(6)
    assert error.value.hint == f"Delete it, then prune again: rm {path}; vlltr prune --keep N"
    path.unlink()
    with pytest.raises(WorkspaceError):
        state(old, 1)
    prune(old, 2)
    assert json.loads(path.read_text()) == {"oldest": 5}


STOPS: list[tuple[Any, str, int]] = [
    (prune_module, "_clean_tables", 0),  # after the note of what is pruned
    (Store, "drop", 0),
    (Store, "untag", 0),
    (Store, "optimize", 0),
    (Store, "tag", 0),  # merged, and not yet tagged
    (Store, "clean", 0),
    (Store, "clean", 2),
    (LocalStorage, "remove", 0),
    (LocalStorage, "remove", 2),
    (storage_module.shutil, "rmtree", 0),  # out of sight, and not yet removed
]


def _stop_at(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = iter(range(number))

    def stopping(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return call(*arguments, **options)

    return stopping


@pytest.mark.parametrize(("owner", "name", "number"), STOPS)
def test_killed_in_the_middle(
    old: Workspace, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    """Wherever it is killed, the kept commits read and write as before, and running it again finishes the work."""
    before = {n: state(old, n) for n in (5, 6)}
    with monkeypatch.context() as patch:
        killed(patch)
        patch.setattr(owner, name, _stop_at(getattr(owner, name), number))
        with pytest.raises(KeyboardInterrupt):
            prune(old, 2)
    again = Workspace.open(old.path)
    assert {n: state(again, n) for n in (5, 6)} == before
    assert {"head 4", "head 5", "the baseline"} <= heads(again)
    prune(again, 2)
    assert {n: state(again, n) for n in (5, 6)} == before
    assert heads(again) == {"head 4", "head 5", "the baseline"}
    assert not list(again.path.glob("*/.tmp-*"))
    with again.transaction("more") as tx:
        tx.upsert("classes", class_rows([50]))
    assert {n: state(again, n) for n in (5, 6)} == before


def test_the_command(old: Workspace) -> None:
    """It shows what would go and asks; history marks what went."""
    assert run(old, "prune", "--keep", "2", answer="n\n", code=1) == ""
    assert "Would prune commits 1 to 4" in run(old, "prune", "--keep", "2", "--dry-run")
    assert len(heads(old)) == 7
    assert run(old, "prune", "--keep", "2", "--yes").startswith("Pruned commits 1 to 4; kept: 5 to 6.")
    lines = run(old, "history").splitlines()
    assert [line.endswith("(pruned)") for line in lines] == [False, False, True, True, True, True]
    marks = [entry["pruned"] for entry in json.loads(run(old, "--json", "history"))]
    assert marks == [False, False, True, True, True, True]


def test_sizes_in_words() -> None:
    """Bytes, and units of a thousand."""
    freed = {"tables": 1_234_567, "heads": 999, "index": 0, "vectors": 3_000_000_000_000}
    report = PruneReport((5,), (1, 2), (), (), freed)
    assert report.lines() == [
        "Pruned commits 1 to 2; kept: 5.",
        "Freed 3,000.0 GB (tables 1.2 MB, heads 999 bytes, vectors 3,000.0 GB).",
    ]


def test_merging_that_takes_more_than_was_freed() -> None:
    """No amount below nothing: what grew is said beside what was freed, or instead of it."""
    grown = "the tables were merged, and take 937.5 kB more until commit 5 is pruned."
    report = PruneReport((4, 5), (), (), (), {"tables": -937_500, "vectors": 250_300})
    assert report.lines()[1] == f"Freed 250.3 kB (vectors 250.3 kB); {grown}"
    report = PruneReport((4, 5), (), (), (), {"tables": -937_500, "vectors": 0})
    assert report.lines()[1] == f"Nothing to free; {grown}"
    assert PruneReport((5,), (), (), (), {"tables": 0}).lines()[1] == "Freed 0 bytes."


def test_the_merged_files_replace_the_old_ones(old: Workspace) -> None:
    """Once the newest commit is pruned in its turn, its own files go, and only the merged ones stay."""
    prune(old, 1)
    before = prune_module._sizes(old)["tables"]
    with old.transaction("more") as tx:
        tx.upsert("classes", class_rows([99]))
    report = prune(old, 1)
    assert report.freed["tables"] > 0
    assert prune_module._sizes(old)["tables"] < before


def test_lancedbs_refusals_are_not_shown(old: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """What it says of tagged versions is for the log of details; in plain words where old versions stay."""

    def refuse(**options: object) -> None:
        raise RuntimeError('Cleanup error: 1 tagged version(s) have been marked for cleanup: {"c12": 6}')

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return refuse if name == "optimize" else getattr(table, name)

    table = old.store._open("classes")
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "optimize", lambda store, name: True)
        patch.setattr(Store, "_open", lambda store, name, version=None: Refusing())
        assert not old.store.clean("classes")
    assert [record.getMessage() for record in caplog.records] == [
        "table classes: its old versions could not be removed now; the next prune will try again"
    ]


def test_predictions_of_kept_commits_stay_byte_for_byte(trained: Workspace, pictures: Path) -> None:
    """`predict --json` of every kept commit, and of one gone back to, is what it was before pruning."""
    first = max(trained.history.ids())
    train_lgr_stage(trained, trained.recipe.lgr.model_copy(update={"seed": 7}))
    command = ["--json", "predict", str(pictures / "known-0.png")]
    before = [run(trained, *command, "--at", str(n)) for n in (first, first + 1)]
    assert before[0] != before[1]
    prune(trained, 2)
    assert [run(trained, *command, "--at", str(n)) for n in (first, first + 1)] == before
    rollback(trained, first)
    assert run(trained, *command) == before[0]
    prune(trained, 1)
    assert run(trained, *command) == before[0]
