"""Exports that are killed at any moment: the folder is the old one or the new one, and nothing is left for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.killed import around
from vlltr_index.errors import PretrainedError
from vlltr_index.recognition.exported.place import beside, new_folder, unfinished
from vlltr_index.recognition.exported.reading import CARD, SUMS, locate, read_sums
from vlltr_index.recognition.exported.writing import exporting_to
from vlltr_index.schemas.fingerprint import digest_file
from vlltr_index.store.workspace import Workspace

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "chmod")


def export(workspace: Workspace, folder: Path, text: str) -> None:
    """What every export does with its folder, around a few files."""
    with exporting_to(workspace, folder, force=True) as new:
        (new / CARD).write_text(text)
        (new / "head").mkdir()
        (new / "head" / "head.json").write_text(text)


def whole(folder: Path) -> str:
    """What an export says, if its digests are right."""
    sums = read_sums(folder)
    assert {name: digest_file(folder / name) for name in sums} == sums
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*sums, SUMS}
    return (folder / CARD).read_text()


def killed(work: Callable[[], None], moment: int) -> bool:
    """Do it in a process that is killed before or after a chosen call to the file system; whether it came so far."""
    process = os.fork()
    if process:
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])
    try:
        left = iter(range(moment, -1, -1))

        def reach() -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in CALLS:
            setattr(os, name, around(getattr(os, name), reach))
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_killed_at_any_moment(workspace: Workspace, tmp_path: Path, replaced: bool) -> None:
    """What was left is told, whoever opens the folder finds a whole one, and the next export sweeps."""
    folder, moment, gone = tmp_path / "out" / "model", 0, 0
    while True:
        if replaced:
            export(workspace, folder, "old")
        if not killed(lambda: export(workspace, folder, "new"), moment):
            break
        assert unfinished(workspace) == [folder] * beside(folder).is_dir()
        gone += replaced and not folder.is_dir()
        if replaced:
            assert whole(locate(folder)) in ("old", "new")
        elif folder.is_dir():
            assert whole(folder) == "new"
        export(workspace, folder, "next")
        assert whole(folder) == "next"
        assert os.listdir(folder.parent) == ["model"]
        assert unfinished(workspace) == []
        assert not list(workspace.path.glob("runs/*"))
        if not replaced:
            (folder / CARD).unlink()
            for path in sorted(folder.parent.rglob("*"), reverse=True):
                (path.rmdir if path.is_dir() else path.unlink)()
        moment += 1 if replaced else 3  # where nothing is replaced, fewer moments differ
    assert moment > 30
    assert gone == (2 if replaced else 0)  # between the two renames: after the one, and before the other


def test_an_error_between_the_renames(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder is back at once."""
    folder, rename = tmp_path / "model", os.rename
    export(workspace, folder, "old")

    def failing(source: Path, target: Path) -> None:
        if source == beside(folder) / "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(PretrainedError, match=r"model cannot be written: .*Input/output error"):
        export(workspace, folder, "new")
    assert whole(folder) == "old"
    assert sorted(os.listdir(tmp_path)) == ["model", "workspace"]


def test_an_export_that_was_moved_away_is_back_for_the_next(workspace: Workspace, tmp_path: Path) -> None:
    """It is not replaced without --force, and not swept with what else a kill left."""
    folder = tmp_path / "model"
    export(workspace, folder, "old")

    def move_away() -> None:
        beside(folder).mkdir(exist_ok=True)
        os.rename(folder, beside(folder) / "new-old")

    move_away()
    with (
        pytest.raises(PretrainedError, match="model holds an export already"),
        exporting_to(workspace, folder, force=False) as new,
    ):
        (new / CARD).write_text("new")
    assert whole(folder) == "old"
    move_away()
    with new_folder(workspace, folder):
        pass
    assert whole(folder) == "old"


def test_one_export_at_a_time(workspace: Workspace, tmp_path: Path) -> None:
    """A second one to the same folder is refused, and leaves the first alone; the doctor sees nothing amiss."""
    folder = tmp_path / "model"
    with new_folder(workspace, folder) as new:
        (new / "x").touch()
        with pytest.raises(PretrainedError, match="model is being written by another command"):
            export(workspace, folder, "second")
        assert unfinished(workspace) == []
        assert (new / "x").exists()


@pytest.mark.slow
def test_the_doctor_names_what_was_left(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where to, what is there, and the command that sweeps it; what was moved away is a problem."""
    folder = tmp_path / "a model"
    export(workspace, folder, "old")
    number = next(n for n in range(999) if _killed_without(workspace, folder, n))
    code, out, _ = run(capsys, "-w", workspace.path, "doctor")
    assert code == 1
    assert (
        f"problem  export             one to {folder} was killed: it left {beside(folder)}, and moved what"
        in out
    )
    assert f"vlltr export --force '{folder}' puts that in order." in out
    assert whole(locate(folder)) == "old"
    code, out, _ = run(capsys, "-w", workspace.path, "doctor")
    assert f"note     export             one to {folder} was killed: it left {beside(folder)}\n" in out
    assert number


def _killed_without(workspace: Workspace, folder: Path, moment: int) -> bool:
    """Whether a kill at that moment leaves no folder; where not, it is as before."""
    assert killed(lambda: export(workspace, folder, "new"), moment)
    if folder.is_dir():
        export(workspace, folder, "old")
    return not folder.is_dir()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027])
def test_modes_are_the_umasks(workspace: Workspace, tmp_path: Path, mask: int) -> None:
    """Of files and folders of an export, whatever mode a library gave them."""
    before = os.umask(mask)
    try:
        with exporting_to(workspace, tmp_path / "model", force=False) as new:
            (new / CARD).touch(0o600)
            (new / "head").mkdir()
            (new / "head" / "x").touch(0o600)
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert modes == {0o666 & ~mask}
    assert (tmp_path / "model" / "head").stat().st_mode & 0o777 == 0o777 & ~mask
