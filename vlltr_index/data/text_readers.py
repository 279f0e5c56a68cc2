"""Description sources to sentence records: folders of .txt, JSONL, JSON, CSV, TSV, Parquet."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vlltr_index.data.files import read_delimited, read_lines, read_whole, require
from vlltr_index.data.names import ClassNames
from vlltr_index.data.release_texts import is_release_corpus, names_beside, read_release_corpus
from vlltr_index.data.text import MAX_SENTENCE, clean_name, normalise_text, split_sentences
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord, Skipped

__all__ = ["class_sentences", "read_json", "read_text"]

_MAX_TXT = 64 * 2**20
_MAX_JSON = 512 * 2**20
_JSON_EXAMPLE = 'Expected {"tench": ["A tench is a fish.", ...], ...}'
_KEYS = ("class", "text", "source", "source_ref", "licence")
_FORMATS = (
    'Expected a folder of .txt files (one a class), .jsonl ({"class": ..., "text": ...} a line), '
    ".json ({class: [sentence, ...]}), .csv, .tsv or .parquet with the columns class and text."
)


def read_text(
    path: Path, source: str | None = None, names: ClassNames | None = None
) -> Iterator[SentenceRecord | Skipped]:
    """Stream the sentences of a source.

    Texts in .txt, JSONL, CSV, TSV and Parquet are split into sentences; a JSON list holds sentences already. A
    .txt file is named after its class; those in a subfolder belong to the class the subfolder is named after. A
    folder with `desc_<class number>.txt` (or `wiki` in it) is a release's corpus: see `read_release_corpus`.
    Empty texts, empty classes and pieces longer than 4,000 characters are handed out as `Skipped`.

    Args:
        path: A folder or a file.
        source: Name of the source for records that do not bring one; default: the name of the folder or file.
        names: Names of the class numbers of a release's corpus; default: those that lie beside it.

    Raises:
        InputError: If the path is missing, of no known format, or something in it is malformed; the message names
            file and line.
    """
    require(path)
    if path.is_dir() and is_release_corpus(path):
        yield from read_release_corpus(path, names or names_beside(path), source)
        return
    if path.is_dir():
        yield from _read_folder(path, source or path.resolve().name)
        return
    reader = {".txt": _read_txt, **_NAMING}.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown text format {path.suffix!r}", _FORMATS)
    yield from reader(path, source or path.name)


def class_sentences(path: Path, class_name: str) -> list[SentenceRecord]:
    """The sentences of a file about one class: plain text, a JSON list of sentences, or a format of `read_text`.

    Of a file that names classes, those of `class_name` are taken, without regard to case.

    Raises:
        InputError: If the file is missing, is malformed, or holds no sentence about the class.
    """
    name = clean_name(class_name, "--text")
    found = [item for item in _items_about(require(path), name) if isinstance(item, SentenceRecord)]
    ours = [item for item in found if item.class_name.casefold() == name.casefold()]
    if found and not ours:
        others = list(dict.fromkeys(item.class_name for item in found))
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise InputError(
            f"{path} says nothing about {name!r}; it is about {others[0]!r}{more}",
            "Name the class as the file does.",
        )
    if not found:
        raise InputError(f"{path} holds no sentence", "Write a few sentences about the class into it.")
    return ours


def _items_about(path: Path, name: str) -> Iterator[SentenceRecord | Skipped]:
    """What a file says about classes that it names, or, where it names none, about the class `name`."""
    kind = path.suffix.lower()
    if kind == ".json" and path.is_file():
        values = read_json(path)
        is_list = isinstance(values, list)
        return (
            _json_list(values, name, path.name, str(path)) if is_list else _by_class(values, path, path.name)
        )
    if kind in _NAMING and path.is_file():
        return _NAMING[kind](path, path.name)
    return _split(read_whole(path, _MAX_TXT), name, path.name, None, None, str(path))


def _split(
    text: str, name: str, source: str, ref: str | None, licence: str | None, where: str
) -> Iterator[SentenceRecord | Skipped]:
    """The sentences of a text that belongs to one class."""
    sentences = split_sentences(text)
    if not sentences:
        yield Skipped(where, "the text is empty")
    for sentence in sentences:
        yield _sentence(sentence, name, source, ref, licence, where)


def _sentence(
    text: str, name: str, source: str, ref: str | None, licence: str | None, where: str
) -> SentenceRecord | Skipped:
    if len(text) > MAX_SENTENCE:
        return Skipped(where, f"a piece of {len(text):,} characters without an end of sentence")
    return SentenceRecord(name, text, source, ref, licence)


def _read_folder(folder: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    root = folder.resolve()
    files = sorted(p for p in folder.rglob("*.txt") if not p.name.startswith("."))
    if not files:
        raise InputError(f"no .txt file in the folder {folder}", _FORMATS)
    for file in sorted(folder.iterdir()):
        if file.suffix != ".txt" and not file.name.startswith(".") and file.is_file():
            why = "of a folder, .txt files are read"
            if file.suffix.lower() in _NAMING:
                why += f"; take it by itself: vlltr ingest text {shlex.quote(str(file))}"
            yield Skipped(str(file), why)
    for file in files:
        if not Path(os.path.realpath(file)).is_relative_to(root):
            yield Skipped(str(file), "a link that leaves the folder")
        elif not file.is_file():
            yield Skipped(str(file), "not a file")
        else:
            parts = file.relative_to(folder).parts
            name = file.stem if len(parts) == 1 else parts[0]
            yield from _file_text(file, name, source, "/".join(parts))


def _file_text(file: Path, name: str, source: str, ref: str | None) -> Iterator[SentenceRecord | Skipped]:
    name = clean_name(name, str(file))
    text = read_whole(file, _MAX_TXT)
    yield from _split(text, name, source, ref, None, str(file))


def _read_txt(path: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    yield from _file_text(path, path.stem, source, path.name)


def _read_jsonl(path: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    empty = True
    for number, line in read_lines(path):
        if not line.strip():
            continue
        empty = False
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not JSON: {error.msg} at column {error.colno}", "Mend this line."
            ) from None
        except (ValueError, RecursionError):
            raise InputError(
                f"{where}: not JSON: a number too long or too deeply nested", "Mend this line."
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: expected an object, got {_kind(row)}",
                'For example: {"class": "tench", "text": "A tench is a fish.", "source": "my notes"}',
            )
        yield from _row(row, source, where)
    if empty:
        raise InputError(f"{path} is empty", _FORMATS)


def _row(row: Mapping[str, Any], source: str, where: str) -> Iterator[SentenceRecord | Skipped]:
    """The sentences of a row with the keys class and text, and perhaps source, source_ref and licence."""
    for key in ("class", "text"):
        if key not in row:
            raise InputError(
                f"{where}: no {key!r}; the row has {', '.join(map(repr, row)) or 'nothing'}",
                'For example: {"class": "tench", "text": "A tench is a fish."}',
            )
    for key in _KEYS:
        optional = key not in ("class", "text")
        if not isinstance(row.get(key), str) and not (optional and row.get(key) is None):
            raise InputError(f"{where}: {key!r} must be a string, got {_kind(row[key])}", "Mend this row.")
    own = normalise_text(row.get("source") or "") or source
    yield from _split(
        row["text"], clean_name(row["class"], where), own, row.get("source_ref"), row.get("licence"), where
    )


def _kind(value: Any) -> str:
    """What a JSON value is, for a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")


