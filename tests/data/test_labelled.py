"""Files that name pictures and their classes: what each format gives, and what is left out with its place."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pictures import put
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.labelled import Labelled, read_labelled
from vlltr_index.data.names import ClassNames
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord, Skipped


def read(path: Path, text: str, root: Path | None = None) -> list[Labelled]:
    """Write a file, and read it."""
    path.write_text(text, encoding="utf-8")
    return list(read_labelled(path, root or path.parent))


def good(rows: list[Labelled]) -> list[tuple[str, str | None]]:
    """Path and class of what can be used."""
    return [(row.entry, row.class_name) for row in rows if not row.why]


def bad(rows: list[Labelled]) -> list[tuple[str, str]]:
    """Place, behind the file's name, and reason of what cannot."""
    return [(row.where.rpartition("/")[2].partition(":")[2].strip(), row.why) for row in rows if row.why]


def choice(*names: str, cancelled: bool = False) -> dict[str, Any]:
    """An annotation of Label Studio."""
    result = {"type": "choices", "value": {"choices": list(names)}, "from_name": "choice", "to_name": "image"}
    return {"id": 1, "was_cancelled": cancelled, "result": [result] if names else []}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Path,Class,split,group\na b.jpg,great tit,val,g1\n,tit,,\nc.jpg,,,\nd.jpg\n"),
        ("a.csv", "class;path;split;group\ngreat tit;a b.jpg;val;g1\ntit;;;\n;c.jpg;;\nd.jpg\n"),
        ("a.tsv", "file\tlabel\tsplit\tgroup\na b.jpg\tgreat tit\tval\tg1\n\ttit\t\t\nc.jpg\t\t\t\nd.jpg\n"),
        (
            "a.jsonl",
            '{"path": "a b.jpg", "class": "great tit", "split": "val", "group": "g1"}\n'
            '{"path": "", "class": "tit"}\n{"path": "c.jpg", "class": null}\nd.jpg\n',
        ),
    ],
)
def test_tables(name: str, text: str, tmp_path: Path) -> None:
    """Columns in any order, names with spaces, split and group; what is wrong with other rows is said."""
    rows = read(tmp_path / name, text)
    assert good(rows) == [("a b.jpg", "great tit")]
    assert (rows[0].split, rows[0].group) == ("val", "g1")
    assert [why for _, why in bad(rows)[:2]] == ["no path", "no class"]
    place, why = bad(rows)[2]
    assert place == ("4" if name == "a.jsonl" else "5")
    assert why.startswith("not JSON") if name == "a.jsonl" else why == "1 fields, the header has 4"


def test_parquet_of_paths(tmp_path: Path) -> None:
    """A column of paths instead of images."""
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "label": ["x", None]}), tmp_path / "a.parquet")
    rows = list(read_labelled(tmp_path / "a.parquet", tmp_path))
    assert good(rows) == [("a.jpg", "x")]
    assert bad(rows) == [("", "no class")]


def test_lists_with_names_of_several_words(tmp_path: Path) -> None:
    """Quoted, or behind a tab; a .tsv without a header is a list."""
    text = '"my pictures/a.jpg" "great tit"\nb.jpg "great tit"\nmy c.jpg wren\nd.jpg\tgreat tit\n"e f.jpg"\t"a b"\n'
    expected = ["great tit", "great tit", "wren", "great tit", "a b"]
    rows = read(tmp_path / "a.txt", text)
    assert [row.class_name for row in rows] == expected
    assert [row.entry for row in rows] == ["my pictures/a.jpg", "b.jpg", "my c.jpg", "d.jpg", "e f.jpg"]
    assert good(read(tmp_path / "a.tsv", "a b.jpg\tgreat tit\n")) == [("a b.jpg", "great tit")]


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    """The file, what is there, and what to write."""
    with pytest.raises(InputError) as error:
        read(tmp_path / "a.csv", "path,bird\na.jpg,wren\n")
    assert str(error.value) == (
        f"{tmp_path}/a.csv: no column that names the classes; it has 'path', 'bird'\n"
        "Name the columns path and class (and split and group, if there are any)."
    )


