"""`vlltr rollback` and `vlltr diff`: going back to an earlier commit, and what lies between two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.fingerprint import short

if TYPE_CHECKING:
    from vlltr_index.history import Commit
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["Changes", "DiffReport", "RollbackReport", "diff", "rollback", "undone"]

_EXAMPLES = 3  # rows of each kind that are shown, and classes a line
_SHOWN = 10  # classes of a kind of row that are listed for people


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
        WorkspaceError: If there is no such commit, it was pruned, or there are commits after `newest`.
        MissingStepError: If files of its encoder, head or index are gone.
    """
    with workspace.transaction(f"rollback {commit_id}") as tx:
        if newest is not None and tx.commit is not None and tx.commit.id != newest:
            raise WorkspaceError(
                f"commit {tx.commit.id} ({tx.commit.command}) has come since, and going back would undo it too",
                f"See what there is: vlltr history; then, if that is meant: vlltr rollback {commit_id}",
            )
        target = workspace.history.read_kept(commit_id)
        _check_files(workspace, target)
        last = tx.commit
        if last is not None and last.state != target.state:
            tx.go_back(target)
    made = tx.result_commit
    assert made is not None  # there was one to go back to
    return RollbackReport(commit_id, target.command, made.id, made != last)


def undone(workspace: Workspace, commit_id: int) -> list[str]:
    """The commands whose effect going back to `commit_id` takes away, oldest first; none where nothing would change.

    Raises:
        WorkspaceError: If there is no such commit, or it was pruned.
    """
    target, last = workspace.history.read_kept(commit_id), workspace.history.last()
    if last is None or last.state == target.state:
        return []
    return [workspace.history.read(i).command for i in workspace.history.ids() if i > commit_id]


def _check_files(workspace: Workspace, commit: Commit) -> None:
    if commit.checkpoint:
        workspace.check_object("checkpoints", commit.checkpoint)
    if commit.head:
        workspace.check_object("heads", commit.head)
    if commit.index:
        workspace.check_object("index", str(commit.index["digest"]))


