"""Edit the class list: add, remove, rename and merge classes, and add or remove their sentences and images.

Every function makes one commit; for `options` see `change.ChangeOptions`.
"""

from __future__ import annotations

import logging
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from vlltr_index.classes.change import (
    USUAL,
    ChangeOptions,
    Edit,
    new_image_rows,
    open_change,
)
from vlltr_index.classes.report import ChangeReport
from vlltr_index.data.files import read_json, require
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.labelled import export_in
from vlltr_index.data.text import class_prompts, clean_name, folded, normalise_text, sentence_id
from vlltr_index.data.text_readers import sentences_about
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, SentenceRecord
from vlltr_index.schemas.tables import CLASSES, FROM_NAME
from vlltr_index.store.class_rows import change_class, rename
from vlltr_index.store.ingestion import sentence_rows, usable
from vlltr_index.store.tables import one_of
from vlltr_index.store.taxonomy import merge_nodes
from vlltr_index.wording import plural, preview

if TYPE_CHECKING:
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

_EXAMPLES = 5
_LEAST = 6  # least number of first characters that may stand for an id


@dataclass(frozen=True)
class NewClass:
    """A class to add, with its sentences, images and other names."""

    name: str
    sentences: tuple[str, ...] = ()
    text: Path | None = None  # a file of text about it
    images: tuple[str | Path | tuple[str, bytes], ...] = ()
    """Files, folders, and pairs of name and encoded image, whose bytes the workspace stores."""
    aliases: tuple[str, ...] = ()


class _Entry(BaseModel, extra="forbid"):
    sentences: list[str] = Field(default_factory=list)
    images: list[str] = Field(default_factory=list)
    aliases: list[str] = Field(default_factory=list)


_EXPECTED = (
    'Expected {name: [sentence, ...]} or {name: {"sentences": [...], "images": [...], "aliases": [...]}}.'
)


def read_manifest(path: Path) -> list[NewClass]:
    """Read {name: [sentence, ...]} or {name: {"sentences": [...], "images": [...], "aliases": [...]}}.

    Image paths are relative to the manifest. Of a folder each folder in it that has images is a class.

    Raises:
        InputError: If the file is missing, is not JSON, or an entry is neither; or a folder has no images in folders.
    """
    if path.is_dir():
        return _class_folders(path)
    kind = Annotated[dict[str, list[str] | _Entry], Field(min_length=1)]
    entries: dict[str, list[str] | _Entry] = read_json(require(path), kind, _EXPECTED)
    found = []
    for name, given in entries.items():
        entry = given if isinstance(given, _Entry) else _Entry(sentences=given)
        files = tuple(path.parent / image for image in entry.images)
        found.append(NewClass(name, tuple(entry.sentences), images=files, aliases=tuple(entry.aliases)))
    return found


def _class_folders(folder: Path) -> list[NewClass]:
    """Return a class for each folder in one, known by the images in it."""
    if export_in(folder):
        raise InputError(
            f"{folder} is an export of FiftyOne, not a folder of class folders",
            f"Bring it in: {shlex.join(['vlltr', 'ingest', 'images', str(folder), '--split', 'train'])}",
        )
    root = folder.resolve()
    found = defaultdict[str, dict[Path, None]](dict)
    for item in read_images(folder, "train"):
        if isinstance(item, ImageRecord):
            found[str(item.class_name)][root / item.source.partition("/")[0]] = None
        elif "/" not in item.where.removeprefix(f"{root}/"):  # of those in class folders it is told later
            _log.warning("left out: %s: %s", item.where, item.why)
    return [NewClass(name, images=tuple(folders)) for name, folders in found.items()]


def add_class(
    workspace: Workspace,
    name: str,
    sentences: Sequence[str] = (),
    images: Path | None = None,
    aliases: Sequence[str] = (),
    options: ChangeOptions = USUAL,
) -> ChangeReport:
    """Add one class; see `add_classes`."""
    pictures = () if images is None else (images,)
    return add_classes(
        workspace, [NewClass(name, tuple(sentences), images=pictures, aliases=tuple(aliases))], options
    )


