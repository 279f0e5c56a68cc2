"""The shipped Glyphs-LT files are what the manifest says, and the builder's rules do what they state."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest

import vlltr_index.recipes.glyphs_lt as recipe
from benchmarks.datasets.glyphs_lt import licences, splits
from benchmarks.datasets.glyphs_lt.build import encoded

DATA = Path(recipe.__file__).resolve().parent / "data"
Row = tuple[bytes, str, str, str]


@lru_cache
def load(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@lru_cache
def rows(name: str = "glyphs_lt.parquet") -> list[Row]:
    table = pq.read_table(DATA / name)
    columns = [table.column(key).to_pylist() for key in ("image", "label", "split", "source")]
    return list(zip(*columns, strict=True))


def held_out() -> dict[str, list[str]]:
    """Names of the held-out classes, each with its aliases."""
    return {name: [name, *c["aliases"]] for name, c in load("classes.json").items() if c["heldout"]}


def test_hashes_match_the_manifest() -> None:
    """Every shipped file has the hash that the manifest states; the content hash is made of these, without groups."""
    manifest = load("manifest.json")
    found = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in DATA.iterdir()
        if p.name != "manifest.json"
    }
    assert found == manifest["files"]
    if pyarrow.__version__ != manifest["versions"]["pyarrow"]:
        pytest.skip("another pyarrow writes other bytes")
    for name in ("glyphs_lt.parquet", "fast.parquet"):
        table = pq.read_table(DATA / name).drop_columns(["group"])
        found[name] = hashlib.sha256(encoded(table)).hexdigest()
    text = "".join(f"{name} {value}\n" for name, value in sorted(found.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == manifest["content_sha256"]


def test_train_and_test_share_no_group() -> None:
    """Groups of test splits never appear in splits that are trained on or given as support."""
    groups: dict[bool, set[str]] = {True: set(), False: set()}
    for _, _, split, source in rows():
        groups[split.endswith("test")].add(source.split("/")[0])
    assert not groups[True] & groups[False]
    assert groups[True] <= splits.TEST_GROUPS


def test_no_test_image_repeats_a_training_image_of_its_class() -> None:
    """No test image equals a training image of the same class byte for byte."""
    seen = {(data, label) for data, label, split, _ in rows() if not split.endswith("test")}
    assert not [
        source for data, label, split, source in rows() if split.endswith("test") and (data, label) in seen
    ]


def test_texts_cover_the_classes() -> None:
    """Each class has at least 15 sentences, unique within the class, and held-out classes are kept apart."""
    classes, apart = load("classes.json"), load("heldout.json")
    assert set(load("texts.json")) == {name for name, c in classes.items() if not c["heldout"]}
    for part in splits.HELD_OUT_SETS:
        assert set(apart[part]) == {name for name, c in classes.items() if c["heldout"] == part}
    for name, sentences in [*load("texts.json").items(), *apart["dev"].items(), *apart["final"].items()]:
        assert len({s.casefold() for s in sentences}) == len(sentences) >= 15, name
        assert all(s == s.strip() and "  " not in s and ",." not in s for s in sentences), name


def test_no_sentence_gives_a_held_out_class_away() -> None:
    """No other class's sentence holds a held-out class's name, alias or character."""
    secret, classes = held_out(), load("classes.json")
    words = re.compile(
        r"(?<![\w-])(?:"
        + "|".join(sorted({re.escape(n) for ns in secret.values() for n in ns}))
        + r")(?![\w-])",
        re.IGNORECASE,
    )
    owner = {
        alias.casefold(): {n for n, ns in secret.items() if alias in ns}
        for ns in secret.values()
        for alias in ns
    }
    signs = {classes[name]["char"]: name for name in secret}
    apart = load("heldout.json")
    for name, sentences in [*load("texts.json").items(), *apart["dev"].items(), *apart["final"].items()]:
        for sentence in sentences:
            found = [match.group().casefold() for match in words.finditer(sentence)]
            assert all(owner[text] == {name} for text in found), (name, sentence)
            assert all(signs.get(sign, name) == name for sign in sentence if ord(sign) > 0x7F), (
                name,
                sentence,
            )


def test_fast_slice_is_a_subset() -> None:
    """The small slice repeats rows and sentences of the whole, with at most 2,000 training images."""
    whole, small = set(rows()), rows("fast.parquet")
    assert set(small) <= whole
    assert sum(1 for *_, split, _ in small if split == "train") <= 2000
    names, apart = load("fast_texts.json"), load("fast_heldout.json")["dev"]
    assert 55 <= len(names) <= 60
    assert len(apart) == 4
    assert all(load("texts.json")[name] == sentences for name, sentences in names.items())
    assert all(load("heldout.json")["dev"][name] == sentences for name, sentences in apart.items())
    assert {label for _, label, _, _ in small} == {*names, *apart}
    assert {load("classes.json")[name]["bin"] for name in names} == {"many", "medium", "few"}


def test_licences_are_listed() -> None:
    """FONTS.md names only packages of the licence table, with its licence; the Unicode notice is shipped."""
    allowed = licences.licence_table()
    listed = re.findall(
        r"^\| (fonts-\S+) \| \S+ \| ([^|]+) \|", (DATA / "FONTS.md").read_text(encoding="utf-8"), re.M
    )
    assert len(listed) >= 80
    assert all(allowed[package] == licence for package, licence in listed)
    assert "Permission is hereby granted" in (DATA / "UNICODE-LICENSE.txt").read_text(encoding="utf-8")
