"""Parts: what answers rest on is kept whole, in small steps, and checked; damaged tables change no answer."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from tests.support.changes import World
from tests.support.commands import run
from tests.support.commits import amend, name_table
from vlltr_index.classes import add_class, add_images, merge_classes, remove_classes, rename_class
from vlltr_index.errors import InputError, MissingStepError, VlltrError, WorkspaceError
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.doctor import check_workspace
from vlltr_index.pipelines.history import prune, rollback
from vlltr_index.pipelines.taxonomy import ingest_classes
from vlltr_index.recognition.anchors import read_anchors
from vlltr_index.recognition.answering import predict
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.parameters import read_class_stats
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store import parts
from vlltr_index.store.objects import Kind, Objects
from vlltr_index.store.parts import TableReader
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def workspace(world: World, tmp_path: Path) -> Workspace:
    """A copy of the small trained workspace, with a tree."""
    workspace = Workspace.open(shutil.copytree(world.folder, tmp_path / "world"))
    table, tree = workspace.snapshot().class_table(), tmp_path / "tree.csv"
    lines = [f'"{table.names[i]}",{"one" if i % 2 else "other"}' for i in table.ids]
    tree.write_text("\n".join(["name,parent", *lines]), encoding="utf-8")
    ingest_classes(workspace, tree)
    return workspace


def tables_alone(workspace: Workspace) -> Snapshot:
    """The newest commit, read from its tables."""
    commit = workspace.history.last()
    return Snapshot(workspace.store, commit, workspace.objects, recipe=workspace.recipe, reader=TableReader())


def check_same(workspace: Workspace) -> None:
    """What the parts say is, bit for bit, what the tables say."""
    again = Workspace.open(workspace.path)
    snapshot = again.snapshot()
    assert snapshot.commit.parts
    mine, theirs = read_anchors(snapshot), read_anchors(tables_alone(workspace))
    assert (mine.sentence_ids, mine.selection_id) == (theirs.sentence_ids, theirs.selection_id)
    for name in ("vectors", "offsets", "class_ids", "losses"):
        assert torch.equal(getattr(mine.bank, name), getattr(theirs.bank, name)), name
    assert torch.equal(mine.keys, theirs.keys)
    for a, b in zip(
        vars(read_class_stats(snapshot)).values(),
        vars(read_class_stats(tables_alone(workspace))).values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert vars(snapshot.class_table())["names"] == tables_alone(workspace).class_table().names
    answers, plain = Model.open(snapshot), Model.open(tables_alone(workspace))
    assert answers.taxonomy == plain.taxonomy
    assert answers.texts == plain.texts
    (commit,) = (check for check in check_workspace(workspace.path) if check.name == "commit")
    assert commit.state == "ok"
    assert "say what it answers" in commit.value


def size(workspace: Workspace, digest: str) -> int:
    """Bytes of the rows of a part."""
    return sum(path.stat().st_size for path in (workspace.path / "parts" / digest[:16]).glob("*.arrow"))


@pytest.mark.slow
def test_every_change_writes_what_it_changed(
    workspace: Workspace, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each kind of change parts and tables have the same rows, and most changes write little."""
    monkeypatch.setattr(parts, "_SHARE", 4)  # the base is small here
    check_same(workspace)
    base = workspace.history.last().parts[0]
    text, picture = next(iter(world.texts.items())), Path(world.pictures[0])
    names = workspace.snapshot().class_table().names
    add_class(workspace, text[0], text[1][:3])
    (same, delta) = workspace.history.last().parts
    assert same == base
    assert size(workspace, delta) < size(workspace, base) // 4
    check_same(workspace)
    for change in (
        lambda: add_images(workspace, names[0], [picture]),
        lambda: rename_class(workspace, names[1], "something else"),
        lambda: merge_classes(workspace, names[2], names[3]),
        lambda: remove_classes(workspace, [names[4]]),
    ):
        change()
        check_same(workspace)
    before = workspace.history.last().parts
    index_anchors(workspace, "torch")
    assert workspace.history.last().parts == before  # the index is no part of them


def test_parts_are_kept_pruned_and_gone_back_to(workspace: Workspace, world: World) -> None:
    """As heads are: a rollback names them again, pruning removes those that no kept commit names."""
    there = workspace.history.last()
    name, texts = next(iter(world.texts.items()))
    add_class(workspace, name, texts[:3])
    rollback(workspace, there.id)
    assert workspace.history.last().parts == there.parts
    check_same(workspace)
    folders = {path.name for path in (workspace.path / "parts").iterdir()}
    prune(workspace, 1)
    kept = {digest[:16] for digest in there.parts}
    assert {path.name for path in (workspace.path / "parts").iterdir()} == kept < folders
    check_same(workspace)


