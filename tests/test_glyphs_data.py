"""The shipped Glyphs-LT files are what the manifest says, and the builder's rules do what they state."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlltr_index.recipes.glyphs_lt as recipe
from vlltr_index.recipes.glyphs_lt import fonts, homoglyphs, licences, render, splits, texts
from vlltr_index.recipes.glyphs_lt.assemble import SPLITS
from vlltr_index.recipes.glyphs_lt.build import encoded, main, with_groups
from vlltr_index.recipes.glyphs_lt.unicode_data import (
    Character,
    full_decomposition,
    is_drawn,
    parse_names_list,
)

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


def test_sizes_are_small() -> None:
    """The Parquet file stays under 12 MB and the sentences under 3 MB."""
    assert (DATA / "glyphs_lt.parquet").stat().st_size <= 12_000_000
    assert (DATA / "texts.json").stat().st_size <= 3_000_000
    assert (DATA / "fast.parquet").stat().st_size <= 1_000_000


def test_schema_and_order() -> None:
    """The table has columns of the stated types, sorted by split, label and source; sources are unique."""
    schema = pq.read_schema(DATA / "glyphs_lt.parquet")
    types = {field.name: str(field.type) for field in schema}
    assert types == {
        "image": "binary",
        "label": "string",
        "split": "string",
        "source": "string",
        "group": "string",
    }
    keys = [(SPLITS.index(split), label, source) for _, label, split, source in rows()]
    assert keys == sorted(keys)
    assert len({source for *_, source in rows()}) == len(keys)
    table = pq.read_table(DATA / "glyphs_lt.parquet", columns=["source", "group"])
    assert with_groups(table.select(["source"])).equals(table)


def test_every_image_is_a_grey_png_with_ink() -> None:
    """Each image decodes to 32 x 32 grey pixels that are not blank."""
    for data, label, _, source in rows():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32)), (label, source)
            assert np.asarray(image).sum(dtype=np.int64) >= render.LEAST_INK


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


def test_counts_a_split() -> None:
    """Trained classes have 5 or 6 test images, held-out ones 5 for support; val follows its rule; counts are stated."""
    classes = load("classes.json")
    counts = {split: Counter(label for _, label, s, _ in rows() if s == split) for split in SPLITS}
    trained = {name for name, c in classes.items() if not c["heldout"]}
    assert set(counts["train"]) == set(counts["test"]) == trained
    assert set(counts["test"].values()) <= {5, 6}
    for name in trained:
        whole = counts["train"][name] + counts["val"][name]
        assert counts["val"][name] == splits.val_count(whole)
        assert classes[name]["train"] == counts["train"][name]
        assert classes[name]["bin"] == splits.bin_of(counts["train"][name])
    for part in splits.HELD_OUT_SETS:
        names = {name for name, c in classes.items() if c["heldout"] == part}
        assert len(names) == splits.HELD_OUT_EACH
        assert counts[f"{part}_support"] == dict.fromkeys(names, splits.SUPPORT)
        assert set(counts[f"{part}_test"]) == names
        assert set(counts[f"{part}_test"].values()) <= {5, 6}
    stated = load("manifest.json")["counts"]
    assert stated["images"] == {split: counts[split].total() for split in SPLITS}
    assert stated["few5"] == sum(1 for name in trained if classes[name]["train"] <= 5)


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


def test_no_class_name_contains_a_held_out_name() -> None:
    """A held-out name is no part of any other class's name."""
    classes = load("classes.json")
    for secret in held_out():
        assert not [name for name in classes if name != secret and splits.contains_phrase(name, secret)]


def test_held_out_names_are_compositional() -> None:
    """Each word of a held-out name occurs in at least five trained classes."""
    classes = load("classes.json")
    seen = Counter(word for name, c in classes.items() if not c["heldout"] for word in set(name.split()))
    for secret in held_out():
        assert all(seen[word] >= splits.HELD_OUT_WORD_CLASSES for word in secret.split()), secret


