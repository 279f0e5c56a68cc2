"""Photos-LT: the reader of Qt resource files, the split, the sentences, and the build with packages made here."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.datasets.photos_lt import build, listing, packages, sheet
from benchmarks.datasets.photos_lt.listing import CUTOUT, SCENE, Photo
from benchmarks.datasets.photos_lt.resources import MAX_DEPTH, ResourceFile
from vlltr_index.data.decoding import probe
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.text_readers import read_text
from vlltr_index.errors import InputError
from vlltr_index.heads.near_duplicates import near_duplicates
from vlltr_index.schemas.records import ImageRecord

SPLIT = "af57e7a076c4a7412d3c1679b0cf51af8bffc1a2c5e5f45df68d2e36a7e223eb"
ROOT = Path(os.environ.get("VLLTR_PACKAGES", "/"))
HAS_PACKAGES = all((ROOT / folder).is_dir() for folder in packages.FOLDERS.values())
NEEDS_PACKAGES = pytest.mark.skipif(
    not HAS_PACKAGES,
    reason=f"needs gcompris-qt-data and tuxpaint-stamps-default below {ROOT} (VLLTR_PACKAGES)",
)
NOT_COPIES = {
    frozenset({"tuxpaint-animals-birds-blackbird.png", "tuxpaint-animals-birds-crow.png"}),
    frozenset({"tuxpaint-animals-birds-pigeon.png", "tuxpaint-animals-birds-silver-gull.png"}),
    frozenset(f"gcompris-categorization-images-tools-hammer{n}.jpg" for n in (2, 8)),
    frozenset({"gcompris-categorization-images-tools-hammer2.jpg", "tuxpaint-household-tools-hammer.png"}),
}
"""Pairs with a like outline, which show two birds or two hammers."""


# Resource files


@dataclass
class Node:
    """A folder or file of a resource file that a test writes."""

    name: str = ""
    children: tuple[Node, ...] = ()
    data: bytes | None = None
    flags: int = 0


def resource(root: Node, version: int = 2) -> bytes:
    """Write a resource file; children of a folder have neighbouring numbers."""
    nodes = [root]
    first: dict[int, int] = {}
    for node in nodes:  # it grows
        first[id(node)] = len(nodes)
        nodes += node.children
    names = contents = tree = b""
    for node in nodes:
        at_name, at_data = len(names), len(contents)
        names += struct.pack(">HI", len(node.name), 0) + node.name.encode("utf-16-be")
        if node.data is None:
            tree += struct.pack(">IHII", at_name, 2, len(node.children), first[id(node)])
        else:
            contents += struct.pack(">I", len(node.data)) + node.data
            tree += struct.pack(">IHHHI", at_name, node.flags, 0, 0, at_data)
        tree += b"" if version == 1 else bytes(8)
    header = 20 if version < 3 else 24
    start = struct.pack(
        ">4sIIII", b"qres", version, header, header + len(tree), header + len(tree + contents)
    )
    return start.ljust(header, b"\0") + tree + contents + names


def squeezed(data: bytes) -> bytes:
    """Compress as Qt does with zlib: the size, then the stream."""
    return struct.pack(">I", len(data)) + zlib.compress(data)


TEXT = b"many times the same " * 50
ZSTD = pa.compress(TEXT, codec="zstd", asbytes=True)
FILES = Node(
    children=(
        Node("a", (Node("plain.bin", data=b"\0\1"), Node("zlib.txt", data=squeezed(TEXT), flags=1))),
        Node("zstd.txt", data=ZSTD, flags=4),
        Node("empty", data=b""),
    )
)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_resource_file_is_read(version: int) -> None:
    """Plain, zlib and zstd files in folders, of each version of the format."""
    file = ResourceFile(resource(FILES, version), "x.rcc")
    read = {path: file.read(path) for path in file.entries}
    assert read == {"a/plain.bin": b"\0\1", "a/zlib.txt": TEXT, "zstd.txt": TEXT, "empty": b""}


def nested(depth: int) -> Node:
    """Return a folder in a folder, and so on."""
    return Node("f", data=b"") if depth == 0 else Node("d", (nested(depth - 1),))


def patched(data: bytes, place: int, layout: str, *values: Any) -> bytes:
    """Overwrite some bytes."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, place, *values)
    return bytes(changed)


