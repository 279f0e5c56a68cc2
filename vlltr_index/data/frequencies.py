"""Reader of files that say how common classes are: CSV, TSV or Parquet with class and weight, or one JSON object."""

from __future__ import annotations

import math
from pathlib import Path

from vlltr_index.data.files import read_json, read_rows, require
from vlltr_index.data.text import clean_name
from vlltr_index.errors import InputError

_FORMATS = (
    'Give a .csv, .tsv or .parquet with the columns class and weight, or a .json such as {"kestrel": 120, "merlin": 3};'
    " only ratios of weights matter. Classes that cannot occur are left out by: --only"
)


def read_frequencies(path: Path) -> dict[str, float]:
    """Read how common classes are: a weight above 0 for each class name.

    Raises:
        InputError: The file is missing, empty or malformed, or names a class twice; the message names the line.
    """
    kind = require(path).suffix.lower()
    if kind == ".json":
        rows = [
            (f"{path}: {name!r}", name, weight)
            for name, weight in read_json(path, dict[str, float], _FORMATS).items()
        ]
    elif kind in (".csv", ".tsv", ".parquet"):
        rows = [
            (where, row["class"], row["weight"]) for where, row in read_rows(path, ("class", "weight"), ())
        ]
    else:
        raise InputError(f"{path}: unknown format {kind!r} of the weights of classes", _FORMATS)
    found = dict[str, float]()
    for where, name, weight in rows:
        called = clean_name(str(name or ""), where)
        if called in found:
            raise InputError(f"{where}: class {called!r} stands twice", "Remove one of them.")
        found[called] = _weight(weight, where)
    if not found:
        raise InputError(f"{path} names no class", _FORMATS)
    return found


def _weight(weight: object, where: str) -> float:
    """Return a weight as a number."""
    try:
        number = float(weight)  # type: ignore[arg-type] # what a table holds; anything else is refused here
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0.0):
        raise InputError(f"{where}: the weight {weight!r} is no number above 0", _FORMATS)
    return number
