"""A folder or a URI that holds it all: vlltr.toml, lance/, heads/, checkpoints/, index/, history/."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tomli_w
from safetensors import SafetensorError

from vlltr_index.errors import MissingStepError, UsageError, WorkspaceError, write_error
from vlltr_index.schemas.config import FORMAT, Recipe, WorkspaceConfig, parse_toml, validate
from vlltr_index.store.snapshot import History
from vlltr_index.store.storage import Storage, storage_at, sync_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.tables import Store
    from vlltr_index.store.transaction import Transaction


_log = logging.getLogger(__name__)

CONFIG_NAME = "vlltr.toml"
Kind = Literal["heads", "checkpoints", "index"]

_REMAKE = {"heads": "vlltr train lgr", "checkpoints": "vlltr train cvlp", "index": "vlltr index"}
_HEADER = '# A vlltr workspace. Change the recipe freely; "none" stands for no value.\n\n'


class Workspace:
    """A workspace in a folder or in object storage; made by `create`, `open` or `find`.

    Attributes:
        storage: Where its files are.
        address: What people call it: the folder's path, absolute, or the URI.
        path: The folder, absolute. Of a workspace in object storage: the local folder for copies of objects, for the
            state of runs that train here, logs, and what wikis answered.
        config: What its `vlltr.toml` says.
    """

    def __init__(self, place: Storage | str | os.PathLike[str], config: WorkspaceConfig) -> None:
        self.storage = place if isinstance(place, Storage) else storage_at(place)
        self.address = self.storage.address
        self.path = self.storage.root
        self.config = config
        self.history = History(self.storage)

    @property
    def recipe(self) -> Recipe:
        """The recipe the workspace works by."""
        return self.config.recipe

    @cached_property
    def store(self) -> Store:
        """Its tables."""
        from vlltr_index.store.tables import Store

        return Store(self.storage.tables)

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe: Recipe) -> Workspace:
        """Make a workspace in a new or empty folder, or at a URI; one that is there with the same recipe is opened.

        Raises:
            UsageError: If `path` is an address that cannot hold a workspace.
            WorkspaceError: If the folder holds other things, or is a workspace with another recipe.
        """
        storage = storage_at(path)
        if storage.exists(CONFIG_NAME):
            there = cls.open(path)
            if there.recipe != recipe:
                raise WorkspaceError(
                    f"{storage.address} is a workspace already, of recipe {there.recipe.name!r} or with other values",
                    f"Edit {storage.at(CONFIG_NAME)}, or choose another folder.",
                )
            return there
        if next(storage.names(), None) is not None:
            raise WorkspaceError(
                f"{storage.address} is not empty and not a workspace", "Choose a new one: vlltr init DIR"
            )
        workspace = cls(storage, WorkspaceConfig(recipe=recipe))
        try:
            workspace.write_config()
        except OSError as error:
            raise WorkspaceError(
                f"{storage.address} cannot be made: {error}", "Choose another folder."
            ) from None
        return workspace

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Workspace:
        """Open the workspace in `path`.

        Raises:
            WorkspaceError: If there is none, or it has another format than this program's.
            ConfigError: If its `vlltr.toml` does not fit.
        """
        storage = storage_at(path)
        file = storage.at(CONFIG_NAME)
        try:
            values = parse_toml(storage.read(CONFIG_NAME), file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if "://" not in str(path) and os.path.isfile(os.path.expanduser(path)):
                raise WorkspaceError(
                    f"{storage.address} is a file, not a workspace", "Name a folder: vlltr -w DIR ..."
                ) from None
            raise WorkspaceError(
                f"{storage.address} is not a workspace: it has no {CONFIG_NAME}",
                f"Make one: vlltr init {shlex.quote(str(path))}",
            ) from None
        written = values.get("format")
        if isinstance(written, int) and written != FORMAT:
            raise WorkspaceError(
                f"{file} has format {written}, this program works with format {FORMAT}",
                "Make a new workspace: vlltr init DIR",
            )
        return cls(storage, validate(WorkspaceConfig, values, file))

    @classmethod
    def find(cls, start: str | os.PathLike[str] | None = None) -> Workspace:
        """Open the workspace that `start` (default: the current folder) lies in.

        Raises:
            WorkspaceError: If neither it nor a folder above it is a workspace.
        """
        first = storage_at(Path.cwd() if start is None else start)
        above = first.root.parents if type(first) is Storage else ()  # a bucket is no tree of folders
        for storage in (first, *map(Storage, above)):
            if storage.exists(CONFIG_NAME):
                return cls.open(storage.address)
        raise WorkspaceError(
            f"no workspace: neither {first.address} nor a folder above it has a {CONFIG_NAME}",
            "Make one: vlltr init DIR, or name one: vlltr -w DIR ...",
        )

    def write_config(self, config: WorkspaceConfig | None = None) -> None:
        """Write `vlltr.toml`, whole or not at all, and keep to it from here on."""
        self.config = config or self.config
        text = _HEADER + tomli_w.dumps(_for_toml(self.config.model_dump()))
        self.storage.write(CONFIG_NAME, text.encode("utf-8"))

    def snapshot(self, at: int | None = None) -> Snapshot:
        """Read exactly one commit: the newest, or number `at`.

        Raises:
            WorkspaceError: If there is no such commit, or its file is damaged.
        """
        from vlltr_index.store.snapshot import Snapshot

        return Snapshot(self.store, self.history.last() if at is None else self.history.read(at))

    def table(self, name: str, at: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A table as Arrow, as of the newest commit or of `at`: for pandas `.to_pandas()`, for polars `from_arrow`.

        Args:
            name: `classes`, `sentences`, `images`, `sentence_scores`, `anchors`, `class_stats` or `taxonomy`.
            at: As of this commit.
            columns: Which, and in what order; default all. `images` may hold the images' bytes in `data`.

        Raises:
            UsageError: If there is no table or column of that name.
            WorkspaceError: If there is no commit `at`.
        """
        snapshot = self.snapshot(at)
        known = snapshot.schema(name).names
        if unknown := [column for column in columns or () if column not in known]:
            raise UsageError(
                f"table {name!r} has no column {unknown[0]!r}", f"There are: {', '.join(known)}."
            )
        return snapshot.table(name, columns)

    @contextmanager
    def transaction(
        self, command: str, timeout: float | None = None, dry_run: bool = False
    ) -> Iterator[Transaction]:
        """Write: one commit at the end if anything changed, nothing if an error leaves the block.

        Args:
            command: What the commit says was run, without `vlltr`.
            timeout: Seconds to wait for another writer; default: in a folder as long as it takes, in object storage not
                at all.
            dry_run: Put the tables back at the end in place of the commit; new vectors stay, they are caches.

        Raises:
            LockedError: If another writer is still there after `timeout`.
        """
        from vlltr_index.store.transaction import Transaction, put_back

        with self.storage.lock(command, timeout):
            last = self.history.last()
            touched = put_back(self.store, last)
            if touched:
                _log.info("put back what an unfinished command left in %s", ", ".join(touched))
            self._sweep()
            tx = Transaction(self.store, self.history, command, last)
            try:
                yield tx
                if dry_run:
                    put_back(self.store, last)
                else:
                    tx.finish()
            except BaseException:
                try:
                    put_back(self.store, self.history.last())
                except WorkspaceError as error:  # such as a disk that is full: the next writer puts it back
                    _log.debug("what the command wrote was not put back: %s", error.message)
                raise

    def put_object(self, kind: Kind, build: Callable[[Path], object]) -> str:
        """Keep files that never change, named by their content; call it inside a transaction.

        Args:
            kind: Which folder they go to.
            build: Writes the files into the empty folder it is given.

        Returns:
            The digest that `object_path` takes: SHA-256 over names and bytes.

        Raises:
            WorkspaceError: If they cannot be written.
        """
        parent = self.path / kind
        try:
            with _folder_in(parent, ".tmp-") as temporary:
                build(temporary)
                digest = _digest_folder(temporary, sync=True)
                final = parent / digest[:16]
                if final.exists() and _digest_folder(final) != digest:
                    shutil.rmtree(final)  # damaged since: put it right
                if not final.exists():
                    os.rename(temporary, final)
                    sync_folder(parent)
        except (OSError, SafetensorError) as error:
            raise write_error(parent, error) from error
        self.storage.upload(f"{kind}/{final.name}")
        return digest

    def object_path(self, kind: Kind, digest: str) -> Path:
        """The local folder of an object; one in object storage is brought here first, and checked.

        Raises:
            MissingStepError: If it is gone.
            WorkspaceError: If what object storage has is not what was put there.
        """
        path = self.path / kind / digest[:16]
        if not digest.isalnum() or not (path.is_dir() or self._bring(kind, digest, path)):
            raise self._gone(kind, digest)
        return path

    def whole_object(self, kind: Kind, digest: str) -> Path:
        """The local folder of an object whose files are still those that were put there.

        Raises:
            MissingStepError: If it is gone.
            WorkspaceError: If a file of it was changed, cut short or deleted.
        """
        path = self.object_path(kind, digest)
        if not _digest_folder(path).startswith(digest):
            hint = f"Bring it back from a backup, or make it again: {_REMAKE[kind]}. "
            hint += "To go back to a commit that does without it: vlltr history, then vlltr rollback ID"
            if self.storage.at(f"{kind}/{path.name}") != str(path):  # object storage has it, this is a copy
                hint = f"Delete this copy, and it is fetched again: rm -r {shlex.quote(str(path))}"
            raise WorkspaceError(f"{path} is damaged: its files are not those that were written", hint)
        return path

    def check_object(self, kind: Kind, digest: str) -> None:
        """See whether an object is kept, without bringing it here.

        Raises:
            MissingStepError: If it is gone.
        """
        if not digest.isalnum() or next(self.storage.names(f"{kind}/{digest[:16]}"), None) is None:
            raise self._gone(kind, digest)

    def object_file(self, kind: Kind, digest: str, name: str) -> bytes:
        """One file of an object, without bringing the others here.

        Raises:
            OSError: If there is no such file.
            MissingStepError: If `digest` is no digest.
        """
        if not digest.isalnum():  # a commit's file may come from others
            raise self._gone(kind, digest)
        return self.storage.read(f"{kind}/{digest[:16]}/{name}")

    def _gone(self, kind: Kind, digest: str) -> MissingStepError:
        return MissingStepError(
            f"{self.storage.at(f'{kind}/{digest[:16]}')} is gone: the workspace's newest commits need it",
            f"Make it again: {_REMAKE[kind]}",
        )

    def _bring(self, kind: Kind, digest: str, final: Path) -> bool:
        """Bring an object here, whole or not at all; whether there was one."""
        name = f"{kind}/{final.name}"
        with _folder_in(final.parent, ".new-") as temporary:
            if not self.storage.download(name, temporary):
                return False
            if not _digest_folder(temporary).startswith(digest):
                raise WorkspaceError(
                    f"{self.storage.at(name)} is damaged: its content has another digest",
                    f"Bring it back from a backup, or make it again: {_REMAKE[kind]}",
                )
            try:
                os.rename(temporary, final)
            except OSError:  # another process gave the name to a folder of the same content
                if not final.is_dir():
                    raise
        return True

    def _sweep(self) -> None:
        """Remove what a killed writer left."""
        for unfinished in (self.path / "history").glob(".*.tmp"):
            unfinished.unlink()
        for kind in get_args(Kind):
            for left in (self.path / kind).glob(".tmp-*"):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _folder_in(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder that is removed at the end, unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    os.chmod(folder, 0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _digest_folder(folder: Path, sync: bool = False) -> str:
    """SHA-256 over the relative path and the bytes of every file, in path order; what others hid there is left out."""
    whole = hashlib.sha256()
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    files = {p.relative_to(folder).as_posix(): p for p in found}
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


def _for_toml(value: Any) -> Any:
    """`value` for TOML, which has no null: "none" stands for it."""
    if isinstance(value, dict):
        return {key: _for_toml(inner) for key, inner in value.items()}
    return "none" if value is None else value