GOOD = resource(FILES)
BAD_TREES = {
    "empty": (b"", "it ends before byte 20"),
    "magic": (b"PK\3\4" + GOOD[4:], "it starts with"),
    "version": (patched(GOOD, 4, ">I", 9), "its version is 9"),
    "cut off": (GOOD[:60], "it ends before byte"),
    "name cut off": (GOOD[:-1], "it ends in the name at byte"),
    "offset": (patched(GOOD, 8, ">I", 2**32 - 1), "it ends before byte"),
    "loop to the root": (patched(GOOD, 26, ">II", 3, 0), "in more than one folder"),
    "loop to itself": (patched(GOOD, 20 + 22 + 6, ">II", 2, 1), "in more than one folder"),
    "many children": (patched(GOOD, 26, ">II", 2**31, 1), "2,147,483,648 children"),
    "depth": (resource(Node(children=(nested(MAX_DEPTH + 1),))), f"children in level {MAX_DEPTH}"),
    **{
        f"name {name!r}": (resource(Node(children=(Node(name, data=b""),))), "is not the name of a file")
        for name in ("..", ".", "", "a/b", "/etc", "a\\b", "a\0")
    },
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_a_malformed_tree_is_refused(case: str) -> None:
    """Truncated, with loops, too deep, with too many nodes, with names that lead elsewhere."""
    data, message = BAD_TREES[case]
    with pytest.raises(InputError, match=r"x\.rcc cannot be read as a Qt resource file: ") as caught:
        ResourceFile(data, "x.rcc")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("f", data=squeezed(TEXT)[:-9], flags=1), "f cannot be unpacked: it is cut off"),
        (Node("f", data=b"\0\0\0\1nothing", flags=1), "f cannot be unpacked: "),
        (Node("f", data=ZSTD[:-9], flags=4), "f cannot be unpacked: "),
        (Node("f", data=b"nothing", flags=4), "f cannot be unpacked: "),
        (Node("f", data=squeezed(bytes(5000)), flags=1), "f has more than 4,000 bytes"),
        (
            Node("f", data=pa.compress(bytes(5000), codec="zstd", asbytes=True), flags=4),
            "f has more than 4,000",
        ),
        (Node("f", data=bytes(5000)), "f has more than 4,000 bytes"),
    ],
)
def test_a_damaged_or_too_large_file_is_refused(node: Node, message: str) -> None:
    """Each compression cut off, or no such data, or more bytes than allowed."""
    file = ResourceFile(resource(Node(children=(node,))), "x.rcc")
    with pytest.raises(InputError) as caught:
        file.read("f", limit=4000)
    assert message in caught.value.message


def test_data_behind_the_end_are_refused() -> None:
    """A length that the file does not have, and a file that it does not have."""
    end = resource(Node(children=(Node("f", data=b"abc"),)))
    file = ResourceFile(patched(end, 20 + 2 * 22, ">I", 2**31), "x.rcc")
    with pytest.raises(InputError, match="f ends after"):
        file.read("f")
    with pytest.raises(InputError, match="it has no file g"):
        file.read("g")


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(GOOD)),
)
def test_any_damage_is_an_input_error(changes: list[tuple[int, int]], end: int) -> None:
    """Bytes changed and cut off: the file is read, or refused with a message; never another error."""
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    try:
        file = ResourceFile(bytes(data[:end]), "x.rcc")
        for path in file.entries:
            assert ".." not in path.split("/")
            file.read(path, limit=10_000)
    except InputError:
        pass


# The list and its split


