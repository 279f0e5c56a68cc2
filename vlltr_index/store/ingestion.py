"""Convert records to rows of the workspace's tables, and class names to class ids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.data.capture import time_taken
from vlltr_index.data.decoding import Probe, cores, image_bytes, probe, reduced_bytes
from vlltr_index.data.names import ClassNames
from vlltr_index.data.objects import is_address
from vlltr_index.data.text import normalise_text, sentence_id, text_hash
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord, SentenceRecord
from vlltr_index.schemas.tables import CLASSES, IMAGES, SENTENCES

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction


T = TypeVar("T")
U = TypeVar("U")


def image_id(split: str, source: str, side: int | None = None) -> str:
    """Return the id of an image, from its split, its name in the source, and the size it is stored at, if any."""
    hashed = hashlib.sha256(f"{split}\0{source}".encode()).hexdigest()[:32]
    return hashed if side is None else f"{hashed}-{side}"


def image_row(key: str, record: ImageRecord, found: Probe, class_id: int | None) -> dict[str, Any]:
    """Build a row of the table `images`, with the image's bytes if the record has them."""
    return {
        "image_id": key,
        "content_hash": found.content_hash,
        "uri": record.uri,
        "data": record.data,
        "class_id": class_id,
        "split": record.split,
        "width": found.width,
        "height": found.height,
        "problem": found.problem,
        "group": record.group,
        "taken": found.taken,
        "thumbnail": found.thumbnail,
    }


