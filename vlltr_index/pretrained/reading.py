"""Reading an exported folder, which may come from anybody: checked file by file before anything is built from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from vlltr_index.answers import Answers
from vlltr_index.encoder import Encoder
from vlltr_index.errors import InputError, MissingStepError, PretrainedError, VlltrError, WorkspaceError
from vlltr_index.heads import SavedHead, load_head
from vlltr_index.index import TorchIndex, load_index
from vlltr_index.loading import load_bank
from vlltr_index.pretrained.checks import (
    AGAIN,
    check_encoder,
    check_head,
    check_links,
    read_config,
    read_rows,
    read_stats,
    verify,
)
from vlltr_index.pretrained.memory import as_snapshot
from vlltr_index.schemas.exported import anchors_schema, sentences_schema
from vlltr_index.scoring import Scorer

if TYPE_CHECKING:
    from vlltr_index.index import AnchorIndex
    from vlltr_index.loading import LoadedBank
    from vlltr_index.schemas.exported import ExportedConfig

__all__ = ["read_model"]

_log = logging.getLogger(__name__)


def read_model(folder: Path, device: str | torch.device | None = None, trust_index: bool = False) -> Answers:
    """What an exported folder answers: as the workspace did, at the commit that was exported.

    Digests, shapes, sizes and values are checked, and nothing in the folder is executed. The folder is not needed
    afterwards.

    Args:
        folder: Written by `export_model`, or a copy.
        device: Of the encoder; default: a GPU where there is one.
        trust_index: Whether FAISS may read the index file in the folder. FAISS was not made for files that somebody
            changed on purpose; without it the anchors are searched exactly.

    Raises:
        PretrainedError: Naming the file, what is wrong with it, and what to do.
    """
    folder = Path(folder)
    config = read_config(folder)
    files = verify(folder)
    try:
        check_encoder(folder / "encoder", config)
        saved = _head(folder, config)
        stats = read_stats(folder / "class_stats.safetensors", config, "class_stats.safetensors" in files)
        anchors = read_rows(folder / "anchors.parquet", anchors_schema(config.dim), config.anchors)
        sentences = read_rows(folder / "sentences.parquet", sentences_schema(), config.sentences)
        check_links(folder, config, anchors, sentences)
        snapshot = as_snapshot(config, anchors, sentences)
        loaded = load_bank(snapshot)
        encoder = _encoder(folder / "encoder", config, device)
        snapshot.store.drop(f"sentence_vectors_{config.text_fp}")  # the bank has them
        scorer = Scorer.build(loaded, saved, stats, config.fusion, config.merged)
        index = _index(folder, config, loaded, trust_index and "index/index.json" in files)
        return Answers(None, snapshot, scorer, encoder, index)
    except PretrainedError:
        raise
    except (InputError, WorkspaceError) as error:
        raise PretrainedError(f"{folder} cannot be used: {error.message}", AGAIN) from None


def _encoder(path: Path, config: ExportedConfig, device: str | torch.device | None) -> Encoder:
    try:
        encoder = Encoder.open(path, device=device).eval()
    except VlltrError as error:
        raise PretrainedError(f"{path} cannot be used: {error.message}", AGAIN) from None
    for what, stated, found in (
        ("text", config.text_fp, encoder.text_fp),
        ("image", config.image_fp, encoder.image_fp),
    ):
        if stated != found:
            raise PretrainedError(
                f"the {what} tower in {path} is {found}, config.json says {stated}: they do not belong together",
                AGAIN,
            )
    return encoder


def _head(folder: Path, config: ExportedConfig) -> SavedHead:
    check_head(folder / "head", config)
    saved = load_head(folder / "head")
    if (saved.text_fp, saved.image_fp) != (config.text_fp, config.image_fp):
        raise PretrainedError(
            f"the head in {folder} was trained on vectors of encoder {saved.text_fp} and {saved.image_fp}, "
            f"config.json says {config.text_fp} and {config.image_fp}",
            AGAIN,
        )
    return saved


def _index(folder: Path, config: ExportedConfig, loaded: LoadedBank, trusted: bool) -> AnchorIndex | None:
    """What retrieval searches: None where the workspace had no index, so that all classes are scored."""
    if config.index is None:
        return None
    if trusted:
        try:
            return load_index(folder / "index")
        except MissingStepError as error:
            _log.warning("the anchors are searched exactly: %s", error.message)
    return TorchIndex(F.normalize(loaded.bank.vectors, dim=1), loaded.keys)
