"""Anchor sentence selection (AnSS) for a workspace, with scores and anchors in its tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.anchors.anss import (
    Selection,
    SentenceScores,
    anchor_limits,
    positive_terms,
    ranks_in_runs,
    score_sentences,
    select_anchors,
    shift_images,
)
from vlltr_index.embedding.loading import augmented_view, content_vectors, numbers, text_vectors_of
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.schemas.config import SelectConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.tables import ANCHORS, SENTENCE_SCORES, content_id
from vlltr_index.store.holdout import digest_images, held_images, score_image_rows
from vlltr_index.store.tables import one_of, quote
from vlltr_index.tensors import choose_device, device_name, memory_mended_by

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace


_log = logging.getLogger(__name__)

_FACTS = ("text_fp", "image_fp", "scale", "image_set")
_TERMS = ("lse", "last_exact_lse", "positive")
_FEW = 2000  # classes that are worth a filter instead of a scan


@dataclass(frozen=True)
class SelectReport:
    """Report of a selection.

    Attributes:
        without_images: The names of the classes that have sentences and no training image.
    """

    sentences: int
    images: int
    classes: int
    anchors: int
    mode: str
    without_images: list[str]
    classes_without_sentences: int
    selection_id: str


def select(workspace: Workspace, config: SelectConfig, progress: Progress | None = None) -> SelectReport:
    """Score every sentence against the images of all classes and keep the best of each class, in one commit.

    A class without any sentence gets no anchor. Settings of the encoder's family replace those of `config`.

    Raises:
        MissingStepError: Sentences or images have not been embedded, or there are neither.
    """
    with workspace.transaction("select") as tx:
        config = config.model_copy(update=dict(tx.commit.family.selection))
        now = score_images(tx, config, held_images(tx))
        rows = _Rows(tx, before=None, now=now, mode=config.mode, classes=tx.class_table().ids)
        if not len(rows.ids) and not now.ids:
            raise MissingStepError(
                "there is neither a sentence nor a training image to select by",
                "Run: vlltr ingest text PATH, or vlltr ingest images PATH --split train",
            )
        if progress:
            progress("score sentences", 0, len(rows.ids))
        _log.info("select on %s, fp32", device_name(choose_device()))
        with memory_mended_by("select", "Free memory of the GPU, or use --device cpu."):
            scores = rows.rescored(set())
        if progress:
            progress("score sentences", len(rows.ids), len(rows.ids))
        rule = [config.mode, config.max_anchors, config.max_share]
        selection_id = short(digest_json([*rows.facts, rule, sorted(rows.ids.to_pylist()), now.digest]))
        anchors = rows.write(tx, scores, config, classes=None, selection_id=selection_id)
        tx.note(select=config)
        with_text = set(rows.owner.tolist())
        with_images = set(now.class_ids.tolist())
        table = tx.class_table()
        without_text = set(table.ids) - with_text
    return SelectReport(
        sentences=len(rows.ids),
        images=len(now.ids),
        classes=len(with_text),
        anchors=anchors,
        mode=config.mode,
        without_images=[table.names[i] for i in sorted(with_text - with_images)],
        classes_without_sentences=len(without_text),
        selection_id=selection_id,
    )


def choose_anchors(
    losses: Tensor,
    owner: Tensor,
    hashes: Sequence[str],
    prompts: Tensor,
    ranked: Tensor,
    config: SelectConfig,
) -> Selection:
    """Choose the sentences that become anchors: of a class's own sentences, and separately of its prompts.

    If both competed, some of 80 prompts would always have smaller losses than a class's two or three sentences.

    Args:
        losses: L_lin, float [N_t].
        owner: Integers [N_t], class ids.
        hashes: Hashes of the N_t texts, which break ties: unlike ids they do not depend on the number of the class.
        prompts: Bool [N_t], which sentences are prompts.
        ranked: Bool [N_t], which sentences were scored against images of their class.
        config: The recipe's `select` section; without `max_share` prompts are treated like all sentences, as in the
            paper.
    """
    limits = anchor_limits(owner, prompts, ranked, most=config.max_anchors, share=config.max_share)
    kinds = owner if config.max_share is None else 2 * owner + prompts
    chosen = select_anchors(losses, kinds, hashes, limits, mode=config.mode).positions
    return Selection(chosen, ranks_in_runs(owner[chosen]))


def write_anchors(
    tx: Transaction,
    selection_id: str | None,
    sentence_ids: Sequence[str],
    class_ids: Tensor,
    ranks: Tensor,
    classes: set[int] | None = None,
) -> None:
    """Write the anchors of all classes, or of `classes`; rows that stay the same are not written.

    A sentence that was an anchor keeps its key, so the index stays valid for it.

    Args:
        tx: The open transaction.
        selection_id: Id of the selection; None: the digest of all that changes, if anything does.
        sentence_ids: The A sentences.
        class_ids: Int64 [A], their classes.
        ranks: Int64 [A], their ranks, from 0 within each class.
        classes: The classes whose anchors these are; None: all.
    """
    where = None if classes is None or len(classes) > _FEW else one_of("class_id", sorted(classes))
    rows = tx.table("anchors", ["sentence_id", "class_id", "rank", "anchor_key"], where)
    if classes is not None:
        rows = rows.filter(pc.is_in(rows["class_id"], pa.array(sorted(classes), pa.int32())))
    columns = [column.to_pylist() for column in rows.columns]
    there = set(zip(*columns[:3], strict=True))
    keys: dict[str, int] = dict(zip(columns[0], columns[3], strict=True))
    wanted = list(zip(sentence_ids, class_ids.tolist(), ranks.tolist(), strict=True))
    gone = sorted(keys[s] for s in keys.keys() - set(sentence_ids))
    changed = [place for place in wanted if place not in there]
    if selection_id is None:
        if not gone and not changed:
            return
        facts = [tx.commit.selection_id, gone, [list(place) for place in sorted(changed)]]
        selection_id = short(digest_json(facts))
    tx.set(selection_id=selection_id)
    new = [s for s, *_ in changed if s not in keys]
    first = tx.next_id("anchors", len(new))
    keys |= {s: first + i for i, s in enumerate(new)}
    anew = classes is None and 2 * len(changed) > len(wanted)
    written = wanted if anew else changed
    rows = pa.table(
        {
            "anchor_key": pa.array([keys[s] for s, *_ in written], pa.int64()),
            "selection_id": [selection_id] * len(written),
            "class_id": pa.array([c for _, c, _ in written], pa.int32()),
            "sentence_id": pa.array([s for s, *_ in written], pa.string()),
            "rank": pa.array([r for *_, r in written], pa.int32()),
        },
        schema=ANCHORS,
    )
    if anew:
        tx.replace("anchors", rows)
    else:
        tx.delete("anchors", one_of("anchor_key", gone))
        tx.upsert("anchors", rows)


@dataclass(frozen=True)
class ScoreImages:
    """The images that sentences are scored against, ordered by class and content hash.

    Attributes:
        ids: Ids of the N_i images.
        class_ids: Int64 [N_i].
        contents: Ids of their contents, see `schemas.tables.content_id`.
        view: The stored view that is used: the plain one, "0", or an augmented one.
    """

    ids: list[str]
    class_ids: Tensor
    contents: list[str]
    view: str = "0"

    @property
    def digest(self) -> str:
        """Digest by which stored scores identify their images."""
        shown = digest_images(self.class_ids.tolist(), self.contents)
        return shown if self.view == "0" else short(digest_json([self.view, shown]))

    @cached_property
    def owner(self) -> dict[str, int]:
        """The class of each image id."""
        return dict(zip(self.ids, self.class_ids.tolist(), strict=True))

    def besides(self, other: ScoreImages) -> list[str]:
        """Return the ids of the contents of the images that are not among `other`'s."""
        return [content for i, content in zip(self.ids, self.contents, strict=True) if i not in other.owner]


