"""Tests of the way from an extract to sentences."""

from __future__ import annotations

import re

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


# Plain twins of what reads an extract, which take quadratic time.
_FORMULA = re.compile(r"(?:\n[ \t]+(?=\n)(?:\n[ \t][^\n]*)*?)?\{\\[a-z]+style[^\n]*\}")
_GAPS = (
    (r"\(\s*(?:[,;:–—-]\s*|or\s+)*\)|\[\s*\]", ""),
    (r"\([\s,;:]+(?:or[\s,;:]*[,;:]\s*)?", "("),
    (r"[\s,;:]+\)", ")"),
    (r"\s+([,.;:!?])(?=\s|$)", r"\1"),
    (r"([,;])(?:\s*[,;])+", r"\1"),
)
_HEADING = re.compile(r"(={2,})\s*(.*?)\s*=*")
_PIECES = [
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    ".",
    " ",
    "or ",
    "a",
    "\n",
    "\n ",
    "\n \n ",
    "{\\astyle",
    "}",
    "\t",
    "=",
]


def mended(line: str) -> str:
    """A line whose gaps are repaired until none is left."""
    before = None
    while line != before:
        before = line
        line = " ".join(line.split())
        for gap, instead in _GAPS:
            line = re.sub(gap, instead, line)
    return line


@given(st.lists(st.sampled_from(_PIECES), max_size=30).map("".join))
@example("a\n \n b\n \n{\\astyle}\n \n c {\\astyle.} {\\bstyle} d {\\cstyle\n")
def test_an_extract_is_cleaned_as_by_a_plain_rule(extract: str) -> None:
    """Formulae and gaps are those that the plain patterns find."""
    marked = _FORMULA.sub(
        lambda found: "\ufffc." if found[0].rstrip("} ").endswith(".") else "\ufffc", extract
    )
    lines = re.sub(r"\n[ \t]+", " ", marked).splitlines()
    assert plain_text(extract) == "\n".join(map(mended, lines)).rstrip("\n")


@given(st.text("= ab\t", max_size=20))
def test_a_heading_is_read_as_by_a_plain_rule(line: str) -> None:
    """A heading is what the plain pattern finds, and all other lines are text."""
    found = _HEADING.fullmatch(line.strip())
    lead, *others = sections(f"{line}\nbody", ())
    if found:
        assert (lead, others) == (("", ""), [(" ".join(found[2].split()), "body")])
    else:
        assert (lead, others) == (("", f"{line}\nbody"), [])


@pytest.mark.parametrize(
    ("extract", "text"),
    [
        ("; " * 300_000, ";"),
        ("a" + "() " * 300_000 + "b", "a b"),
        ("a" + "\n " * 500_000 + "\nb", "a\nb"),
        ("{\\astyle" * 500_000 + "\n", "{\\astyle" * 500_000),
        ("(" * 200_000 + ")" * 200_000, "(" * 199_950 + ")" * 199_950),
    ],
)
def test_hostile_extracts_are_cleaned_in_linear_time(extract: str, text: str) -> None:
    """Each would keep a quadratic reader for many minutes; brackets that are nested too deeply stay."""
    assert plain_text(extract) == text


def test_hostile_headings_are_read_in_linear_time() -> None:
    """Runs of equals signs within a heading belong to it."""
    run = "=" * 500_000
    assert sections(f"== a{run}b ==\nbody", ()) == [("", ""), (f"a{run}b", "body")]
    assert article_sentences(f"=a{run}b\nIt swims well.", ()) == ["It swims well."]


def test_an_article_of_very_many_sentences_is_cut() -> None:
    """Each of its sentences is compared with all others."""
    assert len(article_sentences("".join(f"It has {n} fins.\n" for n in range(6_000)), ())) == 5_000
