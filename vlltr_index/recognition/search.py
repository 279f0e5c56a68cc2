"""Search the stored vectors: images by a text, sentences by an image or a text, also by their words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.data.decoding import ENDINGS, read_image
from vlltr_index.embedding.loading import content_ids, open_encoder, recipe_encoder
from vlltr_index.embedding.pixels import CropPixels, image_features
from vlltr_index.embedding.vectors import embed_images, embedded
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.schemas.tables import content_id, image_vectors_name, sentence_vectors_name
from vlltr_index.store.tables import fuse_rankings, one_of, quote

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

_DEEP = 10  # candidates from each ranking per hit
_LEAST_DEEP = 100
_NEEDS = "a search compares vectors of texts and images"
_OTHER = "Search in a workspace that has one: vlltr init DIR --encoder ViT-B-32-quickgelu:openai"


@dataclass(frozen=True)
class ImageHit:
    """An image and the cosine of its vector with the query's."""

    image_id: str
    class_id: int
    class_name: str
    split: str
    uri: str
    similarity: float


@dataclass(frozen=True)
class ImageSearch:
    """Result of a search for images by a text.

    Attributes:
        query: The text.
        searched: Number of images with a vector, which were compared.
        without_vector: Number of images without one.
        hits: Best first.
        base: The same with the encoder that training started from, if `compare` was given.
    """

    query: str
    searched: int
    without_vector: int
    hits: tuple[ImageHit, ...]
    base: tuple[ImageHit, ...] | None = None


@dataclass(frozen=True)
class SentenceHit:
    """A sentence and the cosine of its vector with the query's.

    `by_vector` and `by_words` are its ranks, from 1, in the two rankings of a hybrid search, or None.
    """

    sentence_id: str
    class_id: int
    class_name: str
    text: str
    source: str
    source_ref: str | None
    licence: str | None
    similarity: float
    by_vector: int | None = None
    by_words: int | None = None


@dataclass(frozen=True)
class SentenceSearch:
    """Result of a search for sentences, best first; `searched` counts the sentences with a vector."""

    query: str
    kind: Literal["image", "text"]
    hybrid: bool
    searched: int
    hits: tuple[SentenceHit, ...]


def search_images(
    workspace: Workspace,
    text: str,
    *,
    split: str | None = None,
    top: int = 20,
    compare: bool = False,
    progress: Progress | None = None,
) -> ImageSearch:
    """Find the images whose stored vectors are nearest to a text's, exactly.

    Args:
        workspace: With embedded images.
        text: What to look for.
        split: Images of this split alone; default: all.
        top: How many.
        compare: Search with the encoder that training started from, too; its vectors are embedded once, into the
            cache of its own fingerprint.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        UsageError: If the text is empty, there is no text tower, or no starting encoder to compare with.
        MissingStepError: If the split has no image, or none has been embedded.
    """
    _check_text(text)
    snapshot = workspace.snapshot()
    snapshot.commit.family.require_texts(_NEEDS, _OTHER)
    images = _images(snapshot, split)
    base_encoder = _starting_encoder(snapshot) if compare else None
    encoder = open_encoder(snapshot)
    hits, searched = _nearest_images(snapshot, images, encoder, text, top=top)
    if not searched:
        raise MissingStepError("no image has been embedded with this encoder", "Run: vlltr embed")
    base = None
    if base_encoder is not None:
        contents = content_ids(snapshot, images["image_id"].to_pylist())
        if not all(embedded(snapshot, base_encoder.image_fp, contents)):
            with workspace.transaction("search images --compare") as tx:
                for name in sorted(set(images["split"].to_pylist())):
                    embed_images(tx, base_encoder, name, progress=progress)
        base, _ = _nearest_images(snapshot, images, base_encoder, text, top=top)
    return ImageSearch(text, searched, images.num_rows - searched, hits, base=base)


