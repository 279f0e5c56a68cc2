"""`vlltr review`: what is listed, in which order, what becomes of it, and what is kept."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops, ImageEnhance

from tests.support.commands import run
from tests.support.pictures import encoded, put
from tests.support.spoilt import (
    CLASSES,
    PICTURES,
    RECIPE,
    characters,
    spoilt_workspace,
    trained_on,
    with_head,
    written,
)
from vlltr_index.classes import add_class, relabel_images, remove_classes, rename_class
from vlltr_index.cli.render import report_lines
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.review.files import check_targets, root_of, write_list
from vlltr_index.pipelines.review.folder import review_folder
from vlltr_index.pipelines.review.held_out import held_out_labels
from vlltr_index.pipelines.review.queue import Beside, Entry, Review, review
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.store.holdout import read_held_out
from vlltr_index.store.workspace import Workspace


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[bytes]]:
    """Pictures of five characters."""
    return characters()


@pytest.fixture(scope="module")
def spoilt_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of pictures of which some lie in a wrong folder or are there twice."""
    return spoilt_workspace(tmp_path_factory.mktemp("spoilt"))


@pytest.fixture
def spoilt(spoilt_once: Workspace, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(spoilt_once.path, tmp_path / "workspace"))


def listed(found: Review) -> list[tuple[str, str]]:
    """Reason and file of each entry."""
    return [(one.reason, "/".join(Path(one.picture).parts[-2:])) for one in found.entries]


def test_the_order_is_that_in_which_looking_pays(spoilt: Workspace) -> None:
    """The picture in two classes first, then wrong labels with the right suggestion, then what is twice in a class."""
    found = review(spoilt)
    entries = listed(found)
    first = found.entries[0]
    assert first.reason == "two classes"
    both = {first.picture, *(one.picture for one in first.beside)}
    assert {"/".join(Path(one).parts[-2:]) for one in both} == {"class 4/5.png", "class 0/twice.png"}
    wrong = [one for one in found.entries if one.reason == "label"]
    assert {"/".join(Path(one.picture).parts[-2:]) for one in wrong} >= {
        "class 1/wrong.png",
        "class 3/wrong.png",
    }
    suggested = {"/".join(Path(one.picture).parts[-2:]): one.suggested for one in wrong}
    assert (suggested["class 1/wrong.png"], suggested["class 3/wrong.png"]) == ("class 0", "class 2")
    assert [one.wrong for one in wrong] == sorted((one.wrong for one in wrong), reverse=True)
    assert entries[-1][0] == "copies"
    lots = [{one.picture, *(other.picture for other in one.beside)} for one in found.entries]
    darker = next(lot for lot in lots if any("darker" in picture for picture in lot))
    assert {"/".join(Path(one).parts[-2:]) for one in darker} >= {"class 4/7.png", "class 4/darker.png"}
    assert found.counts == Counter(reason for reason, _ in entries)
    assert review(spoilt, top=2).entries == found.entries[:2]
    assert review(spoilt, top=2).counts == found.counts


def test_copies_in_another_split(spoilt: Workspace, spoilt_once: Workspace, tmp_path: Path) -> None:
    """A test picture that is among the training pictures makes the figure too good."""
    seen = spoilt_once.path.parent / "pictures" / "class 1" / "2.png"
    put(tmp_path / "test" / "class 1" / "seen.png", seen.read_bytes())
    ingest_images(spoilt, tmp_path / "test", "test")
    embed(spoilt)
    (entry,) = (one for one in review(spoilt).entries if one.reason == "two splits")
    assert {entry.split, entry.beside[0].split} == {"train", "test"}