def add_classes(
    workspace: Workspace, wanted: Sequence[NewClass], options: ChangeOptions = USUAL
) -> ChangeReport:
    """Add classes: embed only what is new, score it, select anchors, count its images.

    The index is not rebuilt: the new anchors are searched beside it, exactly.

    Raises:
        InputError: If a name exists, is given twice, or nothing at all is known of a class; or a sentence is too long.
        MissingStepError: If the workspace has no trained head yet.
    """
    command = f"classes add {preview(one.name for one in wanted)}"
    with open_change(workspace, command, options) as change:
        change.finish(_write(change.tx, wanted))
    return replace(change.report, added=True)


def _write(tx: Transaction, wanted: Sequence[NewClass]) -> Edit:
    """Write new classes with their sentences and images."""
    new = dict(enumerate(checked_classes(tx, wanted), tx.next_id("classes", len(wanted))))
    skipped: list[str] = []
    paths = {
        i: [Path(given) if isinstance(given, str) else given for given in one.images]
        for i, one in new.items()
    }
    pictures = new_image_rows(tx, paths, {i: one.name for i, one in new.items()}, skipped)
    seen = set(usable(pictures)["class_id"].to_pylist())
    for class_id, one in new.items():
        told = one.text is not None or any(text.strip() for text in one.sentences)
        if not told and class_id not in seen:
            raise InputError(
                f"nothing is known of class {one.name!r}: no sentence and no readable image"
                + "".join(f"; {why}" for why in skipped[:_EXAMPLES]),
                "Give it a --sentence, a --text file, or --images.",
            )
    texts = write_classes(tx, new, skipped)
    tx.upsert("images", pictures)
    notes = [f"Left out: {what}" for what in skipped]
    return Edit(
        touched=set(new),
        sentences=texts,
        images=pictures,
        images_changed=bool(pictures.num_rows),
        notes=notes,
    )


def write_classes(tx: Transaction, new: Mapping[int, NewClass], skipped: list[str]) -> pa.Table:
    """Write new classes by their ids, and their sentences, whose rows are returned.

    Pieces of text that were left out are appended to `skipped`, with the reason.
    """
    rows = [
        {
            "class_id": i,
            "name": one.name,
            "aliases": list(one.aliases),
            "origin": "added",
            "created_at": _now(),
        }
        for i, one in new.items()
    ]
    tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))
    texts = sentence_rows({i: _sentences(one, tx.recipe.templates, skipped) for i, one in new.items()})
    tx.upsert("sentences", texts)
    return texts


def checked_classes(tx: Transaction, wanted: Sequence[NewClass]) -> list[NewClass]:
    """Return new classes with cleaned names and aliases.

    Raises:
        InputError: A name or an alias is taken, or given twice.
    """
    table = tx.class_table()
    names = [clean_name(one.name, "the new class") for one in wanted]
    _refuse_existing(table, names)
    checked: list[NewClass] = []
    seen: set[str] = set()
    for one, name in zip(wanted, names, strict=True):
        if folded(name) in seen:
            raise InputError(f"class {name!r} is given twice", "Give it once, with all that is known of it.")
        seen.add(folded(name))
        aliases = tuple(dict.fromkeys(clean_name(alias, f"an alias of {name!r}") for alias in one.aliases))
        for alias in aliases:
            if folded(alias) == folded(name):
                continue
            if table.find(alias) is not None or folded(alias) in seen:
                raise InputError(
                    f"class {name!r}: the alias {alias!r} is another class's name", "Leave this alias out."
                )
            seen.add(folded(alias))
        checked.append(replace(one, name=name, aliases=aliases))
    return checked


def _refuse_existing(table: ClassTable, names: Sequence[str]) -> None:
    """Refuse names of classes that exist, all of them at once."""
    there = {name: found for name in names if (found := table.find(name)) is not None}
    if not there:
        return
    if len(there) > 1:
        known = preview((table.names[i] for i in there.values()), most=_EXAMPLES)
        raise InputError(
            f"of {plural(len(names), 'class', 'classes')} {len(there):,} are there already: {known}",
            "Leave these out; give them more by: vlltr images add CLASS PATH, vlltr sentences add CLASS --text FILE",
        )
    ((name, found),) = there.items()
    known = table.names[found]
    quoted = shlex.quote(known)
    called = "" if known == name else f": {known!r}"
    raise InputError(
        f"there is a class {name!r} already{called}",
        f"Give it more: vlltr images add {quoted} PATH, vlltr sentences add {quoted} --text FILE",
    )


