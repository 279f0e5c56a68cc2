"""Changing classes: removed, renamed and merged, and given more sentences and images, or fewer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.classes.change import Edit, How, change, classes_of, new_image_rows
from vlltr_index.classes.reports import ChangeReport, shortly
from vlltr_index.data.text import class_prompts, clean_name, normalise_text, sentence_id, text_hash
from vlltr_index.data.text_readers import class_sentences
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.ingestion import sentence_rows
from vlltr_index.store.tables import one_of
from vlltr_index.store.taxonomy import merge_nodes, rename_node
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = [
    "add_images",
    "add_sentences",
    "merge_classes",
    "remove_classes",
    "remove_images",
    "remove_sentences",
    "rename_class",
]

_EXAMPLES = 5
_LEAST = 6  # characters of an id that may stand for it


def remove_classes(
    workspace: Workspace,
    names: Sequence[str],
    **how: Unpack[How],
) -> ChangeReport:
    """Retire classes: their sentences, images (of all splits) and statistics go, trained rows are masked.

    Their numbers are not used again; a class of the same name can be added again. For the arguments see
    `change.How`.

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
    return change(workspace, command, write, **how)


def _retire(tx: Transaction, class_id: int, name: str) -> str:
    where = f"class_id = {class_id}"
    sentences, images = tx.delete("sentences", where), tx.delete("images", where)
    _change_class(tx, class_id, retired_at=_now())
    content = f"{many(sentences, 'sentence')} and {many(images, 'image')}"
    return f"Removed {name!r} (class {class_id}) with {content}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def rename_class(
    workspace: Workspace,
    old: str,
    new: str,
    **how: Unpack[How],
) -> ChangeReport:
    """Give a class another name: it keeps its number, images and free texts; its prompts are made anew.

    For the arguments see `change.How`.

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
        _change_class(tx, class_id, name=name, aliases=aliases)
        taken_place = rename_node(tx, before, name)
        made, gone, kept = _renamed_prompts(workspace, tx, class_id, before, name)
        notes = [f"Renamed {before!r} to {name!r} (class {class_id})."]
        notes.append(
            f"{gone} sentences made from the old name gave way to {made.num_rows} made from the new one;"
            f" {kept} other sentences stay as they are."
            if gone
            else f"No sentence was made from the old name; all {kept} stay as they are."
        )
        if taken_place:
            notes.append(f"The tree of classes has a {name!r} already: the class is that now.")
        touched = {class_id} if gone or made.num_rows else set[int]()
        return Edit(touched, [class_id], made, notes=notes)

    return change(workspace, f"classes rename {old!r} {name!r}", write, **how)


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
    **how: Unpack[How],
) -> ChangeReport:
    """Make two classes one: sentences and images of `other` go to `into`, its name becomes an alias.

    Trained visual rows stay, their probabilities add up. For the arguments see `change.How`.

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
        _change_class(tx, kept, aliases=_distinct(aliases, table.names[kept]))
        _change_class(tx, gone, retired_at=_now(), aliases=[])
        merge_nodes(tx, table.names[kept], table.names[gone])
        merged = {i: kept if to == gone else to for i, to in tx.commit.info.merged.items()} | {gone: kept}
        note = (
            f"Merged {table.names[gone]!r} (class {gone}) into {table.names[kept]!r} (class {kept}):"
            f" {many(moved, 'sentence')} and {many(images.num_rows, 'image')} went over;"
            " the name is an alias now."
        )
        return Edit({kept, gone}, [kept], images_changed={kept, gone}, merged=merged, notes=[note])

    return change(workspace, f"classes merge {into!r} {other!r}", write, **how)


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


def add_sentences(
    workspace: Workspace,
    name: str,
    sentences: Sequence[str] = (),
    text: Path | None = None,
    **how: Unpack[How],
) -> ChangeReport:
    """Give a class more sentences, and select its anchors again.

    Args:
        workspace: With a trained head.
        name: The class.
        sentences: Each taken as one sentence.
        text: A file of text, which is split.
        how: See `change.How`.

    Raises:
        UnknownClassError: If there is no such class.
        InputError: If there is no sentence in what was given.
    """
    records = [SentenceRecord(name, one, "given") for one in sentences if normalise_text(one)]
    if text is not None:
        records += class_sentences(text, name)
    if not records:
        raise InputError("no sentence was given", "Give --sentence or --text FILE.")

    def write(tx: Transaction) -> Edit:
        class_id = tx.class_table().lookup(name)
        where = f"class_id = {class_id}"
        there = set(tx.table("sentences", ["sentence_id"], where)["sentence_id"].to_pylist())
        rows = sentence_rows({class_id: records}, known=there.__contains__)
        same = f"; {len(records) - rows.num_rows} there before" if rows.num_rows < len(records) else ""
        notes = [f"{many(rows.num_rows, 'sentence')} added{same}."]
        if not rows.num_rows:
            return Edit(shown=[class_id], notes=notes)
        tx.upsert("sentences", rows)
        return Edit({class_id}, [class_id], rows, notes=notes)

    return change(workspace, f"sentences add {name!r}", write, **how)


