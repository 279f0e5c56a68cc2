"""Ingestion with `sync`: the rows of a source become what the source is, and nothing else changes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import run
from tests.support.sources import RECIPE, images, png, put, relabel, sentences
from vlltr_index.cli.render import report_lines
from vlltr_index.data import files
from vlltr_index.data.text import sentence_id
from vlltr_index.errors import InputError, UsageError
from vlltr_index.pipelines.ingest import IngestReport, ingest_images, ingest_text
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.ingestion import sentence_rows
from vlltr_index.store.workspace import Workspace


def no(question: str) -> None:
    """Answer no."""
    raise KeyboardInterrupt(question)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace whose recipe has a prompt."""
    return Workspace.create(tmp_path / "ws", RECIPE)


def test_what_moved_is_gone_and_new_is_said(workspace: Workspace, tmp_path: Path) -> None:
    """In the report's first line; a dry run says the same, and commits nothing."""
    data = tmp_path / "data"
    for number in range(6):
        put(data / ("owl" if number < 4 else "tit") / f"{number}.png", number)
    first = ingest_images(workspace, data, "train", sync=True)
    assert report_lines(first)[0] == f"{data}: images 0 moved, 0 gone, 6 new (train 6)."
    (data / "owl/0.png").rename(data / "tit/0.png")
    (data / "owl/1.png").unlink()
    put(data / "wren/7.png", 7)
    for dry_run in (True, False):
        report = ingest_images(workspace, data, "train", sync=True, dry_run=dry_run)
        lines = report_lines(report)
        assert lines[0] == ("A dry run, which commits nothing:" if dry_run else lines[0])
        assert lines[dry_run] == f"{data}: images 1 moved, 1 gone, 1 new, 4 there before (train 6)."
        assert len(workspace.history.ids()) == 2 - dry_run
        assert (report.next_step is None) == dry_run
    assert images(workspace)["tit/0.png"] == ("tit", "train")
    assert "owl/1.png" not in images(workspace)
    assert ingest_images(workspace, data, "train", sync=True).unchanged == 6
    assert len(workspace.history.ids()) == 2


def test_much_that_is_gone_is_asked_about(workspace: Workspace, tmp_path: Path) -> None:
    """More than a third: without anybody to ask it is an error, and after a no nothing is changed; a folder that is
    not there is named first, and a class without a picture left afterwards."""
    data = tmp_path / "data"
    for number in range(6):
        put(data / "owl" / f"{number}.png", number)
    ingest_images(workspace, data, "train")
    for number in range(3):
        (data / "owl" / f"{number}.png").unlink()
    with pytest.raises(
        UsageError, match="3 of the 6 images that this source gave are gone from it"
    ) as caught:
        ingest_images(workspace, data, "train", sync=True)
    assert caught.value.hint == "If that is meant, run the same command with --yes."
    with pytest.raises(KeyboardInterrupt, match="Remove them here too"):
        ingest_images(workspace, data, "train", sync=True, agree=no)
    assert len(images(workspace)) == 6
    assert ingest_images(workspace, data, "train", sync=True, agree=lambda _: None).gone == 3
    (data / "owl/3.png").unlink()
    assert ingest_images(workspace, data, "train", sync=True).gone == 1
    (tmp_path / "t.json").write_text('{"owl": ["It hoots."]}')
    ingest_text(workspace, tmp_path / "t.json")
    shutil.rmtree(data)
    with pytest.raises(UsageError) as caught:
        ingest_images(workspace, data, "train", sync=True)
    told = (
        f"there is no {data} (renamed, or not mounted?): "
        "2 of the 2 images that this source gave are gone from it"
    )
    assert caught.value.message == told
    report = ingest_images(workspace, data, "train", sync=True, dry_run=True)
    assert f"{told}; without --dry-run they are removed only after a yes, or with --yes" in report.notes
    report = ingest_images(workspace, data, "train", sync=True, agree=lambda _: None)
    assert "no picture left of: 'owl'" in report.notes


