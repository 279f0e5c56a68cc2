"""`vlltr classes list` and `show`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlltr_index.workspace import Workspace

__all__ = ["AnchorRow", "ClassDetail", "ClassRow", "list_classes", "show_class"]


@dataclass(frozen=True)
class ClassRow:
    """One class in a list."""

    class_id: int
    name: str
    origin: str
    images: int
    sentences: int


@dataclass(frozen=True)
class AnchorRow:
    """One anchor sentence of a class, with its selection loss."""

    rank: int
    loss: float
    text: str
    source: str


@dataclass(frozen=True)
class ClassDetail:
    """A class with its anchors, best first."""

    class_id: int
    name: str
    origin: str
    aliases: list[str]
    images: int
    sentences: int
    anchors: list[AnchorRow]


def list_classes(workspace: Workspace) -> list[ClassRow]:
    """The classes in the order of their ids; no torch is loaded."""
    snapshot = workspace.snapshot()
    classes = snapshot.table("classes").sort_by("class_id").to_pylist()
    images = snapshot.table("images", columns=["class_id", "split", "problem"]).to_pylist()
    pictures = Counter(
        row["class_id"] for row in images if row["split"] == "train" and row["problem"] is None
    )
    sentences = Counter(snapshot.table("sentences", columns=["class_id"])["class_id"].to_pylist())
    return [
        ClassRow(c["class_id"], c["name"], c["origin"], pictures[c["class_id"]], sentences[c["class_id"]])
        for c in classes
        if c["retired_at"] is None
    ]


def show_class(workspace: Workspace, name: str) -> ClassDetail:
    """One class by name or alias.

    Raises:
        UnknownClassError: If there is none of that name; the message lists close ones.
    """
    snapshot = workspace.snapshot()
    class_id = snapshot.class_table().lookup(name)
    where = f"class_id = {class_id}"
    row = next(r for r in list_classes(workspace) if r.class_id == class_id)
    aliases = snapshot.table("classes", where=where)["aliases"].to_pylist()[0]
    texts = {r["sentence_id"]: r for r in snapshot.table("sentences", where=where).to_pylist()}
    anchors = snapshot.table("anchors", where=where).sort_by("rank").to_pylist()
    scores = snapshot.table("sentence_scores", columns=["sentence_id", "loss"])
    loss = (
        dict(zip(scores["sentence_id"].to_pylist(), scores["loss"].to_pylist(), strict=True))
        if anchors
        else {}
    )
    shown = [
        AnchorRow(
            a["rank"],
            loss[a["sentence_id"]],
            texts[a["sentence_id"]]["text"],
            texts[a["sentence_id"]]["source"],
        )
        for a in anchors
    ]
    return ClassDetail(class_id, row.name, row.origin, list(aliases or []), row.images, row.sentences, shown)
