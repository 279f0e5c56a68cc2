"""Make LanceDB's tables in a folder survive a power cut, since LanceDB writes without a sync.

Before a commit is written, `sync_changed` makes durable what was written to the tables since the one before it. What
was written after the newest commit may be lost, or be there as a name without content. No commit depends on that;
but LanceDB does not open a table whose newest manifest is empty, not even at an older version. `recover` removes it.

The tables of vectors lie outside the commits, and what an interrupted command wrote to them is used by the next one. So
they are synced after each write (`keep`); the durable versions are listed in `lance/synced.json`, and newer ones are
removed.

A table is the folder `NAME.lance`; a version of it is a file in `_versions` that ends with the letters LANC, a tag a
file of JSON in `_refs/tags`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from vlltr_index.data.writing import sync, sync_all, write_file

_LIST = "synced.json"
_SUFFIX = ".lance"
_END = b"LANC"
_TOP = 2**64 - 1  # a manifest is named by this minus its version, so that the newest is listed first
_COARSE = 2_000_000_000  # nanoseconds by which times of files may be wrong


def sync_changed(folder: Path, since: Path | None) -> int:
    """Sync all files and folders in `folder`, and it itself, that changed since a file was written.

    Args:
        folder: Where to look, however deep.
        since: A file that was written when everything before was durable; None: sync everything.

    Returns:
        How many files and folders were synced.
    """
    start = 0 if since is None else since.stat().st_mtime_ns - _COARSE
    if start > time.time_ns():  # the clock was set back, so sync everything
        start = 0
    changed = list(_changed(folder, start))
    sync_all(changed)
    return len(changed)


def _changed(folder: Path, start: int) -> Iterator[Path]:
    """Yield the folder and its content as far as it changed since `start`, in nanoseconds."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _changed(Path(entry.path), start)
            elif entry.stat().st_ctime_ns >= start:
                yield Path(entry.path)
    if folder.stat().st_ctime_ns >= start:
        yield folder


def keep(lance: Path, name: str, version: int) -> None:
    """Make a table of vectors durable, and list its version as the newest durable one.

    Args:
        lance: The folder of the tables.
        name: The table.
        version: Its newest version.
    """
    known = kept(lance)
    listed = lance / _LIST
    if known.get(name) == version:
        return
    sync_changed(lance / f"{name}{_SUFFIX}", listed if name in known else None)
    sync(lance)
    _write(lance, known | {name: version})


def give_up(lance: Path, name: str) -> None:
    """Remove a deleted table of vectors from the list."""
    known = kept(lance)
    if known.pop(name, None) is not None:
        _write(lance, known)


def kept(lance: Path) -> dict[str, int]:
    """Read the durable version of each table of vectors; one whose making was killed is not in it."""
    try:
        return {str(name): int(version) for name, version in json.loads((lance / _LIST).read_bytes()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def remove_versions(lance: Path, name: str, but: Container[int]) -> None:
    """Remove all versions of a table except some; files that only they needed become unused.

    LanceDB itself removes only versions before the oldest tagged one, and those of a killed command are newer.
    """
    for version, path in list(_manifests(lance / f"{name}{_SUFFIX}")):
        if version not in but:
            path.unlink()


def _write(lance: Path, versions: Mapping[str, int]) -> None:
    write_file(lance / _LIST, json.dumps(versions, indent=1, sort_keys=True).encode() + b"\n")


def is_whole(lance: Path) -> bool:
    """Say whether each table's newest manifest is complete, and no table of vectors is newer than listed."""
    durable = kept(lance)
    for name, folder in _tables(lance):
        newest = max(_manifests(folder), default=None)
        if newest and (newest[0] > durable.get(name, newest[0]) or not _ends(newest[1])):
            return False
    return True


def recover(lance: Path, commit: int, committed: Mapping[str, int]) -> list[str]:
    """Remove half-written manifests and tags, and versions of vector tables that are not durable.

    Call it only while nobody writes.

    Args:
        lance: The folder of the tables.
        commit: Number of the newest commit. Its tags and those of earlier commits are left alone, damaged or not.
        committed: The table versions that it names; these and earlier ones are left alone, too.

    Returns:
        Names of the tables that something was removed from.
    """
    durable = kept(lance)
    touched = list[str]()
    for name, folder in _tables(lance):
        least = committed.get(name, durable.get(name, 0))
        newer = [path for version, path in _manifests(folder) if version > least]
        gone = [path for path in newer if name in durable or not _ends(path)]
        gone += [path for path in _tags_after(folder, commit) if not _is_json(path)]
        for path in gone:
            path.unlink()
        if gone:
            touched.append(name)
    return touched


def _tags_after(folder: Path, commit: int) -> Iterator[Path]:
    """Yield the tags of a table except those of commits up to `commit`."""
    for path in (folder / "_refs" / "tags").glob("*.json"):
        number = path.stem.removeprefix("c")
        if not number.isdigit() or int(number) > commit:
            yield path


def sweep(lance: Path, name: str) -> None:
    """Remove unfinished files that killed writers left, which LanceDB's cleaning does not, and sync the others.

    Call it only while nobody writes. Afterwards the newest version may be tagged as one that writers can continue from.
    """
    folder = lance / f"{name}{_SUFFIX}"
    for path in folder.rglob("*"):
        if path.name.startswith(".tmp") or "#" in path.name:
            path.unlink()
    sync_changed(folder, None)


def _tables(lance: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and folder of each table."""
    with suppress(FileNotFoundError), os.scandir(lance) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIX):
                yield entry.name.removesuffix(_SUFFIX), Path(entry.path)


def _manifests(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version and file of each manifest of a table."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / "_versions") as entries:
        for entry in entries:
            stem, _, suffix = entry.name.partition(".")
            if suffix == "manifest" and stem.isdigit():
                yield _TOP - int(stem), Path(entry.path)


def _ends(path: Path) -> bool:
    """Say whether a manifest is complete, that is, ends with the letters LANC."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END)))
        return file.read() == _END


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True
