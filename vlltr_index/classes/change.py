"""One change to the class list from its first row to its commit and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import torch

from vlltr_index.anchors.selection import score_images, update
from vlltr_index.classes.reports import AddedClass, ChangeReport, Effect
from vlltr_index.classes.session import Session, View, rivals
from vlltr_index.data.image_readers import read_images
from vlltr_index.embedding.loading import image_vectors_of, stats_rows
from vlltr_index.embedding.vectors import embed_images, embed_sentences
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.store.holdout import held_images
from vlltr_index.store.ingestion import image_rows
from vlltr_index.store.tables import one_of
from vlltr_index.train.augment import ViewAugment

if TYPE_CHECKING:
    from vlltr_index.recognition.scorer import Scorer
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_NARROW = ("classes", "sentences", "sentence_scores", "anchors", "class_stats")
_MUTE = "Texts have no weight in this head (vlltr train lgr says why): by text alone a class is hardly found."
_TIDY = 32  # commits
_TIDY_VECTORS = 64  # commits; merging writes the whole table anew, so only
_SMALL = 200_000  # rows: in a larger one the many small parts are no great part of a scan


class How(TypedDict, total=False):
    """How a change is made, the same for all of them.

    Attributes:
        dry_run: Show what would happen; commit nothing.
        progress: Called with the step's name, what is done, and the total.
        session: Keeps encoder and scorer for the next change; none given: they are loaded for this one.
    """

    dry_run: bool
    progress: Progress | None
    session: Session | None


@dataclass
class Edit:
    """What a command wrote, for what has to follow.

    Attributes:
        touched: Classes whose sentences or images changed, those that are gone too.
        shown: Classes to report on, as they are in the end.
        sentences: New rows of `sentences`, written already.
        images: New rows of `images`, written already.
        images_changed: Classes whose images came or went.
        merged: All merges, where one was made: a class to the one that took it in.
        notes: What was done, for people.
    """

    touched: set[int] = field(default_factory=set)
    shown: list[int] = field(default_factory=list)
    sentences: pa.Table | None = None
    images: pa.Table | None = None
    images_changed: set[int] = field(default_factory=set)
    merged: dict[int, int] | None = None
    notes: list[str] = field(default_factory=list)


def change(
    workspace: Workspace,
    command: str,
    edit: Callable[[Transaction], Edit],
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Make a change in one commit: embed only what is new, bring scores, anchors and class statistics up to date.

    The index is not rebuilt: new anchors are searched beside it, exactly, and those that left are struck out.

    Args:
        workspace: With a trained head.
        command: What the commit says was run.
        edit: Writes the rows of `classes`, `sentences` and `images`.
        dry_run: As `How` says; so do `progress` and `session`.

    Raises:
        MissingStepError: If the workspace has no trained head yet.
    """
    session = session or Session(workspace)
    with workspace.transaction(command, dry_run=dry_run) as tx:
        before, select = session.view(tx), workspace.recipe.select
        held = held_images(workspace, tx)
        images = score_images(tx, select, held)
        done = edit(tx)
        after, effect = before, Effect()
        if done.touched:
            _embed(session, tx, done, progress)
            update(tx, select, images, set(done.touched), held)
            _update_stats(tx, done.images_changed)
            merged = before.scorer.merged
            if done.merged is not None:
                merged = done.merged
                tx.note(merged=merged)
            after = before.updated(tx, merged)
            effect = after.effect(before, done.touched)
        report = ChangeReport(command, dry_run, done.notes, _states(tx, after, done.shown), effect)
        if _is_mute(after.scorer) and any(not state.images for state in report.classes):
            report.notes.append(_MUTE)
        if not dry_run:
            _tidy(tx)
    if tx.result_commit == tx.commit:
        return report if dry_run else replace(report, changed=False)
    session.keep(tx.result_commit.id, after)
    return report


def _is_mute(scorer: Scorer) -> bool:
    """Whether no text can say anything to this head."""
    parts = scorer.saved.parts
    return parts is not None and not parts.weights.told.text and not bool(parts.shared.text_map.any())


def _update_stats(tx: Transaction, touched: set[int]) -> None:
    """Count and sum the training images of classes whose images came or went anew."""
    if not touched:
        return
    wanted = sorted(touched & set(tx.class_table().ids))
    where = f"split = 'train' AND problem IS NULL AND {one_of('class_id', wanted)}"
    images = tx.table("images", ["image_id", "class_id"], where).sort_by("image_id")
    gone = sorted(touched - set(images["class_id"].to_pylist()))
    if gone and tx.has("class_stats"):
        tx.delete("class_stats", one_of("class_id", gone))
    if images.num_rows:
        features = image_vectors_of(tx, images["image_id"].to_pylist())
        owners = torch.tensor(images["class_id"].to_pylist())
        tx.upsert("class_stats", stats_rows(features, owners, tx.commit.image_fp or ""))


