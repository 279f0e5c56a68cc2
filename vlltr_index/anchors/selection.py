"""Anchor sentence selection (AnSS) over a workspace: scores and anchors as rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.anchors.anss import (
    Selection,
    SentenceScores,
    anchor_limits,
    choose_score_images,
    positive_terms,
    score_sentences,
    select_anchors,
    shift_images,
)
from vlltr_index.embedding.loading import augmented_view, usable_images
from vlltr_index.errors import MissingStepError
from vlltr_index.schemas.config import SelectConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import ANCHORS, SENTENCE_SCORES, image_vectors_name, sentence_vectors_name
from vlltr_index.store.holdout import held_images
from vlltr_index.store.tables import one_of
from vlltr_index.tensors import choose_device, device_name, memory_mended_by

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace


_log = logging.getLogger(__name__)

_PART = 1000  # keys a condition names at once


@dataclass(frozen=True)
class SelectReport:
    """What a selection did."""

    sentences: int
    images: int
    classes: int
    anchors: int
    mode: str
    classes_without_images: int
    classes_without_sentences: int
    selection_id: str


def select(workspace: Workspace, config: SelectConfig, progress: Progress | None = None) -> SelectReport:
    """Score every sentence against the class image sets and keep the best of each class, in one commit.

    A class without any sentence gets no anchor; a workspace without any gets none at all.

    Raises:
        MissingStepError: If sentences or images have not been embedded.
    """
    with workspace.transaction("select") as tx:
        text_fp, image_fp, scale = _encoder_facts(tx)
        sentences = _sentences(tx, config.mode)
        text_class = torch.from_numpy(sentences["class_id"].to_numpy().copy()).long()
        text = _vectors(tx, sentence_vectors_name(text_fp), "text_hash", sentences["text_hash"].to_pylist())
        kept = score_images(tx, config, held_images(workspace, tx))
        if not sentences.num_rows and not kept.ids:
            raise MissingStepError(
                "there is neither a sentence nor a training image to select by",
                "Run: vlltr ingest text PATH, or vlltr ingest images PATH --split train",
            )
        images = _vectors(tx, image_vectors_name(image_fp), "vector_key", kept.keys(kept.ids))
        if progress:
            progress("score sentences", 0, len(text))
        _log.info("select on %s, fp32", device_name(choose_device()))
        with memory_mended_by("select", "Free memory of the GPU, or use --device cpu."):
            scores = score_sentences(text, text_class, images, kept.class_ids, scale)
        if progress:
            progress("score sentences", len(text), len(text))
        ids: list[str] = sentences["sentence_id"].to_pylist()
        ranked = torch.isin(text_class, kept.class_ids)
        chosen, ranks = choose_anchors(scores.loss, text_class, ids, _prompts(sentences), ranked, config)
        rule = [config.mode, config.max_anchors, config.max_share]
        facts = [text_fp, image_fp, scale, rule, sorted(ids), kept.digest]
        selection_id = short(digest_json(facts))
        _write_scores(tx, ids, scores, ranked, text_fp, image_fp, scale, kept.digest)
        write_anchors(tx, selection_id, [ids[i] for i in chosen.tolist()], text_class[chosen], ranks)
        tx.set(selection_id=selection_id)
        tx.note(select=config.model_dump(mode="json"))
        silent = len(set(tx.class_table().ids) - set(text_class.tolist()))
    classes = set(text_class.tolist())
    bare = len(classes - set(kept.class_ids.tolist()))
    return SelectReport(
        len(ids), len(kept.ids), len(classes), len(chosen), config.mode, bare, silent, selection_id
    )


def choose_anchors(
    losses: Tensor,
    owner: Tensor,
    ids: Sequence[str],
    prompts: Tensor,
    ranked: Tensor,
    config: SelectConfig,
) -> Selection:
    """The sentences that become anchors: own ones, then prompts, which do not compete with them.

    Of 80 prompts a few would always be ahead of a class's two or three sentences.

    Args:
        losses: L_lin, float [N_t].
        owner: Integers [N_t], class ids.
        ids: N_t sentence ids.
        prompts: Bool [N_t], which sentences are prompts.
        ranked: Bool [N_t], which sentences were scored against images of their class.
        config: The recipe's `select` section; without `max_share` all sentences are alike, as in the paper.
    """
    limits = anchor_limits(owner, prompts, ranked, config.max_anchors, config.max_share)
    kinds = owner if config.max_share is None else 2 * owner + prompts
    chosen = select_anchors(losses, kinds, ids, limits, mode=config.mode).positions
    _, sizes = torch.unique_consecutive(owner[chosen], return_counts=True)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return Selection(chosen, torch.arange(len(chosen)) - first)


def _encoder_facts(tx: Snapshot) -> tuple[str, str, float]:
    commit = tx.commit
    if not commit.text_fp or not commit.image_fp:
        raise MissingStepError("nothing has been embedded yet", "Run: vlltr embed")
    return commit.text_fp, commit.image_fp, commit.logit_scale


def _sentences(tx: Snapshot, mode: str) -> pa.Table:
    """Sentences of the classes in use, by class and key; for `cutoff`, in the order in which they came in."""
    rows = tx.table("sentences", columns=["sentence_id", "text_hash", "class_id", "source", "position"])
    rows = rows.filter(pc.is_in(rows["class_id"], pa.array(tx.class_table().ids, pa.int32())))
    order = ["class_id", *(["position"] if mode == "cutoff" else []), "sentence_id"]
    return rows.sort_by([(column, "ascending") for column in order])


def _prompts(sentences: pa.Table) -> Tensor:
    """Which sentences are prompts, bool [N_t]."""
    return torch.tensor([source == "prompt" for source in sentences["source"].to_pylist()], dtype=torch.bool)


def _vectors(tx: Snapshot, name: str, key_column: str, keys: Sequence[str]) -> Tensor:
    """Stored vectors by key, float32 [n, D]; as wide as the encoder's also where there are none."""
    return tx.store.vectors(name, key_column, keys)[1] if keys else torch.empty(0, tx.commit.info.dim)


