"""Checksums beside the rows of tables: a change that no command made is noticed, whatever it was."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.changes import World
from tests.support.commands import run
from tests.support.commits import name_table
from tests.support.tablerows import image_rows, score_rows, vector_rows
from vlltr_index.anchors.selection import select
from vlltr_index.classes import add_class
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.doctor import check_workspace
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_text
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.tables import CHECKED, IMAGES, KEYS, SENTENCE_SCORES, sentence_vectors
from vlltr_index.store.checksums import CHECKSUM, checksums, covered, wrong_row
from vlltr_index.store.tables import Store, one_of
from vlltr_index.store.workspace import Workspace

SCHEMAS = {
    "images": pa.schema([IMAGES.field(name) for name in CHECKED["images"]]),
    "sentence_scores": SENTENCE_SCORES,
    "sentence_vectors_t": sentence_vectors(3),
}


def values(field: pa.Field) -> st.SearchStrategy[Any]:
    """What a column can hold."""
    floats = st.floats(width=32, allow_nan=False)
    kinds = {
        pa.string(): st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
        pa.int32(): st.integers(-(2**31), 2**31 - 1),
        pa.float64(): st.floats(allow_nan=False),
        pa.list_(pa.float32(), 3): st.lists(floats, min_size=3, max_size=3),
    }
    return kinds[field.type] | st.none() if field.nullable else kinds[field.type]


def rows_of(schema: pa.Schema) -> st.SearchStrategy[dict[str, Any]]:
    """A row of a table."""
    return st.fixed_dictionaries({field.name: values(field) for field in schema})


def batch(row: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Three rows, of which the second one is `row`."""
    other = {f.name: pa.scalar("x" if f.type == pa.string() else None, f.type).as_py() for f in schema}
    other |= {"vector": [0.0] * 3} if "vector" in other else {}
    return pa.RecordBatch.from_pylist([other, row, other], schema=schema).slice(1, 1)


def bits(value: Any, kind: pa.DataType) -> bytes:
    """A value as it is stored."""
    if kind == pa.string():
        return str(value).encode()
    if kind == pa.list_(pa.float32(), 3):
        return struct.pack("<3f", *value)
    return struct.pack("<i" if kind == pa.int32() else "<d", value)


def plain(row: dict[str, Any], schema: pa.Schema) -> int:
    """The twin of `checksums` for one row, word by word."""
    texts = [
        bits(row[f.name], f.type) if row[f.name] is not None else b"\xff"
        for f in schema
        if f.type == pa.string()
    ]
    total, place = zlib.crc32(b"\0".join(texts)), 1
    for field in schema:
        if field.type == pa.string():
            continue
        value = row[field.name]
        data = b"\xff" * 8 if value is None else bits(value, field.type)
        size = 4 if field.name == "vector" else len(data)
        for at in range(0, len(data), size):
            total += place * int.from_bytes(data[at : at + size], "little")
            place += 2
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_another_value_is_another_checksum(name: str, data: st.DataObject) -> None:
    """In any column; and the checksum is that of its plain twin."""
    schema = SCHEMAS[name]
    row = data.draw(rows_of(schema))
    found = checksums(batch(row, schema))
    assert found.tolist() == [plain(row, schema)]
    field = data.draw(st.sampled_from(list(schema)))
    value = data.draw(values(field))
    changed = {**row, field.name: value}
    assume(not batch(changed, schema).equals(batch(row, schema)))
    assert checksums(batch(changed, schema)).tolist() != found.tolist()