def test_label_studio_json(tmp_path: Path) -> None:
    """One class a task; skipped tasks, tasks without a choice, and annotators who disagree are left out."""
    upload = "/data/upload/3/0a1b2c3d-my_a.jpg"
    tasks = [
        {"id": 1, "data": {"image": upload}, "annotations": [choice("wren"), choice("wren")]},
        {
            "id": 2,
            "data": {"image": "/data/local-files/?d=birds/b%20c.jpg"},
            "annotations": [choice(cancelled=True), choice("great tit")],
        },
        {"id": 3, "data": {"image": "c.jpg"}, "annotations": [choice("wren", cancelled=True)]},
        {"id": 4, "data": {"image": "c.jpg"}, "annotations": []},
        {"id": 5, "data": {"image": "c.jpg"}, "annotations": [choice("wren"), choice("tit")]},
        {"id": 6, "data": {"image": "c.jpg"}, "annotations": [choice()]},
        {"id": 7, "data": {"image": "https://example.org/c.jpg"}, "annotations": [choice("wren")]},
    ]
    rows = read(tmp_path / "a.json", json.dumps(tasks))
    assert good(rows) == [("upload/3/0a1b2c3d-my_a.jpg", "wren"), ("birds/b c.jpg", "great tit")]
    assert rows[0].names == ("0a1b2c3d-my_a.jpg", "my_a.jpg")
    assert bad(rows) == [
        ("task 3", "skipped there"),
        ("task 4", "no annotation"),
        ("task 5", "two classes for one picture: 'wren' and 'tit'"),
        ("task 6", "no class"),
        ("task 7", "an address of the web: fetch the file, and name the copy"),
    ]
    (tmp_path / "birds").mkdir()
    put(tmp_path / "birds" / "x.jpg")
    inside = read(tmp_path / "birds" / "a.json", json.dumps(tasks))
    assert good(inside)[1] == ("b c.jpg", "great tit")  # the document root lies above


def test_label_studio_minimal_json_and_csv(tmp_path: Path) -> None:
    """The class is in the column that is named as the project names its question."""
    facts = {
        "id": 1,
        "annotator": 1,
        "annotation_id": 5,
        "created_at": "2026",
        "updated_at": "",
        "lead_time": 1.5,
    }
    records = [
        {"image": "a.jpg", "animal": "great tit", **facts},
        {"image": "b.jpg", "animal": {"choices": ["wren", "tit"]}, **facts},
        {"image": "c.jpg", "animal": {"choices": ["wren", "tit", "owl", "auk"]}, **facts},
    ]
    rows = read(tmp_path / "a.json", json.dumps(records))
    assert good(rows) == [("a.jpg", "great tit")]
    assert bad(rows) == [
        ("task 2", "two classes for one picture: 'wren' and 'tit'"),
        ("task 3", "4 classes for one picture: 'wren', 'tit' and 2 more"),
    ]
    text = "animal,annotation_id,annotator,created_at,id,image,lead_time,updated_at\n"
    text += 'great tit,5,1,2026,1,a.jpg,1.5,2026\n"{""choices"": [""wren"", ""tit""]}",5,1,2026,1,b.jpg,1.5,2026\n'
    rows = read(tmp_path / "a.csv", text)
    assert good(rows) == [("a.jpg", "great tit")]
    assert bad(rows) == [("3", "two classes for one picture: 'wren' and 'tit'")]


def test_fiftyone(tmp_path: Path) -> None:
    """labels.json beside the folder data, given itself or by its folder, and samples.json."""
    for name in ("a.png", "in/b.jpg", "c.png", "c.jpg"):
        put(tmp_path / "data" / name)
    labels = {"classes": ["wren", "great tit"], "labels": {"a": 1, "in/b": 0, "c": 0, "d": None, "e": 7}}
    rows = read(tmp_path / "labels.json", json.dumps(labels))
    assert good(rows) == [("data/a.png", "great tit"), ("data/in/b.jpg", "wren")]
    assert bad(rows) == [("c", "several files: c.jpg, c.png"), ("d", "no class"), ("e", "no class")]
    found = [item for item in read_images(tmp_path, "train") if isinstance(item, ImageRecord)]
    assert [(one.source, one.class_name) for one in found] == good(rows)
    (tmp_path / "labels.json").unlink()
    assert good(read(tmp_path / "labels.json", '{"classes": null, "labels": {"a": "wren"}}')) == [
        ("data/a.png", "wren")
    ]
    kind = {"_cls": "Classification"}
    samples = [
        {"filepath": "data/a.png", "ground_truth": {**kind, "label": "wren"}, "p": {**kind, "label": "tit"}},
        {"filepath": "data/in/b.jpg", "species": {**kind, "label": "tit"}, "tags": ["train"]},
        {"filepath": "data/c.jpg", "a": {**kind, "label": "tit"}, "b": {**kind, "label": "tit"}},
        {"filepath": "data/c.jpg", "ground_truth": None},
    ]
    rows = read(tmp_path / "samples.json", json.dumps({"samples": samples}))
    assert good(rows) == [("data/a.png", "wren"), ("data/in/b.jpg", "tit")]
    assert bad(rows) == [
        ("sample 2", "a and b hold a class, and none of them is called ground_truth"),
        ("sample 3", "no class"),
    ]


