"""The files of an exported folder, their digests, and writing such a folder whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlltr_index.errors import PretrainedError
from vlltr_index.store.storage import sync_folder

__all__ = [
    "CARD",
    "MODEL_FILES",
    "OPTIONAL",
    "SUMS",
    "check_regular",
    "file_digest",
    "new_folder",
    "read_sums",
]

CARD = "README.md"
SUMS = "SHA256SUMS"
OPTIONAL = (
    "class_stats.safetensors",
    "encoder/words.json",
    "encoder/tokenizer.json",
    "encoder/tokenizer_config.json",
    "index/index.json",
    "index/anchors.safetensors",
    "index/index.faiss",
)
"""Files that an exported model may lack."""
MODEL_FILES = (
    CARD,
    "config.json",
    "encoder/encoder.json",
    "encoder/model.safetensors",
    "head/head.json",
    "head/head.safetensors",
    "anchors.parquet",
    "sentences.parquet",
    *OPTIONAL,
)
"""All files of an exported model but the digests; no other is ever read, whatever a folder says."""

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_MOST_BYTES = 1 << 20
_HUBS_OWN = {".gitattributes", ".cache"}  # what the hub's tools put into a folder


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(path: Path) -> None:
    """Refuse what is neither a file nor a link to one: opening a pipe, say, waits forever.

    Raises:
        PretrainedError: If it is such a thing.
    """
    if path.exists() and not path.is_file():
        raise PretrainedError(f"{path} is not a regular file", "Fetch the folder again.")


def read_sums(folder: Path, allowed: Collection[str] | None = None) -> dict[str, str]:
    """The digests in `SHA256SUMS` by file name.

    Raises:
        PretrainedError: If it is missing or damaged, or names a file that is not one of `allowed`.
    """
    path = folder / SUMS
    check_regular(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PretrainedError(f"{path} is larger than {_MOST_BYTES:,} bytes: this is no list of digests")
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise PretrainedError(
            f"{folder} is not an exported folder: it has no {SUMS}", "Make one: vlltr export DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} cannot be read: {error}", "Fetch the folder again.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise PretrainedError(f"{path}:{number} is not a digest and a name", "Fetch the folder again.")
        if allowed is not None and match[2] not in allowed:
            raise PretrainedError(
                f"{path}:{number} names {match[2]!r}, which is no file of an exported model"
            )
        found[match[2]] = match[1]
    return found


def _check_target(folder: Path, force: bool) -> None:
    """See whether `folder` may be written: it is new or empty, or with `force` an exported folder and nothing else.

    Raises:
        PretrainedError: If it may not.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise PretrainedError(f"{folder} is not a folder", "Choose another: vlltr export DIR")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / SUMS).is_file() or not (folder / CARD).is_file():
        raise PretrainedError(
            f"{folder} holds other things than an export, and is left as it is",
            "Choose a new folder: vlltr export DIR",
        )
    known = {SUMS, *read_sums(folder)}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    others = sorted(n for n in there - known if n.split("/")[0] not in _HUBS_OWN)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise PretrainedError(
            f"{folder} holds {others[0]!r}{more} beside an export, and is left as it is",
            "Move that away, or choose a new folder: vlltr export DIR",
        )
    if not force:
        raise PretrainedError(
            f"{folder} holds an export already", f"Replace it: vlltr export --force {folder}"
        )


@contextmanager
def new_folder(folder: Path, force: bool) -> Iterator[Path]:
    """An empty folder beside `folder` for the block to write into: with digests it gets that name at the end.

    Raises:
        PretrainedError: If `folder` may not be written, which is seen before the block runs, or the disk refuses.
    """
    _check_target(folder, force)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        built = temporary / "new"
        built.mkdir()
        yield built
        _write_sums(built)
        if folder.is_dir():
            os.rename(folder, temporary / "old")
        try:
            os.rename(built, folder)
        except OSError:
            if (temporary / "old").is_dir():
                os.rename(temporary / "old", folder)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        raise PretrainedError(
            f"{folder} cannot be written: {error.strerror or error}", "Make room, or choose another folder."
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_sums(folder: Path) -> None:
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    for name in (*files, SUMS):
        (folder / name).chmod(0o644)  # some libraries let only their user read what they write
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    for part in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(part)
