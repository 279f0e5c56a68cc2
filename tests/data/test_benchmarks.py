"""The published benchmarks' layouts, from the command line into a workspace, and what may be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import benchmark_trees
from tests.support.benchmark_trees import IMAGENET, PLACES, SPECIES, WORDNET
from tests.support.commands import inside as run
from tests.support.commands import refusal
from vlltr_index.data.image_readers import read_images
from vlltr_index.errors import InputError
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.records import Skipped
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """An empty workspace whose recipe has one prompt."""
    return Workspace.create(tmp_path / "ws", Recipe(name="test", prompts=("a photo of a {}.",)))


def images(space: Workspace) -> dict[str, list[tuple[str, str]]]:
    """(class name, file name) of the images by split, sorted."""
    snapshot = space.snapshot()
    names = snapshot.class_table().names
    found: dict[str, list[tuple[str, str]]] = {}
    for row in snapshot.table("images").to_pylist():
        assert row["problem"] is None
        found.setdefault(row["split"], []).append((names[row["class_id"]], Path(row["uri"]).name))
    return {split: sorted(rows) for split, rows in found.items()}


def sentences(space: Workspace, name: str, source: str | None = None) -> list[dict[str, Any]]:
    """The sentences of a class."""
    snapshot = space.snapshot()
    class_id = snapshot.class_table().lookup(name)
    rows = snapshot.table("sentences", where=f"class_id = {class_id}").to_pylist()
    return [row for row in rows if source is None or row["source"] == source]


def test_imagenet_lt(space: Workspace, tmp_path: Path) -> None:
    """Three lists over train/ and val/, names from the release's labels.txt; the two cranes stay two classes."""
    data = benchmark_trees.imagenet_lt(tmp_path / "imagenet")
    for split in ("train", "val", "test"):
        run(space, "ingest", "images", data / f"ImageNet_LT_{split}.txt", "--split", split,
            "--names", data / "labels.txt")  # fmt: skip
    found = images(space)
    assert [name for name, _ in found["test"]] == sorted(IMAGENET)
    assert ("crane (n02012849)", "ILSVRC2012_val_00000002.JPEG") in found["test"]
    assert {split: len(rows) for split, rows in found.items()} == {"train": 10, "val": 4, "test": 4}
    table = space.snapshot().class_table()
    assert [table.names[table.lookup(key)] for key in WORDNET] == list(IMAGENET)
    run(space, "ingest", "text", data)
    assert len(space.snapshot().class_table()) == 4
    (prompt,) = sentences(space, "n02012849", "prompt")
    assert prompt["text"] == "a photo of a crane."


def test_imagenet_lt_lists_elsewhere_and_class_folders(space: Workspace, tmp_path: Path) -> None:
    """`--root`, `n01440764 tench` lines, and val/ as class folders named by WordNet id: all meet the same classes."""
    data = benchmark_trees.imagenet_lt(tmp_path / "imagenet")
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train", "val"):
        (data / f"ImageNet_LT_{name}.txt").rename(lists / f"{name}.txt")
    names = lists / "names.txt"
    spoken = ("tench, Tinca tinca", "goldfish", "crane, wader", "crane, lifting machine")
    names.write_text("".join(f"{key} {s}\n" for key, s in zip(WORDNET, spoken, strict=True)))
    run(space, "ingest", "images", lists / "train.txt", "--split", "train", "--root", data, "--names", names)
    run(space, "ingest", "images", data / "val", "--split", "test")
    assert [name for name, _ in images(space)["test"]] == sorted(IMAGENET)
    assert space.snapshot().class_table().lookup("Tinca tinca") == 0


def test_places_lt(space: Workspace, tmp_path: Path) -> None:
    """Names with `_` and `/` become spoken names; folders' and lists' own spellings are aliases."""
    data = benchmark_trees.places_lt(tmp_path / "places")
    run(space, "ingest", "text", data)
    for split in ("train", "val", "test"):
        run(space, "ingest", "images", data / f"Places_LT_{split}.txt", "--split", split,
            "--root", data, "--names", data / "labels.txt")  # fmt: skip
    assert [name for name, _ in images(space)["test"]] == list(PLACES)
    table = space.snapshot().class_table()
    for other in ("apartment_building/outdoor", "apartment_building-outdoor"):
        assert table.names[table.lookup(other)] == "apartment building outdoor"
    assert [s["text"] for s in sentences(space, "art studio", "prompt")] == ["a photo of an art studio."]


