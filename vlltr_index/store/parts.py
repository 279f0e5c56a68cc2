"""Parts: objects that a commit names, with the rows that answers are computed from, beside encoder, head and index.

A commit names a base, which holds all rows of the tables below, and at most one delta: the rows that were added or
changed since the base was written, and the keys of those that were removed. So a reader needs no table of the
database, and the digests show whether the files are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict

from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.model import PartDigests
from vlltr_index.schemas.tables import (
    ANCHORS,
    CLASSES,
    KEYS,
    SENTENCE_SCORES,
    SENTENCES,
    TAXONOMY,
    class_stats,
)
from vlltr_index.store.snapshot import sentence_numbers
from vlltr_index.store.tables import one_of
from vlltr_index.store.transaction import Transaction

if TYPE_CHECKING:
    from torch import Tensor

    from vlltr_index.store.snapshot import Snapshot, State

TABLES = {
    "classes": "class_id",
    "taxonomy": "name",
    "class_stats": "class_id",
    "anchors": "anchor_key",
    "ranks": "anchor_key",
}
"""The tables of a part and their keys. The first three are the workspace's. `anchors` has the columns of an anchor that
never change, with its text and its numbers; `ranks` has its rank and loss, which new images change for all anchors."""


def part_schemas(dim: int, reading: int = 0) -> dict[str, pa.Schema]:
    """Return the schemas of `TABLES`; vectors have the width `dim`, those of anchors are followed by their reading."""
    sentence = [SENTENCES.field(name) for name in _TEXT]
    vector = pa.field("vector", pa.list_(pa.float32(), dim + reading), nullable=False)
    return {
        "classes": CLASSES,
        "taxonomy": TAXONOMY,
        "class_stats": class_stats(dim),
        "anchors": pa.schema([*(ANCHORS.field(name) for name in _ANCHOR), *sentence, vector]),
        "ranks": pa.schema(
            [ANCHORS.field("anchor_key"), ANCHORS.field("rank"), SENTENCE_SCORES.field("loss")]
        ),
    }


_LINKS = (
    ("anchors", "ranks", "anchor_key"),
    ("anchors", "classes", "class_id"),
    ("class_stats", "classes", "class_id"),
)
BESIDE_VECTORS = {
    "anchors": ("anchor_key", "class_id", "sentence_id", "text", "source", "source_ref", "licence"),
    "class_stats": ("class_id", "image_fp", "images"),
}
"""Columns of tables with vectors, but those, which `PartReader.vectors` reads."""
_VECTORS = {"anchors": ["anchor_key", "vector"], "class_stats": ["class_id", "sum"]}
_COPIED = ("classes", "taxonomy", "class_stats")
_EDITED = ("classes", "taxonomy")  # commands read rows of these, and write them back with a change
_TEXT = ("text", "source", "source_ref", "licence")
_SOURCES = ("anchors", "sentences", "sentence_scores")  # of the parts' `anchors` and `ranks`
_ANCHOR = ["anchor_key", "class_id", "sentence_id"]
_SENTENCE = ["sentence_id", "text_hash", *_TEXT]
_FEW = 2000  # up to so many keys a SQL condition is quicker than a scan
_ROWS = 65_536  # rows of a batch in a file
_SHARE = (
    32  # a delta may have this fraction (1/32) of the base's size: each commit keeps its own until `prune`
)
_KEPT = 8  # parts that are cached
_DOCTOR = "See what is damaged: vlltr doctor"
_SELECT = f"{_DOCTOR}; or select again: vlltr select"
BACK = "Bring the table's folder below lance/ back from a backup."
"""What to do where a table is not what was written."""


class PartManifest(Manifest):
    """Content of the file `part.json`.

    Attributes:
        format: Format of the part.
        rows: Number of rows of each of `TABLES`, in `<table>.arrow`.
        gone: By table, keys of rows of the base that a delta removes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    rows: dict[str, int]
    gone: dict[str, list[int | str]]


