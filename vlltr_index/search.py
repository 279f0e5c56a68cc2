"""Search by concept: images by a text, sentences by an image or a text, over the stored vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.embedding import all_embedded, embed_images
from vlltr_index.encoder import Encoder
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.images.decode import ENDINGS, open_image
from vlltr_index.loading import open_encoder
from vlltr_index.ranking import fuse_ranks, nearest
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store import Store, one_of, quote

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = [
    "ImageHit",
    "ImageSearch",
    "SentenceHit",
    "SentenceSearch",
    "is_image_path",
    "search_images",
    "search_sentences",
]

_DEEP = 10  # candidates of each kind for each hit that is shown
_LEAST_DEEP = 100


@dataclass(frozen=True)
class ImageHit:
    """An image and the cosine similarity of its vector to the query's."""

    image_id: str
    class_id: int
    class_name: str
    split: str
    uri: str
    similarity: float


@dataclass(frozen=True)
class ImageSearch:
    """The images nearest to a text.

    Attributes:
        query: The text.
        searched: Images with a vector that were compared.
        without_vector: Images that could not be.
        hits: Best first.
        base: The same with the encoder that training started from, where that was asked for.
    """

    query: str
    searched: int
    without_vector: int
    hits: tuple[ImageHit, ...]
    base: tuple[ImageHit, ...] | None = None


