"""Write tree.csv: the script, and the base letter, of each character of Glyphs-LT.

Command: python -m benchmarks.datasets.glyphs_lt.tree

The base of a character is what its canonical decomposition begins with, or what its name says before "with", in small
letters: the a of an A with acute. A base that only one character has is left out. What is of no script has its block
in the place of one. Names and decompositions are Python's `unicodedata`.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parents[3] / "recipes" / "glyphs_lt"


def rows(classes: dict[str, dict[str, str]]) -> list[tuple[str, str, str]]:
    """Name, parent and rank of classes and of what lies above them."""
    above = {name: _above(record) for name, record in classes.items()}
    shared = Counter(above.values())
    found: dict[str, tuple[str, str]] = {}
    for name, (base, script) in above.items():
        alone = shared[base, script] == 1
        found[name] = (script if alone else base, "")
        found[script] = ("", "script")
        if not alone:
            found[base] = (script, "letter")
    return sorted((name, parent, rank) for name, (parent, rank) in found.items())


def _above(record: dict[str, str]) -> tuple[str, str]:
    """What the base of a character is called, and its script or block."""
    of, char = record["script"], record["char"]
    script = f"{record['block']} (block)" if of in ("Common", "Inherited") else f"{of} script"
    base = unicodedata.normalize("NFD", char)[0]
    head, found, _ = unicodedata.name(base, "").partition(" WITH ")
    if found:
        try:
            base = unicodedata.lookup(head)
        except KeyError:  # no character is called so
            base = char
    small = base.lower() if len(base.lower()) == 1 else base
    return f"any {unicodedata.name(small, small).lower().replace(' small letter', '')}", script


def main() -> None:
    """Write the file."""
    records = json.loads((HERE / "data" / "classes.json").read_text(encoding="utf-8"))
    with (HERE / "tree.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "parent", "rank"), *rows(records)])


if __name__ == "__main__":
    main()
