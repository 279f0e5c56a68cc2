"""Tests of the readers of images: folders, lists, Parquet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pictures import COLOURS, encoded, put
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.names import ClassNames
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord, Skipped


def taken(path: Path, *args: Any, **options: Any) -> list[ImageRecord]:
    """The images a reader takes."""
    return [r for r in read_images(path, *args, **options) if isinstance(r, ImageRecord)]


def left_out(path: Path, *args: Any, **options: Any) -> list[tuple[str, str]]:
    """Where and why of what it leaves out."""
    return [(s.where, s.why) for s in read_images(path, *args, **options) if isinstance(s, Skipped)]


def failure(path: Path, *args: Any, **options: Any) -> str:
    """The error that reading a source ends in."""
    with pytest.raises((InputError, UsageError)) as caught:
        list(read_images(path, *args, **options))
    return str(caught.value)


# Folders


def test_folder_of_class_folders(tmp_path: Path) -> None:
    """The first level names the class, deeper files belong to it, endings may be capital letters."""
    for name in ("owl/b.png", "owl/a.JPG", "owl/deep/er/c.webp", "great_tit/1.tiff"):
        put(tmp_path / name)
    put(tmp_path / ".git" / "x.png")
    found = taken(tmp_path, "train")
    assert found == [
        ImageRecord("great_tit/1.tiff", str(tmp_path / "great_tit/1.tiff"), "great_tit", "train"),
        ImageRecord("owl/a.JPG", str(tmp_path / "owl/a.JPG"), "owl", "train"),
        ImageRecord("owl/b.png", str(tmp_path / "owl/b.png"), "owl", "train"),
        ImageRecord("owl/deep/er/c.webp", str(tmp_path / "owl/deep/er/c.webp"), "owl", "train"),
    ]
    assert not left_out(tmp_path, "train")


def test_what_a_folder_leaves_out(tmp_path: Path) -> None:
    """Strays, other files, empty classes and links that leave the folder, each with its reason."""
    outside = put(tmp_path / "outside" / "x.png")
    root = tmp_path / "data"
    put(root / "owl" / "a.png")
    put(root / "stray.png")
    put(root / "owl" / "notes.txt", b"hm")
    (root / "owl" / "away.png").symlink_to(outside)
    (root / "owl" / "here.png").symlink_to(root / "owl" / "a.png")
    (root / "linked").symlink_to(outside.parent)
    (root / "owl" / "loop").symlink_to(root)
    (root / "owl" / "dead.png").symlink_to(root / "nowhere")
    (root / "owl" / "self.png").symlink_to(root / "owl" / "self.png")
    os.mkfifo(root / "owl" / "pipe.png")
    with open(os.fsencode(root / "owl") + b"/\xff.png", "wb") as file:
        file.write(encoded(COLOURS))
    assert [r.source for r in taken(root, "train")] == ["owl/a.png", "owl/here.png"]
    why = {Path(where).name: why for where, why in left_out(root, "train")}
    assert why.pop("\udcff.png") == "its name is not UTF-8"
    assert why == {
        "away.png": "a link that leaves the folder",
        "dead.png": "no such file",
        "linked": "a link that leaves the folder",
        "loop": "not a file",
        "notes.txt": "not an image by its ending",
        "pipe.png": "not a file",
        "self.png": "no such file",
        "stray.png": "an image outside every class folder",
    }


def test_folders_below_a_class_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two or more: they may be meant as classes."""
    for name in ("birds/owl", "birds/tit", "fish/scans"):
        put(tmp_path / name / "a.png")
    assert {r.class_name for r in taken(tmp_path, "train")} == {"birds", "fish"}
    assert caplog.messages == [
        "folders below a class folder are no classes of their own; all below these is of one class each: birds"
    ]


def test_folders_without_images(tmp_path: Path) -> None:
    """What is missing, of another kind, empty or misunderstood."""
    assert failure(tmp_path / "no", "train") == f"no such file or folder: {tmp_path / 'no'}\nCheck the path."
    other = put(tmp_path / "a.zip")
    assert failure(other, "train").startswith(
        f"{other}: unknown kind of image source '.zip'\nExpected a folder"
    )
    assert failure(tmp_path, "train").startswith(
        f"no image in a class folder of {tmp_path}: looked for .jpg, .jpeg, .jpe, .png, .webp, "
    )
    for split in ("train", "val"):
        put(tmp_path / "s" / split / "owl" / "a.png")
    assert failure(tmp_path / "s", "train") == (
        f"{tmp_path / 's'} holds splits (train, val), not classes\n"
        f"Give one at a time: vlltr ingest images {tmp_path / 's' / 'train'} --split train"
    )