def score_images(tx: Snapshot, config: SelectConfig, held: frozenset[str] = frozenset()) -> ScoreImages:
    """Return the images that sentences are scored against, by the tables as they are now; reads no vector.

    Args:
        tx: A commit or a transaction; nothing is written.
        config: The recipe's `select` section.
        held: Ids of images that stage 1 held out, which are left out: the text's weight is fitted on them, so they
            must not select it.

    Raises:
        MissingStepError: The split has no images, or augmented views are configured but none are embedded.
    """
    rows = score_image_rows(tx, config, held)
    if not rows.num_rows and config.split != "train":
        raise MissingStepError(
            f"sentences are selected by the images of split {config.split!r} (select.split), which has none",
            f"Run: vlltr ingest images PATH --split {config.split}, or use --set select.split=train",
        )
    view = augmented_view(tx) if config.augmented else "0"
    ids = rows["image_id"].to_pylist()
    contents = list(map(content_id, ids, rows["content_hash"].to_pylist()))
    return ScoreImages(ids, numbers(rows, "class_id"), contents, view)


def update(
    tx: Transaction,
    config: SelectConfig,
    before: ScoreImages,
    touched: set[int],
    held: frozenset[str] = frozenset(),
) -> None:
    """Update scores and anchors after other tables changed in this transaction.

    Only new sentences are scored against all images. The terms of other sentences are updated by the added and removed
    images alone; they are computed again for rows that lost too many digits, and for all rows if there were or are no
    images. If images changed, anchors are selected for all classes, else for the touched ones. A sentence that stays an
    anchor keeps its key, so the index stays valid for it.

    Args:
        tx: The transaction, with all other tables in their final state.
        config: The recipe's `select` section.
        before: `score_images` before the change.
        touched: Classes whose sentences or images changed, removed classes included.
        held: As for `score_images`.

    Raises:
        MissingStepError: A vector is missing.
    """
    rows = _Rows(
        tx=tx,
        before=before,
        now=score_images(tx, config, held),
        mode=config.mode,
        classes=tx.class_table().ids,
        touched=touched,
    )
    scores = rows.rescored(touched)
    every = bool(rows.came_or_went) or rows.stored is None
    rows.write(tx, scores, config, classes=None if every else touched)


