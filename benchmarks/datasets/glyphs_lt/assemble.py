"""From designs and Unicode data to rows, class records and sentences: everything but reading and writing files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.datasets.glyphs_lt import splits, texts
from benchmarks.datasets.glyphs_lt.designs import Design
from benchmarks.datasets.glyphs_lt.splits import Picture
from benchmarks.datasets.glyphs_lt.unicode_data import Character

SPLITS = ("train", "val", "test", "dev_support", "dev_test", "final_support", "final_test")
FAST_TRAIN = 2000
FAST_CLASSES = {"many": 7, "medium": 20, "few": 33}
FAST_HELD_OUT = 4
_COMMON_WORDS = frozenset(["latin", "letter", "small", "capital", "with", "and"])


@dataclass(slots=True)
class Dataset:
    """The assembled data set; rows are (class name, split, picture), sorted."""

    rows: list[tuple[str, str, Picture]] = field(default_factory=list)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    held_out: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    struck: int = 0


@dataclass(slots=True)
class _Pools:
    train: dict[int, list[Picture]]
    test: dict[int, list[Picture]]
    counts: dict[int, int]


def make_pools(pictures: Mapping[int, Sequence[Picture]], designs: Sequence[Design]) -> _Pools:
    """Part each class's images by group; a test image equal to a training image of its class is left out."""
    pools = _Pools({}, {}, {})
    for label, items in pictures.items():
        train = [p for p in items if p.group not in splits.TEST_GROUPS]
        seen = {designs[p.number].images[p.code].tobytes() for p in train}
        test = [p for p in items if p.group in splits.TEST_GROUPS]
        pools.train[label] = train
        pools.test[label] = [p for p in test if designs[p.number].images[p.code].tobytes() not in seen]
        if len(pools.test[label]) >= splits.LEAST_TEST and train:
            pools.counts[label] = len(train) - splits.val_count(len(train))
    return pools


def choose_classes(pools: _Pools, table: Mapping[int, Character]) -> tuple[list[int], dict[int, str]]:
    """Return the trained classes, and held-out class -> "dev" or "final"."""
    names = {label: table[label].name for label in pools.counts}
    words = {label: frozenset(name.split()) for label, name in names.items()}
    trained = splits.closed_classes(pools.counts, words)
    able = frozenset(
        label
        for label in trained
        if len(pools.train[label]) >= splits.SUPPORT and len(pools.test[label]) >= splits.HELD_OUT_LEAST_TEST
    )
    tried = frozenset(x for x in trained if "with" in words[x] and pools.counts[x] < splits.MANY)
    wanted = splits.HELD_OUT_EACH * len(splits.HELD_OUT_SETS)
    chosen = splits.choose_held_out(trained, names, words, able, tried, pools.counts, wanted)
    held = {label: splits.HELD_OUT_SETS[place % 2] for place, label in enumerate(chosen)}
    return splits.closed_classes(pools.counts, words, frozenset(held)), held


def assemble(designs: Sequence[Design], merged: Mapping[int, int], table: Mapping[int, Character]) -> Dataset:
    """Choose classes, share out the images, write the sentences, and strike those that name a held-out class."""
    pools = make_pools(splits.pictures_of(designs, merged), designs)
    trained, held = choose_classes(pools, table)
    data = Dataset(held_out={name: {} for name in splits.HELD_OUT_SETS})
    for label in trained:
        own = pools.train[label]
        val = splits.take(own, splits.val_count(len(own)), "val")
        data.rows += [(table[label].name, "val" if p in val else "train", p) for p in own]
        data.rows += [
            (table[label].name, "test", p) for p in splits.take(pools.test[label], splits.MOST_TEST, "test")
        ]
    for label, part in held.items():
        support = splits.take(pools.train[label], splits.SUPPORT, "support")
        tests = splits.take(pools.test[label], splits.MOST_TEST, "test")
        data.rows += [(table[label].name, f"{part}_support", p) for p in support]
        data.rows += [(table[label].name, f"{part}_test", p) for p in tests]
    data.rows.sort(key=lambda row: (SPLITS.index(row[1]), row[0], row[2].source))
    _describe(data, trained, held, pools, merged, table)
    return data


def _describe(
    data: Dataset,
    trained: Sequence[int],
    held: Mapping[int, str],
    pools: _Pools,
    merged: Mapping[int, int],
    table: Mapping[int, Character],
) -> None:
    twins: dict[int, list[int]] = {}
    for code, standing in merged.items():
        if code != standing:
            twins.setdefault(standing, []).append(code)
    for label in sorted([*trained, *held], key=lambda x: table[x].name):
        char, part = table[label], held.get(label)
        data.classes[char.name] = {
            "char": chr(label),
            "codepoint": f"U+{label:04X}",
            "aliases": texts.unique([*char.aliases, *(table[code].name for code in twins.get(label, []))]),
            "script": char.script,
            "block": char.block,
            "bin": None if part else splits.bin_of(pools.counts[label]),
            "train": 0 if part else pools.counts[label],
            "heldout": part,
        }
    secret = {n: [n, *c["aliases"]] for n, c in data.classes.items() if c["heldout"]}
    for label in sorted([*trained, *held], key=lambda x: table[x].name):
        char = table[label]
        others = [(names, data.classes[name]["char"]) for name, names in secret.items() if name != char.name]
        every = texts.sentences_of(char, table, twins.get(label, []))
        clean = [s for s in every if not any(texts.gives_away(s, names, sign) for names, sign in others)]
        data.struck += len(every) - len(clean)
        target = data.held_out[held[label]] if label in held else data.texts
        target[char.name] = clean


def fast_slice(data: Dataset) -> Dataset:
    """Return the small slice for a one-minute run: a few held-out classes, and classes that share words with them."""
    held = [n for n in data.held_out["dev"] if data.classes[n]["script"] == "Latin"]
    held = sorted(held, key=splits.order_key)[:FAST_HELD_OUT]
    wanted = {word for name in held for word in name.split()} - _COMMON_WORDS
    chosen: list[str] = []
    total = 0
    for part, number in FAST_CLASSES.items():
        names = [name for name, c in data.classes.items() if c["bin"] == part]
        names.sort(key=lambda n: (-len(wanted & set(n.split())), splits.order_key(n)))
        for name in names[:number]:
            if total + data.classes[name]["train"] <= FAST_TRAIN:
                chosen.append(name)
                total += data.classes[name]["train"]
    small = Dataset(
        held_out={"dev": {name: data.held_out["dev"][name] for name in sorted(held)}, "final": {}}
    )
    picked = {*chosen, *held}
    small.rows = [row for row in data.rows if row[0] in picked]
    small.classes = {name: data.classes[name] for name in sorted(picked)}
    small.texts = {name: data.texts[name] for name in sorted(chosen)}
    return small
