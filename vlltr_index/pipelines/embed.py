"""Embed every sentence and image that has no vector yet (`vlltr embed`), into caches keyed by fingerprint."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from vlltr_index.embedding.loading import open_encoder
from vlltr_index.embedding.pixels import IMAGE_BATCH, Augment
from vlltr_index.embedding.vectors import (
    Engine,
    LocalEngine,
    embed_images,
    embed_readings,
    embed_sentences,
    unread,
)
from vlltr_index.pipelines.status import encoder_change
from vlltr_index.store.snapshot import SentenceReader
from vlltr_index.tensors import device_name
from vlltr_index.train.augment import ViewAugment
from vlltr_index.train.data import SMALL_SIDE

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class EmbedReport:
    """Report of an embedding run: what was embedded, and what had a vector before."""

    sentences: int
    sentences_before: int
    truncated: int
    context: int  # tokens of a sentence that the encoder reads
    images: int
    images_before: int
    unreadable: int
    text_fp: str
    image_fp: str
    notes: tuple[str, ...]  # sentences that say what the encoder does not read
    read: int | None = (
        None  # sentences that the sentence model of `prior.text` read; None: there is no such model
    )
    read_before: int = 0
    reader: str | None = None  # its name


def embed(
    workspace: Workspace,
    views: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    engine: EngineName | Engine = "local",
    actors: int | None = None,
    *,
    batch_size: int | None = None,
) -> EmbedReport:
    """Embed what has no vector yet; the caches resume by key, and the commit names their fingerprints.

    Args:
        workspace: Where sentences and images are.
        views: Vectors per image of split train: 1 plain and the rest augmented; default: the recipe's `lgr.views`.
        progress: Called with the step's name, what is done, and the total.
        force: Whether an encoder other than the last commit's is accepted; the commit then names no anchors, head or
            index, since those belong to the previous encoder.
        engine: Where vectors are computed: in this process, by Ray Data, or by an engine of your own; this process
            writes them in any case.
        batch_size: How many images are encoded at once, in this process; fewer take less memory.
        actors: How many models Ray loads; default: one for each GPU, or without a GPU one for each CPU.

    Raises:
        ConfigError: If the engine's package is not installed.
        MissingStepError: If the encoder has no weights yet.
        FingerprintMismatch: If the encoder is not the one of the commit's vectors, without `force`.
    """
    drawn = workspace.recipe.lgr.augment
    views = workspace.recipe.lgr.views if views is None else views
    with workspace.transaction("embed") as tx:
        commit = tx.commit
        if commit.checkpoint and (change := encoder_change(workspace, commit.checkpoint)):
            _log.warning("%s: the trained one is used, until it is trained again: vlltr train cvlp", change)
        encoder = open_encoder(tx, check=not force)
        _log.info("embed on %s, %s", device_name(encoder.device), encoder.precision)
        if encoder.precision == "tf32":
            _log.warning(
                "encoder.precision is tf32: vectors differ by up to 1e-3 from fp32's, and stand for them"
            )
        augment = ViewAugment(drawn, encoder)
        workers = _workers(workspace, encoder, views, batch_size or IMAGE_BATCH)
        with _open_engine(engine, actors, encoder, augment=augment, workers=workers) as computes:
            hashes, texts = tx.table("sentences", ["text_hash", "text"]).to_pydict().values()
            new, before, truncated = embed_sentences(
                tx, encoder, hashes, texts, progress=progress, engine=computes
            )
            read, read_before = _read(tx, hashes, texts, progress)
            take = partial(embed_images, tx, encoder, config=drawn, progress=progress, engine=computes)
            splits = sorted(set(tx.table("images", ["split"])["split"].to_pylist()))
            counts = [
                take(split, range(views if split == "train" else 1), batch=batch_size) for split in splits
            ]
        fps = encoder.text_fp, encoder.image_fp
        if (commit.text_fp or fps[0], commit.image_fp or fps[1]) != fps:  # these belong to another encoder
            tx.set(selection_id=None, head=None, index=None, fusion=None)
        tx.set(text_fp=encoder.text_fp, image_fp=encoder.image_fp)
        precision = "tf32" if commit.info.precision == "tf32" else encoder.precision
        tx.note(
            logit_scale=encoder.logit_scale, dim=encoder.dim, views=views, augment=drawn, precision=precision
        )
        if not commit.checkpoint:
            tx.note(encoder=tx.recipe.encoder)
    return EmbedReport(
        sentences=new,
        sentences_before=before,
        truncated=truncated,
        context=encoder.tokenizer.context_length,
        images=sum(made for made, _, _ in counts),
        images_before=sum(there for _, there, _ in counts),
        unreadable=sum(unreadable for _, _, unreadable in counts),
        text_fp=fps[0],
        image_fp=fps[1],
        notes=tuple(unread(encoder, texts)),
        read=read,
        read_before=read_before,
        reader=workspace.recipe.prior.text,
    )


def _read(
    tx: Transaction, hashes: list[str], texts: list[str], progress: Progress | None
) -> tuple[int | None, int]:
    """Let the recipe's sentence-embedding model, if it names one, read the sentences; note what it is.

    Returns:
        How many sentences it read, None without a model, and how many it had read before.
    """
    reading = None
    read = None
    before = 0
    if tx.recipe.prior.text is not None:
        from vlltr_index.encoders.sentence_model import SentenceModel

        _log.info("reading the sentences with the sentence model %s", tx.recipe.prior.text)
        model = SentenceModel.open(tx.recipe.prior.text)
        read, before = embed_readings(tx, model, hashes, texts, progress=progress)
        reading = SentenceReader(model=model.name, fp=model.fingerprint, dim=model.dim)
    if reading != tx.commit.info.reading:  # the head knows the readings of another model
        tx.set(head=None, fusion=None)
    tx.note(reading=reading)
    return read, before


def _workers(workspace: Workspace, encoder: Encoder, views: int, images: int) -> int:
    """Return the number of processes that read images; 0 for small images, and if batches exceed shared memory.

    A batch has so many `images`; Docker's default for shared memory is 64 MB.
    """
    workers = workspace.recipe.cvlp.workers if max(encoder.image_size) > SMALL_SIDE else 0
    batch = 4 * 3 * images * max(views, 1) * math.prod(encoder.image_size)  # bytes of float32
    try:
        return workers if (2 * workers + 2) * batch <= shutil.disk_usage("/dev/shm").free else 0
    except OSError:
        return workers  # only Linux has /dev/shm


def _open_engine(
    engine: EngineName | Engine, actors: int | None, encoder: Encoder, augment: Augment, workers: int
) -> AbstractContextManager[Engine]:
    if engine == "local":
        return nullcontext(LocalEngine(encoder, augment, workers))
    if not isinstance(engine, str):
        return nullcontext(engine)
    from vlltr_index.embedding.ray_engine import RayEngine

    return RayEngine(encoder, augment, actors)