def _write_scores(
    tx: Transaction,
    ids: list[str],
    scores: SentenceScores,
    ranked: Tensor,
    text_fp: str,
    image_fp: str,
    scale: float,
    image_set: str,
    replace: bool = True,
) -> None:
    """Write the scores of sentences; those not `ranked` by images of their class, bool [N_t], have no loss."""
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
            "loss": pa.array(scores.loss.numpy(), mask=(~ranked).numpy()),
        },
        schema=SENTENCE_SCORES,
    )
    (tx.replace if replace else tx.upsert)("sentence_scores", rows)


def write_anchors(
    tx: Transaction,
    selection_id: str,
    sentence_ids: list[str],
    class_ids: Tensor,
    ranks: Tensor,
    key_of: dict[str, int] | None = None,
) -> None:
    """Write anchors: all there are, or, where `key_of` names those that are there, these beside the others.

    A sentence that was an anchor keeps its key, so the index stays valid for it.
    """
    replace = key_of is None
    if key_of is None:
        old = tx.table("anchors", columns=["anchor_key", "sentence_id"])
        key_of = dict(zip(old["sentence_id"].to_pylist(), old["anchor_key"].to_pylist(), strict=True))
    new = [s for s in sentence_ids if s not in key_of]
    first = tx.next_id("anchors", len(new)) if new else 0
    keys = key_of | {s: first + i for i, s in enumerate(new)}
    rows = pa.table(
        {
            "anchor_key": pa.array([keys[s] for s in sentence_ids], pa.int64()),
            "selection_id": [selection_id] * len(sentence_ids),
            "class_id": pa.array(class_ids.tolist(), pa.int32()),
            "sentence_id": pa.array(sentence_ids, pa.string()),
            "rank": pa.array(ranks.tolist(), pa.int32()),
        },
        schema=ANCHORS,
    )
    (tx.replace if replace else tx.upsert)("anchors", rows)


@dataclass(frozen=True)
class ScoreImages:
    """The images that sentences are scored against, ordered by class and content hash.

    Attributes:
        ids: Of the images [N_i].
        class_ids: int64 [N_i].
        view: Which of their stored views counts: the plain one, "0", or an augmented one.
    """

    ids: list[str]
    class_ids: Tensor
    view: str = "0"

    @property
    def digest(self) -> str:
        """What the stored scores name their images by."""
        return short(digest_json(self.ids if self.view == "0" else [self.view, self.ids]))

    def keys(self, ids: Sequence[str]) -> list[str]:
        """Keys of the vectors of some of them."""
        return [f"{i}:{self.view}" for i in ids]

    @cached_property
    def owner(self) -> dict[str, int]:
        """Image to class."""
        return dict(zip(self.ids, self.class_ids.tolist(), strict=True))


