"""Readers of texts: folders of .txt, JSONL, JSON, CSV, TSV, Parquet, and the release's corpus.

The VL-LTR release's text corpus is `wiki/desc_<class number>.txt` beside `labels.txt` or `categories.json`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, Field

from vlltr_index.data.files import (
    checked,
    decode,
    files_below,
    kept_ref,
    parse_json,
    read_bytes,
    read_json,
    read_lines,
    read_rows,
    require,
    unfit,
)
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.data.text import MAX_SENTENCE, clean_name, folded, normalise_text, split_sentences
from vlltr_index.data.wikipedia_text import DROPPED_SECTIONS, sections
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord, Skipped

_log = logging.getLogger(__name__)

_JSON_EXAMPLE = (
    'Expected {"tench": ["A tench is a fish.", ...], ...}; if every line is an object, name it .jsonl'
)
_ROW_EXAMPLE = 'For example: {"class": "tench", "text": "A tench is a fish.", "source": "my notes"}'
_FORMATS = (
    'Expected a folder of .txt files (one a class), .jsonl ({"class": ..., "text": ...} a line), '
    ".json ({class: [sentence, ...]}), .csv, .tsv or .parquet with the columns class and text."
)
_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".parquet")
_DESC = re.compile(r"desc_(\d{1,9})\.txt")
_LICENCE = "CC BY-SA (Wikipedia)"
_LABELS = ("labels.txt", "categories.json")
_Items = Iterator[SentenceRecord | Skipped]


class _Row(BaseModel):
    """A row of a table, or a line of JSONL."""

    name: str = Field(alias="class")
    text: str
    source: str | None = None
    source_ref: str | None = None
    licence: str | None = None


def read_text(path: Path, names: ClassNames | None = None) -> _Items:
    """Yield the sentences of a source.

    Texts in .txt, JSONL, CSV, TSV and Parquet are split into sentences; a JSON list has sentences already. A .txt file
    has the name of its class; files in a subfolder belong to the class with the subfolder's name. A folder with
    `desc_<class number>.txt`, in it or in its subfolder `wiki`, is a release's corpus: see `read_release_corpus`. Empty
    texts, empty classes and pieces longer than 4,000 characters are yielded as `Skipped`. The default of a sentence's
    source is the name of the folder or file.

    Args:
        path: A folder or a file.
        names: Names of the class numbers of a release's corpus; None: those in a file beside it.

    Raises:
        InputError: The path is missing, of no known format, or something in it is malformed; the message names file and
            line.
    """
    if not require(path).is_dir():
        yield from _read_file(path)
    elif is_release_corpus(path):
        yield from read_release_corpus(path, names or names_beside(path))
    else:
        yield from _read_folder(path)


def class_sentences(path: Path, class_name: str) -> tuple[list[SentenceRecord], list[Skipped]]:
    """Read the sentences of one class from a file: plain text, a JSON list of sentences, or a format of `read_text`.

    If the file names classes, only what is about `class_name` is returned, whatever its case; pieces that were left
    out come second.

    Raises:
        InputError: The file is missing or malformed, or has no sentence about the class.
    """
    name = clean_name(class_name, "--text")
    found = list(_read_file(require(path), name))
    ours = [item for item in found if folded(str(item.class_name)) == folded(name)]
    sentences = [item for item in ours if isinstance(item, SentenceRecord)]
    skipped = [item for item in ours if isinstance(item, Skipped)]
    if not sentences:
        why = f"; it is about {found[0].class_name!r}" if found else ""
        if skipped:
            why = f" ({skipped[0].where}: {skipped[0].why})"
        raise InputError(
            f"{path} holds no sentence about {name!r}{why}",
            "Write a few into it, or name the class as the file does.",
        )
    return sentences, skipped


def sentences_about(
    class_name: str, given: Iterable[str], path: Path | None
) -> tuple[list[SentenceRecord], list[Skipped]]:
    """Collect the sentences of one class, each of those `given` as it is, and those of a file by `class_sentences`.

    Raises:
        InputError: One that was given is too long for a sentence; else as for `class_sentences`.
    """
    sentences = [SentenceRecord(class_name, text, "given") for text in map(normalise_text, given) if text]
    for one in sentences:
        if len(one.text) > MAX_SENTENCE:
            raise InputError(
                f"class {class_name!r}: {one.text[:40]!r} ... has {len(one.text):,} characters;"
                f" a sentence has {MAX_SENTENCE:,} at most",
                "Give its sentences one by one, or as a file, which is split: --text FILE",
            )
    if path is None:
        return sentences, []
    read, skipped = class_sentences(path, class_name)
    return sentences + read, skipped


def _read_file(path: Path, name: str | None = None) -> _Items:
    """Yield the sentences of a file, about the classes that it names or, if it names none, about the class `name`."""
    kind = path.suffix.lower()
    source = path.name
    if kind == ".json":
        kinds = dict[str, list[str] | str]
        values = read_json(path, list[str] | kinds if name else kinds, _JSON_EXAMPLE)
        for key, texts in values.items() if isinstance(values, dict) else [(str(name), values)]:
            where = f"{path}: class {key[:60]!r}"
            yield from _sentences(texts, clean_name(key, where), source, where)
    elif kind in _LINES:
        for where, line in read_lines(path):
            if line.strip():
                yield from _row(parse_json(line, _Row, where, _ROW_EXAMPLE), source, where)
    elif kind in _TABLES:
        for where, row in read_rows(path, ("class", "text"), ("source", "source_ref", "licence")):
            yield from _row(checked(row, _Row, where, _ROW_EXAMPLE), source, where)
    elif name or kind == ".txt":
        text = decode(read_bytes(path), str(path))
        ref = None if name else path.name
        yield from _sentences(
            text, name or clean_name(path.stem, str(path)), source, where=str(path), ref=ref
        )
    else:
        raise InputError(f"{path}: unknown text format {path.suffix!r}", _FORMATS)


def _row(row: _Row, source: str, where: str) -> _Items:
    """Yield the sentences of a row; `source` is the default."""
    own = normalise_text(row.source or "") or source
    name = clean_name(row.name, where)
    return _sentences(
        row.text, name, own, where=where, ref=row.source_ref or None, licence=row.licence or None
    )


def _sentences(
    text: str | list[str],
    name: str,
    source: str,
    where: str,
    ref: str | None = None,
    licence: str | None = None,
) -> _Items:
    """Yield the sentences of one class, from a text or a list of sentences."""
    sentences = split_sentences(text) if isinstance(text, str) else list(map(normalise_text, text))
    if not any(sentences):
        yield Skipped(where, "the text is empty", class_name=name)
    for sentence in filter(None, sentences):
        if len(sentence) > MAX_SENTENCE:
            why = f"a piece of {len(sentence):,} characters without an end of sentence"
            yield Skipped(where, why, class_name=name)
        else:
            yield SentenceRecord(
                class_name=name, text=sentence, source=source, source_ref=ref, licence=licence
            )


def _read_folder(folder: Path) -> _Items:
    """Yield the sentences of a folder of .txt files, and its other files as `Skipped`."""
    root = folder.resolve()
    there = [(folder / name, why) for name, why in files_below(root)]
    files = [(file, why) for file, why in there if file.suffix == ".txt"]
    if not files:
        raise InputError(f"no .txt file in the folder {folder}", _FORMATS)
    for file, _ in there:
        if file.suffix != ".txt" and file.parent == folder:
            why = "of a folder, .txt files are read"
            if file.suffix.lower() in (".json", *_LINES, *_TABLES):
                why += f"; take it by itself: vlltr ingest text {shlex.quote(str(file))}"
            yield Skipped(str(file), why)
    for file, why in files:
        parts = file.relative_to(folder).parts
        if why:
            yield Skipped(str(file), why, kept_ref("/".join(parts), why))
            continue
        name = clean_name(file.stem if len(parts) == 1 else parts[0], str(file))
        text = decode(read_bytes(file), str(file))
        yield from _sentences(text, name, root.name, where=str(file), ref="/".join(parts))


def is_release_corpus(folder: Path) -> bool:
    """Say whether `folder`, or its subfolder `wiki`, holds `desc_<number>.txt`."""
    return bool(_descriptions(folder)[1])


def _descriptions(folder: Path) -> tuple[Path, dict[int, Path]]:
    """Find the folder of a corpus's texts, and the file of each class number."""
    for place in (folder / "wiki", folder):
        files = sorted(place.iterdir()) if place.is_dir() else ()
        found = dict[int, Path]()
        for path in files:
            match = _DESC.fullmatch(path.name)
            if match:
                found[int(match[1])] = path
        if found:
            return place, found
    return folder, {}


