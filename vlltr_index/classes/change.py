"""Make one change to the class list: write rows, update anchors and statistics, commit, and report the effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.selection import score_images, update
from vlltr_index.data.image_readers import read_images
from vlltr_index.embedding import loading
from vlltr_index.embedding.vectors import embed_images, embed_sentences
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.recognition.scorer import Scorer, load_scorer
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.holdout import held_images
from vlltr_index.store.ingestion import image_rows
from vlltr_index.store.tables import one_of
from vlltr_index.train.augment import ViewAugment
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_NARROW = ("classes", "sentences", "sentence_scores", "anchors", "class_stats", "images")
_MUTE = "Texts have no weight in this head (vlltr train lgr says why): by text alone a class is hardly found."
_TIDY = 32  # commits between two compactions of the tables
_SMALL = 200_000  # rows of a table worth compacting; in larger ones small fragments hardly slow a scan
_SHOWN = 3  # classes of a change that are reported one by one
_HARM = 0.01  # loss of the other classes' accuracy from which a warning is shown
# The effect is measured on as many validation images as keep images times classes below _SCORES, within these bounds.
_SCORES = 4_000_000
_FEWEST = 300
_MOST = 1000
_RIVALS = 3
_STILL = 1e-3  # range of a class's loss changes below which its old losses are kept
_FEW = 1000  # up to so many sentences a SQL condition is quicker than a scan


@dataclass(frozen=True)
class AddedClass:
    """State of a class after a change."""

    name: str
    class_id: int
    sentences: int
    anchors: int
    images: int  # usable ones of split train
    rivals: list[str]
    visual: str = "none"  # use of its images: "trained" on them | "images" added later | "none"

    def line(self, verb: str) -> str:
        """Return the class as a line of text."""
        how = {
            "trained": "the classifier was trained on them",
            "images": "known by text and images" if self.sentences else "known by its images alone",
            "none": "its images wait for vlltr train lgr" if self.images else "known by text alone",
        }[self.visual]
        return (
            f"{verb} {self.name!r} (class {self.class_id}): {many(self.sentences, 'sentence')},"
            f" {many(self.anchors, 'anchor')}, {many(self.images, 'image')}, {how}."
            f" Nearest: {', '.join(self.rivals) or 'none'}."
        )


@dataclass(frozen=True)
class Effect:
    """Top-1 accuracy of the classes that a change did not touch, before and after, on stored validation vectors.

    Both are None if there are no such images, or the change cannot have an effect.
    """

    before: float | None = None
    after: float | None = None
    images: int = 0
    unmeasured: bool = False  # there may be an effect, but no validation image to measure it on

    def lines(self) -> list[str]:
        """Return the effect as lines of text, with a warning if accuracy fell."""
        if self.unmeasured:
            return [
                "What the other classes lose by it was not measured: no image of theirs in split val is embedded."
            ]
        if self.before is None or self.after is None:
            return []
        lines = [
            f"Old classes on {many(self.images, 'validation image')}:"
            f" {100 * self.before:.1f} % before, {100 * self.after:.1f} % after."
        ]
        if self.before - self.after > _HARM:
            lines.append(
                f"Warning: the old classes lose {100 * (self.before - self.after):.1f} points."
                " Sentences that tell a class apart, or more images of it, may help; `vlltr history` shows the commit"
                " before, `vlltr rollback ID` goes back to it."
            )
        return lines


@dataclass(frozen=True)
class ChangeReport:
    """Report of a change: the classes it touched, and the accuracy of the others."""

    command: str
    dry_run: bool
    notes: list[str]  # sentences that say what was done
    classes: list[AddedClass]  # state of the classes after the change
    effect: Effect
    changed: bool = True  # whether there is a new commit
    added: bool = False  # whether the classes are new

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        verb = "Now" if self.changed else "Still"
        if self.added:
            verb = "Would add" if self.dry_run else "Added"
        told = [one.line(verb) for one in self.classes[:_SHOWN]]
        if self.added and len(self.classes) > _SHOWN:
            told.append(f"{verb} {len(self.classes) - _SHOWN} more classes.")
        lines = [*told, *self.notes] if self.added else [*self.notes, *told]
        dry = ["This was a dry run: nothing was committed."] if self.dry_run else []
        return [*lines, *self.effect.lines(), *dry]


@dataclass(frozen=True)
class View:
    """Scorer of one state of the workspace, with the validation images that effects are measured on.

    Attributes:
        scorer: The state's scorer.
        features: Float [V, D], stored vectors of split val, unnormalised; V may be 0.
        owners: int64 [V], class ids.
    """

    scorer: Scorer
    features: Tensor
    owners: Tensor

    @classmethod
    def load(cls, workspace: Workspace, snapshot: Snapshot) -> View:
        """Read a state as a whole."""
        scorer = load_scorer(snapshot)
        most = max(_FEWEST, min(_MOST, _SCORES // len(scorer.class_ids)))
        # Ordered by ids, which are hashes, so that the first ones are a random sample.
        rows = loading.usable_images(snapshot, "val", []).slice(0, most)
        features = torch.empty(0, scorer.saved.head.dim)
        if rows.num_rows:
            with suppress(MissingStepError):  # not embedded yet, so the effect is not measured
                features = loading.image_vectors_of(snapshot, rows["image_id"].to_pylist())
        owners = torch.tensor(rows["class_id"].to_pylist(), dtype=torch.int64)
        return cls(scorer, features, owners[: len(features)])

    @cached_property
    def text_logits(self) -> Tensor:
        """Text logits of the validation images, [V, C_a], one column for each class of the anchor bank."""
        return self._text_logits(self.scorer.bank)

    @torch.inference_mode()
    def _text_logits(self, bank: AnchorBank) -> Tensor:
        if not len(self.features) or not bank.num_classes:
            return torch.empty(len(self.features), bank.num_classes)
        head = self.scorer.saved.head
        return torch.cat([head.text_logits(part, bank) for part in self.features.split(256)])

    def updated(self, tx: Transaction, merged: Mapping[int, int]) -> View:
        """Return the state after a change, computing only what differs in its anchors and rows."""
        loaded = _updated_bank(tx, self.scorer.loaded)
        saved = self.scorer.saved
        stats = loading.class_stats(tx, saved.head.dim)
        scorer = Scorer.build(loaded, saved, stats, self.scorer.fusion, merged=merged)
        after = View(scorer, self.features, self.owners)
        after.__dict__["text_logits"] = self._columns_after(loaded)
        return after

    def _columns_after(self, loaded: loading.LoadedBank) -> Tensor:
        """Return text logits after a change; columns of classes with the same anchors are reused."""
        before = _anchors_of(self.scorer.loaded)
        after = _anchors_of(loaded)
        if not before:  # no class had a sentence
            return self._text_logits(loaded.bank)
        place = {c: n for n, c in enumerate(before)}
        same = torch.tensor(
            [place[c] if before.get(c) == a else -1 for c, a in after.items()], dtype=torch.int64
        )
        logits = self.text_logits[:, same.clamp(min=0)]
        changed = (same < 0).nonzero()[:, 0]
        if len(changed):
            logits[:, changed] = self._text_logits(loaded.bank.select(changed))
        return logits

    def effect(self, before: View, touched: set[int]) -> Effect:
        """Measure top-1 accuracy before and after on classes that are in both states and not in `touched`."""
        there = torch.isin(self.owners, self.scorer.class_ids)
        there &= torch.isin(self.owners, before.scorer.class_ids)
        there &= ~torch.isin(self.owners, torch.tensor(sorted(touched), dtype=torch.int64))
        if not bool(there.any()):
            return Effect(unmeasured=True)
        was = float(before.right[there].double().mean())
        now = float(self.right[there].double().mean())
        return Effect(was, now, int(there.sum()))

    @cached_property
    def right(self) -> Tensor:
        """Whether each validation image's class has the highest probability, bool [V]."""
        with torch.inference_mode():
            scorer = self.scorer
            fused = scorer.fuse(scorer.image_side(self.features), scorer.whole(self.text_logits))
            best = fused.probabilities.argmax(1)
        return self.scorer.class_ids[best] == self.owners


