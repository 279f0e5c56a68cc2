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
from vlltr_index.errors import UsageError
from vlltr_index.pipelines.status import encoder_change
from vlltr_index.tensors import device_name
from vlltr_index.train.augment import ViewAugment
from vlltr_index.train.data import SMALL_SIDE

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Commit
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = ["EmbedReport", "EngineName", "embed"]

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
    views = workspace.recipe.lgr.views if views is None else views
    with workspace.transaction("embed") as tx:
        checkpoint = tx.commit.checkpoint
        if checkpoint and (change := encoder_change(workspace, checkpoint)):
            _log.warning("%s: the trained one is used, until it is trained again: vlltr train cvlp", change)
        encoder = open_encoder(workspace, tx, check=not force)
        encoder.eval()
        _log.info("embed on %s, %s", device_name(encoder.device), encoder.precision)
        if encoder.precision == "tf32":
            _log.warning(
                "encoder.precision is tf32: vectors differ by up to 1e-3 from fp32's, and stand for them"
            )
        augment = ViewAugment(workspace.recipe.lgr.augment, encoder)
        with _open_engine(engine, actors, encoder, augment, _workers(workspace, encoder, views)) as computes:
            report = _embed_all(workspace, tx, encoder, views, progress, computes)
        if _differs(tx.commit, encoder):
            tx.set(selection_id=None, head=None, index=None, fusion=None)
        tx.set(text_fp=encoder.text_fp, image_fp=encoder.image_fp)
        drawn = workspace.recipe.lgr.augment
        tx.note(
            logit_scale=encoder.logit_scale,
            dim=encoder.dim,
            views=views,
            augment=drawn,
            precision="tf32"
            if "tf32" in (encoder.precision, tx.commit.info.precision)
            else encoder.precision,
        )
    return report


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


def _differs(commit: Commit, encoder: Encoder) -> bool:
    """Whether the commit's vectors are another encoder's."""
    return (commit.text_fp or encoder.text_fp, commit.image_fp or encoder.image_fp) != (
        encoder.text_fp,
        encoder.image_fp,
    )


def _open_engine(
    name: EngineName, actors: int | None, encoder: Encoder, augment: Augment, workers: int
) -> AbstractContextManager[Engine]:
    if name == "local":
        return nullcontext(LocalEngine(encoder, augment, workers))
    if name != "ray":
        raise UsageError(f"engine is 'local' or 'ray', got {name!r}")
    from vlltr_index.embedding.ray_engine import RayEngine

    return RayEngine(encoder, augment, actors)


def _embed_all(
    workspace: Workspace,
    tx: Transaction,
    encoder: Encoder,
    views: int,
    progress: Progress | None,
    engine: Engine,
) -> EmbedReport:
    sentences = tx.table("sentences", columns=["text_hash", "text"])
    new, before, truncated = embed_sentences(
        tx, encoder, sentences["text_hash"].to_pylist(), sentences["text"].to_pylist(), progress, engine
    )
    config = workspace.recipe.lgr.augment
    splits = sorted(set(tx.table("images", columns=["split"])["split"].to_pylist()))
    images = images_before = unreadable = 0
    for split in splits:
        wanted = range(views if split == "train" else 1)
        made, had, failed = embed_images(
            tx, encoder, split, wanted, config=config, progress=progress, engine=engine
        )
        images, images_before, unreadable = images + made, images_before + had, unreadable + failed
    return EmbedReport(
        new,
        before,
        truncated,
        encoder.tokenizer.context_length,
        images,
        images_before,
        unreadable,
        encoder.text_fp,
        encoder.image_fp,
    )
