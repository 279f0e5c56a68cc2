"""One command, one commit: what is written, what is put back, and what is not worth a commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyarrow as pa
import pytest

from tests.support.tablerows import anchor_rows, class_rows, image_rows, score_rows, sentence_rows, stats_rows
from vlltr_index.errors import InputError, WorkspaceError
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.tables import SENTENCES, sentence_vectors
from vlltr_index.store.snapshot import Commit, Info
from vlltr_index.store.transaction import Transaction, put_back
from vlltr_index.store.workspace import Workspace


def write(workspace: Workspace, **tables: pa.Table) -> Commit:
    """One transaction that upserts `tables`."""
    with workspace.transaction("ingest") as tx:
        for name, rows in tables.items():
            tx.upsert(name, rows)
    return tx.result_commit


@contextmanager
def interrupted(workspace: Workspace) -> Iterator[Transaction]:
    """A transaction that Ctrl-C ends."""
    with suppress(KeyboardInterrupt), workspace.transaction("ingest") as tx:
        yield tx
        raise KeyboardInterrupt


def ids(workspace: Workspace, at: int | None = None) -> list[int]:
    """Class ids that a commit holds."""
    return sorted(workspace.snapshot(at).table("classes", ["class_id"])["class_id"].to_pylist())


def test_a_transaction_makes_one_commit(workspace: Workspace) -> None:
    """All tables and fields come in one commit, which names the versions and is tagged."""
    with workspace.transaction("train lgr") as tx:
        tx.upsert("classes", class_rows([0, 1]))
        tx.upsert("sentences", sentence_rows(range(3)))
        tx.set(
            text_fp="t",
            head="d" * 64,
            fusion=FusionConfig(alpha=0.7),
            index={"digest": "e", "kind": "flat", "text_fp": "t"},
        )
        tx.note(logit_scale=2.5)
    commit = tx.result_commit
    assert (commit.id, commit.parent, commit.command) == (1, None, "train lgr")
    assert (commit.text_fp, commit.head, commit.fusion) == ("t", "d" * 64, FusionConfig(alpha=0.7))
    assert commit.info == Info(logit_scale=2.5, next={"classes": 2})
    assert commit.tables == {n: workspace.store.version(n) for n in ("classes", "sentences")}
    assert workspace.store.tags("classes") == {"c1": commit.tables["classes"]}
    assert list(workspace.history.list()) == [commit]


def test_in_a_trial_each_command_finds_what_those_before_it_wrote(workspace: Workspace) -> None:
    """Nothing is committed, after an error neither; then commands commit as before."""
    write(workspace, classes=class_rows([0]))
    with workspace.trial():
        write(workspace, classes=class_rows([1]))
        write(workspace, classes=class_rows([2]))
        assert ids(workspace) == [0, 1, 2]
    with suppress(KeyboardInterrupt), workspace.trial():
        write(workspace, classes=class_rows([3]))
        raise KeyboardInterrupt
    assert (ids(workspace), workspace.history.last().id) == ([0], 1)
    assert write(workspace, classes=class_rows([4])).id == 2
    assert ids(workspace) == [0, 4]


def test_what_a_command_does_not_touch_is_handed_on(workspace: Workspace) -> None:
    """Fields, facts and tables stay until they are set again; None takes a field or a fact away."""
    with workspace.transaction("embed") as tx:
        tx.upsert("classes", class_rows([0]))
        tx.set(text_fp="t", image_fp="i")
        tx.note(logit_scale=1.0, baseline_fc="b")
    with workspace.transaction("select") as tx:
        tx.set(selection_id="s", image_fp=None)
        tx.note(baseline_fc=None)
    commit = tx.result_commit
    assert (commit.text_fp, commit.image_fp, commit.selection_id) == ("t", None, "s")
    assert commit.info == Info(logit_scale=1.0, next={"classes": 1})
    assert workspace.store.tags("classes") == dict.fromkeys(("c1", "c2"), commit.tables["classes"])


def test_nothing_new_is_no_commit(workspace: Workspace) -> None:
    """The same rows, fields and facts again change nothing, not even a table's version."""

    def run() -> Commit:
        with workspace.transaction("ingest") as tx:
            tx.upsert("classes", class_rows([0, 1], retired=[1]))
            tx.upsert("images", image_rows(range(4), data=b"bytes", width=3))
            tx.replace("anchors", anchor_rows(range(3)))
            tx.replace("sentence_scores", score_rows([]))
            tx.delete("classes", "class_id = 99")
            tx.set(text_fp="t", fusion=FusionConfig(), index={"digest": "e", "kind": "flat", "text_fp": "t"})
            tx.note(logit_scale=1.0, baselines={"crt": "c"})
        return tx.result_commit

    first = run()
    assert run() == first
    assert len(workspace.history.list()) == 1
    assert workspace.store.version("images") == first.tables["images"]


