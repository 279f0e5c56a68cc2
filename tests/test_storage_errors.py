"""What the system and the libraries say of a disk or a table, in words that help."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tablerows import class_rows

from vlltr_index.errors import LockedError, WorkspaceError
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.storage import LocalStorage
from vlltr_index.storage_errors import (
    disk_error,
    disk_explained,
    is_library_error,
    short,
    table_explained,
    write_error,
)
from vlltr_index.store import Store
from vlltr_index.train import checkpoint
from vlltr_index.workspace import Workspace

FREE = "Free some space, then run the same command again; the workspace is as it was."
MEND = "Mend its permissions, or work on a copy of the folder."
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
LANCE_FULL = RuntimeError(
    "lance error: LanceError(IO): Generic LocalFileSystem error: Unable to copy data to file: "
    "No space left on device (os error 28), /cargo/registry/src/lance-io-13.0.0/src/local.rs:70:9"
)


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        LANCE_FULL,
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_a_full_disk(error: Exception) -> None:
    """The folder that is full, and that nothing is lost."""
    said = disk_error("/data/birds", error)
    assert said is not None
    assert said.message == "/data/birds is full: no space is left on its disk"
    assert said.hint == FREE


def test_a_disk_that_may_only_be_read() -> None:
    """Whoever says it."""
    for error in (
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        RuntimeError("lance error: Read-only file system (os error 30)"),
    ):
        said = disk_error("/data/birds", error)
        assert said is not None
        assert said.message == "/data/birds cannot be written: its file system is read-only"
        assert said.hint == MEND


def test_the_folder_that_an_error_names() -> None:
    """A file inside the workspace stands for the workspace, one elsewhere for its folder."""
    for name, shown in (
        ("/data/birds/heads/x", "/data/birds"),
        ("/tmp/x/file", "/tmp/x"),
        ("file", "/data/birds"),
    ):
        said = disk_error("/data/birds", OSError(errno.ENOSPC, "No space left on device", name))
        assert said is not None
        assert said.message == f"{shown} is full: no space is left on its disk"


def test_other_errors_stay() -> None:
    """What is no disk's fault passes through, and what was explained already too."""
    assert disk_error("/data", FileNotFoundError(2, "No such file or directory")) is None
    said = write_error("/data", PermissionError(13, "Permission denied"))
    assert said.message == "/data cannot be written: [Errno 13] Permission denied"
    assert said.hint == MEND
    for error in (KeyError("x"), LockedError("No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), disk_explained("/data"):
            raise error


def _panic(base: type[BaseException], module: str, name: str) -> BaseException:
    return type(name, (base,), {"__module__": module})("rust future panicked: unknown error")


def test_panics() -> None:
    """LanceDB's panics count as damage, whatever their base; leaving the program never does."""
    panics = (
        _panic(Exception, "pyo3_async_runtimes", "RustPanic"),
        _panic(BaseException, "pyo3_runtime", "PanicException"),
    )
    for panic in panics:
        with pytest.raises(WorkspaceError) as error, table_explained("/data/lance", "images"):
            raise panic
        assert str(error.value) == (
            "table 'images' in /data/lance cannot be read: rust future panicked: unknown error\n"
            "Bring the folder back from a backup, or make a new workspace: vlltr init DIR"
        )
    for other in (KeyboardInterrupt(), SystemExit(1), GeneratorExit(), KeyError("x")):
        assert not is_library_error(other)
        with pytest.raises(type(other)), table_explained("/data/lance", "images"):
            raise other


def test_what_lancedb_says_is_cut_short() -> None:
    """Its own wrapping and the places in its source are left out."""
    said = "lance error: LanceError(IO): it broke, /cargo/registry/src/lance-file-13.0.0/src/reader.rs:943:31"
    assert short(RuntimeError(said)) == "it broke"
    assert short(RuntimeError("External error: first line\nsecond line")) == "first line"


def test_a_disk_that_fills_while_a_command_writes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is about the disk, though undoing fails too; afterwards the same command works."""

    def full(*arguments: object) -> None:
        raise LANCE_FULL

    with workspace.transaction("first") as tx:
        tx.upsert("classes", class_rows([0]))
    table = type(workspace.store._open("classes"))

    def second(patch: pytest.MonkeyPatch) -> None:
        with workspace.transaction("second") as tx:
            tx.upsert("classes", class_rows([1]))
            patch.setattr(table, "add", full)
            patch.setattr(table, "restore", full)
            tx.upsert("classes", class_rows([2]))

    with monkeypatch.context() as patch, pytest.raises(WorkspaceError) as error:
        second(patch)
    assert str(error.value) == f"{workspace.store.uri} is full: no space is left on its disk\n{FREE}"
    assert workspace.snapshot().count("classes") == 1
    with workspace.transaction("second") as tx:
        assert tx.count("classes") == 1
        tx.upsert("classes", class_rows([1]))
    assert workspace.snapshot().count("classes") == 2


def test_an_object_that_does_not_fit(workspace: Workspace) -> None:
    """What is written beside the tables is explained by the transaction."""

    def build(folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(WorkspaceError) as error, workspace.transaction("train lgr"):
        workspace.put_object("heads", build)
    assert str(error.value) == f"{workspace.path} is full: no space is left on its disk\n{FREE}"
    assert not list((workspace.path / "heads").iterdir())


def test_a_state_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a run that cannot be kept leaves nothing half-written."""

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WorkspaceError) as error:
        checkpoint.save_state(tmp_path / "run" / checkpoint.STATE, {}, {})
    assert str(error.value) == f"{tmp_path / 'run'} is full: no space is left on its disk\n{FREE}"
    assert not list((tmp_path / "run").iterdir())


def test_the_callers_errors_are_not_the_tables(tmp_path: Path) -> None:
    """What fails while rows are brought or used passes through as it is."""
    store = Store(tmp_path / "lance")
    store.create("classes", CLASSES, "class_id")

    def rows() -> Iterator[object]:
        yield from class_rows([0]).to_batches()
        raise ValueError("the source broke")

    def scan() -> None:
        for _ in store.scan("classes"):
            raise ValueError("mine")

    uses: tuple[Callable[[], object], ...] = (
        lambda: store.append("classes", rows()),  # type: ignore[arg-type]
        lambda: store.upsert("classes", rows(), "class_id"),  # type: ignore[arg-type]
    )
    for use in uses:
        with pytest.raises(ValueError, match=r"^the source broke$"):
            use()
    with pytest.raises(ValueError, match=r"^mine$"):
        scan()


def test_a_folder_explains_its_disk(tmp_path: Path) -> None:
    """A workspace in a folder says so of its own folder."""
    with pytest.raises(WorkspaceError) as error, LocalStorage(tmp_path).explained():
        raise FULL
    assert error.value.message == f"{tmp_path} is full: no space is left on its disk"