def _sentences(one: NewClass, prompts: Sequence[str], skipped: list[str]) -> list[SentenceRecord]:
    records, left_out = sentences_about(one.name, one.sentences, one.text)
    skipped += [f"{item.where}: {item.why}" for item in left_out]
    records += class_prompts(one.name, prompts)
    # Without prompts in the recipe no class is mute either.
    return records or [SentenceRecord(one.name, one.name, "name")]


def remove_classes(
    workspace: Workspace, names: Sequence[str], options: ChangeOptions = USUAL
) -> ChangeReport:
    """Retire classes: their sentences, images (of all splits) and statistics go, trained rows are masked.

    Their numbers are not used again; a class of the same name can be added again.

    Raises:
        UnknownClassError: If there is no class of one of the names.
        InputError: If no class, or no image to score sentences against, would be left.
    """

    with open_change(workspace, f"classes remove {preview(names)}", options) as change:
        tx = change.tx
        table = tx.class_table()
        notes = []
        ids = list(dict.fromkeys(table.lookup(name) for name in names))
        if len(ids) == len(table):
            raise InputError("no class would be left", "Make a new workspace instead: vlltr init DIR")
        for i in ids:
            gone = [tx.delete(kind, f"class_id = {i}") for kind in ("sentences", "images")]
            change_class(tx, i, retired_at=_now())
            content = f"{plural(gone[0], 'sentence')} and {plural(gone[1], 'image')}"
            notes.append(f"Removed {table.names[i]!r} (class {i}) with {content}.")
        change.finish(Edit(set(ids), images_changed=True, notes=notes))
    return change.report


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def rename_class(workspace: Workspace, old: str, new: str, options: ChangeOptions = USUAL) -> ChangeReport:
    """Give a class another name: it keeps its number, images and free texts; its prompts are made anew.

    Raises:
        UnknownClassError: If there is no class `old`.
        InputError: If `new` is another class's name or alias, or no name.
    """
    name = clean_name(new, "the new name")

    with open_change(workspace, f"classes rename {old!r} {name!r}", options) as change:
        table = change.tx.class_table()
        class_id = table.lookup(old)
        before = table.names[class_id]
        taken = table.find(name)
        if taken is not None and taken != class_id:
            raise InputError(
                f"there is a class {name!r} already (class {taken})",
                f"To make them one: vlltr classes merge {table.names[taken]!r} {before!r}",
            )
        same = before == name
        change.finish(Edit(shown=[class_id]) if same else _renamed(change.tx, class_id, before, name))
    return change.report


def _renamed(tx: Transaction, class_id: int, before: str, name: str) -> Edit:
    """Give a class another name, and prompts with it."""
    done = rename(tx, class_id, name)
    notes = [f"Renamed {before!r} to {name!r} (class {class_id})."]
    if done.replaced:
        others = plural(done.kept, "other sentence stays as it is", "other sentences stay as they are")
        notes.append(
            f"{plural(done.replaced, 'sentence')} made from the old name gave way to {done.made.num_rows:,}"
            f" made from the new one; {others}."
        )
    else:
        notes.append(f"No sentence was made from the old name; all {done.kept} stay as they are.")
    if done.in_tree:
        notes.append(f"The tree of classes has a {name!r} already: the class is that now.")
    return Edit({class_id} if done.replaced else set(), [class_id], done.made, notes=notes)