def test_the_list_is_complete() -> None:
    """Photographs are unique and sorted, classes have four or more, sentences, and each statement has a source."""
    listed = listing.photos()
    assert len({photo.sha256 for photo in listed}) == len({photo.name for photo in listed}) == len(listed)
    assert all(one.label <= other.label for one, other in pairwise(listed))
    sizes = Counter(photo.label for photo in listed)
    assert min(sizes.values()) >= 4
    assert sizes.keys() == listing.facts().keys()
    assert all(len(sentences) >= 4 for sentences in listing.facts().values())
    assert {photo.kind for photo in listed} == {SCENE, CUTOUT}
    assert all(photo.licence and photo.author and photo.stated_in for photo in listed)
    left_out = listing.left_out()
    assert not [photo for photo in listed if listing.reason_for(photo.package, photo.path, left_out[:22])]


def test_a_subject_is_what_several_photographs_of_a_class_show() -> None:
    """No subject has one photograph, or photographs of two classes."""
    members = defaultdict(list)
    for photo in listing.photos():
        if photo.subject:
            members[photo.subject].append(photo.label)
    assert all(len(labels) > 1 and len(set(labels)) == 1 for labels in members.values())


def test_the_split_is_the_stated_one() -> None:
    """The same photographs in each run, whatever their order in the list; no group is on both sides."""
    listed = listing.photos()
    sides = listing.split(listed)
    assert listing.split_hash(sides) == SPLIT
    assert listing.split_hash(listing.split(listed[::-1])) == SPLIT
    groups = defaultdict(set)
    for photo, side in sides.items():
        groups[photo.label, photo.group].add(side)
    assert all(len(found) == 1 for found in groups.values())
    for label, found in build.counts(sides)["by_class"].items():
        assert 2 <= found["test"] <= min(found["train"], listing.MOST_TEST), label


def test_a_split_by_kind_trains_on_cutouts() -> None:
    """Scenes are for the test, in the classes that have both."""
    sides = listing.split(listing.photos(), "kind")
    assert {(photo.kind, side) for photo, side in sides.items()} == {(CUTOUT, "train"), (SCENE, "test")}
    by_class = build.counts(sides)["by_class"]
    assert all(found["train"] and found["test"] for found in by_class.values())
    assert "coin" not in by_class
    assert "bird" in by_class


@given(st.lists(st.sampled_from(["A hen.", "A HEN.", "An owl.", "", "A jay."]), min_size=4, max_size=8))
def test_no_caption_of_a_test_image_is_a_sentence(captions: list[str]) -> None:
    """Neither its own nor an equal one of a training image; each sentence is there once."""
    birds = [photo for photo in listing.photos() if photo.label == "bird"][: len(captions)]
    sides = {photo: "test" if number % 2 else "train" for number, photo in enumerate(birds)}
    sentences = listing.texts(dict(zip(birds, captions, strict=True)), sides)["bird"]
    assert not {text.casefold() for text in sentences} & {text.casefold() for text in captions[1::2]}
    assert len(set(sentences)) == len(sentences)
    own = len(listing.facts()["bird"])
    assert set(sentences[own:]) <= set(captions[::2]) - {""}


def test_the_page_has_the_counts_of_the_list() -> None:
    """A row for each class, the totals, and both splits."""
    page = (listing.HERE / "README.md").read_text(encoding="utf-8")
    counts = build.counts(listing.split(listing.photos()))
    columns = ("train", "test", SCENE, CUTOUT)
    for label, found in [*counts["by_class"].items(), ("**all**", counts)]:
        assert f"| {label} | {' | '.join(str(found[column]) for column in columns)} |\n" in page
    assert page.startswith(
        f"# Photos-LT\n\n{counts['photographs']} photographs of {counts['classes']} classes"
    )
    by_kind = build.counts(listing.split(listing.photos(), "kind"))
    assert (
        f"{by_kind['train']} training and {by_kind['test']} test images of {by_kind['classes']} classes"
        in page
    )
    assert SPLIT in page