def image_rows(images: Mapping[int, Sequence[ImageRecord]]) -> pa.Table:
    """Build rows of the table `images` for the images of each class; each is decoded to check that it can be used.

    An image's id is made of its path and content: a changed file is another image.
    """
    owned = [(class_id, record) for class_id, records in images.items() for record in records]
    probes = probe_all([record for _, record in owned])
    rows = [
        image_row(
            image_id(record.split, f"{record.uri}#{(found.content_hash or '')[:16]}"), record, found, class_id
        )
        for (class_id, record), found in zip(owned, probes, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=IMAGES)


def times_taken(records: Sequence[ImageRecord]) -> list[float | None]:
    """Read when images were taken on all cores; None for one that does not say it, or cannot be read."""
    return _on_all_cores(_time_taken, records)


def _time_taken(record: ImageRecord) -> float | None:
    try:
        return time_taken(image_bytes(record))
    except (InputError, MemoryError):
        return None


def probe_all(records: Sequence[ImageRecord], known: Mapping[str, Probe] | None = None) -> list[Probe]:
    """Probe images on all cores; images whose content hash is in `known` are not decoded again."""
    return _on_all_cores(partial(probe, known=known), records)


def with_stored_bytes(
    records: Sequence[ImageRecord], probes: Sequence[Probe], side: int
) -> list[tuple[ImageRecord, Probe]]:
    """Return the records with their bytes, reduced to `side` (see `reduced_bytes`), and their probes.

    Images that cannot be read stay as they are; those that cannot be reduced get a problem.
    """
    return _on_all_cores(partial(_reduced, side=side), list(zip(records, probes, strict=True)))


def _reduced(pair: tuple[ImageRecord, Probe], side: int) -> tuple[ImageRecord, Probe]:
    record, found = pair
    if found.width is None or found.height is None:
        return pair
    try:
        return replace(record, data=reduced_bytes(record, (found.width, found.height), side)), found
    except (InputError, OSError) as error:
        return record, found._replace(problem=f"it cannot be reduced: {error}")


def _on_all_cores(work: Callable[[T], U], items: Sequence[T]) -> list[U]:
    with ThreadPoolExecutor(min(8, len(cores()))) as pool:
        return list(pool.map(work, items))


def sentence_rows(sentences: Mapping[int, Iterable[SentenceRecord]], known: Container[str] = ()) -> pa.Table:
    """Build rows of the table `sentences` for the sentences of each class; of duplicates the first is kept.

    Two sentences of a class are the same if they differ only in case, white space or invisible characters. Empty
    ones, and those whose sentence_id is `known`, are left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    for class_id, records in sentences.items():
        for record in records:
            text = normalise_text(record.text)
            hashed = text_hash(record.text)
            key = sentence_id(class_id, hashed)
            if text and key not in rows and key not in known:
                rows[key] = {
                    "sentence_id": key,
                    "text_hash": hashed,
                    "class_id": class_id,
                    "text": text,
                    "source": record.source,
                    "source_ref": record.source_ref,
                    "licence": record.licence,
                }
    return pa.Table.from_pylist(list(rows.values()), schema=SENTENCES)


def resolve_classes(
    tx: Transaction, names: Collection[str], fresh: Container[str], earlier: Mapping[str, int]
) -> dict[str, int | None]:
    """Return the class id of each of a source's names; unknown ones that are `fresh` get a new class,
    others None.

    A name that is not known as it is written may differ in case, unless the source uses the known spelling too; or it
    is that of a class that has been renamed since the source was read `earlier`.

    Raises:
        UnknownClassError: If a name fits two classes equally well.
    """
    table = tx.class_table()
    given = set(names)
    found: dict[str, int | None] = {}
    for name in dict.fromkeys(names):
        class_id = table.find(name)
        if class_id is not None and name not in (table.names[class_id], *table.aliases.get(class_id, ())):
            class_id = None if table.names[class_id] in given else class_id
        found[name] = earlier.get(name) if class_id is None else class_id
    new = [name for name, class_id in found.items() if class_id is None and name in fresh]
    if new:
        first = tx.next_id("classes", len(new))
        found |= {name: first + i for i, name in enumerate(new)}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows: list[dict[str, Any]] = [
            {"class_id": found[name], "name": name, "aliases": [], "origin": "trained", "created_at": now}
            for name in new
        ]
        tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))
    return found


def known_names(tx: Transaction, names: ClassNames) -> ClassNames:
    """Replace names by the workspace's own, where it knows a class by an alias only.

    For example, ImageNet's folders are named by WordNet ids, so that a workspace has classes of these names.

    Raises:
        UnknownClassError: If a name fits two of the workspace's classes equally well.
    """
    table = tx.class_table()
    result = []
    for name, aliases in zip(names.names, names.aliases, strict=True):
        ids = set() if name in table else set(map(table.find, aliases)) - {None}
        result.append(table.names[ids.pop() or 0] if len(ids) == 1 else name)
    return replace(names, names=tuple(result))


def note_aliases(
    tx: Transaction, given: ClassNames, used: ClassNames, classes: Mapping[str, int | None]
) -> None:
    """Add a benchmark's other names to classes as aliases, except for names that another class has.

    Args:
        tx: The open transaction.
        given: Names and aliases of the benchmark.
        used: The result of `known_names` for them.
        classes: The class of each name of `used` that occurred.
    """
    table = tx.class_table()
    rows = {row["class_id"]: row for row in tx.table("classes").to_pylist()}
    for name, shown, aliases in zip(given.names, used.names, given.aliases, strict=True):
        class_id = classes.get(shown)
        if class_id is not None:
            rows[class_id]["aliases"] += [a for a in (name, *aliases) if a not in table]
    tx.upsert("classes", pa.Table.from_pylist(list(rows.values()), schema=CLASSES))


def file_of(uri: str) -> str:
    """Return the path of the file behind an image's URI: for a row of a Parquet file, that file."""
    return uri if is_address(uri) or os.path.exists(uri) else uri.rpartition("#")[0] or uri


def is_gone(uri: str) -> bool:
    """Say whether the file at an image's URI no longer exists; False where that is not checked, or cannot be told."""
    if is_address(uri):
        return False
    try:
        os.stat(file_of(uri))
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def usable(images: pa.Table) -> pa.Table:
    """Return the rows of `images` that can be read."""
    return images.filter(pc.is_null(images["problem"]))