def rivals(bank: AnchorBank, class_ids: Sequence[int]) -> dict[int, list[int]]:
    """Return for each of `class_ids` the classes of the nearest mean anchors, nearest first; none without an anchor."""
    prototypes = F.normalize(bank.prototypes(), dim=1)
    ids = bank.class_ids.tolist()
    found: dict[int, list[int]] = {class_id: [] for class_id in class_ids}
    for class_id in found.keys() & set(ids):
        cosines = prototypes @ prototypes[ids.index(class_id)]
        near = cosines.topk(min(_RIVALS + 1, len(ids))).indices.tolist()
        found[class_id] = [ids[i] for i in near if ids[i] != class_id][:_RIVALS]
    return found


def _anchors_of(loaded: loading.LoadedBank) -> dict[int, tuple[tuple[str, float], ...]]:
    """Return the anchors of each class with their losses, in the bank's order."""
    bounds = loaded.bank.bounds
    ids = loaded.bank.class_ids.tolist()
    anchors = list(zip(loaded.sentence_ids, loaded.bank.losses.tolist(), strict=True))
    return {c: tuple(anchors[bounds[n] : bounds[n + 1]]) for n, c in enumerate(ids)}


def _updated_bank(tx: Snapshot, before: loading.LoadedBank) -> loading.LoadedBank:
    """Load the anchor bank after a change, reading only the vectors that `before` does not have."""
    anchors = tx.table("anchors").sort_by([("class_id", "ascending"), ("rank", "ascending")])
    sentence_ids: list[str] = anchors["sentence_id"].to_pylist()
    row_of = {s: n for n, s in enumerate(before.sentence_ids)}
    at = torch.tensor([row_of.get(s, -1) for s in sentence_ids], dtype=torch.int64)
    vectors = before.bank.vectors.new_empty(len(at), before.bank.dim)
    vectors[at >= 0] = before.bank.vectors[at[at >= 0]]
    wanted = [s for s in sentence_ids if s not in row_of]
    if wanted:
        where = one_of("sentence_id", wanted) if len(wanted) <= _FEW else None
        rows = tx.table("sentences", ["sentence_id", "text_hash"], where)
        vectors[at < 0] = loading.text_vectors_of(tx, loading.hashes_of(rows, wanted))
    owners = torch.tensor(anchors["class_id"].to_pylist(), dtype=torch.int64)
    losses = _settled(loading.anchor_losses(tx, sentence_ids), before.bank.losses, at, owners)
    return loading.LoadedBank.of(anchors, vectors, losses, before.selection_id)


