"""Tests of the way from an extract to sentences."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.wikis import PAGES
from vlltr_index.data.wikipedia_text import (
    DROPPED_SECTIONS,
    article_sentences,
    near_duplicates,
    plain_text,
    sections,
)


def test_an_article_gives_its_whole_sentences() -> None:
    """Formulae, items of lists and irrelevant sections go, with all below them; gaps are mended; each comes once."""
    text = PAGES["Tench"]
    assert article_sentences(text, DROPPED_SECTIONS["en"]) == [
        "The tench (Tinca tinca) is a fresh- and brackish-water fish.",
        "It reaches 70 cm in length.",
        "The tench is olive green or brown.",
        "The tench is olive green, or brown!",
        "Its tiny scales lie deep in a thick skin.",
        "The exponent is near three.",
        "The golden tench is an ornamental form of the fish.",
        "Some ponds hold golden tench.",
    ]
    assert len(article_sentences(text, ("Appearance",))) == 4


def test_chinese_and_japanese_sentences_need_no_words() -> None:
    """They have no spaces to count words by; a piece that ends nowhere is left out all the same."""
    assert article_sentences("红隼是小型猛禽。它吃老鼠。\n「キッ。」\n目录", ()) == [
        "红隼是小型猛禽。",
        "它吃老鼠。",
        "「キッ。」",
    ]


@pytest.mark.parametrize(
    ("extract", "text"),
    [
        ("The tench ( or ; Tinca tinca) swims.", "The tench (Tinca tinca) swims."),
        ("The tench (, ) swims [ ] , it does .", "The tench swims, it does."),
        ("It is {\\displaystyle 1} long.", "It is \ufffc long."),
        (
            "It is \n  \n    \n      x\n    \n    {\\textstyle x}\n   long.\n\nIt swims.",
            "It is \ufffc long.\n\nIt swims.",
        ),
    ],
)
def test_gaps_and_formulae(extract: str, text: str) -> None:
    """What the wiki left out leaves no trace but a mark for a formula, which takes no other sentence with it."""
    assert plain_text(extract) == text


@pytest.mark.parametrize("sentence", ["It has {{convert|1|m}} of skin.", "It swims<ref>so</ref> well."])
def test_leftovers_of_markup_are_no_sentences(sentence: str) -> None:
    """A sentence that shows markup is left out; its neighbours stay."""
    assert article_sentences(f"A fish swims here. {sentence} It eats plants.", ()) == [
        "A fish swims here.",
        "It eats plants.",
    ]


def test_indented_lines_without_a_formula_cost_little() -> None:
    """They are joined to the line before, and no search for a formula's end runs away."""
    assert plain_text("A verse:" + "\n    \n    goes on" * 500) == "A verse:" + " goes on" * 500


@given(st.text(alphabet="()[]{}\\ \n=,;:.-or aT", max_size=80))
@example("\n\n")
def test_any_extract_is_read(extract: str) -> None:
    """Whatever comes, mending twice is mending once, and no sentence is broken, doubled or marked up."""
    text = plain_text(extract)
    assert plain_text(text) == text
    found = article_sentences(extract, DROPPED_SECTIONS["en"])
    assert len({sentence.casefold() for sentence in found}) == len(found)
    assert not any(c in sentence for sentence in found for c in "{}\\\n")


@given(st.text(st.characters(exclude_categories=["Cs", "P", "S"]), max_size=80))
def test_text_without_marks_stays_whole(text: str) -> None:
    """Mending takes no word away."""
    assert plain_text(text).split() == text.split()


@given(st.lists(st.tuples(st.integers(2, 4), st.sampled_from(["Habitat", "Notes", "see also"])), max_size=6))
def test_sections_below_a_dropped_one_are_dropped(headings: list[tuple[int, str]]) -> None:
    """A body stays if neither its own heading nor one that it lies below is dropped."""
    lines, expected, path = ["lead"], [("", "lead")], list[tuple[int, str]]()
    for number, (level, heading) in enumerate(headings):
        lines += [f"{'=' * level} {heading} {'=' * level}", f"body {number}"]
        path = [*((n, h) for n, h in path if n < level), (level, heading)]
        if not any(h.casefold() in ("notes", "see also") for _, h in path):
            expected.append((heading, f"body {number}"))
    assert sections("\n".join(lines), DROPPED_SECTIONS["en"]) == expected


def test_near_duplicates() -> None:
    """Case and marks do not count; one word among ten does not save a sentence, two among ten do."""
    base = "one two three four five six seven eight nine ten"
    texts = [
        base,
        base.upper() + "!",
        base + " eleven",
        base.replace("ten", "nil"),
        "Other words altogether.",
    ]
    assert near_duplicates(texts) == [1, 2]
    assert near_duplicates(["A tench swims."], known=["a TENCH swims"]) == [0]
