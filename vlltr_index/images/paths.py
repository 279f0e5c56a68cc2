"""Paths that a list of images names: each must lie below the list's root, really, and be a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vlltr_index.errors import InputError

__all__ = ["ListedFiles"]


class ListedFiles:
    """Files named by paths relative to `root`.

    Raises:
        InputError: If `root` is no folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(
                f"no such folder: {root}", "Name the one that the paths are relative to: --root DIR"
            )
        self.root = root.resolve()
        self._parents: dict[str, bool] = {}  # folders seen, and whether they really lie below the root

    def path(self, entry: str, where: str) -> str:
        """The full path of an entry, which must lie below the root.

        Raises:
            InputError: If it does not; `where` says where the entry stands.
        """
        full = os.path.normpath(os.path.join(self.root, entry))
        if not full.startswith(os.path.join(self.root, "")):
            raise InputError(
                f"{where}: the path {entry!r} leaves the folder {self.root}",
                "Paths must lie below the list's folder, or below the one given by --root DIR",
            )
        return full

    def source(self, full: str) -> str:
        """What an image is called in its list: its path below the root."""
        return full[len(str(self.root)) :].lstrip("/")

    def problem(self, full: str) -> str:
        """Why a file cannot be taken, or an empty string."""
        parent = os.path.dirname(full)
        if parent not in self._parents:
            self._parents[parent] = Path(os.path.realpath(parent)).is_relative_to(self.root)
        try:
            facts = os.lstat(full)
            if stat.S_ISLNK(facts.st_mode):
                if not Path(os.path.realpath(full)).is_relative_to(self.root):
                    return "a link that leaves the folder"
                facts = os.stat(full)
        except OSError:
            return "no such file"
        if not self._parents[parent]:
            return "a link that leaves the folder"
        return "" if stat.S_ISREG(facts.st_mode) else "not a file"

    def none_usable(self, listing: Path, missing: int, example: str) -> InputError:
        """The error where no file that a list names can be used."""
        return InputError(
            f"none of the {missing:,} files that {listing} names can be used, for example {example}",
            "Name the folder that the paths are relative to: --root DIR",
        )
