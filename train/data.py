"""Training images and sentences: small images are kept decoded in memory, photographs are decoded by workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from vlltr_index.data.decoding import read_image
from vlltr_index.embedding.pixels import ImageReader, ReadAhead, Reader, in_batches
from vlltr_index.errors import InputError
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.train.augment import BatchAugment, PhotoTransform
from vlltr_index.train.distributed import gather_rows, in_parts
from vlltr_index.train.sampling import seed_of, stream

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder

_log = logging.getLogger(__name__)

MEMORY_LIMIT = 1 << 30
SMALL_SIDE = 96
_MATES = 20  # images of the class that are tried in place of one that cannot be read


class TrainImages:
    """Training images with labels 0..C-1.

    If the encoder's input has at most 96 pixels a side, and N * H * W * 3 bytes are at most `memory_limit`, images are
    decoded once into uint8 [N, 1 or 3, H, W] (1 where all of them are grey) and augmented as batches. Otherwise
    DataLoader workers decode and augment them in every epoch. An image that cannot be read is replaced by another one
    of its class (by a blank one where there is none), with a warning.

    Args:
        sources: Bytes, or the path, of each image.
        labels: Int64 [N]; every class 0..C-1 should occur.
        encoder: Encoder whose size, preprocessing, mean and standard deviation the images get.
        augment: The training augmentation.
        workers: Number of processes that decode streamed images; 0 decodes in this one.
        memory_limit: Most bytes that decoded images may take.

    Raises:
        InputError: There is no image, or none of them can be read.
    """

    pixels: Tensor | None
    features: Tensor | None

    def __init__(
        self,
        sources: Sequence[bytes | str],
        labels: Tensor,
        encoder: Encoder,
        augment: AugmentConfig,
        *,
        workers: int = 2,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self._set_labels(labels)
        self._mean = torch.as_tensor(encoder.mean, dtype=torch.float32).view(1, 3, 1, 1)
        self._std = torch.as_tensor(encoder.std, dtype=torch.float32).view(1, 3, 1, 1)
        self._augment = BatchAugment(augment)
        self._sources = sources
        self._pinned = encoder.device.type == "cuda"
        self._wanted: list[list[tuple[int, int]]] = []
        height, width = encoder.image_size
        if max(height, width) <= SMALL_SIDE and len(sources) * height * width * 3 <= memory_limit:
            self.pixels = self._decode_all(encoder)
        else:
            stream = _Stream(sources, self.labels, encoder, augment)
            self._streamed = ReadAhead(stream, self._wanted, workers=workers, pinned=self._pinned)
            self._glyphs = augment.kind == "glyph"

    @classmethod
    def from_features(cls, features: Tensor, labels: Tensor) -> TrainImages:
        """Make training data of stored vectors float32 [N, D], unnormalised, for training with a frozen image tower."""
        made = cls.__new__(cls)
        made._set_labels(labels)
        made.features = features
        return made

    def encode(self, encoder: Encoder, batch: Tensor, micro_batch: int | None) -> Tensor:
        """Encode this process's part of a batch as `epoch` yields it: float32 [B, D] of all processes, unnormalised."""
        if self.features is not None:
            return gather_rows(batch)
        return gather_rows(in_parts(encoder.encode_pixels, batch, micro_batch))

    def _set_labels(self, labels: Tensor) -> None:
        """Set labels and class counts, and hold neither pixels nor vectors yet."""
        if not len(labels):  # for instance where all images are held out of stage 1
            raise InputError("there are no training images", "Run: vlltr ingest images PATH --split train")
        self.labels = labels
        self.num_classes = int(labels.max()) + 1
        self.class_counts = torch.bincount(self.labels, minlength=self.num_classes)
        self.replaced: set[int] = set()
        self.pixels = self.features = None

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, batches: Tensor, part: slice, *seed: object) -> Iterator[Tensor]:
        """Yield the augmented pixels of each step of an epoch.

        Args:
            batches: Int64 [steps, B], positions of the images of all processes.
            part: The columns of this process.
            seed: All that the random numbers depend on; `part` and the number of workers do not matter.

        Yields:
            Float32 [b, 3, H, W], normalised, on the CPU; stored vectors float32 [b, D] unchanged.
        """
        if self.features is not None:
            yield from (self.features[positions[part]] for positions in batches)
            return
        generator = stream("augment", *seed)
        if self.pixels is not None:
            held = ((self.pixels[positions[part]].float() / 255) for positions in batches)
            yield from _ahead(self._augmented(pixels, batches, part, generator) for pixels in held)
            return
        self._wanted[:] = [
            [(position, seed_of(*seed, step, column)) for column, position in enumerate(row)][part]
            for step, row in enumerate(batches.tolist())
        ]
        for pixels, replaced in self._streamed:
            self._note([p for p in replaced.tolist() if p >= 0])
            raw = (pixels * self._std + self._mean).clamp(0.0, 1.0) if self._glyphs else pixels
            yield self._augmented(raw, batches, part, generator) if self._glyphs else pixels

    def _augmented(self, pixels: Tensor, batches: Tensor, part: slice, generator: torch.Generator) -> Tensor:
        """Augment and normalise this process's part of a batch with values in 0..1; draws are made for the whole."""
        draws = self._augment.draw(batches.shape[1], generator)[part]
        made = (self._augment.apply(pixels, draws) - self._mean) / self._std
        return made.pin_memory() if self._pinned else made

    def _note(self, positions: list[int]) -> None:
        """Warn of images that cannot be read, of each once."""
        for position in set(positions) - self.replaced:
            self.replaced.add(position)
            source = self._sources[position]
            name = source if isinstance(source, str) else f"number {position}"
            _log.warning("training image %s cannot be read; another one of its class stands in", name)

    def _decode_all(self, encoder: Encoder) -> Tensor:
        """Decode all images as the encoder preprocesses them, but not normalised: uint8 [N, 1 or 3, H, W]."""
        total = len(self._sources)
        mean = encoder.mean.view(3, 1, 1)
        std = encoder.std.view(3, 1, 1)
        pixels = np.zeros((total, 3, *encoder.image_size), np.uint8)
        good = torch.zeros(total, dtype=torch.bool)
        named = ((str(place), source) for place, source in enumerate(self._sources))
        for batch in ReadAhead(Reader(encoder), in_batches(named)):
            places = [int(name) for name in batch.readable]
            good[places] = True
            values = (batch.pixels[:, 0] * std + mean) * 255  # preprocessing normalises, which is undone here
            pixels[places] = values.round().clamp(0, 255).to(torch.uint8).numpy()
        if not bool(good.any()):
            raise InputError(f"none of the {total} training images can be read")
        broken = (~good).nonzero()[:, 0].tolist()
        for position in broken:
            mates = (good & (self.labels == self.labels[position])).nonzero()[:, 0].tolist()
            pixels[position] = pixels[mates[0]] if mates else 128
        self._note(broken)
        grey = all(np.array_equal(pixels[:, 0], pixels[:, channel]) for channel in (1, 2))
        return torch.from_numpy(np.ascontiguousarray(pixels[:, :1]) if grey else pixels)


