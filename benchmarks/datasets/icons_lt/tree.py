"""Write tree.csv: hypernyms above the nouns of Icons-LT, by WordNet.

Command: python -m benchmarks.datasets.icons_lt.tree --wordnet UNPACKED      (see the README of recipes/icons_lt)

Of the first hypernyms of each noun's main sense, up to the top, the nearest that holds at least 5 nouns is its kind,
the nearest with 20 its group, the nearest with 80 its field. One that is several of these is the widest of them;
those that hold more than a third of all nouns say too little, and are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

from benchmarks.datasets.icons_lt.wordnet import WordNet

HERE = Path(__file__).parents[3] / "recipes" / "icons_lt"
RANKS = {"kind": 5, "group": 20, "field": 80}


def rows(nouns: WordNet, classes: dict[str, str]) -> list[tuple[str, str, str]]:
    """Name, parent (or nothing) and rank of classes, given with their synsets, and of what lies above them."""
    paths = {name: _path(nouns, synset) for name, synset in classes.items()}
    sizes = Counter(offset for path in paths.values() for offset in path)
    ranks: dict[str, str] = {}
    for path in paths.values():
        for rank, least in RANKS.items():
            for offset in [o for o in path if least <= sizes[o] <= len(classes) / 3][:1]:
                ranks[offset] = max(rank, ranks.get(offset, rank), key=list(RANKS).index)
    called = _called(nouns, ranks, classes)
    found = {called[o]: (called.get(_next(_path(nouns, o), ranks), ""), rank) for o, rank in ranks.items()}
    found |= {n: (called.get(_next([classes[n], *path], ranks), ""), "") for n, path in paths.items()}
    return sorted((name, parent, rank) for name, (parent, rank) in found.items())


def _path(nouns: WordNet, offset: str) -> list[str]:
    """The first hypernyms of a synset, upwards."""
    above: list[str] = []
    while related := nouns.synsets[offset].related("@", "@i"):
        offset = related[0]
        above.append(offset)
    return above


def _next(path: list[str], ranks: dict[str, str]) -> str:
    return next((offset for offset in path if offset in ranks), "")


def _called(nouns: WordNet, ranks: dict[str, str], classes: dict[str, str]) -> dict[str, str]:
    """A name for each synset that no other and no class has: its first word, or more of its words."""
    first = Counter(nouns.synsets[offset].words[0] for offset in ranks)
    called = {}
    for offset in ranks:
        words = [word.replace("_", " ") for word in nouns.synsets[offset].words]
        name = words[0] if first[nouns.synsets[offset].words[0]] == 1 else ", ".join(words[:3])
        name = f"{name} and the like" if name in classes else name
        called[offset] = name if name not in called.values() else f"{name} ({offset})"
    return called


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wordnet", type=Path, required=True, help="the unpacked Debian package wordnet-base"
    )
    records = json.loads((HERE / "data" / "classes.json").read_text(encoding="utf-8"))
    synsets = {name: record["synset"] for name, record in records.items()}
    nouns = WordNet(parser.parse_args().wordnet / "usr/share/wordnet")
    with (HERE / "tree.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "parent", "rank"), *rows(nouns, synsets)])


if __name__ == "__main__":
    main()