def test_what_cannot_be_read_is_not_gone(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be listed is an error, and a link to nothing leaves its picture in."""
    data = tmp_path / "data"
    for number in range(4):
        put(data / ("owl" if number < 2 else "tit") / f"{number}.png", number)
    ingest_images(workspace, data, "train")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("tit"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot read the folder .*tit"):
        ingest_images(workspace, data, "train", sync=True, agree=lambda _: None)
    monkeypatch.undo()
    (data / "owl/0.png").unlink()
    (data / "owl/0.png").symlink_to(tmp_path / "not mounted.png")
    assert ingest_images(workspace, data, "train", sync=True).gone == 0
    assert len(images(workspace)) == 4


def test_a_correction_stays_until_the_folder_moves_the_picture(workspace: Workspace, tmp_path: Path) -> None:
    """Both cases are listed; a reading without `sync` keeps it, too."""
    data = tmp_path / "data"
    for number in range(3):
        put(data / ("owl", "tit", "wren")[number] / f"{number}.png", number)
    ingest_images(workspace, data, "train")
    relabel(workspace, str(data / "owl/0.png"), 1)
    for sync in (False, True):
        report = ingest_images(workspace, data, "train", sync=sync)
        assert (report.corrected, report.overruled) == (1, 0)
        assert (
            f"stays in 'tit' as corrected, though its source says 'owl': {data / 'owl/0.png'}" in report.notes
        )
        assert "Kept as corrected, not as the source says: 1 image." in report_lines(report)
        assert images(workspace)["owl/0.png"][0] == "tit"
    (data / "owl/0.png").rename(data / "wren/0.png")
    report = ingest_images(workspace, data, "train", sync=True)
    assert (report.corrected, report.overruled, report.moved) == (0, 1, 1)
    assert f"corrected to 'tit' before, and moved to 'wren' since: {data / 'wren/0.png'}" in report.notes
    told = "Corrected before and moved or changed since, so that the source counts: 1 image."
    assert told in report_lines(report)
    assert images(workspace)["wren/0.png"][0] == "wren"


def test_a_correction_that_goes_with_its_picture_is_named(workspace: Workspace, tmp_path: Path) -> None:
    """When the picture comes back, it is in its folder's class."""
    data = tmp_path / "data"
    for number in range(4):
        put(data / ("owl", "tit", "tit", "tit")[number] / f"{number}.png", number)
    ingest_images(workspace, data, "train", sync=True)
    relabel(workspace, str(data / "owl/0.png"), 1)
    (data / "owl/0.png").rename(tmp_path / "away.png")
    report = ingest_images(workspace, data, "train", sync=True)
    lost = f"corrected to 'tit' before, and gone with its correction: {data / 'owl/0.png'}"
    assert (report.gone, lost in report.notes) == (1, True)
    (tmp_path / "away.png").rename(data / "owl/0.png")
    assert ingest_images(workspace, data, "train", sync=True).added == 1
    assert images(workspace)["owl/0.png"][0] == "owl"


def test_a_folder_that_was_rearranged_keeps_its_pictures_and_no_other(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Into train and test below it: each picture is in one split, and what is deleted afterwards goes."""
    data = tmp_path / "data"
    for number in range(6):
        put(data / "owl" / f"{number}.png", number)
    ingest_images(workspace, data, "train", sync=True)
    for number in range(6):
        part = data / ("test" if number > 3 else "train") / "owl"
        part.mkdir(parents=True, exist_ok=True)
        (data / "owl" / f"{number}.png").rename(part / f"{number}.png")
    (data / "owl").rmdir()
    learned = ingest_images(workspace, data / "train", "train", sync=True)
    measured = ingest_images(workspace, data / "test", "test", sync=True)
    assert [(one.added, one.gone) for one in (learned, measured)] == [(0, 0), (0, 0)]
    expected = {f"owl/{n}.png": ("owl", "test" if n > 3 else "train") for n in range(6)}
    assert images(workspace) == expected
    (data / "train" / "owl" / "0.png").unlink()
    assert ingest_images(workspace, data / "train", "train", sync=True).gone == 1
    del expected["owl/0.png"]
    assert images(workspace) == expected


def test_a_folder_that_moved_is_the_same_source(workspace: Workspace, tmp_path: Path) -> None:
    """Its pictures keep their split, and what it has lost meanwhile is gone; so are texts. A copy is another source."""
    data = tmp_path / "data"
    for number in range(10):
        put(data / "owl" / f"{number}.png", number)
    ingest_images(workspace, data, "train", hold_out=0.3, sync=True)
    before = images(workspace)
    texts = tmp_path / "t.json"
    texts.write_text(json.dumps({"owl": ["It hoots.", "It is round.", "It is grey."]}))
    ingest_text(workspace, texts, sync=True)
    moved = data.rename(tmp_path / "moved")
    lost = next(path for path, (_, split) in sorted(before.items()) if split == "train")
    (moved / lost).unlink()
    report = ingest_images(workspace, moved, "train", hold_out=0.3, sync=True)
    assert (report.added, report.gone) == (0, 1)
    del before[lost]
    assert images(workspace) == before
    shutil.copytree(moved, tmp_path / "copy")
    ingest_images(workspace, tmp_path / "copy", "train", sync=True)
    shutil.rmtree(tmp_path / "copy" / "owl")
    put(tmp_path / "copy" / "owl" / "99.png", 99)
    ingest_images(workspace, tmp_path / "copy", "train", sync=True, agree=lambda question: None)
    assert images(workspace).items() >= before.items()
    told = texts.rename(tmp_path / "other.json")
    told.write_text(json.dumps({"owl": ["It hoots.", "It is round."]}))
    ingest_text(workspace, told, sync=True)
    assert sentences(workspace) == {("owl", "It hoots."), ("owl", "It is round.")}


def test_merged_classes_stay_merged(workspace: Workspace, tmp_path: Path) -> None:
    """A merge is no move of the folder: a correction from before it stays, and texts follow it."""
    for number in range(4):
        put(tmp_path / "data" / ("owl", "owl", "tit", "wren")[number] / f"{number}.png", number)
    texts = tmp_path / "t.json"
    texts.write_text(json.dumps({"owl": ["It hoots."], "tit": ["It sings."]}))
    ingest_images(workspace, tmp_path / "data", "train")
    ingest_text(workspace, texts)
    relabel(workspace, str(tmp_path / "data/owl/0.png"), 2)
    with workspace.transaction("merge") as tx:
        for name in ("images", "origins"):
            rows = tx.table(name, where="class_id = 0").to_pylist()
            tx.upsert(name, pa.Table.from_pylist([{**r, "class_id": 1} for r in rows], tx.schema(name)))
        rows = tx.table("sentences", where="class_id = 0 AND source = 't.json'").to_pylist()
        tx.delete("sentences", "class_id = 0")
        merged = [{**r, "class_id": 1, "sentence_id": sentence_id(1, r["text_hash"])} for r in rows]
        tx.upsert("sentences", pa.Table.from_pylist(merged, tx.schema("sentences")))
        gone, kept = tx.table("classes", where="class_id < 2").sort_by("class_id").to_pylist()
        changed = [{**gone, "retired_at": "2026"}, {**kept, "aliases": ["owl"]}]
        tx.upsert("classes", pa.Table.from_pylist(changed, CLASSES))
    report = ingest_images(workspace, tmp_path / "data", "train", sync=True)
    assert (report.moved, report.gone, report.added, report.classes_added) == (0, 0, 0, 0)
    assert {path: owner for path, (owner, _) in images(workspace).items()} == {
        "owl/0.png": "wren",
        "owl/1.png": "tit",
        "tit/2.png": "tit",
        "wren/3.png": "wren",
    }
    texts.write_text(json.dumps({"owl": ["It is awake at night."], "tit": ["It sings."]}))
    report = ingest_text(workspace, texts, sync=True)
    assert (report.moved, report.gone, report.classes_added) == (0, 1, 0)
    assert sentences(workspace) == {("tit", "It is awake at night."), ("tit", "It sings.")}


def test_a_kept_picture_keeps_its_split(workspace: Workspace, tmp_path: Path) -> None:
    """And so does one that moved, and a copy of it; also where all were for training in between."""
    data = tmp_path / "data"
    for number in range(20):
        put(data / ("owl" if number < 10 else "tit") / f"{number}.png", number)

    def sync(share: float) -> tuple[IngestReport, dict[str, str]]:
        report = ingest_images(workspace, data, "train", hold_out=share, sync=True)
        return report, {Path(path).name: split for path, (_, split) in images(workspace).items()}

    dealt = sync(0.2)[1]
    held = sorted(name for name, split in dealt.items() if split == "test")
    assert len(held) == 4
    assert set(sync(0)[1].values()) == {"train"}
    owner = "owl" if int(held[0][:-4]) < 10 else "tit"
    (data / "wren").mkdir()
    (data / owner / held[0]).rename(data / "wren" / held[0])
    shutil.copy(data / "wren" / held[0], data / "wren" / "copy.png")
    for number in range(20, 30):
        put(data / "wren" / f"{number}.png", number)
    report, now = sync(0.2)
    assert (report.moved, report.gone, report.added) == (1, 0, 11)
    assert {name: now[name] for name in dealt} == dealt
    assert now["copy.png"] == "test"
    assert sync(0.2)[1] == now
    ingest_images(workspace, data, "train", sync=True)
    assert {Path(path).name: split for path, (_, split) in images(workspace).items()} == now


def test_a_class_keeps_a_picture_to_learn_from(workspace: Workspace, tmp_path: Path) -> None:
    """Where all that is left of it was held out."""
    data = tmp_path / "data"
    for number in range(10):
        put(data / "owl" / f"{number}.png", number)
    ingest_images(workspace, data, "train", hold_out=0.2, sync=True)
    for path, (_, split) in images(workspace).items():
        if split == "train":
            (data / path).unlink()
    ingest_images(workspace, data, "train", hold_out=0.2, sync=True, agree=lambda _: None)
    assert sorted(split for _, split in images(workspace).values()) == ["test", "train"]


def test_rows_of_a_parquet_file(workspace: Workspace, tmp_path: Path) -> None:
    """Are known by content, wherever they stand now; groups stay where the file has none any more."""
    path = tmp_path / "p.parquet"

    def write(*rows: tuple[int, str, str | None]) -> None:
        columns = {"image": [png(n) for n, *_ in rows], "label": [label for _, label, _ in rows]}
        columns["group"] = pa.array([group for *_, group in rows], pa.string())
        pq.write_table(pa.table(columns), path)

    write((1, "owl", "a"), (2, "owl", None), (3, "tit", None), (4, "tit", None))
    ingest_images(workspace, path, "train")
    write((4, "tit", None), (3, "owl", None), (1, "owl", None))
    report = ingest_images(workspace, path, "train", sync=True)
    assert (report.moved, report.gone, report.added) == (1, 1, 0)
    rows = workspace.snapshot().table("images", ["data", "class_id", "group"]).to_pylist()
    found = {r["data"]: (r["class_id"], r["group"]) for r in rows}
    assert found == {png(4): (1, None), png(3): (0, None), png(1): (0, "a")}


def test_a_class_of_which_nothing_is_left_is_retired(workspace: Workspace, tmp_path: Path) -> None:
    """Not one that has texts; it may come back."""
    data = tmp_path / "data"
    for number in range(6):
        put(data / ("owl", "tit", "wren")[number % 3] / f"{number}.png", number)
    (tmp_path / "t.json").write_text(json.dumps({"tit": ["It sings."]}))
    ingest_images(workspace, data, "train")
    ingest_text(workspace, tmp_path / "t.json")
    (data / "owl").rename(data / "tawny owl")
    (data / "tit").rename(data / "great tit")
    report = ingest_images(workspace, data, "train", sync=True)
    assert (report.moved, report.classes_added, report.classes) == (4, 2, 4)
    assert "retired, as nothing is left of it: 'owl'" in report.notes
    names = workspace.snapshot().class_table()
    assert {names.names[i] for i in names.ids} == {"tit", "wren", "tawny owl", "great tit"}
    assert not workspace.snapshot().count("sentences", "class_id = 0")
    (data / "tawny owl").rename(data / "owl")
    assert ingest_images(workspace, data, "train", sync=True).moved == 2
    assert images(workspace)["owl/0.png"][0] == "owl"


def test_a_rewritten_text_replaces_its_sentences(workspace: Workspace, tmp_path: Path) -> None:
    """Those of another source, and those given by hand, stay; one of a file with another name has moved."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "owl.txt").write_text("It hoots. It has large eyes.")
    (folder / "tit.txt").write_text("It sings.")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"owl": ["It has large eyes."]}))
    ingest_text(workspace, folder)
    ingest_text(workspace, other)
    with workspace.transaction("by hand") as tx:
        rows = sentence_rows({0: [SentenceRecord("owl", "It is quiet.", "given")]})
        tx.upsert("sentences", rows)
    (folder / "owl.txt").write_text("It is awake at night. It is quiet.")
    (folder / "tit.txt").rename(folder / "wren.txt")
    report = ingest_text(workspace, folder, sync=True)
    assert (
        report_lines(report)[0] == f"{folder}: sentences 1 moved, 1 gone, 2 new, 1 repeated or there before."
    )
    kept = {("owl", "It has large eyes."), ("owl", "It is quiet.")}
    assert sentences(workspace) == {*kept, ("owl", "It is awake at night."), ("wren", "It sings.")}
    assert "retired, as nothing is left of it: 'tit'" in report.notes
    (folder / "owl.txt").unlink()
    (folder / "owl.txt").symlink_to(tmp_path / "not mounted")
    assert ingest_text(workspace, folder, sync=True).gone == 0
    (folder / "owl.txt").unlink()
    with pytest.raises(UsageError, match="1 of the 2 sentences that this source gave are gone"):
        ingest_text(workspace, folder, sync=True)
    assert ingest_text(workspace, folder, sync=True, agree=lambda _: None).gone == 1
    assert sentences(workspace) == {*kept, ("wren", "It sings.")}


