"""The Icons-LT files are what the manifest says: splits, families, held-out names, licences."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vlltr_index.schemas.recipes import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "icons_lt"
DATA = RECIPE / "data"
ALLOWED = {
    "MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "OFL-1.1", "BSD-3-Clause", "Unlicense",
}  # fmt: skip


@lru_cache
def load(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@lru_cache
def rows() -> list[tuple[str, str, str, str]]:
    table = pq.read_table(DATA / "icons_lt.parquet", columns=["label", "split", "source", "group"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_hashes_match_the_manifest() -> None:
    """Every file has the hash that the manifest states, and the images stay under 15 MB."""
    for name, wanted in load("manifest.json")["files"].items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == wanted, name
    assert (DATA / "icons_lt.parquet").stat().st_size <= 15e6


def test_counts_are_those_stated() -> None:
    """Images by split and classes by bin are the manifest's; every class has what its kind must have."""
    stated, classes = load("manifest.json")["counts"], load("classes.json")
    assert Counter(split for _, split, *_ in rows()) == stated["images"]
    assert Counter(c["bin"] for c in classes.values() if c["bin"]) == stated["classes"]
    counts = Counter((label, split) for label, split, *_ in rows())
    for name, record in classes.items():
        held = record["heldout"]
        if held:
            assert counts[name, f"{held}_support"] == 5
            assert 5 <= counts[name, f"{held}_test"] <= 6
        else:
            assert record["train"] == counts[name, "train"] > 0
            assert 2 <= counts[name, "test"] <= 6
    assert stated["held_out"] == {"dev": 50, "final": 50}


def test_families_are_disjoint() -> None:
    """Test images come from test families alone; a validation image's family has no training image of its class."""
    table = json.loads((RECIPE / "families.json").read_text(encoding="utf-8"))
    owner = {name: family for family, entry in table["families"].items() for name in entry["sets"]}
    assert not owner.keys() & table["left_out"].keys()
    pairs = {(label, split, group) for label, split, _, group in rows()}
    for label, split, source, group in rows():
        assert source.split("/")[0] == group == owner[source.split("/")[1]]
        assert split.endswith("test") == (group in table["test"])
        if split == "val":
            assert (label, "train", group) not in pairs


def test_held_out_names_and_siblings_stay_apart() -> None:
    """No sentence of another class holds a held-out name, and no direct hypernym has classes on two sides."""
    classes, apart = load("classes.json"), load("heldout.json")
    texts = load("texts.json") | apart["dev"] | apart["final"]
    assert texts.keys() == classes.keys()
    secret = {word: name for name, c in classes.items() if c["heldout"] for word in (name, *c["aliases"])}
    pattern = re.compile(rf"(?<![a-z])({'|'.join(map(re.escape, secret))})(?![a-z])")
    sides: dict[str, set[str | None]] = {}
    for name, record in classes.items():
        assert len(record["sources"]) == len(texts[name]) >= 16
        for sentence in texts[name]:
            assert all(secret[word] == name for word in pattern.findall(sentence.casefold())), (
                name,
                sentence,
            )
        for above in record["hypernyms"]:
            sides.setdefault(above, set()).add(record["heldout"])
    assert all(len(found) == 1 for found in sides.values())


def test_licences_are_listed() -> None:
    """SETS.md names every set that images come from, with an allowed licence; WordNet's notice lies beside it."""
    text = (DATA / "SETS.md").read_text(encoding="utf-8")
    listed = dict(
        re.findall(r"\(`(\S+)`\) \|.*\| \[?([\w.-]+)(?:\]\([^)]*\))? \| \S* ?\| \d+ \|$", text, re.M)
    )
    assert listed.keys() == {source.split("/")[1] for _, _, source, _ in rows()}
    assert set(listed.values()) <= ALLOWED
    assert "WordNet 3.0 Copyright" in (DATA / "WORDNET-LICENSE.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("protocol", ["ours", "paper", "release"])
def test_recipes_are_those_of_glyphs(protocol: str) -> None:
    """Name and image size aside, the recipes are Glyphs-LT's."""
    mine, theirs = load_recipe(f"icons_lt/{protocol}"), load_recipe(f"glyphs_lt/{protocol}")
    assert mine.encoder.image_size == 48
    encoder = mine.encoder.model_copy(update={"image_size": None})
    assert mine.model_copy(update={"name": theirs.name, "encoder": encoder}) == theirs