def score_images(tx: Snapshot, config: SelectConfig, held: frozenset[str] = frozenset()) -> ScoreImages:
    """The images that sentences are to be scored against as the tables are now; no vector is read.

    Images that stage 1 `held` out are not among them: what they say of the text shall not have chosen it.

    Raises:
        MissingStepError: If the split has no images, or augmented views are asked for and none are embedded.
    """
    rows = usable_images(tx, config.split, ["content_hash"])
    if held:
        rows = rows.filter(
            pc.invert(pc.is_in(rows["image_id"], value_set=pa.array(sorted(held), pa.string())))
        )
    if not rows.num_rows and config.split != "train":
        raise MissingStepError(
            f"sentences are selected by the images of split {config.split!r} (select.split), which has none",
            f"Run: vlltr ingest images PATH --split {config.split}, or use --set select.split=train",
        )
    labels = torch.from_numpy(rows["class_id"].to_numpy().copy()).long()
    kept = choose_score_images(rows["content_hash"].to_pylist(), labels, config.images_per_class)
    ids = rows["image_id"].take(pa.array(kept.numpy())).to_pylist()
    return ScoreImages(ids, labels[kept], augmented_view(tx) if config.augmented else "0")


def update(
    tx: Transaction,
    config: SelectConfig,
    before: ScoreImages,
    touched: set[int],
    held: frozenset[str] = frozenset(),
) -> None:
    """Bring scores and anchors up to date after other tables changed in this transaction.

    Only new sentences are scored against all images. The terms of the others change by the images that came and went
    alone; those of a row that lost its digits are computed again, and all of them where there were or are no images.
    Where images changed, all classes are selected again, else the touched ones. A sentence that stays an anchor keeps
    its key, so the index stays valid for it.

    Args:
        tx: With the tables as they are to be.
        config: The recipe's `select` section.
        before: `score_images` before the change.
        touched: Classes whose sentences or images changed, those that are gone too.
        held: As for `score_images`.

    Raises:
        MissingStepError: If a vector is missing.
    """
    rows = _Rows(tx, before, score_images(tx, config, held), config.mode)
    scores = rows.rescored(touched)
    everything = rows.images_changed or rows.stored is None
    ranked = torch.isin(rows.owner, rows.now.class_ids)
    if everything:
        _write_scores(tx, rows.ids, scores, ranked, *rows.facts, rows.now.digest)
    else:
        changed = rows.in_classes(touched)
        part = SentenceScores(*(c[changed] for c in (scores.lse, scores.last_exact_lse, scores.positive)))
        ids = [rows.ids[i] for i in changed.tolist()]
        _write_scores(tx, ids, part, ranked[changed], *rows.facts, rows.now.digest, replace=False)
        _delete(tx, "sentence_scores", "sentence_id", rows.gone)
    scope = torch.arange(len(rows.ids)) if everything else rows.in_classes(touched)
    ids = [rows.ids[i] for i in scope.tolist()]
    owner = rows.owner[scope]
    chosen, ranks = choose_anchors(scores.loss[scope], owner, ids, rows.prompts[scope], ranked[scope], config)
    wanted = {
        ids[i]: (c, r)
        for i, c, r in zip(chosen.tolist(), owner[chosen].tolist(), ranks.tolist(), strict=True)
    }
    _change_anchors(tx, wanted, None if everything else touched)


