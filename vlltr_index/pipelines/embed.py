"""`vlltr embed`: vectors of every sentence and image that has none yet, into caches keyed by fingerprint."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vlltr_index.embedding.loading import open_encoder
from vlltr_index.embedding.vectors import (
    IMAGE_BATCH,
    Augment,
    Engine,
    LocalEngine,
    embed_images,
    embed_sentences,
)
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.pipelines.status import encoder_change
from vlltr_index.tensors import device_name
from vlltr_index.train.augment import ViewAugment
from vlltr_index.train.data import SMALL_SIDE

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class EmbedReport:
    """What was embedded in this run, and what was there already."""

    sentences: int
    sentences_before: int
    truncated: int
    context: int  # tokens of a sentence that the encoder reads
    images: int
    images_before: int
    unreadable: int
    text_fp: str
    image_fp: str


def embed(
    workspace: Workspace,
    views: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    engine: EngineName = "local",
    actors: int | None = None,
) -> EmbedReport:
    """Embed what is new; the caches resume by key, and the commit names their fingerprints.

    Args:
        workspace: Where sentences and images are.
        views: Vectors an image of split train: 1 plain and the rest augmented; default: the recipe's `lgr.views`.
        progress: Called with the step's name, what is done, and the total.
        force: Whether an encoder other than the last commit's is taken; anchors, head and index that belong to the
            other one are given up then.
        engine: Where vectors are computed: in this process, or by Ray Data; this process writes them either way.
        actors: How many models Ray holds; default: one a GPU, or where there is none one a CPU.

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
        with _open_engine(engine, actors, encoder, augment, _workers(workspace, encoder, views)) as computes:
            hashes, texts = tx.table("sentences", ["text_hash", "text"]).to_pydict().values()
            new, before, truncated = embed_sentences(tx, encoder, hashes, texts, progress, computes)
            images = 0
            there = 0
            unreadable = 0
            for split in sorted(set(tx.table("images", ["split"])["split"].to_pylist())):
                wanted = range(views if split == "train" else 1)
                made, had, failed = embed_images(
                    tx, encoder, split, wanted, None, drawn, progress, engine=computes
                )
                images = images + made
                there = there + had
                unreadable = unreadable + failed
        fps = encoder.text_fp, encoder.image_fp
        if (commit.text_fp or fps[0], commit.image_fp or fps[1]) != fps:  # they were another encoder's
            tx.set(selection_id=None, head=None, index=None, fusion=None)
        tx.set(text_fp=encoder.text_fp, image_fp=encoder.image_fp)
        precision = "tf32" if commit.info.precision == "tf32" else encoder.precision
        tx.note(
            logit_scale=encoder.logit_scale, dim=encoder.dim, views=views, augment=drawn, precision=precision
        )
    context = encoder.tokenizer.context_length
    return EmbedReport(new, before, truncated, context, images, there, unreadable, *fps)


def _workers(workspace: Workspace, encoder: Encoder, views: int) -> int:
    """Processes that read images: none for small images, nor where their batches would not fit shared memory.

    Docker gives a container 64 MB of it.
    """
    workers = workspace.recipe.cvlp.workers if max(encoder.image_size) > SMALL_SIDE else 0
    batch = 4 * 3 * IMAGE_BATCH * max(views, 1) * math.prod(encoder.image_size)  # bytes of float32
    try:
        return workers if (2 * workers + 2) * batch <= shutil.disk_usage("/dev/shm").free else 0
    except OSError:
        return workers  # no Linux


def _open_engine(
    name: EngineName, actors: int | None, encoder: Encoder, augment: Augment, workers: int
) -> AbstractContextManager[Engine]:
    if name == "local":
        return nullcontext(LocalEngine(encoder, augment, workers))
    from vlltr_index.embedding.ray_engine import RayEngine

    return RayEngine(encoder, augment, actors)