def remove_sentences(
    workspace: Workspace,
    name: str,
    ids: Sequence[str] = (),
    matching: str | None = None,
    **how: Unpack[How],
) -> ChangeReport:
    """Take sentences from a class, and select its anchors again.

    Args:
        workspace: With a trained head.
        name: The class.
        ids: Sentence ids, or their first six or more characters.
        matching: All sentences that hold this text, in any case.
        how: See `change.How`.

    Raises:
        UsageError: If neither ids nor a text are given.
        UnknownClassError: If there is no such class.
        InputError: If no sentence fits, or none would be left.
    """
    wanted = normalise_text(matching).casefold() if matching is not None else None
    if not ids and not wanted:
        raise UsageError("which sentences?", "Give their ids, or --matching TEXT.")

    def write(tx: Transaction) -> Edit:
        class_id = tx.class_table().lookup(name)
        look = f"See them: vlltr classes show {tx.class_table().names[class_id]!r} --all"
        rows = tx.table("sentences", ["sentence_id", "text"], f"class_id = {class_id}")
        there = dict(zip(rows["sentence_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        gone = _chosen_ids(ids, list(there), f"sentence of class {name!r} with the id", look)
        if wanted:
            fits = [i for i, text in there.items() if wanted in text.casefold()]
            if not fits:
                raise InputError(f"no sentence of class {name!r} holds {matching!r}", look)
            gone = sorted({*gone, *fits})
        if len(gone) == len(there):
            raise InputError(
                f"class {name!r} would have no sentence left, and could not be recognised by text",
                "Add others first (vlltr sentences add), or remove the class: vlltr classes remove",
            )
        tx.delete("sentences", one_of("sentence_id", gone))
        shown = [f"  {there[i]}" for i in gone[:_EXAMPLES]]
        more = [f"  and {len(gone) - _EXAMPLES} more"] if len(gone) > _EXAMPLES else []
        return Edit({class_id}, [class_id], notes=[f"{many(len(gone), 'sentence')} removed:", *shown, *more])

    return change(workspace, f"sentences remove {name!r}", write, **how)


def add_images(
    workspace: Workspace,
    name: str,
    paths: Sequence[Path],
    **how: Unpack[How],
) -> ChangeReport:
    """Give a class more training images: all anchors are selected again, and what is known of its images is counted.

    Args:
        workspace: With a trained head.
        name: The class.
        paths: Image files, or folders of them.
        how: See `change.How`.

    Raises:
        UnknownClassError: If there is no such class.
        InputError: If none of the images can be read, or one is another class's already.
    """

    def write(tx: Transaction) -> Edit:
        class_id = tx.class_table().lookup(name)
        skipped: list[str] = []
        rows = new_image_rows(tx, {class_id: paths}, {class_id: tx.class_table().names[class_id]}, skipped)
        good = rows.filter(pc.is_null(rows["problem"]))
        if not good.num_rows:
            example = f" ({skipped[0]})" if skipped else ""
            raise InputError(f"no readable image among what was given{example}", "Give other files.")
        there = tx.count("images", one_of("image_id", good["image_id"].to_pylist()))
        tx.upsert("images", rows)
        notes = [
            many(good.num_rows - there, "image") + " added" + (f"; {there} there before." if there else ".")
        ]
        notes += [f"Left out: {what}" for what in skipped]
        if good.num_rows == there:
            return Edit(shown=[class_id], notes=notes)
        return Edit({class_id}, [class_id], images=rows, images_changed={class_id}, notes=notes)

    report = change(workspace, f"images add {name!r}", write, **how)
    return _with_trained_note(report)


def remove_images(
    workspace: Workspace,
    ids: Sequence[str],
    **how: Unpack[How],
) -> ChangeReport:
    """Take images away: all anchors are selected again, and what is known of their classes' images is counted anew.

    A class that loses its last training image is known by text alone, if it was not trained.

    Args:
        workspace: With a trained head.
        ids: Image ids, or their first six or more characters.
        how: See `change.How`.

    Raises:
        UsageError: If no id is given.
        InputError: If there is no such image, or no image to score sentences against would be left.
    """
    if not ids:
        raise UsageError("which images?", "Give their ids; `vlltr classes show NAME` lists them.")

    def write(tx: Transaction) -> Edit:
        there = tx.table("images", ["image_id"])["image_id"].to_pylist()
        gone = _chosen_ids(ids, there, "image with the id", "See them: vlltr classes show NAME")
        where = one_of("image_id", gone)
        rows = tx.table("images", ["class_id", "split"], where)
        tx.delete("images", where)
        owners = {i for i in classes_of(rows.filter(pc.equal(rows["split"], "train"))) if i is not None}
        return Edit(
            owners, sorted(owners), images_changed=owners, notes=[f"{many(len(gone), 'image')} removed."]
        )

    command = f"images remove {' '.join(ids[:3])}" + (" ..." if len(ids) > 3 else "")
    report = change(workspace, command, write, **how)
    return _with_trained_note(report)


def _with_trained_note(report: ChangeReport) -> ChangeReport:
    kept = [one.name for one in report.classes if one.visual == "trained"]
    if kept and report.changed:
        report.notes.append(
            f"The visual row of {', '.join(map(repr, kept))} is a trained one and stays as it is;"
            " to train all rows again: vlltr refit"
        )
    return report


def _change_class(tx: Transaction, class_id: int, **fields: Any) -> None:
    """Write some fields of a class anew."""
    row = tx.table("classes", where=f"class_id = {class_id}").to_pylist()[0]
    tx.upsert("classes", pa.Table.from_pylist([{**row, **fields}], schema=CLASSES))


def _chosen_ids(given: Sequence[str], there: Sequence[str], what: str, where: str) -> list[str]:
    """Ids as they are stored, for ids or their first characters (six at least).

    Raises:
        InputError: If one is not there, or could be several.
    """
    chosen: list[str] = []
    for key in given:
        fits = [i for i in there if i == key or (len(key) >= _LEAST and i.startswith(key.lower()))]
        if len(fits) != 1:
            why = "there is none" if not fits else f"{len(fits)} begin so"
            raise InputError(f"no {what} {key!r} can be told: {why}", where)
        chosen.append(fits[0])
    return list(dict.fromkeys(chosen))
