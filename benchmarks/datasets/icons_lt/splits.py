"""Which image goes to which split, and which classes are held out. Every choice is by coverage or by hash."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.datasets.icons_lt.classes import order_key
from benchmarks.datasets.icons_lt.collect import Icon, table
from benchmarks.datasets.icons_lt.texts import plain, secret_pattern
from benchmarks.datasets.icons_lt.wordnet import WordNet

SPLITS = ("train", "val", "test", "dev_support", "dev_test", "final_support", "final_test")
MANY, FEW = 100, 20
LEAST_TEST, MOST_TEST = 2, 6
SUPPORT, HELD_OUT_LEAST_TEST, HELD_OUT_EACH, MOST_SIBLINGS = 5, 5, 50, 4
HELD_OUT_SETS = ("dev", "final")
VAL_FROM, VAL_FAMILIES = 12, 4


@dataclass(slots=True)
class Split:
    """Numbers of icons by class and split, and held-out class -> "dev" or "final"."""

    rows: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    held_out: dict[str, str] = field(default_factory=dict)


def bin_of(count: int) -> str:
    """Many (>= 100 training images), medium (21-99) or few (<= 20)."""
    return "many" if count >= MANY else "medium" if count > FEW else "few"


def take(numbers: Sequence[int], icons: Sequence[Icon], count: int, salt: str) -> list[int]:
    """`count` images, first those of families not yet taken, in the order of their sources' hashes."""
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int, int]] = []
    ranked = sorted(numbers, key=lambda n: order_key(f"{salt}:{icons[n].source}"))
    for place, number in enumerate(ranked):
        rounds.append((seen[icons[number].family], place, number))
        seen[icons[number].family] += 1
    return [number for *_, number in sorted(rounds)[:count]]


def split(
    members: Mapping[str, Sequence[int]],
    names: Mapping[str, Sequence[str]],
    icons: Sequence[Icon],
    nouns: WordNet,
) -> Split:
    """Share out the images of every class that has training images and enough test images.

    Args:
        members: class -> numbers of its icons.
        names: class -> its name and the nouns merged into it, with underscores.
        icons: All icons.
        nouns: For the siblings of classes.
    """
    test_families = set(table()["test"])
    train: dict[str, list[int]] = {}
    test: dict[str, list[int]] = {}
    for noun, numbers in members.items():
        mine = [n for n in numbers if icons[n].family not in test_families]
        theirs = [n for n in numbers if icons[n].family in test_families]
        if mine and len(theirs) >= LEAST_TEST:
            train[noun], test[noun] = mine, theirs
    found = Split(held_out=_choose_held_out(train, test, names, nouns))
    for noun in sorted(train):
        tests = take(test[noun], icons, MOST_TEST, "test")
        part = found.held_out.get(noun)
        if part:
            support = take(train[noun], icons, SUPPORT, "support")
            found.rows[noun] = {f"{part}_support": support, f"{part}_test": tests}
        else:
            val = _validation(train[noun], icons)
            rest = [n for n in train[noun] if n not in val]
            found.rows[noun] = {"train": rest, "test": tests} | ({"val": val} if val else {})
    return found


def _validation(numbers: Sequence[int], icons: Sequence[Icon]) -> list[int]:
    """All images of one family: of those with the fewest, the first by hash; none for a small class."""
    families: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        families[icons[number].family].append(number)
    if len(numbers) < VAL_FROM or len(families) < VAL_FAMILIES:
        return []
    return min(families.values(), key=lambda held: (len(held), order_key(f"val:{icons[held[0]].source}")))


def _choose_held_out(
    train: Mapping[str, Sequence[int]],
    test: Mapping[str, Sequence[int]],
    names: Mapping[str, Sequence[str]],
    nouns: WordNet,
) -> dict[str, str]:
    """Choose whole groups of siblings, in the order of their hashes, in turn for dev and final.

    A class can be held out if it has enough images for support and test and fewer than MANY for training, and no
    other class's name contains a name of it. A group is held out if all its classes can be.
    """
    phrases = {noun: [plain(word) for word in names[noun]] for noun in train}
    chosen: dict[str, str] = {}
    counts: Counter[str] = Counter()

    def able(noun: str) -> bool:
        if not SUPPORT <= len(train[noun]) < MANY or len(test[noun]) < HELD_OUT_LEAST_TEST:
            return False
        secret = secret_pattern(phrases[noun])
        return not any(other != noun and any(map(secret.search, found)) for other, found in phrases.items())

    for group in sorted(sibling_groups(train, names, nouns), key=lambda g: order_key(f"held out:{g[0]}")):
        part = min(HELD_OUT_SETS, key=lambda p: counts[p])
        if len(group) <= min(MOST_SIBLINGS, HELD_OUT_EACH - counts[part]) and all(map(able, group)):
            chosen |= dict.fromkeys(group, part)
            counts[part] += len(group)
    return chosen


def sibling_groups(
    classes: Mapping[str, object], names: Mapping[str, Sequence[str]], nouns: WordNet
) -> list[list[str]]:
    """Classes joined by a common direct hypernym of their main senses, or by a sense that they share."""
    root = {noun: noun for noun in classes}

    def find(noun: str) -> str:
        while root[noun] != noun:
            noun = root[noun]
        return noun

    first: dict[str, str] = {}
    for noun in sorted(classes):
        main = nouns.main_sense(noun)
        above = [f"above {offset}" for offset in main.related("@", "@i")] if main else []
        senses = [offset for name in names[noun] for offset in nouns.index[name]]
        for key in (*above, *senses):
            root[find(noun)] = find(first.setdefault(key, noun))
    groups: dict[str, list[str]] = defaultdict(list)
    for noun in sorted(classes):
        groups[find(noun)].append(noun)
    return sorted(groups.values())
