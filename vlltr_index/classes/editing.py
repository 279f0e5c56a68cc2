"""Removing, renaming and merging classes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlltr_index.classes.change import Edit, Options, change
from vlltr_index.classes.reports import ChangeReport, shortly
from vlltr_index.classes.rows import change_class
from vlltr_index.data.prompts import class_prompts
from vlltr_index.data.text import clean_name, sentence_id, text_hash
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.store.ingestion import sentence_rows
from vlltr_index.store.tables import one_of
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.classes.session import Session
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = ["merge_classes", "remove_classes", "rename_class"]


def remove_classes(
    workspace: Workspace,
    names: Sequence[str],
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Retire classes: their sentences, images (of all splits) and statistics go, trained rows are masked.

    Their numbers are not used again; a class of the same name can be added again. For the arguments see
    `change.Options`.

    Raises:
        UnknownClassError: If there is no class of one of the names.
        InputError: If no class, or no image to score sentences against, would be left.
    """

    def write(tx: Transaction) -> Edit:
        table = tx.class_table()
        ids = list(dict.fromkeys(table.lookup(name) for name in names))
        if len(ids) == len(table):
            raise InputError("no class would be left", "Make a new workspace instead: vlltr init DIR")
        notes = [_retire(tx, i, table.names[i]) for i in ids]
        return Edit(set(ids), [], images_changed=set(ids), notes=notes)

    command = f"classes remove {shortly(names)}"
    return change(workspace, command, write, Options(dry_run, progress, session))


def _retire(tx: Transaction, class_id: int, name: str) -> str:
    where = f"class_id = {class_id}"
    sentences, images = tx.delete("sentences", where), tx.delete("images", where)
    change_class(tx, class_id, retired_at=_now())
    content = f"{many(sentences, 'sentence')} and {many(images, 'image')}"
    return f"Removed {name!r} (class {class_id}) with {content}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def rename_class(
    workspace: Workspace,
    old: str,
    new: str,
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Give a class another name: it keeps its number, images and free texts; its prompts are made anew.

    For the arguments see `change.Options`.

    Raises:
        UnknownClassError: If there is no class `old`.
        InputError: If `new` is another class's name or alias, or no name.
    """
    name = clean_name(new, "the new name")

    def write(tx: Transaction) -> Edit:
        table = tx.class_table()
        class_id = table.lookup(old)
        before, taken = table.names[class_id], table.find(name)
        if taken is not None and taken != class_id:
            raise InputError(
                f"there is a class {name!r} already (class {taken})",
                f"To make them one: vlltr classes merge {table.names[taken]!r} {before!r}",
            )
        if before == name:
            return Edit(shown=[class_id])
        aliases = [a for a in table.aliases.get(class_id, ()) if a.casefold() != name.casefold()]
        change_class(tx, class_id, name=name, aliases=aliases)
        made, gone, kept = _renamed_prompts(workspace, tx, class_id, before, name)
        notes = [f"Renamed {before!r} to {name!r} (class {class_id})."]
        notes.append(
            f"{gone} sentences made from the old name gave way to {made.num_rows} made from the new one;"
            f" {kept} other sentences stay as they are."
            if gone
            else f"No sentence was made from the old name; all {kept} stay as they are."
        )
        touched = {class_id} if gone or made.num_rows else set[int]()
        return Edit(touched, [class_id], made, notes=notes)

    return change(workspace, f"classes rename {old!r} {name!r}", write, Options(dry_run, progress, session))


def _renamed_prompts(
    workspace: Workspace, tx: Transaction, class_id: int, old: str, new: str
) -> tuple[pa.Table, int, int]:
    """Replace the sentences made from the old name; returns the new rows, how many went, and how many stay."""
    rows = tx.table("sentences", where=f"class_id = {class_id}").to_pylist()
    prompts = {text_hash(record.text) for record in class_prompts(old, workspace.recipe.prompts)}
    gone = [
        row
        for row in rows
        if (row["source"] == "prompt" and row["text_hash"] in prompts)
        or (row["source"] == "name" and row["text_hash"] == text_hash(old))
    ]
    records: list[SentenceRecord] = []
    if any(row["source"] == "prompt" for row in gone):
        records += class_prompts(new, workspace.recipe.prompts)
    if any(row["source"] == "name" for row in gone):
        records.append(SentenceRecord(new, new, "name"))
    stay = {row["sentence_id"] for row in rows} - {row["sentence_id"] for row in gone}
    if gone:
        tx.delete("sentences", one_of("sentence_id", [row["sentence_id"] for row in gone]))
    made = sentence_rows({class_id: records}, known=stay.__contains__)
    if made.num_rows:
        tx.upsert("sentences", made)
    return made, len(gone), len(stay)


def merge_classes(
    workspace: Workspace,
    into: str,
    other: str,
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Make two classes one: sentences and images of `other` go to `into`, its name becomes an alias.

    Trained visual rows stay, their probabilities add up. For the arguments see `change.Options`.

    Raises:
        UnknownClassError: If there is no class of one of the names.
        InputError: If both are the same class.
    """

    def write(tx: Transaction) -> Edit:
        table = tx.class_table()
        kept, gone = table.lookup(into), table.lookup(other)
        if kept == gone:
            raise InputError(f"{into!r} and {other!r} are the same class ({table.names[kept]!r})")
        moved = _move_sentences(tx, gone, kept)
        images = tx.table("images", where=f"class_id = {gone}")
        if images.num_rows:
            owner = pa.array([kept] * images.num_rows, pa.int32())
            at = images.column_names.index("class_id")
            tx.upsert("images", images.set_column(at, images.schema.field(at), owner))
        aliases = [*table.aliases.get(kept, ()), table.names[gone], *table.aliases.get(gone, ())]
        change_class(tx, kept, aliases=_distinct(aliases, table.names[kept]))
        change_class(tx, gone, retired_at=_now(), aliases=[])
        merged = {i: kept if to == gone else to for i, to in tx.commit.info.merged.items()} | {gone: kept}
        note = (
            f"Merged {table.names[gone]!r} (class {gone}) into {table.names[kept]!r} (class {kept}):"
            f" {many(moved, 'sentence')} and {many(images.num_rows, 'image')} went over;"
            " the name is an alias now."
        )
        return Edit({kept, gone}, [kept], images_changed={kept, gone}, merged=merged, notes=[note])

    return change(workspace, f"classes merge {into!r} {other!r}", write, Options(dry_run, progress, session))


def _move_sentences(tx: Transaction, gone: int, kept: int) -> int:
    """Give the sentences of one class to another that does not have them; returns how many it did not have."""
    rows: list[dict[str, Any]] = tx.table("sentences", where=f"class_id = {gone}").to_pylist()
    there = set(tx.table("sentences", ["sentence_id"], f"class_id = {kept}")["sentence_id"].to_pylist())
    moved = [{**row, "class_id": kept, "sentence_id": sentence_id(kept, row["text_hash"])} for row in rows]
    moved = [row for row in moved if row["sentence_id"] not in there]
    tx.delete("sentences", f"class_id = {gone}")
    if moved:
        tx.upsert("sentences", pa.Table.from_pylist(moved, schema=tx.schema("sentences")))
    return len(moved)


def _distinct(aliases: Sequence[str], name: str) -> list[str]:
    """`aliases` without repetitions and the name itself, whatever their case."""
    first: dict[str, str] = {}
    for alias in aliases:
        first.setdefault(alias.casefold(), alias)
    first.pop(name.casefold(), None)
    return list(first.values())
