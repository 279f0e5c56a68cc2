"""Readers of files that say how common classes are, everywhere or by place and month, and where pictures were taken."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlltr_index.data.files import read_json, read_rows, require
from vlltr_index.data.objects import is_address
from vlltr_index.data.text import clean_name
from vlltr_index.errors import InputError

_FORMATS = (
    "Give a .csv, .tsv or .parquet with the columns class and weight (and place, month or both for vlltr predict), or a"
    ' .json such as {"kestrel": 120, "merlin": 3};'
    " only ratios of weights matter. Classes that cannot occur are left out by: --only"
)
_TAKEN = "Give a .csv, .tsv or .parquet with the column image, and place, month (1 to 12, or a date) or both."
_TABLES = (".csv", ".tsv", ".parquet")
_DATE = re.compile(r"[0-9]{4}[-:/]([0-9]{1,2})\b.*")
_MOST = 1e100  # weights of a class are added up, over places and months
_RARER = 0.5  # weight of a class that a place and month does not name, as a share of the least weight there


class Situation(NamedTuple):
    """Where and when: a place, and a month from 1 to 12; None where it is not known, or makes no difference."""

    place: str | None = None
    month: int | None = None


@dataclass(frozen=True)
class Frequencies:
    """How common classes are.

    Attributes:
        weights: A weight above 0 for each class name, over all places and months.
        situated: The same for each place and month that the file tells apart; empty where it tells none.
    """

    weights: Mapping[str, float]
    situated: Mapping[Situation, Mapping[str, float]] = field(default_factory=dict)

    @property
    def by_place(self) -> bool:
        """Whether places are told apart."""
        return any(situation.place is not None for situation in self.situated)

    @property
    def by_month(self) -> bool:
        """Whether months are told apart."""
        return any(situation.month is not None for situation in self.situated)


def read_frequencies(path: Path) -> Frequencies:
    """Read how common classes are.

    With a column `place`, `month` or both a class may have rows for each, which are added up. One without a row at a
    place and month that others have, or with the weight 0, has half the least weight there.

    Raises:
        InputError: The file is missing, empty or malformed, names a class twice, or a row lacks its place or month;
            the message names the line.
    """
    kind = require(path).suffix.lower()
    rows: Iterator[tuple[str, dict[str, Any]]]
    if kind == ".json":
        weights = read_json(path, dict[str, float], _FORMATS)
        rows = iter(
            (f"{path}: {name!r}", {"class": name, "weight": weight}) for name, weight in weights.items()
        )
    elif kind in _TABLES:
        rows = read_rows(path, ("class", "weight"), ("place", "month"))
    else:
        raise InputError(f"{path}: unknown format {kind!r} of the weights of classes", _FORMATS)
    found = _weights_by_situation(rows)
    if not any(found.values()):
        raise InputError(f"{path} names no class", _FORMATS)
    if set(found) == {Situation()}:
        return Frequencies(found[Situation()])
    whole: defaultdict[str, float] = defaultdict(float)
    for here in found.values():
        for name, weight in here.items():
            whole[name] += weight
    lost = [name for name, weight in whole.items() if not weight]
    if lost:
        raise InputError(f"{path}: class {lost[0]!r} has no weight above 0 anywhere", _FORMATS)
    return Frequencies(
        dict(whole), {at: _with_all(here, whole) for at, here in found.items() if any(here.values())}
    )


def _weights_by_situation(rows: Iterator[tuple[str, dict[str, Any]]]) -> dict[Situation, dict[str, float]]:
    """Return the weights of a file's rows."""
    found: defaultdict[Situation, dict[str, float]] = defaultdict(dict)
    for where, row in rows:
        name = clean_name(str(row["class"] or ""), where)
        at = _situation(row, where)
        lacking = [what for what in at._fields if what in row and getattr(at, what) is None]
        if lacking:
            raise InputError(
                f"{where}: no {lacking[0]}", f"Give one in each row, or leave out the column {lacking[0]}."
            )
        counted = "place" in row or "month" in row
        if name in found[at] and not counted:
            raise InputError(f"{where}: class {name!r} stands twice", "Remove one of them.")
        found[at][name] = found[at].get(name, 0.0) + _weight(row["weight"], where, zero=counted)
    return dict(found)


def _with_all(here: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of a situation with those of the classes that it lacks."""
    least = _RARER * min(weight for weight in here.values() if weight)
    return {name: here.get(name) or least for name in whole}


def read_situations(path: Path, apart: Sequence[str] = Situation._fields) -> dict[str, Situation]:
    """Read where and when pictures were taken, by their absolute path, or their address in object storage.

    Paths in the file are relative to its folder.

    Args:
        path: The file.
        apart: The columns, of `place` and `month`, of which it has to have one.

    Raises:
        InputError: The file is missing, empty or malformed; the message names the line.
    """
    if require(path).suffix.lower() not in _TABLES:
        raise InputError(
            f"{path}: unknown format {path.suffix!r} of where and when pictures were taken", _TAKEN
        )
    found = dict[str, Situation]()
    for where, row in read_rows(path, ("image",), ("place", "month")):
        if row.keys().isdisjoint(apart):
            lacking = " or ".join(map(repr, apart))
            raise InputError(f"{path}: no column {lacking}, and the weights of classes are by it", _TAKEN)
        name = str(row["image"] or "")
        if not name.strip():
            raise InputError(f"{where}: no image is named", _TAKEN)
        at = _situation(row, where)
        if found.setdefault(place_of(name, path.parent), at) != at:
            raise InputError(f"{where}: {name} was taken elsewhere in a row before", "Remove one of them.")
    if not found:
        raise InputError(f"{path} names no image", _TAKEN)
    return found


def place_of(name: str, folder: Path | str = "") -> str:
    """Return the absolute path that a picture is known by, or its address."""
    return name if is_address(name) else os.path.abspath(os.path.join(folder, os.path.expanduser(name)))


def _situation(row: Mapping[str, Any], where: str) -> Situation:
    """Return a row's place and month."""
    place = str(row.get("place") or "").strip() or None
    told = str("" if row.get("month") is None else row["month"]).strip()
    if not told:
        return Situation(place)
    date = _DATE.fullmatch(told)
    month = date[1] if date else told.removesuffix(".0")
    number = float(month) if month.isdecimal() else math.nan  # an int has 4,300 digits at most
    if not 1 <= number <= 12:
        raise InputError(f"{where}: {told!r} is no month", "Give 1 to 12, or a date such as 2024-05-31.")
    return Situation(place, int(number))


def _weight(weight: object, where: str, zero: bool) -> float:
    """Return a weight as a number; 0 may be one of a place and month."""
    try:  # "1_0" is a number to Python alone
        number = math.nan if "_" in str(weight) else float(weight)  # type: ignore[arg-type] # refused here
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and (number > 0.0 or (zero and number == 0.0))):
        raise InputError(f"{where}: the weight {weight!r} is no number above 0", _FORMATS)
    if number > _MOST:
        raise InputError(f"{where}: the weight {weight!r} is above {_MOST:g}", _FORMATS)
    return number
