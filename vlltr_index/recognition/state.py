"""What a commit or an exported folder answers with: encoder, anchors, head, statistics, index, each opened once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import AnchorIndex, load_index
from vlltr_index.data.words import number_words
from vlltr_index.embedding.loading import content_ids, content_vectors, numbers, open_encoder
from vlltr_index.embedding.vectors import embedded
from vlltr_index.errors import FingerprintMismatch, MissingStepError, UsageError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import SavedHead, load_head
from vlltr_index.store.class_table import ClassTable
from vlltr_index.store.parts import BESIDE_VECTORS
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.store.taxonomy import taxonomy_of

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.config import FusionConfig
    from vlltr_index.schemas.model import ModelRecord
    from vlltr_index.store.snapshot import Source
    from vlltr_index.store.taxonomy import Taxonomy

TEXT_COLUMNS = ("sentence_id", "text", "source", "source_ref", "licence")

_CLASSES = 32  # whose training vectors are kept
# Numbers, a GiB in float32: from here on anchors are kept in float16, which gives three digits.
_HALVED = 2**28

Texts = Mapping[str, tuple[str, str, str | None, str | None]]
"""Sentence id to text, source, its reference there, and licence."""

_ClassImages = Callable[[int], tuple[pa.Table, Tensor]]


@dataclass(frozen=True, eq=False)
class Anchors:
    """Anchors of a commit, and the sentence of each.

    Attributes:
        bank: Their vectors and classes.
        keys: Int64 [A], in the bank's order.
        read: Reads the strings `sentence_id` or `text` of all in the same order.
        selection_id: Of the selection that they come from.
    """

    bank: AnchorBank
    keys: Tensor
    read: Callable[[str], pa.Array]
    selection_id: str

    @cached_property
    def sentence_ids(self) -> list[str]:
        """The sentence of each anchor."""
        found: list[str] = self.read("sentence_id").to_pylist()
        return found

    @cached_property
    def digests(self) -> Tensor:
        """A number for each class of the bank that other anchors change, int64 [C_a].

        It is a sum over the anchors, of keys and of the first numbers of vectors: a head may be brought to another
        workspace, where keys are others'.
        """
        begun = self.bank.vectors[:, :2].float().contiguous().view(torch.int64)[:, 0]
        # Much as in SplitMix64: a start that no key meets, odd factors, and the high bits among the low ones.
        mixed = (self.keys + 0x1E3779B97F4A7C15) * -7046029254386353131 + begun * 0x5851F42D4C957F2D
        mixed = (mixed ^ (mixed >> 31)) * -4658895280553007687
        mixed = mixed ^ (mixed >> 29)
        return torch.zeros_like(self.bank.class_ids).index_add_(0, self.bank.class_of_row, mixed)

    def of_classes(self, classes: Tensor) -> AnchorBank:
        """Return the anchors of some classes, int64, positions in the bank, with the words of their sentences."""
        bank = self.bank.select(classes)
        return replace(bank, words=number_words(self.read("text").take(pa.array(bank.rows.numpy()))))

    @cached_property
    def with_words(self) -> AnchorBank:
        """The bank with the words of its sentences."""
        return replace(self.bank, words=number_words(self.read("text")))

    @classmethod
    def of(
        cls,
        owner: Tensor,
        keys: Tensor,
        vectors: Tensor,
        losses: Tensor,
        read: Callable[[str], pa.Array],
        selection_id: str,
        reading: int = 0,
    ) -> Anchors:
        """Make it of anchors in the order of their classes and ranks; A may be 0.

        Args:
            owner: Int64 [A], their classes.
            keys: Int64 [A].
            vectors: Float [A, D + P], unnormalised, each followed by its sentence's reading.
            losses: Float [A].
            read: See the attribute.
            selection_id: See the attribute.
            reading: P.
        """
        readings = vectors[:, vectors.shape[1] - reading :] if reading else None
        vectors = vectors[:, : vectors.shape[1] - reading]
        if len(owner):
            bank = AnchorBank.build(vectors, owner, torch.unique(owner), losses)
        else:
            bank = AnchorBank(
                vectors=vectors, offsets=owner.new_zeros(1), class_ids=owner, rows=owner, losses=losses
            )
        bank = replace(bank, readings=readings)  # which are in the bank's order
        return cls(bank, keys, read, selection_id)

    def exchanged(
        self, class_ids: Tensor, other: AnchorBank | None, sentence_ids: Sequence[str], texts: Sequence[str]
    ) -> Anchors:
        """Return the anchors where the classes `class_ids` have those of another bank, or none; no index knows them.

        Args:
            class_ids: Int64 [K].
            other: Anchors of these classes; None: there is none.
            sentence_ids: The sentence of each, in the bank's order.
            texts: The text of each.
        """
        banks = [self.bank] if other is None else [self.bank, other]
        owner = torch.cat([bank.class_ids[bank.class_of_row] for bank in banks])
        kept = torch.ones(len(owner), dtype=torch.bool)
        kept[: len(self.keys)] = ~torch.isin(owner[: len(self.keys)], class_ids)
        at = kept.nonzero()[:, 0]
        at = at[owner[at].argsort(stable=True)]
        present, counts = owner[at].unique_consecutive(return_counts=True)
        bank = AnchorBank(
            vectors=torch.cat([bank.vectors.to(self.bank.vectors) for bank in banks])[at],
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            class_ids=present,
            rows=torch.arange(len(at)),
            losses=torch.cat([bank.losses for bank in banks])[at],
            readings=_together([bank.readings for bank in banks], at),
        )
        others = {"sentence_id": sentence_ids, "text": texts}

        def read(column: str) -> pa.Array:
            both = pa.concat_arrays([self.read(column), pa.array(others[column], pa.string())])
            return both.take(pa.array(at.numpy()))

        others_keys = -1 - torch.arange(len(owner) - len(self.keys))  # which no anchor has
        return Anchors(bank, torch.cat([self.keys, others_keys])[at], read, self.selection_id)


def _together(parts: list[Tensor | None], at: Tensor) -> Tensor | None:
    """Return the rows `at` of tensors that are one above the other; None if there are none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there)[at] if there else None


