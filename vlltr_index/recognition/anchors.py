"""The anchors of a commit or an exported folder: their vectors, and the sentence of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.data.words import number_words
from vlltr_index.embedding.loading import numbers
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.store.parts import BESIDE_VECTORS

if TYPE_CHECKING:
    from vlltr_index.store.snapshot import ModelSource

TEXT_COLUMNS = ("sentence_id", "text", "source", "source_ref", "licence")

# Numbers, a GiB in float32: from here on anchors are kept in float16, which gives three digits.
_HALVED = 2**28

Texts = Mapping[str, tuple[str, str, str | None, str | None]]
"""Sentence id to text, source, its reference there, and licence."""


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


def read_texts(source: ModelSource) -> Texts:
    """Read the texts of the anchors by sentence id."""
    return texts_of(source.rows("anchors", BESIDE_VECTORS["anchors"]))


def texts_of(rows: pa.Table) -> Texts:
    """Return the texts of rows that have `TEXT_COLUMNS`, by sentence id."""
    ids, *columns = rows.select(TEXT_COLUMNS).to_pydict().values()
    return dict(zip(ids, zip(*columns, strict=True), strict=True))


def read_anchors(source: ModelSource) -> Anchors:
    """Read the anchors with their stored vectors, ordered by class and rank.

    Raises:
        MissingStepError: No anchors have been selected, or their vectors are missing.
    """
    selection_id = source.record.selection_id
    if not source.record.text_fp or not selection_id:
        raise MissingStepError("no anchor sentences have been selected yet", "Run: vlltr select")
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
