"""A workspace's files in a folder and in object storage: the same tests for both."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from buckets import Bucket
from tablerows import class_rows, sentence_rows
from writers import STEPS, add_anchors, write_in_steps

from vlltr_index.errors import LockedError, MissingStepError, WorkspaceError
from vlltr_index.history import Commit, History
from vlltr_index.schemas.config import FORMAT, EncoderConfig, Recipe
from vlltr_index.stages.history import diff, rollback
from vlltr_index.stages.prune import prune
from vlltr_index.storage import Storage, storage_at
from vlltr_index.workspace import Workspace

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["folder", "object storage"])
def address(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> str:
    """A place for a workspace."""
    return str(tmp_path / "w") if request.param == "folder" else bucket.address()


@pytest.fixture
def storage(address: str) -> Storage:
    """An empty place."""
    made = storage_at(address)
    made.prepare("vlltr.toml")
    return made


def commit(number: int, command: str = "embed") -> Commit:
    """Commit `number` of a straight line."""
    facts = {"command": command, "created_at": "2026-01-01", "program_version": "0", "tables": {}}
    return Commit.model_validate({"id": number, "parent": number - 1 or None, **facts})


def test_files_come_back(storage: Storage) -> None:
    """Names, sizes and contents; a file is written over, or once, as one asks."""
    assert (list(storage.files("history")), list(storage.folders("heads")), storage.size("")) == ([], [], 0)
    storage.write("reports/a/b.json", b"1")
    storage.write("reports/a/b.json", b"two")
    storage.create("reports/c.json", b"four")
    with pytest.raises(FileExistsError):
        storage.create("reports/c.json", b"five")
    assert (storage.read("reports/a/b.json"), storage.read("reports/c.json")) == (b"two", b"four")
    assert (list(storage.files("reports")), list(storage.folders("reports"))) == (["c.json"], ["a"])
    assert [storage.exists(name) for name in ("reports/c.json", "reports", "reports/d.json")] == [
        True,
        False,
        False,
    ]
    assert [storage.has_folder(name) for name in ("reports", "report", "heads")] == [True, False, False]
    assert storage.size("reports") == 7
    assert storage.at("reports/c.json") == f"{storage.address}/reports/c.json"
    with pytest.raises(FileNotFoundError):
        storage.read("reports/d.json")
    storage.remove("reports")
    assert not storage.has_folder("reports")
    storage.try_write()
    assert storage.size("") == 0


def test_the_lock_is_one_writers(storage: Storage) -> None:
    """The holder is named while it holds, and nobody afterwards."""
    assert storage.writer() is None
    with storage.lock("embed", timeout=0) as still_held:
        still_held()
        assert str(storage.writer()).startswith(f"`vlltr embed` (process {os.getpid()}")
    assert storage.writer() is None


def test_commits_are_taken_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two writers looked before either wrote, the storage decides; a reader sees that there is more."""
    history = History(storage)
    assert history.last() is None
    history.append(commit(1))
    assert (history.newer_than(0), history.newer_than(1)) == (True, False)
    history.append(commit(2))
    assert history.newer_than(1)
    with monkeypatch.context() as patch:
        patch.setattr(History, "ids", lambda self: [1])
        with pytest.raises(WorkspaceError, match="commit 2 exists already: another writer was here"):
            history.append(commit(2, "loser"))
    assert [c.command for c in history.list()] == ["embed", "embed"]
    history.mark_pruned(2)
    with pytest.raises(WorkspaceError, match="commit 1 was pruned; kept: 2"):
        history.read_kept(1)
    storage.write("history/2.json", b"{")
    with pytest.raises(WorkspaceError) as error:
        history.last()
    assert error.value.message.startswith(f"{storage.address}/history/2.json is damaged: ")
    command = "aws s3 rm" if "://" in storage.address else "rm"
    assert str(error.value.hint).endswith(f"delete it: {command} {storage.address}/history/2.json")