def merge_classes(
    workspace: Workspace, into: str, other: str, options: ChangeOptions = USUAL
) -> ChangeReport:
    """Make two classes one: sentences and images of `other` go to `into`, its name becomes an alias.

    What was made from the name of `other` alone does not go over. Trained visual rows stay, their probabilities add up.

    Raises:
        UnknownClassError: If there is no class of one of the names.
        InputError: If both are the same class.
    """

    with open_change(workspace, f"classes merge {into!r} {other!r}", options) as change:
        tx = change.tx
        table = tx.class_table()
        kept = table.lookup(into)
        gone = table.lookup(other)
        name = table.names[kept]
        if kept == gone:
            raise InputError(f"{into!r} and {other!r} are the same class ({name!r})")
        moved = _move_sentences(tx, gone, kept)
        images = _move_rows(tx, "images", gone, kept)
        _move_rows(tx, "origins", gone, kept)
        known = [*table.aliases.get(kept, ()), table.names[gone], *table.aliases.get(gone, ())]
        aliases: dict[str, str] = {}
        for alias in known:
            aliases.setdefault(folded(alias), alias)
        aliases.pop(folded(name), None)
        change_class(tx, kept, aliases=list(aliases.values()))
        change_class(tx, gone, retired_at=_now(), aliases=[])
        merge_nodes(tx, name, table.names[gone])
        merged = {i: kept if to == gone else to for i, to in tx.commit.info.merged.items()}
        merged[gone] = kept
        note = (
            f"Merged {table.names[gone]!r} (class {gone}) into {name!r} (class {kept}):"
            f" {plural(moved, 'sentence')} and {plural(images, 'image')} went over, prompts did not;"
            " the name is an alias now."
        )
        change.finish(Edit({kept, gone}, images_changed=True, merged=merged, notes=[note]))
    return change.report


def _move_rows(tx: Transaction, table: str, gone: int, kept: int) -> int:
    """Give the rows of a class in a table to another class; return how many there are."""
    rows = tx.table(table, where=f"class_id = {gone}")
    at = rows.column_names.index("class_id")
    owner = pa.array([kept] * rows.num_rows, pa.int32())
    tx.upsert(table, rows.set_column(at, rows.schema.field(at), owner))
    return len(owner)


def _move_sentences(tx: Transaction, gone: int, kept: int) -> int:
    """Move the sentences of a class to another, but for prompts and those that it has; return how many were moved."""
    own = f"class_id = {gone} AND NOT ({one_of('source', FROM_NAME)})"
    rows: list[dict[str, Any]] = tx.table("sentences", where=own).to_pylist()
    there = set(tx.table("sentences", ["sentence_id"], f"class_id = {kept}")["sentence_id"].to_pylist())
    moved = [{**row, "class_id": kept, "sentence_id": sentence_id(kept, row["text_hash"])} for row in rows]
    moved = [row for row in moved if row["sentence_id"] not in there]
    tx.delete("sentences", f"class_id = {gone}")
    tx.upsert("sentences", pa.Table.from_pylist(moved, schema=tx.schema("sentences")))
    return len(moved)


def add_sentences(
    workspace: Workspace,
    name: str,
    sentences: Sequence[str] = (),
    text: Path | None = None,
    options: ChangeOptions = USUAL,
) -> ChangeReport:
    """Give a class more sentences, and select its anchors again.

    Args:
        workspace: With a trained head.
        name: The class.
        sentences: Each taken as one sentence.
        text: A file of text, which is split.
        options: See there.

    Raises:
        UnknownClassError: If there is no such class.
        InputError: If there is no sentence in what was given, or one is too long.
    """
    records, skipped = sentences_about(name, sentences, text)
    if not records:
        raise InputError("no sentence was given", "Give --sentence or --text FILE.")

    with open_change(workspace, f"sentences add {name!r}", options) as change:
        tx = change.tx
        class_id = tx.class_table().lookup(name)
        where = f"class_id = {class_id}"
        there = set(tx.table("sentences", ["sentence_id"], where)["sentence_id"].to_pylist())
        rows = sentence_rows({class_id: records}, known=there)
        tx.upsert("sentences", rows)
        same = f"; {len(records) - rows.num_rows} there before" if rows.num_rows < len(records) else ""
        notes = [f"{plural(rows.num_rows, 'sentence')} added{same}."]
        notes += [f"Left out: {item.where}: {item.why}" for item in skipped]
        change.finish(Edit({class_id} if rows.num_rows else set(), [class_id], rows, notes=notes))
    return change.report


