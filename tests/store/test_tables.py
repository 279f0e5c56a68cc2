"""Tables over LanceDB: every trap that has been met has a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.tablerows import class_rows, sentence_rows, vector_rows
from vlltr_index.errors import InputError, MissingStepError, WorkspaceError
from vlltr_index.schemas.tables import CLASSES, SENTENCES, sentence_vectors
from vlltr_index.store.tables import Store, quote


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with an empty table of classes."""
    result = Store(tmp_path / "lance")
    result.create("classes", CLASSES, "class_id")
    return result


def ids(store: Store, version: int | None = None) -> list[int]:
    """Class ids in the table, sorted."""
    return sorted(store.read("classes", ["class_id"], version=version)["class_id"].to_pylist())


def naive_vectors(rows: pa.Table, keys: list[str]) -> torch.Tensor:
    """Vectors by key, through a dictionary."""
    found = dict(zip(rows["text_hash"].to_pylist(), rows["vector"].to_pylist(), strict=True))
    return torch.tensor([found[k] for k in keys])


def test_create_refuses_other_columns_and_odd_names(store: Store) -> None:
    """A table of another layout is not taken for this one, and a name is no path."""
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* has the columns"):
        store.create("classes", SENTENCES)
    for name in ("../x", "a/b", "", "a b"):
        with pytest.raises(WorkspaceError, match=r"cannot be made: Invalid table name"):
            store.create(name, CLASSES)


def test_half_made_table_is_made_anew(store: Store, tmp_path: Path) -> None:
    """A writer killed in `create_table` leaves a name that does not open; it does not exist, and creating works."""
    (tmp_path / "lance" / "sentences.lance" / "_versions").mkdir(parents=True)
    assert "sentences" in store.names()
    assert not store.exists("sentences")
    assert store.keys("sentences", "text_hash") == set()
    store.create("sentences", SENTENCES, "sentence_id")
    store.append("sentences", sentence_rows([1]))
    assert store.count("sentences") == 1


def test_damaged_table_is_not_made_anew(store: Store, tmp_path: Path) -> None:
    """A table whose manifest is broken holds somebody's data: it is an error, never overwritten."""
    store.append("classes", class_rows([0]))
    for manifest in (tmp_path / "lance" / "classes.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"broken")
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* cannot be opened"):
        Store(tmp_path / "lance").create("classes", CLASSES, "class_id")


def test_upsert_keeps_the_last_of_equal_keys(store: Store) -> None:
    """A key that comes twice in one source makes one row (LanceDB alone would make two)."""
    twice = pa.concat_tables([class_rows([4], name="first"), class_rows([4], name="last")])
    store.upsert("classes", twice, "class_id")
    assert store.read("classes", ["name"])["name"].to_pylist() == ["last 4"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.append_column("more", pa.array([1])), "it has no column 'more'"),
        (lambda t: t.drop_columns(["name"]), 'Field "name" does not exist'),
        (lambda t: t.set_column(0, "class_id", pa.array(["x"])), "Failed to parse string: 'x'"),
        (lambda t: t.set_column(1, "name", pa.nulls(1, "string")), "Casting field 'name' with null"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    store: Store, change: Callable[[pa.Table], pa.Table], why: str
) -> None:
    """The table is named, with the reason."""
    with pytest.raises(InputError) as error:
        store.append("classes", change(class_rows([0])))
    assert error.value.message.startswith("rows do not fit table classes: ")
    assert why in error.value.message


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), None])
def test_vectors_that_are_not_numbers_are_refused(store: Store, number: float | None) -> None:
    """No NaN, infinity or null gets in."""
    store.create("v", sentence_vectors(3), "text_hash")
    bad = vector_rows(["a", "b"], [[1, 2, 3], [1.0, number, 0.0]])
    with pytest.raises(InputError, match="column 'vector' of table v has a vector that is not all finite"):
        store.append("v", bad)


def test_a_table_that_another_process_dropped_is_gone(store: Store) -> None:
    """Also where it was open here; and made again, it is read anew."""
    other = Store(store.uri)
    assert ids(store) == []
    other.drop("classes")
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* cannot be read: "):
        store.read("classes")
    assert not store.exists("classes")
    with pytest.raises(MissingStepError, match="there is no table 'classes'"):
        store.read("classes")
    other.create("classes", CLASSES, "class_id")
    assert ids(store) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.text(), other=st.text())
@example(value="' OR '1'='1", other="x'; DROP TABLE classes; --")
@example(value="\\'", other="\\")
def test_quoted_text_matches_itself_only(store: Store, value: str, other: str) -> None:
    """Whatever text is quoted, the condition finds the row with just that text, and nothing breaks out of it."""
    for text in (value, other):
        try:
            quote(text)
        except InputError:
            return
    rows = class_rows([0, 1])
    store.delete("classes", "true")
    store.append("classes", rows.set_column(1, "name", pa.array([value, other])))
    assert store.count("classes", f"name = {quote(value)}") == 1 + (value == other)


def filled(store: Store, batches: int, size: int) -> pa.Table:
    """A cache written in several appends, and its rows."""
    store.create("v", sentence_vectors(3), "text_hash")
    values = np.arange(batches * size * 3, dtype=np.float32).reshape(-1, 3)
    rows = vector_rows([f"k{i}" for i in range(len(values))], values.tolist())
    for start in range(0, len(values), size):
        store.append("v", rows.slice(start, size))
    return rows


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(wanted=st.lists(st.integers(0, 39), min_size=1, max_size=60))
def test_vectors_equal_their_twin(store: Store, wanted: list[int]) -> None:
    """Rows come in the order asked for, repeats too, whether few (a filter) or many (a scan)."""
    rows = filled(store, 4, 10) if not store.exists("v") else store.read("v")
    keys = [f"k{i}" for i in wanted]
    assert torch.equal(store.vectors("v", "text_hash", keys), naive_vectors(rows, keys))


def test_missing_vectors_are_counted(store: Store) -> None:
    """The error says how many are missing and what makes them."""
    filled(store, 1, 4)
    with pytest.raises(MissingStepError) as error:
        store.vectors("v", "text_hash", ["k0", "x", "k1", "y", "x"])
    assert str(error.value) == "2 of 4 vectors are not in v\nMake them: vlltr embed"
