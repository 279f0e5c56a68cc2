"""Make one change to the class list: write rows, update anchors and statistics, commit, and report the effect."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from vlltr_index.anchors.selection import ScoreImages, score_images, update
from vlltr_index.classes.effect import Effect, measure
from vlltr_index.classes.groups import rule_of, with_groups
from vlltr_index.classes.report import ChangeReport, notes_on, states
from vlltr_index.data.image_readers import read_images
from vlltr_index.embedding import loading
from vlltr_index.embedding.vectors import Engine, embed_images, embed_readings, embed_sentences, unread
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.schemas.tables import (
    image_vectors_name,
    sentence_readings_name,
    sentence_vectors_name,
)
from vlltr_index.store.holdout import held_images
from vlltr_index.store.ingestion import image_rows, usable
from vlltr_index.store.tables import one_of
from vlltr_index.train.augment import ViewAugment
from vlltr_index.wording import preview

if TYPE_CHECKING:
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_NARROW = ("classes", "sentences", "sentence_scores", "anchors", "class_stats", "images")
_TIDY = 32  # commits between two compactions of the tables
_SMALL = 200_000  # rows of a table worth compacting; in larger ones small fragments hardly slow a scan


@dataclass(frozen=True, kw_only=True)
class ChangeOptions:
    """How a change is made, the same for all of them.

    Attributes:
        dry_run: Show what would happen; commit nothing.
        progress: Called with the step's name, what is done, and the total.
        recognizer: Of the same workspace; its model is changed. If it follows the newest commit, it answers as that one
            afterwards, without loading it. None: the model is loaded for this change.
        engine: Computes the vectors of what is new. None: the encoder does, in this process.
        timeout: As for `Workspace.transaction`.
    """

    dry_run: bool = False
    progress: Progress | None = None
    recognizer: Recognizer | None = None
    engine: Engine | None = None
    timeout: float | None = None


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


@dataclass(eq=False)
class Change:
    """A change that is open, see `open_change`.

    Attributes:
        tx: Its transaction.
        before: The model before it; None: no head is trained yet.
        options: How it is made.
        held: Ids of the images that stage 1 held out; empty without a model.
        scored: The images that sentences are scored against before it; None without a model.
    """

    tx: Transaction
    before: Model | None
    options: ChangeOptions
    held: frozenset[str]
    scored: ScoreImages | None
    _after: Model | None = None
    _report: ChangeReport | None = None

    def finish(self, done: Edit) -> None:
        """Embed what is new, update scores, anchors and statistics by the rows that were written, and report."""
        tx = self.tx
        report = ChangeReport(
            command=tx.command,
            dry_run=self.options.dry_run,
            notes=done.notes,
            classes=[],
            effect=Effect(),
            before=tx.commit.id,
        )
        if self.before is not None and self.scored is not None:
            after, effect = self.before, Effect()
            if done.touched:
                self._update(self.before, self.scored, done)
                after, effect = _measured(tx, self.before, done)
            self._after = after
            classes = states(tx, after, done.touched.union(done.shown))
            found = notes_on(tx, after, classes, effect, done.images, done.images_changed)
            report = replace(report, notes=[*done.notes, *found], classes=classes, effect=effect)
            if not self.options.dry_run:
                _tidy(tx)
        self._report = report

    @property
    def report(self) -> ChangeReport:
        """The report, once the commit was made."""
        assert self._report is not None, "the change was not finished"
        unchanged = self.tx.result_commit == self.tx.commit and not self.options.dry_run
        return replace(self._report, changed=not unchanged)

    def _update(self, before: Model, scored: ScoreImages, done: Edit) -> None:
        """Embed what is new, and update scores, anchors and statistics."""
        tx = self.tx
        select = tx.commit.info.select or tx.recipe.select
        _embed(before, tx, done, self.options)
        try:
            update(tx, select, scored, touched=set(done.touched), held=self.held)
        except MissingStepError:  # images or texts came in that nothing embedded yet
            _embed_rest(before, tx, self.options)
            update(tx, select, scored, touched=set(done.touched), held=self.held)
        if done.images_changed:
            _update_stats(tx, done.touched, before.saved.unit_correlation)

    def adopt(self, workspace: Workspace) -> None:
        """Give the recognizer the model of the commit."""
        recognizer = self.options.recognizer
        if recognizer is None or self._after is None or self.tx.result_commit == self.tx.commit:
            return
        made = workspace.snapshot(self.tx.result_commit.id)
        same = self._after is self.before
        recognizer.adopt(Model.open(made, before=self.before) if same else self._after.committed(made))


@contextmanager
def open_change(
    workspace: Workspace, command: str, options: ChangeOptions = USUAL, needs_head: bool = True
) -> Iterator[Change]:
    """Open a change; it is one commit at the end of the block, after `Change.finish`.

    The index is not rebuilt: new anchors are searched beside it, exactly, and removed ones are filtered out.

    Args:
        workspace: With a trained head.
        command: The command's text for the commit.
        options: See there.
        needs_head: Whether a workspace without a head is refused; otherwise rows alone are changed there.

    Raises:
        MissingStepError: If the workspace has no trained head yet.
        UsageError: If the recognizer is another workspace's.
        LockedError: If another writer is still there after `options.timeout`.
    """
    if options.recognizer is not None and not options.recognizer.is_of(workspace):
        raise UsageError("the recognizer is not of this workspace", "Open it: Recognizer.open(workspace)")
    with workspace.transaction(command, options.timeout, dry_run=options.dry_run) as tx:
        before, scored, held = None, None, frozenset[str]()
        if needs_head or tx.commit.head is not None:
            before = _model_before(workspace.snapshot(tx.commit.id or None), options.recognizer)
            held = held_images(tx)
            scored = score_images(tx, tx.commit.info.select or tx.recipe.select, held)
        change = Change(tx, before, options, held, scored)
        yield change
    change.adopt(workspace)


def _measured(tx: Transaction, before: Model, done: Edit) -> tuple[Model, Effect]:
    """Return the model after a change, with the offsets that it gives added classes, and the effect."""
    if done.merged is not None:
        tx.note(merged=done.merged)
    after = Model.open(tx, before=before)
    effect, offsets = measure(before, after, done.touched)
    tx.note(offsets=offsets)
    return replace(after, offsets=offsets), effect


def _model_before(snapshot: Snapshot, recognizer: Recognizer | None) -> Model:
    """Return the model of a commit, the recognizer's own if it has it."""
    there = None if recognizer is None else recognizer.current()
    if there is not None and there.commit == snapshot.commit.id:
        return there
    return Model.open(snapshot, before=there)


