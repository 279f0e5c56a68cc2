"""From pictures to pixels to features: decoded, cropped or augmented, read ahead, and encoded as memory allows.

An image may be encoded through crops: it is resized a little larger, and cropped at its centre and corners. The crops'
features are normalised to length one and averaged, and the mean gets the crops' mean length. The result is a single
feature, so that fusion, retrieval and explanation work as for any image, and stay exact.
"""

from __future__ import annotations

import gc
import hashlib
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vlltr_index.data.decoding import ImageSource, cores, image_bytes, read_image
from vlltr_index.data.objects import start_method
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.tensors import memory_mended_by

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder

Augment = Callable[[Tensor, Sequence[int]], Tensor]
"""Takes pixels [B, 3, H, W], preprocessed for the encoder, and a seed for each; gives an augmented batch."""

NamedImage = tuple[str, ImageSource]
"""An image's id or name, and the image."""

IMAGE_BATCH = 64
_AGAIN = "Bring it in again: vlltr ingest images"
_MARGIN = 14  # the enlarged square has a margin of a fourteenth of the side on each side: 224 -> 256
_READERS = 8

Wanted = TypeVar("Wanted")
Read = TypeVar("Read")
Batch = TypeVar("Batch")


class ReadImage(NamedTuple):
    """A named image that was read: the pixels of its crops, or why it has none."""

    name: str
    pixels: Tensor | None
    problem: str | None


class PixelBatch(NamedTuple):
    """Images that were read together.

    Attributes:
        names: Names of all images, in the given order.
        problems: For each image why it cannot be read, or None.
        pixels: Float32 [N, P, 3, H, W], the P crops or views of the N images that could be read, normalised for the
            encoder.
    """

    names: list[str]
    problems: list[str | None]
    pixels: Tensor

    @property
    def readable(self) -> list[str]:
        """Names of the N images that could be read."""
        return [name for name, problem in zip(self.names, self.problems, strict=True) if problem is None]


class CropPixels:
    """Preprocessing of an image into its crops' pixels; it can be pickled, and holds no weights.

    Args:
        encoder: Encoder whose size and preprocessing are used.
        number: 1: the image as it is preprocessed. 5: preprocessed a seventh larger, and cropped at centre and corners.

    Raises:
        UsageError: Another number of crops.
    """

    def __init__(self, encoder: Encoder, number: int = 1) -> None:
        if number not in (1, 5):
            raise UsageError(f"crops is 1 or 5 (the centre and the corners), got {number}", "Use --crops 5")
        height, width = encoder.image_size
        self.size = (height, width)
        self.number = number
        self._margins = (max(1, round(height / _MARGIN)), max(1, round(width / _MARGIN)))
        self._transform: Callable[[Image.Image], Tensor] = encoder.transform
        if number > 1:
            from vlltr_index.encoders.openclip import Preprocessing

            larger = (height + 2 * self._margins[0], width + 2 * self._margins[1])
            cfg = encoder.config["preprocess_cfg"]
            cfg["size"] = larger[0] if larger[0] == larger[1] else list(larger)
            if "resize" in cfg:
                cfg["resize"] = max(cfg["resize"], *larger)
            self._transform = Preprocessing(cfg)

    def __call__(self, image: Image.Image) -> Tensor:
        """Make the crops of one image, normalised for the encoder: float32 [number, 3, H, W]."""
        whole = self._transform(image)
        if self.number == 1:
            return whole[None]
        height, width = self.size
        down, right = self._margins
        places = [(down, right), (0, 0), (0, 2 * right), (2 * down, 0), (2 * down, 2 * right)]
        return torch.stack([whole[:, y : y + height, x : x + width] for y, x in places])


class ImageReader(Dataset[Read], ABC, Generic[Wanted, Read, Batch]):
    """Reader of images, for `ReadAhead`, in any thread or process: it can be pickled, and holds no weights."""

    @abstractmethod
    def __getitem__(self, wanted: Wanted) -> Read:
        """Read one image."""

    @abstractmethod
    def collate(self, read: list[Read]) -> Batch:
        """Put the images of a batch together."""


class Reader(ImageReader[NamedImage, ReadImage, PixelBatch]):
    """Reader of named images for an encoder: their crops, or their views.

    An image is decoded once for all its views. The random numbers of an augmented view depend on the image's name and
    the view alone, not on the batch; the name of a stored image is the id of its content.

    Args:
        encoder: Encoder whose size and preprocessing are used.
        crops: As for `CropPixels`, which raises the same errors.
        augment: Augmentation of the views after view 0, which is plain.
        views: The views to make; without `augment` view 0 alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        crops: int = 1,
        *,
        augment: Augment | None = None,
        views: Sequence[int] = (0,),
    ) -> None:
        self._crops = CropPixels(encoder, crops)
        self._augment = augment
        self._views = views

    def __getitem__(self, wanted: NamedImage) -> ReadImage:
        """Read one image, through its crops."""
        return self._read(*wanted)

    def _read(self, name: str, source: ImageSource | ImageRecord) -> ReadImage:
        try:
            return ReadImage(name, read_image(source, self._crops), None)
        except InputError as error:
            return ReadImage(name, None, error.message)

    def collate(self, read: list[ReadImage]) -> PixelBatch:
        """Put the images of a batch together, in all views."""
        names = [one.name for one in read]
        problems = [one.problem for one in read]
        pixels = [one.pixels for one in read if one.pixels is not None]
        if not pixels:
            pictures = len(self._views) * self._crops.number
            return PixelBatch(names, problems, torch.empty(0, pictures, 3, *self._crops.size))
        crops = torch.stack(pixels)
        if self._augment is None:
            return PixelBatch(names, problems, crops)
        plain = crops[:, 0]
        ids = [one.name for one in read if one.pixels is not None]
        views = [self._augment(plain, _seeds(ids, view)) if view else plain for view in self._views]
        return PixelBatch(names, problems, torch.stack(views, 1))


class StoredReader(Reader):
    """Reader of images of a workspace, each by the id of its content: a file of another content is a problem."""

    def __getitem__(self, wanted: NamedImage) -> ReadImage:
        """Read one image, through its crops."""
        name, source = wanted
        if not isinstance(source, str):
            return super().__getitem__(wanted)
        try:
            data = image_bytes(source)
        except InputError as error:
            return ReadImage(name, None, error.message)
        if not name.startswith(digest_bytes(data)[:32]):
            return ReadImage(name, None, f"{source} has changed since it came in. {_AGAIN}")
        return self._read(name, ImageRecord(name, source, None, "", data=data))


def _seeds(ids: Sequence[str], view: int) -> list[int]:
    """Return the seed of each image's view."""
    digests = (hashlib.sha256(f"{image_id}:{view}".encode()).digest()[:7] for image_id in ids)
    return [int.from_bytes(digest, "big") for digest in digests]