def names_beside(folder: Path) -> ClassNames:
    """Read the class names beside a corpus, from `labels.txt` or `categories.json`.

    Raises:
        InputError: Neither file exists, or it is malformed.
    """
    place, _ = _descriptions(folder)
    for near in (place, place.parent):
        for name in _LABELS:
            if (near / name).is_file():
                return read_class_names(near / name)
    raise InputError(
        f"{folder} holds texts by class number, and no {' or '.join(_LABELS)} that names the classes",
        "Name the file: vlltr ingest text PATH --names FILE",
    )


def read_release_corpus(folder: Path, names: ClassNames) -> _Items:
    """Yield a corpus's sentences, class by class, each with its file and section.

    Sections such as References are left out with all their subsections. A file that is not UTF-8 is read as GBK. A
    class without a file, and an empty file, are yielded as `Skipped`.

    Raises:
        InputError: A file's number has no name, or a file is neither UTF-8 nor GBK.
    """
    place, files = _descriptions(folder)
    for number, path in files.items():
        names.name(number, str(path))
    gbk = 0
    for number, name in enumerate(names.names):
        path = files.get(number, place / f"desc_{number}.txt")
        why = unfit(str(path), folder.resolve())
        if why:
            there = kept_ref(path.name, why) if os.path.lexists(path) else None
            yield Skipped(str(path), f"{why}: the class {name!r} has no text here", there)
            continue
        data = read_bytes(path)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = _from_gbk(data, path)
            gbk += 1
        found: list[SentenceRecord | Skipped] = []
        for heading, body in sections(text, DROPPED_SECTIONS["en"]):
            ref = path.name + (f"#{heading}" if heading else "")
            if body.strip():
                found += _sentences(body, name, "wikipedia", where=str(path), ref=ref, licence=_LICENCE)
        yield from found or _sentences("", name, "", str(path))
    if gbk:
        _log.info("%s: %s files are not UTF-8 and were read as GBK", place, f"{gbk:,}")


def _from_gbk(data: bytes, path: Path) -> str:
    """Decode GBK text."""
    try:
        return data.decode("gbk")
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: neither UTF-8 nor GBK text",
            f"Convert it first: iconv -f ENCODING -t UTF-8 '{path}' > NEW, then put NEW in its place.",
        ) from None