class _Rows:
    """The sentences of a workspace beside their stored scores and the images that came and went."""

    def __init__(self, tx: Transaction, before: ScoreImages, now: ScoreImages, mode: str) -> None:
        self.tx, self.before, self.now = tx, before, now
        self.facts = _encoder_facts(tx)
        sentences = _sentences(tx, mode)
        self.ids: list[str] = sentences["sentence_id"].to_pylist()
        self.owner = torch.from_numpy(sentences["class_id"].to_numpy().copy()).long()
        self.prompts, self._hashes = _prompts(sentences), sentences["text_hash"]
        # Without images the texts stand in for them, and every sentence's terms depend on all others.
        kept = _stored_scores(tx, (*self.facts, before.digest)) if before.ids and now.ids else None
        self.stored = kept
        at = np.full(len(self.ids), -1)
        self.gone: list[str] = []
        if self.stored is not None:
            mine, theirs = sentences["sentence_id"], self.stored["sentence_id"]
            at = pc.fill_null(pc.index_in(mine, value_set=theirs.combine_chunks()), -1).to_numpy()
            self.gone = theirs.filter(pc.invert(pc.is_in(theirs, mine.combine_chunks()))).to_pylist()
        self._at = torch.from_numpy(at.astype(np.int64))

    @property
    def images_changed(self) -> bool:
        return self.before.owner != self.now.owner

    def text(self, at: Tensor) -> Tensor:
        hashes = self._hashes.take(pa.array(at.numpy())).to_pylist()
        return _vectors(self.tx, sentence_vectors_name(self.facts[0]), "text_hash", hashes)

    def images(self, ids: Sequence[str]) -> Tensor:
        return _vectors(self.tx, image_vectors_name(self.facts[1]), "vector_key", self.now.keys(ids))

    def in_classes(self, classes: set[int]) -> Tensor:
        """Places of the sentences of these classes."""
        return torch.isin(self.owner, torch.tensor(sorted(classes), dtype=torch.int64)).nonzero()[:, 0]

    def rescored(self, touched: set[int]) -> SentenceScores:
        """Both terms of every sentence, as they are now; `touched` gains the classes that turn out to be new."""
        known, size = self._at >= 0, len(self.ids)
        columns = [torch.zeros(size, dtype=torch.float64) for _ in range(3)]
        if self.stored is not None:
            for column, name in zip(columns, ("lse", "last_exact_lse", "positive"), strict=True):
                column[known] = torch.from_numpy(self.stored[name].to_numpy().copy())[self._at[known]]
        lse, last, positive = columns
        inexact = ~known
        if self.images_changed and bool(known.any()):
            at = known.nonzero()[:, 0]
            came = self.images([i for i in self.now.ids if i not in self.before.owner])
            went = self.images([i for i in self.before.ids if i not in self.now.owner])
            part = SentenceScores(lse[at], last[at], positive[at])
            part, lost = shift_images(part, self.text(at), came, went, self.facts[2])
            lse[at], last[at] = part.lse, part.last_exact_lse
            inexact[at[lost]] = True
        again = inexact.nonzero()[:, 0]
        if len(again):
            text = self.text(again)
            fresh = score_sentences(
                text,
                self.owner[again],
                self.images(self.now.ids),
                self.now.class_ids,
                self.facts[2],
            )
            lse[again] = last[again] = fresh.lse
        touched.update(self.owner[~known].tolist(), self._moved())
        at = self.in_classes(touched)
        if len(at):
            positive[at] = self._positives(at, touched)
        return SentenceScores(lse, last, positive)

    def _moved(self) -> set[int]:
        """Classes whose own images changed."""
        moved = self.before.owner.items() ^ self.now.owner.items()
        return {class_id for _, class_id in moved}

    def _positives(self, at: Tensor, classes: set[int]) -> Tensor:
        text = self.text(at)
        mine = torch.isin(self.now.class_ids, torch.tensor(sorted(classes), dtype=torch.int64)).nonzero()[
            :, 0
        ]
        images = self.images([self.now.ids[i] for i in mine.tolist()])
        return positive_terms(text, self.owner[at], images, self.now.class_ids[mine], self.facts[2])


def _delete(tx: Transaction, table: str, key: str, values: Sequence[str] | Sequence[int]) -> None:
    for start in range(0, len(values), _PART):
        tx.delete(table, one_of(key, values[start : start + _PART]))


def _change_anchors(tx: Transaction, wanted: dict[str, tuple[int, int]], classes: set[int] | None) -> None:
    """Make `wanted` (sentence to class and rank) the anchors of `classes` (None: all), writing only differences."""
    rows = tx.table("anchors", ["anchor_key", "class_id", "sentence_id", "rank"])
    if classes is not None:
        rows = rows.filter(pc.is_in(rows["class_id"], pa.array(sorted(classes), pa.int32())))
    key_of, there = dict[str, int](), dict[str, tuple[int, int]]()
    for key, class_id, sentence_id, rank in zip(
        *(rows[c].to_pylist() for c in rows.column_names), strict=True
    ):
        key_of[sentence_id], there[sentence_id] = key, (class_id, rank)
    gone = [key_of[s] for s in there.keys() - wanted.keys()]
    changed = [s for s, place in wanted.items() if there.get(s) != place]
    if not gone and not changed:
        return
    _delete(tx, "anchors", "anchor_key", sorted(gone))
    facts = [tx.commit.selection_id, sorted(gone), [[s, *wanted[s]] for s in sorted(changed)]]
    selection_id = short(digest_json(facts))
    places = torch.tensor([wanted[s] for s in changed], dtype=torch.int64).reshape(-1, 2)
    write_anchors(tx, selection_id, changed, places[:, 0], places[:, 1], key_of)
    tx.set(selection_id=selection_id)


def _stored_scores(tx: Snapshot, facts: tuple[str, str, float, str]) -> pa.Table | None:
    """All stored scores; None where the encoder, scale or images of one differ from `facts`."""
    rows = tx.table("sentence_scores")
    for name, value in zip(("text_fp", "image_fp", "scale", "image_set"), facts, strict=True):
        if pc.unique(rows[name]).to_pylist() != [value]:
            return None
    return rows
