"""Engines that compute the vectors of batches of sentences and images; storing them is the caller's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vlltr_index.data.decoding import open_image
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import InputError
from vlltr_index.tensors import memory_mended_by

__all__ = [
    "Augment",
    "Decoded",
    "Engine",
    "ImageSource",
    "ImageVectors",
    "LocalEngine",
    "image_vectors_of_batch",
    "text_vectors_of_batch",
    "vectors_of_decoded",
]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Pixels [B, 3, H, W] as the encoder's preprocessing gives them, to an augmented batch of the same shape."""

ImageSource = tuple[str, bytes | str]
"""An image's id, and its bytes or else its path."""

Decoded = tuple[str, Callable[[], Tensor]]
"""An image's id, and what gives its pixels float32 [3, H, W] or raises InputError."""

_DECODERS = 4  # threads that decode, at most; Pillow lets others run meanwhile


@dataclass(frozen=True, eq=False)
class ImageVectors:
    """The vectors of one batch of images.

    Attributes:
        ids: Of the images that could be read, in the order given.
        vectors: float32 [len(ids), D] on the CPU, unnormalised.
        problems: Why the others could not, by id.
    """

    ids: list[str]
    vectors: Tensor
    problems: dict[str, str]


class Engine(Protocol):
    """Computes vectors of batches, lazily and in the order of the batches."""

    def texts(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[Tensor, int]]:
        """For each batch of N texts: float32 [N, D] on the CPU, unnormalised, and how many texts were cut."""
        ...

    def images(self, batches: Iterable[Sequence[ImageSource]], view: int) -> Iterator[ImageVectors]:
        """The vectors of each batch of images, in the plain view 0 or an augmented one."""
        ...


class LocalEngine:
    """Computes in this process, on the encoder's device; the next batch is decoded while the tower works on this one.

    Args:
        encoder: What computes the vectors.
        augment: Of the views after the plain one.
    """

    def __init__(self, encoder: Encoder, augment: Augment | None = None) -> None:
        self._encoder = encoder
        self._augment = augment

    def texts(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[Tensor, int]]:
        """See `Engine`."""
        for batch in batches:
            yield text_vectors_of_batch(self._encoder, batch)

    def images(self, batches: Iterable[Sequence[ImageSource]], view: int) -> Iterator[ImageVectors]:
        """See `Engine`."""
        waiting: list[Decoded] = []
        with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:
            for batch in batches:
                coming = [(i, pool.submit(_pixels, self._encoder, source)) for i, source in batch]
                if waiting:
                    yield self._vectors(waiting, view)
                waiting = [(image_id, future.result) for image_id, future in coming]
            if waiting:
                yield self._vectors(waiting, view)

    def _vectors(self, decoded: list[Decoded], view: int) -> ImageVectors:
        return vectors_of_decoded(self._encoder, decoded, view, self._augment)


def text_vectors_of_batch(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Vectors float32 [N, D] on the CPU, unnormalised, and how many texts were cut to the context."""
    tokens = encoder.tokenize(texts)
    return encoder.encode_texts(tokens), tokens.truncated


def image_vectors_of_batch(
    encoder: Encoder, batch: Sequence[ImageSource], view: int, augment: Augment | None
) -> ImageVectors:
    """Decode, preprocess and encode one batch, one image after the other; see `vectors_of_decoded`."""
    decoded = [(image_id, partial(_pixels, encoder, source)) for image_id, source in batch]
    return vectors_of_decoded(encoder, decoded, view, augment)


def _pixels(encoder: Encoder, source: bytes | str) -> Tensor:
    return encoder.preprocess(open_image(source))


def vectors_of_decoded(
    encoder: Encoder, decoded: Sequence[Decoded], view: int, augment: Augment | None
) -> ImageVectors:
    """Encode one batch; what cannot be read is named with the reason.

    An augmented view is drawn from the batch's first readable image and the view, so that the same batch gives the same
    vectors wherever it is computed.
    """
    ids: list[str] = []
    pixels: list[Tensor] = []
    problems: dict[str, str] = {}
    for image_id, result in decoded:
        try:
            pixels.append(result())
        except InputError as error:
            problems[image_id] = error.message
            continue
        ids.append(image_id)
    if not ids:
        return ImageVectors(ids, torch.empty(0, encoder.dim), problems)
    stacked = torch.stack(pixels)
    if view and augment is not None:
        seed = int.from_bytes(hashlib.sha256(f"{ids[0]}:{view}".encode()).digest()[:7], "big")
        stacked = augment(stacked, torch.Generator().manual_seed(seed))
    return ImageVectors(ids, _encoded(encoder, stacked), problems)


@torch.inference_mode()
def _encoded(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Features float32 [B, D] on the CPU; a batch for which a GPU has too little memory is halved.

    Raises:
        VlltrError: If there is not even enough for one image.
    """
    try:
        return encoder.encode_pixels(pixels.to(encoder.device)).cpu()
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            with memory_mended_by("embed", "Free memory of the GPU, or use --device cpu."):
                raise error
    return torch.cat([_encoded(encoder, half) for half in pixels.chunk(2)])
