"""List classes, or show one (`vlltr classes list` and `show`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vlltr_index.errors import MissingStepError
from vlltr_index.store.tables import one_of
from vlltr_index.store.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from vlltr_index.classes.report import Rivals
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace


@dataclass(frozen=True)
class ClassRow:
    """One class of a list."""

    class_id: int
    name: str
    origin: str
    images: int
    sentences: int
    parent: str | None = None


@dataclass(frozen=True)
class AnchorRow:
    """One sentence of a class: its rank among the anchors (None if it is not one) and its selection loss."""

    rank: int | None
    loss: float | None  # None where it has not been scored
    text: str
    source: str
    sentence_id: str


@dataclass(frozen=True)
class ImageRow:
    """One image of a class; `problem` says why it cannot be used."""

    image_id: str
    uri: str
    split: str
    problem: str | None


@dataclass(frozen=True)
class ClassDetail:
    """One class with its anchors, best first.

    `visual` says how its images are used: the head was trained on them, they were added later, or there are none.
    `rivals` are the classes nearest to it by its images, or by its text if it has none, as `rivals_by` says; `merged`
    the names of classes merged into it.
    If `mute`, texts have no weight in the head.
    """

    class_id: int
    name: str
    origin: str
    aliases: list[str]
    images: int
    sentences: int
    anchors: list[AnchorRow]
    others: list[AnchorRow] = field(default_factory=list)  # sentences that are no anchors, if asked for
    pictures: list[ImageRow] = field(default_factory=list)
    visual: str = "none"
    rivals: list[str] = field(default_factory=list)
    rivals_by: Literal["images", "text"] = "text"
    merged: list[str] = field(default_factory=list)
    mute: bool = False


def list_classes(workspace: Workspace) -> list[ClassRow]:
    """List the classes in the order of their ids, without loading torch."""
    snapshot = workspace.snapshot()
    tree = load_taxonomy(snapshot)
    classes = snapshot.table("classes").sort_by("class_id").to_pylist()
    usable = "split = 'train' AND problem IS NULL"
    pictures = Counter(snapshot.table("images", ["class_id"], usable)["class_id"].to_pylist())
    sentences = Counter(snapshot.table("sentences", ["class_id"])["class_id"].to_pylist())
    return [
        ClassRow(
            class_id=c["class_id"],
            name=c["name"],
            origin=c["origin"],
            images=pictures[c["class_id"]],
            sentences=sentences[c["class_id"]],
            parent=tree[c["name"]].parent if c["name"] in tree else None,
        )
        for c in classes
        if c["retired_at"] is None
    ]


def show_class(workspace: Workspace, name: str, every_sentence: bool = False) -> ClassDetail:
    """Look up a class by name or alias; with `every_sentence`, include sentences that are not anchors.

    Raises:
        UnknownClassError: If there is none of that name; the message lists close ones.
    """
    snapshot = workspace.snapshot()
    class_id = snapshot.class_table().lookup(name)
    row = snapshot.table("classes", where=f"class_id = {class_id}").to_pylist()[0]
    anchors, others = _sentences(snapshot, class_id)
    columns = ["image_id", "uri", "split", "problem"]
    found = snapshot.table("images", columns, f"class_id = {class_id}").to_pylist()
    pictures = [ImageRow(**image) for image in found]
    visual, near, mute = _standing(snapshot, class_id)
    names = snapshot.class_table().names
    merged = snapshot.commit.info.merged
    return ClassDetail(
        class_id=class_id,
        name=row["name"],
        origin=row["origin"],
        aliases=list(row["aliases"] or []),
        images=sum(p.split == "train" and p.problem is None for p in pictures),
        sentences=len(anchors) + len(others),
        anchors=anchors,
        others=others if every_sentence else [],
        pictures=sorted(pictures, key=lambda r: (r.split != "train", r.split, r.image_id)),
        visual=visual,
        rivals=[names[i] for i in near.class_ids],
        rivals_by=near.by,
        merged=[names[gone] for gone, kept in merged.items() if kept == class_id and gone in names],
        mute=mute,
    )


def _sentences(snapshot: Snapshot, class_id: int) -> tuple[list[AnchorRow], list[AnchorRow]]:
    """Return the anchors by rank, and the other sentences by loss."""
    where = f"class_id = {class_id}"
    texts = {r["sentence_id"]: r for r in snapshot.table("sentences", where=where).to_pylist()}
    rank = {r["sentence_id"]: r["rank"] for r in snapshot.table("anchors", where=where).to_pylist()}
    scores = snapshot.table("sentence_scores", ["sentence_id", "loss"], one_of("sentence_id", texts))
    loss = dict(zip(scores["sentence_id"].to_pylist(), scores["loss"].to_pylist(), strict=True))
    rows = [
        AnchorRow(rank=rank.get(i), loss=loss.get(i), text=r["text"], source=r["source"], sentence_id=i)
        for i, r in texts.items()
    ]
    rows.sort(key=lambda r: (r.rank is None, r.rank or 0, r.loss is None, r.loss or 0.0, r.sentence_id))
    return [r for r in rows if r.rank is not None], [r for r in rows if r.rank is None]


def _standing(snapshot: Snapshot, class_id: int) -> tuple[str, Rivals, bool]:
    """What the class's images do, its nearest rivals, and whether texts have no weight."""
    from vlltr_index.classes.report import Rivals, rivals
    from vlltr_index.recognition.model import Model

    try:
        model = Model.open(snapshot)
    except MissingStepError:  # no head yet
        return "none", Rivals("text", []), False
    near = rivals(model, [class_id])[class_id]
    visual = model.known.visual_sides().get(class_id, "none")
    return visual, near, model.saved.texts_are_mute
