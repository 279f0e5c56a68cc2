"""Answers of a wiki, kept on disk, so that a stopped run goes on and a repeated one asks nothing."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["AnswerCache"]


class AnswerCache:
    """JSON values by kind and key, a file each, in a folder; a damaged file counts as missing.

    Args:
        folder: Made when the first value is written.
        wiki: What the answers are of; another wiki's are never returned.
        refresh: Whether to ask for everything anew and only write.
    """

    def __init__(self, folder: Path, wiki: str, refresh: bool = False) -> None:
        self.folder, self.wiki, self.refresh = folder, wiki, refresh
        self._fresh: set[Path] = set()

    def _file(self, kind: str, key: str) -> Path:
        digest = hashlib.sha256(f"{self.wiki}\0{kind}\0{key}".encode()).hexdigest()
        return self.folder / kind / digest[:2] / f"{digest[2:32]}.json"

    def get(self, kind: str, key: str) -> tuple[Any] | None:
        """The value in a tuple of one, None where there is none."""
        file = self._file(kind, key)
        if self.refresh and file not in self._fresh:
            return None
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if (stored["wiki"], stored["key"]) == (self.wiki, key):
                return (stored["value"],)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keep a value, whole or not at all."""
        file = self._file(kind, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".tmp-")
        try:
            with open(handle, "w", encoding="utf-8") as out:
                json.dump({"wiki": self.wiki, "key": key, "value": value}, out, ensure_ascii=False)
            os.replace(temporary, file)
            self._fresh.add(file)
        finally:
            Path(temporary).unlink(missing_ok=True)
