"""What one commit answers with: encoder, anchors, head, statistics, index and texts, each opened once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import FaissIndex, TorchIndex, load_index
from vlltr_index.embedding.loading import (
    anchor_losses,
    image_vectors_of,
    numbers,
    open_encoder,
    text_vectors_of,
)
from vlltr_index.errors import FingerprintMismatch, MissingStepError, WorkspaceError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import SavedHead, load_head
from vlltr_index.store.tables import one_of
from vlltr_index.store.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.config import FusionConfig
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.taxonomy import Taxonomy

TEXT_COLUMNS = ("sentence_id", "text", "source", "source_ref", "licence")

_CLASSES = 32  # whose training vectors are kept
_FEW = 1000  # up to so many sentences a SQL condition is quicker than a scan

Texts = Mapping[str, tuple[str, str, str | None, str | None]]
"""Sentence id to text, source, its reference there, and licence."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """Anchors of a commit, and the sentence of each.

    Attributes:
        bank: Their vectors and classes.
        keys: Int64 [A], in the bank's order.
        sentence_ids: In the same order.
        selection_id: Of the selection that they come from.
    """

    bank: AnchorBank
    keys: Tensor
    sentence_ids: list[str]
    selection_id: str

    @classmethod
    def of(cls, rows: pa.Table, vectors: Tensor, losses: Tensor, selection_id: str) -> Anchors:
        """Make it from rows of `anchors` sorted by class and rank, vectors float [A, D] and losses [A]; A may be 0."""
        owner = numbers(rows, "class_id")
        keys = numbers(rows, "anchor_key")
        if len(owner):
            bank = AnchorBank.build(vectors, owner, torch.unique(owner), losses)
        else:
            bank = AnchorBank(
                vectors=vectors, offsets=owner.new_zeros(1), class_ids=owner, rows=owner, losses=losses
            )
        return cls(bank, keys, rows["sentence_id"].to_pylist(), selection_id)


@dataclass(frozen=True, eq=False)
class ClassStats:
    """Statistics of the training images of S classes.

    Attributes:
        class_ids: Int64 [S], ascending.
        counts: Int64 [S], number of units of images.
        sums: Float64 [S, D], sum of the units' mean normalised vectors.
    """

    class_ids: Tensor
    counts: Tensor
    sums: Tensor


class ModelState:
    """What one commit answers with; each part is opened when it is first used, and kept.

    Args:
        snapshot: The commit, or a transaction that will become one.
        before: The state of another commit of the same workspace; what has not changed since is taken from it.
    """

    def __init__(self, snapshot: Snapshot, before: ModelState | None = None) -> None:
        self.snapshot = snapshot
        self._known: Anchors | None = None
        # Not over a bound method: states that refer to themselves stay in memory for long.
        self._class_images = lru_cache(_CLASSES)(partial(_read_class_images, snapshot))
        if before is not None:
            if before.snapshot.commit.text_fp == snapshot.commit.text_fp:
                self._known = before.__dict__.get("anchors")
            for name, facts in _FACTS.items():
                if name in before.__dict__ and facts(before.snapshot) == facts(snapshot):
                    self.__dict__[name] = before.__dict__[name]

    def committed(self, snapshot: Snapshot) -> ModelState:
        """Return the state of a commit that was made of this transaction's state.

        What the transaction did not open is read from the commit: its own tables may be another writer's by now.
        """
        state = ModelState(snapshot, before=self)
        there = self.__dict__
        if "anchors" in there:
            selection_id = snapshot.commit.selection_id or ""
            state.__dict__["anchors"] = replace(there["anchors"], selection_id=selection_id)
        if "class_stats" in there:
            state.__dict__["class_stats"] = there["class_stats"]
        return state

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in eval mode; errors as for `open_encoder`."""
        return open_encoder(self.snapshot)

    @cached_property
    def head(self) -> SavedHead:
        """The trained head.

        Raises:
            MissingStepError: None has been trained yet.
            WorkspaceError: Its files are damaged.
            FingerprintMismatch: It was trained on another encoder's vectors.
        """
        commit = self.snapshot.commit
        if not commit.head:
            raise MissingStepError("no head has been trained yet", "Run: vlltr train lgr")
        saved = load_head(self.snapshot.objects.whole("heads", commit.head))
        mine = (saved.text_fp, saved.image_fp)
        theirs = (commit.text_fp, commit.image_fp)
        if mine != theirs:
            raise FingerprintMismatch(
                f"the head was trained on vectors of the towers {mine}, the workspace's are of {theirs}",
                "Train it again: vlltr train lgr",
            )
        return saved

    @cached_property
    def anchors(self) -> Anchors:
        """The anchors, ordered by class and rank, with their stored vectors.

        Raises:
            MissingStepError: No anchors have been selected, or their vectors are missing.
        """
        known = self._known
        self._known = None
        commit = self.snapshot.commit
        if not commit.text_fp or not commit.selection_id:
            raise MissingStepError("no anchor sentences have been selected yet", "Run: vlltr select")
        if self.snapshot.parts is not None:
            return _anchors_of_parts(
                self.snapshot.parts("anchors"), self.snapshot.parts("ranks"), commit.selection_id
            )
        rows = self.snapshot.table("anchors").sort_by([("class_id", "ascending"), ("rank", "ascending")])
        ids: list[str] = rows["sentence_id"].to_pylist()
        return Anchors.of(
            rows, self._vectors(ids, known), anchor_losses(self.snapshot, ids), commit.selection_id
        )

    def _vectors(self, sentence_ids: list[str], known: Anchors | None) -> Tensor:
        """Read the vectors of sentences, float [A, D], but for those of `known` anchors."""
        row_of = {} if known is None else {s: n for n, s in enumerate(known.sentence_ids)}
        wanted = [s for s in sentence_ids if s not in row_of]
        read = self._read_vectors(wanted)
        if known is None:
            return read
        at = torch.tensor([row_of.get(s, -1) for s in sentence_ids], dtype=torch.int64)
        vectors = known.bank.vectors.new_empty(len(at), known.bank.dim)
        vectors[at >= 0] = known.bank.vectors[at[at >= 0]]
        vectors[at < 0] = read
        return vectors

    def _read_vectors(self, sentence_ids: list[str]) -> Tensor:
        where = one_of("sentence_id", sentence_ids) if len(sentence_ids) <= _FEW else None
        rows = self.snapshot.table("sentences", ["sentence_id", "text_hash"], where)
        return text_vectors_of(self.snapshot, hashes_of(rows, sentence_ids))

    @cached_property
    def class_stats(self) -> ClassStats:
        """The units of the classes' images, and the sums of their mean vectors; errors as for `head`."""
        rows = self.snapshot.answering("class_stats")
        rows = rows.filter(pc.equal(rows["image_fp"], self.snapshot.commit.image_fp or "")).sort_by(
            "class_id"
        )
        sums = torch.from_numpy(pc.list_flatten(rows["sum"]).to_numpy().copy()).view(-1, self.head.head.dim)
        return ClassStats(numbers(rows, "class_id"), numbers(rows, "images"), sums)

    @property
    def fusion(self) -> FusionConfig:
        """The rule, the commit's or the recipe's; see `usable_rule`."""
        return usable_rule(self.snapshot.commit.fusion or self.snapshot.recipe.fusion, self.head)

    @cached_property
    def index(self) -> FaissIndex | TorchIndex | None:
        """The index over anchors, which may have changed since; None: there is none, and all classes are scored.

        Raises:
            WorkspaceError: Its files are damaged.
        """
        own = self.snapshot.commit.own_index
        return None if own is None else load_index(self.snapshot.objects.whole("index", own.digest))

    @cached_property
    def texts(self) -> Texts:
        """Texts by sentence id, those of the anchors at least."""
        parts = self.snapshot.parts
        return texts_of(self.snapshot.table("sentences", TEXT_COLUMNS) if parts is None else parts("anchors"))

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The tree above the classes; empty if there is none."""
        return load_taxonomy(self.snapshot)

    def class_images(self, class_id: int) -> tuple[pa.Table, Tensor]:
        """Return ids and URIs of a class's usable training images, and their unit vectors [N, D].

        Raises:
            MissingStepError: One of them has no vector.
        """
        return self._class_images(class_id)


_FACTS: Mapping[str, Callable[[Snapshot], object]] = {
    "encoder": lambda s: (s.commit.checkpoint, s.commit.text_fp, s.commit.image_fp, s.recipe.encoder),
    "head": lambda s: (s.commit.head, s.commit.text_fp, s.commit.image_fp),
    "index": lambda s: s.commit.own_index,
}
"""What each part depends on that is taken over where it has not changed."""


def _read_class_images(snapshot: Snapshot, class_id: int) -> tuple[pa.Table, Tensor]:
    where = f"split = 'train' AND class_id = {class_id} AND problem IS NULL"
    rows = snapshot.table("images", ["image_id", "uri"], where).sort_by("image_id")
    return rows, F.normalize(image_vectors_of(snapshot, rows["image_id"].to_pylist()), dim=1)


def usable_rule(fusion: FusionConfig, saved: SavedHead) -> FusionConfig:
    """Return a fusion rule, but `paper` instead of `ours` for a head that was trained without the latter's parts."""
    if fusion.rule == "ours" and saved.parts is None:
        return fusion.model_copy(update={"rule": "paper"})
    return fusion


