"""Adding classes to a trained workspace, by sentences, images, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.classes.change import Edit, How, change, classes_of, new_image_rows
from vlltr_index.classes.reports import ChangeReport, shortly
from vlltr_index.data.files import read_json, require
from vlltr_index.data.text import class_prompts, clean_name
from vlltr_index.data.text_readers import class_sentences
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.ingestion import sentence_rows

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = ["NewClass", "add_class", "add_classes", "read_manifest"]


@dataclass(frozen=True)
class NewClass:
    """A class to be added: its name and what is known of it."""

    name: str
    sentences: tuple[str, ...] = ()
    text: Path | None = None  # a file of text about it
    images: Path | None = None  # a folder of its images
    aliases: tuple[str, ...] = ()
    image_files: tuple[Path, ...] = ()
    image_bytes: tuple[tuple[str, bytes], ...] = ()  # names and encoded images; the workspace keeps the bytes


def read_manifest(path: Path) -> list[NewClass]:
    """Read {name: [sentence, ...]} or {name: {"sentences": [...], "images": [...], "aliases": [...]}}.

    Image paths are relative to the manifest.

    Raises:
        InputError: If the file is missing, is not JSON, or an entry is neither.
    """
    values = read_json(require(path), dict[str, Any], "Expected {name: [sentence, ...]}.")
    if not values:
        raise InputError(f"{path} names no class", "Expected {name: [sentence, ...]}.")
    return [_manifest_entry(path, name, value) for name, value in values.items()]


def _manifest_entry(path: Path, name: str, value: Any) -> NewClass:
    if isinstance(value, list):
        value = {"sentences": value}
    allowed = {"sentences", "images", "aliases"}
    if not isinstance(value, dict) or not value.keys() <= allowed:
        raise InputError(
            f"{path}: class {name!r}: expected a list of sentences, or keys among {sorted(allowed)}"
        )
    for key, items in value.items():
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise InputError(f"{path}: class {name!r}: {key!r} must be a list of strings")
    files = tuple(path.parent / image for image in value.get("images", []))
    return NewClass(
        name, tuple(value.get("sentences", ())), None, None, tuple(value.get("aliases", ())), files
    )


def add_class(
    workspace: Workspace,
    name: str,
    sentences: Sequence[str] = (),
    images: Path | None = None,
    aliases: Sequence[str] = (),
    **how: Unpack[How],
) -> ChangeReport:
    """Add one class; see `add_classes`."""
    wanted = [NewClass(name, tuple(sentences), None, images, tuple(aliases))]
    return add_classes(workspace, wanted, **how)


def add_classes(workspace: Workspace, wanted: Sequence[NewClass], **how: Unpack[How]) -> ChangeReport:
    """Add classes in one commit: embed only what is new, score it, select anchors, count its images.

    The index is not rebuilt: the new anchors are searched beside it, exactly. For the arguments see `change.How`.

    Raises:
        InputError: If a name exists, is given twice, or nothing at all is known of a class.
        MissingStepError: If the workspace has no trained head yet.
    """
    command = f"classes add {shortly([w.name for w in wanted])}"
    return replace(change(workspace, command, lambda tx: _write(workspace, tx, wanted), **how), added=True)


def _write(workspace: Workspace, tx: Transaction, wanted: Sequence[NewClass]) -> Edit:
    names = _checked_names(tx, wanted)
    first = tx.next_id("classes", len(wanted))
    ids = list(range(first, first + len(wanted)))
    sentences = {i: _sentences(workspace, one) for i, one in zip(ids, wanted, strict=True)}
    paths: dict[int, list[Path | tuple[str, bytes]]] = {
        i: [*([one.images] if one.images else []), *one.image_files, *one.image_bytes]
        for i, one in zip(ids, wanted, strict=True)
    }
    skipped: list[str] = []
    pictures = new_image_rows(tx, paths, dict(zip(ids, names, strict=True)), skipped)
    readable = set(pictures.filter(pc.is_null(pictures["problem"]))["class_id"].to_pylist())
    for one, class_id in zip(wanted, ids, strict=True):
        told = one.text is not None or any(text.strip() for text in one.sentences)
        if not told and class_id not in readable:
            raise InputError(
                f"nothing is known of class {one.name!r}: no sentence and no readable image",
                "Give it a --sentence, a --text file, or --images.",
            )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        {"class_id": i, "name": name, "aliases": list(one.aliases), "origin": "added", "created_at": now}
        for i, name, one in zip(ids, names, wanted, strict=True)
    ]
    tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))
    texts = sentence_rows(sentences)
    tx.upsert("sentences", texts)
    if pictures.num_rows:
        tx.upsert("images", pictures)
    notes = [f"Left out: {what}" for what in skipped]
    return Edit(set(ids), ids, texts, pictures, classes_of(pictures), notes=notes)


def _checked_names(tx: Transaction, wanted: Sequence[NewClass]) -> list[str]:
    """The new names as they are stored, after a look whether they and the aliases are free."""
    table = tx.class_table()
    names: list[str] = []
    seen: set[str] = set()
    for one in wanted:
        if not one.name.split():
            raise InputError("a class needs a name; got an empty one")
        name = clean_name(one.name, "the new class")
        if table.find(name) is not None:
            raise InputError(
                f"there is a class {name!r} already", "See what it holds: vlltr classes show " + repr(name)
            )
        if name.casefold() in seen:
            raise InputError(f"class {name!r} is given twice")
        names.append(name)
        seen.add(name.casefold())
        for alias in one.aliases:
            if alias.casefold() == name.casefold():
                continue
            if table.find(alias) is not None or alias.casefold() in seen:
                raise InputError(
                    f"class {name!r}: the alias {alias!r} is another class's name", "Leave this alias out."
                )
            seen.add(alias.casefold())
    return names


def _sentences(workspace: Workspace, one: NewClass) -> list[SentenceRecord]:
    records = [SentenceRecord(one.name, text, "given") for text in one.sentences]
    if one.text is not None:
        records += class_sentences(one.text, one.name)
    records += class_prompts(one.name, workspace.recipe.prompts)
    if not any(record.text.split() for record in records):  # a recipe without prompts: no class is mute
        return [SentenceRecord(one.name, one.name, "name")]
    return records