@dataclass(frozen=True)
class Changes:
    """Rows of one kind that came to or left one class.

    Attributes:
        name: The class; empty for images of no class.
        added: How many came.
        removed: How many left.
        added_examples: A few of those: texts of sentences, addresses of images.
        removed_examples: A few of these.
    """

    name: str
    added: int
    removed: int
    added_examples: tuple[str, ...]
    removed_examples: tuple[str, ...]


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
        sentences: By class.
        images: By class; an image that moved from one class to another left the one and came to the other.
        anchors: By class: sentences that became anchors, or no longer are.
        settings: Field of the commit to its values before and after: encoder, head, index, fusion, selection.
    """

    before: int
    after: int
    commands: tuple[str, ...]
    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]
    classes_renamed: tuple[tuple[str, str], ...]
    sentences: tuple[Changes, ...]
    images: tuple[Changes, ...]
    anchors: tuple[Changes, ...]
    settings: dict[str, tuple[Any, Any]]

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [f"from commit {self.before} to commit {self.after}"]
        lines += [f"  ran: vlltr {command}" for command in self.commands]
        lines += [f"  class added: {name}" for name in self.classes_added[:_SHOWN]]
        lines += [f"  class removed: {name}" for name in self.classes_removed[:_SHOWN]]
        lines += [f"  class renamed: {old} -> {new}" for old, new in self.classes_renamed[:_SHOWN]]
        for what in ("sentences", "images", "anchors"):
            lines += _change_lines(what, getattr(self, what))
        for name, (old, new) in self.settings.items():
            lines.append(f"  {name}: {_value(old)} -> {_value(new)}")
        first = 1 + len(self.commands)
        return lines if len(lines) > first else [*lines, "  no difference"]


def _change_lines(what: str, changes: tuple[Changes, ...]) -> Iterator[str]:
    if not changes:
        return
    added, removed = sum(c.added for c in changes), sum(c.removed for c in changes)
    yield f"  {what}: {added:,} added, {removed:,} removed, in {len(changes):,} classes"
    for change in changes[:_SHOWN]:
        yield f"    {change.name or '(no class)'}: +{change.added:,} -{change.removed:,}"
        yield from (f"      + {text}" for text in change.added_examples)
        yield from (f"      - {text}" for text in change.removed_examples)
    if len(changes) > _SHOWN:
        yield f"    and {len(changes) - _SHOWN:,} more classes"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items() if v is not None)
    return short(value) if isinstance(value, str) else "none" if value is None else str(value)


def diff(workspace: Workspace, before: int, after: int) -> DiffReport:
    """What differs between two commits, and the commands between them.

    Raises:
        WorkspaceError: If there is no such commit, or it was pruned.
    """
    old, new = workspace.snapshot(before), workspace.snapshot(after)
    names_old, names_new = old.class_table().names, new.class_table().names
    active_old, active_new = set(old.class_table().ids), set(new.class_table().ids)
    names = {**names_old, **names_new}
    texts_old, texts_new = _texts(old), _texts(new)
    between = [i for i in workspace.history.ids() if min(before, after) < i <= max(before, after)]
    return DiffReport(
        before,
        after,
        tuple(workspace.history.read(i).command for i in between),
        tuple(names_new[i] for i in sorted(active_new - active_old)),
        tuple(names_old[i] for i in sorted(active_old - active_new)),
        tuple(
            (names_old[i], names_new[i])
            for i in sorted(active_old & active_new)
            if names_old[i] != names_new[i]
        ),
        _by_class(texts_old, texts_new, names),
        _by_class(_addresses(old), _addresses(new), names),
        _by_class(_anchors(old, texts_old), _anchors(new, texts_new), names),
        _settings(old.commit, new.commit),
    )


_Rows = dict[tuple[int, str], str]  # (class, key) -> what to show; class -1 is none


def _texts(snapshot: Snapshot) -> _Rows:
    rows = snapshot.table("sentences", ["class_id", "sentence_id", "text"])
    return {(c, i): t for c, i, t in zip(*(column.to_pylist() for column in rows.columns), strict=True)}


def _addresses(snapshot: Snapshot) -> _Rows:
    rows = snapshot.table("images", ["class_id", "image_id", "uri"])
    triples = zip(*(column.to_pylist() for column in rows.columns), strict=True)
    return {(-1 if c is None else c, i): uri for c, i, uri in triples}


def _anchors(snapshot: Snapshot, texts: _Rows) -> _Rows:
    rows = snapshot.table("anchors", ["class_id", "sentence_id"])
    pairs = zip(*(column.to_pylist() for column in rows.columns), strict=True)
    return {pair: texts.get(pair, pair[1]) for pair in pairs}


def _by_class(old: _Rows, new: _Rows, names: dict[int, str]) -> tuple[Changes, ...]:
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    came, left = Counter(owner for owner, _ in added), Counter(owner for owner, _ in removed)
    examples: dict[tuple[bool, int], list[str]] = {}
    for is_new, keys, rows in ((True, added, new), (False, removed, old)):
        for key in keys:
            shown = examples.setdefault((is_new, key[0]), [])
            if len(shown) < _EXAMPLES:
                shown.append(rows[key])
    return tuple(
        Changes(
            names.get(owner, ""),
            came[owner],
            left[owner],
            tuple(examples.get((True, owner), ())),
            tuple(examples.get((False, owner), ())),
        )
        for owner in sorted(came.keys() | left.keys())
    )


_SETTINGS = {
    "encoder": "checkpoint",
    "text tower": "text_fp",
    "visual tower": "image_fp",
    "selection": "selection_id",
    "head": "head",
    "fusion": "fusion",
    "index": "index",
}


def _settings(old: Commit | None, new: Commit | None) -> dict[str, tuple[Any, Any]]:
    assert old is not None
    assert new is not None
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return {
        name: (before[field], after[field])
        for name, field in _SETTINGS.items()
        if before[field] != after[field]
    }