@pytest.mark.slow
def test_answers_are_made_once(spoilt: Workspace) -> None:
    """Answers are kept until a label or the head changes; damaged ones are made again."""
    made = 0

    def progress(step: str, done: int, total: int) -> None:
        nonlocal made
        made += step == "answers" and done == total

    def answered() -> pa.Table:
        return held_out_labels(spoilt.snapshot(), spoilt.path / "runs" / "review", progress).answers

    first = answered()
    assert answered().equals(first)
    assert made == 1
    (spoilt.path / "runs" / "review" / "answers.arrow").write_bytes(b"no table")
    assert answered().equals(first)
    assert made == 2
    rows = spoilt.snapshot().table("images", ["uri"]).to_pylist()
    path = next(row["uri"] for row in rows if row["uri"].endswith("class 1/wrong.png"))
    table = spoilt.path.parent / "labels.csv"
    table.write_text(f"path,class\n{path},class 0\n", encoding="utf-8")
    relabel_images(spoilt, table)
    answered()
    assert made == 3
    train_lgr_stage(spoilt, spoilt.recipe.lgr)
    answered()
    assert made == 4


def rotated(data: bytes, degrees: float) -> bytes:
    """A picture, turned."""
    return encoded(Image.open(io.BytesIO(data)).convert("L").rotate(degrees))


@pytest.mark.slow
def test_images_added_after_training_are_judged(
    spoilt: Workspace, drawn: dict[str, list[bytes]], tmp_path: Path
) -> None:
    """Images of existing and added classes have an answer, which an offset of an added class does not change."""
    known, other, *_ = drawn.values()
    folder = tmp_path / "later"
    put(folder / "class 0" / "later.png", rotated(known[0], 3.0))
    ingest_images(spoilt, folder, "train")
    embed(spoilt)
    for number, data in enumerate(other[:8]):
        put(tmp_path / "new" / f"{number}.png", rotated(data, 180.0))
    add_class(spoilt, "new", images=tmp_path / "new")
    names = [f"new/{number}.png" for number in range(8)]
    rows = spoilt.snapshot().table("images", ["image_id", "uri"]).to_pylist()
    name_of = {row["image_id"]: "/".join(Path(row["uri"]).parts[-2:]) for row in rows}
    found = held_out_labels(spoilt.snapshot(), tmp_path / "first").answers
    assert {"class 0/later.png", *names} <= {name_of[one] for one in found["image_id"].to_pylist()}
    with spoilt.transaction("test") as tx:
        tx.note(offsets={tx.class_table().lookup("new"): -100.0})
    assert held_out_labels(spoilt.snapshot(), tmp_path / "second").answers.equals(found)


def _filled(path: Path, classes: dict[str, str]) -> None:
    """Write classes into the table, as a person does, by the last two parts of the path."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["class"] = classes.get("/".join(Path(row["path"]).parts[-2:]), "")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.slow
def test_a_table_goes_round(spoilt: Workspace, tmp_path: Path) -> None:
    """What was corrected or confirmed in the table is not listed again, and the next list says how answers moved."""
    before = review(spoilt)
    table = tmp_path / "queue.csv"
    write_list(table, before, spoilt.snapshot())
    _filled(
        table,
        {
            "class 1/wrong.png": "class 0",
            "class 3/wrong.png": "class 2",
            "class 0/twice.png": "class 4",
            "class 4/5.png": "class 4",
        },
    )
    report = relabel_images(spoilt, table)
    assert len(report.relabelled) + report.same >= 3
    after = review(spoilt)
    assert not {"class 1/wrong.png", "class 3/wrong.png"} & {name for _, name in listed(after)}
    assert "two classes" not in after.counts
    assert after.moved is not None
    assert after.moved.low <= after.moved.after - after.moved.before <= after.moved.high
    assert any("whose label is as it was" in line for line in map(str, report_lines(after)))
    confirmed = [one for one in after.entries if one.reason == "label"]
    if confirmed:
        name = "/".join(Path(confirmed[0].picture).parts[-2:])
        write_list(table, after, spoilt.snapshot())
        _filled(table, {name: confirmed[0].class_name or ""})
        relabel_images(spoilt, table)
        assert name not in {one for _, one in listed(review(spoilt))}


def _split(path: Path, parts: int) -> list[Path]:
    """Split a table as a team does: the header in each part, and the rows of an entry together."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = []
    for number in range(parts):
        made.append(path.with_name(f"part-{number + 1}.csv"))
        with made[-1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["entry"]) % parts == number)
    return made


