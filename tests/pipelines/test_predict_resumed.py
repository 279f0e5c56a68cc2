"""`vlltr predict --out` after an interruption: rows are kept only for images that have not changed."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import run
from vlltr_index.data.frequencies import Frequencies, Situation
from vlltr_index.data.unlabelled import image_identities
from vlltr_index.errors import UsageError
from vlltr_index.pipelines.asked import Situated
from vlltr_index.pipelines.predict import predict_to_file
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace

TOP = PredictOptions(top=1)


@pytest.fixture
def model(recognizer: Recognizer) -> Model:
    """The trained workspace's model."""
    return recognizer.current()


@pytest.fixture
def known(pictures: Path) -> list[bytes]:
    """Five images, each of another class."""
    return [(pictures / f"known-{number}.png").read_bytes() for number in range(5)]


@pytest.fixture
def shots(tmp_path: Path, known: list[bytes]) -> Path:
    """A folder of four images, 0.png to 3.png, that were modified at the same time."""
    return write_shots(tmp_path / "shots", known[:4])


def write_shots(folder: Path, images: Sequence[bytes]) -> Path:
    """Write images as 0.png, 1.png and so on, all modified at the same time."""
    folder.mkdir(parents=True)
    for number, data in enumerate(images):
        (folder / f"{number}.png").write_bytes(data)
        os.utime(folder / f"{number}.png", (1_000_000_000, 1_000_000_000))
    return folder


