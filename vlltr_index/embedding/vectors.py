"""Computing the vectors of sentences and images that have none yet, and appending them to their encoder's caches."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlltr_index.data.decoding import read_image
from vlltr_index.data.objects import start_method
from vlltr_index.embedding.loading import usable_images, view_suffix
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import InputError
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.schemas.tables import (
    image_vectors,
    image_vectors_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store.tables import one_of
from vlltr_index.tensors import memory_mended_by

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.tables import Store
    from vlltr_index.store.transaction import Transaction

_log = logging.getLogger(__name__)

Augment = Callable[[Tensor, Sequence[int]], Tensor]
"""Takes pixels [B, 3, H, W], preprocessed for the encoder, and a seed for each; gives an augmented batch."""

NamedImage = tuple[str, bytes | str]
"""An image's id, and its bytes or its path."""

IMAGE_BATCH = 64
_TEXT_BATCH = 4096
_SOURCES = 1024  # images that are read from the table at once; a multiple of the batch
_SOURCE = ["image_id", "uri", "data"]
_EXAMPLES = 10  # images that are named in warnings
_FEW = 1000  # keys that are looked up by a condition instead of a scan
_THREADS = 2  # threads that read batches ahead; Pillow and torch release the interpreter's lock


class ImageVectors(NamedTuple):
    """Vectors of one batch of images.

    Attributes:
        ids: Ids of the images that could be read, in the given order.
        vectors: Float32 [V, len(ids), D] on the CPU, unnormalised, of V views.
        problems: For each image that could not be read, the reason by its id.
    """

    ids: list[str]
    vectors: Tensor
    problems: dict[str, str]


class Engine(Protocol):
    """An engine that computes vectors, batch by batch."""

    def texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], Tensor, int]]:
        """Yield for each batch of texts with keys: the keys, vectors as of `text_vectors`, and how many were cut."""
        ...

    def images(self, batches: StoredImages, views: Sequence[int]) -> Iterator[ImageVectors]:
        """Yield the vectors of images in some views, in any order; view 0 is plain, the others are augmented."""
        ...


class Reader(Dataset[ImageVectors]):
    """Dataset that decodes, preprocesses and augments batches in any process: it can be pickled, and holds no weights.

    A batch is an `ImageVectors` with pixels [V, n, 3, H, W] instead of vectors. An image is decoded once for all its
    views. The random numbers of an augmented view depend on image and view alone, not on the batch.

    Args:
        preprocess: Gives the pixels of one image.
        augment: Augmentation of the views after the plain one.
        views: The views to make.
    """

    def __init__(
        self, preprocess: Callable[[Image.Image], Tensor], augment: Augment | None, views: Sequence[int]
    ) -> None:
        self._preprocess = preprocess
        self._augment = augment
        self._views = views

    def __getitems__(self, batch: Sequence[NamedImage]) -> ImageVectors:
        """Read a batch of images in all views."""
        ids = list[str]()
        pixels = list[Tensor]()
        problems = dict[str, str]()
        for image_id, source in batch:
            try:
                pixels.append(read_image(source, self._preprocess))
                ids.append(image_id)
            except InputError as error:
                problems[image_id] = error.message
        if not ids:
            return ImageVectors(ids, torch.empty(len(self._views), 0), problems)
        plain = torch.stack(pixels)
        views = torch.stack([self._view(plain, ids, view) for view in self._views])
        return ImageVectors(ids, views, problems)

    def _view(self, plain: Tensor, ids: Sequence[str], view: int) -> Tensor:
        """Make one view of pixels [n, 3, H, W]; view 0 is the plain one."""
        if not view or self._augment is None:
            return plain
        seeds = (hashlib.sha256(f"{image_id}:{view}".encode()).digest()[:7] for image_id in ids)
        return self._augment(plain, [int.from_bytes(seed, "big") for seed in seeds])


