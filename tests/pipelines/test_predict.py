"""`vlltr predict`: pictures from folders, patterns, lists and Parquet, answers among some classes, into files."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.support.commands import forbid, run
from tests.support.pictures import encoded, put
from vlltr_index.data import files
from vlltr_index.data.frequencies import Frequencies, Situation
from vlltr_index.data.unlabelled import Pictures, unlabelled_images
from vlltr_index.errors import InputError, UnknownClassError, UsageError
from vlltr_index.pipelines.asked import find_situations, groups_of
from vlltr_index.pipelines.predict import in_situations, predict_to_file
from vlltr_index.recognition.answering import stream
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions


@pytest.fixture
def shots(tmp_path: Path, pictures: Path) -> Path:
    """A folder of pictures, one of them below another folder, one broken, two hidden, and a file that is none."""
    folder = tmp_path / "shots"
    (folder / "more").mkdir(parents=True)
    first, second, *_ = sorted(pictures.glob("known-*.png"))
    (folder / "a.png").write_bytes(first.read_bytes())
    (folder / "more" / "b.PNG").write_bytes(second.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.md").write_text("none")
    (folder / ".cache").mkdir()
    for hidden in ("._a.png", ".cache/x.png"):
        (folder / hidden).write_bytes(first.read_bytes())
    return folder


def test_pictures_are_found_everywhere(shots: Path, tmp_path: Path) -> None:
    """A folder, a pattern, a list and a file name the same pictures; Parquet rows go by their number."""
    every = [str(shots / name) for name in ("a.png", "broken.jpg", "more/b.PNG")]
    (tmp_path / "list.txt").write_text(
        "shots/a.png\n\nshots/broken.jpg\nshots/more/b.PNG\n", encoding="utf-8"
    )
    for given in (shots, tmp_path / "list.txt"):
        assert [name for name, _ in unlabelled_images([str(given)])] == every
    assert [n for n, _ in unlabelled_images([str(shots / "**" / "*.PNG"), every[0]])] == [every[2], every[0]]
    data = (shots / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [data, None]}), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"image": [{"bytes": data, "path": "x"}]}), tmp_path / "structs.parquet")
    rows = list(unlabelled_images([str(tmp_path / "rows.parquet"), str(tmp_path / "structs.parquet")]))
    assert [source for _, source in rows] == [data, b"", data]
    assert [Path(name).name for name, _ in rows] == ["rows.parquet#0", "rows.parquet#1", "structs.parquet#0"]


def test_pictures_are_loaded_by_their_places(
    shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed without bytes, any choice of them is what was listed with bytes; row groups are read where they lie.

    Paths are relative to the folder that they were listed in.
    """
    images = [f"picture {n}".encode() for n in range(10)]
    pq.write_table(pa.table({"image": images}), tmp_path / "rows.parquet", row_group_size=3)
    given = [str(shots / "a.png"), str(tmp_path / "rows.parquet"), str(shots / "more")]
    whole, listed = list(unlabelled_images(given)), list(unlabelled_images(given, with_data=False))
    assert listed[1] == (whole[1][0], b"")
    pictures = Pictures(listed)
    assert len(pictures) == 12
    for places in (range(12), [0, 2, 3, 9, 11], [4], []):
        assert list(pictures.take(places).load()) == [whole[place] for place in places]
    monkeypatch.chdir(tmp_path)
    near = Pictures(
        list(unlabelled_images(["rows.parquet", str(shots.relative_to(tmp_path) / "a.png")], False))
    )
    monkeypatch.chdir("/")
    assert [source for _, source in near.load()] == [*images, str(shots / "a.png")]


def test_what_names_no_picture_is_an_error(tmp_path: Path) -> None:
    """An empty folder, a pattern without a match, a list and a Parquet file that are none."""
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "bad.parquet").write_bytes(b"x")
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "empty": "names no image",
        "*.gif": "names no image",
        "bad.txt": "not UTF-8 text",
        "bad.parquet": "not a readable Parquet file",
        "other.parquet": "no column 'image'; it has 'picture'",
        "numbers.parquet": "the column 'image' holds int64, expected binary",
        "none.parquet": "has no row",
    }.items():
        with pytest.raises(InputError, match=words.replace("*", r"\*")):
            list(unlabelled_images([str(tmp_path / name)]))
    with pytest.raises(InputError, match="the path is empty"):  # as of an unset variable
        list(unlabelled_images([""]))
    long = str(tmp_path / ("a" * 5000 + ".png"))
    assert list(unlabelled_images([long])) == [(long, long)], "its own problem, not the others'"


