"""Computing the vectors of sentences and images that have none yet, and appending them to their encoder's caches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
from torch import Tensor

from vlltr_index.embedding.loading import content_ids, image_vectors_of, usable_images, view_suffix
from vlltr_index.embedding.pixels import (
    Augment,
    NamedImage,
    ReadAhead,
    StoredReader,
    image_features,
    in_batches,
    pool_crops,
)
from vlltr_index.errors import InputError
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.schemas.tables import (
    content_id,
    image_vectors,
    image_vectors_name,
    sentence_readings_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store.tables import one_of
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.encoders.sentence_model import SentenceModel
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.tables import Store
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

StoredImage = tuple[str, bytes | str]
"""The id of an image's content, see `schemas.tables.content_id`, and its bytes or its path."""

_TEXT_BATCH = 4096
_READ_BATCH = 256  # a sentence model takes seconds for these on a processor
_SOURCES = 1024  # images that are read from the table at once; a multiple of the batch
_SOURCE = ["image_id", "content_hash", "uri", "data"]
_EXAMPLES = 10  # images that are named in warnings
_FEW = 1000  # keys that are looked up by a condition instead of a scan


class ImageVectors(NamedTuple):
    """Vectors of one batch of images.

    Attributes:
        ids: Ids of the contents that could be read, in the given order.
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


class LocalEngine:
    """Engine on the encoder's device, while other threads or processes read the next batches.

    Args:
        encoder: The encoder that computes the vectors.
        augment: Augmentation of the views after the plain one.
        workers: Number of processes that read; 0: threads of this one, enough for small images.
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
        encoder = self._encoder
        reader = StoredReader(encoder, augment=self._augment, views=views)
        pinned = encoder.device.type == "cuda"
        for batch in ReadAhead(reader, batches, workers=self._workers, pinned=pinned):
            vectors = image_features(encoder, batch.pixels).cpu().transpose(0, 1)
            named = zip(batch.names, batch.problems, strict=True)
            yield ImageVectors(batch.readable, vectors, {name: why for name, why in named if why is not None})


def text_vectors(encoder: Encoder, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Encode texts to float32 [N, D] on the CPU, unnormalised; return also how many were cut to the context length."""
    tokens = encoder.tokenize(texts)
    return encoder.encode_texts(tokens), tokens.truncated


def unread(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """Say, as a note for the user, of how many texts the encoder knows no word."""
    count = sum(not encoder.tokenizer.reads(text) for text in texts)
    if not count:
        return []
    have = plural(count, "sentence has", "sentences have")
    return [f"{have} no word that the encoder knows: to it they say nothing."]


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


def embed_readings(
    tx: Snapshot,
    model: SentenceModel,
    hashes: Sequence[str],
    texts: Sequence[str],
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Let a sentence-embedding model read the texts that are not in its cache, in this process.

    Returns:
        How many texts were read, and how many had been read before.
    """
    name = sentence_readings_name(model.fingerprint)
    tx.store.create(name, sentence_vectors(model.dim), "text_hash")
    have = _have(tx, name, "text_hash", hashes)
    lacking = {h: t for h, t in zip(hashes, texts, strict=True) if h not in have}
    todo = sorted(lacking.items(), key=lambda one: len(one[1]))  # so that little is padded
    with tx.store.appending(name) as append:
        for start in range(0, len(todo), _READ_BATCH):
            part = todo[start : start + _READ_BATCH]
            vectors = model.encode([text for _, text in part])
            append(vector_table({"text_hash": [key for key, _ in part]}, vectors))
            if progress:
                progress("sentence model", start + len(part), len(todo))
    return len(todo), len(set(hashes)) - len(todo)


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
    batch: int | None = None,
) -> tuple[int, int, int]:
    """Embed the views of the images of `split` that have no vector yet; images of one content share their vectors.

    An image is decoded once for all views that it lacks. If an image can no longer be read, or its file is another by
    now than when it came in, its problem is stored with it, and it is not used. With `only`, these images are embedded
    instead of the split's. The vectors are computed by `engine`, by default in this process with `augment`, of `batch`
    images at once (default: `IMAGE_BATCH`).

    Returns:
        How many vectors were embedded, how many vectors the other images have, and how many images are unreadable.
    """
    name = image_vectors_name(encoder.image_fp)
    tx.store.create(name, image_vectors(encoder.dim), "vector_key")
    ids = list(only) if only is not None else usable_images(tx, split, [])["image_id"].to_pylist()
    suffixes = {view: view_suffix(view, config) for view in views}
    of = dict(zip(ids, content_ids(tx, ids), strict=True))
    contents = {content: i for i, content in of.items()}
    have = _have(tx, name, "vector_key", [f"{c}:{suffix}" for c in contents for suffix in suffixes.values()])
    lacking: dict[tuple[int, ...], list[str]] = {}
    for content, i in contents.items():
        missing = tuple(v for v in views if f"{content}:{suffixes[v]}" not in have)
        if missing:
            lacking.setdefault(missing, []).append(i)
    todo = sum(map(len, lacking.values()))
    done = 0
    looked = 0
    problems = dict[str, str]()
    engine = engine or LocalEngine(encoder, augment)
    with tx.store.appending(name) as append:
        for wanted, images in lacking.items():
            for result in engine.images(StoredImages(tx.store, images, batch), wanted):
                problems |= result.problems
                for view, vectors in zip(wanted, result.vectors, strict=True):
                    append(image_vector_table(result.ids, suffixes[view], view, vectors))
                done += len(wanted) * len(result.ids)
                looked += len(result.ids) + len(result.problems)
                if progress:
                    progress(f"embed {split} images", looked, todo)
    missed = sum(len(wanted) * len(images) for wanted, images in lacking.items())
    before = len(views) * len(ids) - missed
    if not problems:
        return done, before, 0
    _keep_aside(tx, {contents[content]: why for content, why in problems.items()})
    copies = [i for i, content in of.items() if content in problems and i != contents[content]]
    if not copies:
        return done, before, len(problems)
    more, there, unreadable = embed_images(
        tx,
        encoder,
        split,
        views=views,
        augment=augment,
        config=config,
        progress=progress,
        only=copies,
        engine=engine,
        batch=batch,
    )
    return done + more, before - len(views) * len(copies) + there, len(problems) + unreadable


