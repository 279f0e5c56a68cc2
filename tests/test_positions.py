"""The order in which a class's sentences came in, and the selection that goes by it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tablerows import class_rows, sentence_rows

from vlltr_index.rows import numbered
from vlltr_index.selection import select
from vlltr_index.workspace import Workspace


@given(owners=st.lists(st.integers(0, 3)), following=st.dictionaries(st.integers(0, 3), st.integers(0, 9)))
def test_numbers_go_on_within_each_owner(owners: list[int], following: dict[int, int]) -> None:
    """Each row's number is the owner's first plus how many of the owner came before; what follows is kept."""
    first = dict(following)
    found = numbered(owners, following).to_pylist()
    assert found == [first.get(o, 0) + owners[:i].count(o) for i, o in enumerate(owners)]
    assert following == first | {o: first.get(o, 0) + owners.count(o) for o in owners}


def order(workspace: Workspace, class_id: int) -> list[str]:
    """Sentences of a class in the order in which they came in."""
    rows = workspace.snapshot().table("sentences", ["position", "sentence_id"], f"class_id = {class_id}")
    return [i for _, i in sorted(zip(*(column.to_pylist() for column in rows.columns), strict=True))]


def test_sentences_are_numbered_as_they_come(workspace: Workspace) -> None:
    """Within a class, over commands and batches; what comes again keeps its number, and is no change."""
    with workspace.transaction("ingest text") as tx:
        tx.upsert("classes", class_rows([0, 1]))
        tx.upsert("sentences", iter(sentence_rows([5, 3, 8]).to_batches()))
        tx.upsert("sentences", sentence_rows([40, 41], class_id=1))
    with workspace.transaction("ingest text") as tx:
        assert tx.upsert("sentences", sentence_rows([8, 1, 5, 0])) == 2
    assert order(workspace, 0) == ["s5", "s3", "s8", "s1", "s0"]
    assert order(workspace, 1) == ["s40", "s41"]
    with workspace.transaction("ingest text") as tx:
        assert tx.upsert("sentences", sentence_rows([0, 1, 5])) == 0
    assert len(workspace.history.ids()) == 2


def test_many_sentences_at_once(workspace: Workspace) -> None:
    """More than are compared at once keep their order too."""
    with workspace.transaction("ingest text") as tx:
        tx.upsert("sentences", sentence_rows(range(2500, 0, -1)))
    assert order(workspace, 0) == [f"s{i}" for i in range(2500, 0, -1)]


def test_cutoff_takes_the_first_sentences(trained: Workspace) -> None:
    """`cutoff` keeps the first M sentences of each class in the order in which they came in, `anss` does not."""
    config = trained.recipe.select.model_copy(update={"mode": "cutoff", "max_anchors": 3})
    select(trained, config)
    anchors = trained.snapshot().table("anchors", ["class_id", "rank", "sentence_id"])
    rows = sorted(zip(*(column.to_pylist() for column in anchors.columns), strict=True))
    classes = trained.snapshot().class_table().ids
    chosen = {c: [i for owner, _, i in rows if owner == c] for c in classes}
    assert chosen == {c: order(trained, c)[:3] for c in classes}
    select(trained, config.model_copy(update={"mode": "anss"}))
    by_loss = trained.snapshot().table("anchors", ["class_id", "rank", "sentence_id"])
    assert sorted(zip(*(column.to_pylist() for column in by_loss.columns), strict=True)) != rows