def test_closure() -> None:
    """Each word of a few-shot class's name occurs in at least two medium or many classes."""
    classes = load("classes.json")
    strong = Counter(
        w for name, c in classes.items() if c["bin"] in ("many", "medium") for w in set(name.split())
    )
    for name, c in classes.items():
        if c["bin"] == "few":
            assert all(strong[word] >= splits.CLOSURE_CLASSES for word in name.split()), name


def test_bins_are_filled() -> None:
    """All three bins hold enough classes, with many classes of one to five images."""
    counts = load("manifest.json")["counts"]
    assert counts["classes"]["many"] >= 140
    assert counts["classes"]["medium"] >= 400
    assert counts["classes"]["few"] >= 300
    assert counts["few5"] >= 150


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


def test_parse_name() -> None:
    """Names of letters are taken apart into script, case, modifiers, letter and marks."""
    parsed = texts.parse_name("latin small letter turned e with circumflex and acute")
    assert parsed == texts.Parsed("latin", "small", ("turned",), "e", ("circumflex", "acute"))
    assert texts.parse_name("georgian letter an") == texts.Parsed("georgian", "", (), "an", ())
    assert texts.parse_name("latin letter small capital r") == texts.Parsed(
        "latin", "", ("small capital",), "r", ()
    )
    assert texts.parse_name("rightwards arrow") is None


def test_letter_facts() -> None:
    """The facts of a letter with marks name its base, its marks, their looks and places."""
    parsed = texts.parse_name("latin small letter e with ogonek and acute")
    assert parsed is not None
    facts = texts.letter_facts(parsed)
    assert "Its base is the latin small letter e." in facts
    assert "It carries an acute, a short stroke rising to the right above the letter." in facts
    assert "It has two marks: one below and one above the e." in facts


def test_sign_facts_take_the_longest_words() -> None:
    """Phrases are matched longest first and only as whole words."""
    assert texts.phrases_of("less-than or equal to", {"equal": "a", "equal to": "b", "less": "c"}) == [
        "equal to"
    ]
    arrow = Character(0x219B, "rightwards arrow with stroke", "Sm", "", None, None)
    assert "In its name, rightwards means: it points to the right." in texts.sign_facts(arrow)


@pytest.mark.parametrize(
    ("note", "wanted"),
    [
        ("Czech, Slovak", ["Used in: Czech, Slovak."]),
        ("Russian, ...", ["Used in: Russian."]),
        ("voiced labiodental nasal", ["Note: voiced labiodental nasal."]),
        ("uppercase is 2C6E", []),
        ("looks like \u0416", []),
    ],
)
def test_note_facts(note: str, wanted: list[str]) -> None:
    """Lists of languages are worded as use; cut-off notes and notes with foreign characters are dropped."""
    assert texts.note_facts([note]) == wanted


def test_gives_away_respects_words() -> None:
    """A name counts as given away only as whole words, in any case; the character itself counts too."""
    assert texts.gives_away("Compare the Latin Letter O.", ["latin letter o"], "o")
    assert not texts.gives_away("Compare the latin letter open.", ["latin letter o"], "o")
    assert texts.gives_away("like \u0416", ["nothing"], "\u0416")