@pytest.mark.parametrize("name", SCHEMAS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_another_bit_is_another_checksum(name: str, data: st.DataObject) -> None:
    """Whichever bit of whichever value it is, though no value has it then."""
    schema = SCHEMAS[name]
    row = data.draw(rows_of(schema))
    assume(fields := [field for field in schema if row[field.name] not in (None, "")])
    field = data.draw(st.sampled_from(fields))
    rows = batch(row, schema)
    found = checksums(rows)
    at = schema.get_field_index(field.name)
    stored = bits(row[field.name], field.type)
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    flipped = bytearray(stored)
    flipped[bit // 8] ^= 1 << bit % 8
    column = pa.py_buffer(bytes(flipped))
    if field.type == pa.string():
        offsets = pa.py_buffer(struct.pack("<2i", 0, len(flipped)))
        array = pa.Array.from_buffers(pa.string(), 1, [None, offsets, column])
    elif pa.types.is_fixed_size_list(field.type):
        array = pa.FixedSizeListArray.from_arrays(pa.Array.from_buffers(pa.float32(), 3, [None, column]), 3)
    else:
        array = pa.Array.from_buffers(field.type, 1, [None, column])
    columns = [array if n == at else one for n, one in enumerate(rows.columns)]
    assert checksums(pa.RecordBatch.from_arrays(columns, schema=schema)).tolist() != found.tolist()


def test_the_store_alone_sees_them(tmp_path: Path) -> None:
    """They are no column of what is read; whatever writes rows writes them, and what is read of vectors is compared."""
    store = Store(tmp_path)
    cases = (
        ("images", image_rows(range(20), data=b"x"), image_rows(range(10, 30), width=7)),
        ("sentence_scores", score_rows(range(20)), score_rows(range(10, 30), image_set="other")),
        ("sentence_vectors_t", vector_rows(["a", "b"], [[1, 2, 3]] * 2), vector_rows(["b"], [[3, 2, 1]])),
    )
    for name, first, second in cases:
        store.create(name, first.schema)
        store.append(name, first)
        store.upsert(name, second, first.column_names[0])
        store.delete(name, f"{first.column_names[0]} = '{first[0][0].as_py()}'")
        assert store.schema(name) == first.schema == store.read(name).schema
        assert next(store.scan(name)).schema.names == first.schema.names
        store.create(name, first.schema)  # is there
        columns = covered(name, first.schema)
        total = 0
        for rows in store.scan(name, [*columns, CHECKSUM]):
            assert checksums(rows.select(columns)).tolist() == rows[CHECKSUM].to_pylist()
            total += sum(rows[CHECKSUM].to_pylist())
        assert store.checksum(name) == total % 2**53
        store.check(name, total % 2**53)


def change_value(workspace: Workspace, table: str, column: str, value: object) -> str:
    """Change a value of a row of a table, as damage would; returns the row's key."""
    key: str = workspace.snapshot().table(table).sort_by(KEYS[table])[KEYS[table]][0].as_py()
    with workspace.store._table(table) as opened:
        opened.update(where=f"{KEYS[table]} = '{key}'", values={column: value})
    name_table(workspace, table)
    return key


HINTS = {
    "images": "make a new workspace (vlltr init DIR) and run there again what `vlltr history` lists.",
    "sentence_scores": "make all of its rows again: vlltr select",
}


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("images", "class_id", 3),
        ("images", "split", "trash"),
        ("images", "content_hash", "0" * 32),
        ("images", "problem", "damaged"),
        ("images", "image_id", "0" * 32),
        ("sentence_scores", "lse", 2.5),
        ("sentence_scores", "positive", 2.5),
        ("sentence_scores", "loss", 0.25),
        ("sentence_scores", "sentence_id", "0" * 32),
        ("sentence_scores", CHECKSUM, 1),
    ],
)
def test_a_change_of_classes_refuses_changed_rows(
    small: Workspace, capsys: pytest.CaptureFixture[str], table: str, column: str, value: object
) -> None:
    """The row is named, also where a condition would not find it, and the command that mends its table."""
    key = change_value(small, table, column, value)
    key = str(value) if column == KEYS[table] else key
    newest = small.history.last().id
    code, _, err = run(capsys, "-w", small.path, "classes", "add", "new", "--sentence", "a circle.")
    assert code == WorkspaceError.exit_code
    assert (
        f"table {table!r} in {small.store.uri} is damaged: the row {key!r} is not the one that was written"
        in err
    )
    assert f"Bring its folder {table}.lance back from a backup, or {HINTS[table]}" in err
    assert small.history.last().id == newest
    (found,) = (check for check in check_workspace(small.path) if check.name == f"table {table}")
    assert (found.state, key in found.value) == ("problem", True)


@pytest.mark.parametrize("table", ["classes", "sentences", "images", "sentence_scores"])
def test_rows_that_went_or_came_back_are_missed(small: Workspace, table: str) -> None:
    """As where a file that says which rows are deleted, or which files a table has, is another than was written."""
    key = one_of(KEYS[table], [small.store.read(table, [KEYS[table]])[KEYS[table]][0].as_py()])
    row = small.store.read(table, where=key)
    small.store.delete(table, key)
    name_table(small, table)
    for _ in range(2):
        with pytest.raises(WorkspaceError, match="rows are missing, or there are others than were written"):
            add_class(Workspace.open(small.path), "new", ["a circle."])
        small.store.append(table, pa.concat_tables([row, row]))
        name_table(small, table)


