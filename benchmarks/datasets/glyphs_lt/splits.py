"""Which classes are kept, and which image goes to which split. Every choice is by coverage or by hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.datasets.glyphs_lt.designs import Design

# Groups whose designs are test only: most of the widest-covering groups, so that rare characters have test images,
# and some narrow ones. Picked by coverage alone, before any model was trained.
TEST_GROUPS = frozenset(
    [
        "abyssinica-sil",
        "agave",
        "akatab",
        "allerta",
        "amiga",
        "andika",
        "arimo",
        "atkinson-hyperlegible",
        "babelstone-modern",
        "berenika",
        "caliban",
        "campania",
        "cardo",
        "carlito",
        "cascadia-code",
        "caslon",
        "cmu-bright",
        "compagnon",
        "dejavu-sans",
        "dosis",
        "eb-garamond",
        "essays1743",
        "fira-code",
        "gamaliel",
        "gentium",
        "gwmonospace",
        "hamlet",
        "inter",
        "jessen",
        "junicode",
        "kode-mono",
        "lato",
        "leckerli-one",
        "lemonada",
        "linux-biolinum-o",
        "m-plus-1",
        "ocr-b",
        "okolaks",
        "old-standard-tt",
        "parix",
        "quicksand",
        "soufflet-vert",
        "spira",
        "unifur",
        "zainer",
    ]
)

MANY, FEW = 100, 20
LEAST_TEST, MOST_TEST = 5, 6
SUPPORT = 5
HELD_OUT_LEAST_TEST = 5
HELD_OUT_SETS = ("dev", "final")
HELD_OUT_EACH = 100
HELD_OUT_WORD_CLASSES = 5
CLOSURE_CLASSES = 2
VAL_FROM, VAL_TWO_FROM = 12, 60


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: whose, from which group, design and code point."""

    label: int
    group: str
    design: str
    code: int
    number: int

    @property
    def source(self) -> str:
        """Where the image comes from, unique over the data set: group/design/U+0041."""
        return f"{self.group}/{self.design}/U+{self.code:04X}"


def order_key(text: str) -> str:
    """Return the SHA-256 of a text in hex, the order of every choice that is not made by coverage."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def pictures_of(designs: Sequence[Design], merged: Mapping[int, int]) -> dict[int, list[Picture]]:
    """Return class -> its images, one for each design: the standing character's, else the lowest merged code's."""
    found: dict[int, list[Picture]] = {}
    for number, design in enumerate(designs):
        chosen: dict[int, int] = {}
        for code in sorted(design.images, key=lambda c: (c != merged[c], c)):
            chosen.setdefault(merged[code], code)
        for label, code in chosen.items():
            found.setdefault(label, []).append(Picture(label, design.group, design.name, code, number))
    return {label: sorted(found[label], key=lambda p: p.source) for label in sorted(found)}


def bin_of(count: int) -> str:
    """Return many (>= 100 training images), medium (21-99) or few (<= 20)."""
    return "many" if count >= MANY else "medium" if count > FEW else "few"


def val_count(count: int) -> int:
    """Return how many images of a class's train groups go to validation: 2 from 60 images on, 1 from 12 on."""
    return 2 if count >= VAL_TWO_FROM else 1 if count >= VAL_FROM else 0


def word_counts(labels: Iterable[int], words: Mapping[int, frozenset[str]]) -> Counter[str]:
    """Count in how many of the classes each word occurs."""
    return Counter(word for label in labels for word in words[label])


def contains_phrase(name: str, phrase: str) -> bool:
    """Say whether `phrase` occurs in `name` as a run of whole words, the name itself included."""
    return f" {phrase} " in f" {name} "


def closed_classes(
    counts: Mapping[int, int], words: Mapping[int, frozenset[str]], held_out: frozenset[int] = frozenset()
) -> list[int]:
    """Return the classes of the closure variant, repeated until nothing changes.

    A class with at most FEW training images stays only if each word of its name occurs in CLOSURE_CLASSES classes with
    more; held-out classes count for nothing.
    """
    labels = [label for label, count in counts.items() if count >= 1 and label not in held_out]
    strong = [label for label in labels if counts[label] > FEW]
    seen = word_counts(strong, words)
    few = [x for x in labels if counts[x] <= FEW and all(seen[word] >= CLOSURE_CLASSES for word in words[x])]
    return sorted([*strong, *few])


def choose_held_out(
    trained: Sequence[int],
    names: Mapping[int, str],
    words: Mapping[int, frozenset[str]],
    able: frozenset[int],
    closed: frozenset[int],
    counts: Mapping[int, int],
    wanted: int,
) -> list[int]:
    """Choose classes to hold out, in the order of their names' hashes.

    A class may be held out if it is `able` (enough images), its name is compositional ("... with ..."), no other
    class's name contains its name, each word of it still occurs in HELD_OUT_WORD_CLASSES trained classes and in
    CLOSURE_CLASSES of the medium or many ones, after everything chosen before it is taken away.

    Args:
        trained: classes that would be trained.
        names: class -> name.
        words: class -> words of its name.
        able: classes with enough images for support and test.
        closed: classes that can be tried; others are left trained.
        counts: training images of each class.
        wanted: how many to choose.
    """
    left = set(trained)
    seen = word_counts(left, words)
    strong = word_counts((label for label in left if counts[label] > FEW), words)
    phrases = [names[label] for label in trained]
    chosen: list[int] = []
    for label in sorted(able & closed, key=lambda x: order_key(names[x])):
        if len(chosen) == wanted:
            break
        if any(other != names[label] and contains_phrase(other, names[label]) for other in phrases):
            continue
        enough = all(seen[word] > HELD_OUT_WORD_CLASSES for word in words[label])
        heavy = counts[label] > FEW
        if not enough or not all(strong[word] - heavy >= CLOSURE_CLASSES for word in words[label]):
            continue
        chosen.append(label)
        left.discard(label)
        seen.subtract(words[label])
        if heavy:
            strong.subtract(words[label])
    return chosen


def take(pictures: Sequence[Picture], count: int, salt: str) -> list[Picture]:
    """Return `count` images, first those of groups not yet taken, in the order of their sources' hashes."""
    ranked = sorted(pictures, key=lambda p: order_key(f"{salt}:{p.source}"))
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int, Picture]] = []
    for place, picture in enumerate(ranked):
        rounds.append((seen[picture.group], place, picture))
        seen[picture.group] += 1
    return [picture for _, _, picture in sorted(rounds, key=lambda r: r[:2])[:count]]