def test_a_split_is_needed_and_named_well(tmp_path: Path) -> None:
    """No split and a strange one are errors of usage."""
    put(tmp_path / "owl" / "a.png")
    assert failure(tmp_path) == f"which split do the images of {tmp_path} belong to?\nSay so: --split train"
    assert failure(tmp_path, "x'; --").startswith('"x\'; --" is no name for a split')


# Lists


def test_lists_of_paths_and_labels(tmp_path: Path) -> None:
    """Names, numbers with and without names, tabs, spaces in paths, and a root elsewhere."""
    for name in ("owl/a.png", "owl/my file.png", "tit/b.png"):
        put(tmp_path / "data" / name)
    listing = tmp_path / "list.txt"
    listing.write_text("\ufeffowl/a.png owl\r\n\nowl/my file.png 7\n./tit/../tit/b.png\tgreat tit\n")
    found = taken(listing, "val", list_root=tmp_path / "data")
    assert [(r.source, r.class_name, r.split) for r in found] == [
        ("owl/a.png", "owl", "val"),
        ("owl/my file.png", "7", "val"),
        ("tit/b.png", "great tit", "val"),
    ]
    assert found[2].uri == str(tmp_path / "data" / "tit" / "b.png")
    listing.write_text("data/owl/a.png 1\n")
    assert [r.class_name for r in taken(listing, "val", label_names=ClassNames.of(["zero", "one"]))] == [
        "one"
    ]


def test_lists_do_not_leave_their_root(tmp_path: Path) -> None:
    """Paths upward and absolute ones are refused with file and line; links that leave are left out."""
    secret = put(tmp_path / "secret.png")
    root = tmp_path / "data"
    put(root / "a.png")
    (root / "link.png").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    listing = root / "list.txt"
    for bad in ("x/../../secret.png", str(secret), f"{root}2/x.png"):
        listing.write_text(f"a.png 0\n{bad} 0\n")
        assert [r.source for r in taken(listing, "train")] == ["a.png"]
        why = f"{bad}: the path leaves the folder {root}; another is named by --root DIR"
        assert left_out(listing, "train") == [(f"{listing}:2", why)]
    listing.write_text(f"a.png 0\nlink.png 0\nup/secret.png 0\nno.png 0\n{root}/a.png 0\n")
    assert [r.source for r in taken(listing, "train")] == ["a.png", "a.png"]
    assert left_out(listing, "train") == [
        (f"{listing}:2", "link.png: a link that leaves the folder"),
        (f"{listing}:3", "up/secret.png: a link that leaves the folder"),
        (f"{listing}:4", "no.png: no such file"),
    ]


def test_bad_lists(tmp_path: Path) -> None:
    """Lines without a label, labels without a name, nothing but missing files, an empty list, no root."""
    listing = tmp_path / "list.txt"
    put(tmp_path / "a.png")
    listing.write_text("a.png 0\na.png\n")
    why = "expected a path and a label, got 'a.png' (a tab between them if labels have spaces)"
    assert left_out(listing, "train") == [(f"{listing}:2", f"a.png: {why}")]
    listing.write_text("a.png 2\n")
    assert failure(listing, "train", label_names=ClassNames.of(["x", "y"])) == (
        f"{listing}:1: the label 2 has no name: there are 2, from 0\n"
        "Give a file that names every class: --names FILE"
    )
    listing.write_text("x/1.png 0\nx/2.png 0\n")
    assert failure(listing, "train") == (
        f"no file that {listing} names can be used, for example {tmp_path}/x/1.png: no such file\n"
        "Name the folder that the paths are relative to: --root DIR"
    )
    (tmp_path / "x").symlink_to(tmp_path.parent)
    listing.write_text("x/1.png 0\n")
    (tmp_path.parent / "1.png").touch()
    assert failure(listing, "train").endswith("\nTo read what links lead to: --follow-links")
    listing.write_text("a.png 0\na.png 1\n")
    assert failure(listing, "train").endswith("\nMend its rows: each needs a path and one class.")
    listing.write_text("\n")
    nothing = f"no file that {listing} names can be used\nIt has no row of the split 'train'."
    assert failure(listing, "train") == nothing
    assert failure(listing, "train", tmp_path / "no").startswith(f"no such folder: {tmp_path / 'no'}\n")