def anchors_without(
    snapshot: Snapshot,
    config: SelectConfig,
    class_ids: Tensor,
    *,
    images: frozenset[str] = frozenset(),
    sentences: frozenset[str] = frozenset(),
) -> tuple[AnchorBank, list[str]]:
    """Select the anchors that some classes would have without some images and sentences; nothing is written.

    Args:
        snapshot: The commit to read from. Its stored scores are used if they were computed by the settings in `config`.
        config: The settings of the selection.
        class_ids: Int64 [C], ascending, classes that have another sentence.
        images: The ids of images to leave out beside those that stage 1 held out; not all images.
        sentences: The ids of sentences to leave out.

    Returns:
        The bank of these anchors, unnormalised, and their sentences' ids in its order.

    Raises:
        MissingStepError: A vector is missing.
    """
    held = held_images(snapshot)
    now = score_images(snapshot, config, held | images)
    wanted = class_ids.tolist()
    # Without images the mean sentences of all classes take their place.
    scored = wanted if now.ids else snapshot.class_table().ids
    rows = _Rows(
        tx=snapshot,
        before=score_images(snapshot, config, held),
        now=now,
        mode=config.mode,
        classes=scored,
        without=sentences,
    )
    losses = rows.rescored(set(wanted) if sentences else set()).loss
    mine = _of(set(wanted), rows.owner)
    at = mine[rows.chosen(losses[mine], mine, config).positions]
    at = at[rows.owner[at].argsort(stable=True)]
    known = torch.where(rows.ranked[at], losses[at], 0.0).float()
    bank = AnchorBank.build(rows.text(at), rows.owner[at], class_ids, known)
    return bank, rows.names(at)


