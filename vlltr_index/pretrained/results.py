"""The newest evaluation of what is exported, as `vlltr evaluate` left it in the workspace's `reports/`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from vlltr_index.errors import WorkspaceError

if TYPE_CHECKING:
    from vlltr_index.history import Commit
    from vlltr_index.workspace import Workspace

__all__ = ["Results", "newest_results"]

_log = logging.getLogger(__name__)

_SAME = ("head", "checkpoint", "text_fp", "image_fp", "fusion", "selection_id")
_TABLES = ("anchors", "class_stats")


@dataclass(frozen=True)
class Results:
    """One evaluation.

    Attributes:
        split: Which images.
        commit: Which commit was measured.
        same: Whether what was measured is what is exported.
        facts: The report as it was written.
    """

    split: str
    commit: int
    same: bool
    facts: Mapping[str, Any]


def newest_results(workspace: Workspace, commit: Commit) -> Results | None:
    """The newest plain evaluation of `commit` or one before it, preferring split test; None if there is none."""
    found: list[tuple[tuple[int, bool], Results]] = []
    for name in workspace.storage.names("reports"):
        if not fnmatch(name, "evaluate-*.json"):
            continue
        try:
            facts = json.loads(workspace.storage.read(f"reports/{name}"))
            number, split = int(facts["commit"]), str(facts["split"])
            rows = facts["rows"]["vl-ltr"]
            if not isinstance(rows, dict) or facts["crops"] != 1 or number > commit.id:
                continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            path = workspace.storage.at(f"reports/{name}")
            _log.warning("%s is left out of the model card: %s: %s", path, type(error).__name__, error)
            continue
        same = _same(workspace, commit, number)
        found.append(((number, split == "test"), Results(split, number, same, facts)))
    return max(found, key=lambda item: item[0])[1] if found else None


def _same(workspace: Workspace, commit: Commit, number: int) -> bool:
    """Whether commit `number` answers as `commit` does: the same towers, head, anchors, class statistics and rule."""
    try:
        other = workspace.history.read(number)
    except WorkspaceError:
        return False
    return all(getattr(other, name) == getattr(commit, name) for name in _SAME) and all(
        other.tables.get(name) == commit.tables.get(name) for name in _TABLES
    )