class ReadAhead(Iterable[Batch], Generic[Wanted, Read, Batch]):
    """Batches of images, the next one of which is read while the caller works on one.

    Args:
        reader: Reads the images.
        batches: What the reader is asked for; looked through anew whenever this object is.
        workers: Number of processes that read, which live as long as this object; 0: threads, which suffice for small
            images.
        pinned: Whether tensors that processes read are in memory that a GPU copies from.
    """

    def __init__(
        self,
        reader: ImageReader[Wanted, Read, Batch],
        batches: Iterable[Sequence[Wanted]],
        *,
        workers: int = 0,
        pinned: bool = False,
    ) -> None:
        self._reader = reader
        self._batches = batches
        self._workers = workers
        self._pinned = pinned

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in their order."""
        if not self._workers:
            return self._read_by_threads()
        with warnings.catch_warnings(), _frozen_objects():  # they read images, and no table
            warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)
            return iter(self._loader)

    @cached_property
    def _loader(self) -> DataLoader[Read]:
        """The processes, which start when they are first needed."""
        return DataLoader(
            self._reader,
            batch_sampler=self._batches,  # type: ignore[arg-type]  # what is wanted instead of positions
            num_workers=self._workers,
            multiprocessing_context=start_method(),
            collate_fn=self._reader.collate,
            pin_memory=self._pinned,
            persistent_workers=True,
            generator=torch.Generator().manual_seed(0),  # keeps this process's random numbers as they are
        )

    def _read_by_threads(self) -> Iterator[Batch]:
        threads = min(_READERS, len(cores()))
        with ThreadPoolExecutor(threads) as pool:
            coming = deque[Future[Batch]]()
            for batch in self._batches:
                share = -(-len(batch) // threads)  # a task an image would cost more than a small image itself
                shares = [batch[start : start + share] for start in range(0, len(batch), share)]
                read = [pool.submit(self._read, one) for one in shares]
                # Behind its images in the pool's queue, so that it never waits for any that no thread has begun.
                coming.append(pool.submit(self._collated, read))
                if len(coming) > 1:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _read(self, wanted: Sequence[Wanted]) -> list[Read]:
        return [self._reader[one] for one in wanted]

    def _collated(self, read: Sequence[Future[list[Read]]]) -> Batch:
        return self._reader.collate([image for share in read for image in share.result()])


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Keep processes that are forked within the block from freeing objects of this one.

    Their garbage collector would free objects of lancedb, which can wait forever for a lock that a thread of this
    process held at the fork.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def in_batches(images: Iterable[Wanted], size: int | None = None) -> Iterator[list[Wanted]]:
    """Yield images in lists of `size`; None: `IMAGE_BATCH`."""
    source = iter(images)
    while batch := list(islice(source, size or IMAGE_BATCH)):
        yield batch


@torch.inference_mode()
def image_features(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Encode the crops or views of images, [N, P, 3, H, W], in halves where memory does not suffice for all at once.

    Returns:
        Float32 [N, P, D] on the encoder's device, unnormalised.

    Raises:
        VlltrError: A GPU's memory does not suffice for a single crop or view.
        MemoryError: This machine's memory does not.
    """
    return _encode(encoder, pixels.flatten(0, 1)).view(*pixels.shape[:2], encoder.dim)


def _encode(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Encode pixels [B, 3, H, W], by halves if need be."""
    if not len(pixels):
        return torch.empty(0, encoder.dim)
    try:
        return encoder.encode_pixels(pixels.to(encoder.device, non_blocking=True))
    except (MemoryError, torch.OutOfMemoryError) as error:
        if len(pixels) == 1:
            with memory_mended_by("encode an image", "Free memory of the GPU, or use --device cpu."):
                raise error
    return torch.cat([_encode(encoder, half) for half in pixels.chunk(2)])


def pool_crops(features: Tensor) -> Tensor:
    """Pool the features of crops into one feature per image: the mean direction, with the crops' mean length.

    Args:
        features: Float [B, N, D], unnormalised.

    Returns:
        [B, D], unnormalised; with one crop, that crop's feature.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    length: Tensor = torch.linalg.vector_norm(features, dim=2).mean(1, keepdim=True)
    return F.normalize(F.normalize(features, dim=2).mean(1), dim=1) * length
