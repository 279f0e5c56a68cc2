"""The VL-LTR release's text corpus: `wiki/desc_<class number>.txt` beside `labels.txt` or `categories.json`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from vlltr_index.data.files import read_bytes, require
from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.data.text import MAX_SENTENCE, split_sentences
from vlltr_index.data.wikipedia_text import DROPPED_SECTIONS, sections
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import SentenceRecord, Skipped

__all__ = ["is_release_corpus", "names_beside", "read_release_corpus"]

_log = logging.getLogger(__name__)

_DESC = re.compile(r"desc_(\d{1,9})\.txt")
_LICENCE = "CC BY-SA (Wikipedia)"
_MAX_TXT = 64 * 2**20
_LABELS = ("labels.txt", "categories.json")


def is_release_corpus(folder: Path) -> bool:
    """Whether `folder`, or its subfolder `wiki`, holds `desc_<number>.txt`."""
    return _folder(folder) is not None


def _folder(folder: Path) -> Path | None:
    for place in (folder / "wiki", folder):
        if place.is_dir() and any(_DESC.fullmatch(p.name) for p in place.iterdir()):
            return place
    return None


def names_beside(folder: Path) -> ClassNames:
    """The class names that lie beside a corpus: `labels.txt` or `categories.json`.

    Raises:
        InputError: If neither is there, or it is malformed.
    """
    place = _folder(folder) or folder
    for candidate in (folder / n for folder in (place, place.parent) for n in _LABELS):
        if candidate.is_file():
            return read_class_names(candidate)
    raise InputError(
        f"{folder} holds texts by class number, and no {' or '.join(_LABELS)} that names the classes",
        "Name the file: vlltr ingest text PATH --names FILE",
    )


def read_release_corpus(
    folder: Path, names: ClassNames, source: str | None = None
) -> Iterator[SentenceRecord | Skipped]:
    """Stream a corpus's sentences, class by class; each names its file and section.

    Sections such as References are left out with all that lies below them. A file that is not UTF-8 is read as GBK.
    A class without a file, and an empty file, are handed out as `Skipped`.

    Raises:
        InputError: If there is no text, a file's number has no name, or a file is neither UTF-8 nor GBK.
    """
    place = _folder(require(folder))
    if place is None:
        raise InputError(f"no desc_<class number>.txt in {folder}", "Unpack the release's text corpus there.")
    root = folder.resolve()
    files = {int(m[1]): p for p in sorted(place.iterdir()) if (m := _DESC.fullmatch(p.name))}
    for number, path in sorted(files.items()):
        names.name(number, str(path))
        if not path.resolve().is_relative_to(root):
            raise InputError(f"{path} is a link that leaves the folder {root}", "Copy the file there.")
    other = 0
    for number, name in enumerate(names.names):
        path = files.get(number, place / f"desc_{number}.txt")
        if number not in files:
            yield Skipped(str(path), f"no such file: the class {name!r} has no text here")
            continue
        text, is_gbk = _text(path)
        other += is_gbk
        yield from _sentences(text, name, path, source or "wikipedia")
    if other:
        _log.info("%s: %s files are not UTF-8 and were read as GBK", place, f"{other:,}")


def _text(path: Path) -> tuple[str, bool]:
    data = read_bytes(path, _MAX_TXT)
    for encoding in ("utf-8-sig", "gbk"):
        try:
            return data.decode(encoding), encoding == "gbk"
        except UnicodeDecodeError:
            continue
    raise InputError(
        f"{path}: neither UTF-8 nor GBK text",
        f"Convert it first: iconv -f ENCODING -t UTF-8 '{path}' > NEW, then put NEW in its place.",
    )


def _sentences(text: str, name: str, path: Path, source: str) -> Iterator[SentenceRecord | Skipped]:
    found = False
    for heading, body in sections(text, DROPPED_SECTIONS["en"]):
        ref = path.name + (f"#{heading}" if heading else "")
        for sentence in split_sentences(body):
            found = True
            if len(sentence) > MAX_SENTENCE:
                yield Skipped(
                    str(path), f"a piece of {len(sentence):,} characters without an end of sentence"
                )
            else:
                yield SentenceRecord(name, sentence, source, ref, _LICENCE)
    if not found:
        yield Skipped(str(path), f"the text is empty: the class {name!r} has no text here")