def test_upsert_counts_what_changed(workspace: Workspace) -> None:
    """New and different rows are counted and written; a null where a value was is a difference."""
    write(workspace, images=image_rows(range(3), width=7), classes=class_rows([0, 1]))
    with workspace.transaction("ingest") as tx:
        rows = pa.concat_tables([image_rows([0], width=7), image_rows([1], width=8), image_rows([2, 3])])
        assert tx.upsert("images", rows) == 3
        renamed = class_rows([1]).set_column(2, "aliases", pa.array([["other"]]))
        assert tx.upsert("classes", renamed) == 1
    rows = workspace.snapshot().table("images", ["image_id", "width"]).sort_by("image_id")
    assert rows["width"].to_pylist() == [7, 8, None, None]


def test_a_transaction_reads_its_own_writes(workspace: Workspace) -> None:
    """Reads inside show the newest rows; a snapshot outside shows the commit."""
    write(workspace, classes=class_rows([0]))
    with workspace.transaction("classes add") as tx:
        assert len(tx.class_table()) == 1
        tx.upsert("classes", class_rows([5]))
        assert tx.class_table().lookup("class 5") == 5
        assert tx.count("classes") == 2
        assert [r for b in tx.scan("classes", ["class_id"]) for r in b.column(0).to_pylist()] == [0, 5]
        assert tx.commit.id == 1
        assert ids(workspace) == [0]
        tx.delete("classes", "class_id = 0")
        assert tx.class_table().ids == (5,)
    assert ids(workspace) == [5]


def test_an_error_puts_everything_back(workspace: Workspace) -> None:
    """After an error rows are as before, new tables are gone, and nothing is committed."""
    write(workspace, classes=class_rows([0, 1]))
    with interrupted(workspace) as tx:
        tx.upsert("classes", class_rows([0, 5], name="new"))
        tx.delete("classes", "class_id = 1")
        tx.upsert("sentences", sentence_rows(range(3)))
        tx.store.create("sentence_vectors_t", sentence_vectors(3), "text_hash")
    assert workspace.store.names() == [
        "classes",
        "sentence_vectors_t",
    ]  # vectors stay: that is how it resumes
    assert workspace.store.read("classes").sort_by("class_id").equals(class_rows([0, 1]))
    assert len(workspace.history.list()) == 1
    write(workspace, classes=class_rows([2]))
    assert ids(workspace) == [0, 1, 2]


def test_what_an_unfinished_writer_left_is_put_back(workspace: Workspace) -> None:
    """Versions, tables and tags that no commit names are undone by the next writer, and never read."""
    commit = write(workspace, classes=class_rows([0]))
    store = workspace.store
    store.upsert("classes", class_rows([0, 9], name="stray"), "class_id")
    store.create("sentences", SENTENCES, "sentence_id")
    store.append("sentences", sentence_rows([0]))
    store.tag("classes", store.version("classes"), "c2")
    (workspace.path / "lance" / "images.lance" / "_versions").mkdir(parents=True)
    assert ids(workspace) == [0]
    with workspace.transaction("embed") as tx:
        assert tx.table("classes").equals(class_rows([0]))
        assert not tx.has("sentences")
    assert store.names() == ["classes"]
    assert put_back(store, commit) == []
    after = write(workspace, classes=class_rows([1]), sentences=sentence_rows([4]), images=image_rows([0]))
    assert (
        store.tags("classes").items()
        >= {"c1": commit.tables["classes"], "c2": after.tables["classes"]}.items()
    )
    assert (ids(workspace, 1), ids(workspace)) == ([0], [0, 1])