def test_pictures_of_a_file(tmp_path: Path) -> None:
    """A picture in two classes is left out, and named once; uploads are found by their names; splits go by the rows."""
    for name in ("a.png", "in/b.png", "one/c.png", "two/c.png"):
        put(tmp_path / name)
    listing = tmp_path / "a.csv"
    listing.write_text(
        "path,class,split\na.png,x,train\n./a.png,y,train\n/data/upload/1/0a1b2c3d-b.png,x,\n"
        "/data/upload/1/0a1b2c3d-c.png,x,\nin/b.png,x,test\n"
    )
    items = list(read_images(listing, "train"))
    taken = [(i.source, i.class_name, i.split) for i in items if isinstance(i, ImageRecord)]
    assert taken == [("in/b.png", "x", "train")]
    twice = f"two classes for one picture: 'x' ({listing}:2) and 'y' ({listing}:3)"
    assert [(i.where, i.why) for i in items if isinstance(i, Skipped)] == [
        (f"{listing}:2", f"a.png: {twice}"),
        (f"{listing}:5", "upload/1/0a1b2c3d-c.png: several files have its name: 'one/c.png', 'two/c.png'"),
    ]


def test_what_one_row_gets_wrong_stops_no_other(tmp_path: Path) -> None:
    """A task whose result is no list, brackets without an end, a key that stands twice: each is named."""
    put(tmp_path / "a.png")
    task = {"id": 7, "data": {"image": "a.png"}, "annotations": [{"result": 5}]}
    rows = read(tmp_path / "tasks.json", json.dumps([task, {"path": "a.png", "class": "owl"}]))
    assert good(rows) == [("a.png", "owl")]
    assert "result" in bad(rows)[0][1]
    deep = '{"path": "a.png", "class": ' + "[" * 100_000 + "]" * 100_000 + "}"
    twice = '{"path": "a.png", "class": "owl", "class": "tit"}'
    nested = '{"path": "a.png", "class": ' + "[" * 900 + '"owl"' + "]" * 900 + "}"
    rows = read(tmp_path / "rows.jsonl", "\n".join([deep, twice, nested]))
    assert good(rows) == [("a.png", "owl")]
    assert bad(rows)[1][1] == "not JSON: 'class' occurs twice"
    with pytest.raises(InputError, match="the column 'class' stands there twice"):
        read(tmp_path / "twice.csv", "path,class,class\na.png,owl,tit\n")


def test_texts_of_digits_and_numbers(tmp_path: Path) -> None:
    """A text keeps its leading zeros; with names it is a number as well, unless one of them is just that text."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(f'{{"path": "a", "class": {one}}}\n' for one in ('"1"', '"001"', '"00"', '"-1"', 1, -1))
    )
    named = ClassNames.of(["zero", "one", "00"])
    for names, there, expected in (
        (None, (), ["1", "001", "00", None, "1", None]),
        (None, ("-1",), ["1", "001", "00", "-1", "1", None]),
        (named, (), ["one", "one", "00", None, "one", None]),
    ):
        rows = read_labelled(path, tmp_path, names, classes=there)
        assert [(row.class_name, row.why) for row in rows] == [(name, "") for name in expected]


def test_classes_that_are_neither_names_nor_numbers(tmp_path: Path) -> None:
    """NaN is no class, whole floats are numbers, and what is of another type is refused with its value."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"path": ["a", "b"], "class": [2.0, float("nan")]}), path)
    assert [(one.class_name, one.why) for one in read_labelled(path, tmp_path)] == [
        ("2", ""),
        (None, "no class"),
    ]
    pq.write_table(pa.table({"path": ["a", "b"], "class": [True, False]}), path)
    assert {one.why for one in read_labelled(path, tmp_path)} == {
        "a class is a name or a number, not True", "a class is a name or a number, not False"
    }  # fmt: skip
    pq.write_table(pa.table({"path": ["a"], "class": [b"owl"]}), path)
    assert [one.why for one in read_labelled(path, tmp_path)] == ["a class is a name or a number, not b'owl'"]


