"""Which classes of Photos-LT the 1,000 classes of ImageNet name, by WordNet 3.0.

Both encoders were trained on images of these classes, and `vlltr-photo` reads texts by their names. `NAMED`: the class
is one of them. `BELOW`: it is a kind of one of them in WordNet. `NEITHER`: all others, also those that contain some of
them, as bird does; `contains` says how many. A class that several words stand for is `NAMED` or `BELOW` if all are.
"""

from __future__ import annotations

import csv
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

from benchmarks.datasets.icons_lt.wordnet import WordNet
from benchmarks.datasets.photos_lt.listing import facts
from benchmarks.study import Command

__all__ = ["BELOW", "COMMAND", "GROUPS", "NAMED", "NEITHER", "Knowledge", "known"]

NAMED, BELOW, NEITHER = GROUPS = ("named", "below", "neither")
TABLE = Path(__file__).parent / "imagenet.csv"
_COLUMNS = ("class", "senses", "group", "imagenet", "contains")
_SENSES = {
    "hammer": (("hammer", 2),),
    "large herbivore": (("elephant", 1), ("rhinoceros", 1), ("hippopotamus", 1), ("giraffe", 1)),
    "measuring tape": (("tape measure", 1),),
    "primate": (("primate", 2),),
    "reptile or amphibian": (("reptile", 1), ("amphibian", 3)),
    "rodent or rabbit": (("rodent", 1), ("rabbit", 1)),
    "string instrument": (("stringed instrument", 1),),
    "wrench": (("wrench", 3),),
}
"""Words and senses of the classes for which it is not the first sense of their name, chosen by their definitions."""


class Knowledge:
    """What ImageNet's classes say of each class.

    Attributes:
        group: The group of each class by name.
        contains: How many of ImageNet's classes are kinds of it.
    """

    def __init__(self, table: Path = TABLE) -> None:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.group = {row["class"]: row["group"] for row in rows}
        self.contains = {row["class"]: int(row["contains"]) for row in rows}


def known(wordnet: WordNet, imagenet: dict[str, str]) -> list[dict[str, str]]:
    """Return the rows of the table.

    Args:
        wordnet: WordNet 3.0.
        imagenet: The names of ImageNet's classes by their offset in WordNet 3.0.
    """
    contains = Counter(above for offset in imagenet for above in _above(wordnet, offset))
    rows = []
    for label in sorted(facts()):
        senses = _SENSES.get(label, ((label, 1),))
        offsets = [wordnet.senses(word.replace(" ", "_"))[sense - 1].offset for word, sense in senses]
        broader = [[one for one in _above(wordnet, offset) if one in imagenet] for offset in offsets]
        group = NEITHER
        names: list[str] = []
        if all(offset in imagenet for offset in offsets):
            group = NAMED
            names = [imagenet[offset] for offset in offsets]
        elif all(broader):
            group = BELOW
            names = [imagenet[one] for some in broader for one in some]
        count = sum(contains[offset] + (group == NEITHER and offset in imagenet) for offset in offsets)
        shown = "; ".join(f"{word} {sense}" for word, sense in senses)
        rows.append(
            dict(
                zip(_COLUMNS, (label, shown, group, "; ".join(dict.fromkeys(names)), str(count)), strict=True)
            )
        )
    return rows


def _above(wordnet: WordNet, offset: str) -> set[str]:
    """Return the offsets of all hypernyms of a synset, at any distance."""
    found: set[str] = set()
    waiting = [offset]
    while waiting:
        for above in wordnet.synsets[waiting.pop()].related("@", "@i"):
            if above not in found:
                found.add(above)
                waiting.append(above)
    return found


def write(wordnet: Path) -> None:
    """Write the table."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = {
        info.index_to_label_name(at).removeprefix("n"): info.index_to_description(at)
        for at in range(info.num_classes())
    }
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(known(WordNet(wordnet), names))


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--wordnet",
        type=Path,
        required=True,
        help="folder of WordNet 3.0, as Debian's wordnet-base 1:3.0-39 has it",
    )


COMMAND = Command(write, _arguments)
