"""Tests of `pipelines.ingest`: what comes into a workspace, once, and in one commit a command."""

from __future__ import annotations

import hashlib
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import pictures
from tests.support.pictures import encoded
from vlltr_index.cli.render import report_lines
from vlltr_index.data.decoding import open_image
from vlltr_index.errors import InputError
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.schemas.config import EncoderConfig, Recipe
from vlltr_index.store.ingestion import image_id
from vlltr_index.store.workspace import Workspace


def png(number: int) -> bytes:
    """A small PNG of its own."""
    return encoded(Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 4, 3), np.uint8)))


def put(path: Path, number: int) -> Path:
    """Write an image file, with its folders."""
    return pictures.put(path, png(number))


def texts(path: Path, values: dict[str, list[str]]) -> Path:
    """Write sentences as JSON."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace whose recipe has two prompts."""
    recipe = Recipe(name="test", prompts=("a photo of a {}.", "my {}."))
    return Workspace.create(tmp_path / "ws", recipe)


def rows(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """A committed table as dictionaries, by its first column."""
    table = workspace.snapshot().table(name)
    return table.sort_by(table.schema.names[0]).to_pylist()


def names(workspace: Workspace) -> dict[int, str]:
    """Class names by number."""
    return workspace.snapshot().class_table().names


def test_images_of_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    """Files stay where they are; classes are made; the report says what is next; again changes nothing."""
    for name, number in (("owl/a.png", 1), ("owl/b.png", 2), ("tit/a.png", 3)):
        put(tmp_path / "data" / name, number)
    put(tmp_path / "data/tit/broken.png", 4).write_bytes(png(4)[:80])
    seen: list[tuple[str, int, int | None]] = []
    report = ingest_images(workspace, tmp_path / "data", "train", progress=lambda *args: seen.append(args))
    assert (report.added, report.updated, report.unchanged, report.classes_added) == (4, 0, 0, 2)
    assert report.splits == {"train": 4}
    assert report_lines(report) == [
        f"{tmp_path / 'data'}: images 4 added (train 4).",
        "Made from the class names: 4 prompts.",
        "Classes: 2, 2 of them new.",
        "Kept aside with the reason: 1 image that cannot be read.",
        f"  kept aside: {tmp_path}/data/tit/broken.png: {report.notes[0].rpartition('broken.png: ')[2]}",
        "Next: vlltr ingest text PATH, or without text: vlltr embed   (2 classes have no text but prompts)",
    ]
    assert seen[-1] == ("ingest images", 4, 4)
    assert names(workspace) == {0: "owl", 1: "tit"}
    assert {r["origin"] for r in rows(workspace, "classes")} == {"trained"}
    found = {r["uri"]: r for r in rows(workspace, "images")}
    assert set(found) == {str(p) for p in (tmp_path / "data").rglob("*.png")}
    one = found[str(tmp_path / "data/owl/a.png")]
    assert one["image_id"] == hashlib.sha256(b"train\0owl/a.png").hexdigest()[:32]
    assert one["content_hash"] == hashlib.sha256(png(1)).hexdigest()
    assert [one[key] for key in ("class_id", "data", "width", "height", "problem")] == [0, None, 4, 6, None]
    broken = found[str(tmp_path / "data/tit/broken.png")]
    assert broken["problem"]
    assert broken["class_id"] == 1
    again = ingest_images(workspace, tmp_path / "data", "train")
    assert (again.added, again.updated, again.unchanged, again.classes_added) == (0, 0, 4, 0)
    assert len(workspace.history.list()) == 1
    assert workspace.history.list()[0].command == f"ingest images {tmp_path / 'data'} --split train"


def test_changed_mended_and_moved_files(workspace: Workspace, tmp_path: Path) -> None:
    """A changed file updates its row, a mended one loses its problem, a moved folder its old address."""
    data = tmp_path / "data"
    put(data / "owl/a.png", 1)
    put(data / "owl/b.png", 2).write_bytes(b"oops")
    ingest_images(workspace, data, "train")
    put(data / "owl/a.png", 3)
    put(data / "owl/b.png", 2)
    report = ingest_images(workspace, data, "train")
    assert (report.added, report.updated, report.unchanged, report.quarantined) == (0, 2, 0, 0)
    assert [r["problem"] for r in rows(workspace, "images")] == [None, None]
    data.rename(tmp_path / "moved")
    report = ingest_images(workspace, tmp_path / "moved", "train")
    assert (report.added, report.updated) == (0, 2)
    assert {r["uri"] for r in rows(workspace, "images")} == {
        str(p) for p in (tmp_path / "moved").rglob("*.png")
    }


def test_the_same_name_in_two_folders_is_two_images(workspace: Workspace, tmp_path: Path) -> None:
    """A second folder does not overwrite the first one's images; a copy of an image is the same image."""
    put(tmp_path / "one/owl/1.png", 1)
    put(tmp_path / "one/owl/2.png", 2)
    put(tmp_path / "two/owl/1.png", 3)
    shutil.copy(tmp_path / "one/owl/2.png", tmp_path / "two/owl/2.png")
    ingest_images(workspace, tmp_path / "one", "train")
    report = ingest_images(workspace, tmp_path / "two", "train")
    assert (report.added, report.updated, report.unchanged) == (1, 0, 1)
    assert {r["uri"].removeprefix(str(tmp_path)) for r in rows(workspace, "images")} == {
        "/one/owl/1.png",
        "/one/owl/2.png",
        "/two/owl/1.png",
    }
    for folder in ("one", "two"):
        assert ingest_images(workspace, tmp_path / folder, "train").unchanged == 2
    assert len(workspace.history.list()) == 2


def photo(path: Path, number: int, orientation: int) -> Path:
    """A smooth JPEG of 90 x 60 pixels, to be turned as its EXIF says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(BytesIO(png(number))).resize((90, 60), Image.Resampling.BICUBIC).save(path, exif=exif)
    return path


def test_kept_images(workspace: Workspace, tmp_path: Path) -> None:
    """Larger images are reduced and upright, smaller ones keep their bytes; some cannot be read, or are too thin."""
    large, small = photo(tmp_path / "data/owl/a.jpg", 1, 6), put(tmp_path / "data/owl/b.png", 2)
    put(tmp_path / "data/owl/c.png", 3).write_bytes(b"oops")
    Image.new("L", (33, 70_000)).save(tmp_path / "data/owl/d.png")
    report = ingest_images(workspace, tmp_path / "data", "train", store=32)
    assert (report.added, report.quarantined) == (4, 2)
    by_uri = {Path(r["uri"]).name: r for r in rows(workspace, "images")}
    row = by_uri["a.jpg"]
    assert (row["width"], row["height"]) == (60, 90)
    assert row["content_hash"] == hashlib.sha256(large.read_bytes()).hexdigest()
    with Image.open(BytesIO(row["data"])) as kept:
        assert (kept.size, kept.format, dict(kept.getexif())) == ((32, 48), "JPEG", {})
        wanted = open_image(large).resize((32, 48), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(kept, int) - np.asarray(wanted, int)).mean() < 2
    assert (by_uri["b.png"]["data"], by_uri["c.png"]["data"]) == (small.read_bytes(), None)
    assert by_uri["d.png"]["problem"] == "33 x 70,000 pixels: one side is more than 1,000 times the other"
    again = ingest_images(workspace, tmp_path / "data", "train", store=32)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 4)


def test_an_image_that_cannot_be_kept(workspace: Workspace, tmp_path: Path) -> None:
    """One that stays too long for a JPEG when it is reduced."""
    (tmp_path / "data/owl").mkdir(parents=True)
    Image.new("L", (71, 70_000)).save(tmp_path / "data/owl/a.png")
    photo(tmp_path / "data/owl/b.jpg", 1, 1)
    assert ingest_images(workspace, tmp_path / "data", "train", store=70).quarantined == 1
    problems = [row["problem"] for row in rows(workspace, "images") if row["uri"].endswith("a.png")]
    assert problems[0].startswith("it cannot be reduced: ")


def test_another_side_is_another_key(workspace: Workspace, tmp_path: Path) -> None:
    """The row of the other size goes, so that no vector of it is taken for the new one's."""
    photo(tmp_path / "one/owl/a.jpg", 1, 1)
    photo(tmp_path / "two/owl/a.jpg", 2, 1)
    keys: set[str] = set()
    for store in (None, 48, 32, None):
        for folder in ("one", "two"):
            ingest_images(workspace, tmp_path / folder, "train", store=store)
        found = rows(workspace, "images")
        assert sorted(Path(r["uri"]).parts[-3] for r in found) == ["one", "two"]
        sizes = {Image.open(BytesIO(r["data"])).size[1] if r["data"] else None for r in found}
        assert sizes == {store}
        keys |= {r["image_id"] for r in found}
    assert len(keys) == 6
    last = ingest_images(workspace, tmp_path / "one", "train", store=48)
    assert (last.added, last.updated, last.unchanged) == (0, 1, 0)


def parquet(path: Path, items: list[tuple[int, str, str]]) -> Path:
    """Write (number, label, split) rows, the number both image and source."""
    numbers, labels, splits = zip(*items, strict=True)
    columns = {
        "image": [png(n) for n in numbers],
        "label": list(labels),
        "split": list(splits),
        "source": [str(n) for n in numbers],
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_rows_are_copied_in(workspace: Workspace, tmp_path: Path) -> None:
    """Bytes go into the workspace; a test row may come before its class's first training row."""
    path = parquet(tmp_path / "p.parquet", [(1, "owl", "test"), (2, "owl", "train"), (3, "tit", "train")])
    report = ingest_images(workspace, path)
    assert (report.added, report.classes_added, report.unknown_class) == (3, 2, 0)
    assert report.splits == {"train": 2, "test": 1}
    by_uri = {r["uri"]: r for r in rows(workspace, "images")}
    assert [by_uri[f"{path}#{i}"]["data"] for i in range(3)] == [png(1), png(2), png(3)]
    assert by_uri[f"{path}#0"]["class_id"] == by_uri[f"{path}#1"]["class_id"] == 0
    path.rename(tmp_path / "q.parquet")
    again = ingest_images(workspace, tmp_path / "q.parquet", "train")
    assert (again.added, again.updated, again.unchanged) == (0, 0, 2)
    parquet(path, [(9, "tit", "train"), (3, "owl", "train")])
    again = ingest_images(workspace, path)
    assert (again.added, again.updated, again.unchanged) == (1, 1, 0)
    assert {r["class_id"] for r in rows(workspace, "images") if r["image_id"] == image_id("train", "3")} == {
        0
    }


def test_only_train_makes_classes(workspace: Workspace, tmp_path: Path) -> None:
    """Unknown classes of other splits are left out and counted; nothing but such is an error."""
    path = parquet(tmp_path / "p.parquet", [(1, "owl", "test"), (2, "tit", "train"), (3, "tit", "test")])
    with pytest.raises(InputError) as caught:
        ingest_images(workspace, path, "test")
    assert str(caught.value) == (
        "none of the 2 images is of a class that the workspace knows; theirs are, for example, 'owl' (1), 'tit' (1)\n"
        "Bring in the training images or the texts first, or make the classes now: --create-classes"
    )
    assert workspace.history.last().id == 0
    report = ingest_images(workspace, path)
    assert (report.added, report.unknown_class) == (2, 1)
    assert "Left out, as the workspace has no class of that name: 1 image." in report_lines(report)
    assert report.notes == ["no class of the name 'owl' (1)"]
    assert names(workspace) == {0: "tit"}
    assert ingest_images(workspace, path, create_classes=True).added == 1
    assert names(workspace) == {0: "tit", 1: "owl"}


def test_the_same_bytes_in_two_splits_are_reported(workspace: Workspace, tmp_path: Path) -> None:
    """Whichever split comes in second."""
    files = {"train/owl/1.png": 1, "train/owl/2.png": 2, "val/owl/a.png": 1, "val/owl/b.png": 9}
    for path, number in {**files, "test/owl/c.png": 2}.items():
        put(tmp_path / path, number)
    assert ingest_images(workspace, tmp_path / "train", "train").duplicates_across_splits == 0
    for split, other in (("val", "train, val"), ("test", "test, train")):
        report = ingest_images(workspace, tmp_path / split, split)
        assert report.duplicates_across_splits == 1
        assert f"Warning: in more than one split, byte for byte: 1 image ({other})." in report_lines(report)


def test_sources_of_which_nothing_can_be_taken(workspace: Workspace, tmp_path: Path) -> None:
    """Bad sources leave the workspace without a commit."""
    columns = {"image": pa.array([None], pa.binary()), "label": ["a"]}
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=r"no image was taken: left out: .*#0: the row has no image bytes"):
        ingest_images(workspace, path, "train")
    for name in ("a.png", "b.jpg"):
        (tmp_path / "damaged/owl").mkdir(parents=True, exist_ok=True)
        (tmp_path / "damaged/owl" / name).write_bytes(b"no picture")
    for sync in (False, True):
        with pytest.raises(InputError, match=r"no image was taken: /.*/owl/a\.png: not a JPEG, PNG"):
            ingest_images(workspace, tmp_path / "damaged", "train", sync=sync)
    path = texts(tmp_path / "t.json", {"owl": []})
    with pytest.raises(InputError, match=r"holds no sentence \(left out: .*: class 'owl': the text is empty"):
        ingest_text(workspace, path)
    assert workspace.history.last().id == 0
    assert not workspace.snapshot().class_table().names


def test_an_error_late_in_a_source_commits_nothing(workspace: Workspace, tmp_path: Path) -> None:
    """Rows written before a bad line are taken back; what comes twice in a source is left out."""
    put(tmp_path / "1.png", 1)
    (tmp_path / "good.txt").write_text("1.png owl\n1.png owl\n")
    report = ingest_images(workspace, tmp_path / "good.txt", "train")
    assert report.notes == [f"left out: {tmp_path / '1.png'}: named before in this source"]
    put(tmp_path / "2.png", 2)
    (tmp_path / "list.txt").write_text("2.png 0\n1.png 1\n")
    (tmp_path / "names.txt").write_text("tit\n")
    with pytest.raises(InputError, match=r"list.txt:2: the label 1 has no name"):
        ingest_images(workspace, tmp_path / "list.txt", "train", label_names=tmp_path / "names.txt")
    assert names(workspace) == {0: "owl"}
    assert len(rows(workspace, "images")) == 1


def test_sentences_and_prompts(workspace: Workspace, tmp_path: Path) -> None:
    """Sentences, the recipe's prompts for every new class, each once; again changes nothing."""
    put(tmp_path / "data/owl/1.png", 1)
    ingest_images(workspace, tmp_path / "data", "train")
    path = texts(
        tmp_path / "t.json",
        {"tit": ["It sings.", "it  SINGS.", "My tit."], "wren": ["It sings."], "none": []},
    )
    report = ingest_text(workspace, path)
    assert report.prompts == 3
    assert report_lines(report) == [
        f"{path}: sentences 6 added, 1 repeated or there before.",
        "Made from the class names: 3 prompts.",
        "Classes: 3, 2 of them new.",
        "Left out: 1 entry.",
        f"  left out: {path}: class 'none': the text is empty",
        "  1 of 3 classes has no text but prompts: 'owl'",
    ]
    found = {(r["class_id"], r["text"], r["source"]) for r in rows(workspace, "sentences")}
    assert found == {
        (0, "a photo of an owl.", "prompt"),
        (0, "my owl.", "prompt"),
        (1, "It sings.", "t.json"),
        (1, "My tit.", "t.json"),
        (1, "a photo of a tit.", "prompt"),
        (2, "It sings.", "t.json"),
        (2, "a photo of a wren.", "prompt"),
        (2, "my wren.", "prompt"),
    }
    assert ingest_text(workspace, path).added == 0
    assert len(workspace.history.list()) == 2


@pytest.mark.parametrize(
    ("prompts", "made"),
    [("clip", {"owl", "great grey owl"}), (("my {}.",), {"my owl.", "my great grey owl."}), ((), set())],
)
def test_without_a_text_tower_the_name_alone_is_the_prompt(
    tmp_path: Path, prompts: Literal["clip"] | tuple[str, ...], made: set[str]
) -> None:
    """Not CLIP's 80, which have the same words for every class; templates of one's own are used."""
    encoder = EncoderConfig(model="timm", pretrained="tower")
    space = Workspace.create(tmp_path / "alone", Recipe(name="x", encoder=encoder, prompts=prompts))
    put(tmp_path / "data/owl/1.png", 1)
    put(tmp_path / "data/great_grey_owl/1.png", 2)
    report = ingest_images(space, tmp_path / "data", "train")
    assert report.prompts == len(made)
    assert {(r["source"], r["text"]) for r in rows(space, "sentences")} == {("prompt", text) for text in made}
    path = texts(tmp_path / "t.json", {"owl": ["It hoots."], "wren": ["It sings."]})
    assert ingest_text(space, path).added == 2 + (len(made) // 2)


def test_images_bring_prompts_to_classes_that_have_no_sentence(workspace: Workspace, tmp_path: Path) -> None:
    """New ones, and those of the source that were mute; not to those that have text, nor where there are none."""
    path = texts(tmp_path / "t.json", {"owl": ["It hoots."]})
    ingest_text(workspace, path, prompts=False)
    put(tmp_path / "data/owl/1.png", 1)
    put(tmp_path / "data/great_grey_owl/1.png", 2)
    report = ingest_images(workspace, tmp_path / "data", "train")
    assert (report.prompts, report.next_step) == (
        2,
        "vlltr ingest text PATH, or without text: vlltr embed   (1 class has no text but prompts)",
    )
    prompted = {r["text"] for r in rows(workspace, "sentences") if r["source"] == "prompt"}
    assert prompted == {"a photo of a great grey owl.", "my great grey owl."}
    assert ingest_images(workspace, tmp_path / "data", "train").prompts == 0
    silent = Workspace.create(tmp_path / "silent", Recipe(name="x", prompts=()))
    report = ingest_images(silent, tmp_path / "data", "train")
    assert (report.prompts, report.next_step) == (
        0,
        "vlltr ingest text PATH   (2 classes have no sentence yet)",
    )


def test_a_misspelt_text_is_noticed_whichever_comes_first(workspace: Workspace, tmp_path: Path) -> None:
    """Not a name that is like one with texts of its own, nor one that is like none; with a head it can be merged."""
    put(tmp_path / "data/kestrel/1.png", 1)
    put(tmp_path / "data/owls/1.png", 2)
    told = {"kestral": ["It hovers."], "owl": ["It hoots."], "owls": ["They hoot."], "wren": ["It is small."]}
    path = texts(tmp_path / "t.json", told)
    warning = (
        "Warning: class 'kestral' has texts and no picture, 'kestrel' pictures and no text. If they are one: "
    )
    expected = (
        f"{warning}call it 'kestrel' in the texts, or 'kestral' where the pictures are, and bring them in again with"
        " --sync"
    )
    ingest_text(workspace, path)
    report = ingest_images(workspace, tmp_path / "data", "train")
    assert [note for note in report.notes if "Warning" in note] == [expected]
    assert [note for note in ingest_text(workspace, path).notes if "Warning" in note] == [expected]
    with workspace.transaction("test") as tx:
        tx.set(head="h")
    again = ingest_images(workspace, tmp_path / "data", "train")
    assert (
        f"{warning}vlltr -w {workspace.address} classes merge kestrel kestral (the first name stays)"
        in again.notes
    )
    texts(path, {"kestrel": told.pop("kestral"), **told})
    assert not any("Warning" in note for note in ingest_text(workspace, path, sync=True).notes)


def test_classes_with_pictures_that_are_named_alike_are_told(workspace: Workspace, tmp_path: Path) -> None:
    """Where one has no text and no other number in its name; what has no text is told once, as it comes."""
    for number, name in enumerate(
        ("Envelope", "Enveloppe", "Owl", "Owls", "Shape number 1", "Shape number 2")
    ):
        put(tmp_path / f"data/{name}/1.png", number)
    told = {name: ["It is drawn."] for name in ("Envelope", "Owl", "Shape number 1")}
    ingest_text(workspace, texts(tmp_path / "t.json", told))
    notes = ingest_images(workspace, tmp_path / "data", "train").notes
    assert notes == [
        "Warning: class 'Envelope' has 1 picture, 'Enveloppe' 1 picture and no text. If they are one: put them into one"
        " folder, called 'Envelope', or 'Enveloppe' in the texts, too",
        "3 of 6 classes have no text but prompts: 'Enveloppe', 'Owls', 'Shape number 2'",
    ]
    with workspace.transaction("test") as tx:
        tx.set(head="h")
    notes = ingest_images(workspace, tmp_path / "data", "train").notes
    assert [note.rpartition("If they are one: ")[2] for note in notes] == [
        f"vlltr -w {workspace.address} classes merge Envelope Enveloppe (the first name stays)"
    ]


def test_a_copy_in_another_class_is_named_first(workspace: Workspace, tmp_path: Path) -> None:
    """However many copies one class has."""
    for place in ("owl/1", "owl/2", "owl/3", "tit/1"):
        put(tmp_path / f"data/{place}.png", 1)
    notes = ingest_images(workspace, tmp_path / "data", "train").notes
    assert any("owl/1.png (train, 'owl'), tit/1.png (train, 'tit'), owl/2.png" in note for note in notes)


def test_names_meet_without_regard_to_case_unless_it_decides(workspace: Workspace, tmp_path: Path) -> None:
    """`Owl` finds `owl`; where a source has both spellings, they are two classes, which is told as they are made."""
    ingest_text(workspace, texts(tmp_path / "t.json", {"owl": ["It hoots."]}), prompts=False)
    put(tmp_path / "one/Owl/1.png", 1)
    assert ingest_images(workspace, tmp_path / "one", "train").classes_added == 0
    put(tmp_path / "two/owl/1.png", 2)
    put(tmp_path / "two/OWL/1.png", 3)
    report = ingest_images(workspace, tmp_path / "two", "train")
    assert report.classes_added == 1
    assert names(workspace) == {0: "owl", 1: "OWL"}
    told = "is a class of its own, though its name is that of 'owl' but for case. If they are one: "
    mend = "call it 'owl' in the source, too, and bring it in again with --sync"
    assert f"'OWL' {told}{mend}" in report.notes
    again = ingest_images(workspace, tmp_path / "two", "train")
    assert not any("of its own" in note for note in again.notes)
    with workspace.transaction("test") as tx:
        tx.set(head="h")
    report = ingest_text(workspace, texts(tmp_path / "t.json", {"tit": ["It sings."], "Tit": ["It flies."]}))
    merging = f"vlltr -w {workspace.address} classes merge tit Tit (the first name stays)"
    assert f"'Tit' {told.replace('owl', 'tit')}{merging}" in report.notes