@dataclass(frozen=True, eq=False)
class ClassStats:
    """Statistics of the training images of S classes.

    Attributes:
        class_ids: Int64 [S], ascending.
        counts: Int64 [S], number of observations that the images count as, see `heads.moments`.
        sums: Float64 [S, D], weighted sum of the images' normalised vectors.
    """

    class_ids: Tensor
    counts: Tensor
    sums: Tensor


class ModelState:
    """What one commit or exported folder answers with; each part is opened when it is first used, and kept.

    Args:
        source: The commit, a transaction that will become one, or an exported folder.
        before: The state of another commit of the same workspace; what has not changed since is taken from it.
        device: Device of the encoder; None: a GPU if there is one.

    Attributes:
        source: See above.
        record: What it is made of.
        device: See above.
    """

    def __init__(
        self,
        source: Source,
        before: ModelState | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.source = source
        self.record = source.record
        self.device = device
        # Not over a bound method: states that refer to themselves stay in memory for long.
        self._class_images: _ClassImages = lru_cache(_CLASSES)(partial(_read_class_images, source))
        self._read_texts: Callable[[], Texts] = partial(_read_texts, source)
        if before is not None:
            for name, facts in _FACTS.items():
                known = facts(self.record)
                if name in before.__dict__ and known is not None and facts(before.record) == known:
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

    def apart(self, class_images: _ClassImages, read_texts: Callable[[], Texts]) -> ModelState:
        """Return the state of a model without some images or sentences: with other texts and images, no index."""
        state = ModelState(self.source, before=self, device=self.device)
        state.__dict__.pop("texts", None)
        state.index = None
        state._class_images = class_images
        state._read_texts = read_texts
        return state

    @property
    def snapshot(self) -> Snapshot:
        """The commit or transaction.

        Raises:
            UsageError: This is an exported folder, which has no images.
        """
        return _snapshot(self.source)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in eval mode; errors as for `open_encoder`."""
        return open_encoder(self.source, device=self.device)

    @cached_property
    def head(self) -> SavedHead:
        """The trained head.

        Raises:
            MissingStepError: None has been trained yet.
            WorkspaceError: Its files are damaged.
            FingerprintMismatch: It was trained on another encoder's vectors.
        """
        record = self.record
        if not record.head:
            raise MissingStepError("no head has been trained yet", "Run: vlltr train lgr")
        saved = load_head(self.source.objects.whole("heads", record.head))
        mine = (saved.text_fp, saved.image_fp)
        theirs = (record.text_fp, record.image_fp)
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
        selection_id = self.record.selection_id
        if not self.record.text_fp or not selection_id:
            raise MissingStepError("no anchor sentences have been selected yet", "Run: vlltr select")
        return _anchors_of(self.source, selection_id)

    @cached_property
    def class_stats(self) -> ClassStats:
        """Counts and sums of the classes' images, of rows whose column `images` counts observations."""
        rows = self.source.rows("class_stats", BESIDE_VECTORS["class_stats"])
        rows = rows.filter(pc.equal(rows["image_fp"], self.record.image_fp or "")).sort_by("class_id")
        class_ids = numbers(rows, "class_id")
        return ClassStats(class_ids, numbers(rows, "images"), self.source.vectors("class_stats", class_ids))

    @property
    def fusion(self) -> FusionConfig:
        """The rule, but `paper` instead of `ours` for a head that was trained without the latter's parts."""
        fusion = self.record.fusion
        if fusion.rule == "ours" and self.head.parts is None:
            return fusion.model_copy(update={"rule": "paper"})
        return fusion

    @cached_property
    def index(self) -> AnchorIndex | None:
        """The index over anchors, which may have changed since; None: there is none, and all classes are scored.

        Raises:
            WorkspaceError: Its files are damaged.
        """
        own = self.record.index
        return None if own is None else load_index(self.source.objects.whole("index", own.digest))

    @cached_property
    def texts(self) -> Texts:
        """Texts of the anchors by sentence id."""
        return self._read_texts()

    @cached_property
    def classes(self) -> ClassTable:
        """The classes by id, name and alias."""
        return ClassTable.from_arrow(self.source.rows("classes"))

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The tree above the classes; empty if there is none."""
        return taxonomy_of(self.source.rows("taxonomy"), self.classes)

    def class_images(self, class_id: int) -> tuple[pa.Table, Tensor]:
        """Return ids and URIs of a class's training images that have been embedded, and their unit vectors [N, D].

        Raises:
            UsageError: This is an exported folder, which has no images.
            MissingStepError: No image at all has been embedded.
        """
        return self._class_images(class_id)


def _of_parts(record: ModelRecord, *beside: object) -> tuple[object, ...] | None:
    """Return what rows depend on; None where they are made of tables, which may have changed."""
    return (record.parts, *beside) if record.parts else None


_FACTS: Mapping[str, Callable[[ModelRecord], object]] = {
    "encoder": lambda r: (r.encoder, r.text_fp, r.image_fp),
    "head": lambda r: (r.head, r.text_fp, r.image_fp),
    "index": lambda r: (r.index,),
    "anchors": lambda r: _of_parts(r, r.selection_id),
    "class_stats": lambda r: _of_parts(r, r.image_fp, r.head),
    "texts": _of_parts,
    "classes": _of_parts,
    "taxonomy": _of_parts,
}
"""What each part depends on that is taken over where it has not changed; None: it is always read anew."""


def _snapshot(source: Source) -> Snapshot:
    if isinstance(source, Snapshot):
        return source
    what = "an exported folder has no training images to show as neighbours"
    raise UsageError(what, "Ask the workspace that it came from, or leave neighbours out.")


def _read_texts(source: Source) -> Texts:
    return texts_of(source.rows("anchors", BESIDE_VECTORS["anchors"]))


def _read_class_images(source: Source, class_id: int) -> tuple[pa.Table, Tensor]:
    snapshot = _snapshot(source)
    where = f"split = 'train' AND class_id = {class_id} AND problem IS NULL"
    rows = snapshot.table("images", ["image_id", "uri"], where).sort_by("image_id")
    contents = content_ids(snapshot, rows["image_id"].to_pylist())
    there = embedded(snapshot, snapshot.commit.image_fp or "", contents)
    vectors = content_vectors(snapshot, list(compress(contents, there)))
    return rows.filter(pa.array(there, pa.bool_())), F.normalize(vectors, dim=1)


def texts_of(rows: pa.Table) -> Texts:
    """Return the texts of rows that have `TEXT_COLUMNS`, by sentence id."""
    ids, *columns = rows.select(TEXT_COLUMNS).to_pydict().values()
    return dict(zip(ids, zip(*columns, strict=True), strict=True))


def _anchors_of(source: Source, selection_id: str) -> Anchors:
    """Read the anchors, in the order of their classes and ranks."""
    anchors = source.rows("anchors", BESIDE_VECTORS["anchors"])
    ranks = source.rows("ranks")
    at = pc.index_in(ranks["anchor_key"].combine_chunks(), value_set=anchors["anchor_key"].combine_chunks())
    rows = torch.from_numpy(at.to_numpy().astype("int64"))
    owner = numbers(anchors, "class_id")[rows]
    order = torch.from_numpy(np.lexsort((ranks["rank"].to_numpy(), owner.numpy())))
    rows = rows[order]
    keys = numbers(anchors, "anchor_key")[rows]
    losses = pc.fill_null(ranks["loss"], 0.0).to_numpy().astype("float32")

    def read(column: str) -> pa.Array:
        return anchors[column].take(pa.array(rows.numpy())).combine_chunks()

    vectors = source.vectors("anchors", keys)
    reading = source.record.reading
    if vectors.numel() >= _HALVED:
        vectors = vectors.half()
    return Anchors.of(
        owner[order], keys, vectors, torch.from_numpy(losses)[order], read, selection_id, reading
    )
