"""What LanceDB leaves to the operating system: what is synced before a commit, and what a power cut may leave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tablerows import class_rows, sentence_rows, vector_rows
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.history import prune
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.tables import sentence_vectors
from vlltr_index.store.durability import is_whole, keep, kept
from vlltr_index.store.tables import Store
from vlltr_index.store.workspace import Workspace

VECTORS = "sentence_vectors_t"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were synced, and the names that were linked or renamed, in order."""
    done: list[str] = []
    link, replace, fsync = os.link, os.replace, os.fsync

    def told_fsync(handle: int) -> None:
        fsync(handle)
        done.append(os.readlink(f"/proc/self/fd/{handle}"))

    def told_link(source: Path, target: Path) -> None:
        link(source, target)
        done.append(f"named {target}")

    def told_replace(source: Path, target: Path) -> None:
        replace(source, target)
        done.append(f"named {target}")

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(os, "link", told_link)
    monkeypatch.setattr(os, "replace", told_replace)
    return done


def files(folder: Path) -> set[str]:
    """Everything in a folder, and it itself."""
    return {str(path) for path in (folder, *folder.rglob("*"))}


def write(workspace: Workspace, number: int) -> None:
    """A commit that adds a class."""
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([number]))


def test_what_a_command_wrote_is_synced_before_its_commit(workspace: Workspace, synced: list[str]) -> None:
    """Every file and folder of the tables, and the entry of their folder; then the commit gets its name."""
    write(workspace, 0)
    before = synced[: synced.index(f"named {workspace.path / 'history' / '1.json'}")]
    assert files(workspace.path / "lance") | {str(workspace.path)} <= set(before)


