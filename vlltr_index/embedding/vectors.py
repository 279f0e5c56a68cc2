"""Vectors of sentences and images that have none yet, appended to the caches of their fingerprint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from torch import Tensor

from vlltr_index.embedding.engines import Augment, Engine, ImageSource, LocalEngine
from vlltr_index.embedding.loading import usable_images, view_suffix
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.schemas.tables import (
    image_vectors,
    image_vectors_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store.tables import one_of

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.tables import Store
    from vlltr_index.store.transaction import Transaction


_TEXT_BATCH = 4096
IMAGE_BATCH = 64
_SOURCES = 1024  # images that a table is asked for at once; whole batches
_ROWS, _SECONDS = 4096, 30.0  # an append has so many rows, or comes so long after the last one
_SOURCE = ["image_id", "uri", "data"]
_FEW = 1000  # keys that are worth a condition instead of a scan


def embed_sentences(
    tx: Snapshot,
    encoder: Encoder,
    hashes: Sequence[str],
    texts: Sequence[str],
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> tuple[int, int, int]:
    """Embed the texts whose hash is not in the cache; returns (embedded, there before, cut to the context).

    The vectors are computed by `engine`, by default in this process, and appended here.
    """
    name = sentence_vectors_name(encoder.text_fp)
    tx.store.create(name, sentence_vectors(encoder.dim), "text_hash")
    have = _have(tx, name, "text_hash", hashes)
    todo = {h: t for h, t in zip(hashes, texts, strict=True) if h not in have}
    keys, truncated, done = list(todo), 0, 0
    parts = [keys[start : start + _TEXT_BATCH] for start in range(0, len(keys), _TEXT_BATCH)]
    engine = engine or LocalEngine(encoder)
    computed = engine.texts([todo[h] for h in part] for part in parts)
    for part, (vectors, cut) in zip(parts, computed, strict=True):
        truncated += cut
        tx.store.append(name, vector_table({"text_hash": part}, vectors))
        done += len(part)
        if progress:
            progress("embed sentences", done, len(keys))
    return len(keys), len(set(hashes)) - len(keys), truncated


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
    """Embed those views of the images of `split` that have no vector yet; returns (embedded, before, unreadable).

    The first two count vectors. An image is decoded once for all views that it lacks. An image that could be read when
    it came in, and cannot now, is kept aside with its problem. With `only`, these images alone are looked at. The
    vectors are computed by `engine`, by default in this process with `augment`.
    """
    name = image_vectors_name(encoder.image_fp)
    tx.store.create(name, image_vectors(encoder.dim), "vector_key")
    ids = list(only) if only is not None else usable_images(tx, split, [])["image_id"].to_pylist()
    suffixes = {view: view_suffix(view, config) for view in views}
    have = _have(tx, name, "vector_key", [f"{i}:{suffix}" for i in ids for suffix in suffixes.values()])
    lacking: dict[tuple[int, ...], list[str]] = {}
    for i in ids:
        lacking.setdefault(tuple(v for v in views if f"{i}:{suffixes[v]}" not in have), []).append(i)
    lacking.pop((), None)
    todo, done, looked, failed = sum(map(len, lacking.values())), 0, 0, 0
    engine = engine or LocalEngine(encoder, augment)
    with _appended(tx, name) as append:
        for wanted, images in lacking.items():
            for result in engine.images(StoredImages(tx.store, images), wanted):
                if result.problems:
                    failed += len(result.problems)
                    _keep_aside(tx, result.problems)
                for view, vectors in zip(wanted, result.vectors, strict=True):
                    append(image_vector_table(result.ids, suffixes[view], view, vectors))
                done += len(wanted) * len(result.ids)
                looked += len(result.ids) + len(result.problems)
                if progress:
                    progress(f"embed {split} images", looked, todo)
    missed = sum(len(wanted) * len(images) for wanted, images in lacking.items())
    return done, len(views) * len(ids) - missed, failed


@contextmanager
def _appended(tx: Transaction, name: str) -> Iterator[Callable[[pa.Table], None]]:
    """Takes rows of a table and appends them, many at a time: readers open a file for each time.

    A run that is killed loses those of half a minute at most.
    """
    waiting, since = list[pa.Table](), time.monotonic()

    def flush() -> None:
        nonlocal since
        if waiting:
            tx.store.append(name, pa.concat_tables(waiting))
        waiting.clear()
        since = time.monotonic()

    def append(rows: pa.Table) -> None:
        if rows.num_rows:  # of a batch of which no image can be read there are none
            waiting.append(rows)
        if sum(rows.num_rows for rows in waiting) >= _ROWS or time.monotonic() - since > _SECONDS:
            flush()

    try:
        yield append
    finally:
        flush()


def all_embedded(snapshot: Snapshot, image_fp: str, image_ids: Sequence[str], suffix: str = "0") -> bool:
    """Whether each image has a vector by the encoder `image_fp`; it takes no lock, so that a reader need not wait."""
    name, keys = image_vectors_name(image_fp), [f"{i}:{suffix}" for i in image_ids]
    return snapshot.store.exists(name) and _have(snapshot, name, "vector_key", keys).issuperset(keys)


def _have(tx: Snapshot, name: str, column: str, keys: Sequence[str]) -> set[str]:
    """Keys that are in a cache: of `keys` at least, where they are few those alone."""
    if len(keys) > _FEW:
        return tx.store.keys(name, column)
    return set(tx.store.read(name, [column], one_of(column, keys))[column].to_pylist())


def _keep_aside(tx: Transaction, problems: dict[str, str]) -> None:
    """Note why images cannot be used."""
    rows = tx.table("images", where=one_of("image_id", problems))
    why = pa.array([problems[i] for i in rows["image_id"].to_pylist()], pa.string())
    tx.upsert(
        "images", rows.set_column(rows.column_names.index("problem"), rows.schema.field("problem"), why)
    )


class StoredImages:
    """Images of the table `images` as it is now, in batches; see `Batches`."""

    def __init__(self, store: Store, ids: Sequence[str]) -> None:
        self._store, self._ids = store, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[list[ImageSource]]:
        for start in range(0, len(self), _SOURCES):
            found = self.take(range(start, min(start + _SOURCES, len(self)))).load()
            yield from (found[first : first + IMAGE_BATCH] for first in range(0, len(found), IMAGE_BATCH))

    def take(self, places: Sequence[int]) -> StoredImages:
        """Those at some places."""
        return StoredImages(self._store, [self._ids[place] for place in places])

    def load(self) -> list[ImageSource]:
        """Each with its bytes, or else its path."""
        return _sources(self._store.read("images", _SOURCE, one_of("image_id", self._ids)), self._ids)


def load_sources(snapshot: Snapshot, ids: Sequence[str]) -> list[ImageSource]:
    """Each image of `ids` with its bytes, or else its path, in their order."""
    return _sources(snapshot.table("images", _SOURCE, one_of("image_id", ids)), ids)


def _sources(rows: pa.Table, ids: Sequence[str]) -> list[ImageSource]:
    columns = zip(*rows.to_pydict().values(), strict=True)
    found = {i: uri if data is None else data for i, uri, data in columns}
    return [(i, found[i]) for i in ids]


def vector_table(columns: dict[str, list[str] | list[int]], vectors: Tensor) -> pa.Table:
    """An Arrow table of `columns` and a fixed-size-list column `vector` from float32 [N, D], without a copy."""
    flat = pa.array(np.ascontiguousarray(vectors.numpy()).reshape(-1))
    arrays = {
        name: pa.array(values, pa.int32() if values and isinstance(values[0], int) else pa.string())
        for name, values in columns.items()
    }
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table(arrays)


def image_vector_table(ids: list[str], suffix: str, view: int, vectors: Tensor) -> pa.Table:
    """Rows of a cache of image vectors, float32 [N, D]."""
    keys = [f"{image_id}:{suffix}" for image_id in ids]
    return vector_table({"vector_key": keys, "image_id": ids, "view": [view] * len(ids)}, vectors)
