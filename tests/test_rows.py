"""Checks on rows, and literals in conditions."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tablerows import class_rows, vector_rows

from vlltr_index.errors import InputError
from vlltr_index.rows import conform, last_per_key, one_of, quote
from vlltr_index.schemas.tables import CLASSES, sentence_vectors


def test_conform_orders_columns_and_fills_nullable_ones() -> None:
    """Columns come in the schema's order and types; a nullable one that is left out is null."""
    rows = class_rows([3])
    given_ = pa.table({n: rows[n] for n in reversed(rows.column_names) if n != "retired_at"})
    given_ = given_.set_column(given_.column_names.index("class_id"), "class_id", pa.array([3], pa.int64()))
    assert conform(given_, CLASSES, "classes").equals(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.append_column("more", pa.array([1])), "table classes has no column 'more'; it has ["),
        (lambda t: t.drop_columns(["name"]), "column 'name' of table classes is missing"),
        (
            lambda t: t.set_column(0, "class_id", pa.array(["x"])),
            "column 'class_id' of table classes holds int32, got string: ",
        ),
        (
            lambda t: t.set_column(0, "class_id", pa.array([2**40])),
            "column 'class_id' of table classes holds int32, got int64: ",
        ),
        (
            lambda t: t.set_column(1, "name", pa.array([None], pa.string())),
            "column 'name' of table classes may not be null; 1 rows are",
        ),
    ],
)
def test_conform_names_what_does_not_fit(change: object, message: str) -> None:
    """Each way not to fit has its own message."""
    assert callable(change)
    with pytest.raises(InputError) as error:
        conform(change(class_rows([0])), CLASSES, "classes")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0, float("nan"), 0.0], "column 'vector' of table v has a vector that is not all finite numbers"),
        ([1.0, float("-inf"), 0.0], "column 'vector' of table v has a vector that is not all finite numbers"),
        ([1.0, None, 0.0], "column 'vector' of table v has a vector that is not all finite numbers"),
        (None, "column 'vector' of table v may not be null; 1 rows are"),
    ],
)
def test_conform_refuses_vectors_that_are_not_numbers(vector: list[float] | None, message: str) -> None:
    """A vector with NaN, infinity or null in it never gets into a table."""
    with pytest.raises(InputError) as error:
        conform(vector_rows(["a", "b"], [[1, 2, 3], vector]), sentence_vectors(3), "v")
    assert str(error.value) == message


def test_conform_refuses_another_width() -> None:
    """Vectors of another encoder's width are refused."""
    with pytest.raises(InputError, match="holds fixed_size_list"):
        conform(vector_rows(["a"], [[1, 2, 3, 4]], dim=4), sentence_vectors(3), "v")


def test_conform_looks_at_a_slice_only() -> None:
    """A bad vector outside the slice that is handed in does no harm."""
    rows = vector_rows(["a", "b"], [[float("nan"), 0, 0], [1, 2, 3]]).slice(1)
    assert conform(rows, sentence_vectors(3), "v")["vector"].to_pylist() == [[1, 2, 3]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers())))
def test_last_per_key_is_what_a_dictionary_keeps(pairs: list[tuple[int, int]]) -> None:
    """Of equal keys the last row stays; the rows that stay keep their order."""
    pairs = [(k, v % 2**31) for k, v in pairs]
    rows = pa.table(
        {"k": pa.array([k for k, _ in pairs], pa.int64()), "v": pa.array([v for _, v in pairs], pa.int64())}
    )
    kept = last_per_key(rows, "k")
    naive = [p for n, p in enumerate(pairs) if p[0] not in [k for k, _ in pairs[n + 1 :]]]
    assert list(zip(kept["k"].to_pylist(), kept["v"].to_pylist(), strict=True)) == naive


def test_quote_refuses_what_cannot_be_stored() -> None:
    """Lone surrogates and null characters have no SQL literal."""
    with pytest.raises(InputError, match="not valid Unicode text"):
        quote("\ud800")
    with pytest.raises(InputError, match="null character"):
        quote("a\0b")


def test_one_of_lists_literals() -> None:
    """Text is quoted, numbers are not, and nothing at all matches nothing."""
    assert one_of("a", ["x'y", "z"]) == "a IN ('x''y', 'z')"
    assert one_of("a", [1, 2]) == "a IN (1, 2)"
    assert one_of("a", []) == "false"