def _settled(losses: Tensor, before: Tensor, at: Tensor, owners: Tensor) -> Tensor:
    """Return losses after a change, float [A], but a class's old ones if its losses moved almost equally.

    New images change the loss of every sentence a little; with its old losses a class far from them keeps its columns.
    `at` int64 [A] is each anchor's place among the losses `before`, -1 for a new one, `owners` int64 [A] its class.
    """
    if not len(before):
        return losses
    old = before[at.clamp(min=0)]
    moved = torch.where(at < 0, torch.inf, losses - old)
    row = torch.unique_consecutive(owners, return_inverse=True)[1]
    zeros = moved.new_zeros(len(moved))
    high = zeros.scatter_reduce(0, row, moved, reduce="amax", include_self=False)[row]
    low = zeros.scatter_reduce(0, row, moved, reduce="amin", include_self=False)[row]
    return torch.where(high - low < _STILL, old, losses)  # inf - inf is NaN, which is not below _STILL


class Session:
    """Cache of a workspace's encoder and scorer between changes, so that each change costs only what it adds.

    Args:
        workspace: The workspace whose changes are made through it.

    After a change by another process the scorer is loaded again.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._encoder: tuple[tuple[str | None, ...], Encoder] | None = None
        self._view: tuple[int, View] | None = None

    def encoder(self, snapshot: Snapshot) -> Encoder:
        """Return the commit's encoder, in eval mode."""
        commit = snapshot.commit
        facts = (commit.checkpoint, commit.text_fp, commit.image_fp)
        if self._encoder is None or self._encoder[0] != facts:
            self._encoder = (facts, loading.open_encoder(snapshot))
        return self._encoder[1]

    def view(self, snapshot: Snapshot) -> View:
        """Return the commit's state."""
        number = snapshot.commit.id
        if self._view is None or self._view[0] != number:
            self._view = (number, View.load(self.workspace, self.workspace.snapshot(number or None)))
        return self._view[1]

    def keep(self, commit_id: int, view: View) -> None:
        """Cache `view` as the state of a commit that was just made."""
        self._view = (commit_id, view)