def read_json(path: Path) -> Any:
    """The JSON in a file of texts by class.

    Raises:
        InputError: If it is not JSON or not UTF-8, or names a class twice.
    """
    try:
        return json.loads(read_whole(path, _MAX_JSON), object_pairs_hook=partial(_no_twins, path))
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data"
        raise InputError(
            f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}",
            "If every line is an object of its own, name the file .jsonl" if lines else _JSON_EXAMPLE,
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON: a number too long or too deeply nested", _JSON_EXAMPLE) from None


def _read_json(path: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    yield from _by_class(read_json(path), path, source)


def _by_class(values: Any, path: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    """The sentences of {class: [sentence, ...]} or {class: text}."""
    if not isinstance(values, dict) or not values:
        wrong = "no class in it" if values == {} else f"got {_kind(values)}"
        raise InputError(f"{path}: {wrong}", _JSON_EXAMPLE)
    for key, texts in values.items():
        where = f"{path}: class {key[:60]!r}"
        name = clean_name(key, where)
        if isinstance(texts, str):
            yield from _split(texts, name, source, None, None, where)
        elif isinstance(texts, list):
            yield from _json_list(texts, name, source, where)
        else:
            raise InputError(f"{where}: expected a list of sentences, got {_kind(texts)}", _JSON_EXAMPLE)


def _no_twins(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add
        raise InputError(f"{path}: class {twin!r} occurs twice", "Put all its sentences under one key.")
    return values


def _json_list(texts: list[Any], name: str, source: str, where: str) -> Iterator[SentenceRecord | Skipped]:
    if not texts:
        yield Skipped(where, "the class has no sentence")
    for number, text in enumerate(texts, 1):
        at = f"{where}, sentence {number}"
        if not isinstance(text, str):
            raise InputError(f"{at}: must be a string, got {_kind(text)}", "Mend this sentence.")
        cleaned = normalise_text(text)
        yield (
            _sentence(cleaned, name, source, None, None, at) if cleaned else Skipped(at, "the text is empty")
        )


def _read_csv(path: Path, source: str, delimiter: str) -> Iterator[SentenceRecord | Skipped]:
    hint = "Is a double quote left open? Write long texts as JSONL."
    for where, row in read_delimited(path, delimiter, _check_columns, "texts", hint):
        yield from _row(row, source, where)


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = [key for key in ("class", "text") if key not in columns]
    if missing:
        raise InputError(
            f"{path}: no column {' and no column '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, columns)) or 'none'}",
            "Name the columns class and text (and source, source_ref, licence, if you have them).",
        )


def _read_parquet(path: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            number = 0
            for batch in file.iter_batches(1000, columns=[key for key in _KEYS if key in names]):
                for row in batch.to_pylist():
                    yield from _row(row, source, f"{path}#{number}")
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}", "Write the file again.") from None


# Files that name their classes themselves, by their ending.
_NAMING: dict[str, Callable[[Path, str], Iterator[SentenceRecord | Skipped]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