@pytest.mark.parametrize("kind", ["json", "list"])
def test_inat2018(space: Workspace, tmp_path: Path, kind: str) -> None:
    """JSON and list lines give the same images; species by scientific name."""
    data = benchmark_trees.inat2018(tmp_path / "iNat")
    run(space, "ingest", "text", data)
    for split in ("train", "val"):
        source = data / (f"{split}2018.json" if kind == "json" else f"iNaturalist18_{split}.txt")
        run(space, "ingest", "images", source, "--split", split, "--names", data / "categories.json")
    found = images(space)
    assert [name for name, _ in found["val"]] == list(SPECIES)
    assert found["train"][0] == ("Acer rubrum", "00ab.jpg")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 6, "val": 3}


def test_the_releases_texts(space: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Summary and sections are split well; irrelevant sections and what lies below them are dropped; GBK is read."""
    data = benchmark_trees.imagenet_lt(tmp_path / "imagenet")
    caplog.set_level("INFO", "vlltr_index")
    run(space, "ingest", "text", data, "--no-prompts")
    found = sentences(space, "tench")
    assert {(row["text"], row["source_ref"]) for row in found} == {
        ("The tench is the first thing here.", "desc_0.txt"),
        ("Mr. Smith saw a tench in the U.S.", "desc_0.txt"),
        ("It was large.", "desc_0.txt"),
        ("The tench has a colour.", "desc_0.txt#Description"),
        ("It is as long as an arm.", "desc_0.txt#Size"),
        ("It lives outdoors.", "desc_0.txt#Habitat"),
    }
    assert not any("book" in row["text"] or "List of" in row["text"] for row in found)
    assert {(row["source"], row["licence"]) for row in found} == {("wikipedia", "CC BY-SA (Wikipedia)")}
    assert any("鱼" in row["text"] for row in sentences(space, "goldfish"))
    assert f"{data / 'wiki'}: 1 files are not UTF-8 and were read as GBK" in caplog.messages


def test_texts_whose_names_lie_elsewhere(
    space: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wiki folder alone takes the names beside it, or those that are given; without any it says so."""
    data = benchmark_trees.inat2018(tmp_path / "iNat")
    run(space, "ingest", "text", data / "wiki")
    assert sorted(space.snapshot().class_table().names.values()) == list(SPECIES)
    moved = (data / "categories.json").rename(tmp_path / "names.json")
    capsys.readouterr()
    run(space, "ingest", "text", data, code=1)
    assert capsys.readouterr().err == (
        f"Error: {data} holds texts by class number, and no labels.txt or categories.json that names the classes\n"
        "Name the file: vlltr ingest text PATH --names FILE\n"
    )
    run(space, "ingest", "text", data, "--names", moved)
    assert "sentences 0 added" in capsys.readouterr().out
    path = tmp_path / "t.json"
    path.write_text('{"owl": ["It hoots."]}')
    run(space, "ingest", "text", path, "--names", moved, code=1)
    assert capsys.readouterr().err == (
        f"Error: {path} names its classes itself: --names is for a folder of desc_<class number>.txt\n"
        f"Leave it out: vlltr ingest text {path}\n"
    )


def test_labels_out_of_range(space: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a text corpus and a JSON file; and text of another encoding than the release's."""
    data = benchmark_trees.places_lt(tmp_path / "places")
    args: tuple[object, ...] = ("ingest", "images", data / "Places_LT_train.txt", "--split", "train")
    gone = tmp_path / "no"
    assert f"no such file or folder: {gone}" in refusal(space, capsys, *args, "--names", gone)
    (data / "wiki" / "desc_2.txt").write_bytes(b"Caf\xe9\xff\xff bar.")
    assert "desc_2.txt: neither UTF-8 nor GBK text\nConvert it first" in refusal(
        space, capsys, "ingest", "text", data
    )
    (data / "wiki" / "desc_3.txt").write_text("Something.")
    assert refusal(space, capsys, "ingest", "text", data).startswith(
        f"Error: {data / 'wiki' / 'desc_3.txt'}: the label 3 has no name: there are 3, from 0\n"
    )
    nature = benchmark_trees.inat2018(tmp_path / "iNat")
    (nature / "categories.json").write_text(json.dumps([{"id": 0, "name": "Acer rubrum"}]))
    args = ("ingest", "images", nature / "train2018.json", "--split", "train")
    assert refusal(space, capsys, *args, "--names", nature / "categories.json").startswith(
        f"Error: {nature / 'train2018.json'}: image 103: the label 1 has no name: there are 1, from 0\n"
    )


def test_classes_without_text_or_images(
    space: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is said, with names; the rest comes in."""
    data = benchmark_trees.imagenet_lt(tmp_path / "imagenet")
    path = data / "ImageNet_LT_train.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith(" 1\n")))
    run(space, "ingest", "images", path, "--split", "train", "--names", data / "labels.txt")
    assert "  1 of the 4 named classes has no image here: 'goldfish'\n" in capsys.readouterr().out
    (data / "wiki" / "desc_0.txt").unlink()
    (data / "wiki" / "desc_3.txt").write_text("== References ==\nA book.\n")
    run(space, "ingest", "text", data)
    said = capsys.readouterr().out
    assert (
        f"  left out: {data / 'wiki' / 'desc_0.txt'}: no such file: the class 'tench' has no text here\n"
        in said
    )
    assert f"  left out: {data / 'wiki' / 'desc_3.txt'}: the text is empty\n" in said
    assert "  2 of 4 classes have no text but prompts: 'tench', 'crane (n03126707)'\n" in said


IMAGE = {"id": 1, "file_name": "a"}
INAT: list[tuple[Any, str]] = [
    ({"images": [IMAGE]}, "{path}: 'annotations': Field required"),
    ({"images": [{"id": 1}], "annotations": []}, "{path}: 'images': 0: 'file_name': Field required"),
    ({"images": [IMAGE, IMAGE], "annotations": []}, "{path}: two images have one id"),
    (
        {"images": [IMAGE], "annotations": [{"image_id": 1, "category_id": True}]},
        "{path}: 'annotations': 0: 'category_id': Input should be a valid integer",
    ),
    (
        {"images": [IMAGE], "annotations": [{"image_id": 2, "category_id": 0}]},
        "{path}: annotation 0 points to image 2, which is not among the images",
    ),
]


@pytest.mark.parametrize(("value", "message"), INAT)
def test_malformed_json(tmp_path: Path, value: Any, message: str) -> None:
    """Each of the ways in which a JSON file can be wrong is named, with a hint."""
    path = tmp_path / "train2018.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        list(read_images(path, "train"))
    assert caught.value.message == message.format(path=path)
    assert caught.value.hint


def test_json_that_is_cut_off(space: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A download that broke off is recognised as one, wherever it broke."""
    data = benchmark_trees.inat2018(tmp_path / "iNat")
    path = data / "train2018.json"
    whole = path.read_text()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_text(whole[:cut])
        said = refusal(space, capsys, "ingest", "images", path, "--split", "train")
        assert said.startswith(f"Error: {path}: not JSON: "), cut
        assert "; the file seems to be cut off\n" in said, (cut, said)


def test_images_with_no_or_two_categories(space: Workspace, tmp_path: Path) -> None:
    """Both are left out, with the reason; the file's own categories name the rest."""
    rows = [(f"{n}.jpg", 0) for n in range(3)]
    for n in range(3):
        benchmark_trees.picture(tmp_path / "d" / f"{n}.jpg", n)
    value = benchmark_trees.coco(rows)
    value["annotations"] = [*value["annotations"][:2], {"image_id": 101, "category_id": 1}]
    value["categories"] = [{"id": 1, "name": "wren"}, {"id": 0, "name": "owl"}]
    (tmp_path / "d" / "train.json").write_text(json.dumps(value))
    run(space, "ingest", "images", tmp_path / "d" / "train.json", "--split", "train")
    assert images(space) == {"train": [("owl", "0.jpg")]}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text("a./\0", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "file_name", "image_id", "category_id", "name"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
_ROWS = st.lists(_VALUES, max_size=4)


@given(
    st.fixed_dictionaries({"images": _ROWS, "annotations": _ROWS}, optional={"categories": _ROWS}) | _VALUES
)
def test_any_json_of_images_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """Whatever the values are: records and reasons, or one error that names the file."""
    path = tmp_path_factory.mktemp("j") / "train.json"
    path.write_text(json.dumps(value))
    message = str(path)
    try:
        items = list(read_images(path, "train"))
    except InputError as error:
        items, message = [], error.message
    assert str(path) in message
    assert all(isinstance(item, Skipped) for item in items)