@dataclass(frozen=True, kw_only=True)
class ChangeOptions:
    """How a change is made, the same for all of them.

    Attributes:
        dry_run: Show what would happen; commit nothing.
        progress: Called with the step's name, what is done, and the total.
        session: Keeps encoder and scorer for the next change; None: they are loaded for this one.
    """

    dry_run: bool = False
    progress: Progress | None = None
    session: Session | None = None


USUAL = ChangeOptions()


@dataclass
class Edit:
    """Rows that a command wrote, for the steps that follow.

    Attributes:
        touched: Classes whose sentences or images changed, removed classes included.
        shown: Other classes to report on.
        sentences: New rows of `sentences`, written already.
        images: New rows of `images`, written already.
        images_changed: Whether images of the touched classes were added or removed.
        merged: After a merge: id of each merged class, to the class it was merged into.
        notes: Sentences that say what was done.
    """

    touched: set[int] = field(default_factory=set)
    shown: Sequence[int] = ()
    sentences: pa.Table | None = None
    images: pa.Table | None = None
    images_changed: bool = False
    merged: dict[int, int] | None = None
    notes: list[str] = field(default_factory=list)


def change(
    workspace: Workspace,
    command: str,
    edit: Callable[[Transaction], Edit],
    options: ChangeOptions = USUAL,
) -> ChangeReport:
    """Make a change in one commit: embed what is new, and update scores, anchors and class statistics.

    The index is not rebuilt: new anchors are searched beside it, exactly, and removed ones are filtered out.

    Args:
        workspace: With a trained head.
        command: The command's text for the commit.
        edit: Writes the rows of `classes`, `sentences` and `images`.
        options: See there.

    Raises:
        MissingStepError: If the workspace has no trained head yet.
    """
    session = options.session or Session(workspace)
    with workspace.transaction(command, dry_run=options.dry_run) as tx:
        before = session.view(tx)
        select = tx.commit.info.select or workspace.recipe.select
        held = held_images(tx)
        images = score_images(tx, select, held)
        done = edit(tx)
        after = before
        effect = Effect()
        if done.touched:
            _embed(session, tx, done, options.progress)
            update(tx, select, images, set(done.touched), held)
            if done.images_changed:
                _update_stats(tx, done.touched)
            merged = before.scorer.merged if done.merged is None else done.merged
            tx.note(merged=merged)
            after = before.updated(tx, merged)
            effect = after.effect(before, done.touched)
        classes = _states(tx, after, done.touched.union(done.shown))
        report = ChangeReport(command, options.dry_run, done.notes, classes, effect)
        if _is_mute(after.scorer) and any(not state.images for state in classes):
            report.notes.append(_MUTE)
        if not options.dry_run:
            _tidy(tx)
    if tx.result_commit == tx.commit:
        return report if options.dry_run else replace(report, changed=False)
    session.keep(tx.result_commit.id, after)
    return report


def _is_mute(scorer: Scorer) -> bool:
    """Say whether texts have no weight in this head, so that a class known by text alone is hardly found."""
    parts = scorer.saved.parts
    return parts is not None and not parts.weights.told.text and not bool(parts.shared.text_map.any())


def _update_stats(tx: Transaction, touched: set[int]) -> None:
    """Recompute the statistics of training images for classes whose images were added or removed."""
    where = (
        f"split = 'train' AND problem IS NULL AND {one_of('class_id', touched & set(tx.class_table().ids))}"
    )
    images = tx.table("images", ["image_id", "class_id", "group"], where).sort_by("image_id")
    owners = images["class_id"].to_pylist()
    tx.delete("class_stats", one_of("class_id", touched.difference(owners)))
    if owners:
        features = loading.image_vectors_of(tx, images["image_id"].to_pylist())
        groups = images["group"].to_pylist()
        rows = loading.stats_rows(features, torch.tensor(owners), groups, tx.commit.image_fp or "")
        tx.upsert("class_stats", rows)


def _tidy(tx: Transaction) -> None:
    """Compact the tables after every 32nd commit, so that many small commits do not slow down the next ones."""
    commit = tx.commit
    if commit.id % _TIDY:
        return
    vectors = sentence_vectors_name(commit.text_fp or ""), image_vectors_name(commit.image_fp or "")
    for name in (*_NARROW, *vectors):
        # A table that holds image bytes is too large to rewrite.
        heavy = "data IS NOT NULL" if name == "images" else None
        if (
            tx.store.exists(name)
            and tx.store.count(name) <= _SMALL
            and not (heavy and tx.store.count(name, heavy))
        ):
            tx.store.optimize(name)