def interrupt(model: Model, paths: Sequence[str], out: Path, after: int, **how: object) -> None:
    """Start to write a table, and interrupt it after that many rows."""
    stop = Mock(side_effect=[None] * (after - 1) + [KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(model, paths, out, TOP, progress=stop, **how)  # type: ignore[arg-type]  # by name


def best(out: Path) -> dict[str, str | None]:
    """Read the best class of each image in a table, in its order; None for one that could not be read."""
    if out.suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return {row["image"]: row["classes"][0]["name"] if row["classes"] else None for row in rows}
    if out.suffix == ".parquet":
        table = pq.read_table(out).to_pylist()
    else:
        with out.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
    return {row["image"]: row["class_1"] or None for row in table}


def whole(model: Model, paths: Sequence[str], folder: Path, **how: object) -> dict[str, str | None]:
    """Return the best classes of a run without interruption."""
    out = folder / "whole.jsonl"
    predict_to_file(model, paths, out, TOP, **how)  # type: ignore[arg-type]  # by name
    found = best(out)
    out.unlink()
    return found


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_another_folder_with_the_same_names(
    model: Model, known: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """No row of the first folder is kept, and names stay as typed."""
    write_shots(tmp_path / "a" / "shots", known)
    write_shots(tmp_path / "b" / "shots", known[1:4])
    out = tmp_path / f"answers.{ending}"
    monkeypatch.chdir(tmp_path / "a")
    interrupt(model, ["shots"], out, 4)
    monkeypatch.chdir(tmp_path / "b")
    report = predict_to_file(model, ["shots"], out, TOP)
    assert (report.images, report.there_before, report.unreadable) == (3, 0, 0)
    assert list(best(out)) == ["shots/0.png", "shots/1.png", "shots/2.png"]
    assert best(out) == whole(model, ["shots"], tmp_path)
    assert len(set(best(out).values())) == 3


def test_unchanged_images_are_kept_under_another_spelling_of_their_folder(
    model: Model, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to the same folder has the same files; a link to another folder has not."""
    (tmp_path / "link").symlink_to(shots)
    monkeypatch.chdir(tmp_path / "link")
    interrupt(model, ["0.png", "1.png"], tmp_path / "a.csv", 1)
    monkeypatch.chdir(shots)
    assert predict_to_file(model, ["0.png", "1.png"], tmp_path / "a.csv", TOP).there_before == 1
    newest = tmp_path / "newest"
    newest.symlink_to(shots)
    paths = [str(newest / "0.png"), str(newest / "1.png")]
    interrupt(model, paths, tmp_path / "b.csv", 1)
    other = write_shots(tmp_path / "other", [(shots / f"{number}.png").read_bytes() for number in (0, 1)])
    newest.unlink()
    newest.symlink_to(other)
    assert predict_to_file(model, paths, tmp_path / "b.csv", TOP).there_before == 0


def test_a_replaced_file(model: Model, shots: Path, known: list[bytes], tmp_path: Path) -> None:
    """A file of the same size and another modification time is predicted again, in its place in the table."""
    out = tmp_path / "answers.csv"
    size = max(map(len, known))
    first = shots / "0.png"
    first.write_bytes(known[0].ljust(size, b"\0"))
    interrupt(model, [str(shots)], out, 2)
    time = first.stat().st_mtime_ns
    first.write_bytes(known[4].ljust(size, b"\0"))
    os.utime(first, ns=(time, time + 1))
    expected = whole(model, [str(shots)], tmp_path)
    report = predict_to_file(model, [str(shots)], out, TOP)
    assert (report.images, report.there_before) == (4, 1)
    assert list(best(out).items()) == list(expected.items())
    assert not list(tmp_path.glob("answers.csv.*"))


def test_a_table_that_is_interrupted_twice(
    model: Model, shots: Path, known: list[bytes], tmp_path: Path
) -> None:
    """The last row of an image counts, and one row of each is written."""
    out = tmp_path / "answers.jsonl"
    interrupt(model, [str(shots)], out, 3)
    for number, data in enumerate(known[1:4]):
        (shots / f"{number}.png").write_bytes(data)
    interrupt(model, [str(shots)], out, 2)
    report = predict_to_file(model, [str(shots)], out, TOP)
    assert (report.images, report.there_before) == (4, 2)
    assert best(out) == whole(model, [str(shots)], tmp_path)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 4


def refuse_reading(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let nobody read the files of that name, not even root."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    patch.setattr(Path, "read_bytes", refuse)


def test_a_file_that_can_be_read_later(
    model: Model, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is predicted again, though neither its size nor its modification time has changed."""
    out = tmp_path / "answers.csv"
    with monkeypatch.context() as patch:
        refuse_reading(patch, "0.png")
        interrupt(model, [str(shots)], out, 2)
    report = predict_to_file(model, [str(shots)], out, TOP)
    assert (report.images, report.there_before, report.unreadable) == (4, 1, 0)
    assert best(out) == whole(model, [str(shots)], tmp_path)


def test_files_that_come_and_go(model: Model, shots: Path, known: list[bytes], tmp_path: Path) -> None:
    """A file that is gone has no row, or its problem if it was named; an added one has its row."""
    out = tmp_path / "answers.csv"
    interrupt(model, [str(shots), str(shots / "1.png")], out, 2)
    for number in (0, 1):
        (shots / f"{number}.png").unlink()
    (shots / "4.png").write_bytes(known[4])
    report = predict_to_file(model, [str(shots), str(shots / "1.png")], out, TOP)
    assert (report.images, report.there_before, report.unreadable) == (4, 0, 1)
    assert list(best(out)) == [str(shots / f"{number}.png") for number in (2, 3, 4, 1)]
    assert best(out)[str(shots / "1.png")] is None


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "readable"])
def test_a_changed_member_of_a_group(
    model: Model, shots: Path, known: list[bytes], tmp_path: Path, change: str
) -> None:
    """All images of its group are predicted again; those of other groups are kept."""
    other = write_shots(tmp_path / "other", known[:2])
    paths = [str(other), str(shots)]
    if change == "readable":
        (shots / "3.png").rename(tmp_path / "3.png")
        (shots / "3.png").symlink_to(tmp_path / "nowhere.png")
    out = tmp_path / "answers.jsonl"
    interrupt(model, paths, out, 6, group="folder")
    if change == "removed":
        (shots / "3.png").unlink()
    elif change == "readable":
        (shots / "3.png").unlink()
        (tmp_path / "3.png").rename(shots / "3.png")
    else:
        (shots / ("3.png" if change == "replaced" else "4.png")).write_bytes(known[4])
    lengths = {"removed": 5, "added": 7}
    report = predict_to_file(model, paths, out, TOP, group="folder")
    assert (report.images, report.there_before, report.unreadable) == (lengths.get(change, 6), 2, 0)
    plain = tmp_path / "plain.jsonl"
    predict_to_file(model, paths, plain, TOP, group="folder")
    for row, expected in zip(*map(read_rows, (out, plain)), strict=True):
        assert (row["image"], row["group"]) == (expected["image"], expected["group"])
        (mine,), (theirs,) = row["classes"], expected["classes"]
        assert mine["name"] == theirs["name"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def read_rows(out: Path) -> list[dict[str, list[dict[str, float]]]]:
    """Read the rows of a JSONL file."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_rows_of_a_parquet_file(model: Model, known: list[bytes], tmp_path: Path) -> None:
    """They are kept while the file is the same, and predicted again when it was written anew."""
    table = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": known}), table)
    out = tmp_path / "answers.csv"
    interrupt(model, [str(table)], out, 3)
    shutil.copy(tmp_path / "answers.csv.part", tmp_path / "again.csv.part")
    report = predict_to_file(model, [str(table)], out, TOP)
    assert (report.images, report.there_before) == (5, 3)
    pq.write_table(pa.table({"image": known[::-1][:4]}), table)
    report = predict_to_file(model, [str(table)], tmp_path / "again.csv", TOP)
    assert (report.images, report.there_before) == (4, 0)
    assert best(tmp_path / "again.csv") == whole(model, [str(table)], tmp_path)
    assert list(best(out).values())[:0:-1] == list(best(tmp_path / "again.csv").values())


@pytest.mark.parametrize(("change", "kept"), [("none", 2), ("replaced", 0), ("readable", 0)])
def test_a_prior_that_is_estimated_from_the_images(
    model: Model,
    shots: Path,
    known: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    kept: int,
) -> None:
    """Every row depends on all images that can be read: if one changes, or can be read later, no row is kept."""
    (shots / "broken.png").write_bytes(b"no image")
    options = replace(TOP, prior="estimated")
    out = tmp_path / "answers.csv"
    ticks = []

    def stop(step: str, done: int, total: int | None) -> None:
        ticks.append(step)
        if ticks.count("predict") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if change == "readable":
            refuse_reading(patch, "3.png")
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(model, [str(shots)], out, options, progress=stop)
    if change == "replaced":
        (shots / "3.png").write_bytes(known[4])
    report = predict_to_file(model, [str(shots)], out, options)
    assert (report.images, report.there_before, report.unreadable) == (5, kept, 1)


def test_another_place_or_month(model: Model, shots: Path, tmp_path: Path) -> None:
    """An image whose place or month has changed is predicted again."""
    names = list(model.names.values())
    hill = dict.fromkeys(names, 1.0) | {names[0]: 1e9}
    lake = dict.fromkeys(names, 1.0) | {names[1]: 1e9}
    frequencies = Frequencies(dict.fromkeys(names, 1.0), {Situation("hill"): hill, Situation("lake"): lake})
    first, second = (str(shots / f"{number}.png") for number in (0, 1))
    places: Mapping[str, Situation] = {first: Situation("hill"), second: Situation("hill")}
    options = replace(TOP, prior=frequencies.weights)
    out = tmp_path / "answers.csv"
    stop = Mock(side_effect=[None, KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(
            model, [str(shots)], out, options, progress=stop, situated=Situated(frequencies, places)
        )
    places = {first: Situation("hill"), second: Situation("lake")}
    report = predict_to_file(model, [str(shots)], out, options, situated=Situated(frequencies, places))
    assert (report.images, report.there_before) == (4, 1)
    assert best(out)[first] == names[0]
    assert best(out)[second] == names[1]


def test_an_unfinished_table_cut_off_anywhere(model: Model, shots: Path, tmp_path: Path) -> None:
    """Whatever part of `OUT.part` a killed run has written, the table has one row per image, and the right one."""
    expected = whole(model, [str(shots)], tmp_path)
    out, part = tmp_path / "answers.csv", tmp_path / "answers.csv.part"
    interrupt(model, [str(shots)], out, 4)
    written = part.read_bytes()
    lines = written.splitlines(keepends=True)
    ends = [len(b"".join(lines[:count])) for count in range(len(lines) + 1)]
    cuts = {max(0, min(len(written), end + by)) for end in ends for by in (-1, 0, 1, 30, 64, 65, 66)}
    for cut in sorted(cuts):
        part.write_bytes(written[:cut])
        report = predict_to_file(model, [str(shots)], out, TOP)
        assert report.there_before == max(0, sum(end <= cut for end in ends[1:]) - 1), cut
        assert list(best(out).items()) == list(expected.items()), cut
        out.unlink()


def test_rows_without_an_identity(model: Model, shots: Path, tmp_path: Path) -> None:
    """They are predicted again."""
    out, part = tmp_path / "answers.csv", tmp_path / "answers.csv.part"
    interrupt(model, [str(shots)], out, 3)
    head, *rows = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(head + b"".join(row.partition(b"\t")[2] for row in rows))
    report = predict_to_file(model, [str(shots)], out, TOP)
    assert (report.images, report.there_before) == (4, 0)


_KILLED = """
import os, signal, sys
from pathlib import Path
from vlltr_index.pipelines.predict import predict_to_file
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import PredictOptions

def kill(step, done, total):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

workspace, out, *images = sys.argv[1:]
model = Recognizer.open(workspace).current()
predict_to_file(model, images, Path(out), PredictOptions(top=20, explain=1), progress=kill)
"""


@pytest.mark.slow
def test_a_killed_command_is_resumed_in_another_folder(
    trained_once: Path,
    known: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After `kill -9` in the first folder, the command in the second folder keeps none of the rows."""
    names = [f"{number}.png" for number in range(5)]
    write_shots(tmp_path / "a", known)
    write_shots(tmp_path / "b", known[::-1])
    out = tmp_path / "answers.jsonl"
    program = [sys.executable, "-c", _KILLED, trained_once, out, *names]
    assert subprocess.run(program, cwd=tmp_path / "a", check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "answers.jsonl.part").read_bytes().count(b"\n") >= 2
    monkeypatch.chdir(tmp_path / "b")
    command = ("-w", trained_once, "--json", "predict", *names, "--out", out, "--top", "20", "--explain", "1")
    code, printed, err = run(capsys, *command)
    assert code == 0, err
    assert json.loads(printed)["there_before"] == 0
    alone = Recognizer.open(trained_once).predict([tmp_path / "b" / name for name in names])
    assert best(out) == {name: one.classes[0].name for name, one in zip(names, alone, strict=True)}


def test_another_workspace_with_the_same_anchors(trained: Workspace, shots: Path, tmp_path: Path) -> None:
    """Its rows are not mixed with those of the first one, though commit number, encoder and anchors agree."""
    other = Workspace.open(shutil.copytree(trained.path, tmp_path / "other"))
    for workspace, alpha in ((trained, 0.25), (other, 0.75)):
        with workspace.transaction("train lgr") as tx:
            tx.set(fusion=FusionConfig(rule="paper", alpha=alpha))
    mine, theirs = (Model.open(one.snapshot()) for one in (trained, other))
    assert (mine.commit, mine.anchors.selection_id) == (theirs.commit, theirs.anchors.selection_id)
    interrupt(mine, [str(shots)], tmp_path / "answers.csv", 2)
    with pytest.raises(UsageError, match="rows of another run"):
        predict_to_file(theirs, [str(shots)], tmp_path / "answers.csv", TOP)


def test_identities(shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files by path, size and modification time, however they are named; Parquet rows by file and row; objects by
    address; what is no file by its path."""
    table = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [b"", b""]}), table)
    names = [str(shots / "0.png"), str(table), "s3://birds/1.png", str(shots / "none.png"), "a\0.png"]
    found = image_identities(names)
    assert list(found) == [names[0], f"{table}#0", f"{table}#1", *names[2:]]
    assert len(set(found.values())) == 6
    assert image_identities(names) == found
    monkeypatch.chdir(shots)
    near = image_identities(["0.png", "../images.parquet", "./../shots/0.png"])
    assert list(near.values()) == [*list(found.values())[:3], found[names[0]]]
    os.utime(shots / "0.png", ns=(0, 1))
    os.utime(table, ns=(0, 1))
    later = image_identities(names)
    assert [later[name] == found[name] for name in found] == [False] * 3 + [True] * 3
