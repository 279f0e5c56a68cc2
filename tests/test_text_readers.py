"""Tests of the readers of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.data import files
from vlltr_index.data.text import normalise_text
from vlltr_index.data.text_readers import class_sentences, read_text
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord, Skipped


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def records(path: Path, source: str | None = None) -> list[tuple[str, str]]:
    """Class and text of everything a reader takes."""
    return [(r.class_name, r.text) for r in read_text(path, source) if isinstance(r, SentenceRecord)]


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
    assert {r.source for r in read_text(tmp_path, "mine") if isinstance(r, SentenceRecord)} == {"mine"}


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
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        lines = [mark.join(rows[0])]
        lines += [mark.join('"' + (v or "").replace('"', '""') + '"' for v in r.values()) for r in rows]
        write(tmp_path / f"t.{suffix}", "\r\n".join(lines))
    expected = [
        SentenceRecord("owl", "It hoots.", "book", "p. 3", "CC0-1.0"),
        SentenceRecord("owl", "It flies.", "book", "p. 3", "CC0-1.0"),
        SentenceRecord("tit", 'A "bird", small.', "book"),
    ]
    assert list(read_text(jsonl)) == expected
    assert list(read_text(tmp_path / "t.parquet")) == expected
    for suffix in ("csv", "tsv"):
        found = list(read_text(tmp_path / f"t.{suffix}"))
        assert [(r.class_name, r.text) for r in found if isinstance(r, SentenceRecord)] == [
            (r.class_name, r.text) for r in expected
        ]


def test_json_lists_hold_sentences_already(tmp_path: Path) -> None:
    """An item of a list is not split; a string is; an empty list or item is left out with its place."""
    path = write(
        tmp_path / "t.json",
        json.dumps({"a": ["It is small. See b.", " ", "X"], "b": "One. Two.", "empty": []}),
    )
    assert records(path) == [("a", "It is small. See b."), ("a", "X"), ("b", "One."), ("b", "Two.")]
    assert left_out(path) == [
        (f"{path}: class 'a', sentence 2", "the text is empty"),
        (f"{path}: class 'empty'", "the class has no sentence"),
    ]


def test_pieces_without_an_end_are_left_out(tmp_path: Path) -> None:
    """What is longer than any sentence is not handed to an encoder."""
    path = write(tmp_path / "t.jsonl", json.dumps({"class": "owl", "text": "hoo" * 2000 + "\n\nIt hoots."}))
    assert records(path) == [("owl", "It hoots.")]
    assert left_out(path) == [(f"{path}:1", "a piece of 6,000 characters without an end of sentence")]


def test_missing_and_unknown_sources(tmp_path: Path) -> None:
    """A missing path, a folder without text and an unknown ending: exact messages."""
    formats = (
        'Expected a folder of .txt files (one a class), .jsonl ({"class": ..., "text": ...} a line), '
        ".json ({class: [sentence, ...]}), .csv, .tsv or .parquet with the columns class and text."
    )
    assert str(failure(tmp_path / "no")) == f"no such file or folder: {tmp_path / 'no'}\nCheck the path."
    assert str(failure(tmp_path)) == f"no .txt file in the folder {tmp_path}\n{formats}"
    docx = write(tmp_path / "t.docx", "x")
    assert str(failure(docx)) == f"{docx}: unknown text format '.docx'\n{formats}"
    empty = write(tmp_path / "t.jsonl", "\n \n")
    assert str(failure(empty)) == f"{empty} is empty\n{formats}"
    assert failure(docx / "below").message == f"no such file or folder: {docx / 'below'}"


ROW = 'For example: {"class": "tench", "text": "A tench is a fish."}'


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "{bad",
            ":2: not JSON: Expecting property name enclosed in double quotes at column 2",
            "Mend this line.",
        ),
        ("[" * 100_000, ":2: not JSON: a number too long or too deeply nested", "Mend this line."),
        ('{"text": "x"}', ":2: no 'class'; the row has 'text'", ROW),
        ('{"class": "a", "text": 3}', ":2: 'text' must be a string, got a number", "Mend this row."),
        ('{"class": "", "text": "x"}', ":2: the class name is empty", "Give every row a class name."),
    ],
)
def test_bad_jsonl_lines(tmp_path: Path, line: str, message: str, hint: str | None) -> None:
    """Each kind of bad line is an error with file and line."""
    path = write(tmp_path / "t.jsonl", '{"class": "a", "text": "Fine."}\n' + line + "\n")
    error = failure(path)
    assert error.message == f"{path}{message}"
    assert hint is None or error.hint == hint


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("{}", ": no class in it", 'Expected {"tench": ["A tench is a fish.", ...], ...}'),
        ('{"a": 3}', ": class 'a': expected a list of sentences, got a number", None),
        ('{"a": ["x", null]}', ": class 'a', sentence 2: must be a string, got null", "Mend this sentence."),
        ('{"a": ["x"],\n "a": ["y"]}', ": class 'a' occurs twice", "Put all its sentences under one key."),
        ('{"a": ["x"],\n "b": [}', ":2: not JSON: Expecting value at column 8", None),
        (
            '{"class": "a"}\n{"class": "b"}',
            ":2: not JSON: Extra data at column 1",
            "If every line is an object of its own, name the file .jsonl",
        ),
    ],
)
def test_bad_json(tmp_path: Path, value: str, message: str, hint: str | None) -> None:
    """Each kind of bad file is an error that says where."""
    path = write(tmp_path / "t.json", value)
    error = failure(path)
    assert error.message == f"{path}{message}"
    assert hint is None or error.hint == hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,text\na,b\n", ": no column 'class'; it has 'name', 'text'"),
        ("", ": no column 'class' and no column 'text'; it has none"),
        ("class,text\nowl,It hoots, loudly.\n", ":2: 3 fields, the header has 2"),
        ('class,text\n"owl\n', ":2: not CSV: unexpected end of data"),
        (f"class,text\nowl,{'x' * 200_000}\n", ":2: not CSV: field larger than field limit (131072)"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str, message: str) -> None:
    """Missing columns, stray delimiters, open quotes and huge fields are errors with file and line."""
    path = write(tmp_path / "t.csv", content)
    assert failure(path).message == f"{path}{message}"


def test_bad_parquet(tmp_path: Path) -> None:
    """A file that is none, lacks a column, or has a column of another type."""
    path = write(tmp_path / "t.parquet", b"PAR1 not really")
    assert failure(path).message.startswith(f"{path}: not a readable Parquet file: ")
    pq.write_table(pa.table({"class": ["a"], "caption": ["b"]}), path)
    assert str(failure(path)) == (
        f"{path}: no column 'text'; it has 'class', 'caption'\n"
        "Name the columns class and text (and source, source_ref, licence, if you have them)."
    )
    pq.write_table(pa.table({"class": ["a", "b"], "text": pa.array([1, 2])}), path)
    assert failure(path).message == f"{path}#0: 'text' must be a string, got a number"


@pytest.mark.parametrize("name", ["t.csv", "owl.txt"])
def test_other_encodings_are_named(tmp_path: Path, name: str) -> None:
    """Text that is not UTF-8 is refused with the byte, its place and the command that converts it."""
    path = write(tmp_path / name, "cafébar".encode("latin-1"))
    where = f"{path}:1" if name == "t.csv" else str(path)
    assert str(failure(path)) == (
        f"{where}: not UTF-8 text (byte 0xe9 at position 3)\n"
        f"Convert it first: iconv -f ENCODING -t UTF-8 '{path}' > NEW   (often GBK, LATIN1 or CP1252)"
    )
    write(path, "owl".encode("utf-16"))
    assert str(failure(path)) == (
        f"{where}: not UTF-8 text (byte 0xff at position 0); it looks like UTF-16\n"
        f"Convert it first: iconv -f UTF-16 -t UTF-8 '{path}' > NEW"
    )


def test_endless_lines_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line or file beyond the limit is refused before it is held in memory."""
    path = write(tmp_path / "t.jsonl", "ok\n" + "x" * 3 * 2**20)
    lines = files.read_lines(path, 2**20)
    assert next(lines) == (1, "ok\n")
    with pytest.raises(InputError) as caught:
        next(lines)
    assert str(caught.value) == f"{path}:2: the line is longer than 1 MiB\nIs this a text file?"
    with pytest.raises(InputError) as caught:
        files.read_whole(path, 2**20)
    assert str(caught.value) == (
        f"{path} is larger than 1 MiB, the most that is read in one piece\n"
        'Write it as JSONL, one {"class": ..., "text": ...} a line.'
    )


