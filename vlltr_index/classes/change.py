"""Make one change to the class list: write rows, update anchors and statistics, commit, and report the effect."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional as F

from vlltr_index.anchors.selection import score_images, update
from vlltr_index.classes.effect import Effect, measure
from vlltr_index.classes.groups import rule_of, with_groups
from vlltr_index.data.image_readers import read_images
from vlltr_index.embedding import loading
from vlltr_index.embedding.vectors import Engine, embed_images, embed_readings, embed_sentences, unread
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.schemas.tables import (
    FROM_NAME,
    image_vectors_name,
    sentence_readings_name,
    sentence_vectors_name,
)
from vlltr_index.store.holdout import held_images
from vlltr_index.store.ingestion import image_rows
from vlltr_index.store.tables import one_of
from vlltr_index.tensors import class_positions
from vlltr_index.train.augment import ViewAugment
from vlltr_index.wording import plural, preview

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_NARROW = ("classes", "sentences", "sentence_scores", "anchors", "class_stats", "images")
_MUTE = "Text-only classes cannot be recognised: the texts do not predict class means. Add images: vlltr images add"
_ATTRACTS = "A text-only class may attract unknown images, too."
_SEVERAL = 3  # added classes from which a refit is recommended
_TIDY = 32  # commits between two compactions of the tables
_SMALL = 200_000  # rows of a table worth compacting; in larger ones small fragments hardly slow a scan
_RIVALS = 3


@dataclass(frozen=True)
class AddedClass:
    """State of a class after a change."""

    name: str
    class_id: int
    sentences: int
    anchors: int
    images: int  # usable ones of split train
    rivals: list[str]  # the nearest classes, nearest first
    rivals_by: Literal["images", "text"] = "text"  # what they are near by
    visual: str = "none"  # use of its images: "trained" on them | "images" added later | "none"
    text: str = "none"  # sentences that count: "own" | "name": they are made from its name | "none"


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
    before: int | None = None  # number of the commit that was changed

    @property
    def warning(self) -> str | None:
        """What is said if the accuracy of the other classes fell, and what helps against it."""
        said = self.effect.warning
        if said and self.added:
            told = any(one.text != "none" for one in self.classes)
            helps = (
                "Sentences that tell a class apart, or more images of it,"
                if told
                else "More images of a class"
            )
            return f"{said} {helps} may help."
        return said


class Rivals(NamedTuple):
    """The classes nearest to one.

    Attributes:
        by: What they are near by, `images` or `text`.
        class_ids: Their ids, nearest first.
    """

    by: Literal["images", "text"]
    class_ids: list[int]


def rivals(model: Model, class_ids: Sequence[int]) -> dict[int, Rivals]:
    """Find the classes nearest to each of `class_ids`: by images, or, of a class without images, by text.

    By images these are the classes under which the mean of its images is likeliest; by text those of the nearest mean
    anchors. There is none for a class without an anchor, or whose anchors are blank.
    """
    by_images = _rivals_by_images(model, class_ids)
    return _rivals_by_text(model.bank, class_ids) | by_images


def _rivals_by_images(model: Model, class_ids: Sequence[int]) -> dict[int, Rivals]:
    """Find the rivals of classes with images among the other classes with images."""
    stats = model.stats
    shown = torch.isin(stats.class_ids, torch.tensor(class_ids)).nonzero()[:, 0]
    if model.saved.parts is None or not len(shown):
        return {}
    means = (stats.sums[shown] / stats.counts[shown, None]).float()
    likelihoods = model.known.plda.log_likelihoods(means)[
        :, class_positions(model.class_ids, stats.class_ids)
    ]
    likelihoods[torch.arange(len(shown)), shown] = -torch.inf
    count = min(_RIVALS, len(stats.class_ids) - 1)
    nearest = stats.class_ids[likelihoods.topk(count).indices]
    owners = stats.class_ids[shown].tolist()
    return {i: Rivals("images", near) for i, near in zip(owners, nearest.tolist(), strict=True)}


def _rivals_by_text(bank: AnchorBank, class_ids: Sequence[int]) -> dict[int, Rivals]:
    """Find the rivals of classes by their mean anchors."""
    found = {class_id: Rivals("text", []) for class_id in class_ids}
    if bank.is_blank:
        return found
    prototypes = F.normalize(bank.prototypes(), dim=1)
    ids = bank.class_ids.tolist()
    for class_id in found.keys() & set(ids):
        cosines = prototypes @ prototypes[ids.index(class_id)]
        near = cosines.topk(min(_RIVALS + 1, len(ids))).indices.tolist()
        found[class_id] = Rivals("text", [ids[i] for i in near if ids[i] != class_id][:_RIVALS])
    return found


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
        UsageError: If the recognizer is another workspace's.
        LockedError: If another writer is still there after `options.timeout`.
    """
    if options.recognizer is not None and not options.recognizer.is_of(workspace):
        raise UsageError("the recognizer is not of this workspace", "Open it: Recognizer.open(workspace)")
    with workspace.transaction(command, options.timeout, dry_run=options.dry_run) as tx:
        before = _model_before(workspace.snapshot(tx.commit.id or None), options.recognizer)
        after = before
        select = tx.commit.info.select or workspace.recipe.select
        held = held_images(tx)
        images = score_images(tx, select, held)
        done = edit(tx)
        effect = Effect()
        if done.touched:
            _embed(before, tx, done, options)
            try:
                update(tx, select, images, touched=set(done.touched), held=held)
            except MissingStepError:  # images or texts came in that nothing embedded yet
                _embed_rest(before, tx, options)
                update(tx, select, images, touched=set(done.touched), held=held)
            if done.images_changed:
                _update_stats(tx, done.touched, before.saved.unit_correlation)
            merged = before.known.merged if done.merged is None else done.merged
            tx.note(merged=merged)
            after = Model.open(tx, before=before).with_known(merged=merged)  # tx's record lacks what it notes
            effect, offsets = measure(before, after, done.touched)
            tx.note(offsets=offsets)
            after = replace(after, offsets=offsets)
        classes = _states(tx, after, done.touched.union(done.shown))
        report = ChangeReport(
            command=command,
            dry_run=options.dry_run,
            notes=done.notes,
            classes=classes,
            effect=effect,
            before=tx.commit.id,
        )
        report.notes.extend(_of_added(after, classes, effect))
        if done.images_changed:
            report.notes.extend(_of_linear_classifier(after, classes))
        if done.images is not None:
            report.notes.extend(_copies_of_others(tx, done.images))
            report.notes.extend(_misclassified(tx, after, usable(done.images)))
        if not options.dry_run:
            _tidy(tx)
    if tx.result_commit == tx.commit:
        return report if options.dry_run else replace(report, changed=False)
    if options.recognizer is not None:
        made = workspace.snapshot(tx.result_commit.id)
        model = Model.open(made, before=before) if after is before else after.committed(made)
        options.recognizer.adopt(model)
    return report


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