def hashes_of(sentences: pa.Table, wanted: Sequence[str]) -> list[str]:
    """Return the text hashes of the sentences with the given ids, from rows of the table `sentences`.

    Raises:
        WorkspaceError: There is no sentence with one of the ids.
    """
    hash_of = dict(zip(sentences["sentence_id"].to_pylist(), sentences["text_hash"].to_pylist(), strict=True))
    strange = set(wanted) - hash_of.keys()
    if strange:
        raise WorkspaceError(
            f"the table 'anchors' names the sentence {min(strange)!r}, which the table 'sentences' has not",
            "See what is damaged: vlltr doctor; or select again: vlltr select",
        )
    return [hash_of[key] for key in wanted]


def texts_of(rows: pa.Table) -> Texts:
    """Return the texts of rows that have `TEXT_COLUMNS`, by sentence id."""
    ids, *columns = rows.select(TEXT_COLUMNS).to_pydict().values()
    return dict(zip(ids, zip(*columns, strict=True), strict=True))


def _anchors_of_parts(anchors: pa.Table, ranks: pa.Table, selection_id: str) -> Anchors:
    """Make the anchors from the parts `anchors` and `ranks` of a commit, see `store.parts`."""
    at = pc.index_in(ranks["anchor_key"].combine_chunks(), value_set=anchors["anchor_key"].combine_chunks())
    rows = anchors.select(["anchor_key", "class_id", "sentence_id"]).take(at)
    for name in ("rank", "loss"):
        rows = rows.append_column(name, ranks[name])
    rows = rows.append_column("row", at)
    rows = rows.sort_by([("class_id", "ascending"), ("rank", "ascending")])
    place = torch.empty(len(anchors), dtype=torch.int64)
    start = 0
    place[numbers(rows, "row")] = torch.arange(len(rows))
    vectors = torch.empty(len(rows), anchors.schema.field("vector").type.list_size)
    for chunk in anchors["vector"].chunks:
        stored = torch.from_numpy(chunk.flatten().to_numpy().copy()).view(len(chunk), -1)
        vectors[place[start : start + len(chunk)]] = stored
        start += len(chunk)
    losses = pc.fill_null(rows["loss"], 0.0).to_numpy().astype("float32")
    return Anchors.of(rows, vectors, torch.from_numpy(losses), selection_id)