def test_a_damaged_part_is_told_and_made_again(workspace: Workspace, world: World) -> None:
    """One bit is enough; going back to the commit itself makes the part of the tables."""
    last, picture = workspace.history.last(), world.pictures[0]
    before = Recognizer.open(workspace).predict([picture])
    folder = workspace.path / "parts" / last.parts[0][:16]
    path = folder / "anchors.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkspaceError) as error:
        Recognizer.open(workspace.path).predict([picture])
    assert error.value.message == f"{folder} is damaged: its files are not those that were written"
    assert "vlltr rollback ID" in str(error.value.hint)
    (found,) = (check for check in check_workspace(workspace.path) if check.name == "base")
    assert found.state == "problem"
    rollback(Workspace.open(workspace.path), last.id)
    assert Recognizer.open(workspace.path).predict([picture]) == before
    shutil.rmtree(workspace.path / "parts")
    with pytest.raises(MissingStepError, match=r"parts/.* is gone"):
        Recognizer.open(workspace.path)


def test_a_commit_without_parts_answers_from_the_tables(workspace: Workspace, world: World) -> None:
    """Unchecked, and doctor says so; going back to it writes them."""
    before = Recognizer.open(workspace).predict([world.pictures[0]])
    last = workspace.history.last()
    amend(workspace, parts=[])
    again = Workspace.open(workspace.path)
    assert Recognizer.open(again).predict([world.pictures[0]]) == before
    (note,) = (check for check in check_workspace(workspace.path) if check.name == "parts")
    assert (note.state, note.mend) == ("note", f"vlltr rollback {last.id}")
    assert "nothing checks" in note.value
    rollback(again, last.id)
    check_same(again)