@dataclass(frozen=True)
class SentenceHit:
    """A sentence and the cosine similarity of its vector to the query's.

    `by_vector` and `by_words` are its places in the two lists of a hybrid search, from 1; null where it is not in
    one.
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
    """The sentences nearest to an image or a text, best first."""

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
    """The images whose stored vectors are nearest to a text's, exactly.

    Args:
        workspace: With embedded images.
        text: What to look for.
        split: Images of this split alone; default: all.
        top: How many.
        compare: Search with the encoder that training started from, too; its vectors are embedded once, into the
            cache of its own fingerprint.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        UsageError: If the text is empty, the split unknown, or there is no starting encoder to compare with.
        MissingStepError: If no image has been embedded.
    """
    _check_text(text)
    snapshot = workspace.snapshot()
    images = _images(snapshot, split)
    base_encoder = _starting_encoder(workspace, snapshot) if compare else None
    encoder = open_encoder(workspace, snapshot).eval()
    hits, searched = _nearest_images(snapshot, images, encoder, text, top)
    if not searched:
        raise MissingStepError("no image has been embedded with this encoder", "Run: vlltr embed")
    base = None
    if base_encoder is not None:
        if not all_embedded(snapshot, base_encoder.image_fp, images["image_id"].to_pylist()):
            with workspace.transaction("search images --compare") as tx:
                for name in sorted(set(images["split"].to_pylist())):
                    embed_images(tx, base_encoder, name, progress=progress)
        base, _ = _nearest_images(snapshot, images, base_encoder, text, top)
    return ImageSearch(text, searched, images.num_rows - searched, hits, base)


def _check_text(text: str) -> None:
    if not text.strip():
        raise UsageError(
            "there is nothing to look for: the text is empty",
            'For example: vlltr search images "a spotted texture"',
        )


def _images(snapshot: Snapshot, split: str | None) -> pa.Table:
    """The usable images of classes in use."""
    columns = ["image_id", "class_id", "split", "uri"]
    where = "problem IS NULL AND class_id IS NOT NULL"
    rows = snapshot.table("images", columns, where + (f" AND split = {quote(split)}" if split else ""))
    rows = rows.filter(pc.is_in(rows["class_id"], value_set=pa.array(snapshot.class_table().ids, pa.int32())))
    if rows.num_rows:
        return rows
    there = sorted(set(snapshot.table("images", ["split"], where)["split"].to_pylist()))
    if split is not None and there:
        raise UsageError(f"no images in split {split!r}; there are {', '.join(there)}", "Name one of these.")
    raise MissingStepError("there are no images", "Run: vlltr ingest images PATH --split train")


def _starting_encoder(workspace: Workspace, snapshot: Snapshot) -> Encoder:
    """The encoder that training started from.

    Raises:
        UsageError: If it started from random weights, or has not been trained.
    """
    config = workspace.recipe.encoder
    if not config.pretrained:
        raise UsageError(
            f"--compare has nothing to compare with: the recipe starts {config.model} from random weights",
            "It works in workspaces made with weights: vlltr init DIR --encoder MODEL:PRETRAINED",
        )
    if snapshot.commit is None or not snapshot.commit.checkpoint:
        raise UsageError(
            f"--compare has nothing to compare with: {config.model} has not been trained here",
            "Train it first: vlltr train cvlp",
        )
    return Encoder.load(
        config.model,
        config.pretrained,
        image_size=config.image_size,
        resize=config.resize,
        precision=config.precision,
    ).eval()


def _nearest_images(
    snapshot: Snapshot, images: pa.Table, encoder: Encoder, text: str, top: int
) -> tuple[tuple[ImageHit, ...], int]:
    name = image_vectors_name(encoder.image_fp)
    if not snapshot.store.exists(name):
        return (), 0
    query = encoder.encode_texts([text])[0]
    allowed = images["image_id"].combine_chunks()
    batches = snapshot.store.vector_batches(name, "image_id", "view = 0")
    found, compared = nearest(batches, query, allowed, top)
    names = snapshot.class_table().names
    at = pc.index_in(pa.array([key for key, _ in found], pa.string()), value_set=allowed).to_pylist()
    rows = images.take(pa.array(at, pa.int64())).to_pylist()
    hits = tuple(
        ImageHit(key, row["class_id"], names[row["class_id"]], row["split"], row["uri"], similarity)
        for (key, similarity), row in zip(found, rows, strict=True)
    )
    return hits, compared


def search_sentences(
    workspace: Workspace,
    query: str,
    *,
    class_name: str | None = None,
    top: int = 20,
    hybrid: bool | None = None,
    is_image: bool = False,
) -> SentenceSearch:
    """The sentences whose stored vectors are nearest to an image's or a text's, exactly.

    A hybrid search ranks them by their words too (BM25, LanceDB's full-text index) and fuses both rankings.

    Args:
        workspace: With embedded sentences.
        query: A text, or the path of an image.
        class_name: Sentences of this class alone.
        top: How many.
        hybrid: Default: for a text, not for an image.
        is_image: Whether `query` is a path.

    Raises:
        UsageError: If the text is empty, or a hybrid search is asked for with an image.
        InputError: If the image cannot be read.
        UnknownClassError: If there is no such class.
        MissingStepError: If no sentence has been embedded.
    """
    if is_image and hybrid:
        raise UsageError("an image has no words to look for", "Leave --hybrid out, or give a text.")
    if not is_image:
        _check_text(query)
    snapshot = workspace.snapshot()
    rows = _sentences(snapshot, class_name)
    encoder = open_encoder(workspace, snapshot).eval()
    vector = _image_query(encoder, query) if is_image else encoder.encode_texts([query])[0]
    name = sentence_vectors_name(encoder.text_fp)
    if not snapshot.store.exists(name):
        raise MissingStepError("no sentence has been embedded with this encoder", "Run: vlltr embed")
    deep = max(_LEAST_DEEP, _DEEP * top)
    batches = snapshot.store.vector_batches(name, "text_hash")
    hashes = pc.unique(rows["text_hash"])
    found, searched = nearest(batches, vector, hashes, deep)
    if not searched:
        raise MissingStepError("no sentence has been embedded with this encoder", "Run: vlltr embed")
    use_words = not is_image if hybrid is None else hybrid
    words = _by_words(rows, query, deep) if use_words else []
    ranked = _ranked(snapshot, name, vector, found, words)
    hits = _sentence_hits(snapshot, rows, ranked, top)
    return SentenceSearch(query, "image" if is_image else "text", use_words, searched, hits)


def _sentences(snapshot: Snapshot, class_name: str | None) -> pa.Table:
    """The sentences of the classes in use, or of one."""
    table = snapshot.class_table()
    ids = table.ids if class_name is None else (table.lookup(class_name),)
    rows = snapshot.table("sentences")
    rows = rows.filter(pc.is_in(rows["class_id"], value_set=pa.array(ids, pa.int32())))
    if not rows.num_rows:
        raise MissingStepError("there are no sentences", "Run: vlltr ingest text PATH")
    return rows


def _image_query(encoder: Encoder, path: str) -> Tensor:
    """The vector float32 [D] of an image, unnormalised.

    Raises:
        InputError: If it cannot be read.
    """
    pixels = encoder.preprocess(open_image(path)).unsqueeze(0).to(encoder.device)
    with torch.inference_mode():
        return encoder.encode_pixels(pixels).float().cpu()[0].clone()


def _by_words(rows: pa.Table, words: str, limit: int) -> list[str]:
    """Hashes of the texts that have the words, best first; the index lives in memory for this one search."""
    groups = rows.group_by("text_hash", use_threads=False).aggregate([("text", "first")])
    texts = groups.select(["text_hash", "text_first"]).rename_columns(["text_hash", "text"])
    store = Store("memory://")
    store.create("texts", texts.schema)
    store.append("texts", texts)
    found = store.full_text("texts", "text", words, limit)
    scored = zip(found["_score"].to_pylist(), found["text_hash"].to_pylist(), strict=True)
    return [key for _, key in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]


@dataclass(frozen=True)
class _Ranked:
    """A text that was found, by its hash."""

    key: str
    similarity: float
    by_vector: int | None
    by_words: int | None


def _ranked(
    snapshot: Snapshot, table: str, vector: Tensor, found: list[tuple[str, float]], words: list[str]
) -> list[_Ranked]:
    """Both rankings fused, best first; with no words, the ranking by vector."""
    similarity = dict(found)
    far = [key for key in words if key not in similarity]
    if far:
        have = snapshot.store.read(table, ["text_hash"], one_of("text_hash", far))["text_hash"].to_pylist()
        _, vectors = snapshot.store.vectors(table, "text_hash", have)
        cosines = F.normalize(vectors, dim=1) @ F.normalize(vector.cpu(), dim=0) if have else torch.empty(0)
        similarity |= dict(zip(have, cosines.tolist(), strict=True))
        words = [key for key in words if key in similarity]
    nearness = [key for key, _ in found]
    by_vector = {key: rank for rank, key in enumerate(nearness, 1)}
    by_words = {key: rank for rank, key in enumerate(words, 1)}
    fused = fuse_ranks(nearness, words)
    order = sorted(fused, key=lambda key: (-fused[key], -similarity[key], key))
    return [
        _Ranked(key, similarity[key], by_vector.get(key) if words else None, by_words.get(key))
        for key in order
    ]


def _sentence_hits(
    snapshot: Snapshot, rows: pa.Table, ranked: Sequence[_Ranked], top: int
) -> tuple[SentenceHit, ...]:
    """The sentences with the texts that were found: one for each class that has the text."""
    owned: dict[str, list[dict[str, object]]] = {}
    wanted = pa.array([item.key for item in ranked[:top]], pa.string())
    for row in rows.filter(pc.is_in(rows["text_hash"], value_set=wanted)).sort_by("class_id").to_pylist():
        owned.setdefault(row["text_hash"], []).append(row)
    names = snapshot.class_table().names
    kept = ("sentence_id", "class_id", "text", "source", "source_ref", "licence")
    hits = [
        SentenceHit(
            **{name: row[name] for name in kept},  # type: ignore[arg-type]  # columns of the Arrow schema
            class_name=names[row["class_id"]],  # type: ignore[index]  # an int32 column
            similarity=item.similarity,
            by_vector=item.by_vector,
            by_words=item.by_words,
        )
        for item in ranked[:top]
        for row in owned[item.key]
    ]
    return tuple(hits[:top])


def is_image_path(query: str) -> bool:
    """Whether a query names an image file: by its ending.

    Raises:
        InputError: If it ends as an image does, and there is no such file.
    """
    if not query.casefold().endswith(ENDINGS):
        return False
    if Path(query).expanduser().is_file():
        return True
    raise InputError(f"no such file: {query}", "To search for a text, let it end otherwise.")