def _check_text(text: str) -> None:
    if not text.strip():
        raise UsageError(
            "there is nothing to look for: the text is empty",
            'For example: vlltr search images "a spotted texture"',
        )


def _images(snapshot: Snapshot, split: str | None) -> pa.Table:
    """Read the usable images of classes in use."""
    where = f"problem IS NULL AND {one_of('class_id', snapshot.class_table().ids)}"
    where += f" AND split = {quote(split)}" if split else ""
    rows = snapshot.table("images", ["image_id", "class_id", "split", "uri", "content_hash"], where)
    if not rows.num_rows:
        of = f" of split {split!r}" if split else ""
        raise MissingStepError(f"there are no images{of}", "Run: vlltr ingest images PATH --split train")
    return rows


def _starting_encoder(snapshot: Snapshot) -> Encoder:
    """Open the encoder that training started from.

    Raises:
        UsageError: If it started from random weights, or has not been trained since.
    """
    config = snapshot.recipe.encoder
    if not config.pretrained or not snapshot.commit.checkpoint:
        why = "has not been trained here" if config.pretrained else "starts from random weights"
        raise UsageError(
            f"--compare has nothing to compare with: {config.model} {why}",
            "It is for an encoder that started from weights (vlltr init DIR --encoder MODEL:PRETRAINED) and was "
            "trained since (vlltr train cvlp).",
        )
    return recipe_encoder(config)


def _nearest_images(
    snapshot: Snapshot, images: pa.Table, encoder: Encoder, text: str, top: int
) -> tuple[tuple[ImageHit, ...], int]:
    """Return the nearest images, and how many images were compared."""
    query = encoder.encode_texts([text])[0]
    name = image_vectors_name(encoder.image_fp)
    contents = map(content_id, images["image_id"].to_pylist(), images["content_hash"].to_pylist())
    images = images.append_column("content_id", pa.array(contents, pa.string()))
    ranked = _ranked(snapshot, name, images, "content_id", query=query, where="view = 0")
    ranked = ranked.drop_columns(["content_hash", "content_id"])
    names = snapshot.class_table().names
    hits = [ImageHit(class_name=names[row["class_id"]], **row) for row in ranked.slice(0, top).to_pylist()]
    return tuple(hits), ranked.num_rows


def _ranked(
    snapshot: Snapshot, table: str, rows: pa.Table, key: str, query: Tensor, where: str | None = None
) -> pa.Table:
    """Sort those of `rows` that have a vector by cosine, nearest first; ties by their first column.

    Args:
        snapshot: Where the vectors are.
        table: Name of the table of vectors; it need not exist.
        rows: Rows to search.
        key: The column that holds the key of a row's vector.
        query: Float [D], unnormalised.
        where: SQL condition on the vectors.

    Returns:
        The rows with their cosine in a new column `similarity`.
    """
    wanted = F.normalize(query.float().cpu(), dim=0)
    keys = []
    cosines = []
    if snapshot.store.exists(table):
        for found, vectors in snapshot.store.vector_batches(table, key, where):
            keys.append(found)
            cosines.append(pa.array((F.normalize(vectors, dim=1) @ wanted).numpy()))
    at = pc.index_in(rows[key], value_set=pa.chunked_array(keys, pa.string()).combine_chunks())
    rows = rows.append_column("similarity", pa.chunked_array(cosines, pa.float32()).take(at))
    order = [("similarity", "descending"), (rows.column_names[0], "ascending")]
    return rows.filter(at.is_valid()).sort_by(order)