def test_the_command_asks_at_a_terminal(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one it is an error that names --yes, which answers beforehand."""
    data = tmp_path / "data"
    for number in range(3):
        put(data / "owl" / f"{number}.png", number)
    vlltr = ("-w", workspace.path, "ingest", "images", data, "--split", "train", "--sync")
    assert run(capsys, *vlltr)[0] == 0
    for number in range(2):
        (data / "owl" / f"{number}.png").unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    code, _, err = run(capsys, *vlltr)
    assert code == 2
    assert "run the same command with --yes" in err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    code, _, err = run(capsys, *vlltr)
    assert code == 1
    assert "2 of the 3 images that this source gave are gone from it. Remove them here too?" in err
    assert len(images(workspace)) == 3
    code, out, _ = run(capsys, *vlltr, "--yes")
    assert code == 0
    assert "0 moved, 2 gone, 0 new" in out


KILLED = """
import sys
from pathlib import Path
from tests.support.killed import kill_at
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.store.workspace import Workspace
with kill_at(int(sys.argv[3])):
    ingest_images(Workspace.open(sys.argv[1]), Path(sys.argv[2]), "train", sync=True)
"""


@pytest.mark.slow
def test_a_killed_run_loses_nothing(workspace: Workspace, tmp_path: Path) -> None:
    """The workspace is as before or as after, and the next run makes it what the folder is."""
    data = tmp_path / "data"
    for number in range(6):
        put(data / ("owl" if number < 3 else "tit") / f"{number}.png", number)
    ingest_images(workspace, data, "train")
    before = images(workspace)
    (data / "owl/0.png").rename(data / "tit/0.png")
    (data / "owl/1.png").unlink()
    put(data / "wren/7.png", 7)
    for moment in (2, 5, 8, 11):
        copy = tmp_path / f"copy {moment}"
        shutil.copytree(workspace.path, copy)
        done = subprocess.run([sys.executable, "-c", KILLED, copy, data, str(moment)], check=False)
        assert done.returncode == -9
        assert images(Workspace.open(copy)) == before
        report = ingest_images(Workspace.open(copy), data, "train", sync=True)
        assert (report.moved, report.gone, report.added) == (1, 1, 1)


def test_a_workspace_among_the_pictures_is_left_out(tmp_path: Path) -> None:
    """Also pictures in it, such as sheets of a search."""
    data = tmp_path / "data"
    put(data / "owl" / "0.png", 0)
    inside = Workspace.create(data / "model", RECIPE)
    put(data / "model" / "sheets" / "1.png", 1)
    report = ingest_images(inside, data, "train")
    assert (report.added, report.classes) == (1, 1)
    assert report.notes == [f"left out: {data / 'model'}: a workspace, and no folder of data"]


def test_copies_in_two_classes_or_splits_are_named(workspace: Workspace, tmp_path: Path) -> None:
    """Both files, below the source or by their paths, with split and class."""
    data = tmp_path / "data"
    put(data / "owl" / "0.png", 0)
    put(data / "tit" / "1.png", 0)
    report = ingest_images(workspace, data, "train")
    assert (report.in_two_classes, report.duplicates_across_splits) == (1, 0)
    named = "one picture, byte for byte: owl/0.png (train, 'owl'), tit/1.png (train, 'tit')"
    assert named in report.notes
    assert (
        "Warning: in two classes, byte for byte: 1 image. Put each into one of them (vlltr images relabel), or remove"
        " a copy. All of them, once embedded: vlltr review"
    ) in report_lines(report)
    put(tmp_path / "test" / "wren" / "2.png", 2)
    put(data / "wren" / "3.png", 2)
    ingest_images(workspace, data, "train")
    report = ingest_images(workspace, tmp_path / "test", "test")
    assert (report.in_two_classes, report.duplicates_across_splits, report.duplicates_in) == (
        0,
        1,
        ["test", "train"],
    )
    assert report.notes == [
        f"one picture, byte for byte: {data}/wren/3.png (train, 'wren'), wren/2.png (test, 'wren')"
    ]


def test_copies_in_one_class_are_counted(workspace: Workspace, tmp_path: Path) -> None:
    """Those in several classes are named, the first of their files."""
    data = tmp_path / "data"
    for number in range(12):
        put(data / "owl" / f"{number}.png", number)
        put(data / "owl" / f"copy-{number}.png", number)
    put(data / "tit" / "0.png", 11)
    put(data / "tit" / "1.png", 11)
    report = ingest_images(workspace, data, "train")
    assert report.in_two_classes == 1
    assert report.notes == [
        "one picture, byte for byte: owl/11.png (train, 'owl'), tit/0.png (train, 'tit'), owl/copy-11.png (train,"
        " 'owl') and 1 more",
        "several times in one class, byte for byte: 11 pictures, each counts once",
    ]


def test_another_picture_at_the_place_of_a_corrected_one_is_not_corrected(
    workspace: Workspace, tmp_path: Path
) -> None:
    """The correction was of what the file showed then; it is listed."""
    data = tmp_path / "data"
    put(data / "owl" / "0.png", 0)
    put(data / "tit" / "1.png", 1)
    ingest_images(workspace, data, "train")
    relabel(workspace, str(data / "owl/0.png"), 1)
    put(data / "owl" / "0.png", 2)
    report = ingest_images(workspace, data, "train", sync=True)
    assert (report.corrected, report.overruled) == (0, 1)
    assert f"corrected to 'tit' before, and another picture since: {data / 'owl/0.png'}" in report.notes
    assert images(workspace)["owl/0.png"][0] == "owl"


def test_what_was_removed_by_hand_stays_removed(workspace: Workspace, tmp_path: Path) -> None:
    """Pictures, sentences and whole classes, with what came to them; without `sync`, or at another place, it comes."""
    data = tmp_path / "data"
    for number in range(4):
        put(data / ("owl" if number < 3 else "tit") / f"{number}.png", number)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "owl.txt").write_text("It is brown. It flies at night.")
    (texts / "tit.txt").write_text("It is small.")
    ingest_text(workspace, texts)
    ingest_images(workspace, data, "train")
    table = workspace.snapshot().class_table()
    with workspace.transaction("by hand") as tx:
        (gone,) = (r["image_id"] for r in tx.table("images").to_pylist() if r["uri"].endswith("owl/0.png"))
        (struck,) = (
            r["sentence_id"] for r in tx.table("sentences").to_pylist() if r["text"] == "It is brown."
        )
        tx.delete_any("images", "image_id", [gone])
        tx.delete_any("sentences", "sentence_id", [struck])
        tit = f"class_id = {table.lookup('tit')}"
        tx.delete("images", tit)
        tx.delete("sentences", tit)
        rows = [{**row, "retired_at": "2026-01-01"} for row in tx.table("classes", where=tit).to_pylist()]
        tx.upsert("classes", pa.Table.from_pylist(rows, schema=CLASSES))
    for _ in range(2):
        report = ingest_text(workspace, texts, sync=True)
        assert (report.removed, report.added, report.gone) == (2, 0, 0)
        report = ingest_images(workspace, data, "train", sync=True)
        assert (report.removed, report.added, report.gone) == (2, 0, 0)
        assert f"stays removed, as it was by hand: {data / 'owl/0.png'}" in report.notes
        assert "Stays removed, as it was by hand: 2 images." in " ".join(report_lines(report))
        assert set(images(workspace)) == {"owl/1.png", "owl/2.png"}
        assert workspace.snapshot().class_table().ids == (table.lookup("owl"),)
    put(data / "owl" / "again.png", 0)
    assert ingest_images(workspace, data, "train", sync=True).added == 1
    assert ingest_images(workspace, data, "train").added == 2
    assert ingest_text(workspace, texts).added >= 1
