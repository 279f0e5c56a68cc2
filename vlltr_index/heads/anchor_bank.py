"""Anchors of all classes in one ragged matrix, with cached quantities that the head needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.tensors import full_precision, unit_rows, working_dtype

LAYER_NORM_EPS = 1e-5
CANCELLED = 1e-3
"""Below this share of (sum p_m |E_m|)^2 the quadratic form has lost its digits to cancellation."""
_BLOCK_SLOTS = 8192  # padded anchors of a block


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive classes that are computed together, with their anchors padded to `width`.

    Attributes:
        first: First class (position in the bank).
        last: One past the last class.
        start: First anchor row.
        stop: One past the last anchor row.
        width: Number of anchors of the largest class.
        slots: Position of each anchor row in the padded order [(last - first) * width], int64; None where all classes
            have `width` anchors and nothing is padded.
    """

    first: int
    last: int
    start: int
    stop: int
    width: int
    slots: Tensor | None

    def pad(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Pad rows [anchors, X] to [classes, width, X] with `fill`."""
        classes = self.last - self.first
        if self.slots is None:
            return rows.view(classes, self.width, rows.shape[1])
        padded = rows.new_full((classes * self.width, rows.shape[1]), fill)
        return padded.index_copy_(0, self.slots, rows).view(classes, self.width, rows.shape[1])

    def unpad(self, padded: Tensor) -> Tensor:
        """Remove the padding from [classes, width, X]: [anchors, X]."""
        rows = padded.reshape(-1, padded.shape[2])
        return rows if self.slots is None else rows.index_select(0, self.slots)


@dataclass(frozen=True, eq=False)
class AnchorBank:
    """Anchor sentence vectors of C classes, ragged: every class has at least one. Make it with `build`.

    Attributes:
        vectors: Float [A, D], unnormalised as the encoder gives them, sorted by class. Frozen: no gradient.
        offsets: Int64 [C + 1]; class c owns rows offsets[c] to offsets[c + 1].
        class_ids: Int64 [C].
        rows: Int64 [A], the position of each row in the input of `build`.
        losses: Float [A], L_lin of each anchor, float32 at least; zeros where it is unknown. Only differences within a
            class matter.
        words: Int16 [A, K], the words of each sentence, see `data.words.number_words`; None: not known.
        readings: Float [A, P], what a sentence-embedding model makes of each sentence, see
            `encoders.sentence_model`; None: there is none.
    """

    vectors: Tensor
    offsets: Tensor
    class_ids: Tensor
    rows: Tensor
    losses: Tensor
    words: Tensor | None = None
    readings: Tensor | None = None

    @classmethod
    def build(
        cls,
        vectors: Tensor,
        class_of_anchor: Tensor,
        class_ids: Tensor | Sequence[int],
        losses: Tensor | None = None,
        words: Tensor | None = None,
    ) -> AnchorBank:
        """Sort anchors by class.

        Args:
            vectors: Float [A, D], unnormalised; not copied if they are sorted already.
            class_of_anchor: Integers [A], the class *id* of each anchor.
            class_ids: Integers [C], distinct; their order is the bank's class order.
            losses: Float [A], L_lin of each anchor; None: unknown.
            words: Int16 [A, K], see the attribute.

        Returns:
            The bank; within a class the anchors keep their order.

        Raises:
            InputError: `class_ids` are not the classes of the anchors, each once, or a vector is not finite; the
                message names the class id.
        """
        ids = torch.as_tensor(class_ids, device=vectors.device).to(torch.int64)
        ordered, places = ids.sort()
        present, position = torch.unique(class_of_anchor.to(ids), return_inverse=True)
        if not len(ids) or not torch.equal(present, ordered):
            raise InputError(
                f"class_ids must be the classes that have anchors, each once: {ids.tolist()[:5]} ... against "
                f"{present.tolist()[:5]} ...",
                "vlltr embed, then vlltr select",
            )
        position = places[position]
        if not bool(torch.stack(vectors.aminmax()).isfinite().all()):
            first = int(ids[position[~vectors.isfinite().all(1)]][0])
            raise InputError(f"class {first} has an anchor that is not finite", "vlltr embed")
        counts = torch.bincount(position)
        order = torch.argsort(position, stable=True)
        in_order = torch.equal(order, torch.arange(len(order), device=order.device))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        dtype = working_dtype(vectors)
        if losses is None:
            losses = vectors.new_zeros(vectors.shape[0], dtype=dtype)
        return cls(
            vectors=(vectors.detach() if in_order else vectors.detach()[order]).contiguous(),
            offsets=offsets,
            class_ids=ids,
            rows=order,
            losses=losses.to(order.device, dtype)[order],
            words=None if words is None else words.to(order.device)[order],
        )

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.vectors.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.class_ids.shape[0]

    @cached_property
    def is_blank(self) -> bool:
        """Whether all vectors are zeros, so that no image is nearer to one class than to another."""
        with _kept():
            return not bool(self.vectors.any())

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """The offsets as plain integers."""
        return tuple(self.offsets.tolist())

    @cached_property
    def class_of_row(self) -> Tensor:
        """Class position of each anchor row, int64 [A]."""
        return torch.repeat_interleave(
            torch.arange(self.num_classes, device=self.offsets.device),
            self.offsets.diff(),
            output_size=len(self.vectors),
        )

    @cached_property
    def sigma(self) -> Tensor:
        """Divisor of LayerNorm for each anchor, sqrt(variance + eps): [A], float32 at least."""
        with _kept():
            dtype = working_dtype(self.vectors)
            parts = [part.to(dtype).var(1, unbiased=False) for part in self.vectors.split(_BLOCK_SLOTS)]
            return (torch.cat(parts) + LAYER_NORM_EPS).sqrt()

    @cached_property
    def norms(self) -> Tensor:
        """Length of each anchor, [A], float32 at least."""
        with _kept():
            dtype = working_dtype(self.vectors)
            parts = self.vectors.split(_BLOCK_SLOTS)
            return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=dtype) for part in parts])

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Division of the classes into blocks of limited size; a class with more anchors is a block by itself."""
        bounds = self.bounds
        blocks = list[Block]()
        first = 0
        width = 0
        for position in range(self.num_classes):
            length = bounds[position + 1] - bounds[position]
            if position > first and max(width, length) * (position + 1 - first) > _BLOCK_SLOTS:
                blocks.append(self._block(first, position, width))
                first = position
                width = 0
            width = max(width, length)
        blocks.append(self._block(first, self.num_classes, width))
        return tuple(blocks)

    @cached_property
    def whole(self) -> Block:
        """All classes as one block."""
        return self._block(0, self.num_classes, max(b - a for a, b in pairwise(self.bounds)))

    @property
    def gram_size(self) -> int:
        """How many numbers the inner products of the anchors of each class are; none are needed of a blank bank."""
        return 0 if self.is_blank else self.num_classes * self.whole.width**2

    @cached_property
    def opposed(self) -> bool:
        """Whether two anchors of a class are so opposed that their weighted mean could cancel to nothing."""
        with _kept(), full_precision(self.vectors.device):
            unit = self.whole.pad(self.vectors.to(self.norms.dtype) / self.norms[:, None].clamp(min=1e-12))
            there = self.whole.pad(torch.ones_like(self.norms)[:, None])
            return bool(((unit @ unit.mT < CANCELLED) & (there * there.mT > 0)).any())

    def block_vectors(self, block: Block, dtype: torch.dtype) -> Tensor:
        """Return the anchors of a block, [anchors, D], in a dtype; without a copy if they have it."""
        return self.vectors[block.start : block.stop].to(dtype)

    def gram(self, block: Block, dtype: torch.dtype) -> Tensor:
        """Return the inner products of the anchors of each class of a block, [classes, width, width]; cached."""
        key = block.first, block.last, dtype
        if key not in self._grams:
            with _kept(), full_precision(self.vectors.device):
                padded = block.pad(self.block_vectors(block, dtype))
                self._grams[key] = padded @ padded.mT
        return self._grams[key]

    def prototypes(self, normalise_values: bool = False, beta: float = 0.0, unit: bool = False) -> Tensor:
        """Return the mean anchor of each class, [C, D], float32 at least; cached.

        Args:
            normalise_values: Normalise the anchors to length one first.
            beta: Weigh the anchors by the softmax of -beta times their losses; 0: all alike.
            unit: Normalise the means to length one.
        """
        key = (normalise_values, beta, unit)
        if key not in self._means:
            with _kept():
                means = self._mean_values(normalise_values, beta)
                self._means[key] = unit_rows(means) if unit else means
        return self._means[key]

    def select(self, classes: Tensor | Sequence[int]) -> AnchorBank:
        """Return the bank of some classes alone.

        Args:
            classes: Integers [C'], *positions* in this bank, in the order of the result.
        """
        wanted = torch.as_tensor(classes, device=self.offsets.device).to(torch.int64)
        lengths = self.offsets.diff()[wanted]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        total = int(offsets[-1])
        shift = torch.repeat_interleave(self.offsets[wanted] - offsets[:-1], lengths, output_size=total)
        rows = torch.arange(total, device=self.offsets.device) + shift
        ids = self.class_ids[wanted]
        return AnchorBank(
            vectors=self.vectors[rows],
            offsets=offsets,
            class_ids=ids,
            rows=self.rows[rows],
            losses=self.losses[rows],
            words=None if self.words is None else self.words[rows],
            readings=None if self.readings is None else self.readings[rows],
        )

    def to(self, device: torch.device | str) -> AnchorBank:
        """Return the bank on another device."""
        if torch.device(device) == self.vectors.device:
            return self
        optional = ("words", "readings")
        there = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name not in optional}
        words, readings = (None if part is None else part.to(device) for part in (self.words, self.readings))
        return AnchorBank(**there, words=words, readings=readings)

    def _mean_values(self, normalise_values: bool, beta: float) -> Tensor:
        """Compute the weighted mean of each class's anchors, [C, D]."""
        dtype = working_dtype(self.vectors)
        owner = self.class_of_row
        least = self.losses.new_full((self.num_classes,), torch.inf).scatter_reduce(
            0, owner, self.losses, "amin"
        )
        weights = torch.exp(beta * (least[owner] - self.losses)).to(dtype)
        sums = self.vectors.new_zeros((self.num_classes, self.dim), dtype=dtype)
        for start in range(0, self.vectors.shape[0], _BLOCK_SLOTS):
            part = slice(start, start + _BLOCK_SLOTS)
            values = self.vectors[part].to(dtype)
            if normalise_values:
                values = values / self.norms[part, None].clamp(min=1e-12)
            sums.index_add_(0, owner[part], weights[part, None] * values)
        return sums / weights.new_zeros(self.num_classes).index_add_(0, owner, weights)[:, None]

    @cached_property
    def _grams(self) -> dict[tuple[int, int, torch.dtype], Tensor]:
        """Cache of `gram`."""
        return {}

    @cached_property
    def _means(self) -> dict[tuple[bool, float, bool], Tensor]:
        """Cache of `prototypes`."""
        return {}

    def _block(self, first: int, last: int, width: int) -> Block:
        """Make the block of the classes `first` to `last`, the latter not included."""
        start = self.bounds[first]
        stop = self.bounds[last]
        slots = None
        if stop - start != (last - first) * width:
            classes = self.class_of_row[start:stop]
            within = torch.arange(start, stop, device=classes.device) - self.offsets[classes]
            slots = (classes - first) * width + within
        return Block(first=first, last=last, start=start, stop=stop, width=width, slots=slots)


@contextmanager
def _kept() -> Iterator[None]:
    """Compute without gradient but outside inference mode, so that autograd may use the cached result later."""
    with torch.inference_mode(False), torch.no_grad():
        yield
