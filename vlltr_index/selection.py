"""Anchor sentence selection (AnSS) over a workspace: scores and anchors as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from vlltr_index.anchors import (
    SentenceScores,
    add_images,
    choose_score_images,
    score_sentences,
    select_anchors,
)
from vlltr_index.errors import MissingStepError
from vlltr_index.loading import usable_images
from vlltr_index.schemas.config import SelectConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import ANCHORS, SENTENCE_SCORES, image_vectors_name, sentence_vectors_name

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = ["SelectReport", "extend", "select"]


@dataclass(frozen=True)
class SelectReport:
    """What a selection did."""

    sentences: int
    images: int
    classes: int
    anchors: int
    mode: str
    classes_without_images: int
    selection_id: str


def select(workspace: Workspace, config: SelectConfig, progress: Progress | None = None) -> SelectReport:
    """Score every sentence against the class image sets and keep the best of each class, in one commit.

    Raises:
        MissingStepError: If sentences or images have not been embedded, or a class has no sentence.
    """
    with workspace.transaction("select") as tx:
        text_fp, image_fp, scale = _encoder_facts(tx)
        sentences = _sentences(tx)
        text_class = torch.from_numpy(sentences["class_id"].to_numpy().copy()).long()
        _, text = tx.store.vectors(
            sentence_vectors_name(text_fp), "text_hash", sentences["text_hash"].to_pylist()
        )
        image_ids, image_class, images = _score_images(tx, config, image_fp)
        if progress:
            progress("score sentences", 0, len(text))
        scores = score_sentences(text, text_class, images, image_class, scale)
        if progress:
            progress("score sentences", len(text), len(text))
        ids: list[str] = sentences["sentence_id"].to_pylist()
        chosen, ranks = select_anchors(scores.loss, text_class, ids, config.max_anchors, mode=config.mode)
        facts = [text_fp, image_fp, scale, config.max_anchors, config.mode, sorted(ids), image_ids]
        selection_id = short(digest_json(facts))
        image_set = short(digest_json(image_ids))
        _write_scores(tx, ids, scores, text_fp, image_fp, scale, image_set)
        _write_anchors(tx, selection_id, [ids[i] for i in chosen.tolist()], text_class[chosen], ranks)
        tx.set(selection_id=selection_id)
    with_images = set(image_class.tolist())
    classes = set(text_class.tolist())
    return SelectReport(
        len(ids),
        len(image_ids),
        len(classes),
        len(chosen),
        config.mode,
        len(classes - with_images),
        selection_id,
    )


def _encoder_facts(tx: Snapshot) -> tuple[str, str, float]:
    commit = tx.commit
    if commit is None or not commit.text_fp or not commit.image_fp:
        raise MissingStepError("nothing has been embedded yet", "Run: vlltr embed")
    return commit.text_fp, commit.image_fp, float(commit.info["logit_scale"])


def _sentences(tx: Snapshot) -> pa.Table:
    classes = tx.table("classes")
    active = {
        i: name
        for i, name, retired in zip(
            classes["class_id"].to_pylist(),
            classes["name"].to_pylist(),
            classes["retired_at"].to_pylist(),
            strict=True,
        )
        if retired is None
    }
    rows = tx.table("sentences", columns=["sentence_id", "text_hash", "class_id"])
    rows = rows.filter(pa.compute.is_in(rows["class_id"], pa.array(list(active), pa.int32())))
    bare = sorted(active.keys() - set(rows["class_id"].to_pylist()))
    if bare:
        names = ", ".join(repr(active[i]) for i in bare[:5]) + (" ..." if len(bare) > 5 else "")
        raise MissingStepError(
            f"{len(bare)} classes have no sentence: {names}",
            "Bring text for them: vlltr ingest text PATH",
        )
    return rows.sort_by([("class_id", "ascending"), ("sentence_id", "ascending")])


def _score_images(
    tx: Snapshot, config: SelectConfig, image_fp: str
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    rows = usable_images(tx, config.split, ["content_hash"])
    labels = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
    kept = choose_score_images(rows["content_hash"].to_pylist(), labels, config.images_per_class)
    all_ids = rows["image_id"].to_pylist()
    ids = [all_ids[i] for i in kept.tolist()]
    _, vectors = tx.store.vectors(image_vectors_name(image_fp), "vector_key", [f"{i}:0" for i in ids])
    return ids, labels[kept], vectors


def _write_scores(
    tx: Transaction,
    ids: list[str],
    scores: SentenceScores,
    text_fp: str,
    image_fp: str,
    scale: float,
    image_set: str,
    replace: bool = True,
) -> None:
    rows = pa.table(
        {
            "sentence_id": ids,
            "text_fp": [text_fp] * len(ids),
            "image_fp": [image_fp] * len(ids),
            "scale": [scale] * len(ids),
            "image_set": [image_set] * len(ids),
            "lse": scores.lse.numpy(),
            "last_exact_lse": scores.last_exact_lse.numpy(),
            "positive": scores.positive.numpy(),
            "loss": scores.loss.numpy(),
        },
        schema=SENTENCE_SCORES,
    )
    (tx.replace if replace else tx.upsert)("sentence_scores", rows)


def _write_anchors(
    tx: Transaction,
    selection_id: str,
    sentence_ids: list[str],
    class_ids: torch.Tensor,
    ranks: torch.Tensor,
    replace: bool = True,
) -> None:
    """Write the selection; a sentence that was an anchor keeps its key, so the index stays valid for it."""
    old = tx.table("anchors", columns=["anchor_key", "sentence_id"])
    key_of = dict(zip(old["sentence_id"].to_pylist(), old["anchor_key"].to_pylist(), strict=True))
    new = [s for s in sentence_ids if s not in key_of]
    first = tx.next_id("anchors", len(new))
    key_of.update({s: first + i for i, s in enumerate(new)})
    rows = pa.table(
        {
            "anchor_key": pa.array([key_of[s] for s in sentence_ids], pa.int64()),
            "selection_id": [selection_id] * len(sentence_ids),
            "class_id": pa.array(class_ids.tolist(), pa.int32()),
            "sentence_id": sentence_ids,
            "rank": pa.array(ranks.tolist(), pa.int32()),
        },
        schema=ANCHORS,
    )
    (tx.replace if replace else tx.upsert)("anchors", rows)


def extend(
    workspace: Workspace, tx: Transaction, config: SelectConfig, class_ids: set[int], images_changed: bool
) -> None:
    """Select anchors for new classes inside an open transaction.

    With text alone, only the new sentences are scored. With images, the terms of the others are updated from the new
    images alone, and all classes are selected again.
    """
    text_fp, image_fp, scale = _encoder_facts(tx)
    sentences = _sentences(tx)
    ids: list[str] = sentences["sentence_id"].to_pylist()
    owner = torch.from_numpy(sentences["class_id"].to_numpy().copy()).long()
    is_new = torch.isin(owner, torch.tensor(sorted(class_ids)))
    image_ids, image_class, images = _score_images(tx, config, image_fp)
    hashes = sentences["text_hash"].to_pylist()
    table = sentence_vectors_name(text_fp)
    image_set = short(digest_json(image_ids))
    new_at = is_new.nonzero()[:, 0]
    _, new_text = tx.store.vectors(table, "text_hash", [hashes[i] for i in new_at.tolist()])
    fresh = score_sentences(new_text, owner[new_at], images, image_class, scale)
    if not images_changed:
        new_ids = [ids[i] for i in new_at.tolist()]
        _write_scores(tx, new_ids, fresh, text_fp, image_fp, scale, image_set, replace=False)
        chosen, ranks = select_anchors(
            fresh.loss, owner[new_at], new_ids, config.max_anchors, mode=config.mode
        )
        picked = [new_ids[i] for i in chosen.tolist()]
        _write_anchors(tx, _next_selection(tx, picked), picked, owner[new_at][chosen], ranks, replace=False)
        return
    old_at = (~is_new).nonzero()[:, 0]
    of_new = torch.isin(image_class, torch.tensor(sorted(class_ids)))
    known_images = [i for i, is_theirs in zip(image_ids, of_new.tolist(), strict=True) if not is_theirs]
    facts = (text_fp, image_fp, scale, short(digest_json(known_images)))
    before = _stored_scores(tx, [ids[i] for i in old_at.tolist()], facts)
    _, old_text = tx.store.vectors(table, "text_hash", [hashes[i] for i in old_at.tolist()])
    if before is None:
        after = score_sentences(old_text, owner[old_at], images, image_class, scale)
    else:
        after = add_images(
            before, old_text, owner[old_at], images[of_new], image_class[of_new], image_class[~of_new], scale
        )
    scores = _merge(len(ids), (old_at, after), (new_at, fresh))
    _write_scores(tx, ids, scores, text_fp, image_fp, scale, image_set)
    chosen, ranks = select_anchors(scores.loss, owner, ids, config.max_anchors, mode=config.mode)
    picked = [ids[i] for i in chosen.tolist()]
    _write_anchors(tx, _next_selection(tx, picked), picked, owner[chosen], ranks)


def _next_selection(tx: Transaction, picked: list[str]) -> str:
    assert tx.commit is not None
    selection_id = short(digest_json([tx.commit.selection_id, sorted(picked)]))
    tx.set(selection_id=selection_id)
    return selection_id


def _merge(size: int, *parts: tuple[torch.Tensor, SentenceScores]) -> SentenceScores:
    columns = []
    for name in ("lse", "last_exact_lse", "positive"):
        column = torch.empty(size, dtype=torch.float64)
        for at, scores in parts:
            column[at] = getattr(scores, name)
        columns.append(column)
    return SentenceScores(*columns)


def _stored_scores(
    tx: Snapshot, sentence_ids: list[str], facts: tuple[str, str, float, str]
) -> SentenceScores | None:
    """Stored terms in the order of `sentence_ids`; None where one is missing, or encoder, scale or images differ."""
    rows = tx.table("sentence_scores")
    place = {i: n for n, i in enumerate(rows["sentence_id"].to_pylist())}
    if any(i not in place for i in sentence_ids):
        return None
    at = [place[i] for i in sentence_ids]
    columns = ("text_fp", "image_fp", "scale", "image_set")
    if set(zip(*(rows[c].to_pylist() for c in columns), strict=True)) != {facts}:
        return None
    return SentenceScores(
        *(torch.from_numpy(rows[c].to_numpy().copy())[at] for c in ("lse", "last_exact_lse", "positive"))
    )