class LocalEngine:
    """Engine on the encoder's device, while other threads or processes read the next batches.

    Args:
        encoder: The encoder that computes the vectors.
        augment: Augmentation of the views after the plain one.
        workers: Number of processes that read; 0: two threads of this one, enough for small images.
    """

    def __init__(self, encoder: Encoder, augment: Augment | None = None, workers: int = 0) -> None:
        self._encoder = encoder
        self._augment = augment
        self._workers = workers

    def texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], Tensor, int]]:
        """Yield the vectors of texts, as `Engine` says."""
        for start in range(0, len(texts), _TEXT_BATCH):
            part = texts[start : start + _TEXT_BATCH]
            vectors, cut = text_vectors(self._encoder, [text for _, text in part])
            yield [key for key, _ in part], vectors, cut

    def images(self, batches: Iterable[Sequence[NamedImage]], views: Sequence[int]) -> Iterator[ImageVectors]:
        """Yield the vectors of images, as `Engine` says."""
        reader = Reader(self._encoder.transform, self._augment, views)
        encoder = self._encoder
        read = _threads(reader, batches)
        if self._workers:
            read = iter(
                DataLoader(
                    reader,
                    batch_sampler=batches,  # type: ignore[arg-type]  # sources instead of positions
                    num_workers=self._workers,
                    multiprocessing_context=start_method(),
                    collate_fn=tuple,
                    pin_memory=encoder.device.type == "cuda",
                )
            )
        for ids, pixels, problems in read:
            vectors = torch.empty(len(views), 0, encoder.dim)
            if ids:
                vectors = image_features(encoder, pixels.flatten(0, 1)).view(len(views), len(ids), -1)
            yield ImageVectors(ids, vectors, problems)


def _threads(reader: Reader, batches: Iterable[Sequence[NamedImage]]) -> Iterator[ImageVectors]:
    """Read batches ahead in threads, and yield them in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        coming = deque[Any]()
        for batch in batches:
            coming.append(pool.submit(reader.__getitems__, batch))
            if len(coming) > _THREADS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def text_vectors(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Encode texts to float32 [N, D] on the CPU, unnormalised; return also how many were cut to the context length."""
    tokens = encoder.tokenize(texts)
    return encoder.encode_texts(tokens), tokens.truncated