def usable(images: pa.Table) -> pa.Table:
    """Return the rows of `images` that can be read."""
    return images.filter(pc.is_null(images["problem"]))


def _states(tx: Transaction, model: Model, class_ids: set[int]) -> list[AddedClass]:
    """Return the current state of those of the classes that still exist."""
    table = tx.class_table()
    bank = model.bank
    shown = sorted(class_ids.intersection(table.ids))
    if not shown:
        return []
    names = table.names
    near = rivals(model, shown)
    where = one_of("class_id", shown)
    rows = tx.table("sentences", ["class_id", "source"], where)
    sentences = Counter(rows["class_id"].to_pylist())
    own = rows.filter(pc.invert(pc.is_in(rows["source"], pa.array(FROM_NAME))))
    kinds = dict.fromkeys(sentences, "name") | dict.fromkeys(own["class_id"].to_pylist(), "own")
    good = f"split = 'train' AND problem IS NULL AND {where}"
    images = Counter(tx.table("images", ["class_id"], good)["class_id"].to_pylist())
    anchors = dict(zip(bank.class_ids.tolist(), bank.offsets.diff().tolist(), strict=True))
    visual = model.known.visual_sides()
    return [
        AddedClass(
            name=names[i],
            class_id=i,
            sentences=sentences[i],
            anchors=anchors.get(i, 0),
            images=images[i],
            rivals=[names[r] for r in near[i].class_ids],
            rivals_by=near[i].by,
            visual=visual.get(i, "none"),
            text="none" if model.saved.texts_are_mute else kinds.get(i, "none"),
        )
        for i in shown
    ]


