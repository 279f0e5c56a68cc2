"""What answers rest on beside encoder, head and index, as objects that never change: the parts that a commit names.

A part holds rows of the tables below, and says which of its tables it holds whole and which keys are gone. The first
one of a commit holds all of them whole; each later one what a command changed. So a reader needs no table of the
database, and sees by the digests whether what it reads is what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.schemas.tables import KEYS, sentence_vectors_name
from vlltr_index.store.snapshot import Part, Snapshot
from vlltr_index.store.tables import one_of

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction

TABLES = {
    "classes": "class_id",
    "taxonomy": "name",
    "class_stats": "class_id",
    "anchors": "anchor_key",
    "ranks": "anchor_key",
}
"""The tables of a part and their keys. The first three are the workspace's. `anchors` has what never changes of an
anchor, its vector and its text too; `ranks` has its rank and its loss, which new images change for all anchors."""

_LINKS = (
    ("anchors", "ranks", "anchor_key"),
    ("anchors", "classes", "class_id"),
    ("class_stats", "classes", "class_id"),
)
_COPIED = ("classes", "taxonomy", "class_stats")
_EDITED = ("classes", "taxonomy")  # commands read rows of these, and write them back with something changed
_TEXT = ("text", "source", "source_ref", "licence")
_SOURCES = ("anchors", "sentences", "sentence_scores")  # of the parts' `anchors` and `ranks`
_ANCHOR = ["anchor_key", "class_id", "sentence_id"]
_SENTENCE = ["sentence_id", "text_hash", *_TEXT]
_FEW = 2000  # keys that are worth a condition instead of a scan
_ROWS = 65_536  # a batch in a file
_SHARE = 8  # what changed may be the base's size divided by this
_KEPT = 256  # parts that stay open
_DOCTOR = "See what is damaged: vlltr doctor"
_SELECT = f"{_DOCTOR}; or select again: vlltr select"
_BACK = "Bring the table's folder below lance/ back from a backup."


class PartFacts(BaseModel):
    """The file `part.json`.

    Attributes:
        format: Of the part.
        rows: How many rows of each of `TABLES` there are, in `<table>.arrow`.
        whole: The tables of which no earlier part counts.
        gone: By table, keys of rows of earlier parts that are no more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    rows: dict[str, int]
    whole: tuple[str, ...] = ()
    gone: dict[str, list[int | str]] = {}


@dataclass(frozen=True, eq=False)
class Change:
    """What a part says of one table: rows that came or changed, keys that went; or, `whole`, all rows."""

    rows: pa.Table
    gone: pa.Array
    whole: bool = False

    def after(self, older: Change, key: str) -> Change:
        """What this one and an older one say together."""
        if self.whole:
            return self
        mine = self.rows[key].combine_chunks()
        kept = pa.concat_tables([_without(_without(older.rows, key, mine), key, self.gone), self.rows])
        gone = pc.unique(pa.concat_arrays([older.gone, self.gone]))
        gone = gone.filter(pc.invert(pc.is_in(gone, value_set=mine)))
        return Change(kept, gone.slice(0, 0) if older.whole else gone, older.whole)


def _without(rows: pa.Table, key: str, keys: pa.Array) -> pa.Table:
    """`rows` without those of the keys; not copied where there is none."""
    there = pc.is_in(rows[key], value_set=keys)
    return rows.filter(pc.invert(there)) if pc.any(there, min_count=0).as_py() else rows


class PartReader:
    """Reads parts by their digests, each checked once, when it is first read.

    Args:
        whole: Gives the folder of a part whose files are those that were written.
    """

    def __init__(self, whole: Callable[[str], Path]) -> None:
        self._whole = whole
        self._read: dict[str, dict[str, Change]] = {}

    def rows(self, parts: Sequence[Part], name: str) -> pa.Table:
        """The rows of one of `TABLES` as these parts have them, oldest first.

        Raises:
            MissingStepError: If one of the parts is gone.
            WorkspaceError: If one is damaged.
        """
        return self.together(parts)[name].rows

    def together(self, parts: Sequence[Part]) -> dict[str, Change]:
        """What some parts say of each table, oldest first; errors as for `rows`."""
        *older, newest = (self._changes(part.digest) for part in parts)
        for part in reversed(older):  # so that the base, which is large, is looked at once
            newest = {name: newest[name].after(part[name], key) for name, key in TABLES.items()}
        return newest

    def _changes(self, digest: str) -> dict[str, Change]:
        found = self._read.get(digest)
        if found is None:
            found = _read_part(self._whole(digest))
            # Never changed in place: other threads read it.
            self._read = {**(self._read if len(self._read) < _KEPT else {}), digest: found}
        return found