def test_only_what_was_written_is_synced(
    workspace: Workspace, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later command syncs its own files, not those of the commits before."""
    monkeypatch.setattr("vlltr_index.store.durability._COARSE", 0)
    write(workspace, 0)
    old = {path for path in files(workspace.path / "lance") if Path(path).is_file()}
    synced.clear()
    write(workspace, 1)
    new = {path for path in files(workspace.path / "lance") if Path(path).is_file()} - old
    assert new <= set(synced)
    hint = str(workspace.path / "lance" / "classes.lance" / "_versions" / "latest_version_hint.json")
    assert not (old - {hint}) & set(synced)


def test_what_an_earlier_command_left_is_synced_too(
    workspace: Workspace, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning makes no commit, but later ones rest on what it merged; a clock that was set back hides nothing."""
    for number in range(2):
        write(workspace, number)
    prune(workspace, 1)
    left = {path for path in files(workspace.path / "lance" / "classes.lance") if Path(path).is_file()}
    commit = workspace.path / "history" / "2.json"
    synced.clear()
    with workspace.transaction("ingest") as tx:
        tx.upsert("sentences", sentence_rows([0]))
    merged = {path for path in left if os.stat(path).st_ctime_ns > commit.stat().st_mtime_ns}
    assert merged
    assert merged <= set(synced)
    future = time.time_ns() + 10**15
    os.utime(workspace.path / "history" / "3.json", ns=(future, future))
    synced.clear()
    write(workspace, 7)
    assert left - set(synced) <= {path for path in left if not Path(path).exists()}


def test_vectors_are_durable_when_they_are_there(workspace: Workspace, synced: list[str]) -> None:
    """Each write is synced, and its version listed, before the method returns."""
    store = workspace.store
    store.create(VECTORS, sentence_vectors(3), "text_hash")
    lance = workspace.path / "lance"
    for number in range(2):
        synced.clear()
        store.append(VECTORS, vector_rows([f"h{number}"], [[1, 2, 3]]))
        before = synced[: synced.index(f"named {lance / 'synced.json'}")]
        assert {path for path in before if ".lance/data/" in path}
        assert kept(lance) == {VECTORS: store.version(VECTORS)}
    store.drop(VECTORS)
    assert kept(lance) == {}


def newest(workspace: Workspace, name: str) -> Path:
    """The newest manifest of a table."""
    return min((workspace.path / "lance" / f"{name}.lance" / "_versions").glob("*.manifest"))


CUTS: list[Callable[[bytes], bytes]] = [
    lambda _: b"",
    lambda whole: bytes(len(whole)),
    lambda whole: whole[: len(whole) // 2],
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_manifest_that_lost_its_bytes(workspace: Workspace, cut: Callable[[bytes], bytes]) -> None:
    """One that no commit names is removed when the workspace is opened: LanceDB would open the table at no version."""
    write(workspace, 0)
    store = workspace.store
    store.append("classes", class_rows([1]))
    store.tag("classes", store.version("classes"), "c2")
    tag = workspace.path / "lance" / "classes.lance" / "_refs" / "tags" / "c2.json"
    manifest = newest(workspace, "classes")
    manifest.write_bytes(cut(manifest.read_bytes()))
    tag.write_bytes(cut(tag.read_bytes()))
    again = Workspace.open(workspace.path)
    assert not manifest.exists()
    assert again.snapshot().class_table().ids == (0,)
    write(again, 2)
    assert again.snapshot().class_table().ids == (0, 2)


def test_a_tag_that_lost_its_bytes(workspace: Workspace) -> None:
    """The next writer removes one of a commit that was not made, and puts the table back."""
    write(workspace, 0)
    workspace.store.append("classes", class_rows([1]))
    tags = workspace.path / "lance" / "classes.lance" / "_refs" / "tags"
    (tags / "c2.json").write_bytes(b"")
    write(workspace, 2)
    assert workspace.snapshot().class_table().ids == (0, 2)
    assert set(workspace.store.tags("classes")) >= {"c1", "c2"}


def test_a_committed_manifest_is_left_alone(workspace: Workspace) -> None:
    """It is damage, and named: only a backup helps."""
    write(workspace, 0)
    newest(workspace, "classes").write_bytes(b"")
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* cannot be opened"):
        Workspace.open(workspace.path).snapshot().count("classes")
    assert newest(workspace, "classes").exists()


def test_vectors_that_were_not_durable(workspace: Workspace) -> None:
    """What is newer than the list says may be anything, so it is removed, and made again by the next command."""
    lance, store = workspace.path / "lance", workspace.store
    store.create(VECTORS, sentence_vectors(3), "text_hash")
    store.append(VECTORS, vector_rows(["h0"], [[1, 2, 3]]))
    listed = (lance / "synced.json").read_bytes()
    store.append(VECTORS, vector_rows(["h1"], [[1, 2, 3]]))
    (lance / "synced.json").write_bytes(listed)  # as if the power had gone in between
    assert not is_whole(lance)
    again = Workspace.open(workspace.path)
    assert is_whole(lance)
    assert again.store.keys(VECTORS, "text_hash") == {"h0"}
    again.store.append(VECTORS, vector_rows(["h1"], [[1, 2, 3]]))
    assert again.store.keys(VECTORS, "text_hash") == {"h0", "h1"}


def test_vectors_from_before_there_was_a_list(workspace: Workspace) -> None:
    """They are taken as they are, and listed with the next write."""
    lance, store = workspace.path / "lance", workspace.store
    store.create(VECTORS, sentence_vectors(3), "text_hash")
    store.append(VECTORS, vector_rows(["h0"], [[1, 2, 3]]))
    (lance / "synced.json").unlink()
    again = Workspace.open(workspace.path).store
    assert again.count(VECTORS) == 1
    again.append(VECTORS, vector_rows(["h1"], [[1, 2, 3]]))
    assert json.loads((lance / "synced.json").read_text()) == {VECTORS: again.version(VECTORS)}


def test_nothing_is_removed_while_another_writes(workspace: Workspace) -> None:
    """Its newest versions are not listed yet; who opens the workspace meanwhile neither waits nor touches them."""
    write(workspace, 0)
    lance = workspace.path / "lance"
    with workspace.transaction("embed") as tx:
        tx.store.create(VECTORS, sentence_vectors(3), "text_hash")
        version = tx.store.version(VECTORS)
        keep(lance, VECTORS, version - 1)
        Workspace.open(workspace.path)
        assert tx.store.version(VECTORS) == version


def test_tables_elsewhere_are_not_synced(tmp_path: Path, synced: list[str]) -> None:
    """LanceDB's own addresses, such as memory, have no folder."""
    del tmp_path
    store = Store("memory://")
    store.create("t", sentence_vectors(3))
    store.append("t", vector_rows(["h0"], [[1, 2, 3]]))
    assert store.count("t") == 1
    assert synced == []


def test_a_new_workspace_is_durable(tmp_path: Path, synced: list[str]) -> None:
    """Its folder's entry too."""
    Workspace.create(tmp_path / "a" / "b", Recipe(name="test"))
    folders = {str(tmp_path / path) for path in (".", "a", "a/b", "a/b/history")}
    assert {os.path.normpath(path) for path in folders} <= set(synced)
