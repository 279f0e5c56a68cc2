"""Parts after many changes in a row: their rows are those of one rewrite, whatever the changes were."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import objects
from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.pipelines.history import rollback
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.schemas.tables import class_stats, sentence_vectors
from vlltr_index.store.parts import TABLES, table_rows
from vlltr_index.store.tables import one_of
from vlltr_index.store.transaction import Transaction
from vlltr_index.store.workspace import Workspace

DIM = 4
FIRST = 12
"""Classes of the first commit."""


def build(folder: Path) -> Workspace:
    """Write a workspace of twelve classes that holds rows, and no encoder or head that could answer."""
    workspace = Workspace.create(folder, load_recipe("glyphs_lt/ours"))
    head = objects.put(workspace, "heads", lambda place: (place / "head").write_text("none"))
    with workspace.transaction("first") as tx:
        tx.store.create("sentence_vectors_t", sentence_vectors(DIM), "text_hash")
        tx.set(text_fp="t", image_fp="i", selection_id="s", head=head)
        tx.note(dim=DIM, logit_scale=10.0)
        for _ in range(FIRST):
            add(tx, 3)
    return workspace


def put(tx: Transaction, table: str, schema: pa.Schema, **columns: list[object]) -> None:
    """Write rows with these columns; all others are null."""
    count = len(next(iter(columns.values())))
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
    tx.upsert(table, pa.table(arrays, schema=schema))


def add(tx: Transaction, sentences: int) -> None:
    """Add a class with as many sentences, each an anchor."""
    owner = tx.next_id("classes")
    texts = [f"Sentence {n} of class {owner}." for n in range(sentences)]
    hashes = [text_hash(text) for text in texts]
    ids = [sentence_id(owner, key) for key in hashes]
    owners = [owner] * sentences
    write_class(tx, owner, f"class {owner}")
    put(
        tx,
        "sentences",
        tx.schema("sentences"),
        sentence_id=ids,
        text_hash=hashes,
        class_id=owners,
        text=texts,
        source=["made"] * sentences,
        position=[0] * sentences,
    )
    vectors = np.random.default_rng(owner).standard_normal((sentences, DIM)).astype(np.float32)
    tx.store.append(
        "sentence_vectors_t",
        pa.table({"text_hash": hashes, "vector": list(vectors)}).cast(sentence_vectors(DIM)),
    )
    write_scores(tx, ids, 1.0)
    first = tx.next_id("anchors", sentences)
    put(
        tx,
        "anchors",
        tx.schema("anchors"),
        anchor_key=[*range(first, first + sentences)],
        selection_id=["s"] * sentences,
        class_id=owners,
        sentence_id=ids,
        rank=[*range(sentences)],
    )
    write_stats(tx, owner, 1)


def write_class(tx: Transaction, owner: int, name: str) -> None:
    """Write a class under a name."""
    put(
        tx,
        "classes",
        tx.schema("classes"),
        class_id=[owner],
        name=[name],
        aliases=[[]],
        origin=["trained"],
        created_at=[""],
    )


def write_scores(tx: Transaction, ids: list[str], loss: float) -> None:
    """Give sentences one loss."""
    facts = {name: ["x"] * len(ids) for name in ("text_fp", "image_fp", "image_set")}
    numbers = {name: [1.0] * len(ids) for name in ("scale", "lse", "last_exact_lse", "positive")}
    schema = tx.schema("sentence_scores")
    put(tx, "sentence_scores", schema, sentence_id=ids, loss=[loss] * len(ids), **facts, **numbers)


def write_stats(tx: Transaction, owner: int, images: int) -> None:
    """Write the statistics of a class's images."""
    sums = [[float(images)] * DIM]
    put(tx, "class_stats", class_stats(DIM), class_id=[owner], image_fp=["i"], images=[images], sum=sums)


def change(tx: Transaction, kind: str, number: int) -> None:
    """Make a change of a kind to the class that the number picks."""
    owners = sorted(tx.table("classes", ["class_id"])["class_id"].to_pylist())
    owner = owners[number % len(owners)]
    if kind == "add":
        add(tx, 1 + number % 4)
    elif kind == "remove" and len(owners) > 1:
        for table in ("anchors", "class_stats", "classes"):
            tx.delete(table, one_of("class_id", [owner]))
    elif kind == "rename":
        write_class(tx, owner, f"name {number} of {owner}")
    elif kind == "images":
        write_stats(tx, owner, number)
    elif kind == "scores":
        write_scores(tx, tx.table("anchors", ["sentence_id"])["sentence_id"].to_pylist(), float(number))
    elif kind == "hierarchy":
        names = [f"class {one}" for one in owners[: 1 + number % 5]]
        nodes = [{"name": name, "parent": f"group {number % 3}", "rank": None} for name in names]
        tx.replace("taxonomy", pa.Table.from_pylist(nodes, schema=tx.schema("taxonomy")))


def check(workspace: Workspace) -> None:
    """Check that parts and tables have the same rows, and that there are at most two parts."""
    snapshot = Workspace.open(workspace.path).snapshot()
    assert len(snapshot.commit.parts) in (1, 2)
    for name, key in TABLES.items():
        assert snapshot.rows(name).sort_by(key).equals(table_rows(snapshot, name).sort_by(key)), name


KINDS = ("add", "remove", "rename", "images", "scores", "hierarchy", "back")
CHANGES = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 99)), min_size=3, max_size=10)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(CHANGES)
def test_changes_in_a_row_have_the_rows_of_one_rewrite(changes: list[tuple[str, int]]) -> None:
    """After each of any changes, rollbacks among them, the parts have the rows of the tables."""
    with TemporaryDirectory() as folder:
        workspace = build(Path(folder) / "workspace")
        for kind, number in changes:
            if kind == "back":
                rollback(workspace, 1 + number % workspace.history.last().id)
            else:
                with workspace.transaction(kind) as tx:
                    change(tx, kind, number)
            check(workspace)


@pytest.mark.slow
def test_a_delta_grows_until_a_new_base_is_written(tmp_path: Path) -> None:
    """Small changes replace the delta and keep the base; older commits keep their own parts."""
    workspace = build(tmp_path / "workspace")
    seen = [workspace.history.last().parts]
    for number in range(8):
        with workspace.transaction("images") as tx:
            change(tx, "images", 50 + number)
        seen.append(workspace.history.last().parts)
    with workspace.transaction("scores") as tx:
        change(tx, "scores", 7)
    with workspace.transaction("add") as tx:
        change(tx, "add", 3)
    assert len({*seen}) == len(seen)
    assert [len(parts) for parts in seen[:3]] == [1, 2, 2]
    assert seen[1][0] == seen[0][0]
    assert workspace.history.last().parts[0] != seen[0][0]
    check(workspace)
    for commit, parts in enumerate(seen, 1):
        assert workspace.snapshot(commit).commit.parts == parts
        for name, key in TABLES.items():
            snapshot = workspace.snapshot(commit)
            assert snapshot.rows(name).sort_by(key).equals(table_rows(snapshot, name).sort_by(key)), name
