"""A workspace's files in a folder and in object storage: the same tests for both."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.commits import commit
from tests.support.objects import put
from tests.support.tablerows import class_rows
from tests.support.writers import STEPS, add_anchors, write_in_steps
from vlltr_index.cli.render import report_lines
from vlltr_index.errors import LockedError, MissingStepError, WorkspaceError
from vlltr_index.pipelines.history import diff, prune, rollback
from vlltr_index.schemas.config import FORMAT, EncoderConfig, Recipe
from vlltr_index.store.snapshot import History
from vlltr_index.store.storage import Storage, storage_at
from vlltr_index.store.workspace import Workspace

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["folder", pytest.param("object storage", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a workspace."""
    return str(tmp_path / "w") if request.param == "folder" else request.getfixturevalue("bucket").address()


@pytest.fixture
def storage(address: str) -> Storage:
    """An empty place."""
    return storage_at(address)


def test_files_come_back(storage: Storage) -> None:
    """Names and contents; a file is written over, or once, as one asks."""
    assert list(storage.names("history")) == []
    storage.write("reports/a/b.json", b"1")
    storage.write("reports/a/b.json", b"two")
    storage.write("reports/c.json", b"four", new=True)
    with pytest.raises(FileExistsError):
        storage.write("reports/c.json", b"five", new=True)
    assert [storage.read(f"reports/{name}") for name in ("a/b.json", "c.json")] == [b"two", b"four"]
    assert sorted(storage.names("reports")) == ["a/b.json", "c.json"]
    assert sorted(storage.names()) == ["reports/a/b.json", "reports/c.json"]
    assert [storage.exists(f"reports/{name}") for name in ("c.json", "d.json", "a")] == [True, False, False]
    with pytest.raises(FileNotFoundError):
        storage.read("reports/d.json")
    storage.remove("reports/c.json")
    assert list(storage.names("reports")) == ["a/b.json"]
    storage.remove("reports")
    assert list(storage.names()) == []


def test_the_lock_is_one_writers(storage: Storage) -> None:
    """The holder is named while it holds, to who asks and to who comes second, and nobody afterwards."""
    refused: list[LockedError] = []

    def second() -> None:
        with pytest.raises(LockedError) as error, storage.lock("select", timeout=0):
            pass
        refused.append(error.value)

    assert storage.writer() is None
    storage.root.mkdir(exist_ok=True)
    for _ in range(2):
        with storage.lock("embed", timeout=0):
            holder = f"`vlltr embed` (process {os.getpid()} on {socket.gethostname()}, since 20"
            assert str(storage.writer()).startswith(holder)
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert storage.writer() is None
    assert len(refused) == 2
    assert refused[0].message.startswith(holder)
    assert refused[0].message.endswith(f") is writing to {storage.address}")


def test_commits_are_taken_once(storage: Storage) -> None:
    """Where two writers looked before either wrote, the storage decides; a reader sees that there is more."""
    history = History(storage)
    history.begin()
    assert history.last().id == 0
    history.append(commit(1))
    assert (history.newer_than(0), history.newer_than(1)) == (True, False)
    history.append(commit(2))
    assert history.newer_than(1)
    with pytest.raises(WorkspaceError, match="commit 2 exists already: another writer was here"):
        history.append(commit(2, "loser"))
    assert [c.command for c in history.list()] == ["embed", "embed"]


def test_making_and_opening(address: str) -> None:
    """A place is made once, with one recipe; what is no workspace, or of another format, is named."""
    made = Workspace.create(address, Recipe(name="test", encoder=EncoderConfig(model="RN50")))
    assert Workspace.create(address, made.recipe).recipe == Workspace.open(address).recipe == made.recipe
    assert (made.address, str(Workspace.find(address).address)) == (address, address)
    with made.transaction("a commit") as tx:
        tx.set(text_fp="t")
    with pytest.raises(WorkspaceError) as error:
        Workspace.create(address, Recipe(name="test", encoder=EncoderConfig(model="RN101")))
    assert str(error.value) == (
        f"{address} is a workspace already, with encoder.model 'RN50', not 'RN101'\n"
        f"Choose another folder (vlltr init DIR, vlltr fit --to DIR), or edit {address}/vlltr.toml; "
        "vectors of another encoder are then made by: vlltr embed --force"
    )
    with pytest.raises(WorkspaceError) as error:
        Workspace.open(f"{address}/none")
    assert str(error.value) == (
        f"{address}/none is not a workspace: it has no vlltr.toml\nMake one: vlltr init {address}/none"
    )
    made.storage.write("vlltr.toml", f"format = {FORMAT + 1}\n".encode())
    with pytest.raises(
        WorkspaceError, match=f"{address}/vlltr.toml has format {FORMAT + 1}, but this vlltr-index"
    ):
        Workspace.open(address)
    made.storage.write("other/notes.txt", b"mine")
    with pytest.raises(WorkspaceError) as error:
        Workspace.create(f"{address}/other", Recipe(name="test"))
    assert str(error.value) == (
        f"{address}/other is not empty and not a workspace\nChoose a new one: vlltr init DIR"
    )