def test_a_folder_that_cannot_be_listed(shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures would be missing without a word."""
    (shots / "closed").mkdir()
    forbid(monkeypatch, shots / "closed")
    with pytest.raises(InputError, match=f"cannot read the folder {shots / 'closed'}: Permission denied"):
        list(unlabelled_images([str(shots)]))


def test_a_parquet_file_that_unpacks_to_much_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value that is every row's is read a row at a time; many that hardly take room in the file are refused."""
    monkeypatch.setattr(files, "_UNPACKED", 2**20)
    image = bytes(2**19)
    pq.write_table(pa.table({"image": [image] * 64}), tmp_path / "one.parquet", compression="zstd")
    with files.open_parquet(tmp_path / "one.parquet") as file:
        assert files.rows_at_once("a", file, ["image"], 64) == 1
        assert files.rows_at_once("a", file, ["label"], 64) == 64
    assert [len(data) for _, data in unlabelled_images([str(tmp_path / "one.parquet")])] == [2**19] * 64
    table = pa.table({"image": [image] * 64})
    pq.write_table(table, tmp_path / "many.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(InputError, match="row group 0 unpacks to 32 MiB, far more than it takes in the file"):
        list(unlabelled_images([str(tmp_path / "many.parquet")]))


def test_a_stream_takes_any_number(recognizer: Recognizer, pictures: Path) -> None:
    """The answers of `predict`, from a source without end, of which no more is read than is needed."""
    image = pictures / "known-0.png"
    expected = recognizer.predict([image])[0]
    read = count()
    endless = (image for _ in read)
    answers = list(islice(recognizer.stream(endless), 100))
    assert {answer.classes[0].class_id for answer in answers} == {expected.classes[0].class_id}
    assert next(read) < 300


def test_only_some_classes(recognizer: Recognizer, pictures: Path) -> None:
    """Their probabilities in the proportions they have among all, and the log-odds those among them."""
    image, size = pictures / "known-0.png", len(recognizer.current().class_ids)
    whole = recognizer.predict([image], PredictOptions(top=size, retrieval="exhaustive"))[0].classes
    kept = [whole[1], whole[4], whole[6]]
    found = recognizer.predict([image], PredictOptions(only=[one.name for one in reversed(kept)]))[0].classes
    assert [one.name for one in found] == [one.name for one in kept]
    total = sum(one.probability for one in kept)
    assert [one.probability for one in found] == pytest.approx(
        [o.probability / total for o in kept], abs=1e-5
    )
    odds = torch.tensor(found[0].probability / found[1].probability).log()
    assert found[0].image_part + found[0].text_part == pytest.approx(float(odds), abs=1e-4)
    alone = recognizer.predict([image], PredictOptions(only=[kept[0].name]))[0].classes
    assert [(one.probability, one.image_part) for one in alone] == [(pytest.approx(1.0), 0.0)]
    with pytest.raises(UnknownClassError):
        recognizer.predict([image], PredictOptions(only=["no such class"]))
    for asked, words in (
        ({"only": []}, "names no class"),
        ({"only": ["x"], "reject": True}, "looks at all classes"),
    ):
        with pytest.raises(UsageError, match=words):
            recognizer.predict([image], PredictOptions(**asked))  # type: ignore[arg-type]  # each of its own type


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_answers_in_a_file(recognizer: Recognizer, shots: Path, tmp_path: Path, ending: str) -> None:
    """One row a picture, a broken one with its problem; an interrupted run resumes without loss or repeat."""
    out, part = tmp_path / f"answers.{ending}", tmp_path / f"answers.{ending}.part"
    answers, paths = recognizer.current(), [str(shots), str(shots / "a.png")]
    stop = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(answers, paths, out, PredictOptions(top=2), progress=stop)
    assert not out.exists()
    expected = list(stream(answers, unlabelled_images([str(shots)]), PredictOptions(top=2)))
    head, first = part.read_text(encoding="utf-8").splitlines(keepends=True)
    part.write_text(head + first + first[:20], encoding="utf-8")  # killed while it wrote the second
    with pytest.raises(UsageError, match="rows of another run"):
        predict_to_file(answers, paths, out, PredictOptions(top=3))
    part.write_text(head + "[1]\n" + first, encoding="utf-8")
    with pytest.raises(UsageError, match="no answer of this program"):
        predict_to_file(answers, paths, out, PredictOptions(top=2))
    part.write_text(head + first + first[:20], encoding="utf-8")
    report = predict_to_file(answers, paths, out, PredictOptions(top=2))
    assert (report.images, report.there_before, report.unreadable) == (3, 1, 1)
    assert not part.exists()
    if ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        for row, one in zip(rows, expected, strict=True):
            assert row.keys() == asdict(one).keys()
            assert (row["image"], row["problem"]) == (one.image, one.problem)
            assert [score["name"] for score in row["classes"]] == [score.name for score in one.classes]
        return
    if ending == "csv":
        with out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(out).to_pylist()
    for row, one in zip(rows, expected, strict=True):
        assert row["image"] == one.image
        assert (row["problem"] or None) == one.problem
        if one.problem is None:
            assert [row["class_1"], row["class_2"]] == [score.name for score in one.classes]
            assert float(row["probability_2"]) == pytest.approx(one.classes[1].probability, abs=1e-5)
            assert float(row["text_part"]) == pytest.approx(one.classes[0].text_part, abs=1e-4)
            speaking = [sentence.text for sentence in one.classes[0].sentences if sentence.percent > 0]
            assert (row["sentences"] or "") == " | ".join(speaking)


def test_pictures_are_grouped_by_folder_name_and_time(
    shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the folder, the current one too; by what is found in the name; by when they were taken, if that is known."""
    a, broken, b = (str(shots / name) for name in ("a.png", "broken.jpg", "more/b.PNG"))
    assert groups_of([str(shots)], "folder") == {a: str(shots), broken: str(shots), b: str(shots / "more")}
    assert groups_of([str(shots)], r"name:^(.)\.") == {a: f"{shots}/a", b: f"{shots / 'more'}/b"}
    twice = [a, f"{shots}/more/../broken.jpg"]
    assert groups_of(twice, "folder") == dict.fromkeys(twice, str(shots))
    monkeypatch.chdir(shots)
    assert groups_of(["a.png", "broken.jpg"], "folder") == {"a.png": ".", "broken.jpg": "."}
    pq.write_table(pa.table({"image": [b"", b""]}), "rows.parquet")
    with pytest.raises(UsageError, match="none of the 2 pictures"):
        groups_of(["rows.parquet"], "folder")
    timed = tmp_path / "timed"
    timed.mkdir()
    for number, second in enumerate((1, 3, 40)):
        exif = Image.Exif()
        exif[0x0132] = f"2024:05:01 10:00:{second:02}"
        Image.new("RGB", (32, 32)).save(timed / f"{number}.jpg", exif=exif)
    (timed / "broken.jpg").write_bytes(b"no picture")
    found = groups_of([str(timed)], "seconds:5")
    assert set(found) == {str(timed / f"{number}.jpg") for number in range(3)}
    first, second, third = (found[str(timed / f"{number}.jpg")] for number in range(3))
    assert first == second != third
    for wrong, words in (
        ("auto", "without labels"),
        ("name:x", "none of the 3 pictures"),
        ("often", "not a way"),
        ("name:(", "no regular expression"),
    ):
        with pytest.raises(UsageError, match=words):
            groups_of([str(shots)], wrong)


def test_a_file_of_groups_goes_on(recognizer: Recognizer, shots: Path, tmp_path: Path) -> None:
    """A run that was interrupted within a group predicts the whole group again, and keeps groups that are complete."""
    (shots / "more" / "c.png").write_bytes((shots / "a.png").read_bytes())
    model = recognizer.current()
    paths = [str(shots / "more"), str(shots)]
    whole = tmp_path / "whole.csv"
    predict_to_file(model, paths, whole, group="folder")
    with whole.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == [str(shots / "more")] * 2 + [str(shots)] * 2
    assert rows[0]["probability_1"] == rows[1]["probability_1"]
    for stopped_after in range(1, 4):
        out = tmp_path / f"{stopped_after}.csv"
        stop = Mock(side_effect=[None] * (stopped_after - 1) + [KeyboardInterrupt])
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(model, paths, out, progress=stop, group="folder")
        with pytest.raises(UsageError, match="rows of another run"):
            predict_to_file(model, paths, out)
        report = predict_to_file(model, paths, out, group="folder")
        assert (report.images, report.there_before, report.unreadable) == (4, 2 * (stopped_after > 1), 1)
        with out.open(encoding="utf-8", newline="") as file:
            again = list(csv.DictReader(file))
        for mine, theirs in zip(again, rows, strict=True):
            assert {
                name: mine[name] for name in ("image", "group", "class_1", "problem")
            }.items() <= theirs.items()
            assert float(mine["image_part"] or 0) == pytest.approx(float(theirs["image_part"] or 0), abs=1e-3)


def test_a_group_in_the_terminal(
    trained_once: Path, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer stands once, beside the first picture; as JSON every picture has it."""
    (shots / "broken.jpg").unlink()
    (shots / "c.png").write_bytes((shots / "more" / "b.PNG").read_bytes())
    code, out, _ = run(capsys, "-w", trained_once, "predict", shots, "--group", "folder", "--top", "1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{shots / 'a.png'}   group {shots}"
    assert f"{shots / 'c.png'}: the same answer" in lines
    assert f"{shots / 'more' / 'b.PNG'}   group {shots / 'more'}" in lines
    again = (shots, shots / "a.png")  # a picture counts once
    code, out, _ = run(capsys, "-w", trained_once, "--json", "predict", *again, "--group", "folder")
    found = json.loads(out)
    assert len(found) == 3
    assert found[0]["classes"] == found[1]["classes"] != found[2]["classes"]
    code, _, err = run(
        capsys,
        "-w",
        trained_once,
        "predict",
        shots,
        "--group",
        "folder",
        "--engine",
        "ray",
        "--out",
        tmp_path / "x.csv",
    )
    assert (code, "Leave out: --engine ray" in err) == (2, True)


@pytest.fixture
def deployments(shots: Path, tmp_path: Path) -> Path:
    """A folder with one more picture, which tells its month, and a file that says where the others were taken."""
    exif = Image.Exif()
    exif[0x0132] = "2024:05:01 10:00:00"
    Image.open(shots / "a.png").save(shots / "may.png", exif=exif)
    rows = "shots/a.png,hill,2024-05-31\nshots/more/b.PNG,lake,11\nshots/may.png,hill,\n"
    (tmp_path / "taken.csv").write_text(f"image,place,month\n{rows}", encoding="utf-8")
    return shots


def test_weights_go_by_place_and_month(recognizer: Recognizer, deployments: Path, tmp_path: Path) -> None:
    """Each picture has the answer that its weights alone give; EXIF tells a month that the file does not."""
    names = recognizer.classes_.tolist()
    hill = dict.fromkeys(names, 1.0) | {names[3]: 1e6}
    lake = dict.fromkeys(names, 1.0) | {names[5]: 1e6}
    everywhere = {name: hill[name] + lake[name] for name in names}
    told = Frequencies(everywhere, {Situation("hill", 5): hill, Situation("lake", 11): lake})
    known = find_situations([str(deployments)], told, tmp_path / "taken.csv")
    a, b, may = (str(deployments / name) for name in ("a.png", "more/b.PNG", "may.png"))
    assert known.of == {a: Situation("hill", 5), may: Situation("hill", 5), b: Situation("lake", 11)}
    options = PredictOptions(top=2, prior=everywhere)
    out = tmp_path / "out.csv"
    model = recognizer.current()
    stop = Mock(side_effect=[None, None, KeyboardInterrupt])
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(model, [str(deployments)], out, options, situated=known, progress=stop)
    with pytest.raises(UsageError, match="rows of another run"):
        predict_to_file(model, [str(deployments)], out, options)
    report = predict_to_file(model, [str(deployments)], out, options, situated=known)
    assert (report.images, report.there_before, report.unreadable) == (4, 2, 1)
    with out.open(encoding="utf-8", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    for name, weights in ((a, hill), (may, hill), (b, lake)):
        expected = recognizer.predict([name], PredictOptions(top=2, prior=weights))[0].classes[0]
        assert rows[name]["class_1"] == expected.name
        assert float(rows[name]["prior_part"]) == pytest.approx(expected.prior_part, abs=1e-3)
    elsewhere = replace(known, of={b: Situation("lake", 11)})
    groups = dict.fromkeys((a, b), "both")
    found = {
        one.image: one
        for one in in_situations(
            model, unlabelled_images([str(deployments)], False), options, groups, elsewhere
        )
    }
    assert found[a].classes == found[b].classes
    plain = recognizer.predict([may], options)[0].classes[0]
    assert found[may].classes[0].prior_part == pytest.approx(plain.prior_part, abs=1e-3)


def test_where_pictures_were_taken_has_to_be_known(
    deployments: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a file that says it nothing is done; of pictures that it does not name, or without a place, totals hold,
    and it is told."""
    told = Frequencies({"wren": 2.0}, {Situation("moor", 5): {"wren": 2.0}})
    with pytest.raises(UsageError, match="nothing says where"):
        find_situations([str(deployments)], told, None)
    assert not find_situations([str(deployments)], told, tmp_path / "taken.csv").of
    assert "for 4 of 4 pictures the prior has no weights" in caplog.text
    (tmp_path / "empty.csv").write_text("image,place\nshots/a.png,\n", encoding="utf-8")
    assert not find_situations([str(deployments)], told, tmp_path / "empty.csv").of
    assert "no row of" not in caplog.text
    (tmp_path / "months.csv").write_text("image,month\nshots/a.png,5\n", encoding="utf-8")
    hill = Frequencies({"wren": 2.0}, {Situation("hill"): {"wren": 2.0}})
    with pytest.raises(
        InputError, match=r"months.csv: no column 'place', and the weights of classes are by it"
    ):
        find_situations([str(deployments)], hill, tmp_path / "months.csv")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "taken.csv", tmp_path / "elsewhere")
    find_situations([str(deployments)], told, tmp_path / "elsewhere" / "taken.csv")
    assert "taken.csv names one of the pictures" in caplog.text


def test_frequencies_by_month_from_the_command_line(
    trained_once: Path, deployments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Months alone are read from the pictures; what does not go together is said."""
    names = Recognizer.open(trained_once).classes_.tolist()
    lines = "".join(f'"{name}",{1 + place},{month}\n' for place, name in enumerate(names) for month in (5, 6))
    (tmp_path / "months.csv").write_text(f"class,weight,month\n{lines}", encoding="utf-8")
    (tmp_path / "plain.csv").write_text(f"class,weight\n{names[0]},1\n", encoding="utf-8")
    (deployments / "broken.jpg").unlink()
    asked = ("-w", trained_once, "--json", "predict", deployments, "--prior", tmp_path / "months.csv")
    code, out, err = run(capsys, *asked)
    assert code == 0
    assert "for 2 of 3 pictures the prior has no weights" in err
    assert {Path(one["image"]).name for one in json.loads(out)} == {"a.png", "b.PNG", "may.png"}
    code, _, err = run(capsys, *asked[:-1], tmp_path / "plain.csv")
    lacking = f"the prior has no weight for {len(names) - 1} classes, such as {names[1]!r}"
    assert (code, err.splitlines()[0]) == (1, f"Error: {tmp_path / 'plain.csv'}: {lacking}")
    for wrong, words in (
        ((*asked, "--engine", "ray", "--out", tmp_path / "x.csv"), "Leave out: --engine ray"),
        (
            (*asked[:-1], tmp_path / "plain.csv", "--taken", tmp_path / "taken.csv"),
            "--taken is for a --prior FILE",
        ),
        (("-w", trained_once, "evaluate", "--prior", tmp_path / "months.csv"), "for vlltr predict alone"),
    ):
        code, _, err = run(capsys, *wrong)
        assert (code, words in err) == (2, True), err


def test_a_thin_picture_is_its_own_problem(recognizer: Recognizer, shots: Path, tmp_path: Path) -> None:
    """It costs next to nothing, is reported by name, and the others are answered."""
    put(shots / "thin.png", encoded(Image.new("1", (200_000, 1))))
    report = predict_to_file(recognizer.current(), [str(shots)], tmp_path / "out.jsonl")
    assert (report.images, report.unreadable) == (4, 2)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    problems = {Path(row["image"]).name: row["problem"] for row in rows}
    assert problems["a.png"] is None
    assert problems["thin.png"] == (
        f"cannot read the image {shots / 'thin.png'}: 200,000 x 1 pixels: one side is more than 1,000 times the other"
    )


def test_files_that_do_not_fit(recognizer: Recognizer, shots: Path, tmp_path: Path) -> None:
    """Another ending, one that is there, and one that cannot be written; one that holds no answer yet is begun anew."""
    answers, paths = recognizer.current(), [str(shots / "a.png")]
    (tmp_path / "b.csv").touch()
    for name, words in {"a.txt": "of which kind", "b.csv": "is there already"}.items():
        with pytest.raises(UsageError, match=words):
            predict_to_file(answers, paths, tmp_path / name)
    with pytest.raises(UsageError, match=r"there is no folder .*none"):
        predict_to_file(answers, paths, tmp_path / "none" / "d.csv")
    with pytest.raises(UnknownClassError):
        predict_to_file(answers, paths, tmp_path / "e.csv", PredictOptions(only=["no such class"]))
    assert predict_to_file(answers, paths, tmp_path / "e.csv").images == 1
    assert predict_to_file(answers, paths, tmp_path / "f.csv", PredictOptions(top=10**9)).images == 1
    header = (tmp_path / "f.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert f"class_{len(answers.class_ids)}" in header
    assert not list(tmp_path.glob("*.lock"))


def test_one_command_at_a_time_writes_a_file(recognizer: Recognizer, shots: Path, tmp_path: Path) -> None:
    """A second one for the same file is refused, and what is there stays."""
    with (
        FileLock(tmp_path / "out.csv.lock"),
        pytest.raises(UsageError, match=r"out.csv is being written by another"),
    ):
        predict_to_file(recognizer.current(), [str(shots)], tmp_path / "out.csv")
    predict_to_file(recognizer.current(), [str(shots)], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.lock").exists()


def test_names_that_are_no_text(recognizer: Recognizer, shots: Path, tmp_path: Path) -> None:
    """A file name that is not UTF-8 is answered, and written with its bytes spelled out."""
    (shots / "a.png").rename(os.fsdecode(os.fsencode(shots) + b"/\xff.png"))
    predict_to_file(recognizer.current(), [str(shots)], tmp_path / "a.csv")
    assert "\\xff.png" in (tmp_path / "a.csv").read_text(encoding="utf-8")
    (shots / r"\xff.png").write_bytes((shots / os.fsdecode(b"\xff.png")).read_bytes())
    pictures = len(list(unlabelled_images([str(shots)])))
    assert predict_to_file(recognizer.current(), [str(shots)], tmp_path / "b.csv").images == pictures


def test_the_command(
    capsys: pytest.CaptureFixture[str], trained_once: Path, shots: Path, tmp_path: Path
) -> None:
    """Answers for people, as JSON and in a file; `--only` by a list or a file; what is unreadable gives exit code 1."""
    answer = ("-w", trained_once, "predict", shots, "--top", "2")
    code, out, err = run(capsys, *answer, "--explain", "1")
    assert code == 1
    assert out.count(".png") + out.count(".PNG") >= 2
    assert "1 of 3 images cannot be read. Give JPEG" in err
    code, _, err = run(capsys, "-w", trained_once, "predict", tmp_path / "nowhere.png")
    assert (code, "Check the path: there is no such file." in err) == (1, True)
    code, out, _ = run(capsys, "--json", *answer)
    names = [score["name"] for score in json.loads(out)[0]["classes"]]
    (tmp_path / "only.txt").write_text("\n".join(names), encoding="utf-8")
    for only in (",".join(names), tmp_path / "only.txt"):
        code, out, _ = run(capsys, "--json", *answer, "--only", only)
        assert {score["name"] for score in json.loads(out)[0]["classes"]} == set(names)
    (tmp_path / "only.txt").write_bytes(b"\xff\n")
    code, _, err = run(capsys, *answer, "--only", tmp_path / "only.txt")
    assert (code, f"{tmp_path / 'only.txt'}:1: not UTF-8 text" in err) == (1, True)
    code, out, err = run(capsys, *answer[:3], "~nobody-of-that-name/x.png")
    assert (code, "~nobody-of-that-name/x.png" in out, "Traceback" in err) == (1, True, False)
    code, out, _ = run(capsys, *answer, "--out", tmp_path / "answers.csv")
    assert (code, out) == (1, f"Wrote 3 rows to {tmp_path / 'answers.csv'}; 1 picture could not be read.\n")
