"""A workspace in a folder or at a URI: its configuration, commits, tables, objects and lock."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import tomli_w

from vlltr_index.data.writing import SCRATCH
from vlltr_index.errors import (
    UsageError,
    VlltrError,
    WorkspaceError,
    reason,
)
from vlltr_index.schemas.config import CONFIG_NAME, FORMAT, Recipe, WorkspaceConfig, parse_toml, validate
from vlltr_index.store.durability import is_whole, recover
from vlltr_index.store.formats import NEWEST, another_format, newest_version
from vlltr_index.store.objects import Kind, Objects
from vlltr_index.store.snapshot import History
from vlltr_index.store.storage import Storage, storage_at

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.store.parts import PartReader
    from vlltr_index.store.snapshot import Commit, Snapshot
    from vlltr_index.store.tables import Store
    from vlltr_index.store.transaction import Transaction


_log = logging.getLogger(__name__)

_REFUSED = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # in a path, by LanceDB
_FOLDERS = ("history", "lance", *get_args(Kind))
_HEADER = '# A vlltr workspace. Change the recipe freely; "none" stands for no value.\n\n'


class Workspace:
    """A workspace in a folder or in object storage; made by `create`, `open` or `find`.

    Attributes:
        storage: Where its files are.
        address: What people call it: the folder's path, absolute, or the URI.
        path: The folder, absolute. Of a workspace in object storage: the local folder for copies of objects, for the
            state of runs that train here, logs, and what wikis answered.
        config: What its `vlltr.toml` says.
        objects: The files that its commits name.
        history: Its commits.
    """

    def __init__(self, place: Storage | str | os.PathLike[str], config: WorkspaceConfig) -> None:
        self.storage = place if isinstance(place, Storage) else storage_at(place)
        if _REFUSED.search(self.storage.address):
            raise UsageError(
                f"{self.storage.address!r} cannot hold a workspace: LanceDB takes no path with a tab, a line feed, "
                "another control character, or one that is not UTF-8",
                "Give the folder another name.",
            )
        self.address = self.storage.address
        self.path = self.storage.root
        self.config = config
        self.objects = Objects(self.storage)
        self.history = History(self.storage)
        self._trial: Transaction | None = None

    @property
    def recipe(self) -> Recipe:
        """The workspace's recipe."""
        return self.config.recipe

    @cached_property
    def store(self) -> Store:
        """The workspace's tables."""
        from vlltr_index.store.tables import Store

        return Store(self.storage.tables)

    @cached_property
    def parts(self) -> PartReader:
        """Reader of the parts that commits name."""
        from vlltr_index.store.parts import PartReader

        return PartReader(partial(self.objects.whole, "parts"))

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe: Recipe) -> Workspace:
        """Make a workspace in a new or empty folder, or at a URI; an existing one with the same recipe is opened.

        One in which nothing was committed yet takes the new recipe.

        Raises:
            UsageError: If `path` is an address that cannot hold a workspace.
            WorkspaceError: If the folder holds other things, or is a workspace with another recipe.
        """
        there = cls.check(path, recipe)
        if there is not None:
            if there.recipe != recipe:
                there.write_config(there.config.model_copy(update={"recipe": recipe}))
            return there
        storage = storage_at(path)
        workspace = cls(storage, WorkspaceConfig(recipe=recipe))
        try:
            workspace.history.begin()
            workspace.write_config()
        except OSError as error:
            raise WorkspaceError(
                f"{storage.address} cannot be made: {reason(error)}", "Choose another folder."
            ) from None
        return workspace

    @classmethod
    def check(cls, path: str | os.PathLike[str], recipe: Recipe) -> Workspace | None:
        """Check that `create` can make or open a workspace, without writing; return the one that is there, if any.

        Raises:
            UsageError, WorkspaceError: As for `create`.
        """
        storage = storage_at(path)
        if not storage.exists(CONFIG_NAME):
            _check_room(storage)
            return None
        there = cls.open(path)
        if there.recipe != recipe and there.history.last().id:
            raise WorkspaceError(
                f"{storage.address} is a workspace already, with {_differences(there.recipe, recipe)}",
                "Choose another folder (vlltr init DIR, vlltr fit --to DIR), or edit "
                f"{storage.at(CONFIG_NAME)}; vectors of another encoder are then made by: vlltr embed --force",
            )
        return there

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
            hint = f"Make one: vlltr init {shlex.quote(str(path))}"
            if storage.exists("SHA256SUMS"):
                served = f"vlltr serve {shlex.quote(str(path))}"
                hint = (
                    f"It is an export: open it in Python by Recognizer.from_pretrained, or by HTTP: {served}"
                )
            raise WorkspaceError(
                f"{storage.address} is not a workspace: it has no {CONFIG_NAME}", hint
            ) from None
        written = values.get("format")
        if written != FORMAT:
            raise another_format(file, written, newest_version(storage))
        workspace = cls(storage, validate(WorkspaceConfig, values, file))
        workspace._recover()
        return workspace

    @classmethod
    def find(cls, start: str | os.PathLike[str] | None = None) -> Workspace:
        """Open the workspace that `start` (default: the current folder) lies in.

        Raises:
            WorkspaceError: If neither it nor a folder above it is a workspace.
        """
        try:
            first = storage_at(Path.cwd() if start is None else start)
        except FileNotFoundError:
            raise WorkspaceError("the current folder was deleted", "Go to another: cd DIR") from None
        above = first.root.parents if type(first) is Storage else ()  # object storage has no folders above
        for storage in (first, *map(Storage, above)):
            if storage.exists(CONFIG_NAME):
                return cls.open(storage.address)
        raise WorkspaceError(
            f"no workspace: neither {first.address} nor a folder above it has a {CONFIG_NAME}",
            "Make one: vlltr init DIR, or name one: vlltr -w DIR ...",
        )

    def write_config(self, config: WorkspaceConfig | None = None) -> None:
        """Write `vlltr.toml`, whole or not at all; `config` replaces the current configuration."""
        self.config = config or self.config
        text = _HEADER + tomli_w.dumps(_for_toml(self.config.model_dump()))
        self.storage.write(CONFIG_NAME, text.encode("utf-8"))

    def snapshot(self, at: int | None = None) -> Snapshot:
        """Return a snapshot of one commit: the newest, or number `at`; in a trial without `at` what was written there.

        Raises:
            WorkspaceError: If there is no such commit, or its file is damaged.
        """
        from vlltr_index.store.snapshot import Snapshot

        if at is None and self._trial is not None:
            return self._trial
        commit = self.history.last() if at is None else self.history.read(at)
        return Snapshot(self.store, commit, self.objects, recipe=self.recipe, reader=self.parts)

    def table(self, name: str, at: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table as Arrow, as of the newest commit or `at`; for pandas `.to_pandas()`, for polars `from_arrow`.

        Args:
            name: `classes`, `sentences`, `images`, `origins`, `sentence_scores`, `anchors`, `class_stats`, `taxonomy`
                or `reviewed`.
            at: As of this commit.
            columns: Which, and in what order; default all. `images` may hold the images' bytes in `data`.

        Raises:
            UsageError: If there is no table or column of that name.
            WorkspaceError: If there is no commit `at`.
        """
        snapshot = self.snapshot(at)
        known = snapshot.schema(name).names
        unknown = [column for column in columns or () if column not in known]
        if unknown:
            raise UsageError(
                f"table {name!r} has no column {unknown[0]!r}", f"There are: {', '.join(known)}."
            )
        return snapshot.table(name, columns)

    def _recover(self) -> None:
        """Remove half-written files that LanceDB cannot open after a power cut, unless another process is writing."""
        lance = self.storage.lance
        with suppress(VlltrError, OSError):  # reading a table reports the error
            if lance is not None and not is_whole(lance):
                with self.storage.lock("doctor", timeout=0):
                    last = self.history.last()
                    recover(lance, last.id, last.tables)

    @contextmanager
    def transaction(
        self, command: str, timeout: float | None = None, dry_run: bool = False, mend: bool = False
    ) -> Iterator[Transaction]:
        """Open a transaction: one commit at the end if anything changed, none if an error leaves the block.

        Args:
            command: The command's text for the commit, without `vlltr`.
            timeout: Seconds to wait for another writer; default: in a folder as long as it takes, in object storage not
                at all.
            dry_run: Restore the tables at the end instead of committing; new vectors stay, since they are caches.
            mend: If the history is incomplete, continue from the newest commit that can be read, and make a commit in
                any case.

        Raises:
            LockedError: If another writer is still there after `timeout`.
            WorkspaceError: If the history is incomplete (without `mend`), or nothing of it can be read.
        """
        from vlltr_index.store.parts import next_parts
        from vlltr_index.store.transaction import Transaction, put_back

        if self._trial is not None:
            yield self._trial
            return
        with self.storage.lock(command, timeout):
            last, number = self._base(mend)
            touched = put_back(self.store, last, force=mend)
            if touched:
                _log.info("put back what an unfinished command left in %s", ", ".join(touched))
            self._sweep()
            tx = Transaction(
                self.store,
                self.history,
                command,
                last,
                objects=self.objects,
                recipe=self.recipe,
                reader=self.parts,
                number=number,
            )
            try:
                yield tx
                if dry_run:
                    put_back(self.store, last)
                else:
                    if tx.changed or tx.goes_back:
                        tx.set(parts=next_parts(tx, self.parts))
                    tx.finish()
            except BaseException:
                try:
                    put_back(self.store, self.history.last())
                except (
                    WorkspaceError
                ) as error:  # for example a full disk; the next writer restores the tables
                    _log.debug("what the command wrote was not put back: %s", error.message)
                raise

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Let commands run one after the other without a commit: each finds what those before it wrote.

        Raises:
            LockedError, WorkspaceError: As for `transaction`.
        """
        with self.transaction("fit --dry-run", dry_run=True) as self._trial:
            try:
                yield
            finally:
                self._trial = None

    def _base(self, mend: bool) -> tuple[Commit, int | None]:
        """Return the commit that a writer continues from, and the number of a commit that must be made in any case."""
        from vlltr_index.store.transaction import newest_tag

        commits, wrong = self.history.look() if mend else ((), ())
        last = commits[-1] if wrong else self.history.last()
        if self.storage.lance is not None:
            recover(self.storage.lance, last.id, last.tables)
        highest = max(self.history.highest(), newest_tag(self.store)) if mend else 0
        if wrong or highest > last.id + 1:  # a killed writer may have tagged the next number
            return last, highest + 1
        self.history.note_newest(last)
        return last, None

    def owns(self, place: Path) -> bool:
        """Say whether a place lies in a folder of the workspace, where commands delete what they do not know."""
        folders = (os.path.realpath(self.path / name) for name in (*_FOLDERS, "runs"))
        return any(Path(os.path.realpath(place)).is_relative_to(folder) for folder in folders)

    def _sweep(self) -> None:
        """Remove the scratch folders that a killed writer left."""
        for folder in ("", *_FOLDERS):
            for left in (self.path / folder).glob(f"{SCRATCH}*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def _differences(there: Recipe, asked: Recipe) -> str:
    """Name the first values in which two recipes differ."""
    found = list(_differing(there.model_dump(), asked.model_dump()))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(f"{key} {mine!r}, not {other!r}" for key, mine, other in found[:3]) + more


def _check_room(storage: Storage) -> None:
    """Check that a place where no workspace is holds nothing else.

    Raises:
        WorkspaceError: It holds other things.
    """
    if any(name != NEWEST for name in storage.names()):  # a killed `init` leaves this one file
        raise WorkspaceError(
            f"{storage.address} is not empty and not a workspace", "Choose a new one: vlltr init DIR"
        )


def _differing(
    there: dict[str, Any], asked: dict[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key, value in there.items():
        if isinstance(value, dict):
            yield from _differing(value, asked[key], f"{above}{key}.")
        elif value != asked[key]:
            yield f"{above}{key}", value, asked[key]


def _for_toml(value: Any) -> Any:
    """Replace None by "none" in a value, since TOML has no null."""
    if isinstance(value, dict):
        return {key: _for_toml(inner) for key, inner in value.items()}
    return "none" if value is None else value