def test_making_and_opening(address: str) -> None:
    """A place is made once, with one recipe; what is no workspace, or a newer one, is named."""
    made = Workspace.create(address, Recipe(name="test", encoder=EncoderConfig(model="RN50")))
    assert Workspace.create(address, made.recipe).recipe == Workspace.open(address).recipe == made.recipe
    assert (made.address, str(Workspace.find(address).address)) == (address, address)
    with pytest.raises(WorkspaceError) as error:
        Workspace.create(address, Recipe(name="other"))
    assert str(error.value) == (
        f"{address} is a workspace already, of recipe 'test' or with other values\n"
        f"Edit {address}/vlltr.toml, or choose another folder."
    )
    with pytest.raises(WorkspaceError) as error:
        Workspace.open(f"{address}/none")
    assert str(error.value) == (
        f"{address}/none is not a workspace: it has no vlltr.toml\nMake one: vlltr init {address}/none"
    )
    made.storage.write("vlltr.toml", f"format = {FORMAT + 1}\n".encode())
    with pytest.raises(WorkspaceError, match=f"{address}/vlltr.toml has format {FORMAT + 1}"):
        Workspace.open(address)
    made.storage.write("other/notes.txt", b"mine")
    with pytest.raises(WorkspaceError, match=f"{address}/other is not empty and not a workspace"):
        Workspace.create(f"{address}/other", Recipe(name="test"))


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

            digests.append(workspace.put_object("heads", build))
            tx.set(head=digests[-1])
    with pytest.raises(KeyError), workspace.transaction("broken") as tx:  # noqa: PT012 - as it happens
        tx.upsert("classes", class_rows([7]))
        raise KeyError
    other = Workspace.open(address)
    assert other.snapshot().count("classes") == 3
    assert other.store.count("classes") == 3
    assert diff(other, 1, 3).lines()[:3] == [
        "from commit 1 to commit 3",
        "  ran: vlltr step 1",
        "  ran: vlltr step 2",
    ]
    assert rollback(other, 1).commit == 4
    assert (workspace.snapshot().count("classes"), workspace.snapshot(3).count("classes")) == (1, 3)
    report = prune(workspace, 1)
    assert (report.kept, report.objects) == ((4,), tuple(sorted(f"heads/{d[:16]}" for d in digests[1:])))
    assert report.freed["heads"] == 200
    assert Workspace.open(address).snapshot().count("classes") == 1
    assert workspace.object_file("heads", digests[0], "sub/a b.bin") == bytes(100)
    with pytest.raises(MissingStepError) as error:
        workspace.object_path("heads", digests[1])
    assert str(error.value) == (
        f"{address}/heads/{digests[1][:16]} is gone: the workspace's newest commits need it\n"
        "Make it again: vlltr train lgr"
    )


def test_two_writers_lose_nothing(address: str) -> None:
    """Both commit, one after the other, with numbers of their own."""
    Workspace.create(address, Recipe(name="test"))
    start = SPAWN.Barrier(2)
    writers = [SPAWN.Process(target=add_anchors, args=(address, start, 1, 5)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    workspace = Workspace.open(address)
    assert list(workspace.history.ids()) == [1, 2]
    assert sorted(workspace.snapshot().table("anchors")["anchor_key"].to_pylist()) == list(range(10))


@pytest.mark.parametrize("step", ["rows deleted", "object half written", "tables tagged"])
def test_a_killed_writer_is_put_back(address: str, step: str) -> None:
    """The next writer takes the lock, once it has run out, and goes on from the last commit."""
    workspace = Workspace.create(address, Recipe(name="test"))
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([0, 1]))
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=write_in_steps, args=(address, theirs))
    process.start()
    for reached in STEPS:
        assert ours.recv() == reached
        if reached == step:
            break
        ours.send("go on")
    assert process.pid is not None
    assert workspace.storage.writer() is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    let_run_out(workspace)
    with workspace.transaction("ingest") as tx:
        tx.upsert("sentences", sentence_rows([9]))
    now = Workspace.open(address).snapshot()
    assert now.commit is not None
    assert (now.commit.id, now.commit.head) == (2, None)
    assert now.table("classes").sort_by("class_id")["name"].to_pylist() == ["class 0", "class 1"]
    assert now.table("sentences").num_rows == 1


def let_run_out(workspace: Workspace) -> None:
    """Shorten the lease of the lock that a killed writer left in object storage; a folder's is gone by itself."""
    if "://" in workspace.address:
        held = workspace.storage.read("lock")
        assert b'"lease": 60.0' in held
        workspace.storage.write("lock", held.replace(b'"lease": 60.0', b'"lease": 0.01'))