def test_the_page_has_the_figures_that_were_measured() -> None:
    """On the split that the builder makes."""
    page = (listing.HERE / "README.md").read_text(encoding="utf-8")
    measured = json.loads((listing.HERE / "first_figures.json").read_text(encoding="utf-8"))
    rows = ("zero-shot", "ncm", "discriminant", "image branch", "vl-ltr")
    cells = (f"{100 * measured['top1'][row]['value']:.1f}" for row in rows)
    assert f"| {' | '.join(cells)} |\n" in page
    difference = measured["vl-ltr less ncm"]
    assert f"is {100 * difference['low']:.1f}\nto {100 * difference['high']:+.1f} points" in page
    assert measured["split_sha256"] == SPLIT


# The build, with packages made here


def picture(colour: tuple[int, ...], kind: str) -> bytes:
    """Draw a wide scene as WebP, or a cut-out with a transparent half as PNG."""
    buffer = io.BytesIO()
    if kind == SCENE:
        Image.new("RGB", (1024, 256), colour).save(buffer, "WEBP", lossless=True)
    else:
        image = Image.new("RGBA", (40, 20), (*colour, 255))
        image.paste((0, 0, 0, 0), (20, 0, 40, 20))
        image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write both packages with four photographs of hens and four of owls, and list these."""
    root, lists = tmp_path / "packages", tmp_path / "lists"
    rows, scenes = [], []
    stamps = root / packages.FOLDERS[packages.TUXPAINT] / "birds"
    stamps.mkdir(parents=True)
    lists.mkdir()
    for number in range(8):
        label, kind = ("hen", "owl")[number % 2], (SCENE, CUTOUT)[number // 4]
        data = picture((20 * number, 99, 200), kind)
        name = f"{label}{number}"
        if kind == SCENE:
            path = f"gcompris/src/activities/farm/{name}.webp"
            scenes.append(Node(f"{name}.webp", data=data))
        else:
            path = f"{packages.FOLDERS[packages.TUXPAINT]}/birds/{name}.png"
            (root / path).write_bytes(data)
            (root / path).with_suffix(".txt").write_text(
                f"A {name},\tstanding.\nde.utf8=Ein Vogel.\n", encoding="utf-8"
            )
        package = packages.GCOMPRIS if kind == SCENE else packages.TUXPAINT
        digest = hashlib.sha256(data).hexdigest()
        rows.append(Photo(package, path, label, kind, "", "", "GPL-2", "not stated", "copyright", digest))
    rows[0] = replace(rows[0], subject="Berta", caption="Berta, a hen.")
    rows[4] = replace(rows[4], subject="Berta")
    tree = Node("", tuple(scenes))
    for name in ("farm", "activities", "src", "gcompris"):
        tree = Node(name, replace_root(tree))
    folder = root / packages.FOLDERS[packages.GCOMPRIS]
    folder.mkdir(parents=True)
    (folder / "farm.rcc").write_bytes(resource(Node("", (tree,))))
    write_lists(lists, rows)
    monkeypatch.setattr(listing, "HERE", lists)
    return root


def replace_root(tree: Node) -> tuple[Node, ...]:
    """Return what goes into the next folder: the files, or the folder itself."""
    return (tree,) if tree.name else tree.children


def write_lists(folder: Path, rows: list[Photo]) -> None:
    """Write photos.csv and facts.json."""
    columns = [
        "package",
        "path",
        "class",
        "kind",
        "subject",
        "caption",
        "licence",
        "author",
        "stated_in",
        "sha256",
    ]
    with (folder / "photos.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(
            [getattr(row, "label" if name == "class" else name) for name in columns] for row in rows
        )
    (folder / "facts.json").write_text(json.dumps({"hen": ["It lays eggs."], "owl": ["It hunts at night."]}))


def rows_of(data: Path) -> list[dict[str, str]]:
    """Read the table of a data set."""
    with (data / "LICENCES.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(*arguments: str | Path) -> int:
    """Run the command and return its exit status."""
    try:
        return build.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_the_folder_is_what_fit_reads(unpacked: Path, tmp_path: Path) -> None:
    """Class folders and the table name the same images; groups stay together; sentences are of both classes."""
    out = tmp_path / "photos-lt"
    assert run("--packages", unpacked, "--out", out) == 0
    rows = rows_of(out)
    assert {row["path"] for row in rows} == {
        path.relative_to(out).as_posix() for side in ("train", "test") for path in (out / side).rglob("*.*")
    }
    records = [
        record
        for side in ("train", "test")
        for record in read_images(out / "LICENCES.csv", split=side)
        if isinstance(record, ImageRecord)
    ]
    assert len(records) == len(rows) == 8
    assert {(record.class_name, record.split) for record in records} == {
        (name, side) for name in ("hen", "owl") for side in ("train", "test")
    }
    assert Counter(record.group for record in records) == {None: 6, "Berta": 2}
    assert len({row["split"] for row in rows if row["group"] == "Berta"}) == 1
    told = defaultdict(set)
    for record in read_text(out / "texts.json"):
        told[record.class_name].add(record.text)
    assert told["hen"] >= {"It lays eggs."}
    test_captions = {row["caption"] for row in rows if row["split"] == "test"} - {""}
    assert test_captions
    assert not set.union(*told.values()) & test_captions
    assert "A owl5, standing." in {row["caption"] for row in rows}


def test_pictures_are_resized_and_put_on_white(unpacked: Path, tmp_path: Path) -> None:
    """A scene becomes a JPEG of 512 pixels; a cut-out a PNG of its own size on white."""
    build.build(unpacked, tmp_path / "out")
    scenes = list((tmp_path / "out").rglob("*.jpg"))
    cutouts = list((tmp_path / "out").rglob("*.png"))
    assert len(scenes) == len(cutouts) == 4
    for path in scenes:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (512, 128))
    for path in cutouts:
        with Image.open(path) as image:
            assert (image.format, image.size, image.getpixel((30, 10))) == ("PNG", (40, 20), (255, 255, 255))


def test_missing_and_other_files_are_named(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --partial nothing is built; with it the manifest names what is not there."""
    stamps = unpacked / packages.FOLDERS[packages.TUXPAINT] / "birds"
    (stamps / "owl7.png").unlink()
    (stamps / "hen6.png").write_bytes(picture((1, 2, 3), CUTOUT))
    out = tmp_path / "out"
    assert run("--packages", unpacked, "--out", out) == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "Error: 2 listed photographs are missing or differ; found gcompris-qt-data not stated"
    )
    assert "differs: tuxpaint-stamps-default: usr/share/tuxpaint/stamps/birds/hen6.png\n" in message
    assert "missing: tuxpaint-stamps-default: usr/share/tuxpaint/stamps/birds/owl7.png\n" in message
    assert "Hint: " in message
    assert not out.exists()
    assert run("--packages", unpacked, "--out", out, "--partial") == 0
    assert len(rows_of(out)) == 6
    not_built = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["not_built"]
    assert {(Path(row["path"]).name, row["why"]) for row in not_built} == {
        ("hen6.png", "differs"),
        ("owl7.png", "missing"),
    }


