"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vlltr_index.data.writing import (
    make_folder,
    remove_folder,
    scratch_folder,
    settle,
    sync_all,
    whole_file,
    write_file,
)


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, linked and renamed, in order, by the last part of its name; of scratch `*`."""
    done: list[str] = []

    def shown(path: str | Path) -> str:
        name = Path(path).name
        return "*" if name.startswith(".") else name

    def fsync(handle: int) -> None:
        done.append(shown(os.readlink(f"/proc/self/fd/{handle}")))

    def watched(call: str) -> None:
        real = getattr(os, call)

        def told(source: Path, target: Path) -> None:
            real(source, target)
            done.append(f"{call} {shown(target)}")

        monkeypatch.setattr(os, call, told)

    monkeypatch.setattr(os, "fsync", fsync)
    for call in ("rename", "replace", "link"):
        watched(call)
    return done


def test_a_file_is_synced_before_it_has_its_name(tmp_path: Path, synced: list[str]) -> None:
    """Then the folder that has the name, and before that each folder that was made for it."""
    write_file(tmp_path / "a" / "b" / "c.json", b"1")
    assert synced == [tmp_path.name, "a", "*", "replace c.json", "b"]
    synced.clear()
    write_file(tmp_path / "a" / "new.json", b"1", new=True)
    assert synced == ["*", "link new.json", "a"]


def test_a_file_that_is_there(tmp_path: Path) -> None:
    """It is written over, or kept where it should be new; an error leaves it as it was, and nothing beside it."""
    path = tmp_path / "a"
    write_file(path, b"1")
    write_file(path, b"2")
    with pytest.raises(FileExistsError):
        write_file(path, b"3", new=True)

    def broken() -> None:
        with whole_file(path) as unfinished:
            unfinished.write_bytes(b"4")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert path.read_bytes() == b"2"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """The link is what is written over, not what it points to."""
    other, path = tmp_path / "other", tmp_path / "a"
    other.write_bytes(b"theirs")
    path.symlink_to(other)
    write_file(path, b"1")
    assert other.read_bytes() == b"theirs"
    assert path.read_bytes() == b"1"
    assert not path.is_symlink()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_are_the_umasks(tmp_path: Path, mask: int) -> None:
    """Of files and folders, whatever mode a library gave them."""
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "a") as unfinished:
            unfinished.chmod(0o600)
        with scratch_folder(tmp_path) as folder:
            (folder / "b").touch(0o600)
            settle(folder, tmp_path / "f")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "f/b", "f")]
    assert modes == [0o666 & ~mask, 0o666 & ~mask, 0o777 & ~mask]


def made(place: Path, text: str, replace: bool = False) -> bool:
    """Write a folder with a file in a folder of it."""
    with scratch_folder(place.parent) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_text(text)
        return settle(folder, place, replace)


def test_a_folder_is_synced_before_it_has_its_name(tmp_path: Path, synced: list[str]) -> None:
    """All its files and folders, and after that the folder that has the name."""
    assert made(tmp_path / "f", "1")
    assert sorted(synced[:3]) == ["*", "inner", "x"]  # at once
    assert synced[3:] == ["rename f", tmp_path.name]


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    """It stays, or its place is taken; nothing else is left."""
    place = tmp_path / "f"
    assert made(place, "1")
    assert not made(place, "2")
    assert (place / "inner" / "x").read_text() == "1"
    assert made(place, "3", replace=True)
    assert (place / "inner" / "x").read_text() == "3"
    assert os.listdir(tmp_path) == ["f"]
    with pytest.raises(RuntimeError), scratch_folder(tmp_path):
        raise RuntimeError
    assert os.listdir(tmp_path) == ["f"]
    remove_folder(place)
    assert os.listdir(tmp_path) == []


def test_syncs_go_on_without_threads(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is limited, no thread may start."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    (tmp_path / "a").touch()
    sync_all([tmp_path / "a", tmp_path])
    assert len(synced) == 2


def test_folders_are_made_durably(tmp_path: Path, synced: list[str]) -> None:
    """Each one's entry is synced; where all are there, nothing is."""
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path.name, "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