@pytest.mark.parametrize("table", ["classes", "sentences", "origins"])
def test_a_table_of_another_workspace_is_refused(tmp_path: Path, table: str) -> None:
    """Though it is at the same version, as of a workspace that was made by the same commands."""
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(f"These are {name}.\n", encoding="utf-8")
        workspace = Workspace.create(tmp_path / f"{name}.workspace", Recipe(name="test"))
        ingest_text(workspace, tmp_path / name)
    place = Path("lance") / f"{table}.lance"
    shutil.rmtree(workspace.path / place)
    shutil.copytree(tmp_path / "ants.workspace" / place, workspace.path / place)
    with pytest.raises(WorkspaceError, match=rf"'{table}' .*others than were written") as caught:
        ingest_text(Workspace.open(workspace.path), tmp_path / "bees")
    assert f"Bring its folder {table}.lance back from a backup" in str(caught.value.hint)
    assert workspace.history.last().id == 1


def test_a_table_that_lost_its_checksums_is_refused(small: Workspace) -> None:
    """As one with other columns is."""
    with small.store._table("sentence_scores") as table:
        table.drop_columns([CHECKSUM])
    name_table(small, "sentence_scores")
    with pytest.raises(WorkspaceError, match=r"has the columns .* and this program expects .*'checksum'\]"):
        add_class(Workspace.open(small.path), "new", ["a circle."])


def test_a_process_compares_what_it_wrote_itself_no_more(
    small: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two additions costs what it adds."""
    compared = list[int]()

    def noting(rows: pa.RecordBatch, columns: Sequence[str]) -> int | None:
        if tuple(columns) == tuple(CHECKED["sentence_scores"]):
            compared.append(rows.num_rows)
        return wrong_row(rows, columns)

    monkeypatch.setattr("vlltr_index.store.tables.wrong_row", noting)
    there = Workspace.open(small.path).snapshot().count("sentence_scores")
    compared.clear()
    add_class(small, "new", ["a circle around a dot."])
    assert sum(compared) == there
    compared.clear()
    add_class(small, "another", ["two dots."])
    assert compared == []


def test_selecting_mends_the_scores(small: Workspace, world: World) -> None:
    """Whichever value was changed, the checksum itself too; afterwards changes are as they would have been."""
    whole = Workspace.open(shutil.copytree(small.path, small.path.parent / "whole"))
    answers, scores = [], []
    for workspace, damaged in ((whole, False), (small, True)):
        for column, value in ((CHECKSUM, 5), ("positive", 0.0)):
            if damaged:
                change_value(workspace, "sentence_scores", column, value)
            select(workspace, workspace.recipe.select)
        add_class(workspace, "new", ["a circle around a dot."])
        (found,) = Recognizer.open(workspace).predict([world.pictures[0]], PredictOptions(explain=2))
        answers.append(found.classes)
        scores.append(workspace.snapshot().table("sentence_scores").sort_by("sentence_id"))
    assert scores[0].equals(scores[1])
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_going_back_takes_the_rows_that_there_were(small: Workspace) -> None:
    """And their checksums; what is damaged there is noticed by who reads it."""
    there = small.history.last()
    add_class(small, "new", ["a circle around a dot."])
    assert small.history.last().checksums != there.checksums
    rollback(small, there.id)
    assert small.history.last().checksums == there.checksums
    add_class(small, "new", ["a circle around a dot."])
    change_value(small, "sentence_scores", "loss", 0.25)
    rollback(Workspace.open(small.path), there.id)
    add_class(Workspace.open(small.path), "new", ["a circle around a dot."])
    small.store.restore("sentence_scores", there.tables["sentence_scores"])
    with small.store._table("sentence_scores") as table:
        table.update(where="true", values={"loss": 0.25})
    name_table(small, "sentence_scores", there.id, parts=[])  # which are made of the tables, then
    with pytest.raises(WorkspaceError, match=r"'sentence_scores' .*is damaged"):
        rollback(Workspace.open(small.path), there.id)


def test_a_row_of_a_vector_is_read_checked(tmp_path: Path) -> None:
    """Another value of one is noticed whichever row was asked for."""
    store = Store(tmp_path)
    store.create("v", sentence_vectors(3), "text_hash")
    store.append("v", vector_rows(["k0", "k1"], [[1, 2, 3], [4, 5, 6]]))
    assert store.vectors("v", "text_hash", ["k1"]).tolist() == [[4, 5, 6]]
    with store._table("v") as table:
        table.update(where="text_hash = 'k1'", values={"vector": [4.0, 5.0, 7.0]})
    with pytest.raises(WorkspaceError, match="the row 'k1' is not the one that was written") as error:
        store.vectors("v", "text_hash", ["k0"])
    assert str(error.value.hint) == (
        "Bring its folder v.lance back from a backup, or remove it, and make all of its vectors again: vlltr embed"
    )