def test_objects_are_brought_here_and_checked(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another machine fetches an object once; one that is not what was put there is refused, and stays out."""
    address = bucket.address()
    workspace = Workspace.create(address, Recipe(name="test"))
    with workspace.transaction("train") as tx:
        digest = workspace.put_object(
            "heads", lambda folder: (folder / "a.bin").write_bytes(b"x" * 40_000_000)
        )
        tx.set(head=digest)
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "elsewhere"))
    there = Workspace.open(address)
    assert there.path.is_relative_to(tmp_path / "elsewhere")
    assert there.object_path("heads", digest).joinpath("a.bin").read_bytes() == b"x" * 40_000_000
    asked = bucket.asked
    there.object_path("heads", digest)
    assert bucket.asked == asked
    copy = there.whole_object("heads", digest)
    (copy / "a.bin").write_bytes(b"y")
    with pytest.raises(WorkspaceError) as damaged:
        there.whole_object("heads", digest)
    assert damaged.value.message == (
        f"{copy} is damaged: its files are not those that were written: the digest differs"
    )
    assert damaged.value.hint == f"Delete this copy, and it is fetched again: rm -r {copy}"
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "third"))
    third = Workspace.open(address)
    third.storage.write(f"heads/{digest[:16]}/a.bin", b"y")
    with pytest.raises(WorkspaceError) as error:
        third.object_path("heads", digest)
    assert str(error.value) == (
        f"{address}/heads/{digest[:16]} is damaged: its content has another digest\n"
        "Bring it back from a backup, or make it again: vlltr train lgr"
    )
    assert list((third.path / "heads").iterdir()) == []


def test_a_refusal_in_the_middle(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage's own words, no traceback of a library; the next writer puts back what was written."""
    address = bucket.address()
    workspace = Workspace.create(address, Recipe(name="test"))
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([0]))
    with pytest.raises(WorkspaceError) as error, workspace.transaction("ingest") as tx:  # noqa: PT012 - as it happens
        tx.upsert("classes", class_rows([1]))
        monkeypatch.setattr(bucket, "refuse", True)
        tx.upsert("classes", class_rows([2]))
    monkeypatch.setattr(bucket, "refuse", False)
    assert error.value.message.startswith(f"the storage does not allow this at {address}")
    let_run_out(workspace)
    with workspace.transaction("ingest") as tx:
        tx.upsert("classes", class_rows([3]))
    assert sorted(Workspace.open(address).snapshot().table("classes")["class_id"].to_pylist()) == [0, 3]


def test_who_lost_the_lock_commits_nothing(bucket: Bucket) -> None:
    """Where another writer took it over, the first stops, and leaves the tables to that one."""
    address = bucket.address()
    workspace = Workspace.create(address, Recipe(name="test"))
    with pytest.raises(LockedError, match="was too late to renew its lock"), workspace.transaction("a") as tx:  # noqa: PT012
        tx.upsert("classes", class_rows([0]))
        tx._still_held.__self__.lost = True  # type: ignore[attr-defined]  # as the renewing thread finds it
        tx.upsert("classes", class_rows([1]))
    assert workspace.history.last() is None


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"AWS_ENDPOINT": "http://127.0.0.1:9"},
            "the storage of {address} cannot be used: Error performing ",
            "Look at the network, the address and the endpoint (AWS_ENDPOINT), then run the same command again.",
        ),
        (
            {"AWS_ALLOW_HTTP": "false"},
            "{address}: the endpoint speaks http, without encryption, which has to be allowed",
            "For storage of your own: export AWS_ALLOW_HTTP=true",
        ),
        (
            {
                "AWS_ACCESS_KEY_ID": "",
                "AWS_SECRET_ACCESS_KEY": "",
                "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",
            },
            "no credentials for {address}: ",
            "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION in the environment.",
        ),
        (
            {"AWS_ACCESS_KEY_ID": ""},
            "no credentials for {address}: ",
            "Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION in the environment.",
        ),
    ],
)
def test_storage_that_cannot_be_used(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str, hint: str
) -> None:
    """Each cause says what to mend, soon, for reading and for writing."""
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    address = bucket.address()
    for use in (Workspace.open, lambda place: Workspace.create(place, Recipe(name="test"))):
        with pytest.raises(WorkspaceError) as error:
            use(address)
        assert error.value.message.startswith(message.format(address=address))
        assert error.value.hint == hint


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    """It is named; buckets are not made."""
    for use in (Workspace.open, lambda place: Workspace.create(place, Recipe(name="test"))):
        with pytest.raises(WorkspaceError) as error:
            use("s3://bees/w")
        assert str(error.value) == (
            "there is no bucket of the name in s3://bees/w\nMake it with the storage's own tools, or mend the address."
        )


@pytest.mark.parametrize("library", ["obstore", "platformdirs"])
def test_without_the_extra(library: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it is in the message."""
    monkeypatch.delenv("VLLTR_CACHE_DIR")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingStepError) as error:
        Workspace.open(bucket.address())
    assert error.value.message.startswith(
        "a workspace in object storage needs a library that cannot be imported: "
    )
    assert error.value.hint == 'Run: pip install "vlltr-index[remote]"'


def test_a_cache_that_cannot_be_written(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that names another is in the message."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLTR_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(WorkspaceError) as error:
        Workspace.open(bucket.address())
    assert error.value.hint == "Name a folder that can be written: export VLLTR_CACHE_DIR=FOLDER"


def test_names_that_lead_elsewhere(bucket: Bucket, tmp_path: Path) -> None:
    """An object cannot be brought to a place outside its folder."""
    workspace = Workspace.create(bucket.address(), Recipe(name="test"))
    workspace.storage.write("heads/abc/a\\..\\b", b"x")
    (tmp_path / "t").mkdir()
    with pytest.raises(WorkspaceError, match="has a name that no file may have"):
        workspace.storage.download("heads/abc", tmp_path / "t")
