"""`vlltr prune`: old commits given up, and the files that only they needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from vlltr_index.errors import UsageError
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.workspace import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Commit
    from vlltr_index.store.workspace import Workspace

__all__ = ["PruneReport", "prune"]


@dataclass(frozen=True)
class PruneReport:
    """What pruning removed.

    Attributes:
        kept: Numbers of the commits that stay.
        pruned: Numbers of those given up.
        removed: Tables of vectors, and folders of heads, checkpoints and indexes, that no kept commit names.
    """

    kept: tuple[int, ...]
    pruned: tuple[int, ...]
    removed: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people."""
        gone = f"Gave up {len(self.pruned)} commits; kept: {', '.join(map(str, self.kept)) or 'none'}."
        return [gone, *(f"  removed {name}" for name in self.removed)]


def prune(workspace: Workspace, keep: int, progress: Progress | None = None) -> PruneReport:
    """Keep the newest `keep` commits; give up the others, and remove what only they needed.

    The commits that stay answer as before. Running it again after an interruption finishes the work. Readers of a
    commit that is given up fail; no process should be loading this workspace meanwhile.

    Raises:
        UsageError: If `keep` is below one.
        WorkspaceError: If a commit or a table is damaged.
    """
    if keep < 1:
        raise UsageError(f"at least the newest commit stays: --keep takes 1 or more, got {keep}")
    with workspace.transaction(f"prune --keep {keep}"):
        history, store, storage = workspace.history, workspace.store, workspace.storage
        commits = [history.read(i) for i in history.ids()]
        old, kept = commits[:-keep], commits[-keep:]
        named = "".join(commit.model_dump_json() for commit in kept)
        there = {
            f"{kind}/{name.partition('/')[0]}" for kind in get_args(Kind) for name in storage.names(kind)
        }
        objects = sorted(path for path in there if path.partition("/")[2] not in named)
        vectors = sorted((_vectors(old) - _vectors(kept)) & set(store.names()))
        for path in objects:
            storage.remove(path)
        for name in vectors:
            store.drop(name)
        names = [name for name in store.names() if store.exists(name)]
        merged = f"p{kept[-1].id}" if kept else ""  # the tag of the same rows, from where writers go on
        for done, name in enumerate(names):
            committed = bool(kept) and name in kept[-1].tables
            if committed:
                store.untag(
                    name, *(store.tags(name).keys() - {merged, *(f"c{commit.id}" for commit in kept)})
                )
            store.clean(name)
            if committed:
                store.tag(name, store.version(name), merged)
            if progress:
                progress("clean tables", done + 1, len(names))
        for commit in old:
            history.remove(commit.id)
    return PruneReport(tuple(c.id for c in kept), tuple(c.id for c in old), (*vectors, *objects))


def _vectors(commits: Iterable[Commit]) -> set[str]:
    """The tables of vectors that commits use."""
    texts = {sentence_vectors_name(c.text_fp) for c in commits if c.text_fp}
    return texts | {image_vectors_name(c.image_fp) for c in commits if c.image_fp}