@pytest.mark.slow
def test_a_split_table_goes_round(spoilt: Workspace, tmp_path: Path) -> None:
    """Parts that are taken back one by one, in any order, have the effect of the whole table."""
    whole = Workspace.open(shutil.copytree(spoilt.path, tmp_path / "whole"))
    table = tmp_path / "queue.csv"
    write_list(table, review(spoilt), spoilt.snapshot())
    chosen = {
        "class 1/wrong.png": "class 0",
        "class 3/wrong.png": "class 2",
        "class 0/twice.png": "class 4",
        "class 4/5.png": "class 4",
        "class 4/7.png": "class 4",
        "class 4/darker.png": "class 4",
    }
    _filled(table, chosen)
    parts = _split(table, 2)
    at_once = relabel_images(whole, table)
    reports = [relabel_images(spoilt, part) for part in reversed(parts)]
    assert all(report.relabelled or report.same for report in reports), "each part decides something"
    assert sum(len(report.relabelled) for report in reports) == len(at_once.relabelled)
    assert sum(report.same for report in reports) == at_once.same
    for name, columns in (("images", ["image_id", "class_id"]), ("reviewed", None)):
        tables = [one.snapshot().table(name, columns).sort_by("image_id") for one in (spoilt, whole)]
        assert tables[0].equals(tables[1])
    assert listed(review(spoilt)) == listed(review(whole))


