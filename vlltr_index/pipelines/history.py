"""`vlltr rollback` and `vlltr diff`: going back to an earlier commit, and what lies between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlltr_index.errors import WorkspaceError

if TYPE_CHECKING:
    from vlltr_index.store.workspace import Workspace


@dataclass(frozen=True)
class RollbackReport:
    """What going back did.

    Attributes:
        target: The commit gone back to.
        command: What made that commit.
        commit: The commit that this made; the newest one where the state was that one's already.
        changed: Whether a commit was made.
    """

    target: int
    command: str
    commit: int
    changed: bool

    def lines(self) -> list[str]:
        """The report for people."""
        if not self.changed:
            return [f"The workspace is in the state of commit {self.target} ({self.command}) already."]
        return [
            f"Commit {self.commit} has the state of commit {self.target} ({self.command}). Nothing is lost:"
            f" vlltr rollback {self.commit - 1} takes this back.",
            "vlltr.toml is as it was: what is trained from here on follows it.",
        ]


def rollback(workspace: Workspace, commit_id: int, newest: int | None = None) -> RollbackReport:
    """Append a commit that has the rows, encoder, head, index and fusion values of commit `commit_id`.

    History is not rewritten, numbers of classes and anchors are not used again, and vectors stay: they are caches.

    Args:
        workspace: The workspace.
        commit_id: Where to go back to.
        newest: Go back only if this is still the newest commit, so that nobody else's work is taken back.

    Raises:
        WorkspaceError: If there is no such commit, or there are commits after `newest`.
        MissingStepError: If files of its encoder, head or index are gone.
    """
    with workspace.transaction(f"rollback {commit_id}") as tx:
        target = workspace.history.read(commit_id)
        if newest is not None and tx.commit.id != newest:
            raise WorkspaceError(
                f"commit {tx.commit.id} ({tx.commit.command}) has come since, and going back would undo it too",
                f"See what there is: vlltr history; then, if that is meant: vlltr rollback {commit_id}",
            )
        if target.checkpoint:
            workspace.check_object("checkpoints", target.checkpoint)
        if target.head:
            workspace.check_object("heads", target.head)
        if target.index:
            workspace.check_object("index", target.index.digest)
        last = tx.commit
        if last.state != target.state:
            tx.go_back(target)
    made = tx.result_commit
    return RollbackReport(commit_id, target.command, made.id, made != last)


def undone(workspace: Workspace, commit_id: int) -> list[str]:
    """The commands whose effect going back to `commit_id` takes away, oldest first; none where nothing would change.

    Raises:
        WorkspaceError: If there is no such commit.
    """
    target, last = workspace.history.read(commit_id), workspace.history.last()
    if last.state == target.state:
        return []
    return [workspace.history.read(i).command for i in workspace.history.ids() if i > commit_id]


@dataclass(frozen=True)
class DiffReport:
    """What differs between two commits.

    Attributes:
        before: The one commit.
        after: The other.
        commands: What was run after the earlier of the two, up to the later one.
        classes_added: Names of classes in use that were not.
        classes_removed: Names of classes that were in use.
        classes_renamed: Pairs of old and new name.
        rows: How many sentences, images and anchors there were, and are.
    """

    before: int
    after: int
    commands: tuple[str, ...]
    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]
    classes_renamed: tuple[tuple[str, str], ...]
    rows: dict[str, tuple[int, int]]

    def lines(self) -> list[str]:
        """The report for people."""
        return [
            f"from commit {self.before} to commit {self.after}",
            *(f"  ran: vlltr {command}" for command in self.commands),
            *(f"  class added: {name}" for name in self.classes_added),
            *(f"  class removed: {name}" for name in self.classes_removed),
            *(f"  class renamed: {old} -> {new}" for old, new in self.classes_renamed),
            *(f"  {name}: {old:,} -> {new:,}" for name, (old, new) in self.rows.items()),
        ]


def diff(workspace: Workspace, before: int, after: int) -> DiffReport:
    """What differs between two commits, and the commands between them.

    Raises:
        WorkspaceError: If there is no such commit.
    """
    old, new = workspace.snapshot(before), workspace.snapshot(after)
    names_old, names_new = old.class_table().names, new.class_table().names
    active_old, active_new = set(old.class_table().ids), set(new.class_table().ids)
    between = [i for i in workspace.history.ids() if min(before, after) < i <= max(before, after)]
    renamed = [i for i in sorted(active_old & active_new) if names_old[i] != names_new[i]]
    return DiffReport(
        before=before,
        after=after,
        commands=tuple(workspace.history.read(i).command for i in between),
        classes_added=tuple(names_new[i] for i in sorted(active_new - active_old)),
        classes_removed=tuple(names_old[i] for i in sorted(active_old - active_new)),
        classes_renamed=tuple((names_old[i], names_new[i]) for i in renamed),
        rows={name: (old.count(name), new.count(name)) for name in ("sentences", "images", "anchors")},
    )