@dataclass(frozen=True, eq=False)
class Update:
    """Rows of one table that are new or changed, and keys of rows that are removed.

    A base is read as a change, too: all rows, and no removed keys.
    """

    rows: pa.Table
    gone: pa.Array

    def select(self, columns: Sequence[str] | None) -> Update:
        """Return the change of some columns, with the key among them; None: all."""
        return self if columns is None else replace(self, rows=self.rows.select(columns))

    def applied(self, rows: pa.Table, key: str) -> pa.Table:
        """Return `rows` after this change."""
        kept = _without(rows, key, pa.concat_arrays([self.rows[key].combine_chunks(), self.gone]))
        # Where all rows are replaced, vectors may have another width.
        return pa.concat_tables([kept, self.rows]) if kept.num_rows else self.rows


def _without(rows: pa.Table, key: str, keys: pa.Array) -> pa.Table:
    """Return `rows` without those of the keys, uncopied if there are none."""
    there = pc.is_in(rows[key], value_set=keys)
    return rows.filter(pc.invert(there)) if pc.any(there, min_count=0).as_py() else rows


class TableReader:
    """Reader of the rows that answers rest on, from the tables of a commit, whatever its parts say."""

    def rows(self, snapshot: Snapshot, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return some columns of `table_rows`, with the key among them; default: all. Errors are the same."""
        return table_rows(snapshot, name, columns)

    def vectors(self, snapshot: Snapshot, name: str, keys: Tensor) -> Tensor:
        """Return the vectors of rows of `anchors`, float32 [N, D], or `class_stats`, float64.

        Args:
            snapshot, name: Where the rows are.
            keys: Int64 [N], the rows' keys, distinct; their order is that of the result.

        Raises:
            MissingStepError, WorkspaceError: As for `rows`.
        """
        rows = table_rows(snapshot, name, _VECTORS[name])
        return _in_order(rows.to_batches(), keys, rows.schema)


class PartReader(TableReader):
    """Reader of parts by digest; each part is checked once, when it is first read.

    Args:
        whole: Returns the folder of a part, after checking its files against its digest.
    """

    def __init__(self, whole: Callable[[str], Path]) -> None:
        self._part = lru_cache(_KEPT)(lambda digest: _read_part(whole(digest)))

    def rows(self, snapshot: Snapshot, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one of `TABLES` that answers of a snapshot rest on, or some columns with the key.

        Of a commit they are its parts', or, if it has none, made of its tables; of a transaction its commit's by now.

        Raises:
            MissingStepError: If a part is gone, or an anchor has no vector.
            WorkspaceError: If a part is damaged, or rows do not refer to each other.
        """
        parts = snapshot.commit.parts
        before = self.stored_rows(parts, name, columns) if parts else None
        if isinstance(snapshot, Transaction):
            change = _change_of(snapshot, name, before).select(columns)
            return change.rows if before is None else change.applied(before, TABLES[name])
        return table_rows(snapshot, name, columns) if before is None else before

    def vectors(self, snapshot: Snapshot, name: str, keys: Tensor) -> Tensor:
        """Return the vectors of rows as `TableReader` does, those that `rows` has."""
        if not snapshot.commit.parts:  # as they are made of the tables
            return super().vectors(snapshot, name, keys)
        parts = snapshot.commit.parts
        newer = list[pa.RecordBatch]()
        if isinstance(snapshot, Transaction):
            changed = _change_of(snapshot, name, self.stored_rows(parts, name, BESIDE_VECTORS[name])).rows
            newer = changed.select(_VECTORS[name]).to_batches() if changed.num_rows else []
        return self.stored_vectors(parts, name, keys, newer)

    def stored_rows(self, parts: PartDigests, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one of `TABLES` in a base and its delta: all columns, or some with the key.

        Raises:
            MissingStepError: If one of the parts is gone.
            WorkspaceError: If one is damaged.
        """
        base, delta = self.read(parts)
        return delta[name].select(columns).applied(base[name].select(columns).rows, TABLES[name])

    def stored_vectors(
        self, parts: PartDigests, name: str, keys: Tensor, newer: Iterable[pa.RecordBatch] = ()
    ) -> Tensor:
        """Return the vectors of rows by their keys, see `vectors`, of a base and its delta, and newer rows.

        The files are read some rows at a time and not mapped, so that the vectors are in memory once.
        """
        schema = self._part(parts[0])[1][name].select(_VECTORS[name]).rows.schema
        stored = chain.from_iterable(self._vectors_in(digest, name) for digest in parts)
        return _in_order(chain(stored, newer), keys, schema)

    def _vectors_in(self, digest: str, name: str) -> Iterator[pa.RecordBatch]:
        """Yield the keys and vectors of a table that a part holds."""
        folder, tables = self._part(digest)
        path = folder / f"{name}.arrow"
        places = [tables[name].rows.schema.get_field_index(column) for column in _VECTORS[name]]
        wanted = pa.ipc.IpcReadOptions(included_fields=places)
        try:
            with pa.OSFile(str(path)) as file:
                batches = pa.ipc.open_file(file, options=wanted)
                for number in range(batches.num_record_batches):
                    yield batches.get_batch(number)
        except (OSError, pa.ArrowException) as error:
            raise WorkspaceError(f"{path} cannot be read: {error}", _DOCTOR) from None

    def read(self, parts: PartDigests) -> tuple[dict[str, Update], dict[str, Update]]:
        """Return the tables of a base, and of its delta, or an empty one; errors as for `stored_rows`."""
        base, *deltas = (self._part(digest)[1] for digest in parts)
        none = {name: _added(change.rows.slice(0, 0), name) for name, change in base.items()}
        return base, deltas[0] if deltas else none


def _in_order(batches: Iterable[pa.RecordBatch], keys: Tensor, schema: pa.Schema) -> Tensor:
    """Put vectors in the order of `keys`, [N, D]; the batches have keys and vectors, and later ones count."""
    import torch

    kind = schema.types[1]
    vectors = np.empty((len(keys), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    places = keys.numpy().argsort()
    ordered = keys.numpy()[places]
    for batch in batches if len(keys) else ():
        there = batch.column(0).to_numpy()
        at = np.searchsorted(ordered, there).clip(max=len(ordered) - 1)
        wanted = ordered[at] == there
        rows = batch.column(1).flatten().to_numpy().reshape(len(there), kind.list_size)
        into = places[at[wanted]]
        rows = rows if wanted.all() else rows[wanted]
        in_a_row = len(into) and (np.diff(into) == 1).all()  # written in a quarter of the time
        vectors[slice(into[0], into[-1] + 1) if in_a_row else into] = rows
    pa.default_memory_pool().release_unused()  # of the batches
    return torch.from_numpy(vectors)


def _read_part(folder: Path) -> tuple[Path, dict[str, Update]]:
    """Map the tables of a part; return its folder, too."""
    try:
        facts = PartManifest.load(folder / "part.json")
        found = {}
        for name, key in TABLES.items():
            rows = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
            if rows.num_rows != facts.rows[name]:
                raise ValueError(f"{name}.arrow has {rows.num_rows} rows, part.json says {facts.rows[name]}")
            gone = pa.array(facts.gone.get(name, []), rows.schema.field(key).type)
            found[name] = Update(rows, gone)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise WorkspaceError(f"{folder} cannot be read as a part: {error}", _DOCTOR) from None
    return folder, found


def write_base(tables: Mapping[str, pa.Table], dim: int, folder: Path, reading: int = 0) -> None:
    """Write a base that holds all rows of `TABLES` into an empty folder.

    Raises:
        WorkspaceError: If rows do not refer to each other, or are not finite.
    """
    schemas = part_schemas(dim, reading)
    changes = {name: _change(tables[name].cast(schemas[name]), name, None, None) for name in TABLES}
    _check_links({name: change.rows for name, change in changes.items()})
    _write_part(changes, folder)


def _write_part(changes: dict[str, Update], folder: Path) -> None:
    for name, change in changes.items():
        place = folder / f"{name}.arrow"
        with place.open("wb") as file, pa.ipc.new_file(file, change.rows.schema) as writer:
            writer.write_table(change.rows, max_chunksize=_ROWS)
    facts = PartManifest(
        rows={name: change.rows.num_rows for name, change in changes.items()},
        gone={name: sorted(change.gone.to_pylist()) for name, change in changes.items() if len(change.gone)},
    )
    facts.save(folder / "part.json")


def next_parts(tx: Transaction, reader: PartReader) -> PartDigests:
    """Write the part of the commit that `tx` is about to make, and return its parts; none if it cannot answer.

    Rows that the command wrote come from the tables and are checked; all others come from the parts of the commit
    before, whatever the tables hold by now. A rollback takes the target's parts; if there are none, or they are
    damaged, a base is made from the tables.

    Args:
        tx: The transaction, after the command's last write.
        reader: Reads existing parts.

    Raises:
        WorkspaceError: If rows do not refer to each other, are not finite, or were changed from outside.
    """
    state = tx.state
    if not (state.head and state.text_fp and state.selection_id):
        return ()
    old = state.parts
    if tx.goes_back and old:
        try:
            reader.read(old)
            return old
        except WorkspaceError:
            old = ()
    before = {name: reader.stored_rows(old, name) for name in TABLES} if old else {}
    try:
        changes = {name: _change_of(tx, name, before.get(name)) for name in TABLES}
    except MissingStepError:  # vectors are missing until the next `vlltr embed`
        return ()
    after = {
        name: change.applied(before[name], TABLES[name]) if old else change.rows
        for name, change in changes.items()
    }
    _check_counts(tx, after)
    if old and not any(change.rows.num_rows or len(change.gone) for change in changes.values()):
        return old
    delta = _merged(*reader.read(old), changes, after) if old else None
    part = delta or {name: _added(rows, name) for name, rows in after.items()}
    with tx.objects.put("parts") as made:
        _write_part(part, made.folder)
    return (old[0], made.digest) if delta else (made.digest,)


def _merged(
    base: dict[str, Update], delta: dict[str, Update], changes: dict[str, Update], after: dict[str, pa.Table]
) -> dict[str, Update] | None:
    """Merge a delta with newer changes; return None if a new base has to be written.

    Args:
        base: All rows that there were when the base was written.
        delta: What changed between then and the changes.
        changes: Those of this command.
        after: All rows after them.
    """
    merged = {}
    for name, key in TABLES.items():
        rows = changes[name].applied(delta[name].rows, key)
        if not rows.schema.equals(base[name].rows.schema):  # vectors of another width
            return None
        merged[name] = Update(rows, _lacking(base[name].rows, after[name], key))
    return merged if _SHARE * _size(merged) <= _size(base) else None


def _size(changes: dict[str, Update]) -> int:
    return sum(change.rows.nbytes + change.gone.nbytes for change in changes.values())


def _change_of(tx: Transaction, name: str, before: pa.Table | None) -> Update:
    """Return what a command changed in one of `TABLES`; all rows if there were no parts, or any may have changed."""
    if name in _COPIED:
        if before is None:
            return _change(tx.table(name), name, None, None)
        if name not in tx.touched:
            return _added(before.slice(0, 0), name)
        keys = tx.touched[name]
        if keys and name in _EDITED:
            _check_edited(tx, name, before, keys)
        return _change(_some(tx, name, KEYS[name], keys), name, keys, before)
    anew = before is None or (name == "anchors" and tx.state.text_fp != tx.commit.text_fp)
    if before is not None and not anew and tx.touched.keys().isdisjoint(_SOURCES):
        return _added(before.slice(0, 0), name)
    moved = None if before is None else tx.touched.get("anchors", set())
    sentences = None if anew else tx.touched.get("sentence_scores" if name == "ranks" else "sentences", set())
    where = None
    if moved is not None and sentences is not None and len(moved) + len(sentences) <= _FEW:
        where = f"{one_of('anchor_key', sorted(moved))} OR {one_of('sentence_id', sorted(sentences))}"
    rows = tx.table("anchors", [*_ANCHOR, "rank"], where)
    retold = _anchors_of(rows, sentences)
    if name == "ranks":
        ranked = None if moved is None or retold is None else moved | retold
        return _change(_rank_rows(tx, _among(rows, "anchor_key", ranked)), name, ranked, before)
    told = None
    if before is not None and moved is not None and retold is not None:
        told = retold | _came_or_went(_among(rows, "anchor_key", moved), before, moved)
    anchors = _anchor_rows(tx, _among(rows, "anchor_key", told), tx.state)
    return _change(anchors, name, told, before)


def _came_or_went(now: pa.Table, before: pa.Table, keys: set[int]) -> set[int]:
    """Return those of the keys whose anchors are new or gone; other anchors keep their text and vector.

    Raises:
        WorkspaceError: If one that there was is of another sentence now.
    """
    was = _among(before.select(_ANCHOR), "anchor_key", keys)
    here = set(now["anchor_key"].to_pylist())
    there = set(was["anchor_key"].to_pylist())
    one = _among(now.select(_ANCHOR), "anchor_key", here & there)
    other = _among(was, "anchor_key", here & there)
    key = _differs(one, other, "anchor_key")
    if key is not None:
        raise WorkspaceError(f"anchor {key} is of another sentence than it was", _SELECT)
    return here ^ there


def _change(rows: pa.Table, name: str, keys: set[Any] | None, before: pa.Table | None) -> Update:
    """Build the change of the rows with these keys to `rows`; with None, `rows` replace all rows of `before`.

    Raises:
        WorkspaceError: If a number is not finite.
    """
    key = rows.schema.field(TABLES[name])
    for column in rows.columns:
        values = pc.list_flatten(column) if pa.types.is_fixed_size_list(column.type) else column
        if pa.types.is_floating(values.type) and not _all(pc.is_finite(values.drop_null())):
            raise WorkspaceError(f"not all numbers for the table {name!r} are finite", _DOCTOR)
    if keys is not None:
        return Update(rows, pa.array(sorted(keys.difference(rows[key.name].to_pylist())), key.type))
    return _added(rows, name) if before is None else Update(rows, _lacking(before, rows, key.name))


def _added(rows: pa.Table, name: str) -> Update:
    """Return the change that adds rows and removes none."""
    return Update(rows, pa.array([], rows.schema.field(TABLES[name]).type))


def _lacking(older: pa.Table, newer: pa.Table, key: str) -> pa.Array:
    """Return the keys of rows of `older` that are not in `newer`."""
    keys = older[key].combine_chunks()
    return keys.filter(pc.invert(pc.is_in(keys, value_set=newer[key].combine_chunks())))


def _all(true: pa.ChunkedArray) -> bool:
    return bool(pc.all(true, min_count=0).as_py())


def _among(rows: pa.Table, column: str, values: set[Any] | None) -> pa.Table:
    """Return the rows whose column has one of some values; with None, all rows."""
    if values is None:
        return rows
    return rows.filter(pc.is_in(rows[column], value_set=pa.array(values, rows.schema.field(column).type)))


def _some(
    snapshot: Snapshot, name: str, column: str, values: set[Any] | None, columns: list[str] | None = None
) -> pa.Table:
    """Read the rows of a table whose column has one of some values; with None, all rows."""
    if values is not None and len(values) <= _FEW:
        return snapshot.table(name, columns, one_of(column, sorted(values)))
    return _among(snapshot.table(name, columns), column, values)


def _anchors_of(anchors: pa.Table, sentences: set[str] | None) -> set[int] | None:
    """Return the keys of the anchors made from these sentences; None stands for all."""
    if sentences is None:
        return None
    return set(_among(anchors, "sentence_id", sentences)["anchor_key"].to_pylist())


def _anchor_rows(
    snapshot: Snapshot, anchors: pa.Table, state: State, columns: Sequence[str] = ("text", "vector")
) -> pa.Table:
    """Return anchors with text, which is checked if it is among the `columns`, and vector if that is.

    Raises:
        MissingStepError: If one has no vector.
        WorkspaceError: If one has no sentence, or its sentence is not the one that was written.
    """
    rows = anchors.select(_ANCHOR)
    ids = rows["sentence_id"].combine_chunks()
    sentences = _some(snapshot, "sentences", "sentence_id", set(ids.to_pylist()), columns=_SENTENCE)
    at = pc.index_in(ids, value_set=sentences["sentence_id"].combine_chunks())
    if at.null_count:
        key = rows["anchor_key"].filter(at.is_null())[0].as_py()
        raise WorkspaceError(f"anchor {key} is of a sentence that there is not", _SELECT)
    sentences = sentences.take(at)
    hashes: list[str] = sentences["text_hash"].to_pylist()
    texts = zip(
        ids.to_pylist(), rows["class_id"].to_pylist(), hashes, sentences["text"].to_pylist(), strict=True
    )
    for key, class_id, hashed, text in texts if "text" in columns else ():
        if text_hash(text) != hashed or sentence_id(class_id, hashed) != key:
            raise WorkspaceError(
                f"sentence {key!r} of class {class_id} is not the one that was written: {text!r}", _DOCTOR
            )
    for name in _TEXT:
        rows = rows.append_column(sentences.schema.field(name), sentences[name])
    if "vector" not in columns:
        return rows
    vectors = sentence_numbers(snapshot, state, hashes)
    flat = pa.array(vectors.contiguous().view(-1).numpy())
    return rows.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))


def _rank_rows(snapshot: Snapshot, anchors: pa.Table) -> pa.Table:
    """Return anchors with rank and loss, which is null if it is not known."""
    ids = anchors["sentence_id"].combine_chunks()
    columns = ["sentence_id", "loss"]
    scores = _some(snapshot, "sentence_scores", "sentence_id", set(ids.to_pylist()), columns=columns)
    at = pc.index_in(ids, value_set=scores["sentence_id"].combine_chunks())
    return anchors.select(["anchor_key", "rank"]).append_column("loss", scores["loss"].take(at))


def table_rows(snapshot: Snapshot, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Make the rows of one of `TABLES`, or some columns of it, of the tables of a commit, whatever its parts say.

    Raises:
        MissingStepError: If an anchor has no vector.
        WorkspaceError: If one has no sentence, or its sentence is not the one that was written.
    """
    if name in _COPIED:
        return snapshot.table(name, columns)
    rows = snapshot.table("anchors", [*_ANCHOR, "rank"])
    if name == "ranks":
        rows = _rank_rows(snapshot, rows)
    else:
        rows = _anchor_rows(snapshot, rows, snapshot.commit, columns or ("text", "vector"))
    return rows if columns is None else rows.select(list(columns))


def _check_edited(tx: Transaction, name: str, before: pa.Table, keys: set[Any]) -> None:
    """Check that rows that a command changed were, before it, those of the parts: it may have copied values.

    Raises:
        WorkspaceError: If they were not.
    """
    was = _some(tx.before, name, KEYS[name], keys)
    if (key := _differs(was, _among(before, KEYS[name], keys), KEYS[name])) is not None:
        raise WorkspaceError(_other(name, key, tx.commit.id), f"{_DOCTOR}. {BACK}")


def _differs(one: pa.Table, other: pa.Table, key: str) -> Any:
    """Return the key of a row in which two tables differ, or None."""
    one = one.sort_by(key)
    other = other.sort_by(key)
    if one.equals(other):
        return None
    apart = set(one[key].to_pylist()) ^ set(other[key].to_pylist())
    if apart:
        return min(apart)
    rows = zip(one.to_batches(1), other.to_batches(1), strict=False)
    return next((a[key][0].as_py() for a, b in rows if not a.equals(b)), one[key][0].as_py())


def _other(name: str, key: Any, commit: int) -> str:
    return f"table {name!r} is not what commit {commit} answers with: {TABLES[name]} {key!r}, for example"


def _check_counts(tx: Transaction, after: Mapping[str, pa.Table]) -> None:
    """Check that the parts have as many rows as the tables, and that their keys refer to each other.

    Raises:
        WorkspaceError: If they do not.
    """
    for name, part in after.items():
        table = "anchors" if name == "ranks" else name
        if table in tx.touched and (count := tx.count(table)) != part.num_rows:
            raise WorkspaceError(
                f"table {table!r} has {count:,} rows; with what this command wrote it should have {part.num_rows:,}",
                f"{_DOCTOR}. {BACK}",
            )
    _check_links(after)


def _check_links(rows: Mapping[str, pa.Table]) -> None:
    """Check that keys of the tables of a part refer to each other.

    Raises:
        WorkspaceError: If one does not.
    """
    for one, other, key in _LINKS:
        known = pc.is_in(rows[one][key], value_set=rows[other][key].combine_chunks())
        if not _all(known):
            key_of = rows[one][key].filter(pc.invert(known))[0].as_py()
            raise WorkspaceError(f"{one} has the {key} {key_of}, which {other} has not", _DOCTOR)


def differences(snapshot: Snapshot) -> Iterator[str]:
    """Yield a sentence for each table of a commit that differs from its parts.

    Raises:
        WorkspaceError: If a table or a part is damaged.
    """
    for name, key in TABLES.items() if snapshot.commit.parts else ():
        found = _differs(table_rows(snapshot, name), snapshot.rows(name), key)
        if found is not None:
            yield _other(name, found, snapshot.commit.id)