def test_a_missing_package_and_an_existing_folder_are_errors(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message gives the command that fetches the packages; an existing folder is not touched."""
    assert run("--packages", tmp_path / "none", "--out", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert (
        f"Error: not found below {tmp_path / 'none'}: gcompris-qt-data, tuxpaint-stamps-default\n" in message
    )
    assert "apt-get download gcompris-qt-data tuxpaint-stamps-default" in message
    assert run("--packages", unpacked, "--out", tmp_path) == 1
    assert f"{tmp_path} exists already" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run("--packages", unpacked, "--out", tmp_path / "file" / "out") == 1
    assert capsys.readouterr().err.startswith("Error: ")


def test_a_malformed_resource_file_leaves_nothing(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the file, and no folder is left."""
    file = unpacked / packages.FOLDERS[packages.GCOMPRIS] / "farm.rcc"
    file.write_bytes(file.read_bytes()[:70])
    assert run("--packages", unpacked, "--out", tmp_path / "out") == 1
    assert "farm.rcc cannot be read as a Qt resource file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists", "packages"]


def test_contact_sheets_have_a_page_for_a_few_classes(unpacked: Path, tmp_path: Path) -> None:
    """One class a page gives two pages with numbers; two give one page with the name as given."""
    build.build(unpacked, tmp_path / "out")
    pages = sheet.write_sheets(tmp_path / "out", tmp_path / "sheet.png", classes=1, columns=4)
    assert [path.name for path in pages] == ["sheet-1.png", "sheet-2.png"]
    (page,) = sheet.write_sheets(tmp_path / "out", tmp_path / "sheet.png", classes=2, columns=4)
    assert page == tmp_path / "sheet.png"
    with Image.open(page) as both, Image.open(pages[1]) as one:
        assert both.height > one.height
    with pytest.raises(InputError, match="not found: "):
        sheet.write_sheets(tmp_path, tmp_path / "sheet.png", classes=1, columns=4)


