"""A table's versions: tags that keep them, going back to one, merging, and cleaning those away that nobody needs."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

from vlltr_index.errors import WorkspaceError
from vlltr_index.storage_errors import short, table_explained

__all__ = ["Versions", "is_gone", "version_gone"]

_log = logging.getLogger(__name__)

_NEVER = timedelta(days=36500)  # LanceDB's own limit, a week, fails where an older version is tagged
_MARGINS = tuple(timedelta(milliseconds=m) for m in (1, 3, 10, 50, 500, 5000))
_NO_TAG, _TAG_THERE = "Ref not found", "Ref conflict"  # in LanceDB's words
_GONE = "no longer exists"
_RACED = re.compile(r"conflict|contention|concurrent", re.I)  # another writer was in the way
_TAGGED = re.compile(r"Cleanup error: .*tagged version", re.I | re.S)


def is_gone(error: BaseException) -> bool:
    """Whether LanceDB says that a version was cleaned away."""
    return _GONE in str(error)


def version_gone(uri: str, name: str, version: int, error: BaseException) -> WorkspaceError:
    """What to say where a version of a table was cleaned away."""
    return WorkspaceError(
        f"version {version} of table {name!r} in {uri} is gone: {short(error)}",
        "See which commits are left: vlltr history",
    )


class Versions(ABC):
    """The part of a store that deals with the versions of its tables.

    Attributes:
        uri: Where the tables are.
    """

    uri: str

    @abstractmethod
    def _open(self, name: str, version: int | None = None) -> Any:
        """A handle of the table."""

    def _explained(self, name: str, what: str = "read") -> AbstractContextManager[None]:
        """In the block, LanceDB's errors about the table become a `WorkspaceError`."""
        return table_explained(self.uri, name, what)

    def version(self, name: str) -> int:
        """The newest version's number."""
        table = self._open(name)
        with self._explained(name):
            return int(table.version)

    def tags(self, name: str) -> dict[str, int]:
        """Tags and the version each names.

        Raises:
            WorkspaceError: If the file of one is damaged.
        """
        table = self._open(name)
        with self._explained(name, "asked for its tags"):
            return {tag: int(facts["version"]) for tag, facts in table.tags.list().items()}

    def tag(self, name: str, version: int, tag: str) -> None:
        """Name a version, which keeps it from being cleaned away; a tag that is there is moved."""
        tags = self._open(name).tags  # listing them would read a file for each
        with self._explained(name, "written"):
            try:
                tags.create(tag, version)
            except RuntimeError as error:
                if _TAG_THERE not in str(error):
                    raise
                tags.update(tag, version)

    def tagged(self, name: str, tag: str) -> int | None:
        """The version that a tag names; None if there is no such tag."""
        table = self._open(name)
        with self._explained(name, "asked for its tags"):
            try:
                return int(table.tags.get_version(tag))
            except RuntimeError as error:
                if _NO_TAG not in str(error):
                    raise
        return None

    def untag(self, name: str, *tags: str) -> None:
        """Remove tags, those that are there."""
        there = self._open(name).tags
        with self._explained(name, "written"):
            for tag in tags:
                try:
                    there.delete(tag)
                except RuntimeError as error:
                    if _NO_TAG not in str(error):
                        raise

    def restore(self, name: str, version: int) -> int:
        """Make an old version's rows the newest again; returns the number of the version that this makes.

        Raises:
            WorkspaceError: If the version was cleaned away.
        """
        table = self._open(name)
        with self._explained(name, "written"):
            try:
                table.restore(version)
            except ValueError as error:
                if not is_gone(error):
                    raise
                raise version_gone(self.uri, name, version, error) from None
            return int(table.version)

    def optimize(self, name: str) -> bool:
        """Merge small fragments, which makes a new version; False where another writer was in the way.

        Raises:
            WorkspaceError: If the table's files are damaged, or the disk is full.
        """
        table = self._open(name)
        with self._explained(name, "merged"):
            try:
                table.optimize(cleanup_older_than=_NEVER)
            except RuntimeError as error:
                if not _RACED.search(str(error)):
                    raise
                _log.debug("table %s was not merged: %s", name, error)
                return False
        return True

    def clean(self, name: str) -> bool:
        """Remove the versions before the oldest tagged one (without tags: all old ones), and files of no version.

        Small fragments are merged first, which makes a new version. No other process may write meanwhile. False means
        that LanceDB refused, and nothing was removed.

        Raises:
            WorkspaceError: If the table's files are damaged, or the disk is full.
        """
        self.optimize(name)
        table, tagged = self._open(name), set(self.tags(name).values())
        with self._explained(name, "cleaned"):
            kept = [v["timestamp"] for v in table.list_versions() if v["version"] in tagged]
            if _cleaned(table, name, kept):
                return True
        _log.info("table %s: its old versions could not be removed now; the next prune will try again", name)
        return False


def _cleaned(table: Any, name: str, kept: Sequence[datetime]) -> bool:
    """Remove what is older than all of `kept`; False where LanceDB takes a tagged version for an old one."""
    for margin in _MARGINS:  # the clock moves on, and LanceDB refuses where a tagged version looks old
        age = datetime.now() - min(kept) + margin if kept else margin  # LanceDB's times have no zone
        try:
            table.optimize(cleanup_older_than=max(age, _MARGINS[0]), delete_unverified=True)
            return True
        except RuntimeError as error:
            if not (_TAGGED.search(str(error)) or _RACED.search(str(error))):
                raise
            _log.debug("table %s was not cleaned: %s", name, error)
    return False
