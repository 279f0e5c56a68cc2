"""`vlltr prune`: old commits given up, and the files that only they needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.schemas.tables import KEYS, image_vectors_name, sentence_vectors_name
from vlltr_index.workspace import Kind

if TYPE_CHECKING:
    from vlltr_index.history import Commit
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store import Store
    from vlltr_index.workspace import Workspace

__all__ = ["PruneReport", "prune"]

_HEAVY = frozenset({"data", "vector"})  # columns that are not read to see whether a table can be
_DIGEST = re.compile(r"[0-9a-f]{16,64}\Z")


@dataclass(frozen=True)
class PruneReport:
    """What pruning removed, or would remove.

    Attributes:
        kept: Numbers of the commits that stay.
        pruned: Numbers of those given up now; earlier ones are not among them.
        vectors: Tables of vectors that no kept commit uses.
        objects: Folders of heads, checkpoints and indexes that no kept commit names, relative to the workspace.
        freed: Bytes freed by part (tables, vectors, heads, checkpoints, index); less than 0 where merging small files
            took more than was freed: the newest commit's own files stay beside the merged ones until it is pruned.
            With `dry_run`, without what cleaning the tables frees.
        dry_run: Whether nothing was removed.
    """

    kept: tuple[int, ...]
    pruned: tuple[int, ...]
    vectors: tuple[str, ...]
    objects: tuple[str, ...]
    freed: dict[str, int] = field(default_factory=dict)
    dry_run: bool = False

    def lines(self) -> list[str]:
        """The report for people."""
        verb = "Would prune" if self.dry_run else "Pruned"
        gone = f"commits {_range(self.pruned)}" if self.pruned else "no commit"
        lines = [f"{verb} {gone}; kept: {_range(self.kept)}."]
        lines += [f"  {what}" for what in (*self.vectors, *self.objects)]
        freed = self._freed()
        if self.dry_run:
            return [*lines, f"Would free {freed or _bytes(0)}, and old versions of the tables."]
        grown = -sum(size for size in self.freed.values() if size < 0)
        if not grown:
            return [*lines, f"Freed {freed or _bytes(0)}."]
        merged = (
            f"the tables were merged, and take {_bytes(grown)} more until commit {self.kept[-1]} is pruned"
        )
        return [*lines, f"Freed {freed}; {merged}." if freed else f"Nothing to free; {merged}."]

    def _freed(self) -> str:
        """What was freed, and of what parts; nothing where nothing was."""
        freed = {part: size for part, size in self.freed.items() if size > 0}
        parts = ", ".join(f"{part} {_bytes(size)}" for part, size in freed.items())
        return f"{_bytes(sum(freed.values()))} ({parts})" if freed else ""


def prune(
    workspace: Workspace, keep: int, dry_run: bool = False, progress: Progress | None = None
) -> PruneReport:
    """Keep the newest `keep` commits; give up the others, and remove what only they needed.

    The commits that stay answer as before. Running it again after an interruption finishes the work. Readers of a
    commit that is given up fail; no process should be loading this workspace meanwhile.

    Raises:
        UsageError: If `keep` is below one.
        WorkspaceError: If a table that stays, or a tag of one, is damaged; nothing is given up then.
    """
    if keep < 1:
        raise UsageError(f"at least the newest commit stays: --keep takes 1 or more, got {keep}")
    if dry_run:
        return _plan(workspace, keep, dry_run=True)
    with workspace.transaction(f"prune --keep {keep}"):
        plan = _plan(workspace, keep)
        before = _sizes(workspace)
        if plan.kept:
            _check_tables(workspace, plan)
            workspace.history.mark_pruned(plan.kept[0])
        for name in plan.objects:  # first: merging tables needs space
            workspace.storage.remove(name)
        with _unfinished():
            if plan.kept:
                _clean_tables(workspace, plan, progress)
        workspace.storage.tidy()
        after = _sizes(workspace)
    freed = {part: before[part] - after[part] for part in before}
    return PruneReport(plan.kept, plan.pruned, plan.vectors, plan.objects, freed)


def _plan(workspace: Workspace, keep: int, dry_run: bool = False) -> PruneReport:
    history = workspace.history
    ids, oldest = history.ids(), history.oldest_kept()
    kept = tuple(i for i in ids[-keep:] if i >= oldest)
    commits = [history.read(i) for i in kept]
    needed = {digest[:16] for commit in commits for digest in _digests(commit.model_dump(mode="json"))}
    objects = tuple(
        f"{kind}/{name}"
        for kind in get_args(Kind)
        for name in workspace.storage.folders(kind)
        if name not in needed
    )
    given_up = [history.read(i) for i in ids if kept and i < kept[0]]
    vectors = tuple(sorted((_vectors(given_up) - _vectors(commits)) & set(workspace.store.names())))
    freed: dict[str, int] = {}
    if dry_run:
        freed["vectors"] = sum(workspace.storage.size(f"lance/{name}.lance") for name in vectors)
        for name in objects:
            kind = name.partition("/")[0]
            freed[kind] = freed.get(kind, 0) + workspace.storage.size(name)
    pruned = tuple(i for i in ids if kept and oldest <= i < kept[0])
    return PruneReport(kept, pruned, vectors, objects, freed, dry_run)


def _check_tables(workspace: Workspace, plan: PruneReport) -> None:
    """Read what stays, all but the images' bytes and the vectors, before anything is given up.

    Raises:
        WorkspaceError: If it cannot be read.
    """
    store, history = workspace.store, workspace.history
    kept = [history.read(i).tables for i in plan.kept]
    try:
        for name in store.names():
            versions = {tables[name] for tables in kept if name in tables}
            for version in sorted(versions):
                _read(store, name, version)
            if versions:
                store.tags(name)
            elif name not in KEYS and name not in plan.vectors:
                _read(store, name, None)
    except WorkspaceError as error:
        raise WorkspaceError(f"nothing was pruned: {error.message}", error.hint) from None


def _read(store: Store, name: str, version: int | None) -> None:
    columns = [column for column in store.schema(name, version).names if column not in _HEAVY]
    for _ in store.scan(name, columns, version=version):
        pass


@contextmanager
def _unfinished() -> Iterator[None]:
    """Say, where it stops once commits are given up, that the rest is to be done again."""
    try:
        yield
    except WorkspaceError as error:
        raise WorkspaceError(
            f"pruning stopped half-way: {error.message}",
            "The commits that stay are whole. Once that is mended, run the same command again: it finishes the work.",
        ) from None


def _clean_tables(workspace: Workspace, plan: PruneReport, progress: Progress | None) -> None:
    store, newest = workspace.store, plan.kept[-1]
    committed = workspace.history.read(newest).tables
    for name in plan.vectors:
        store.drop(name)
    names = store.names()
    for done, name in enumerate(names):
        if name in committed:
            keep = {f"c{i}" for i in plan.kept} | {f"p{newest}"}
            store.untag(name, *(tag for tag in store.tags(name) if tag[:1] in "cp" and tag not in keep))
            store.optimize(name)
            if store.version(name) != committed[name]:
                store.tag(
                    name, store.version(name), f"p{newest}"
                )  # the same rows: the next writer goes on from here
        if name in committed or name not in KEYS:
            store.clean(name)
        if progress:
            progress("clean tables", done + 1, len(names))


def _digests(value: Any) -> Iterator[str]:
    """Every text inside a commit that may name an object."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _digests(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _digests(inner)
    elif isinstance(value, str) and _DIGEST.match(value):
        yield value


def _vectors(commits: list[Commit]) -> set[str]:
    """The tables of vectors that commits use."""
    texts = {sentence_vectors_name(c.text_fp) for c in commits if c.text_fp}
    return texts | {image_vectors_name(c.image_fp) for c in commits if c.image_fp}


def _sizes(workspace: Workspace) -> dict[str, int]:
    """Bytes by part of the workspace."""
    sizes = {"tables": 0, "vectors": 0}
    for folder in workspace.storage.folders("lance"):
        part = "tables" if folder.removesuffix(".lance") in KEYS else "vectors"
        sizes[part] += workspace.storage.size(f"lance/{folder}")
    return sizes | {kind: workspace.storage.size(kind) for kind in get_args(Kind)}


def _range(ids: tuple[int, ...]) -> str:
    if not ids:
        return "none"
    return f"{ids[0]}" if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"


def _bytes(size: int) -> str:
    value, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