def test_text_about_one_class(tmp_path: Path) -> None:
    """A plain file for `classes add`, and its failures."""
    path = write(tmp_path / "any.md", "It hoots. It flies.")
    assert [(r.class_name, r.text, r.source) for r in class_sentences(path, "owl")] == [
        ("owl", "It hoots.", "any.md"),
        ("owl", "It flies.", "any.md"),
    ]
    write(path, "\n")
    with pytest.raises(InputError) as caught:
        class_sentences(path, "owl")
    assert str(caught.value) == f"{path} holds no sentence\nWrite a few sentences about the class into it."
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
        assert [r.text for r in class_sentences(path, "owl")] == ["It hoots.", "It flies."], name
    with pytest.raises(InputError) as caught:
        class_sentences(tmp_path / "a.json", "wren")
    assert str(caught.value) == (
        f"{tmp_path / 'a.json'} says nothing about 'wren'; it is about 'Owl' and 1 more\n"
        "Name the class as the file does."
    )


def test_what_a_folder_of_texts_leaves_out(tmp_path: Path) -> None:
    """Files of other kinds, with the command for those that name their classes, empty ones, links that lead away."""
    secret = write(tmp_path / "secret.txt", "Secret.")
    folder = tmp_path / "texts"
    write(folder / "owl.txt", "It hoots.")
    write(folder / "more.json", "{}")
    write(folder / "notes.docx", "x")
    write(folder / "tit.TXT", "It sings.")
    write(folder / ".hidden.json", "{}")
    write(folder / "wren.txt", " \n")
    (folder / "link.txt").symlink_to(secret)
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    assert records(folder) == [("owl", "It hoots.")]
    json_file = folder / "more.json"
    assert dict(left_out(folder)) == {
        str(json_file): f"of a folder, .txt files are read; take it by itself: vlltr ingest text {json_file}",
        str(folder / "notes.docx"): "of a folder, .txt files are read",
        str(folder / "tit.TXT"): "of a folder, .txt files are read",
        str(folder / "loop.txt"): "not a file",
        str(folder / "link.txt"): "a link that leaves the folder",
        str(folder / "wren.txt"): "the text is empty",
    }


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
    try:
        list(read_text(path))
        message = str(path)
    except InputError as error:
        message = error.message
    assert str(path) in message
