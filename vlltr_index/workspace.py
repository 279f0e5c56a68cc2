"""A folder that holds it all: vlltr.toml, lance/, heads/, checkpoints/, index/, history/."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel

from vlltr_index.errors import MissingStepError, NewerWorkspaceError, UsageError, WorkspaceError
from vlltr_index.history import History, sync_folder
from vlltr_index.lock import write_lock
from vlltr_index.schemas.config import FORMAT, Recipe, WorkspaceConfig, load_toml, validate, with_nulls

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.snapshot import Snapshot
    from vlltr_index.store import Store
    from vlltr_index.transaction import Transaction

__all__ = ["CONFIG_NAME", "Kind", "Workspace"]

_log = logging.getLogger(__name__)

CONFIG_NAME = "vlltr.toml"
Kind = Literal["heads", "checkpoints", "index"]

_REMAKE = {"heads": "vlltr train lgr", "checkpoints": "vlltr train cvlp", "index": "vlltr index"}
_HEADER = '# A vlltr workspace. Change the recipe freely; "none" stands for no value.\n\n'


class Workspace:
    """A workspace in the folder `path`; made by `create`, `open` or `find`.

    Attributes:
        path: The folder, absolute.
        config: What its `vlltr.toml` says.
    """

    def __init__(self, path: Path, config: WorkspaceConfig) -> None:
        self.path = path
        self.config = config
        self.history = History(path / "history")

    @property
    def recipe(self) -> Recipe:
        """The recipe the workspace works by."""
        return self.config.recipe

    @cached_property
    def store(self) -> Store:
        """Its tables."""
        from vlltr_index.store import Store

        return Store(self.path / "lance")

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe: Recipe) -> Workspace:
        """Make a workspace in a new or empty folder; one that is there with the same recipe is opened.

        Raises:
            UsageError: If `path` is not a local folder.
            WorkspaceError: If the folder holds other things, or is a workspace with another recipe.
        """
        folder = _local(path)
        if (folder / CONFIG_NAME).exists():
            there = cls.open(folder)
            if there.recipe != recipe:
                raise WorkspaceError(
                    f"{folder} is a workspace already, of recipe {there.recipe.name!r} or with other values",
                    f"Edit {folder / CONFIG_NAME}, or choose another folder.",
                )
            return there
        if folder.exists() and not folder.is_dir():
            raise WorkspaceError(f"{folder} is a file", "Choose another folder: vlltr init DIR")
        if folder.is_dir() and any(not p.name.startswith(f".{CONFIG_NAME}") for p in folder.iterdir()):
            raise WorkspaceError(
                f"{folder} is not empty and not a workspace", "Choose a new folder: vlltr init DIR"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            workspace = cls(folder, WorkspaceConfig(recipe=recipe))
            workspace.write_config()
        except OSError as error:
            raise WorkspaceError(f"{folder} cannot be made: {error}", "Choose another folder.") from None
        return workspace

    @classmethod
    def open(cls, path: str | os.PathLike[str], any_format: bool = False) -> Workspace:
        """Open the workspace in `path`; with `any_format`, one of an older format too, so as to bring it up to date.

        Raises:
            WorkspaceError: If there is none, or it has an older format.
            NewerWorkspaceError: If a newer version of this program wrote it.
            ConfigError: If its `vlltr.toml` does not fit.
        """
        folder = _local(path)
        file = folder / CONFIG_NAME
        if not file.is_file():
            if folder.is_file():
                raise WorkspaceError(
                    f"{folder} is a file, not a workspace", "Name a folder: vlltr -w DIR ..."
                )
            raise WorkspaceError(
                f"{folder} is not a workspace: it has no {CONFIG_NAME}",
                f"Make one: vlltr init {shlex.quote(str(path))}",
            )
        values = load_toml(file)
        written = values.get("format")
        if isinstance(written, int) and written > FORMAT:
            raise NewerWorkspaceError(
                f"{file} has format {written}, this program reads up to {FORMAT}",
                "Bring it up to date: pip install -U vlltr-index",
            )
        if isinstance(written, int) and 0 < written < FORMAT and not any_format:
            raise WorkspaceError(
                f"{file} has format {written}, this program works with format {FORMAT}",
                f"Bring the workspace up to date: vlltr -w {shlex.quote(str(path))} upgrade",
            )
        return cls(folder, validate(WorkspaceConfig, with_nulls(WorkspaceConfig, values), str(file)))

    @classmethod
    def find(cls, start: str | os.PathLike[str] | None = None, any_format: bool = False) -> Workspace:
        """Open the workspace that `start` (default: the current folder) lies in; `any_format` is as for `open`.

        Raises:
            WorkspaceError: If neither it nor a folder above it is a workspace.
        """
        first = _local(Path.cwd() if start is None else start)
        for folder in (first, *first.parents):
            if (folder / CONFIG_NAME).is_file():
                return cls.open(folder, any_format)
        raise WorkspaceError(
            f"no workspace: neither {first} nor a folder above it has a {CONFIG_NAME}",
            "Make one: vlltr init DIR, or name one: vlltr -w DIR ...",
        )

    def write_config(self, config: WorkspaceConfig | None = None) -> None:
        """Write `vlltr.toml`, whole or not at all, and keep to it from here on."""
        self.config = config or self.config
        self._write(_HEADER + tomli_w.dumps(_without_nulls(self.config)))

    def write_format(self) -> None:
        """Say in `vlltr.toml` that the workspace has this program's format; all else in it stays as it is written."""
        text = (self.path / CONFIG_NAME).read_text(encoding="utf-8")
        self.config = self.config.model_copy(update={"format": FORMAT})
        self._write(
            re.sub(r"(?m)\A((?:[^\[]*\n)?[ \t]*format[ \t]*=[ \t]*)\d+", rf"\g<1>{FORMAT}", text, count=1)
        )

    def _write(self, text: str) -> None:
        """Replace `vlltr.toml`, whole or not at all."""
        handle, temporary = tempfile.mkstemp(prefix=f".{CONFIG_NAME}.", dir=self.path)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path / CONFIG_NAME)
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(self.path)

    def snapshot(self, at: int | None = None) -> Snapshot:
        """Read exactly one commit: the newest, or number `at`.

        Raises:
            WorkspaceError: If there is no such commit, its file is damaged, or it was pruned.
        """
        from vlltr_index.snapshot import Snapshot

        return Snapshot(self.store, self.history.last() if at is None else self.history.read_kept(at))

    def table(self, name: str, at: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A table as Arrow, as of the newest commit or of `at`: for pandas `.to_pandas()`, for polars `from_arrow`.

        Args:
            name: `classes`, `sentences`, `images`, `sentence_scores`, `anchors` or `imprints`.
            at: As of this commit.
            columns: Which, and in what order; default all. `images` may hold the images' bytes in `data`.

        Raises:
            UsageError: If there is no table or column of that name.
            WorkspaceError: If there is no commit `at`, or it was pruned.
        """
        snapshot = self.snapshot(at)
        known = snapshot.schema(name).names
        if unknown := [column for column in columns or () if column not in known]:
            raise UsageError(
                f"table {name!r} has no column {unknown[0]!r}", f"There are: {', '.join(known)}."
            )
        return snapshot.table(name, columns)

    @contextmanager
    def transaction(self, command: str, timeout: float | None = None) -> Iterator[Transaction]:
        """Write: one commit at the end if anything changed, nothing if an error leaves the block.

        Args:
            command: What the commit says was run, without `vlltr`.
            timeout: Seconds to wait for another writer; default: as long as it takes.

        Raises:
            LockedError: If another writer is still there after `timeout`.
        """
        from vlltr_index.transaction import Transaction, put_back

        with write_lock(self.path / "lock", command, timeout):
            last = self.history.last()
            touched = put_back(self.store, last)
            if touched:
                _log.info("put back what an unfinished command left in %s", ", ".join(touched))
            self._sweep()
            tx = Transaction(self.store, self.history, command, last)
            try:
                yield tx
                tx.finish()
            except BaseException:
                put_back(self.store, self.history.last())
                raise

    def put_object(self, kind: Kind, build: Callable[[Path], object]) -> str:
        """Keep files that never change, named by their content; call it inside a transaction.

        Args:
            kind: Which folder they go to.
            build: Writes the files into the empty folder it is given.

        Returns:
            The digest that `object_path` takes: SHA-256 over names and bytes.
        """
        parent = self.path / kind
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
        try:
            build(temporary)
            digest = _digest_folder(temporary, sync=True)
            final = parent / digest[:16]
            if final.exists() and _digest_folder(final) != digest:
                shutil.rmtree(final)  # damaged since: put it right
            if not final.exists():
                os.chmod(temporary, 0o755)
                os.rename(temporary, final)
                sync_folder(parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return digest

    def object_path(self, kind: Kind, digest: str) -> Path:
        """The folder of an object.

        Raises:
            MissingStepError: If it is gone.
        """
        path = self.path / kind / digest[:16]
        if not digest.isalnum() or not path.is_dir():
            raise MissingStepError(
                f"{path} is gone: the workspace's newest commits need it", f"Make it again: {_REMAKE[kind]}"
            )
        return path

    def _sweep(self) -> None:
        """Remove what a killed `put_object` left."""
        for kind in get_args(Kind):
            for left in (self.path / kind).glob(".tmp-*"):
                shutil.rmtree(left, ignore_errors=True)


def _local(path: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(path):
        raise UsageError(
            f"{os.fspath(path)} is not a local folder: only local folders can be workspaces",
            "Give a folder: vlltr -w DIR ...",
        )
    return Path(path).expanduser().absolute()


def _digest_folder(folder: Path, sync: bool = False) -> str:
    """SHA-256 over the relative path, length and bytes of every file, in path order."""
    whole = hashlib.sha256()
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name in sorted(files):
        with open(files[name], "rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
            if sync:
                os.fsync(file.fileno())
        whole.update(f"{name}\0{inner}\0".encode())
    if sync:
        for part in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
            sync_folder(part)
    return whole.hexdigest()


def _without_nulls(config: BaseModel) -> dict[str, Any]:
    """`config` for TOML, which has no null: left out where that is the default, else "none"."""
    result: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            result[name] = _without_nulls(value)
        elif value is not None:
            result[name] = list(value) if isinstance(value, tuple) else value
        elif field.default is not None:
            result[name] = "none"
    return result