def test_replace_makes_a_table_just_that(workspace: Workspace) -> None:
    """Rows that are not given go; the same rows in another order are no change."""
    with workspace.transaction("select") as tx:
        assert tx.replace("anchors", anchor_rows([1, 2, 3]))
        assert not tx.replace("anchors", anchor_rows([3, 1, 2]))
        assert tx.replace("anchors", anchor_rows([2, 4]))
        assert tx.replace("anchors", anchor_rows([2, 4], sentence="other"))
        assert tx.upsert("anchors", anchor_rows([5])) == 1
    assert sorted(workspace.snapshot().table("anchors")["anchor_key"].to_pylist()) == [2, 4, 5]
    with workspace.transaction("select") as tx:
        assert tx.replace("anchors", anchor_rows([]))
        assert not tx.replace("anchors", anchor_rows([]))
    assert workspace.snapshot().count("anchors") == 0
    with pytest.raises(InputError) as error, workspace.transaction("select") as tx:
        tx.replace("anchors", anchor_rows([1, 1]))
    assert str(error.value) == "two rows for table anchors have the same anchor_key"


def test_numbers_are_never_used_again(workspace: Workspace) -> None:
    """Numbers go up over deletions, replacements and commits; those of a failed command are free again."""
    with workspace.transaction("select") as tx:
        assert (tx.next_id("anchors", 3), tx.next_id("anchors", 2), tx.next_id("anchors", 0)) == (0, 3, 5)
        tx.upsert("anchors", anchor_rows(range(5)))
        tx.delete("anchors", "anchor_key >= 2")
    with interrupted(workspace) as tx:
        assert tx.next_id("anchors", 10) == 5
    with workspace.transaction("select") as tx:
        assert tx.next_id("anchors") == 5
        tx.replace("anchors", anchor_rows([9]))
    with workspace.transaction("select") as tx:
        tx.delete("anchors", "true")
    with workspace.transaction("select") as tx:
        assert tx.next_id("anchors") == 10


def test_statistics_take_the_width_they_are_given(workspace: Workspace) -> None:
    """A new encoder's width makes the table anew; the commits before still read the old one."""
    for rows in (stats_rows([1], 3), stats_rows([2], 5)):
        write(workspace, class_stats=rows)
    assert workspace.snapshot(1).table("class_stats").equals(stats_rows([1], 3))
    assert workspace.snapshot().table("class_stats").equals(stats_rows([2], 5))
    with interrupted(workspace) as tx:
        tx.upsert("class_stats", stats_rows([4], 7))
    write(workspace, class_stats=stats_rows([2, 3], 5))
    assert workspace.snapshot().count("class_stats") == 2


def test_a_table_that_somebody_deleted_is_named(workspace: Workspace) -> None:
    """A commit whose table is gone stops the next writer before it does more harm."""
    write(workspace, classes=class_rows([0]))
    workspace.store.drop("classes")
    with pytest.raises(WorkspaceError) as error:
        write(workspace, classes=class_rows([1]))
    assert (
        error.value.message
        == f"commit 1 names the table 'classes', which is gone from {workspace.store.uri} or does not open"
    )


def test_no_key_is_written_twice(workspace: Workspace) -> None:
    """However many rows a table is asked for at a time."""
    with workspace.transaction("ingest") as tx:
        for ids_ in (
            range(1500),
            [5000, 5001],
            range(1400, 2600),
            [5001, 5002],
            [*range(2500, 3600), 5000, 5002],
        ):
            tx.upsert("classes", class_rows(ids_))
        for number in range(6000, 6012):
            tx.upsert("classes", class_rows([number, 5000]))
    found = ids(workspace)
    assert found == sorted({*range(3600), 5000, 5001, 5002, *range(6000, 6012)})