def _read_part(folder: Path) -> dict[str, Change]:
    try:
        facts = PartFacts.model_validate_json((folder / "part.json").read_bytes())
        found = {}
        for name, key in TABLES.items():
            rows = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
            if rows.num_rows != facts.rows[name]:
                raise ValueError(f"{name}.arrow has {rows.num_rows} rows, part.json says {facts.rows[name]}")
            gone = pa.array(facts.gone.get(name, []), rows.schema.field(key).type)
            found[name] = Change(rows, gone, name in facts.whole)
    except (OSError, KeyError, ValueError, ValidationError, pa.ArrowException) as error:
        raise WorkspaceError(f"{folder} cannot be read as a part: {error}", _DOCTOR) from None
    return found


def _write_part(changes: dict[str, Change], folder: Path) -> None:
    for name, change in changes.items():
        place = folder / f"{name}.arrow"
        with place.open("wb") as file, pa.ipc.new_file(file, change.rows.schema) as writer:
            writer.write_table(change.rows, max_chunksize=_ROWS)
    facts = PartFacts(
        rows={name: change.rows.num_rows for name, change in changes.items()},
        whole=tuple(name for name, change in changes.items() if change.whole),
        gone={name: sorted(change.gone.to_pylist()) for name, change in changes.items() if len(change.gone)},
    )
    (folder / "part.json").write_text(facts.model_dump_json() + "\n", encoding="utf-8")


def next_parts(
    tx: Transaction, reader: PartReader, put: Callable[[Callable[[Path], object]], str]
) -> tuple[Part, ...]:
    """Write what the commit that `tx` is about to make answers with; none where it cannot answer.

    Rows that the command wrote come from the tables and are checked; all others from the parts of the commit before,
    whatever the tables say by now. Going back takes the parts that there were; where there are none, or damaged ones,
    they are made of the tables.

    Args:
        tx: After the command's last write.
        reader: Of the parts that there are.
        put: Keeps an object that a function writes into an empty folder, and gives its digest.

    Raises:
        WorkspaceError: If rows do not fit each other, are not finite, or not those that were written.
    """
    state = tx.state
    if not (state.head and state.text_fp and state.selection_id):
        return ()
    old = state.parts
    if tx.goes_back and old:
        try:
            reader.together(old)
            return old
        except WorkspaceError:
            old = ()
    before = reader.together(old) if old else {}
    try:
        changes = _changes(tx, before)
    except MissingStepError:  # vectors are still to be made
        return ()
    after = {
        name: change.after(before[name], TABLES[name]) if old else change for name, change in changes.items()
    }
    _check_counts(tx, after)
    if not any(change.whole or change.rows.num_rows or len(change.gone) for change in changes.values()):
        return old
    size = _size(changes)
    kept = list(old)
    # There are few parts, then, and each row is written few times.
    while len(kept) > 1 and kept[-1].bytes <= 2 * size:
        last = reader.together([kept.pop()])
        changes = {name: change.after(last[name], TABLES[name]) for name, change in changes.items()}
        size = _size(changes)
    if not kept or _SHARE * (sum(part.bytes for part in kept[1:]) + size) > kept[0].bytes:
        kept = []
        changes = after
        size = _size(after)
    return (*kept, Part(digest=put(lambda folder: _write_part(changes, folder)), bytes=size))


def _size(changes: dict[str, Change]) -> int:
    return sum(change.rows.nbytes + change.gone.nbytes for change in changes.values())


