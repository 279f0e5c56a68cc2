"""Giving up old commits: what stays answers as before, what goes is gone, and an interruption costs nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.commits import killed, run, state
from tests.support.killed import around
from tests.support.objects import put
from tests.support.tablerows import class_rows, image_rows, sentence_rows, vector_rows
from vlltr_index.cli.render import report_lines
from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.pipelines.history import diff, prune, rollback
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.tables import sentence_vectors, sentence_vectors_name
from vlltr_index.store.snapshot import History
from vlltr_index.store.storage import Storage
from vlltr_index.store.tables import Store
from vlltr_index.store.workspace import Workspace


def head(workspace: Workspace, text: str) -> str:
    """A head of one file."""
    return put(workspace, "heads", lambda folder: (folder / "head.json").write_text(text))


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
    """Rows and files of the newest commits stay; commits, heads, vectors and tags of the others are gone."""
    before = {n: state(old, n) for n in (5, 6)}
    report = prune(old, 2)
    assert (report.kept, report.pruned) == ((5, 6), (1, 2, 3, 4))
    assert {n: state(old, n) for n in (5, 6)} == before
    assert heads(old) == {"head 4", "head 5", "the baseline"}
    assert report.removed[0] == sentence_vectors_name("old")
    assert len(report.removed) == 5
    assert old.store.count(sentence_vectors_name("new")) == 4
    assert set(old.store.tags("classes")) == {"c5", "c6", "p6"}
    assert report_lines(report)[0] == "Gave up 4 commits; kept: 5, 6."
    for use in (old.snapshot, lambda n: rollback(old, n), lambda n: diff(old, n, 6)):
        with pytest.raises(WorkspaceError, match="there is no commit 3; there are 5 to 6"):
            use(3)


def test_old_versions_are_cleaned_away(old: Workspace) -> None:
    """The bytes of versions that no kept commit needs are freed."""

    def size() -> int:
        return sum(p.stat().st_size for p in (old.path / "lance" / "images.lance").rglob("*") if p.is_file())

    with old.transaction("more") as tx:
        tx.delete("images", "true")
    before = size()
    prune(old, 1)
    assert size() < before
    with pytest.raises(WorkspaceError):
        old.store.count("images", version=1)


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
    assert list(old.history.ids()) == [9]


STOPS: list[tuple[Any, str, int]] = [
    (Storage, "remove", 2),
    (Store, "tag", 0),  # merged, and not yet tagged
    (History, "remove", 1),
]


@pytest.mark.parametrize(("owner", "name", "number"), STOPS)
def test_killed_in_the_middle(
    old: Workspace, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int
) -> None:
    """Wherever it is killed, the kept commits read and write as before, and running it again finishes the work."""
    before, call, calls = {n: state(old, n) for n in (5, 6)}, getattr(owner, name), iter(range(number))

    def stopping(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return call(*arguments, **options)

    with monkeypatch.context() as patch:
        killed(patch)
        patch.setattr(owner, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            prune(old, 2)
    again = Workspace.open(old.path)
    assert {n: state(again, n) for n in (5, 6)} == before
    assert {"head 4", "head 5", "the baseline"} <= heads(again)
    prune(again, 2)
    third = prune(again, 2)
    assert (third.pruned, third.removed, third.kept) == ((), (), (5, 6))
    assert heads(again) == {"head 4", "head 5", "the baseline"}
    assert not list(again.path.glob("*/.tmp-*"))
    with again.transaction("more") as tx:
        tx.upsert("classes", class_rows([50]))
    assert {n: state(again, n) for n in (5, 6)} == before


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of which a prune has much to remove: rows that came and went, and another encoder's vectors."""
    workspace = Workspace.create(tmp_path_factory.mktemp("bare") / "workspace", Recipe(name="test"))
    for number in range(4):
        with workspace.transaction(f"step {number}") as tx:
            fp = "old" if number < 2 else "new"
            tx.upsert("images", image_rows([number], data=b"x" * 100_000))
            tx.delete("images", f"image_id = 'train{number - 1}'")
            tx.store.create(sentence_vectors_name(fp), sentence_vectors(3), "text_hash")
            tx.store.append(sentence_vectors_name(fp), vector_rows([f"h{number}"], [[1, 2, 3]]))
            tx.set(head=head(workspace, f"head {number}"), text_fp=fp, image_fp=fp)
    return workspace.path