# Parquet


def table(path: Path, **columns: Any) -> Path:
    """Write a Parquet file."""
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_rows(tmp_path: Path) -> None:
    """Bytes, labels, splits, sources and groups; one split of several; cheap without data."""
    data = encoded(COLOURS)
    path = table(
        tmp_path / "p.parquet",
        image=[data] * 3,
        label=["owl", None, "tit"],
        split=["train", "train", "test"],
        source=["a", "b", "a"],
        group=["camera 1", None, ""],
    )
    assert taken(path) == [
        ImageRecord("a", f"{path}#0", "owl", "train", data, "camera 1"),
        ImageRecord("b", f"{path}#1", None, "train", data),
        ImageRecord("a", f"{path}#2", "tit", "test", data),
    ]
    assert taken(path, "test") == taken(path)[2:]
    assert [r.data for r in taken(path, with_data=False)] == [None] * 3
    exported = table(tmp_path / "exported.parquet", image=[data], **{"class": ["owl"]}, split=["train"])
    assert [r.class_name for r in taken(exported)] == ["owl"]
    assert failure(path, "val") == f"{path} has no row of split 'val'\nIts splits: test, train."


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    """Images as structs, numeric labels with names in the metadata, -1 for none, a row without bytes."""
    names = {"info": {"features": {"label": {"names": ["owl", "great tit"], "_type": "ClassLabel"}}}}
    rows = pa.table(
        {
            "image": [
                {"bytes": b"1", "path": "1.png"},
                {"bytes": b"2", "path": None},
                {"bytes": None, "path": "3.png"},
            ],
            "label": [1, -1, 0],
        }
    ).replace_schema_metadata({"huggingface": json.dumps(names)})
    path = tmp_path / "hf.parquet"
    pq.write_table(rows, path)
    assert [(r.class_name, r.data) for r in taken(path, "train")] == [("great tit", b"1"), (None, b"2")]
    assert left_out(path, "train") == [(f"{path}#2", "the row has no image bytes")]
    assert [r.class_name for r in taken(path, "train", label_names=ClassNames.of(["x", "y"]))] == ["y", None]


def test_bad_parquet(tmp_path: Path) -> None:
    """Missing columns, wrong types, no split, and files that are no Parquet."""
    path = tmp_path / "p.parquet"
    table(path, img=[b"x"], label=["a"])
    assert failure(path, "train").startswith(f"{path}: no column 'image'; it has 'img', 'label'\n")
    table(path, image=[b"x"], labels=["a"])
    assert failure(path, "train").startswith(f"{path}: no column 'label'; it has 'image', 'labels'\n")
    for columns, message in (
        (
            {"image": [1], "label": ["a"]},
            "'image' holds int64, expected binary, or a struct with bytes",
        ),
        ({"image": [b"x"], "label": [0.5]}, "'label' holds double, expected text or whole numbers"),
        ({"image": [b"x"], "label": ["a"], "split": [3]}, "'split' holds int64, expected text"),
    ):
        assert failure(table(path, **columns), "train").startswith(f"{path}: the column {message}\n")
    table(path, image=[b"x"], label=["a"], split=pa.array([None], pa.string()))
    assert failure(path, "x" * 65).startswith(f"{'x' * 65!r} is no name for a split")
    assert left_out(path) == [(f"{path}#0", "the row names no split")]
    path.write_bytes(b"PAR1 no")
    assert failure(path, "train").startswith(f"{path}: not a readable Parquet file: ")


@settings(max_examples=100, deadline=None)
@given(entry=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_no_list_entry_gets_outside(entry: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a list names, a record's file lies below the root."""
    root = tmp_path_factory.getbasetemp() / "inside"
    put(root / "a.png")
    listing = root / "list.txt"
    listing.write_text(f"{entry}\tx\na.png\tx\n", encoding="utf-8")
    try:
        found = taken(listing, "train")
    except (InputError, UsageError):
        return
    assert all(Path(os.path.realpath(r.uri)).is_relative_to(root) for r in found)
    assert Path(found[-1].uri) == root / "a.png"