def _embed(session: Session, tx: Transaction, done: Edit, progress: Progress | None) -> None:
    """Embed the new sentences, and the new training images in as many views as the others have."""
    if done.sentences is not None and done.sentences.num_rows:
        hashes = done.sentences["text_hash"].to_pylist()
        texts = done.sentences["text"].to_pylist()
        embed_sentences(tx, session.encoder(tx), hashes, texts, progress=progress)
    good = usable(done.images)["image_id"].to_pylist() if done.images is not None else []
    if good:
        config = session.workspace.recipe.lgr.augment
        encoder = session.encoder(tx)
        embed_images(
            tx,
            encoder,
            "train",
            views=range(tx.commit.info.views),
            augment=ViewAugment(config, encoder),
            config=config,
            progress=progress,
            only=good,
        )


def usable(images: pa.Table) -> pa.Table:
    """Return the rows of `images` that can be read."""
    return images.filter(pc.is_null(images["problem"]))


def _states(tx: Transaction, view: View, class_ids: set[int]) -> list[AddedClass]:
    """Return the current state of those of the classes that still exist."""
    table = tx.class_table()
    bank = view.scorer.bank
    shown = sorted(class_ids.intersection(table.ids))
    if not shown:
        return []
    names = table.names
    near = rivals(bank, shown)
    where = one_of("class_id", shown)
    sentences = Counter(tx.table("sentences", ["class_id"], where)["class_id"].to_pylist())
    good = f"split = 'train' AND problem IS NULL AND {where}"
    images = Counter(tx.table("images", ["class_id"], good)["class_id"].to_pylist())
    anchors = dict(zip(bank.class_ids.tolist(), bank.offsets.diff().tolist(), strict=True))
    visual = view.scorer.visual_sides()
    return [
        AddedClass(
            name=names[i],
            class_id=i,
            sentences=sentences[i],
            anchors=anchors.get(i, 0),
            images=images[i],
            rivals=[names[r] for r in near[i]],
            visual=visual.get(i, "none"),
        )
        for i in shown
    ]


def new_image_rows(
    tx: Transaction,
    paths: Mapping[int, Sequence[Path | tuple[str, bytes]]],
    names: Mapping[int, str],
    skipped: list[str],
) -> pa.Table:
    """Build rows of `images` in split train from files and folders of each class; each image is decoded to check it.

    Args:
        tx: The open transaction.
        paths: By class id: files, folders, and pairs of name and encoded image, whose bytes are stored.
        names: Names by class id.
        skipped: Entries that were left out are appended to it, with the reason.

    Raises:
        InputError: If a folder holds no image, or an image is another class's already.
    """
    rows = image_rows({i: _records(some, names[i], skipped) for i, some in paths.items()})
    there = tx.table("images", ["image_id", "class_id"], one_of("image_id", rows["image_id"].to_pylist()))
    owner = dict(zip(there["image_id"].to_pylist(), there["class_id"].to_pylist(), strict=True))
    for row in rows.select(["image_id", "class_id", "uri", "problem"]).to_pylist():
        key = row["image_id"]
        if row["problem"]:
            skipped.append(f"{row['uri']}: {row['problem']}")
        if owner.setdefault(key, row["class_id"]) != row["class_id"]:
            other = tx.class_table().names.get(owner[key], "another class")
            raise InputError(
                f"{row['uri']} is an image of class {other!r} already",
                f"Take it away there: vlltr images remove {key}",
            )
    return rows


def _records(paths: Sequence[Path | tuple[str, bytes]], name: str, skipped: list[str]) -> list[ImageRecord]:
    found: list[ImageRecord] = []
    for path in paths:
        if isinstance(path, tuple):
            given, data = path
            found.append(ImageRecord(given, f"given#{given}", name, "train", data=data))
        elif path.is_file():
            full = str(path.resolve())
            found.append(ImageRecord(full, full, name, "train"))
        elif path.is_dir():
            for item in read_images(path, "train", class_name=name):
                if isinstance(item, ImageRecord):
                    found.append(item)
                else:
                    skipped.append(f"{item.where}: {item.why}")
        else:
            skipped.append(f"{path}: no such file")
    return found
