"""Names of numbered classes, read from the files of benchmarks and text corpora."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vlltr_index.data.files import checked, read_json, read_lines, require
from vlltr_index.data.text import clean_name, folded
from vlltr_index.errors import InputError

_WORDNET = re.compile(r"(n\d{8})[\s,:]+(?:(\d+)\s+(?=\S+$))?(\S.*)")
_NUMBERED = re.compile(r"(\S+)\s+(?:(\S.*)\s)?(\d{1,9})")
_INITIAL = re.compile(r"\A/[a-z]/")  # as in /a/airfield
_CATEGORIES = 'Expected iNaturalist\'s categories.json: [{"id": 0, "name": "Acer rubrum"}, ...]'
_LAYOUTS = (
    "Give one class name a line (line 1 names label 0), lines such as `n01440764 tench` or `airfield 0`, "
    "or iNaturalist's categories.json; each class once, and with a name of its own."
)


@dataclass(frozen=True)
class ClassNames:
    """Names of the labels 0, 1, 2 ...

    Attributes:
        names: The name of each label, all different.
        aliases: Other names of each label, such as WordNet ids and folder names; none is an alias of two labels.
        where: The file that they were read from.
    """

    names: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    where: str = "the names"

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        aliases: Iterable[Iterable[str]] | None = None,
        keys: Sequence[str] = (),
        where: str = "the names",
    ) -> ClassNames:
        """Make it from names in the order of the labels; aliases of two labels are dropped.

        If two classes have one name (ImageNet has two cranes), their keys are added: `crane (n02012849)`.

        Raises:
            InputError: There is no name, or two classes have one name and there are no keys.
        """
        given = tuple(names)
        count = Counter(map(folded, given))
        if keys:
            given = tuple(
                f"{n} ({k})" if count[folded(n)] > 1 else n for n, k in zip(given, keys, strict=True)
            )
        taken = Counter(map(folded, given))
        if not given or len(taken) < len(given):
            twice = f": two labels have one name, {taken.most_common(1)[0][0]!r}" if given else " is empty"
            raise InputError(f"{where}{twice}", _LAYOUTS)
        others: list[tuple[str, ...]] = [() for _ in given]
        if aliases is not None:
            others = [tuple(row) for row in aliases]
        for row in others:
            taken.update({*map(folded, row)})
        unique = [tuple(alias for alias in row if taken[folded(alias)] == 1) for row in others]
        return cls(given, tuple(unique), where)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, label: int, where: str) -> str:
        """Return the name of a label.

        Raises:
            InputError: The label has no name; `where` is the label's place in the message.
        """
        if not 0 <= label < len(self.names):
            raise InputError(
                f"{where}: the label {label} has no name: there are {len(self.names):,}, from 0",
                "Give a file that names every class: --names FILE",
            )
        return self.names[label]


def read_class_names(path: Path) -> ClassNames:
    """Read a file of class names.

    These formats are known: one name per line, in the order of the labels; `n01440764 tench` and `n01440764 449 tench`
    (labels are in the order of WordNet ids, not of lines); `airfield 0` (Places, with `_`, `/` or a leading `/a/`), or
    `airfield airfield` in the order of the labels, as in LIFT; a JSON list of {"id", "name"}, or an object with this
    list as `categories`. In all but the first, `_` stands for a space, and other names of a class in the file become
    aliases.

    Raises:
        InputError: The file is missing, empty or malformed, a number is missing or occurs twice, or two classes have
            one name.
    """
    require(path)
    if path.suffix.lower() == ".json":
        return category_names(read_categories(path, Category), str(path))
    rows = [(line.strip(), where) for where, line in read_lines(path)]
    while rows and not rows[-1][0]:
        rows.pop()
    lines = [line for line, _ in rows]
    wordnet = [match.groups() for match in map(_WORDNET.fullmatch, lines) if match]
    if lines and len(wordnet) == len(lines):
        return _from_wordnet(str(path), sorted(wordnet))
    numbered = _numbered_rows(lines) if lines else []
    if numbered:
        return _from_numbered(str(path), numbered)
    return ClassNames.of((clean_name(*row) for row in rows), where=str(path))


def _numbered_rows(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Read number and name of each line, its last and first field; return none if the numbers are part of the names.

    If all lines have one word twice, `airport_terminal airport_terminal`, they are numbered in their order.
    """
    words = [line.split() for line in lines]
    if all(len(one) == 2 and one[0] == one[1] for one in words):
        return [(number, one[0]) for number, one in enumerate(words)]
    found = [m for m in map(_NUMBERED.fullmatch, lines) if m]
    rows = [(int(m[3]), m[1]) for m in found]
    if len({name for _, name in rows}) < len(lines) or max(rows)[0] > len(lines):
        return []
    exact = sorted(label for label, _ in rows) == list(range(len(lines)))
    return rows if exact or not any(m[2] for m in found) else []


def _from_wordnet(where: str, rows: Sequence[Sequence[str]]) -> ClassNames:
    """Make names from rows of WordNet id, number and words; the first word is the name."""
    ids = [row[0] for row in rows]
    if len(set(ids)) < len(ids):
        raise InputError(f"{where}: a WordNet id occurs twice", _LAYOUTS)
    spoken = [_spoken(row[2]).split(", ") for row in rows]
    names = [clean_name(words[0], f"{where}: {i}") for i, words in zip(ids, spoken, strict=True)]
    return ClassNames.of(names, [[i, *words[1:]] for i, words in zip(ids, spoken, strict=True)], ids, where)


def _from_numbered(where: str, numbered: Sequence[tuple[int, str]]) -> ClassNames:
    """Make names from numbered names of places, whose folder names become aliases."""
    rows = [_INITIAL.sub("", raw) for raw in _in_order(numbered, where)]
    names = [clean_name(_spoken(row.replace("/", " ")), f"{where}: class {n}") for n, row in enumerate(rows)]
    aliases = [sorted({row, row.replace("/", "-")} - {name}) for row, name in zip(rows, names, strict=True)]
    return ClassNames.of(names, aliases, where=where)


def _spoken(name: str) -> str:
    """Replace underscores by spaces."""
    return " ".join(name.replace("_", " ").split())


def _in_order(numbered: Sequence[tuple[int, str]], where: str) -> list[str]:
    """Return names in the order of their numbers, which must be 0, 1, 2 ... without a gap."""
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        raise InputError(
            f"{where}: {len(numbers):,} classes are not numbered 0 to {len(numbers) - 1:,}, each once",
            _LAYOUTS,
        )
    return [name for _, name in sorted(numbered)]


class Category(BaseModel):
    """A class in a JSON file like COCO's; the ranks beside the name are ignored, since many classes share them."""

    id: int
    name: str


def read_categories(path: Path, kind: Any) -> list[Any]:
    """Read the categories in a JSON file, a list or an object with the list as `categories`, each checked as `kind`.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    value = read_json(path, Any, _CATEGORIES)
    rows = value.get("categories") if isinstance(value, dict) else value
    found: list[Any] = checked(rows, list[kind], str(path), _CATEGORIES)
    return found


def category_names(rows: Iterable[Category], where: str) -> ClassNames:
    """Make names from categories, in the order of their ids.

    Raises:
        InputError: The ids are not 0, 1, 2 ...
    """
    names = _in_order([(row.id, row.name) for row in rows], where)
    return ClassNames.of((clean_name(n, f"{where}: category {i}") for i, n in enumerate(names)), where=where)