# The packages themselves


@pytest.mark.slow
@NEEDS_PACKAGES
def test_the_packages_give_the_stated_data_set(tmp_path: Path) -> None:
    """Every listed photograph is found; train and test share no copies."""
    manifest = build.build(ROOT, tmp_path / "out")
    assert manifest["not_built"] == []
    assert manifest["split_sha256"] == SPLIT
    assert manifest["versions"] == packages.VERSIONS
    assert likely_copies(tmp_path / "out") <= NOT_COPIES


def likely_copies(data: Path) -> set[frozenset[str]]:
    """Find near duplicates of a class that the split parts; groups aside, which it does not part."""
    members: Mapping[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows_of(data):
        members[row["class"]].append(row)
    found = set()
    for rows in members.values():
        small = [probe(data / row["path"]).thumbnail or b"" for row in rows]
        thumbnails = torch.tensor([list(pixels) for pixels in small], dtype=torch.uint8).reshape(-1, 32, 32)
        for one, other in near_duplicates(None, thumbnails).tolist():
            if rows[one]["split"] != rows[other]["split"]:
                found.add(frozenset(Path(rows[number]["path"]).name for number in (one, other)))
    return found


@pytest.mark.slow
@NEEDS_PACKAGES
def test_every_image_of_the_packages_is_listed_or_left_out() -> None:
    """Each has a class or a reason, and each reason has an image."""
    listed = {(photo.package, photo.path) for photo in listing.photos()}
    patterns = listing.left_out()
    unused = {pattern for _, pattern, _ in patterns}
    for package in packages.FOLDERS:
        for path in packages.images_of(ROOT, package):
            if (package, path) in listed:
                continue
            assert listing.reason_for(package, path, patterns), path
            unused -= {next(q for n, q, w in patterns if listing.reason_for(package, path, [(n, q, w)]))}
    assert not unused


@pytest.mark.slow
@NEEDS_PACKAGES
def test_authors_are_named_in_the_packages() -> None:
    """Each author stands in the file of the package that the list names."""
    files: dict[str, str] = {}
    for photo in listing.photos():
        if photo.author != "not stated":
            name = re.split(r"[,:]", photo.stated_in)[0]
            if name not in files:
                files[name] = statement(name, photo.package)
            assert photo.author in files[name], photo.path


def statement(name: str, package: str) -> str:
    """Read a file that states authors, with a space for each gap."""
    if name.startswith("ActivityInfo.qml of "):
        activity = name.removeprefix("ActivityInfo.qml of ")
        file = ROOT / packages.FOLDERS[package] / f"{activity}.rcc"
        path = f"gcompris/src/activities/{activity}/ActivityInfo.qml"
        text = ResourceFile(file.read_bytes(), file.name).read(path).decode("utf-8")
    elif name == "changelog.gz":
        packed = (ROOT / "usr/share/doc" / package / name).read_bytes()
        text = gzip.decompress(packed).decode("utf-8", "replace")
    else:
        text = (ROOT / "usr/share/doc" / package / Path(name).name).read_text(encoding="utf-8")
    return " ".join(text.split())