def _update_stats(tx: Transaction, touched: set[int], correlation: float) -> None:
    """Recompute the statistics of training images for classes whose images were added or removed.

    Args:
        tx: The change.
        touched: The classes.
        correlation: How alike the images of a unit are, by the head.
    """
    where = (
        f"split = 'train' AND problem IS NULL AND {one_of('class_id', touched & set(tx.class_table().ids))}"
    )
    images = tx.table("images", ["image_id", "class_id"], where).sort_by("image_id")
    owners = images["class_id"].to_pylist()
    tx.delete("class_stats", one_of("class_id", touched.difference(owners)))
    if owners:
        ids = images["image_id"].to_pylist()
        features = loading.image_vectors_of(tx, ids)
        units = loading.image_units(tx, ids, torch.tensor(owners), features)
        image_fp = tx.commit.image_fp or ""
        rows = loading.stats_rows(features, torch.tensor(owners), units, image_fp, correlation)
        tx.upsert("class_stats", rows)


def _tidy(tx: Transaction) -> None:
    """Compact the tables after every 32nd commit, so that many small commits do not slow down the next ones."""
    commit = tx.commit
    if commit.id % _TIDY:
        return
    vectors = [sentence_vectors_name(commit.text_fp or ""), image_vectors_name(commit.image_fp or "")]
    if commit.info.reading:
        vectors.append(sentence_readings_name(commit.info.reading.fp))
    for name in (*_NARROW, *vectors):
        # A table that holds image bytes is too large to rewrite.
        heavy = "data IS NOT NULL" if name == "images" else None
        if (
            tx.store.exists(name)
            and tx.store.count(name) <= _SMALL
            and not (heavy and tx.store.count(name, heavy))
        ):
            tx.store.optimize(name)


