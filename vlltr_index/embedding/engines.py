"""Engines that compute the vectors of batches of sentences and images; storing them is the caller's."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlltr_index.data.decoding import open_image
from vlltr_index.data.objects import start_method
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import InputError
from vlltr_index.tensors import memory_mended_by

Augment = Callable[[Tensor, Sequence[int]], Tensor]
"""Pixels [B, 3, H, W] as the encoder's preprocessing gives them, and a seed for each, to an augmented batch."""

ImageSource = tuple[str, bytes | str]
"""An image's id, and its bytes or else its path."""

_THREADS = 2  # that read batches ahead; Pillow and torch let others run meanwhile


@dataclass(frozen=True, eq=False)
class ImageVectors:
    """The vectors of one batch of images.

    Attributes:
        ids: Of the images that could be read, in the order given.
        vectors: float32 [V, len(ids), D] on the CPU, unnormalised; one row of vectors a view.
        problems: Why the others could not, by id.
    """

    ids: list[str]
    vectors: Tensor
    problems: dict[str, str]


class Sources(Protocol):
    """Images by number, of which bytes are read when they are loaded, in whatever process: it can be pickled."""

    def __len__(self) -> int: ...

    def take(self, places: Sequence[int]) -> Sources:
        """Those at some places."""
        ...

    def load(self) -> Iterable[ImageSource]:
        """All of them, in their order."""
        ...


class Batches(Sources, Protocol):
    """Images that are also had batch by batch."""

    def __iter__(self) -> Iterator[list[ImageSource]]: ...


class Engine(Protocol):
    """Computes vectors lazily."""

    def texts(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[Tensor, int]]:
        """For each batch of N texts: float32 [N, D] on the CPU, unnormalised, and how many texts were cut."""
        ...

    def images(self, batches: Batches, views: Sequence[int]) -> Iterator[ImageVectors]:
        """The vectors of images in some views, in any order: 0 is the plain view, others are augmented."""
        ...


class _Read(NamedTuple):
    """A batch as the tower takes it: ids of the readable images, their pixels [V, n, 3, H, W], and what was wrong."""

    ids: list[str]
    pixels: Tensor
    problems: dict[str, str]


class Reader(Dataset[_Read]):
    """Decodes, preprocesses and augments batches, in whatever process: it can be pickled, and holds no weights.

    An image is decoded once for all its views. The random numbers of an augmented view depend on the image and the view
    alone, so that the images beside it do not matter.

    Args:
        preprocess: Pixels of one image.
        augment: Of the views after the plain one.
        views: Which are wanted.
    """

    def __init__(
        self, preprocess: Callable[[Image.Image], Tensor], augment: Augment | None, views: Sequence[int]
    ) -> None:
        self._preprocess, self._augment, self._views = preprocess, augment, views

    def __getitems__(self, batch: Sequence[ImageSource]) -> _Read:
        ids, pixels, problems = list[str](), list[Tensor](), dict[str, str]()
        for image_id, source in batch:
            try:
                pixels.append(self._preprocess(open_image(source)))
                ids.append(image_id)
            except InputError as error:
                problems[image_id] = error.message
        if not ids:
            return _Read(ids, torch.empty(len(self._views), 0), problems)
        plain = torch.stack(pixels)
        return _Read(ids, torch.stack([self._view(plain, ids, view) for view in self._views]), problems)

    def _view(self, plain: Tensor, ids: Sequence[str], view: int) -> Tensor:
        if not view or self._augment is None:
            return plain
        seeds = (hashlib.sha256(f"{image_id}:{view}".encode()).digest()[:7] for image_id in ids)
        return self._augment(plain, [int.from_bytes(seed, "big") for seed in seeds])


class LocalEngine:
    """Computes on the encoder's device; other threads or processes read the next batches meanwhile.

    Args:
        encoder: What computes the vectors.
        augment: Of the views after the plain one.
        workers: Processes that read; 0: two threads of this one, enough for small images.
    """

    def __init__(self, encoder: Encoder, augment: Augment | None = None, workers: int = 0) -> None:
        self._encoder, self._augment, self._workers = encoder, augment, workers

    def texts(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[Tensor, int]]:
        """See `Engine`."""
        for batch in batches:
            yield text_vectors(self._encoder, batch)

    def images(
        self, batches: Iterable[Sequence[ImageSource]], views: Sequence[int]
    ) -> Iterator[ImageVectors]:
        """See `Engine`."""
        reader = Reader(self._encoder.transform, self._augment, views)
        for read in self._processes(reader, batches) if self._workers else _threads(reader, batches):
            yield _vectors(self._encoder, read)

    def _processes(self, reader: Reader, batches: Iterable[Sequence[ImageSource]]) -> Iterator[_Read]:
        return iter(
            DataLoader(
                reader,
                batch_sampler=batches,  # type: ignore[arg-type]  # a source stands for its place
                num_workers=self._workers,
                multiprocessing_context=start_method(),
                collate_fn=_as_it_is,
                pin_memory=self._encoder.device.type == "cuda",
            )
        )


def _threads(reader: Reader, batches: Iterable[Sequence[ImageSource]]) -> Iterator[_Read]:
    with ThreadPoolExecutor(_THREADS) as pool:
        coming = deque[Any]()
        for batch in batches:
            coming.append(pool.submit(reader.__getitems__, batch))
            if len(coming) > _THREADS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _as_it_is(read: Any) -> Any:
    return read


def text_vectors(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Vectors float32 [N, D] on the CPU, unnormalised, and how many texts were cut to the context."""
    tokens = encoder.tokenize(texts)
    return encoder.encode_texts(tokens), tokens.truncated


def _vectors(encoder: Encoder, read: _Read) -> ImageVectors:
    views, images = read.pixels.shape[:2]
    if not images:
        return ImageVectors(read.ids, torch.empty(views, 0, encoder.dim), read.problems)
    vectors = image_features(encoder, read.pixels.flatten(0, 1))
    return ImageVectors(read.ids, vectors.view(views, images, -1), read.problems)


@torch.inference_mode()
def image_features(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Features float32 [B, D] on the CPU; a batch for which a GPU has too little memory is halved.

    Raises:
        VlltrError: If there is not even enough for one image.
    """
    try:
        return encoder.encode_pixels(pixels.to(encoder.device, non_blocking=True)).cpu()
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            with memory_mended_by("embed", "Free memory of the GPU, or use --device cpu."):
                raise error
    return torch.cat([image_features(encoder, half) for half in pixels.chunk(2)])
