"""Vectors of sentences and images that have none yet, appended to the caches of their fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vlltr_index.encoder import Encoder
from vlltr_index.errors import InputError
from vlltr_index.images.decode import open_image
from vlltr_index.loading import usable_images, view_suffix
from vlltr_index.pixels import normalised
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.schemas.tables import (
    image_vectors,
    image_vectors_name,
    sentence_vectors,
    sentence_vectors_name,
)
from vlltr_index.store import one_of

if TYPE_CHECKING:
    from vlltr_index.images.cache import PixelCache
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.transaction import Transaction

__all__ = ["Augment", "embed_images", "embed_sentences", "load_sources", "vector_table"]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Pixels [B, 3, H, W] as the encoder's preprocessing gives them, to an augmented batch of the same shape."""

_TEXT_BATCH = 4096
_PLAIN_BATCH, _VIEW_BATCH = 64, 256  # images; the random numbers of augmented views depend on theirs
_DECODERS = 4  # threads that decode, at most; Pillow lets others run meanwhile
_FEW = 1000  # keys that are worth a condition instead of a scan


def embed_sentences(
    tx: Snapshot,
    encoder: Encoder,
    hashes: Sequence[str],
    texts: Sequence[str],
    progress: Progress | None = None,
) -> tuple[int, int, int]:
    """Embed the texts whose hash is not in the cache; returns (embedded, there before, cut to the context)."""
    name = sentence_vectors_name(encoder.text_fp)
    tx.store.create(name, sentence_vectors(encoder.dim), "text_hash")
    have = _have(tx, name, "text_hash", hashes)
    todo = {h: t for h, t in zip(hashes, texts, strict=True) if h not in have}
    keys, truncated = list(todo), 0
    for start in range(0, len(keys), _TEXT_BATCH):
        part = keys[start : start + _TEXT_BATCH]
        batch = [todo[h] for h in part]
        tokens = encoder.tokenize(batch)
        truncated += tokens.truncated
        vectors = encoder.encode_texts(tokens)
        tx.store.append(name, vector_table({"text_hash": part}, vectors))
        if progress:
            progress("embed sentences", start + len(part), len(keys))
    return len(keys), len(set(hashes)) - len(keys), truncated


def embed_images(
    tx: Transaction,
    encoder: Encoder,
    split: str,
    view: int = 0,
    augment: Augment | None = None,
    config: AugmentConfig | None = None,
    progress: Progress | None = None,
    only: Sequence[str] | None = None,
    cache: PixelCache | None = None,
) -> tuple[int, int, int]:
    """Embed one view of the images of `split` that have no vector yet; returns (embedded, before, unreadable).

    An image that could be read when it came in, and cannot now, is kept aside with its problem. With `only`, these
    images alone are looked at. With `cache` (a `plain_cache`) decoded images are taken from there and kept there; the
    vectors are the same. The next batch is decoded while the tower works on this one.
    """
    name = image_vectors_name(encoder.image_fp)
    tx.store.create(name, image_vectors(encoder.dim), "vector_key")
    ids = list(only) if only is not None else usable_images(tx, split, [])["image_id"].to_pylist()
    suffix = view_suffix(view, config)
    have = _have(tx, name, "vector_key", [f"{i}:{suffix}" for i in ids])
    todo = [i for i in ids if f"{i}:{suffix}" not in have]
    done = failed = 0
    label = f"embed {split} images" + (f", view {view}" if view else "")
    for part, pixels, bad in _pixel_batches(tx, encoder, todo, view, augment, cache):
        if bad:
            failed += len(bad)
            _keep_aside(tx, bad)
        if part:
            with torch.inference_mode():
                vectors = encoder.encode_pixels(pixels.to(encoder.device)).float().cpu()
            columns: dict[str, list[str] | list[int]] = {
                "vector_key": [f"{i}:{suffix}" for i in part],
                "image_id": part,
                "view": [view] * len(part),
            }
            tx.store.append(name, vector_table(columns, vectors))
        done += len(part)
        if progress:
            progress(label, done + failed, len(todo))
    return done, len(ids) - len(todo), failed


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


def _pixel_batches(
    tx: Snapshot,
    encoder: Encoder,
    ids: list[str],
    view: int,
    augment: Augment | None,
    cache: PixelCache | None,
) -> Iterator[tuple[list[str], Tensor, dict[str, str]]]:
    """Decoded batches in `ids` order: image ids, pixels [B, 3, H, W] normalised, and why others are unreadable."""
    size = _VIEW_BATCH if view else _PLAIN_BATCH
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as pool:

        def begin(part: list[str]) -> list[Future[Tensor]]:
            rows = _sources(tx, part)
            return [pool.submit(_pixels, encoder, *rows[image_id], cache) for image_id in part]

        coming = begin(parts[0]) if parts else []
        for number, part in enumerate(parts):
            futures, coming = coming, begin(parts[number + 1]) if number + 1 < len(parts) else []
            good: list[str] = []
            pixels: list[Tensor] = []
            bad: dict[str, str] = {}
            for image_id, future in zip(part, futures, strict=True):
                try:
                    pixels.append(future.result())
                    good.append(image_id)
                except InputError as error:
                    bad[image_id] = error.message
            batch = torch.stack(pixels) if pixels else torch.empty(0)
            if view and augment is not None and good:
                batch = augment(batch, _view_generator(good[0], view))
            yield good, batch, bad


def _view_generator(first: str, view: int) -> torch.Generator:
    """The random numbers of a batch's augmented view."""
    seed = int.from_bytes(hashlib.sha256(f"{first}:{view}".encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def _pixels(encoder: Encoder, source: bytes | str, digest: str | None, cache: PixelCache | None) -> Tensor:
    """float32 [3, H, W], as `encoder.preprocess` gives it."""
    if cache is None:
        return encoder.preprocess(open_image(source))
    return normalised(cache.image(source, digest), encoder)


def _sources(tx: Snapshot, ids: list[str]) -> dict[str, tuple[bytes | str, str | None]]:
    """Bytes, or else the path, of each image and the digest of its bytes, by its id."""
    rows = tx.table("images", ["image_id", "uri", "data", "content_hash"], one_of("image_id", ids))
    columns = (rows[name].to_pylist() for name in ("image_id", "uri", "data", "content_hash"))
    return {
        i: (data if data is not None else uri, digest) for i, uri, data, digest in zip(*columns, strict=True)
    }


def load_sources(tx: Snapshot, ids: list[str]) -> list[tuple[str, bytes | str]]:
    """Bytes, or else the path, of each image of `ids`, in their order."""
    found = _sources(tx, ids)
    return [(i, found[i][0]) for i in ids]


def vector_table(columns: dict[str, list[str] | list[int]], vectors: Tensor) -> pa.Table:
    """An Arrow table of `columns` and a fixed-size-list column `vector` from float32 [N, D], without a copy."""
    flat = pa.array(np.ascontiguousarray(vectors.numpy()).reshape(-1))
    arrays = {
        name: pa.array(values, pa.int32() if values and isinstance(values[0], int) else pa.string())
        for name, values in columns.items()
    }
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table(arrays)