@pytest.mark.slow
def test_commits_rollback_and_prune(address: str) -> None:
    """What fails leaves nothing; going back and giving up work as they do in a folder."""
    workspace = Workspace.create(address, Recipe(name="test"))
    digests = []
    for number in range(3):
        with workspace.transaction(f"step {number}") as tx:
            tx.upsert("classes", class_rows([number]))

            def build(folder: Path, content: int = number) -> None:
                (folder / "sub").mkdir()
                (folder / "sub" / "a b.bin").write_bytes(bytes([content]) * 100)

            digests.append(put(workspace, "heads", build))
            tx.set(head=digests[-1])
    with pytest.raises(KeyError), workspace.transaction("broken") as tx:  # noqa: PT012 - as it happens
        tx.upsert("classes", class_rows([7]))
        raise KeyError
    other = Workspace.open(address)
    assert other.snapshot().count("classes") == 3
    assert other.store.count("classes") == 3
    assert report_lines(diff(other, 1, 3))[:3] == [
        "from commit 1 to commit 3",
        "  ran: vlltr step 1",
        "  ran: vlltr step 2",
    ]
    assert rollback(other, 1).commit == 4
    assert (workspace.snapshot().count("classes"), workspace.snapshot(3).count("classes")) == (1, 3)
    report = prune(workspace, 1)
    assert (report.kept, report.removed) == ((4,), tuple(sorted(f"heads/{d[:16]}" for d in digests[1:])))
    assert Workspace.open(address).snapshot().count("classes") == 1
    assert workspace.objects.file("heads", digests[0], "sub/a b.bin") == bytes(100)
    with pytest.raises(MissingStepError) as error:
        workspace.objects.path("heads", digests[1])
    assert str(error.value) == (
        f"{address}/heads/{digests[1][:16]} is gone: the workspace's newest commits need it\n"
        "Make it again: vlltr train lgr"
    )


@pytest.mark.slow
def test_two_writers_lose_nothing(address: str) -> None:
    """Two processes that write at once both succeed: no row lost, no number twice, one commit each time."""
    Workspace.create(address, Recipe(name="test"))
    rounds, size = (1 if "://" in address else 2), 5
    start = SPAWN.Barrier(2)
    writers = [SPAWN.Process(target=add_anchors, args=(address, start, rounds, size)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    workspace = Workspace.open(address)
    assert list(workspace.history.ids()) == list(range(1, 2 * rounds + 1))
    counts = [workspace.snapshot(i).count("anchors") for i in workspace.history.ids()]
    assert counts == [size * (n + 1) for n in range(2 * rounds)]
    keys = workspace.snapshot().table("anchors")["anchor_key"].to_pylist()
    assert sorted(keys) == list(range(2 * rounds * size))


PLACES = [
    *(("folder", step) for step in STEPS),
    # an object is there whole or not at all
    *(("object storage", step) for step in STEPS if step != "commit written beside"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("address", "step"), PLACES, indirect=["address"])
def test_a_killed_writer_leaves_the_last_commit_or_its_own(
    address: str, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL at every moment: readers see a whole commit, and the next writer finds nothing half done.

    A folder's lock goes with its holder; one in object storage is cleared by hand.
    """
    is_remote = "://" in address
    workspace = Workspace.create(address, Recipe(name="test"))
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([0, 1]))
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=write_in_steps, args=(address, theirs))
    process.start()
    while (said := ours.recv()) != step:
        ours.send("go on")
    assert said == step
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if is_remote:
        with pytest.raises(LockedError) as error, workspace.transaction("status"):
            pass
        assert error.value.message.startswith(f"`vlltr ingest` (process {process.pid} on ")
        assert str(error.value.hint).endswith(f"clear its lock: vlltr -w {address} doctor --unlock")
        code, out, _ = run(capsys, "-w", address, "doctor", "--unlock")
        assert (code, out.startswith("Cleared the lock of `vlltr ingest` (process ")) == (0, True)
    assert workspace.storage.writer() is None
    done = step == "commit published"
    for _ in range(2):
        snapshot = Workspace.open(address).snapshot()
        names = snapshot.table("classes").sort_by("class_id")["name"].to_pylist()
        assert names == (["changed 0", "changed 7"] if done else ["class 0", "class 1"])
        assert snapshot.count("sentences") == (5 if done else 0)
        with workspace.transaction("status", timeout=0) as tx:  # puts back what was left
            assert tx.table("classes").equals(snapshot.table("classes"))
    assert len(workspace.history.ids()) == 1 + done
    tagged = step in STEPS[2:]  # then a commit may name the new table: it is emptied, not dropped
    assert workspace.store.names() == (["classes", "sentences"] if tagged else ["classes"])
    assert not [*workspace.path.glob("heads/.tmp-*"), *workspace.path.glob("history/.*")]
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([3]))
    assert tx.result_commit.id == 2 + done