def test_files(spoilt: Workspace, tmp_path: Path) -> None:
    """A table whose class is empty, and a sheet with thumbnails, where names are text; other endings are refused."""
    found = review(spoilt)
    write_list(tmp_path / "queue.csv", found, spoilt.snapshot())
    with (tmp_path / "queue.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    every = [picture for one in found.entries for picture in (one, *one.beside)]
    assert [row["path"] for row in rows] == [one.picture for one in every]
    assert [row["now"] for row in rows] == [one.class_name for one in every]
    assert [row["entry"] for row in rows].count("1") == 1 + len(found.entries[0].beside)
    assert {row["class"] for row in rows} == {""}
    assert rows[0]["reason"] == "two classes"
    write_list(tmp_path / "sheet.html", found, spoilt.snapshot())
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    pictures = sum(1 + len(one.beside) for one in found.entries)
    assert page.count("data:image/") == pictures
    with pytest.raises(UsageError, match="of which kind"):
        check_targets([tmp_path / "queue.txt"])
    with pytest.raises(InputError, match="no such folder"):
        check_targets([tmp_path / "no" / "queue.csv"])
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("class", encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"labelled\.csv exists, and may contain your labels\nChoose another file"
    ):
        check_targets([labelled])
    assert labelled.read_text(encoding="utf-8") == "class"


def test_a_sheet_shows_what_cannot_be_seen_in_names(tmp_path: Path) -> None:
    """Line feeds, escapes, direction marks and characters without ink are escaped; the table has names as they are."""
    evil = "owl\n\x1b[31m\u202egnp\u200b"
    entry = Entry(
        evil, "teaches", class_name=evil, likely=((evil, 0.5),), beside=(Beside(evil, class_name=evil),)
    )
    found = Review((entry,), {"teaches": 1}, pictures=1, notes=(evil,))
    snapshot = Workspace.create(tmp_path / "ws", RECIPE).snapshot()
    write_list(tmp_path / "sheet.html", found, snapshot)
    html = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert html.count("owl\\u000a\\u001b[31m\\u202egnp\\u200b") >= 6
    assert not re.search("owl\n|[\x1b\u202e\u200b]", html)
    write_list(tmp_path / "queue.csv", found, snapshot)
    with (tmp_path / "queue.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["now"] for row in rows] == [evil, evil]


def test_what_lacks(tmp_path: Path, drawn: dict[str, list[bytes]]) -> None:
    """Pictures, their vectors, or the head: the hint names the command that makes them."""
    workspace = Workspace.create(tmp_path / "workspace", RECIPE)
    with pytest.raises(MissingStepError, match="no training images with a label"):
        review(workspace)
    written(tmp_path / "pictures", drawn)
    ingest_images(workspace, tmp_path / "pictures", "train")
    with pytest.raises(MissingStepError, match="no training image has been embedded") as lacking:
        review(workspace)
    assert lacking.value.hint == "Run: vlltr embed"
    embed(workspace)
    with pytest.raises(MissingStepError, match="there is no head yet") as lacking:
        review(workspace)
    assert lacking.value.hint == "Run: vlltr train lgr"


def test_a_head_without_folds(tmp_path: Path, drawn: dict[str, list[bytes]]) -> None:
    """With one image per class none is held out, and no label is judged; copies in two classes are found."""
    once = {name: some[:1] for name, some in drawn.items()}
    once[next(iter(once))] = once[list(once)[1]]
    written(tmp_path / "pictures", once)
    workspace = trained_on(tmp_path / "workspace", tmp_path / "pictures")
    report = review(workspace)
    assert report.pictures == 0
    assert any("No label is judged" in note for note in report.notes)
    assert [entry.reason for entry in report.entries] == ["two classes"]


def test_the_command(spoilt: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many there are of each kind, and the first of them; --json has all."""
    out = tmp_path / "queue.csv"
    code, told, _ = run(capsys, "-w", spoilt.path, "review", "--out", out)
    assert code == 0
    assert "One file in two classes: one of the labels is wrong: 1 entry." in told
    relabel = shlex.join(["vlltr", "-w", str(spoilt.path), "images", "relabel", str(out)])
    assert f"Wrote {out}.\nWrite classes into its column class, then run: {relabel}\n" in told
    number = review(spoilt).wrong
    assert number > 1
    assert f"About {number} labels may be wrong, by the sum of the probabilities" in told
    code, told, _ = run(capsys, "-w", spoilt.path, "--json", "review", "--top", "1")
    assert [one["reason"] for one in json.loads(told)["entries"]] == ["two classes"]


def moved(data: bytes) -> bytes:
    """A picture, a pixel to the right."""
    return encoded(ImageChops.offset(Image.open(io.BytesIO(data)).convert("L"), 1, 0))


@pytest.fixture
def camera(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of known characters, of five characters that the workspace lacks, copies, and a broken file."""
    folder = tmp_path / "camera"
    rows = pq.read_table(glyph_files(fast=True).images, columns=["image", "label", "split"]).to_pylist()
    known = [moved(row["image"]) for row in rows if row["split"] == "test"][:30]
    lacking = [row for row in rows if row["split"] == "dev_support"]
    common = [name for name, _ in Counter(row["label"] for row in lacking).most_common(2)]
    new = [row["image"] for row in lacking if row["label"] in common]
    for number, data in enumerate(known):
        put(folder / "known" / f"{number}.png", data)
    for number, data in enumerate(new):
        put(folder / "new" / f"{number}.png", data)
    put(folder / "again.png", known[0])
    put(folder / "broken.png", b"no picture")
    put(folder / "labelled.png", next(row["image"] for row in rows if row["split"] == "train"))
    return folder, common


def test_a_folder_without_labels(trained: Workspace, camera: tuple[Path, list[str]]) -> None:
    """Each content once, labelled pictures left out, broken ones told; vectors are kept, and no commit is made."""
    folder, _ = camera
    commit = trained.history.last().id
    steps = []
    found = review_folder(trained, [str(folder)], progress=lambda step, done, total: steps.append(step))
    assert trained.history.last().id == commit
    pictures = [one.picture for one in found.entries] + [
        other.picture for one in found.entries for other in one.beside
    ]
    there = {str(path) for path in folder.rglob("*.png")}
    left_out = {str(folder / name) for name in ("broken.png", "labelled.png", "known/0.png", "again.png")}
    assert len(pictures) == len(set(pictures)) == found.pictures == len(there) - 3
    assert there - left_out < set(pictures) < there
    assert len(found.notes) == 2
    assert found.notes[0] == "1 picture has a label already: left out."
    assert "broken.png" in found.notes[1]
    assert all(len(one.likely) == 3 for one in found.entries)
    assert "embed images" in steps
    steps.clear()
    again = review_folder(
        trained, [str(folder)], top=5, progress=lambda step, done, total: steps.append(step)
    )
    assert again.entries == found.entries[:5]
    assert "embed images" not in steps
    with pytest.raises(InputError, match="no picture to look at: 1 picture has a label, 0 cannot be read"):
        review_folder(trained, [str(folder / "labelled.png")])


@pytest.mark.slow
def test_a_split_table_takes_pictures_in(
    trained: Workspace, camera: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Pictures without labels that two parts give a class become training pictures, each once."""
    folder, _ = camera
    table = tmp_path / "queue.csv"
    write_list(table, review_folder(trained, [str(folder)]), trained.snapshot())
    name = trained.snapshot().class_table().names[0]
    _filled(table, {f"known/{number}.png": name for number in range(1, 30)})
    added = [relabel_images(trained, part, add=True).added_images for part in _split(table, 2)]
    assert min(added) > 0
    assert sum(added) == trained.snapshot().count("images", "uri LIKE '%camera/known/%'") == 29


@pytest.mark.slow
@pytest.mark.parametrize(("page", "place"), [("README.md", "../camera"), ("docs/howto.md", "camera")])
def test_the_commands_of_the_docs_take_pictures_in(
    page: str,
    place: str,
    trained: Workspace,
    camera: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As they are written there, and the command that `review` prints does the same."""
    folder, _ = camera
    monkeypatch.chdir(trained.path)
    if not Path(place).exists():
        shutil.move(folder, place)
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    reviewing, relabelling = (
        shlex.split(re.findall(rf"^vlltr ({start}[^#\n]*)", text, re.MULTILINE)[-1])
        for start in (f"review {place} --out camera.csv", r"images relabel camera\.csv --add")
    )
    code, told, _ = run(capsys, *reviewing)
    assert code == 0
    name = trained.snapshot().class_table().names[0]
    _filled(Path("camera.csv"), {f"known/{number}.png": name for number in range(1, 30)})
    printed = re.findall(r"^Write classes into its column class, then run: vlltr (.*)$", told, re.MULTILINE)
    assert [shlex.split(one) for one in printed] == [
        ["images", "relabel", "camera.csv", "--add", "--root", os.path.realpath(place)]
    ]
    for command in ([*shlex.split(printed[0]), "--dry-run"], relabelling):
        code, told, _ = run(capsys, *command)
        assert code == 0
        assert "29 added." in told
    assert trained.snapshot().count("images", "uri LIKE '%camera/known/%'") == 29


def test_rows_of_a_parquet_file(trained: Workspace, tmp_path: Path) -> None:
    """They are named by their place in it, and are embedded like files."""
    rows = pq.read_table(
        glyph_files(fast=True).images, columns=["image"], filters=[("split", "=", "dev_support")]
    )
    pq.write_table(rows.slice(0, 4), tmp_path / "some.parquet")
    found = review_folder(trained, [str(tmp_path / "some.parquet")])
    assert {one.picture for one in found.entries} == {f"{tmp_path / 'some.parquet'}#{n}" for n in range(4)}
    assert root_of(found) is None
    write_list(tmp_path / "sheet.html", found, trained.snapshot())
    assert (tmp_path / "sheet.html").read_text().count("data:image/") == 4


@pytest.mark.slow
def test_a_stage_1_that_saw_the_labels_is_told(trained: Workspace) -> None:
    """It counts the pictures that it was trained on, not those that were held out of it."""
    found = review(trained, top=1)
    checkpoint = trained.history.last().checkpoint
    assert checkpoint is not None
    held = read_held_out(trained.objects.path("checkpoints", checkpoint))
    kept = held_out_labels(trained.snapshot(), trained.path / "runs" / "review")
    asked = kept.answers["image_id"].to_pylist()
    assert kept.facts.learned == sum(not held.has(image_id) for image_id in asked)
    assert 0 < kept.facts.learned < len(asked)
    assert found.notes[0].startswith(f"{kept.facts.learned:,} pictures were not held out of stage 1")


@pytest.mark.slow
def test_what_belongs_together_is_held_out_together(tmp_path: Path, drawn: dict[str, list[bytes]]) -> None:
    """A wrong label is not vouched for by a copy or a near duplicate that has it too, nor by one in the right class."""
    folder = tmp_path / "pictures"
    written(folder, drawn)
    shutil.move(folder / "class 0" / "3.png", folder / "class 1" / "wrong.png")
    shutil.copy(folder / "class 1" / "wrong.png", folder / "class 1" / "copy.png")
    for owner, name in (("class 1", "darker"), ("class 0", "lighter")):
        changed = ImageEnhance.Brightness(Image.open(folder / "class 1" / "wrong.png").convert("RGB"))
        changed.enhance(0.9 if name == "darker" else 0.95).save(folder / owner / f"{name}.png")
    workspace = trained_on(tmp_path / "workspace", folder)
    rows = workspace.snapshot().table("images", ["image_id", "uri"]).to_pylist()
    name_of = {row["image_id"]: Path(row["uri"]).stem for row in rows}
    kept = held_out_labels(workspace.snapshot(), workspace.path / "runs" / "review")
    answers = {name_of[row["image_id"]]: row for row in kept.answers.to_pylist()}
    lot = [answers[name] for name in ("wrong", "copy", "darker", "lighter")]
    assert len({answer["unit"] for answer in lot}) == 1
    assert all(answer["likely"][0] == lot[3]["class_id"] for answer in lot)
    assert min(answer["wrong"] for answer in lot[:3]) > 0.1 > lot[3]["wrong"]


def test_a_single_class_teaches_nothing(small: Workspace, tmp_path: Path) -> None:
    """There is nothing to tell pictures by: the hint says what to do."""
    table = small.snapshot().class_table()
    remove_classes(small, [table.names[i] for i in table.ids][1:])
    put(tmp_path / "one.png", encoded(Image.new("RGB", (8, 8), "green")))
    with pytest.raises(MissingStepError, match="a single class"):
        review_folder(small, [str(tmp_path / "one.png")])


@pytest.mark.slow
def test_a_name_that_a_spreadsheet_would_compute(spoilt: Workspace, tmp_path: Path) -> None:
    """It is written so that it is text, and read back as it is."""
    rename_class(spoilt, "class 4", "=1+1")
    table = tmp_path / "queue.csv"
    write_list(table, review(spoilt), spoilt.snapshot())
    assert "'=1+1" in table.read_text(encoding="utf-8")
    _filled(table, {"class 0/twice.png": "'=1+1"})
    (moved,) = relabel_images(spoilt, table).relabelled
    assert moved.now == "=1+1"


def test_what_is_suggested() -> None:
    """The class of what is nearly the same before the likeliest one; nothing where no label is in doubt."""
    likely = (("owl", 0.6), ("tit", 0.3))
    twin = (Beside("b.png", class_name="owl"), Beside("c.png", class_name="wren"))
    entry = Entry("a.png", "label", class_name="owl", likely=likely)
    assert entry.suggested == "tit"
    assert replace(entry, beside=twin).suggested == "wren"
    assert replace(entry, class_name=None, reason="teaches").suggested == "owl"
    for reason in ("two splits", "copies", "unknown"):
        assert replace(entry, reason=reason, beside=twin).suggested is None


@pytest.mark.slow
def test_groups_stay_apart(tmp_path: Path, drawn: dict[str, list[bytes]]) -> None:
    """Near duplicates of two groups do not join these: else a chain of them leaves nothing to hold out."""
    for owner, pictures in enumerate(drawn.values()):
        folder = tmp_path / "pictures" / f"class {owner}"
        for number, data in enumerate(pictures):
            put(folder / f"{number % 4}-{number}.png", data)
        for group in range(4):
            light = ImageEnhance.Brightness(Image.open(io.BytesIO(pictures[0])).convert("RGB"))
            light.enhance(0.8 + 0.04 * group).save(folder / f"{group}-copy.png")
    workspace = Workspace.create(tmp_path / "workspace", RECIPE)
    ingest_images(workspace, tmp_path / "pictures", "train", group=r"name:^(\d)-")
    with_head(workspace)
    rows = workspace.snapshot().table("images", ["image_id", "group"]).to_pylist()
    group_of = {row["image_id"]: row["group"] for row in rows}
    kept = held_out_labels(workspace.snapshot(), tmp_path / "kept")
    assert any(len({group_of[one] for one in lot}) == 4 for lot in kept.copies)
    assert len(kept.answers) == CLASSES * (PICTURES + 4)
    units = set(kept.answers["unit"].to_pylist())
    assert units == {f"group {name}" for name in group_of.values()}
    assert len(units) == 4