def search_sentences(
    workspace: Workspace,
    query: str,
    *,
    class_name: str | None = None,
    top: int = 20,
    hybrid: bool | None = None,
    is_image: bool = False,
) -> SentenceSearch:
    """Find the sentences whose stored vectors are nearest to an image's or a text's, exactly.

    A hybrid search ranks them by their words too (BM25) and fuses both rankings by reciprocal rank.

    Args:
        workspace: With embedded sentences.
        query: A text, or the path of an image.
        class_name: Sentences of this class alone.
        top: How many.
        hybrid: Default: for a text, not for an image.
        is_image: Whether `query` is a path.

    Raises:
        UsageError: If the text is empty, there is no text tower, or a hybrid search is asked for with an image.
        InputError: If the image cannot be read.
        UnknownClassError: If there is no such class.
        MissingStepError: If no sentence has been embedded.
    """
    if is_image and hybrid:
        raise UsageError("an image has no words to look for", "Leave --hybrid out, or give a text.")
    if not is_image:
        _check_text(query)
    snapshot = workspace.snapshot()
    snapshot.commit.family.require_texts(_NEEDS, _OTHER)
    table = snapshot.class_table()
    where = one_of("class_id", table.ids if class_name is None else (table.lookup(class_name),))
    rows = snapshot.table("sentences", ["sentence_id", "text_hash"], where)
    if not rows.num_rows:
        raise MissingStepError("there are no sentences", "Run: vlltr ingest text PATH")
    encoder = open_encoder(snapshot)
    if is_image:
        pixels = read_image(query, CropPixels(encoder))
        vector = image_features(encoder, pixels[None])[0, 0].cpu()
    else:
        vector = encoder.encode_texts([query])[0]
    ranked = _ranked(snapshot, sentence_vectors_name(encoder.text_fp), rows, "text_hash", query=vector)
    if not ranked.num_rows:
        raise MissingStepError("no sentence has been embedded with this encoder", "Run: vlltr embed")
    use_words = not is_image if hybrid is None else hybrid
    best = _with_words(snapshot, ranked, query, where, top=top) if use_words else ranked.slice(0, top)
    return SentenceSearch(
        query=query,
        kind="image" if is_image else "text",
        hybrid=use_words,
        searched=ranked.num_rows,
        hits=_sentence_hits(snapshot, best),
    )


def _with_words(snapshot: Snapshot, ranked: pa.Table, words: str, where: str, top: int) -> pa.Table:
    """Return the best `top` rows by vector and words together, with both ranks; ties by similarity."""
    deep = max(_LEAST_DEEP, _DEEP * top)
    keys = snapshot.full_text("sentences", "text", words, where, limit=deep)
    found = keys["sentence_id"].combine_chunks()
    by_words = pc.add(pc.index_in(ranked["sentence_id"], value_set=found), 1)
    ranked = ranked.append_column("by_words", by_words)
    near = ranked.slice(0, deep)
    near = near.append_column("by_vector", pa.array(range(1, near.num_rows + 1), pa.int32()))
    named = ranked.filter(by_words.is_valid()).sort_by("by_words")
    fused = fuse_rankings("sentence_id", near, named)
    order = [("_relevance_score", "descending"), ("similarity", "descending"), ("sentence_id", "ascending")]
    return fused.sort_by(order).slice(0, top)


def _sentence_hits(snapshot: Snapshot, best: pa.Table) -> tuple[SentenceHit, ...]:
    columns = ["sentence_id", "class_id", "text", "source", "source_ref", "licence"]
    rows = snapshot.table("sentences", columns, one_of("sentence_id", best["sentence_id"].to_pylist()))
    facts = {row["sentence_id"]: row for row in rows.to_pylist()}
    names = snapshot.class_table().names
    kept = [c for c in ("sentence_id", "similarity", "by_vector", "by_words") if c in best.column_names]
    hits = [facts[hit["sentence_id"]] | hit for hit in best.select(kept).to_pylist()]
    return tuple(SentenceHit(**hit, class_name=names[hit["class_id"]]) for hit in hits)


def is_image_path(query: str) -> bool:
    """Say whether a query ends like the name of an image file.

    Raises:
        InputError: If it ends like an image, and there is no such file.
    """
    if not query.casefold().endswith(ENDINGS):
        return False
    if os.path.isfile(os.path.expanduser(query)):
        return True
    raise InputError(f"no such file: {query}", "To search for a text, let it end otherwise.")