def test_merge_homoglyphs_on_toy_arrays() -> None:
    """Codes drawn alike in enough designs are merged under the widest-covered one; others stay apart."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 255, (32, 32), dtype=np.uint8) for _ in range(2))
    designs = [{65: a, 913: a, 66: b}, {65: b, 913: b}, {65: a, 66: b}]
    assert homoglyphs.merge_homoglyphs(designs) == {65: 65, 66: 66, 913: 65}
    assert homoglyphs.merge_homoglyphs(designs[:1]) == {65: 65, 66: 66, 913: 913}


def test_drop_miscoded_and_faint() -> None:
    """A glyph repeated under a code of a rarer class is dropped, and so is one with hardly any ink."""
    a, b = np.full((32, 32), 9, np.uint8), np.eye(32, dtype=np.uint8) * 200
    designs = [{65: a, 66: b}, {65: a, 66: a}, {65: a}]
    clean, dropped = homoglyphs.drop_miscoded(designs, {65: 65, 66: 66})
    assert dropped == 1
    assert [sorted(drawn) for drawn in clean] == [[65, 66], [65], [65]]
    thin = np.zeros((32, 32), np.uint8)
    thin[0, 0] = 255
    kept, gone = homoglyphs.drop_faint([{65: a}, {65: a}, {65: thin}], {65: 65})
    assert gone == 1
    assert kept[2] == {}


def test_cluster_designs_is_complete_linkage() -> None:
    """A chain of near neighbours is not one design: every pair of a design lies within the limit."""
    points = np.array([[10.0, 0.0], [10.0, 1.4], [10.0, 3.0], [0.0, 10.0]])
    assert fonts.cluster_designs(points, 0.2) == [0, 0, 2, 3]


def test_group_names_join_prefixes_and_designs() -> None:
    """Families with the same first word or the same design share a group."""
    assert fonts.group_names(["Arimo", "Foo Sans", "Foo Serif", "Liberation"], [0, 1, 2, 0]) == [
        "arimo",
        "foo-sans",
        "foo-sans",
        "arimo",
    ]
    assert fonts.plain_family("Averia Libre Light") == "Averia Libre"


def test_place_drops_cut_and_blank_ink() -> None:
    """Ink off the canvas or too little ink gives no image; other ink keeps its baseline."""
    assert render.place(np.full((40, 200), 255, np.uint8), -40) is None
    assert render.place(np.full((1, 1), 255, np.uint8), -4) is None
    image = render.place(np.full((56, 40), 255, np.uint8), -56)
    assert image is not None
    assert np.flatnonzero(image.any(axis=1)).tolist() == list(range(8, 22))
    assert np.array_equal(render.from_png(render.to_png(image)), image)


def test_held_out_choice_keeps_words() -> None:
    """Classes are held out only while their words stay in enough classes, and never a part of another's name."""
    names = {
        n: f"letter {c} with {m}" for n, (c, m) in enumerate((c, m) for c in "abcdefg" for m in ("x", "y"))
    }
    names[90] = "letter a with x and y"
    words = {label: frozenset(name.split()) for label, name in names.items()}
    every = frozenset(names)
    chosen = splits.choose_held_out(sorted(names), names, words, every, every, dict.fromkeys(names, 50), 5)
    assert 0 not in chosen
    left = splits.word_counts(every - set(chosen), words)
    assert all(left[word] >= splits.HELD_OUT_WORD_CLASSES for label in chosen for word in words[label])


def test_names_list_and_decomposition() -> None:
    """Aliases, notes and cross references are read; decomposition goes all the way down."""
    text = "00E9\tLATIN\n\t= e acute, e-aigu\n\t* French\n\tx (other - 0065)\n@@\thead\n\t* not a note\n"
    assert parse_names_list(text) == {0xE9: (["e acute", "e-aigu"], ["French"], [0x65])}
    table = {
        0x65: Character(0x65, "e", "Ll", "", None, None, "Latin"),
        0xEA: Character(0xEA, "ê", "Ll", "0065 0302", None, None, "Latin"),
        0x1EBF: Character(0x1EBF, "ế", "Ll", "00EA 0301", None, None, "Latin"),
    }
    assert full_decomposition(table, 0x1EBF) == [0x65, 0x302, 0x301]
    assert is_drawn(table[0x65])
    assert not is_drawn(Character(0xFF21, "wide", "Lu", "<wide> 0041", None, None, "Latin"))


def test_build_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The builder explains its options."""
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--fonts" in capsys.readouterr().out