def _of_linear_classifier(model: Model, classes: Sequence[AddedClass]) -> list[str]:
    """Say which classes the linear classifier knows as they were when it was trained, if it counts."""
    parts = model.saved.parts
    kept = [repr(one.name) for one in classes if one.visual == "trained"]
    if not kept or (parts is not None and not parts.weights.image):
        return []
    return [
        f"The linear classifier knows {', '.join(kept)} by what it was trained on; all else takes the change into"
        " account. To train it again: vlltr refit"
    ]


def _of_added(model: Model, classes: Sequence[AddedClass], effect: Effect) -> list[str]:
    """Say what some classes that are added ones take from the others, and how certain that is."""
    notes = list[str]()
    bare = set(model.class_ids[model.known.text_only].tolist())
    if bare.intersection(one.class_id for one in classes):
        notes.append(_MUTE if model.saved.texts_are_mute else _ATTRACTS)
    notes += [
        f"{name!r} takes {plural(number, 'held-out image')} from existing classes, most from {owner!r}."
        for name, number, owner in effect.takes[:_RIVALS]
    ]
    added = set(model.class_ids[~model.trained].tolist())
    if effect.certainty and added.intersection(one.class_id for one in classes):
        notes.append(effect.certainty)
    untrained = Counter(model.known.visual_sides().values())["images"]
    if untrained >= _SEVERAL and any(one.visual == "images" for one in classes):
        notes.append(
            f"The head was not trained on {plural(untrained, 'class', 'classes')} that have images. To train on"
            " them: vlltr refit"
        )
    return notes


def _copies_of_others(tx: Transaction, images: pa.Table) -> list[str]:
    """Say how many of some new images are exact duplicates of images in another class."""
    came = set(zip(images["content_hash"].to_pylist(), images["class_id"].to_pylist(), strict=True))
    contents = one_of("content_hash", [content for content, _ in came if content is not None])
    there = tx.table("images", ["content_hash", "class_id"], f"{contents} AND class_id IS NOT NULL")
    owners = defaultdict[str, set[int]](set)
    for content, class_id in zip(
        there["content_hash"].to_pylist(), there["class_id"].to_pylist(), strict=True
    ):
        owners[content].add(class_id)
    found = sorted(one for content, class_id in came for one in owners[content] - {class_id})
    if not found:
        return []
    names = tx.class_table().names
    others = Counter(names[one] for one in found)
    return [
        f"Exact duplicates of images in another class: {_listed(others)}. Their labels contradict each other."
    ]


def _listed(classes: Counter[str]) -> str:
    """List the most frequent classes with their counts."""
    listed = ", ".join(f"{name!r} {count}" for name, count in classes.most_common(_RIVALS))
    return f"{listed} and others" if len(classes) > _RIVALS else listed


def _misclassified(tx: Transaction, model: Model, images: pa.Table) -> list[str]:
    """Say how many of some new images are misclassified, although the model was updated with them."""
    if not images.num_rows:
        return []
    features = loading.image_vectors_of(tx, images["image_id"].to_pylist())
    best = model.score(features, "exhaustive")[0].probabilities.argmax(1)
    pairs = zip(model.class_ids[best].tolist(), images["class_id"].to_pylist(), strict=True)
    names = tx.class_table().names
    others = Counter(names[found] for found, owner in pairs if found != owner)
    if not others:
        return []
    advice = "" if 2 * others.total() > images.num_rows else " They may be of these classes."
    wrong = (
        f"{others.total()} of {plural(images.num_rows, 'new image')} {'is' if others.total() == 1 else 'are'}"
    )
    updated = "still misclassified, although the model was updated with them"
    return [f"{wrong} {updated}: {_listed(others)}.{advice}"]


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