def _changes(tx: Transaction, before: dict[str, Change]) -> dict[str, Change]:
    """What a command changed, by table: all of it where there is nothing before, or any row may have changed."""
    found = {
        name: Change(change.rows.slice(0, 0), change.gone.slice(0, 0)) for name, change in before.items()
    }
    for name in (name for name in _COPIED if not before or name in tx.touched):
        keys = tx.touched[name] if before else None
        if keys and name in _EDITED:
            _check_edited(tx, name, before[name].rows, keys)
        found[name] = _change(_some(tx, name, KEYS[name], keys), name, keys)
    told_anew = not before or tx.state.text_fp != tx.commit.text_fp
    if told_anew or not tx.touched.keys().isdisjoint(_SOURCES):
        rows = tx.table("anchors", [*_ANCHOR, "rank"])
        moved = tx.touched.get("anchors", set()) if before else None
        retold = None if told_anew else _anchors_of(rows, tx.touched.get("sentences", set()))
        weighed = _anchors_of(rows, tx.touched.get("sentence_scores", set()))
        told = ranked = None
        if moved is not None and retold is not None:
            told = retold | _came_or_went(_among(rows, "anchor_key", moved), before["anchors"].rows, moved)
        if moved is not None and weighed is not None:
            ranked = moved | weighed
        anchors = _anchor_rows(tx, _among(rows, "anchor_key", told), tx.state.text_fp or "")
        found["anchors"] = _change(anchors, "anchors", told)
        found["ranks"] = _change(_rank_rows(tx, _among(rows, "anchor_key", ranked)), "ranks", ranked)
    return found


def _came_or_went(now: pa.Table, before: pa.Table, keys: set[int]) -> set[int]:
    """Of the keys those of new anchors, and of such that are no more: what there was keeps its text and its vector.

    Raises:
        WorkspaceError: If one that there was is of another sentence now.
    """
    was = _among(before.select(_ANCHOR), "anchor_key", keys)
    here, there = (set(rows["anchor_key"].to_pylist()) for rows in (now, was))
    one, other = (_among(rows, "anchor_key", here & there) for rows in (now.select(_ANCHOR), was))
    if (key := _differs(one, other, "anchor_key")) is not None:
        raise WorkspaceError(f"anchor {key} is of another sentence than it was", _SELECT)
    return here ^ there


def _change(rows: pa.Table, name: str, keys: set[Any] | None) -> Change:
    """The change of the rows with these keys to `rows`; None: `rows` are all.

    Raises:
        WorkspaceError: If a number is not finite.
    """
    key = rows.schema.field(TABLES[name])
    for column in rows.columns:
        values = pc.list_flatten(column) if pa.types.is_fixed_size_list(column.type) else column
        if pa.types.is_floating(values.type) and not _all(pc.is_finite(values.drop_null())):
            raise WorkspaceError(
                f"what is to be written of the table {name!r} is not all finite numbers", _DOCTOR
            )
    gone = () if keys is None else keys.difference(rows[key.name].to_pylist())
    return Change(rows, pa.array(sorted(gone), key.type), keys is None)


def _all(true: pa.ChunkedArray) -> bool:
    return bool(pc.all(true, min_count=0).as_py())


def _among(rows: pa.Table, column: str, values: set[Any] | None) -> pa.Table:
    """The rows whose column has one of some values; None: all rows."""
    if values is None:
        return rows
    return rows.filter(pc.is_in(rows[column], value_set=pa.array(values, rows.schema.field(column).type)))


def _some(
    snapshot: Snapshot, name: str, column: str, values: set[Any] | None, columns: list[str] | None = None
) -> pa.Table:
    """The rows of a table whose column has one of some values; None: all rows."""
    if values is not None and len(values) <= _FEW:
        return snapshot.table(name, columns, one_of(column, sorted(values)))
    return _among(snapshot.table(name, columns), column, values)


def _anchors_of(anchors: pa.Table, sentences: set[str] | None) -> set[int] | None:
    """Keys of the anchors that these sentences are; None: of all."""
    if sentences is None:
        return None
    return set(_among(anchors, "sentence_id", sentences)["anchor_key"].to_pylist())