def embed_crops(
    workspace: Workspace,
    encoder: Encoder,
    image_ids: Sequence[str],
    number: int,
    progress: Progress | None = None,
) -> Tensor:
    """Read the features of images through `number` crops, more than 1, and compute and store those that are missing.

    Returns:
        Float32 [N, D], unnormalised.

    Raises:
        UsageError: The number of crops is not supported.
        InputError: An image can no longer be read.
    """
    reader = StoredReader(encoder, number)
    name = image_vectors_name(encoder.image_fp)
    suffix = f"crops-{number}"
    contents = content_ids(workspace.snapshot(), image_ids)
    if not all(embedded(workspace.snapshot(), encoder.image_fp, contents, suffix)):
        with workspace.transaction("evaluate") as tx:  # it only adds to the cache, so there is no commit
            tx.store.create(name, image_vectors(encoder.dim), "vector_key")
            have = tx.store.keys(name, "vector_key")
            of = dict(zip(content_ids(tx, image_ids), image_ids, strict=True))
            todo = [image_id for content, image_id in of.items() if f"{content}:{suffix}" not in have]
            done = 0
            for batch in ReadAhead(reader, StoredImages(tx.store, todo)):
                for problem in batch.problems:
                    if problem is not None:
                        raise InputError(problem)
                features = pool_crops(image_features(encoder, batch.pixels)).cpu()
                tx.store.append(name, image_vector_table(batch.names, suffix, -number, features))
                done += len(batch.names)
                if progress:
                    progress(f"embed images, {number} crops each", done, len(todo))
    return image_vectors_of(workspace.snapshot(), image_ids, suffix, encoder.image_fp)


def embedded(snapshot: Snapshot, image_fp: str, contents: Sequence[str], suffix: str = "0") -> list[bool]:
    """Say of each of the `content_ids` whether it has a vector by the encoder `image_fp`; without a lock."""
    name = image_vectors_name(image_fp)
    keys = [f"{i}:{suffix}" for i in contents]
    have = _have(snapshot, name, "vector_key", keys) if snapshot.store.exists(name) else set[str]()
    return [key in have for key in keys]


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
    """Images of the current table `images`, in batches (default: of `IMAGE_BATCH`), or by position for Ray; it can be
    pickled.
    """

    def __init__(self, store: Store, ids: Sequence[str], batch: int | None = None) -> None:
        self._store = store
        self._ids = ids
        self._batch = batch

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[list[StoredImage]]:
        """Yield the images in batches."""
        for start in range(0, len(self), _SOURCES):
            yield from in_batches(
                self.take(range(start, min(start + _SOURCES, len(self)))).load(), self._batch
            )

    def take(self, places: Sequence[int]) -> StoredImages:
        """Return the images at some positions."""
        return StoredImages(self._store, [self._ids[place] for place in places])

    def load(self) -> list[StoredImage]:
        """Read all images: the id of each one's content with its bytes or its path."""
        return _sources(self._store.read("images", _SOURCE, one_of("image_id", self._ids)), self._ids)


def load_sources(snapshot: Snapshot, ids: Sequence[str]) -> list[StoredImage]:
    """Read the content's id and the bytes or the path of each image of `ids`, in their order."""
    return _sources(snapshot.table("images", _SOURCE, one_of("image_id", ids)), ids)


def _sources(rows: pa.Table, ids: Sequence[str]) -> list[StoredImage]:
    """Convert rows of `images` to sources, in the order of `ids`."""
    columns = zip(*rows.to_pydict().values(), strict=True)
    found = {i: (content_id(i, content), uri if data is None else data) for i, content, uri, data in columns}
    return [found[i] for i in ids]


def vector_table(columns: dict[str, Any], vectors: Tensor) -> pa.Table:
    """Make an Arrow table of `columns` and a fixed-size-list column `vector` of float32 [N, D], without a copy."""
    flat = pa.array(vectors.contiguous().view(-1).numpy())
    return pa.table({**columns, "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def image_vector_table(contents: list[str], suffix: str, view: int, vectors: Tensor) -> pa.Table:
    """Make rows of a cache of image vectors, float32 [N, D], by the ids of the images' contents."""
    keys = [f"{content}:{suffix}" for content in contents]
    columns = {"vector_key": keys, "content_id": contents, "view": [view] * len(contents)}
    return vector_table(columns, vectors)
