"""Tables over LanceDB: every trap that has been met has a test."""

from __future__ import annotations

import pickle
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tablerows import class_rows, sentence_rows, vector_rows

from vlltr_index.errors import InputError, MissingStepError, VlltrError, WorkspaceError
from vlltr_index.schemas.tables import CLASSES, SENTENCES, sentence_vectors
from vlltr_index.store import Store, quote


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


def test_create_is_idempotent_and_keeps_rows(store: Store) -> None:
    """Making a table that is there changes nothing."""
    store.append("classes", class_rows([0, 1]))
    version = store.version("classes")
    store.create("classes", CLASSES, "class_id")
    assert (ids(store), store.version("classes"), store.names()) == ([0, 1], version, ["classes"])


def test_create_sets_the_primary_key(store: Store, tmp_path: Path) -> None:
    """The key is set even where a killed writer made the table and did not come to it."""
    lancedb.connect(tmp_path / "lance").create_table("sentences", schema=SENTENCES)
    store.create("sentences", SENTENCES, "sentence_id")
    table = lancedb.connect(tmp_path / "lance").open_table("sentences")
    with pytest.raises(ValueError, match="already set"):
        table.set_unenforced_primary_key(["sentence_id"])


def test_create_refuses_other_columns_and_odd_names(store: Store) -> None:
    """A table of another layout is not taken for this one, and a name is no path."""
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* has the columns"):
        store.create("classes", SENTENCES)
    for name in ("../x", "a/b", "", "a b"):
        with pytest.raises(WorkspaceError, match="is no name for a table"):
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


def test_half_made_table_can_be_dropped(store: Store, tmp_path: Path) -> None:
    """Dropping works on a half-made table and on none at all."""
    (tmp_path / "lance" / "sentences.lance" / "_versions").mkdir(parents=True)
    store.drop("sentences")
    store.drop("sentences")
    assert store.names() == ["classes"]


def test_missing_table_is_named(store: Store) -> None:
    """Reading a table that is not there says so."""
    with pytest.raises(MissingStepError) as error:
        store.read("anchors")
    assert str(error.value) == f"there is no table 'anchors' in {store.uri}\nSee what there is: vlltr status"


