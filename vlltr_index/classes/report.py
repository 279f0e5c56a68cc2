"""Report of a change of classes: their state after it, the classes nearest to them, and what there is to say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional as F

from vlltr_index.classes.effect import Effect
from vlltr_index.embedding import loading
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.tables import FROM_NAME
from vlltr_index.store.ingestion import usable
from vlltr_index.store.tables import one_of
from vlltr_index.tensors import class_positions
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.store.transaction import Transaction

_MUTE = "Text-only classes cannot be recognised: the texts do not predict class means. Add images: vlltr images add"
_ATTRACTS = "A text-only class may attract unknown images, too."
_SEVERAL = 3  # added classes from which a refit is recommended
_RIVALS = 3


@dataclass(frozen=True)
class ClassState:
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
    classes: list[ClassState]  # state of the classes after the change
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


def states(tx: Transaction, model: Model, class_ids: set[int]) -> list[ClassState]:
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
        ClassState(
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


def _of_linear_classifier(model: Model, classes: Sequence[ClassState]) -> list[str]:
    """Say which classes the linear classifier knows as they were when it was trained, if it counts."""
    parts = model.saved.parts
    kept = [repr(one.name) for one in classes if one.visual == "trained"]
    if not kept or (parts is not None and not parts.weights.image):
        return []
    return [
        f"The linear classifier knows {', '.join(kept)} by what it was trained on; all else takes the change into"
        " account. To train it again: vlltr refit"
    ]


def _of_added(model: Model, classes: Sequence[ClassState], effect: Effect) -> list[str]:
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


def notes_on(
    tx: Transaction,
    model: Model,
    classes: Sequence[ClassState],
    effect: Effect,
    images: pa.Table | None,
    images_changed: bool,
) -> list[str]:
    """Say what a change means.

    Args:
        tx: The change.
        model: The model after it.
        classes: The classes that it touched, as they are now.
        effect: Its effect on the others.
        images: New rows of `images`.
        images_changed: Whether images of the classes were added or removed.
    """
    notes = _of_added(model, classes, effect)
    if images_changed:
        notes += _of_linear_classifier(model, classes)
    if images is not None:
        notes += _copies_of_others(tx, images)
        notes += _misclassified(tx, model, usable(images))
    return notes
