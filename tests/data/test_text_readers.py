"""Tests of the readers of text."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.commands import forbid
from vlltr_index.data.text import normalise_text
from vlltr_index.data.text_readers import class_sentences, read_text
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord, Skipped


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def records(path: Path) -> list[tuple[str, str]]:
    """Class and text of everything a reader takes."""
    return [(r.class_name, r.text) for r in read_text(path) if isinstance(r, SentenceRecord)]


def left_out(path: Path) -> list[tuple[str, str]]:
    """Where and why of everything a reader leaves out."""
    return [(s.where, s.why) for s in read_text(path) if isinstance(s, Skipped)]


def failure(path: Path) -> InputError:
    """The error that reading a source ends in."""
    with pytest.raises(InputError) as caught:
        list(read_text(path))
    return caught.value


def test_folder_of_texts(tmp_path: Path) -> None:
    """File stems are class names; a subfolder's files belong to its class; hidden files do not count."""
    write(tmp_path / "great_tit.txt", "\ufeffA bird. It sings.")
    write(tmp_path / "owl" / "one.txt", "It flies at night.")
    write(tmp_path / "owl" / "more" / "two.txt", "It hoots.")
    write(tmp_path / ".hidden.txt", "Not this.")
    found = list(read_text(tmp_path))
    assert found == [
        SentenceRecord("great_tit", "A bird.", tmp_path.name, "great_tit.txt"),
        SentenceRecord("great_tit", "It sings.", tmp_path.name, "great_tit.txt"),
        SentenceRecord("owl", "It hoots.", tmp_path.name, "owl/more/two.txt"),
        SentenceRecord("owl", "It flies at night.", tmp_path.name, "owl/one.txt"),
    ]


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    """JSONL, CSV, TSV and Parquet with the same rows read the same."""
    rows = [
        {
            "class": "owl",
            "text": "It hoots. It flies.",
            "source": "book",
            "source_ref": "p. 3",
            "licence": "CC0-1.0",
        },
        {"class": "tit", "text": 'A "bird", small.', "source": "book", "source_ref": None, "licence": None},
    ]
    jsonl = write(tmp_path / "t.jsonl", "\n\n".join(json.dumps(r) for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name, mark in (("t.csv", ","), ("semicolons.csv", ";"), ("t.tsv", "\t")):
        lines = [mark.join(rows[0])]
        lines += [mark.join('"' + (v or "").replace('"', '""') + '"' for v in r.values()) for r in rows]
        write(tmp_path / name, "\r\n".join(lines))
    write(tmp_path / "cr.csv", (tmp_path / "t.csv").read_bytes().replace(b"\r\n", b"\r").decode())
    expected = [
        SentenceRecord("owl", "It hoots.", "book", "p. 3", "CC0-1.0"),
        SentenceRecord("owl", "It flies.", "book", "p. 3", "CC0-1.0"),
        SentenceRecord("tit", 'A "bird", small.', "book"),
    ]
    assert list(read_text(jsonl)) == expected
    assert list(read_text(tmp_path / "t.parquet")) == expected
    for name in ("t.csv", "semicolons.csv", "t.tsv", "cr.csv"):
        found = list(read_text(tmp_path / name))
        assert [(r.class_name, r.text) for r in found if isinstance(r, SentenceRecord)] == [
            (r.class_name, r.text) for r in expected
        ]


def test_json_lists_hold_sentences_already(tmp_path: Path) -> None:
    """An item of a list is not split; a string is; an empty list is left out with its place."""
    path = write(
        tmp_path / "t.json",
        json.dumps({"a": ["It is small. See b.", " ", "X"], "b": "One. Two.", "empty": []}),
    )
    assert records(path) == [("a", "It is small. See b."), ("a", "X"), ("b", "One."), ("b", "Two.")]
    assert left_out(path) == [(f"{path}: class 'empty'", "the text is empty")]


def test_pieces_without_an_end_are_left_out(tmp_path: Path) -> None:
    """What is longer than any sentence is not handed to an encoder."""
    path = write(tmp_path / "t.jsonl", json.dumps({"class": "owl", "text": "hoo" * 2000 + "\n\nIt hoots."}))
    assert records(path) == [("owl", "It hoots.")]
    assert left_out(path) == [(f"{path}:1", "a piece of 6,000 characters without an end of sentence")]


def test_missing_and_unknown_sources(tmp_path: Path) -> None:
    """A missing path, a folder without text and an unknown ending."""
    assert str(failure(tmp_path / "no")) == f"no such file or folder: {tmp_path / 'no'}\nCheck the path."
    assert str(failure(tmp_path)).startswith(
        f"no .txt file in the folder {tmp_path}\nExpected a folder of .txt files"
    )
    docx = write(tmp_path / "t.docx", "x")
    assert failure(docx).message == f"{docx}: unknown text format '.docx'"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (".jsonl", "{bad", ":1: not JSON: Expecting property name enclosed in double quotes"),
        (".jsonl", "\n" + "[" * 100_000, ":2: not JSON: "),
        (".jsonl", '{"text": "x"}', ":1: 'class': Field required"),
        (".jsonl", '{"class": "a", "text": 3}', ":1: 'text': Input should be a valid string"),
        (".jsonl", '{"class": "", "text": "x"}', ":1: the class name is empty"),
        (".json", "[]", ": Input should be a valid dictionary"),
        (".json", '{"a": 3}', ": 'a': Input should be a valid list"),
        (".json", '{"a": ["x", null]}', ": 'a': 1: Input should be a valid string"),
        (".json", '{"a": ["x"],\n "a": ["y"]}', ": not JSON: 'a' occurs twice"),
        (".json", '{"class": "a"}\n{"class": "b"}', ": not JSON: Extra data: line 2 column 1"),
        (".csv", "name,text\na,b\n", ": no column 'class'; it has 'name', 'text'"),
        (".csv", "", ": no column 'class'; it has none"),
        (".csv", "class,text\nowl,It hoots, loudly.\n", ":2: 3 fields, the header has 2"),
        (".csv", 'class,text\n"owl\n', ":2: not CSV: unexpected end of data"),
        (".csv", f"class,text\nowl,{'x' * 200_000}\n", ":2: not CSV: field larger than field limit (131072)"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Each kind is an error that says where, and has a hint."""
    error = failure(write(tmp_path / f"t{name}", content))
    assert error.message.startswith(f"{tmp_path / 't'}{name}{message}")
    assert error.hint


def test_bad_parquet(tmp_path: Path) -> None:
    """A file that is none, lacks a column, or has a column of another type."""
    path = write(tmp_path / "t.parquet", b"PAR1 not really")
    assert failure(path).message.startswith(f"{path}: not a readable Parquet file: ")
    pq.write_table(pa.table({"class": ["a"], "caption": ["b"]}), path)
    assert failure(path).message == f"{path}: no column 'text'; it has 'class', 'caption'"
    pq.write_table(pa.table({"class": ["a", "b"], "text": pa.array([1, 2])}), path)
    assert failure(path).message == f"{path}#0: 'text': Input should be a valid string"


@pytest.mark.parametrize("name", ["t.csv", "owl.txt"])
def test_other_encodings_are_named(tmp_path: Path, name: str) -> None:
    """Text that is not UTF-8 is refused with the byte, its place and the command that converts it."""
    path = write(tmp_path / name, "cafébar".encode("latin-1"))
    where = f"{path}:1" if name == "t.csv" else str(path)
    assert str(failure(path)).startswith(
        f"{where}: not UTF-8 text (byte 0xe9 at position 3)\nConvert it first: iconv -f ENCODING -t UTF-8 FILE > NEW"
    )


def test_text_about_one_class(tmp_path: Path) -> None:
    """A plain file for `classes add`, and its failures."""
    path = write(tmp_path / "any.md", "It hoots. It flies.")
    assert [(r.class_name, r.text, r.source) for r in class_sentences(path, "owl")[0]] == [
        ("owl", "It hoots.", "any.md"),
        ("owl", "It flies.", "any.md"),
    ]
    write(path, "\n")
    with pytest.raises(InputError) as caught:
        class_sentences(path, "owl")
    empty = f"{path} holds no sentence about 'owl' ({path}: the text is empty)"
    assert caught.value.message == empty
    with pytest.raises(InputError, match="cannot read"):
        class_sentences(tmp_path, "owl")


def test_a_file_that_names_classes_tells_of_one(tmp_path: Path) -> None:
    """JSON, a JSON list, JSONL and CSV are read as such; of several classes the one asked for is taken."""
    found = {
        "a.json": '{"Owl": ["It hoots.", "It flies."], "tit": ["It sings."]}',
        "b.json": '["It hoots.", "It flies."]',
        "c.jsonl": '{"class": "owl", "text": "It hoots. It flies."}\n{"class": "tit", "text": "It sings."}\n',
        "d.csv": "class,text\nowl,It hoots. It flies.\n",
    }
    for name, content in found.items():
        path = write(tmp_path / name, content)
        assert [r.text for r in class_sentences(path, "owl")[0]] == ["It hoots.", "It flies."], name
    with pytest.raises(InputError) as caught:
        class_sentences(tmp_path / "a.json", "wren")
    assert caught.value.message == f"{tmp_path / 'a.json'} holds no sentence about 'wren'; it is about 'Owl'"
    path = write(tmp_path / "d.csv", f"class,text\nowl,It hoots.\nOwl,{'hu ' * 2000}\ntit,\n")
    (one,), (left,) = class_sentences(path, "owl")
    assert (one.text, left.where) == ("It hoots.", f"{path}:3")
    assert left.why == "a piece of 5,999 characters without an end of sentence"
    with pytest.raises(InputError) as caught:
        class_sentences(path, "tit")
    assert caught.value.message == f"{path} holds no sentence about 'tit' ({path}:4: the text is empty)"


def test_what_a_folder_of_texts_leaves_out(tmp_path: Path) -> None:
    """Files of other kinds, with the command for those that name their classes, empty and hidden ones, links away."""
    secret = write(tmp_path / "secret.txt", "Secret.")
    folder = tmp_path / "texts"
    write(folder / "owl.txt", "It hoots.")
    write(folder / "more.json", "{}")
    write(folder / "notes.docx", "x")
    write(folder / "tit.TXT", "It sings.")
    write(folder / ".hidden.json", "{}")
    write(folder / ".ipynb_checkpoints" / "tench.txt", "It swims.")
    write(folder / "wren.txt", " \n")
    (folder / "link.txt").symlink_to(secret)
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))
    odd.write_text("It is open.", encoding="utf-8")
    assert records(folder) == [("owl", "It hoots.")]
    json_file = folder / "more.json"
    assert dict(left_out(folder)) == {
        str(json_file): f"of a folder, .txt files are read; take it by itself: vlltr ingest text {json_file}",
        str(folder / "notes.docx"): "of a folder, .txt files are read",
        str(folder / "tit.TXT"): "of a folder, .txt files are read",
        str(folder / "loop.txt"): "no such file",
        str(folder / "link.txt"): "a link that leaves the folder",
        str(folder / "wren.txt"): "the text is empty",
        str(odd): "its name is not UTF-8",
    }


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in it would be missing without a word."""
    write(tmp_path / "owl.txt", "It hoots.")
    closed = tmp_path / "wren"
    write(closed / "a.txt", "It sings.")
    forbid(monkeypatch, closed)
    with pytest.raises(InputError, match=rf"cannot read the folder {closed}: Permission denied"):
        records(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_is_no_text(tmp_path: Path) -> None:
    """It never ends."""
    with pytest.raises(InputError, match="cannot read /dev/zero: it is a device or a pipe"):
        list(class_sentences(Path("/dev/zero"), "owl"))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=json_values | st.fixed_dictionaries({"class": json_values, "text": json_values}))
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_any_json_is_read_or_refused(
    value: Any, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever JSON comes, readers hand out clean records or raise InputError, nothing else."""
    path = write(tmp_path_factory.getbasetemp() / f"any{suffix}", json.dumps(value))
    try:
        found = list(read_text(path))
    except InputError as error:
        message, found = error.message, []
    else:
        message = str(path)
    assert str(path) in message
    for record in found:
        if isinstance(record, SentenceRecord):
            assert record.text
            assert record.class_name == normalise_text(record.class_name) != ""


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60))
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".txt"])
def test_any_bytes_are_read_or_refused(
    data: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes a file holds, the only error is InputError."""
    path = write(tmp_path_factory.getbasetemp() / f"bytes{suffix}", data)
    with suppress(InputError):
        list(read_text(path))