def test_any_column_may_name_the_groups(tmp_path: Path) -> None:
    """It has to be there."""
    path = tmp_path / "rows.csv"
    path.write_text("path,class,camera\na.png,owl,north\n")
    assert [one.group for one in read_labelled(path, tmp_path, group="camera")] == ["north"]
    assert [one.group for one in read_labelled(path, tmp_path)] == [None]
    with pytest.raises(InputError, match="no column 'site' to group by; it has 'path', 'class', 'camera'"):
        list(read_labelled(path, tmp_path, group="site"))
    put(tmp_path / "a.png")
    (record,) = read_images(path, "train", group_column="camera")
    assert isinstance(record, ImageRecord)
    assert record.group == "north"


# Plain twins of the patterns, which take quadratic time.
_LINE = re.compile(r'(?:"(?P<path>[^"]+)"|(?P<bare>.+?))\s+(?:"(?P<label>[^"]+)"|(?P<word>[^"\s]+))')
_LOCAL = re.compile(r"(?:https?://[^/]+)?/(?:[^?]*/)?data/local-files/?\?(?:.*&)?d=([^&]+).*")
_UPLOADED = re.compile(r"(?:https?://[^/]+)?/(?:.*/)?data/upload/(.+)")


@given(st.text('ab" \u2003', min_size=1, max_size=20).map(str.strip).filter(lambda line: '"' in line))
def test_a_line_with_quotes_is_read_as_by_a_plain_rule(line: str) -> None:
    """The path and the label are those that the plain pattern finds, or else the parts at the last space."""
    found = _LINE.fullmatch(line)
    entry, _, label = line.rpartition(" ")
    if found:
        entry = found["path"] or found["bare"]
        label = found["label"] or found["word"]
    with tempfile.TemporaryDirectory() as folder:
        (row,) = read(Path(folder) / "list.txt", line)
    if not (entry and label):
        assert row.why.startswith("expected a path and a label")
    elif not unquoted(entry):
        assert row.why == "no path"
    else:
        assert (row.entry, row.class_name) == (unquoted(entry), " ".join(unquoted(label).split()) or None)


def unquoted(text: str) -> str:
    """A text without white space at its ends, and without quotes around it."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == '"' else text


_ADDRESS = st.lists(
    st.sampled_from(
        ["/", "data/", "upload/", "local-files/", "local-files", "?", "d=", "&", "a", "http://h"]
    ),
    min_size=1,
)


@given(_ADDRESS.map("".join))
def test_an_address_of_label_studio_is_read_as_by_a_plain_rule(text: str) -> None:
    """The path is what the plain patterns find."""
    local = _LOCAL.fullmatch(text)
    upload = _UPLOADED.fullmatch(text)
    with tempfile.TemporaryDirectory() as folder:
        (row,) = read(Path(folder) / "list.json", json.dumps([{"path": text, "class": "tit"}]))
    if local:
        assert row.entry == "/".join(part for part in unquote(local[1]).split("/") if part)
    else:
        assert row.entry == (f"upload/{unquote(upload[1])}" if upload else text)


def test_hostile_files_are_read_in_linear_time(tmp_path: Path) -> None:
    """Each would keep a quadratic reader for many minutes."""
    many = 300_000
    (row,) = read(tmp_path / "list.txt", f'{"a":{many}}"b')
    assert (row.entry, row.class_name) == ("a", '"b')
    keys = ", ".join(f'"{number}": 0' for number in range(many))
    (row,) = read(tmp_path / "list.jsonl", f'{{{keys}, "{many - 1}": 0}}')
    assert row.why == f"not JSON: '{many - 1}' occurs twice"
    uploaded = "data/upload/a/" * 10 * many
    parameters = f"/data/local-files/?d={'a' * many}"
    entries = [f"/{uploaded}\n.jpg", f"{parameters}&\n", f"/data/local-files/?d={'a/' * many}b"]
    rows = read(tmp_path / "list.json", json.dumps([{"path": one, "class": "tit"} for one in entries]))
    assert [row.entry for row in rows] == ["upload/a/\n.jpg", "a" * many, "a/" * many + "b"]