def _tidy(tx: Transaction) -> None:
    """Now and then merge what many small commits leave in the tables, so that the next ones stay quick."""
    commit = tx.commit
    if commit.id % _TIDY:
        return
    for name in _NARROW:
        if tx.has(name):
            tx.store.optimize(name)
    # Pictures that the table holds itself are too much to write anew.
    if tx.has("images") and not tx.store.count("images", "data IS NOT NULL"):
        tx.store.optimize("images")
    if commit.id % _TIDY_VECTORS == 0:
        for name in (sentence_vectors_name(commit.text_fp or ""), image_vectors_name(commit.image_fp or "")):
            if tx.store.exists(name) and tx.store.count(name) <= _SMALL:
                tx.store.optimize(name)


def _embed(session: Session, tx: Transaction, done: Edit, progress: Progress | None) -> None:
    """Embed the new sentences, and the new training images in all views that the others have."""
    if done.sentences is not None and done.sentences.num_rows:
        hashes, texts = (done.sentences[c].to_pylist() for c in ("text_hash", "text"))
        embed_sentences(tx, session.encoder(tx), hashes, texts, progress)
    if done.images is None:
        return
    good = done.images.filter(pc.is_null(done.images["problem"]))["image_id"].to_pylist()
    if not good:
        return
    config = session.workspace.recipe.lgr.augment
    encoder = session.encoder(tx)
    augment = ViewAugment(config, encoder)
    views = range(tx.commit.info.views)
    embed_images(tx, encoder, "train", views, augment, config, progress, only=good)


def _states(tx: Transaction, view: View, class_ids: Sequence[int]) -> list[AddedClass]:
    """The classes as they are now."""
    if not class_ids:
        return []
    names, bank = tx.class_table().names, view.scorer.bank
    near = rivals(bank, class_ids)
    where = one_of("class_id", class_ids)
    sentences = Counter(tx.table("sentences", ["class_id"], where)["class_id"].to_pylist())
    usable = f"split = 'train' AND problem IS NULL AND {where}"
    images = Counter(tx.table("images", ["class_id"], usable)["class_id"].to_pylist())
    anchors = Counter(dict(zip(bank.class_ids.tolist(), bank.offsets.diff().tolist(), strict=True)))
    visual = view.scorer.visual_sides()
    return [
        AddedClass(
            name=names[i],
            class_id=i,
            sentences=sentences[i],
            anchors=anchors[i],
            images=images[i],
            rivals=[names[r] for r in near[i]],
            visual=visual.get(i, "none"),
        )
        for i in class_ids
    ]


def classes_of(rows: pa.Table) -> set[int]:
    """The classes that own `rows`."""
    return set(rows["class_id"].to_pylist())


def new_image_rows(
    tx: Transaction,
    paths: Mapping[int, Sequence[Path | tuple[str, bytes]]],
    names: Mapping[int, str],
    skipped: list[str],
) -> pa.Table:
    """Rows of `images` in split train for files and folders of each class, each image decoded to see if it can be used.

    Args:
        tx: Where they are to go.
        paths: Class to files, folders, and names with encoded images: of these the bytes are kept.
        names: Class to name.
        skipped: Gains what was left out, and why.

    Raises:
        InputError: If a folder holds no image, or an image is another class's already.
    """
    rows = image_rows({i: _records(some, names[i], skipped) for i, some in paths.items()})
    skipped += [f"{row['uri']}: {row['problem']}" for row in rows.to_pylist() if row["problem"]]
    ids = rows["image_id"].to_pylist()
    there = tx.table("images", ["image_id", "class_id"], one_of("image_id", ids))
    owner = dict(zip(there["image_id"].to_pylist(), there["class_id"].to_pylist(), strict=True))
    for key, class_id, uri in zip(ids, rows["class_id"].to_pylist(), rows["uri"].to_pylist(), strict=True):
        if owner.setdefault(key, class_id) != class_id:
            other = tx.class_table().names.get(owner[key], "another class")
            raise InputError(
                f"{uri} is an image of class {other!r} already",
                f"Take it away there: vlltr images remove {key}",
            )
    return rows


def _records(paths: Sequence[Path | tuple[str, bytes]], name: str, skipped: list[str]) -> list[ImageRecord]:
    found: list[ImageRecord] = []
    for path in paths:
        if isinstance(path, tuple):
            given, data = path
            found.append(ImageRecord(given, f"given#{given}", name, "train", data))
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