def sizes(path: Path) -> dict[str, int]:
    """Units of 10,000 bytes in each folder of a workspace, and in each table."""
    found: dict[str, int] = {}
    for file in (p for p in path.rglob("*") if p.is_file()):
        part = "/".join(file.relative_to(path).parts[:2])
        found[part] = found.get(part, 0) + file.stat().st_size
    return {part: round(size / 10_000) for part, size in found.items()}


MOMENTS = [(Store, n) for n in ("drop", "untag", "optimize", "clean", "tag")] + [
    (owner, n)
    for owner, names in ((Storage, ["remove"]), (History, ["remove"]), (os, ["rename", "unlink"]))
    for n in names
]


def stopped_prune(path: Path, moment: int) -> bool:
    """Prune, and stop as a kill would, before or after a chosen one of the steps; whether it came so far."""
    left = iter(range(moment, -1, -1))

    def reach() -> None:
        if next(left, 0) == 0:  # what runs on the way out is not run after a kill
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        killed(patch)
        for owner, name in MOMENTS:
            patch.setattr(owner, name, around(getattr(owner, name), reach))
        try:
            prune(Workspace.open(path), 2)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.slow
def test_as_much_is_reclaimed_after_a_kill(bare: Path, tmp_path: Path) -> None:
    """At any moment, of a prune or of a command before: what stays in the end is what one without kills leaves."""
    plain = Workspace.open(shutil.copytree(bare, tmp_path / "plain"))
    before = sizes(plain.path)
    prune(plain, 2)
    expected, moment = sizes(plain.path), 0
    assert expected["lance/images.lance"] < before["lance/images.lance"] - 15
    while True:
        path = shutil.copytree(bare, tmp_path / "killed")
        if not stopped_prune(path, moment):
            break
        prune(Workspace.open(path), 2)
        assert sizes(path) == expected, moment
        shutil.rmtree(path)
        moment += 3  # before one step, after another
    assert moment > 60


def test_what_a_killed_command_wrote_is_reclaimed(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that no commit has, though they came after the oldest one that is kept; and half of a table of vectors."""
    path = shutil.copytree(bare, tmp_path / "killed")
    expected = sizes(Path(shutil.copytree(bare, tmp_path / "plain")))

    def interrupted() -> None:
        with Workspace.open(path).transaction("more") as tx:
            tx.upsert("images", image_rows([50], data=b"y" * 500_000))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        killed(patch)
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    shutil.rmtree(path / "lance" / f"{sentence_vectors_name('old')}.lance" / "_versions")
    assert sizes(path)["lance/images.lance"] > expected["lance/images.lance"] + 40
    for one in (tmp_path / "plain", path):
        prune(Workspace.open(one), 2)
    assert sizes(path) == sizes(tmp_path / "plain")


def test_the_command(old: Workspace) -> None:
    """It says how many would go, and asks."""
    assert run(old, "prune", "--keep", "2", answer="n\n", code=1) == ""
    assert len(heads(old)) == 7
    assert run(old, "prune", "--keep", "2", "--yes").startswith("Gave up 4 commits; kept: 5, 6.")
    assert len(run(old, "history").splitlines()) == 2
    with pytest.raises(UsageError, match="at least the newest commit stays: --keep takes 1 or more, got 0"):
        prune(old, 0)


def test_what_killed_writers_left_goes(old: Workspace) -> None:
    """LanceDB's own unfinished files, which its cleaning leaves."""
    folder = old.path / "lance" / "classes.lance"
    left = [folder / "_transactions" / ".tmpa1B2c3", folder / "_versions" / "18446744073709551600.manifest#1"]
    for path in left:
        path.write_bytes(b"half")
    prune(old, 2)
    assert not any(path.exists() for path in left)
    assert old.snapshot().count("classes") == 6