def remove_sentences(
    workspace: Workspace,
    name: str,
    ids: Sequence[str] = (),
    matching: str | None = None,
    options: ChangeOptions = USUAL,
) -> ChangeReport:
    """Take sentences from a class, and select its anchors again.

    Args:
        workspace: With a trained head.
        name: The class.
        ids: Sentence ids, or their first six or more characters.
        matching: All sentences that hold this text, in any case.
        options: See there.

    Raises:
        UsageError: If neither ids nor a text are given.
        UnknownClassError: If there is no such class.
        InputError: If no sentence fits, or none would be left.
    """
    wanted = normalise_text(matching).casefold() if matching is not None else None
    if not ids and not wanted:
        raise UsageError("which sentences?", "Give their ids, or --matching TEXT.")

    with open_change(workspace, f"sentences remove {name!r}", options) as change:
        tx = change.tx
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
        change.finish(Edit({class_id}, notes=[f"{plural(len(gone), 'sentence')} removed:", *shown, *more]))
    return change.report


def add_images(
    workspace: Workspace, name: str, paths: Sequence[Path], options: ChangeOptions = USUAL
) -> ChangeReport:
    """Give a class more training images: all anchors are selected again, and what is known of its images is counted.

    Args:
        workspace: With a trained head.
        name: The class.
        paths: Image files, or folders of them.
        options: See there.

    Raises:
        UnknownClassError: If there is no such class.
        InputError: If none of the images can be read, or one is another class's already.
    """

    with open_change(workspace, f"images add {name!r}", options) as change:
        tx = change.tx
        class_id = tx.class_table().lookup(name)
        skipped: list[str] = []
        rows = new_image_rows(tx, {class_id: paths}, {class_id: tx.class_table().names[class_id]}, skipped)
        good = usable(rows)
        if not good.num_rows:
            example = f" ({skipped[0]})" if skipped else ""
            raise InputError(f"no readable image among what was given{example}", "Give other files.")
        there = tx.count("images", one_of("image_id", good["image_id"].to_pylist()))
        tx.upsert("images", rows)
        new = good.num_rows - there
        notes = [plural(new, "image") + " added" + (f"; {there} there before." if there else ".")]
        notes += [f"Left out: {what}" for what in skipped]
        change.finish(
            Edit({class_id} if new else set(), [class_id], images=rows, images_changed=True, notes=notes)
        )
    return change.report


def remove_images(workspace: Workspace, ids: Sequence[str], options: ChangeOptions = USUAL) -> ChangeReport:
    """Take images away: all anchors are selected again, and what is known of their classes' images is counted anew.

    A class that loses its last training image is known by text alone, if it was not trained.

    Args:
        workspace: With a trained head.
        ids: Image ids, or their first six or more characters.
        options: See there.

    Raises:
        UsageError: If no id is given.
        InputError: If there is no such image, or no image to score sentences against would be left.
    """
    if not ids:
        raise UsageError("which images?", "Give their ids; `vlltr classes show NAME` lists them.")

    command = f"images remove {' '.join(ids[:3])}" + (" ..." if len(ids) > 3 else "")
    with open_change(workspace, command, options) as change:
        tx = change.tx
        there = tx.table("images", ["image_id"])["image_id"].to_pylist()
        gone = _chosen_ids(
            ids, there, "image with the id", "See ids, before the paths: vlltr classes show NAME"
        )
        owners = delete_images(tx, gone)
        change.finish(Edit(owners, images_changed=True, notes=[f"{plural(len(gone), 'image')} removed."]))
    return change.report


def delete_images(tx: Transaction, image_ids: Sequence[str]) -> set[int]:
    """Delete images, and return the classes that lose training images by it."""
    where = one_of("image_id", image_ids)
    rows = tx.table("images", ["class_id", "split"], where)
    tx.delete("images", where)
    tx.delete_any("reviewed", "image_id", image_ids)
    return set(rows.filter(pc.equal(rows["split"], "train"))["class_id"].drop_null().to_pylist())


def _chosen_ids(given: Sequence[str], there: Sequence[str], what: str, where: str) -> list[str]:
    """Resolve ids, or their first characters (six at least), to stored ids.

    Raises:
        InputError: If there is no such id, or several begin so.
    """
    chosen: list[str] = []
    for key in given:
        fits = [i for i in there if i == key or (len(key) >= _LEAST and i.startswith(key.lower()))]
        if len(fits) != 1:
            why = "there is none" if not fits else f"{len(fits)} begin so"
            raise InputError(f"no {what} {key!r} can be told: {why}", where)
        chosen.append(fits[0])
    return list(dict.fromkeys(chosen))