def _embed(model: Model, tx: Transaction, done: Edit, options: ChangeOptions) -> None:
    """Embed the new sentences, and the new training images in as many views as the others have."""
    if done.sentences is not None and done.sentences.num_rows:
        hashes = done.sentences["text_hash"].to_pylist()
        texts = done.sentences["text"].to_pylist()
        embed_sentences(tx, model.encoder, hashes, texts, progress=options.progress, engine=options.engine)
        done.notes += unread(model.encoder, texts)
        reader = loading.open_reader(tx)
        if reader is not None:
            embed_readings(tx, reader, hashes, texts, progress=options.progress)
    good = usable(done.images)["image_id"].to_pylist() if done.images is not None else []
    if good:
        config = tx.recipe.lgr.augment
        encoder = model.encoder
        embed_images(
            tx,
            encoder,
            "train",
            views=range(tx.commit.info.views),
            augment=ViewAugment(config, encoder),
            config=config,
            progress=options.progress,
            only=good,
            engine=options.engine,
        )


def _embed_rest(model: Model, tx: Transaction, options: ChangeOptions) -> None:
    """Embed all sentences and training images that have no vector yet."""
    sentences = tx.table("sentences")
    images = tx.table("images", ["image_id", "problem"], "split = 'train' AND class_id IS NOT NULL")
    _embed(model, tx, Edit(sentences=sentences, images=images), options)


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
        InputError: If a folder holds no image, or folders that may be classes, or an image is another class's already
            or given for two.
    """
    rule = rule_of(tx)
    nested = rule.how in ("folder", "path")
    found = {i: _records(some, names[i], skipped, nested=nested) for i, some in paths.items()}
    rows = image_rows({i: with_groups(rule, records) for i, records in found.items()})
    there = tx.table("images", ["image_id", "class_id"], one_of("image_id", rows["image_id"].to_pylist()))
    stored = dict(zip(there["image_id"].to_pylist(), there["class_id"].to_pylist(), strict=True))
    owner = dict(stored)
    for row in rows.select(["image_id", "class_id", "uri", "problem"]).to_pylist():
        key = row["image_id"]
        if row["problem"]:
            skipped.append(f"{row['uri']}: {row['problem']}")
        first = owner.setdefault(key, row["class_id"])
        if first == row["class_id"]:
            continue
        if key in stored:
            other = tx.class_table().names.get(first, "another class")
            raise InputError(
                f"{row['uri']} is an image of class {other!r} already",
                f"Take it away there: vlltr images remove {key}",
            )
        raise InputError(
            f"{row['uri']} is given for two classes, {names[first]!r} and {names[row['class_id']]!r}",
            "Leave it out of one of them.",
        )
    return rows


def _records(
    paths: Sequence[Path | tuple[str, bytes]], name: str, skipped: list[str], *, nested: bool
) -> list[ImageRecord]:
    """Make records of a class's images; unless `nested`, folders below one that is given may be classes."""
    found: list[ImageRecord] = []
    for path in paths:
        if isinstance(path, tuple):
            given, data = path
            found.append(ImageRecord(given, f"given#{given}", name, "train", data=data))
        elif path.is_file():
            full = str(path.resolve())
            found.append(ImageRecord(full, full, name, "train"))
        elif path.is_dir():
            items = list(read_images(path, "train", class_name=name))
            inside = [item for item in items if isinstance(item, ImageRecord)]
            if not nested:
                _check_one_class(path, inside, name)
            found += inside
            skipped += [f"{item.where}: {item.why}" for item in items if isinstance(item, Skipped)]
        else:
            skipped.append(f"{path}: no such file")
    return found


def _check_one_class(folder: Path, images: Sequence[ImageRecord], name: str) -> None:
    """Refuse a folder whose images all lie in several folders below it, unless their names begin with numbers."""
    homes = {os.path.dirname(one.uri) for one in images}
    above = os.path.commonpath(homes)
    if above in homes:
        return
    inner = sorted({os.path.relpath(home, above).split(os.sep)[0] for home in homes})
    if sum(not one[0].isdigit() and any(map(str.isalpha, one)) for one in inner) < 2:
        return
    first = folder / os.path.relpath(above, folder.resolve()) / inner[0]
    several = shlex.join(["vlltr", "classes", "add", "--from", str(first.parent)])
    raise InputError(
        f"the pictures of {folder} lie in {len(inner)} folders, which may be classes of their own: {preview(inner)}",
        f"Add them: {several}. If all are {name!r}, name each of these folders in place of {folder}.",
    )
