"""A model that answers, from one commit of a workspace or from an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vlltr_index.anchors.index import AnchorIndex, load_index
from vlltr_index.embedding.loading import open_encoder
from vlltr_index.recognition.scorer import Scorer, load_scorer

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.store.class_registry import ClassTable
    from vlltr_index.store.history import Commit
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

__all__ = ["TEXT_COLUMNS", "ModelBundle", "Texts", "load_bundle", "texts_of"]

TEXT_COLUMNS = ("sentence_id", "text", "source", "source_ref", "licence")

Texts = Mapping[str, tuple[str, str, str | None, str | None]]
"""Sentence id to text, source, its reference there, and licence."""


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """All that answers; it never changes. Encoder, index and texts may be read when they are first asked for.

    Attributes:
        commit: The number of the workspace's commit.
        state: The commit that first held this state: another one after a rollback.
        scorer: Anchors, head and fusion.
        classes: Names and aliases.
        encoder: Gives the encoder, in eval mode.
        index: Gives an index over anchors, some of which may have changed since; None: all classes are scored.
        texts: Gives the texts of the anchors at least.
    """

    commit: int
    state: int
    scorer: Scorer
    classes: ClassTable
    encoder: Callable[[], Encoder]
    index: Callable[[], AnchorIndex | None]
    texts: Callable[[], Texts]

    def same_encoder(self, other: ModelBundle) -> bool:
        """Whether both have the towers of one fingerprint."""
        mine, theirs = self.scorer.saved, other.scorer.saved
        return (mine.text_fp, mine.image_fp) == (theirs.text_fp, theirs.image_fp)


def load_bundle(workspace: Workspace, snapshot: Snapshot) -> ModelBundle:
    """What a commit of a workspace answers with; errors as for `load_scorer`."""
    scorer, commit = load_scorer(workspace, snapshot), snapshot.commit
    return ModelBundle(
        commit.id,
        commit.state,
        scorer,
        snapshot.class_table(),
        encoder=cache(lambda: open_encoder(workspace, snapshot)),
        index=cache(lambda: _index(workspace, commit)),
        texts=cache(lambda: texts_of(snapshot.table("sentences", TEXT_COLUMNS))),
    )


def _index(workspace: Workspace, commit: Commit) -> AnchorIndex | None:
    index = commit.own_index
    return None if index is None else load_index(workspace.object_path("index", index.digest))


def texts_of(rows: pa.Table) -> Texts:
    """The texts in rows that have `TEXT_COLUMNS`."""
    ids, *columns = (rows[name].to_pylist() for name in TEXT_COLUMNS)
    return dict(zip(ids, zip(*columns, strict=True), strict=True))
