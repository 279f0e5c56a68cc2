"""Go back to a commit, compare two, and delete old ones (`vlltr rollback`, `diff` and `prune`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.schemas.tables import KEYS, image_vectors_name, sentence_readings_name, sentence_vectors_name
from vlltr_index.store.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Commit
    from vlltr_index.store.workspace import Workspace


@dataclass(frozen=True)
class RollbackReport:
    """Report of a rollback.

    Attributes:
        target: Number of the commit whose state was restored.
        command: The command that made that commit.
        commit: Number of the new commit, or of the newest one if that had the state already.
        changed: Whether a commit was made.
        before: Number of the newest readable commit before the rollback.
        damaged: Numbers of the commits that were given up because their files are damaged.
    """

    target: int
    command: str
    commit: int
    changed: bool
    before: int
    damaged: tuple[int, ...] = ()


def rollback(workspace: Workspace, commit_id: int, newest: int | None = None) -> RollbackReport:
    """Append a commit that has the rows, encoder, head, index, parts and fusion values of commit `commit_id`.

    Parts that are damaged or gone are written again from its tables, even if the workspace is in that state already.
    History is not rewritten, ids of classes and anchors are not reused, and vectors stay: they are caches.
    Commits that are damaged or gone are given up.

    Args:
        workspace: The workspace.
        commit_id: Where to go back to.
        newest: Go back only if this is still the newest commit, so that no other process's work is undone.

    Raises:
        WorkspaceError: If there is no such commit, or there are commits after `newest`.
        MissingStepError: If files of its encoder, head or index are gone.
    """
    with workspace.transaction(f"rollback {commit_id}", mend=True) as tx:
        target = workspace.history.read(commit_id)
        if newest is not None and tx.commit.id != newest:
            raise WorkspaceError(
                f"commit {tx.commit.id} ({tx.commit.command}) has come since, and going back would undo it too",
                f"See what there is: vlltr history; then, if that is meant: vlltr rollback {commit_id}",
            )
        index = target.index.digest if target.index else None
        named: dict[Kind, str | None] = {
            "checkpoints": target.checkpoint,
            "heads": target.head,
            "index": index,
        }
        for kind, digest in named.items():
            if digest:
                workspace.objects.check(kind, digest)
        last = tx.commit
        if last.state != target.state or _lacks_parts(workspace, target):
            tx.go_back(target)
    made = tx.result_commit
    damaged = workspace.history.set_aside()  # last, so that nothing is set aside if the rollback fails
    return RollbackReport(
        target=commit_id,
        command=target.command,
        commit=made.id,
        changed=made != last,
        before=last.id,
        damaged=tuple(damaged),
    )


def _lacks_parts(workspace: Workspace, commit: Commit) -> bool:
    """Say whether a commit has a head but no parts, or parts that are damaged or gone."""
    if not commit.parts:
        return commit.head is not None
    try:
        workspace.parts.read(commit.parts)
    except WorkspaceError:
        return True
    return False


def undone(workspace: Workspace, commit_id: int) -> list[str]:
    """Return the commands whose effect a rollback to `commit_id` would undo, oldest first; none if it changes
    nothing.

    Commands of commits that cannot be read are left out.

    Raises:
        WorkspaceError: If there is no such commit.
    """
    target = workspace.history.read(commit_id)
    commits, _ = workspace.history.look()
    if commits[-1].state == target.state:
        return []
    return [commit.command for commit in commits if commit.id > commit_id]


@dataclass(frozen=True)
class DiffReport:
    """Differences between two commits.

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


def diff(workspace: Workspace, before: int, after: int) -> DiffReport:
    """Compare two commits, and list the commands between them.

    Raises:
        WorkspaceError: If there is no such commit.
    """
    old = workspace.snapshot(before)
    new = workspace.snapshot(after)
    was = {i: old.class_table().names[i] for i in old.class_table().ids}
    now = {i: new.class_table().names[i] for i in new.class_table().ids}
    between = [i for i in workspace.history.ids() if min(before, after) < i <= max(before, after)]
    return DiffReport(
        before=before,
        after=after,
        commands=tuple(workspace.history.read(i).command for i in between),
        classes_added=tuple(name for i, name in now.items() if i not in was),
        classes_removed=tuple(name for i, name in was.items() if i not in now),
        classes_renamed=tuple((was[i], name) for i, name in now.items() if was.get(i, name) != name),
        rows={name: (old.count(name), new.count(name)) for name in ("sentences", "images", "anchors")},
    )


@dataclass(frozen=True)
class PruneReport:
    """Report of a pruning.

    Attributes:
        kept: Numbers of the commits that stay.
        pruned: Numbers of those given up.
        removed: Tables of vectors, and folders of heads, checkpoints and indexes, that no kept commit names.
    """

    kept: tuple[int, ...]
    pruned: tuple[int, ...]
    removed: tuple[str, ...]


def prune(workspace: Workspace, keep: int, progress: Progress | None = None) -> PruneReport:
    """Keep the newest `keep` commits, delete the others, and remove what only they needed.

    The commits that stay answer as before. Running it again after an interruption finishes the work. Readers of a
    commit that is given up fail; no process should be loading this workspace meanwhile.

    Raises:
        UsageError: If `keep` is below one.
        WorkspaceError: If a commit or a table is damaged.
    """
    if keep < 1:
        raise UsageError(f"at least the newest commit stays: --keep takes 1 or more, got {keep}")
    with workspace.transaction(f"prune --keep {keep}"):
        history = workspace.history
        store = workspace.store
        storage = workspace.storage
        commits = history.list()
        old = commits[:-keep]
        kept = commits[-keep:]
        named = "".join(commit.model_dump_json() for commit in kept)
        there = {(kind, name.partition("/")[0]) for kind in get_args(Kind) for name in storage.names(kind)}
        objects = [f"{kind}/{name}" for kind, name in sorted(there) if name not in named]
        vectors = sorted((_vectors(old) - _vectors(kept)) & set(store.names()))
        for path in objects:
            storage.remove(path)
        for name in vectors:
            store.drop(name)
        names = [name for name in store.names() if store.exists(name)]
        merged = f"p{kept[-1].id}" if kept else ""  # tag of the cleaned version with the newest commit's rows
        for done, name in enumerate(names):
            committed = bool(kept) and name in kept[-1].tables
            if name in KEYS:
                store.untag(name, *(store.tags(name).keys() - {merged, *(f"c{one.id}" for one in kept)}))
            store.clean(name)
            if committed:
                store.tag(name, store.version(name), merged)
            if progress:
                progress("clean tables", done + 1, len(names))
        for commit in old:
            history.remove(commit.id)
    return PruneReport(tuple(c.id for c in kept), tuple(c.id for c in old), (*vectors, *objects))


def _vectors(commits: Iterable[Commit]) -> set[str]:
    """Return the names of the vector tables that commits use."""
    texts = {sentence_vectors_name(c.text_fp) for c in commits if c.text_fp}
    texts |= {sentence_readings_name(c.info.reading.fp) for c in commits if c.info.reading}
    return texts | {image_vectors_name(c.image_fp) for c in commits if c.image_fp}