def test_damaged_table_is_not_made_anew(store: Store, tmp_path: Path) -> None:
    """A table whose manifest is broken holds somebody's data: it is an error, never overwritten."""
    store.append("classes", class_rows([0]))
    for manifest in (tmp_path / "lance" / "classes.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"broken")
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* cannot be opened"):
        Store(tmp_path / "lance").create("classes", CLASSES, "class_id")


def test_upsert_replaces_and_inserts(store: Store) -> None:
    """Rows are written by key, not by position."""
    store.upsert("classes", class_rows([0, 1, 2]), "class_id")
    store.upsert("classes", class_rows([1, 5], name="new"), "class_id")
    rows = store.read("classes", ["class_id", "name"]).sort_by("class_id")
    assert rows["name"].to_pylist() == ["class 0", "new 1", "class 2", "new 5"]


def test_upsert_keeps_the_last_of_equal_keys(store: Store) -> None:
    """A key that comes twice in one source makes one row (LanceDB alone would make two)."""
    twice = pa.concat_tables([class_rows([4], name="first"), class_rows([4], name="last")])
    assert store.upsert("classes", twice, "class_id") == 1
    assert store.read("classes", ["name"])["name"].to_pylist() == ["last 4"]


def test_batches_are_streamed(store: Store) -> None:
    """An iterator of batches is written batch by batch; empty ones make no version."""
    version = store.version("classes")
    batches = [
        *class_rows([0, 1]).to_batches(),
        *class_rows([0]).slice(0, 0).to_batches(),
        *class_rows([2]).to_batches(),
    ]
    assert store.append("classes", iter(batches)) == 3
    assert (ids(store), store.version("classes")) == ([0, 1, 2], version + 2)
    assert store.upsert("classes", iter(batches), "class_id") == 3
    assert ids(store) == [0, 1, 2]


def test_null_and_nan_vectors_are_refused(store: Store) -> None:
    """Neither way of writing lets a null or NaN vector in, and the message names the column."""
    store.create("v", sentence_vectors(3), "text_hash")
    for vector in (None, [float("nan")] * 3):
        bad = vector_rows(["a"], [vector])
        with pytest.raises(InputError, match="column 'vector' of table v"):
            store.append("v", bad)
        with pytest.raises(InputError, match="column 'vector' of table v"):
            store.upsert("v", bad, "text_hash")
    assert store.count("v") == 0


def test_handles_are_never_stale(store: Store) -> None:
    """What another connection writes is seen at once, by a store that read before."""
    other = Store(store.uri)
    assert ids(store) == []
    other.append("classes", class_rows([0]))
    assert ids(store) == [0]
    store.delete("classes", "class_id = 0")
    assert ids(other) == []


def test_versions_stay_readable(store: Store) -> None:
    """An old version reads as it was, with counts and conditions."""
    store.append("classes", class_rows([0, 1]))
    old = store.version("classes")
    store.delete("classes", "class_id = 0")
    store.upsert("classes", class_rows([1], name="new"), "class_id")
    assert (ids(store), ids(store, old)) == ([1], [0, 1])
    assert store.count("classes", "name = 'class 1'", old) == 1
    assert store.read("classes", ["name"], "class_id = 1", old)["name"].to_pylist() == ["class 1"]


def test_missing_version_is_named(store: Store) -> None:
    """A version that was never there, or was cleaned, says so."""
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* cannot be opened: .*99"):
        store.read("classes", version=99)
    with pytest.raises(WorkspaceError, match=r"table 'classes' in .* cannot be put back to version 99: "):
        store.restore("classes", 99)


def test_restore_makes_a_new_version(store: Store) -> None:
    """Restoring brings the rows back and leaves the versions after it readable."""
    store.append("classes", class_rows([0]))
    old = store.version("classes")
    store.append("classes", class_rows([1]))
    assert store.restore("classes", old) == old + 2
    assert (ids(store), ids(store, old + 1)) == ([0], [0, 1])


def test_tags_can_be_moved_and_removed(store: Store) -> None:
    """A tag that a killed writer left is moved."""
    store.append("classes", class_rows([0]))
    store.tag("classes", 1, "c1")
    store.tag("classes", 2, "c1")
    assert store.tags("classes") == {"c1": 2}
    with pytest.raises(WorkspaceError, match="version main:9 does not exist"):
        store.tag("classes", 9, "c2")
    store.untag("classes", "c1")
    assert store.tags("classes") == {}


def test_delete_counts_and_makes_no_empty_version(store: Store) -> None:
    """Deleting nothing leaves the version as it was."""
    store.append("classes", class_rows([0, 1]))
    version = store.version("classes")
    assert store.delete("classes", "class_id = 7") == 0
    assert store.version("classes") == version
    assert store.delete("classes", "class_id < 2") == 2


def test_optimize_merges_and_tolerates_tags(store: Store) -> None:
    """Merging keeps rows and old versions; cleaning keeps those from the oldest tag on."""
    for i in range(5):
        store.append("classes", class_rows([i]))
    store.tag("classes", 3, "c1")
    store.optimize("classes")
    assert ids(store) == list(range(5))
    assert ids(store, 3) == [0]


def versions_left(store: Store, upto: int) -> list[int]:
    """Versions of `classes` that can still be read."""
    left = []
    for version in range(1, upto + 1):
        with suppress(WorkspaceError):
            store.count("classes", version=version)
            left.append(version)
    return left


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean versions away that were made a moment ago."""
    monkeypatch.setattr("vlltr_index.store._MARGIN", timedelta(milliseconds=500))


@pytest.mark.usefixtures("at_once")
def test_clean_keeps_what_is_tagged(store: Store) -> None:
    """Versions before the oldest tag go, all later ones stay, and a file of no version goes."""
    for i in range(11):
        store.append("classes", class_rows([i]))
    time.sleep(1)
    store.append("classes", class_rows([11]))
    tagged = store.version("classes")
    store.delete("classes", "class_id = 0")
    rows, newest = store.read("classes").sort_by("class_id"), store.version("classes")
    store.tag("classes", tagged, "c1")
    stray = Path(store.uri) / "classes.lance" / "data" / "stray.lance"
    stray.write_bytes(b"left by a killed writer")
    store.clean("classes")
    assert not stray.exists()
    left = versions_left(store, store.version("classes"))
    assert {tagged, newest, store.version("classes")} <= set(left)
    assert min(left) == tagged
    assert store.read("classes").sort_by("class_id").equals(rows)
    assert ids(store, tagged) == list(range(12))
    assert store.restore("classes", tagged) > newest
    assert ids(store) == list(range(12))


@pytest.mark.usefixtures("at_once")
def test_clean_without_tags_keeps_the_newest(store: Store) -> None:
    """A cache has no tags: only its newest rows stay."""
    for i in range(12):
        store.append("classes", class_rows([i]))
    old = store.version("classes")
    time.sleep(1)
    store.clean("classes")
    assert min(versions_left(store, store.version("classes"))) > old
    assert ids(store) == list(range(12))


def test_a_store_pickles_without_its_connection(store: Store) -> None:
    """A worker process gets the address and connects itself."""
    store.append("classes", class_rows([0]))
    assert ids(pickle.loads(pickle.dumps(store))) == [0]  # noqa: S301  # our own bytes


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.text(), other=st.text())
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


@pytest.mark.parametrize(
    "text", ["' OR '1'='1", "x'; DROP TABLE classes; --", "\\'", "\\", '"', "%", "\n'\n", "''"]
)
def test_quoting_withstands_injection(store: Store, text: str) -> None:
    """Classic attempts match no row."""
    store.append("classes", class_rows([0, 1]))
    assert store.count("classes", f"name = {quote(text)}") == 0


def filled(store: Store, batches: int, size: int, dim: int = 3) -> pa.Table:
    """A cache written in several appends, and its rows."""
    store.create("v", sentence_vectors(dim), "text_hash")
    values = np.arange(batches * size * dim, dtype=np.float32).reshape(-1, dim)
    rows = vector_rows([f"k{i}" for i in range(len(values))], values.tolist(), dim)
    for start in range(0, len(values), size):
        store.append("v", rows.slice(start, size))
    return rows


def test_all_vectors_equal_their_twin(store: Store) -> None:
    """The zero-copy reading of a whole cache equals the one through Python lists."""
    rows = filled(store, 3, 7)
    keys, vectors = store.vectors("v", "text_hash")
    assert (vectors.dtype, tuple(vectors.shape)) == (torch.float32, (21, 3))
    assert sorted(keys.to_pylist()) == sorted(rows["text_hash"].to_pylist())
    assert torch.equal(vectors, naive_vectors(rows, keys.to_pylist()))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(wanted=st.lists(st.integers(0, 39), min_size=1, max_size=60))
def test_chosen_vectors_equal_their_twin(store: Store, wanted: list[int]) -> None:
    """Rows come in the order asked for, repeats too, whether few (a filter) or many (a scan)."""
    rows = filled(store, 4, 10) if not store.exists("v") else store.read("v")
    keys = [f"k{i}" for i in wanted]
    names, vectors = store.vectors("v", "text_hash", keys)
    assert names == keys
    assert torch.equal(vectors, naive_vectors(rows, keys))


def test_vectors_of_an_old_version(store: Store) -> None:
    """A version can be named, and then later rows are missing."""
    rows = filled(store, 2, 4)
    version = store.version("v") - 1
    assert len(store.vectors("v", "text_hash", version=version)[1]) == 4
    keys = [f"k{i}" for i in range(4)]
    assert torch.equal(store.vectors("v", "text_hash", keys, version)[1], naive_vectors(rows, keys))
    with pytest.raises(MissingStepError, match="1 of 1 vectors are not in v"):
        store.vectors("v", "text_hash", ["k5"], version)


def test_missing_vectors_are_counted(store: Store) -> None:
    """The error says how many are missing and what makes them."""
    filled(store, 1, 4)
    with pytest.raises(MissingStepError) as error:
        store.vectors("v", "text_hash", ["k0", "x", "k1", "y", "x"])
    assert str(error.value) == "2 of 4 vectors are not in v\nMake them: vlltr embed"
    with pytest.raises(MissingStepError, match="2 of 2 vectors are not in w"):
        store.vectors("w", "text_hash", ["a", "b", "a"])


def test_no_keys_give_no_rows(store: Store) -> None:
    """Asking for nothing gives nothing, whether the cache is there or not."""
    assert len(store.vectors("v", "text_hash", [])[1]) == 0
    filled(store, 1, 2)
    assert store.vectors("v", "text_hash", [])[0] == []
    store.delete("v", "true")
    keys, vectors = store.vectors("v", "text_hash")
    assert (len(keys), tuple(vectors.shape)) == (0, (0, 3))


def test_vector_batches_share_memory_and_skip_nulls(tmp_path: Path) -> None:
    """Batches are views of Arrow's memory; a row without a vector (another program's) is left out."""
    store = Store(tmp_path)
    schema = pa.schema([("text_hash", pa.string()), ("vector", pa.list_(pa.float32(), 3))])
    store.create("v", schema, None)
    store.append(
        "v",
        pa.Table.from_arrays(
            vector_rows(["a", "b", "c"], [[1, 2, 3], None, [4, 5, 6]]).columns, schema=schema
        ),
    )
    parts = list(store.vector_batches("v", "text_hash"))
    assert [k for keys, _ in parts for k in keys.to_pylist()] == ["a", "c"]
    assert torch.equal(torch.cat([v for _, v in parts]), torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    keys, vectors = store.vectors("v", "text_hash")
    assert (keys.to_pylist(), len(vectors)) == (["a", "c"], 2)
    with pytest.raises(MissingStepError):
        store.vectors("v", "text_hash", ["b"])


def test_vectors_of_many_small_appends(store: Store) -> None:
    """Keys are looked up in groups that span the fragments of many appends."""
    rows = filled(store, 40, 2)
    keys = [f"k{i}" for i in reversed(range(80))]
    assert torch.equal(store.vectors("v", "text_hash", keys)[1], naive_vectors(rows, keys))


def test_errors_are_of_one_tree(store: Store) -> None:
    """Everything that is raised on purpose is a VlltrError."""
    with pytest.raises(VlltrError):
        store.append("nowhere", class_rows([0]))
