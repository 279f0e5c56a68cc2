"""What a person decides of pictures: their classes, among them new ones, and which of them go; in one commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vlltr_index.classes.change import (
    USUAL,
    ChangeOptions,
    Edit,
    new_image_rows,
    open_change,
)
from vlltr_index.classes.editing import (
    NewClass,
    checked_classes,
    delete_images,
    write_classes,
)
from vlltr_index.classes.report import ChangeReport
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.schemas.tables import IMAGES, REVIEWED
from vlltr_index.store.ingestion import probe_all, usable
from vlltr_index.store.tables import one_of
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_ROWS = 256  # rows of images, which may hold their bytes, that are written at once


@dataclass(frozen=True)
class Decisions:
    """What a person decided.

    Attributes:
        labels: Names of classes by the ids of pictures; a picture's own class confirms it.
        added: Names of classes by the paths of pictures that the workspace does not have.
        removed: Ids of pictures that go.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[Path, str] = field(default_factory=dict)
    removed: Sequence[str] = ()


@dataclass(frozen=True)
class Decided:
    """What became of decisions.

    Attributes:
        moved: By the ids of pictures whose class changed, the class that they had, if any, and the one that they have.
        confirmed: How many pictures were of their class already.
        classes: Names of new classes.
        skipped: Pictures that could not be added, with the reason.
    """

    moved: dict[str, tuple[str | None, str]]
    confirmed: int
    classes: list[str]
    skipped: list[str]


def decide(
    workspace: Workspace, command: str, decisions: Decisions, options: ChangeOptions = USUAL
) -> ChangeReport:
    """Write decisions in one commit; classes of unknown names are made, known by their images.

    Args:
        workspace: The workspace; where a head is trained, anchors and statistics follow.
        command: The command's text for the commit.
        decisions: What was decided.
        options: See there.

    Raises:
        InputError: A name is empty, or two new ones differ by case alone.
    """
    with open_change(workspace, command, options, needs_head=False) as change:
        change.finish(edit_of(change.tx, decisions))
    return change.report


def edit_of(tx: Transaction, decisions: Decisions) -> Edit:
    """Write decisions, and say in the notes what became of them."""
    found, done = write_decisions(tx, decisions)
    counts = [
        (len(found.moved), "picture relabelled", "pictures relabelled"),
        (found.confirmed, "label confirmed", "labels confirmed"),
        (len(decisions.added) - len(found.skipped), "picture added", "pictures added"),
        (len(set(decisions.removed)), "picture removed", "pictures removed"),
        (len(found.classes), "class made", "classes made"),
    ]
    said = ", ".join(plural(count, one, several) for count, one, several in counts if count)
    done.notes = [f"{said or 'Nothing was changed'}.", *(f"Left out: {what}" for what in found.skipped)]
    return done


def write_decisions(tx: Transaction, decisions: Decisions) -> tuple[Decided, Edit]:
    """Write the rows of decisions; classes of unknown names are made."""
    skipped = _unusable(decisions.added)
    new = {path: name for path, name in decisions.added.items() if path not in skipped}
    ids, fresh, texts = _classes(tx, dict.fromkeys([*decisions.labels.values(), *new.values()]))
    names = tx.class_table().names
    stored = tx.table("images", ["image_id", "class_id"]).to_pydict()
    owner = dict(zip(stored["image_id"], stored["class_id"], strict=True))
    wanted = {image_id: ids[name] for image_id, name in decisions.labels.items()}
    moved = {image_id: i for image_id, i in wanted.items() if owner[image_id] != i}
    of_class = defaultdict[int, list[Path]](list)
    for path, name in new.items():
        of_class[ids[name]].append(path)
    added = new_image_rows(tx, of_class, names, [])
    lacking = _move(tx, moved)
    tx.upsert("images", added)
    good = usable(added)
    said = wanted | dict(zip(good["image_id"].to_pylist(), good["class_id"].to_pylist(), strict=True))
    tx.upsert(
        "reviewed", pa.table({"image_id": list(said), "class_id": list(said.values())}, schema=REVIEWED)
    )
    left = delete_images(tx, decisions.removed) if decisions.removed else set[int]()
    before = {owner[image_id] for image_id in moved} - {None}
    touched = {*moved.values(), *before, *fresh, *good["class_id"].to_pylist(), *left}
    edit = Edit(
        touched,
        sentences=texts,
        images=pa.concat_tables([lacking, good]),
        images_changed=bool(moved or left or len(good)),
    )
    return (
        Decided(
            {key: (None if owner[key] is None else names[owner[key]], names[i]) for key, i in moved.items()},
            len(wanted) - len(moved),
            [names[i] for i in fresh],
            [f"{path}: {why}" for path, why in skipped.items()],
        ),
        edit,
    )


def _unusable(added: Mapping[Path, str]) -> dict[Path, str]:
    """Return, for each new picture that cannot be used, the reason: no class is made for its sake."""
    probes = dict(zip(added, probe_all([ImageRecord(str(p), str(p), None, "") for p in added]), strict=True))
    named = defaultdict[str | None, set[str]](set)
    for path, found in probes.items():
        named[found.content_hash].add(added[path])
    why = {path: found.problem for path, found in probes.items() if found.problem is not None}
    disputed = (
        path for path, found in probes.items() if path not in why and len(named[found.content_hash]) > 1
    )
    return why | dict.fromkeys(disputed, "two classes for one picture, at several paths")


def _classes(tx: Transaction, wanted: Iterable[str]) -> tuple[dict[str, int], list[int], pa.Table | None]:
    """Return the class of each name, the ids of those that were made, and the rows of their sentences."""
    table = tx.class_table()
    named = {name: table.find(name) for name in wanted}
    lacking = [name for name, class_id in named.items() if class_id is None]
    ids = {name: class_id for name, class_id in named.items() if class_id is not None}
    if not lacking:
        return ids, [], None
    made = checked_classes(tx, list(map(NewClass, lacking)))
    fresh = dict(enumerate(made, tx.next_id("classes", len(made))))
    texts = write_classes(tx, fresh, [])
    return ids | dict(zip(lacking, fresh, strict=True)), list(fresh), texts


def _move(tx: Transaction, moved: Mapping[str, int]) -> pa.Table:
    """Write the classes of images by their ids, and return the rows of those that may lack a vector."""
    lacking = [IMAGES.empty_table()]
    keys = sorted(moved)
    for start in range(0, len(keys), _ROWS):
        rows = tx.table("images", where=one_of("image_id", keys[start : start + _ROWS])).to_pylist()
        unlabelled = [row for row in rows if row["class_id"] is None and row["split"] == "train"]
        for row in rows:
            row["class_id"] = moved[row["image_id"]]
        tx.upsert("images", pa.Table.from_pylist(rows, schema=IMAGES))
        lacking.append(pa.Table.from_pylist(unlabelled, schema=IMAGES))
    return usable(pa.concat_tables(lacking))
