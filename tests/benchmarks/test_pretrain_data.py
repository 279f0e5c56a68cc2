"""The data behind the pretrained weights: nothing that is, or looks like, or names a class of Glyphs-LT."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.datasets.glyphs_lt import pretrain, splits
from benchmarks.datasets.glyphs_lt.designs import Design
from benchmarks.datasets.glyphs_lt.pretrain import Known
from benchmarks.datasets.glyphs_lt.unicode_data import Character

RNG = np.random.default_rng(0)


def char(code: int, name: str, category: str = "Ll", decomposition: str = "", **more: Any) -> Character:
    return Character(code, name, category, decomposition, None, None, more.pop("script", "Latin"), **more)


def picture() -> Any:
    return RNG.integers(0, 256, (32, 32)).astype(np.uint8)


TABLE = {
    c.code: c
    for c in (
        char(0x61, "latin small letter a"),
        char(0xFF41, "fullwidth latin small letter a", decomposition="<wide> 0061"),
        char(0x24D0, "circled latin small letter a", "So", "<circle> 0061"),
        char(0x1EA1, "latin small letter a with dot below", decomposition="0061 0323"),
        char(0x323, "combining dot below", "Mn", script="Inherited"),
        char(0x430, "cyrillic small letter a", script="Cyrillic"),
        char(
            0x3042,
            "hiragana letter a",
            "Lo",
            script="Hiragana",
            notes=["latin small letter a with dot below"],
        ),
        char(0x4E2D, "ideograph", "Lo", script="Han"),
        char(0x3231, "parenthesized ideograph", "So", "<compat> 0028 682A 0029"),
    )
}


def test_forms_and_lookalikes_of_classes_are_out() -> None:
    """With the class goes what is merged with it, and what is another form of it; a circled letter is another sign."""
    merged = {code: code for code in TABLE} | {0x430: 0x61}
    out = pretrain.excluded_codes(merged, TABLE, Known(frozenset({0x61})))
    assert out == {0x61, 0x430, 0xFF41}
    named = Known(frozenset({0x61}), aliases=frozenset({"combining dot below"}))
    assert pretrain.excluded_codes(merged, TABLE, named) == out | {0x323}


def test_images_like_a_class_are_out() -> None:
    """An image near one of Glyphs-LT, or near its own design's image of a class, is left out."""
    letter, shipped, other = picture(), picture(), picture()
    near = np.clip(shipped.astype(int) + RNG.integers(-5, 6, (32, 32)), 0, 255).astype(np.uint8)
    images = {1: letter, 2: letter, 3: near, 4: other}
    kept, dropped = pretrain.drop_lookalikes(images, {1}, pretrain.flat([shipped]))
    assert (list(kept), dropped) == ([4], 2)
    assert pretrain.drop_lookalikes({1: letter}, {1}, pretrain.flat([shipped])) == ({}, 0)


def designs(codes: list[int], groups: list[str]) -> list[Design]:
    return [Design(g, g, [g], {c: picture() for c in codes}, dict.fromkeys(codes, g)) for g in groups]


def test_no_sentence_names_a_held_out_class() -> None:
    """Such sentences are struck; images come from training groups alone, and a class needs three."""
    secret = {"latin small letter a with dot below": (["latin small letter a with dot below"], "\u1ea1")}
    known = Known(frozenset({0x61}), secret)
    made = designs([0x3042], ["one", "two", "three", min(splits.TEST_GROUPS)])
    data = pretrain.assemble(made, {0x3042: 0x3042}, TABLE, known)
    assert [(name, split) for name, split, _ in data.rows] == [("hiragana letter a", "train")] * 3
    assert data.struck == 1
    assert not any("with dot below" in s for s in data.texts["hiragana letter a"])
    assert not pretrain.assemble(made[1:], {0x3042: 0x3042}, TABLE, known).rows
    assert pretrain.counts(data, TABLE)["scripts"] == {"Hiragana": 1}