class _Rows:
    """The sentences of some classes, with their stored scores and the images that were added or removed since `before`.

    Sentences are ordered by class and id; for `cutoff` by class and position in their source. Without `before` stored
    scores are ignored. Those in `without` are left out. With `touched`, where the scores of other classes stay, these
    are the sentences of the touched ones, and of those that have a sentence without a score.
    """

    def __init__(
        self,
        tx: Snapshot,
        before: ScoreImages | None,
        now: ScoreImages,
        mode: str,
        classes: Sequence[int],
        without: frozenset[str] = frozenset(),
        touched: set[int] | None = None,
    ) -> None:
        self.tx = tx
        self.before = before or now
        self.now = now
        commit = tx.commit
        if not commit.text_fp or not commit.image_fp:
            raise MissingStepError("nothing has been embedded yet", "Run: vlltr embed")
        self.facts = commit.text_fp, commit.image_fp, commit.logit_scale
        rows = tx.table("sentences", ["sentence_id", "text_hash", "class_id", "source", "position"])
        mine = pc.is_in(rows["class_id"], pa.array(classes, pa.int32()))
        rows = rows if pc.all(mine).as_py() else rows.filter(mine)
        if without:
            out = pc.is_in(rows["sentence_id"], pa.array(sorted(without), pa.string()))
            rows = rows.filter(pc.invert(out))
        moved = self.before.owner.items() ^ self.now.owner.items()
        self.came_or_went = {class_id for _, class_id in moved}  # classes whose own images changed
        # Without images the mean sentences take their place, so that every sentence's terms depend on all others.
        usable = before is not None and before.ids and now.ids
        self.stored = _stored_scores(tx, (*self.facts, self.before.digest)) if usable else None
        theirs = SENTENCE_SCORES.empty_table() if self.stored is None else self.stored
        at = pc.index_in(rows["sentence_id"], value_set=theirs["sentence_id"].combine_chunks())
        self._gone: list[str] = []
        if len(at) - at.null_count < theirs.num_rows:
            there = pc.is_in(theirs["sentence_id"], value_set=rows["sentence_id"].combine_chunks())
            self._gone = theirs["sentence_id"].filter(pc.invert(there)).to_pylist()
        rows = rows.append_column("scores", pc.fill_null(at, -1).cast(pa.int64()))
        if touched is not None and self.stored is not None and not moved:
            new = rows["class_id"].filter(at.is_null()).unique().to_pylist()
            rows = rows.filter(pc.is_in(rows["class_id"], pa.array(touched.union(new), pa.int32())))
        order = ["class_id", "position", "sentence_id"] if mode == "cutoff" else ["class_id", "sentence_id"]
        rows = rows.sort_by([(column, "ascending") for column in order])
        self.ids = rows["sentence_id"].combine_chunks()
        self.owner = numbers(rows, "class_id")
        self._hashes = rows["text_hash"]
        self.prompts = torch.from_numpy(pc.equal(rows["source"], "prompt").to_numpy())
        self.ranked = torch.isin(self.owner, now.class_ids)
        self._at = numbers(rows, "scores")

    def names(self, at: Tensor) -> list[str]:
        """Return the ids of the sentences `at`, int64 [S]."""
        found: list[str] = self.ids.take(pa.array(at.numpy())).to_pylist()
        return found

    def text(self, at: Tensor) -> Tensor:
        """Read the vectors of the sentences `at`, int64 [S]: float [S, D], unnormalised."""
        return text_vectors_of(self.tx, self._hashes.take(pa.array(at.numpy())).to_pylist())

    def images(self, contents: Sequence[str]) -> Tensor:
        """Read the vectors of images by the ids of their contents: float [N, D], unnormalised."""
        return content_vectors(self.tx, contents, self.now.view)

    def rescored(self, touched: set[int]) -> SentenceScores:
        """Compute both terms of every sentence as of now; add classes with new sentences or images to `touched`."""
        known = self._at >= 0
        scale = self.facts[2]
        columns = torch.zeros(3, len(self.ids), dtype=torch.float64)
        lse, last, positive = columns
        if self.stored is not None:
            for column, name in zip(columns, _TERMS, strict=True):
                column[known] = torch.from_numpy(self.stored[name].to_numpy().copy())[self._at[known]]
        again = ~known
        if self.came_or_went and bool(known.any()):
            at = known.nonzero()[:, 0]
            came = self.images(self.now.besides(self.before))
            went = self.images(self.before.besides(self.now))
            old = SentenceScores(lse[at], last[at], positive[at])
            part, lost = shift_images(old, self.text(at), came, went, logit_scale=scale)
            lse[at] = part.lse
            last[at] = part.last_exact_lse
            again[at[lost]] = True
        if bool(again.any()):
            at = again.nonzero()[:, 0]
            images = self.images(self.now.contents)
            fresh = score_sentences(
                self.text(at), self.owner[at], images, image_labels=self.now.class_ids, logit_scale=scale
            )
            lse[at] = fresh.lse
            last[at] = fresh.lse
            positive[at] = fresh.positive
        touched |= {*self.owner[~known].tolist(), *self.came_or_went}
        at = _of(touched, self.owner)
        if len(at) and bool(known.any()):  # otherwise all sentences were just scored
            mine = _of(touched, self.now.class_ids)
            images = self.images([self.now.contents[i] for i in mine.tolist()])
            owners = self.now.class_ids[mine]
            positive[at] = positive_terms(
                self.text(at), self.owner[at], images, image_labels=owners, logit_scale=scale
            ).cpu()
        return SentenceScores(lse, last, positive)

    def chosen(self, losses: Tensor, at: Tensor, config: SelectConfig) -> Selection:
        """Choose anchors among the sentences `at`, int64 [S], by their losses [S]; positions are in `at`."""
        hashes = self._hashes.take(pa.array(at.numpy())).to_pylist()
        return choose_anchors(
            losses, self.owner[at], hashes, prompts=self.prompts[at], ranked=self.ranked[at], config=config
        )

    def write(
        self,
        tx: Transaction,
        scores: SentenceScores,
        config: SelectConfig,
        classes: set[int] | None,
        selection_id: str | None = None,
    ) -> int:
        """Write the scores and anchors of all classes, or of some; return their number of anchors."""
        scope = torch.arange(len(self.ids)) if classes is None else _of(classes, self.owner)
        ids = self.names(scope)
        owner = self.owner[scope]
        ranked = self.ranked[scope]
        loss = scores.loss[scope]
        facts = zip(_FACTS, (*self.facts, self.now.digest), strict=True)
        rows = pa.table(
            {
                "sentence_id": ids,
                **{name: [value] * len(ids) for name, value in facts},
                "lse": scores.lse[scope].numpy(),
                "last_exact_lse": scores.last_exact_lse[scope].numpy(),
                "positive": scores.positive[scope].numpy(),
                "loss": pa.array(loss.numpy(), mask=(~ranked).numpy()),
            },
            schema=SENTENCE_SCORES,
        )
        if classes is None:
            tx.replace("sentence_scores", rows)
        else:
            tx.upsert("sentence_scores", rows)
            tx.delete("sentence_scores", one_of("sentence_id", self._gone))
        chosen, ranks = self.chosen(loss, scope, config)
        names = [ids[i] for i in chosen.tolist()]
        write_anchors(tx, selection_id, names, class_ids=owner[chosen], ranks=ranks, classes=classes)
        return len(names)


def _of(classes: set[int], owner: Tensor) -> Tensor:
    """Return the positions where `owner`, int64 [N], is one of the classes: int64."""
    return torch.isin(owner, torch.tensor(sorted(classes), dtype=torch.int64)).nonzero()[:, 0]


def _stored_scores(tx: Snapshot, facts: tuple[str, str, float, str]) -> pa.Table | None:
    """Read the terms of all stored scores; None if the encoder, scale or images of any differ from `facts`."""
    values = (quote(fact) if isinstance(fact, str) else repr(fact) for fact in facts)
    same = " AND ".join(f"{name} = {value}" for name, value in zip(_FACTS, values, strict=True))
    if not 0 < tx.count("sentence_scores") == tx.count("sentence_scores", same):
        return None
    return tx.table("sentence_scores", ["sentence_id", *_TERMS])