@torch.inference_mode()
def image_features(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Encode pixels to float32 [B, D] on the CPU, unnormalised; a batch too large for a GPU's memory is halved.

    Raises:
        VlltrError: The memory does not suffice for a single image.
    """
    try:
        return encoder.encode_pixels(pixels.to(encoder.device, non_blocking=True)).cpu()
    except torch.OutOfMemoryError as error:
        if len(pixels) == 1:
            with memory_mended_by("embed", "Free memory of the GPU, or use --device cpu."):
                raise error
    return torch.cat([image_features(encoder, half) for half in pixels.chunk(2)])


def embed_sentences(
    tx: Snapshot,
    encoder: Encoder,
    hashes: Sequence[str],
    texts: Sequence[str],
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> tuple[int, int, int]:
    """Embed the texts whose hash is not in the cache, by `engine`, by default in this process.

    Returns:
        How many texts were embedded, how many had vectors before, and how many were cut to the context length.
    """
    name = sentence_vectors_name(encoder.text_fp)
    tx.store.create(name, sentence_vectors(encoder.dim), "text_hash")
    have = _have(tx, name, "text_hash", hashes)
    todo = {h: t for h, t in zip(hashes, texts, strict=True) if h not in have}
    truncated = 0
    done = 0
    with tx.store.appending(name) as append:
        for part, vectors, cut in (engine or LocalEngine(encoder)).texts(list(todo.items())):
            truncated += cut
            append(vector_table({"text_hash": part}, vectors))
            done += len(part)
            if progress:
                progress("embed sentences", done, len(todo))
    return len(todo), len(set(hashes)) - len(todo), truncated


def embed_images(
    tx: Transaction,
    encoder: Encoder,
    split: str,
    views: Sequence[int] = (0,),
    augment: Augment | None = None,
    config: AugmentConfig | None = None,
    progress: Progress | None = None,
    only: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> tuple[int, int, int]:
    """Embed the views of the images of `split` that have no vector yet.

    An image is decoded once for all views that it lacks. If an image can no longer be read, its problem is stored with
    it, and it is not used. With `only`, these images are embedded instead of the split's. The vectors are computed by
    `engine`, by default in this process with `augment`.

    Returns:
        How many vectors were embedded, how many there were before, and how many images are unreadable.
    """
    name = image_vectors_name(encoder.image_fp)
    tx.store.create(name, image_vectors(encoder.dim), "vector_key")
    ids = list(only) if only is not None else usable_images(tx, split, [])["image_id"].to_pylist()
    suffixes = {view: view_suffix(view, config) for view in views}
    have = _have(tx, name, "vector_key", [f"{i}:{suffix}" for i in ids for suffix in suffixes.values()])
    lacking: dict[tuple[int, ...], list[str]] = {}
    for i in ids:
        missing = tuple(v for v in views if f"{i}:{suffixes[v]}" not in have)
        if missing:
            lacking.setdefault(missing, []).append(i)
    todo = sum(map(len, lacking.values()))
    done = 0
    looked = 0
    problems = dict[str, str]()
    engine = engine or LocalEngine(encoder, augment)
    with tx.store.appending(name) as append:
        for wanted, images in lacking.items():
            for result in engine.images(StoredImages(tx.store, images), wanted):
                problems |= result.problems
                for view, vectors in zip(wanted, result.vectors, strict=True):
                    append(image_vector_table(result.ids, suffixes[view], view, vectors))
                done += len(wanted) * len(result.ids)
                looked += len(result.ids) + len(result.problems)
                if progress:
                    progress(f"embed {split} images", looked, todo)
    if problems:
        _keep_aside(tx, problems)
    missed = sum(len(wanted) * len(images) for wanted, images in lacking.items())
    return done, len(views) * len(ids) - missed, len(problems)


def all_embedded(snapshot: Snapshot, image_fp: str, image_ids: Sequence[str], suffix: str = "0") -> bool:
    """Say whether each image has a vector by the encoder `image_fp`, without a lock, so that readers need not wait."""
    name = image_vectors_name(image_fp)
    keys = [f"{i}:{suffix}" for i in image_ids]
    return snapshot.store.exists(name) and _have(snapshot, name, "vector_key", keys).issuperset(keys)


def _have(tx: Snapshot, name: str, column: str, keys: Sequence[str]) -> set[str]:
    """Return which of `keys` are in a cache; if there are many, all keys of the cache."""
    if len(keys) > _FEW:
        return tx.store.keys(name, column)
    return set(tx.store.read(name, [column], one_of(column, keys))[column].to_pylist())


def _keep_aside(tx: Transaction, problems: dict[str, str]) -> None:
    """Store why images cannot be used, and warn of some."""
    rows = tx.table("images", where=one_of("image_id", problems))
    why = pa.array([problems[i] for i in rows["image_id"].to_pylist()], pa.string())
    for uri, problem in islice(zip(rows["uri"].to_pylist(), why.to_pylist(), strict=True), _EXAMPLES):
        _log.warning("kept aside: %s: %s", uri, problem)
    tx.upsert("images", rows.drop_columns(["problem"]).append_column("problem", why))


class StoredImages:
    """Images of the current table `images`, in batches, or by position for Ray; it can be pickled."""

    def __init__(self, store: Store, ids: Sequence[str]) -> None:
        self._store = store
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[list[NamedImage]]:
        """Yield the images in batches of `IMAGE_BATCH`."""
        for start in range(0, len(self), _SOURCES):
            found = self.take(range(start, min(start + _SOURCES, len(self)))).load()
            yield from (found[first : first + IMAGE_BATCH] for first in range(0, len(found), IMAGE_BATCH))

    def take(self, places: Sequence[int]) -> StoredImages:
        """Return the images at some positions."""
        return StoredImages(self._store, [self._ids[place] for place in places])

    def load(self) -> list[NamedImage]:
        """Read all images: each id with its bytes or its path."""
        return _sources(self._store.read("images", _SOURCE, one_of("image_id", self._ids)), self._ids)


def load_sources(snapshot: Snapshot, ids: Sequence[str]) -> list[NamedImage]:
    """Read the bytes or the path of each image of `ids`, in their order."""
    return _sources(snapshot.table("images", _SOURCE, one_of("image_id", ids)), ids)


def _sources(rows: pa.Table, ids: Sequence[str]) -> list[NamedImage]:
    """Convert rows of `images` to sources, in the order of `ids`."""
    columns = zip(*rows.to_pydict().values(), strict=True)
    found = {i: uri if data is None else data for i, uri, data in columns}
    return [(i, found[i]) for i in ids]


def vector_table(columns: dict[str, Any], vectors: Tensor) -> pa.Table:
    """Make an Arrow table of `columns` and a fixed-size-list column `vector` of float32 [N, D], without a copy."""
    flat = pa.array(vectors.contiguous().view(-1).numpy())
    return pa.table({**columns, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def image_vector_table(ids: list[str], suffix: str, view: int, vectors: Tensor) -> pa.Table:
    """Make rows of a cache of image vectors, float32 [N, D]."""
    keys = [f"{image_id}:{suffix}" for image_id in ids]
    return vector_table({"vector_key": keys, "image_id": ids, "view": [view] * len(ids)}, vectors)