def flip(path: Path, draw: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


FLIPPED = (
    "class_stats",
    "anchors",
    "sentences",
    "classes",
    "taxonomy",
    "sentence_vectors_*",
)


@pytest.mark.slow
@pytest.mark.parametrize("table", FLIPPED)
def test_flips_in_tables_change_no_answer(workspace: Workspace, world: World, table: str) -> None:
    """Each leaves the answers as they were, or ends with an error in words."""
    asked = [world.pictures[0]]
    before = Recognizer.open(workspace).predict(asked, PredictOptions(explain=2))
    draw = random.Random(table)
    files = sorted(workspace.path.glob(f"lance/{table}.lance/data/*"))
    for _ in range(15):
        path = draw.choice(files)
        whole = path.read_bytes()
        flip(path, draw)
        with suppress(VlltrError):
            assert Recognizer.open(workspace.path).predict(asked, PredictOptions(explain=2)) == before
        path.write_bytes(whole)


def swap_row(workspace: Workspace, table: str, key: str, column: str, value: object) -> None:
    """Put another value into the first row of a table, in the version that the newest commit names."""
    store, commit = workspace.store, workspace.history.last()
    rows = store.read(table, version=commit.tables[table])
    row = {**rows.slice(0, 1).to_pylist()[0], column: value}
    store.upsert(table, pa.Table.from_pylist([row], schema=rows.schema), key)
    name_table(workspace, table)


def test_doctor_compares_parts_with_tables(workspace: Workspace) -> None:
    """A row that says otherwise is named, and how to mend its table, which is not to ask doctor."""
    commit = workspace.history.last().id
    swap_row(workspace, "class_stats", "class_id", "images", 77)
    (found,) = (check for check in check_workspace(workspace.path) if check.state == "problem")
    start = f"table 'class_stats' is not what commit {commit} answers with: class_id "
    assert found.value.startswith(start)
    swap_row(workspace, "anchors", "anchor_key", "sentence_id", "0" * 32)
    *_, found = (check for check in check_workspace(workspace.path) if check.state == "problem")
    assert "is of a sentence that there is not" in found.value
    assert found.mend == "Bring the table's folder below lance/ back from a backup."


def test_a_change_does_not_take_over_damaged_rows(workspace: Workspace, world: World) -> None:
    """Rows that it did not write come from the parts; one that it would write back is refused."""
    before = workspace.store.read("classes", version=workspace.history.last().tables["classes"])
    swap_row(workspace, "classes", "class_id", "aliases", ["damaged"])
    name, texts = next(iter(world.texts.items()))
    add_class(Workspace.open(workspace.path), name, texts[:3])
    assert Workspace.open(workspace.path).snapshot().class_table().find("damaged") is None
    newest = workspace.history.last().id
    with pytest.raises(WorkspaceError, match=f"table 'classes' is not what commit {newest} answers with"):
        rename_class(Workspace.open(workspace.path), before["name"][0].as_py(), "a new name")
    assert workspace.history.last().id == newest


def test_scores_that_are_not_finite_are_errors(workspace: Workspace, world: World) -> None:
    """Of features, and of what they are scored by: never NaN."""
    answers = Recognizer.open(workspace).current()
    dim = answers.saved.head.dim
    bad = torch.full((2, dim), torch.nan)
    bad[0] = 1.0
    with pytest.raises(InputError, match="the features of 1 of 2 images are not all finite numbers"):
        answers.score(bad, "exhaustive")
    answers.saved.head.log_logit_scale.data.fill_(torch.inf)
    with pytest.raises(WorkspaceError, match="the scores of 1 of 1 images are not all finite") as error:
        predict(answers, [world.pictures[0]])
    assert "vlltr doctor" in str(error.value.hint)


def test_rows_that_do_not_fit_are_refused(workspace: Workspace) -> None:
    """An anchor of another class's sentence, a text that is not its hash's, numbers that are none."""
    commit = workspace.history.last().id

    def write(table: str, column: str, value: object) -> None:
        with Workspace.open(workspace.path).transaction("a change") as tx:
            key = tx.table("anchors", ["sentence_id"])["sentence_id"][0].as_py()
            row = tx.table(table, where=f"sentence_id = '{key}'").to_pylist()[0]
            tx.upsert(table, pa.Table.from_pylist([{**row, column: value}], schema=tx.schema(table)))

    def refused(what: str, table: str, column: str, value: object) -> None:
        with pytest.raises(WorkspaceError, match=what):
            write(table, column, value)
        assert workspace.history.last().id == commit

    refused("is not the one that was written: 'another'", "sentences", "text", "another")
    refused("anchor .* is of another sentence than it was", "anchors", "sentence_id", "0" * 32)
    refused("not all numbers for the table", "sentence_scores", "loss", float("nan"))


def test_an_export_of_damaged_sentences_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """Its digests would make the damage look whole."""
    key = workspace.snapshot().table("anchors", ["sentence_id"])["sentence_id"][0].as_py()
    for column, value in (("licence", "CC0"), ("text", "another")):
        with workspace.store._table("sentences") as table:
            table.update(where=f"sentence_id = '{key}'", values={column: value})
        name_table(workspace, "sentences")
        with pytest.raises(WorkspaceError, match=f"table 'sentences' .*is damaged: the row '{key}'"):
            Recognizer.open(workspace.path).export(tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_damaged_commit_is_told(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed value that fits its field is no longer taken for what was committed."""
    path = workspace.path / "history" / f"{workspace.history.last().id}.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"dim": ', '"dim": 1'), encoding="utf-8")
    code, _, err = run(capsys, "-w", workspace.path, "status")
    assert code == 1
    assert f"{path} is damaged: it is not the file that was written" in err


def test_a_running_process_loads_only_what_is_new(
    workspace: Workspace, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another process's changes it reads the parts that it lacks, and keeps what rests on the same ones."""
    read = set[str]()
    plain = Objects.whole

    def whole(objects: Objects, kind: Kind, digest: str) -> Path:
        read.update([digest] if kind == "parts" else [])
        return plain(objects, kind, digest)

    monkeypatch.setattr(Objects, "whole", whole)
    recognizer = Recognizer.open(workspace.path)
    first = recognizer.current()
    there = {*workspace.history.last().parts}
    assert read == there
    name, texts = next(iter(world.texts.items()))
    add_class(Workspace.open(workspace.path), name, texts[:3])
    read.clear()
    second = recognizer.current()
    now = {*workspace.history.last().parts}
    assert read == now - there
    assert recognizer.predict([world.pictures[0]]) == Recognizer.open(workspace.path).predict(
        [world.pictures[0]]
    )
    assert (second.saved is first.saved, second.anchors is first.anchors) == (True, False)
    index_anchors(Workspace.open(workspace.path), "torch")
    third = recognizer.current()
    assert (third.commit > second.commit, third.anchors is second.anchors) == (True, True)
    assert third.lazy_index.value is not None


@pytest.mark.slow
def test_answers_open_no_table(workspace: Workspace, world: World) -> None:
    """They come from the parts, so that a prediction does not wait for the database to be loaded."""
    code = (
        "import sys\n"
        "from vlltr_index.recognizer import Recognizer\n"
        "from vlltr_index.schemas.options import PredictOptions\n"
        "recognizer = Recognizer.open(sys.argv[1])\n"
        "name = recognizer.predict([sys.argv[2]], PredictOptions(explain=2))[0].classes[0].name\n"
        "recognizer.explain(sys.argv[2], name)\n"
        "assert 'lancedb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(workspace.path), world.pictures[0]], check=True)