def _ahead(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the batches, each made by another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        batch = coming.result()
        while batch is not None:
            coming = pool.submit(next, batches, None)
            yield batch
            batch = coming.result()


class _Stream(ImageReader[tuple[int, int], tuple[Tensor, int], tuple[Tensor, Tensor]]):
    """Reader of (position, seed): pixels, and the position if another image had to replace it, else -1."""

    def __init__(
        self, sources: Sequence[bytes | str], labels: Tensor, encoder: Encoder, augment: AugmentConfig
    ) -> None:
        self._sources = sources
        self._labels = labels
        self._size = encoder.image_size
        self._plain = encoder.transform
        self._photo = PhotoTransform(augment, encoder) if augment.kind == "photo" else None

    def __getitem__(self, wanted: tuple[int, int]) -> tuple[Tensor, int]:
        """Read and transform an image, or another one of its class if it cannot be read."""
        position, seed = wanted
        transform = self._plain if self._photo is None else partial(self._photo, seed=seed)
        mates = (self._labels == self._labels[position]).nonzero()[:_MATES, 0].tolist()
        for candidate in (position, *mates):
            try:
                pixels = read_image(self._sources[candidate], transform)
            except InputError:
                continue
            return pixels, -1 if candidate == position else position
        return torch.zeros(3, *self._size), position

    def collate(self, read: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Put the images of a batch together: pixels float32 [b, 3, H, W], and positions int64 [b] or -1."""
        pixels, replaced = default_collate(read)
        return pixels, replaced


class TrainTexts:
    """Sentences of classes 0..C-1 as token ids.

    Args:
        texts: The sentences of each class, at least one.
        encoder: Encoder whose tokenizer is used.
    """

    def __init__(self, texts: Sequence[Sequence[str]], encoder: Encoder) -> None:
        tokens = encoder.tokenize([t for sentences in texts for t in sentences])
        self.ids = tokens.ids
        self.lengths = tokens.lengths.clamp(max=self.ids.shape[1])
        counts = torch.tensor([len(sentences) for sentences in texts])
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self.num_classes = len(texts)
        padded = torch.arange(self.ids.shape[1]) >= self.lengths[:, None]
        self._pad = int(self.ids[padded][0]) if bool(padded.any()) else 0

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a random sentence for each of `classes`, int64 [K]; return rows int64 [K]."""
        first = self.offsets[classes]
        last = self.offsets[classes + 1]
        share = torch.rand(len(classes), generator=generator, dtype=torch.float64)
        return first + (share * (last - first)).long()

    def tokens(self, rows: Tensor, word_dropout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return token ids of `rows`, int64 [K, L], trimmed to the longest, and the length of each, int64 [K].

        With `word_dropout` each token between start and end is removed with that probability; a sentence never loses
        all of them.
        """
        ids = self.ids[rows]
        lengths = self.lengths[rows]
        if word_dropout > 0:
            ids, lengths = self._drop(ids, lengths, word_dropout, generator)
        return ids[:, : int(lengths.max())], lengths

    def _drop(
        self, ids: Tensor, lengths: Tensor, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Remove a random share of the tokens between start and end; return ids [K, L], padded, and lengths [K]."""
        places = torch.arange(ids.shape[1])
        inner = (places > 0) & (places < lengths[:, None] - 1)
        struck = inner & (torch.rand(ids.shape, generator=generator) < share)
        struck &= (inner & ~struck).any(1, keepdim=True)
        keep = ~struck & (places < lengths[:, None])
        order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)
        kept = keep.sum(1)
        return torch.where(places < kept[:, None], ids.gather(1, order), self._pad), kept
