"""Names of numbered classes: the files that the benchmarks and their text corpora bring."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlltr_index.data.files import read_lines, read_whole, require
from vlltr_index.data.text import clean_name
from vlltr_index.errors import InputError

__all__ = ["ClassNames", "category_names", "read_class_names", "read_json_file"]

_MAX_JSON = 1024 * 2**20
_WORDNET = re.compile(r"(n\d{8})[\s,:]+(?:(\d+)\s+(?=\S+$))?(\S.*)")
_NUMBERED = re.compile(r"(\S+)\s+(?:(\S.*)\s)?(\d{1,9})")
_INITIAL = re.compile(r"/[a-z]/")  # as in /a/airfield
_CATEGORIES = 'Expected iNaturalist\'s categories.json: [{"id": 0, "name": "Acer rubrum"}, ...]'
_LAYOUTS = (
    "Give one class name a line (line 1 names label 0), lines such as `n01440764 tench` or `airfield 0`, "
    "or iNaturalist's categories.json."
)


@dataclass(frozen=True)
class ClassNames:
    """Names of the labels 0, 1, 2 ...

    Attributes:
        names: The name of each label, all different.
        aliases: Other names of each label, none of them of two labels: WordNet ids, folder names.
        keys: What a label's class is called in paths, where the file says so: WordNet ids; else empty.
        where: The file they were read from.
    """

    names: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...] = ()
    where: str = "the names"

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        aliases: Iterable[Iterable[str]] | None = None,
        keys: Sequence[str] = (),
        where: str = "the names",
    ) -> ClassNames:
        """Names in the order of the labels; aliases that would stand for two labels are dropped.

        Two classes of one name (ImageNet has two cranes) are told apart by their key: `crane (n02012849)`.

        Raises:
            InputError: If two have one name and there are no keys.
        """
        given = tuple(names)
        if not given:
            raise InputError(f"{where} is empty", _LAYOUTS)
        given = _distinct(given, tuple(keys), where)
        others = [tuple(a) for a in aliases] if aliases is not None else [()] * len(given)
        taken: dict[str, int] = {name.casefold(): 2 for name in given}
        for alias in (a for row in others for a in {a.casefold() for a in row}):
            taken[alias] = taken.get(alias, 0) + 1
        kept = tuple(tuple(a for a in row if taken[a.casefold()] == 1) for row in others)
        return cls(given, kept, tuple(keys), where)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, label: int, where: str) -> str:
        """The name of a label.

        Raises:
            InputError: If there is none; `where` says where the label stands.
        """
        if not 0 <= label < len(self.names):
            raise InputError(
                f"{where}: the label {label} has no name: there are {len(self.names):,}, from 0",
                "Give a file that names every class: --names FILE",
            )
        return self.names[label]


def _distinct(names: tuple[str, ...], keys: tuple[str, ...], where: str) -> tuple[str, ...]:
    places: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        places.setdefault(name.casefold(), []).append(label)
    result = list(names)
    for labels in (found for found in places.values() if len(found) > 1):
        if not keys:
            first, second = labels[:2]
            raise InputError(
                f"{where}: the labels {first} and {second} have one name, {names[second]!r}",
                "Give every class a name of its own, such as 'crane (bird)' and 'crane (machine)'.",
            )
        for label in labels:
            result[label] = f"{names[label]} ({keys[label]})"
    return tuple(result)


def read_class_names(path: Path) -> ClassNames:
    """Read a file of class names.

    Known are: one name a line, in the order of the labels; `n01440764 tench` and `n01440764 449 tench` (labels
    go by WordNet id, whatever the order of the lines); `airfield 0` (places, with `_`, `/` or a leading `/a/`), or
    `airfield airfield` in the order of the labels, as LIFT has it; a JSON list of {"id", "name"}, or an object that
    has it as `categories`. In all but the first, `_` stands for a space, and what the file calls a class otherwise
    becomes an alias.

    Raises:
        InputError: If the file is missing, empty or malformed, a number is missing or doubled, or two classes
            have one name.
    """
    require(path)
    if path.suffix.lower() == ".json":
        return _from_json(path)
    lines = [(number, line.strip()) for number, line in read_lines(path)]
    while lines and not lines[-1][1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path} is empty", _LAYOUTS)
    wordnet = [_WORDNET.fullmatch(line) for _, line in lines]
    if all(wordnet):
        return _from_wordnet(path, [m.groups() for m in wordnet if m])
    if wordnet[0]:
        bad = next(number for (number, _), m in zip(lines, wordnet, strict=True) if not m)
        raise InputError(
            f"{path}:{bad}: expected a WordNet id and a name, as on line 1", "For example: n01440764 tench"
        )
    rows = _numbered_rows([line for _, line in lines])
    if rows:
        return _from_numbered(path, [name for name, _ in rows], [label for _, label in rows])
    return ClassNames.of((clean_name(line, f"{path}:{number}") for number, line in lines), where=str(path))


def _numbered_rows(lines: list[str]) -> list[tuple[str, int]]:
    """Name and number of each line (the first and the last field); empty where numbers are part of the names.

    Lines that all say one word twice, `airport_terminal airport_terminal`, are numbered by their place.
    """
    words = [line.split() for line in lines]
    if all(len(one) == 2 and one[0] == one[1] for one in words):
        return [(one[0], number) for number, one in enumerate(words)]
    found = [_NUMBERED.fullmatch(line) for line in lines]
    rows = [(m[1], int(m[3])) for m in found if m]
    names, labels = {name for name, _ in rows}, [label for _, label in rows]
    if len(rows) < len(lines) or len(names) < len(lines) or max(labels) > len(lines):
        return []
    exact = sorted(labels) == list(range(len(lines)))
    return rows if exact or not any(m[2] for m in found if m) else []


def _from_wordnet(path: Path, rows: list[tuple[str | Any, ...]]) -> ClassNames:
    rows = sorted(rows, key=lambda row: str(row[0]))
    ids = [str(row[0]) for row in rows]
    for one, other in pairwise(ids):
        if one == other:
            raise InputError(f"{path}: the WordNet id {one} occurs twice", "Give each class one line.")
    spoken = [_spoken(str(row[2])).split(", ") for row in rows]
    names = [clean_name(words[0], f"{path}: {i}") for i, words in zip(ids, spoken, strict=True)]
    aliases = [[i, *words[1:]] for i, words in zip(ids, spoken, strict=True)]
    return ClassNames.of(names, aliases, ids, str(path))


def _from_numbered(path: Path, raw: list[str], labels: list[int]) -> ClassNames:
    order = _order(labels, str(path))
    rows = [_INITIAL.sub("", raw[i], count=1) if _INITIAL.match(raw[i]) else raw[i] for i in order]
    names = [clean_name(_spoken(row.replace("/", " ")), f"{path}: class {n}") for n, row in enumerate(rows)]
    aliases = [{row, row.replace("/", "-")} - {name} for row, name in zip(rows, names, strict=True)]
    return ClassNames.of(names, [sorted(a) for a in aliases], where=str(path))


def _spoken(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _order(labels: list[int], where: str) -> list[int]:
    """Positions by label; the labels must be 0, 1, 2 ... without a gap."""
    place = {label: i for i, label in enumerate(labels)}
    if len(place) < len(labels):
        twice = next(label for i, label in enumerate(labels) if place[label] != i)
        raise InputError(f"{where}: the class number {twice} occurs twice", "Number the classes 0, 1, 2 ...")
    missing = next((n for n in range(len(labels)) if n not in place), None)
    if missing is not None:
        raise InputError(
            f"{where}: no class has the number {missing}; {len(labels):,} classes are numbered "
            f"0 to {len(labels) - 1:,}",
            "Number the classes 0, 1, 2 ..., without a gap.",
        )
    return [place[n] for n in range(len(labels))]


def read_json_file(path: Path, expected: str) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: If it cannot be read, is cut off or is not JSON; `expected` says what it should hold.
    """
    text = read_whole(path, _MAX_JSON)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        raise InputError(
            f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}"
            + ("; the file seems to be cut off" if cut else ""),
            "Fetch the file again: its download or unpacking broke off." if cut else expected,
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON: a number too long or too deeply nested", expected) from None


def _from_json(path: Path) -> ClassNames:
    value = read_json_file(path, _CATEGORIES)
    rows = value.get("categories") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} holds no list of categories", _CATEGORIES)
    return category_names(rows, str(path))


def category_names(rows: list[Any], where: str) -> ClassNames:
    """Names out of a list of {"id", "name"}; taxonomy beside them is left aside, as many classes share it.

    Raises:
        InputError: If an entry lacks one of the two, or the ids are not 0, 1, 2 ...
    """
    for n, row in enumerate(rows):
        if not (isinstance(row, dict) and _is_id(row.get("id")) and isinstance(row.get("name"), str)):
            raise InputError(f"{where}: category {n} has no whole number id and text name", _CATEGORIES)
    order = _order([row["id"] for row in rows], where)
    return ClassNames.of((clean_name(rows[i]["name"], f"{where}: category {i}") for i in order), where=where)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