def _anchor_rows(snapshot: Snapshot, anchors: pa.Table, text_fp: str) -> pa.Table:
    """Anchors with text and vector.

    Raises:
        MissingStepError: If one has no vector.
        WorkspaceError: If one has no sentence, or its sentence is not the one that was written.
    """
    rows = anchors.select(_ANCHOR)
    ids = rows["sentence_id"].combine_chunks()
    sentences = _some(snapshot, "sentences", "sentence_id", set(ids.to_pylist()), _SENTENCE)
    at = pc.index_in(ids, value_set=sentences["sentence_id"].combine_chunks())
    if at.null_count:
        key = rows["anchor_key"].filter(at.is_null())[0].as_py()
        raise WorkspaceError(f"anchor {key} is of a sentence that there is not", _SELECT)
    sentences = sentences.take(at)
    hashes: list[str] = sentences["text_hash"].to_pylist()
    texts = zip(
        ids.to_pylist(), rows["class_id"].to_pylist(), hashes, sentences["text"].to_pylist(), strict=True
    )
    for key, class_id, hashed, text in texts:
        if text_hash(text) != hashed or sentence_id(class_id, hashed) != key:
            raise WorkspaceError(
                f"sentence {key!r} of class {class_id} is not the one that was written: {text!r}", _DOCTOR
            )
    for name in _TEXT:
        rows = rows.append_column(sentences.schema.field(name), sentences[name])
    table = sentence_vectors_name(text_fp)
    vectors = snapshot.store.vectors(table, "text_hash", hashes)
    dim = vectors.shape[1] or snapshot.store.schema(table).field("vector").type.list_size
    flat = pa.array(vectors.contiguous().view(-1).numpy())
    return rows.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, dim))


def _rank_rows(snapshot: Snapshot, anchors: pa.Table) -> pa.Table:
    """Anchors with rank and loss; null where it is not known."""
    ids = anchors["sentence_id"].combine_chunks()
    scores = _some(snapshot, "sentence_scores", "sentence_id", set(ids.to_pylist()), ["sentence_id", "loss"])
    at = pc.index_in(ids, value_set=scores["sentence_id"].combine_chunks())
    return anchors.select(["anchor_key", "rank"]).append_column("loss", scores["loss"].take(at))


def _check_edited(tx: Transaction, name: str, before: pa.Table, keys: set[Any]) -> None:
    """See whether rows that a command changed were before it what answers rested on: it may have copied some of it.

    Raises:
        WorkspaceError: If they were not.
    """
    was = _some(Snapshot(tx.store, tx.commit, tx.objects, tx.recipe), name, KEYS[name], keys)
    if (key := _differs(was, _among(before, KEYS[name], keys), KEYS[name])) is not None:
        raise WorkspaceError(_other(name, key, tx.commit.id), f"{_DOCTOR}. {_BACK}")


def _differs(one: pa.Table, other: pa.Table, key: str) -> Any:
    """The key of a row that two tables do not have alike; None: there is none."""
    one = one.sort_by(key)
    other = other.sort_by(key)
    if one.equals(other):
        return None
    if apart := set(one[key].to_pylist()) ^ set(other[key].to_pylist()):
        return min(apart)
    rows = zip(one.to_batches(1), other.to_batches(1), strict=False)
    return next((a[key][0].as_py() for a, b in rows if not a.equals(b)), one[key][0].as_py())


def _other(name: str, key: Any, commit: int) -> str:
    return f"table {name!r} is not what commit {commit} answers with: {TABLES[name]} {key!r}, for example"


def _check_counts(tx: Transaction, after: dict[str, Change]) -> None:
    """See whether the parts hold as many rows as the tables, and name each other.

    Raises:
        WorkspaceError: If they do not.
    """
    rows = {name: change.rows for name, change in after.items()}
    for name, part in rows.items():
        table = "anchors" if name == "ranks" else name
        if table in tx.touched and (count := tx.count(table)) != part.num_rows:
            raise WorkspaceError(
                f"table {table!r} has {count:,} rows; with what this command wrote it should have {part.num_rows:,}",
                f"{_DOCTOR}. {_BACK}",
            )
    for one, other, key in _LINKS:
        known = pc.is_in(rows[one][key], value_set=rows[other][key].combine_chunks())
        if not _all(known):
            key_of = rows[one][key].filter(pc.invert(known))[0].as_py()
            raise WorkspaceError(f"{one} has the {key} {key_of}, which {other} has not", _DOCTOR)


def differences(snapshot: Snapshot) -> Iterator[str]:
    """What the tables of a commit say otherwise than its parts, a sentence a table.

    Raises:
        WorkspaceError: If a table or a part is damaged.
    """
    if snapshot.parts is None:
        return
    for name, key in TABLES.items():
        rows = snapshot.table("anchors" if name == "ranks" else name)
        if name == "anchors":
            rows = _anchor_rows(snapshot, rows, snapshot.commit.text_fp or "")
        elif name == "ranks":
            rows = _rank_rows(snapshot, rows)
        if (found := _differs(rows, snapshot.parts(name), key)) is not None:
            yield _other(name, found, snapshot.commit.id)
