"""Tests of the cleaning of articles: wikitext, HTML, sections, near duplicates."""

from __future__ import annotations

import pytest
import wikis
from hypothesis import given
from hypothesis import strategies as st

from vlltr_index.corpus.duplicates import near_duplicates, word_set
from vlltr_index.corpus.wikipedia_html import html_sections, is_disambiguation, revision_of
from vlltr_index.corpus.wikipedia_text import (
    DROPPED_SECTIONS,
    FORMULA,
    Section,
    keep_sections,
    tidy,
    wikitext_sections,
)


def paragraphs(wikitext: str) -> list[str]:
    """All paragraphs of a wikitext."""
    return [p for section in wikitext_sections(wikitext) for p in section.paragraphs]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("It is {{convert|70|cm|in}} long.", "It is 70 cm long."),
        ("It is {{cvt|10|to|12|cm|in|abbr=on}} long.", "It is 10 to 12 cm long."),
        ("It is {{convert|10|-|12.5|kg}} heavy.", "It is 10–12.5 kg heavy."),
        ("It is {{convert|6|x|4|ft}} in size.", "It is 6 × 4 ft in size."),
        ("He is {{convert|5|ft|11|in|cm|0}} tall.", "He is 5 ft 11 in tall."),
        ("It has {{convert|3|km2|sqmi}} of land.", "It has 3 km² of land."),
        ("It has {{val|12|u=kg}} and {{frac|1|2}}.", "It has 12 kg and 1/2."),
        ("The ''[[Tinca|tench]]s'' '''swims'''.", "The tenchs swims."),
        ("The {{lang|la|Tinca}} ({{IPA|/x/}}; {{lang-de|Schleie}}) swims.", "The Tinca (Schleie) swims."),
        ("The tench ({{IPA|/x/}}) swims{{citation needed}}.", "The tench swims."),
        ("A[[File:a.jpg|thumb|not [[this]]]]B [[Image:b.png]] [[:Category:Fish]].", "AB Category:Fish."),
        ("One<ref name=a>x</ref> two<ref name=a /> three.", "One two three."),
        (
            "A<!-- hidden -->B &amp; C&nbsp;D <math>x^2</math> {{math|y}} E.",
            f"AB & C D {FORMULA} {FORMULA} E.",
        ),
        ("See [http://example.org the page] and [http://example.org].", "See the page and."),
        ("{{Infobox|a={{nested|b}}|c=d}} Left.", "Left."),
        ("From 1990{{ndash}}95 it {{nowrap|did not}} swim.", "From 1990–95 it did not swim."),
        ("{|\n|a table\n|}\nAfter it.", "After it."),
        ("__NOTOC__ Text with ''unclosed italics.", "Text with unclosed italics."),
        ("[[de:Schleie]][[Category:X]]Words.", "Words."),
    ],
)
def test_wikitext_reads_as_a_reader_sees_it(wikitext: str, text: str) -> None:
    """Markup, references, files and formulae go; templates that stand for words give them."""
    assert paragraphs(wikitext) == [text]


def test_an_article_by_sections() -> None:
    """Headings, levels and paragraphs are in order; of a list only sentences stay."""
    sections = wikitext_sections(wikis.PAGES["Tench"])
    assert [(s.heading, s.level) for s in sections] == [
        ("", 1), ("Appearance", 2), ("Colour forms", 3), ("See also", 2), ("References", 2), ("Notes", 2),
    ]  # fmt: skip
    assert sections[0].paragraphs == (
        "The tench (Tinca tinca) is a fresh- and brackish-water fish. It reaches 70 cm in length and 5 to 7.5 kg in"
        " weight.",
    )
    assert "The golden tench is an ornamental form of the fish." in sections[1].paragraphs
    assert not any("6.9" in p or "aL" in p or p == "Golden tench" for p in sections[1].paragraphs)
    assert sections[2].paragraphs == ("Some ponds hold golden tench.",)


def test_sections_that_do_not_describe_are_dropped_with_all_below_them() -> None:
    """References and the like go, with their subsections; what follows on their level stays."""
    sections = [
        Section("", 1, ("Lead.",)),
        Section("see  ALSO", 2, ("A.",)),
        Section("Deeper", 3, ("B.",)),
        Section("Description", 2, ("C.",)),
        Section("Notes", 3, ("D.",)),
        Section("Colour", 3, ("E.",)),
    ]
    dropped = DROPPED_SECTIONS["en"]
    assert [s.heading for s in keep_sections(sections, dropped)] == ["", "Description", "Colour"]
    assert [s.heading for s in keep_sections(sections, dropped, ["description"])] == [
        "",
        "Description",
        "Colour",
    ]
    assert [s.heading for s in keep_sections(sections, dropped, ["Colour"])] == ["", "Colour"]


@given(st.text(alphabet="[]{}|<>ref/='* \n#ab:;-!math", max_size=60))
def test_any_wikitext_is_read(text: str) -> None:
    """Broken markup raises nothing, and no paragraph is empty or has a line break."""
    for paragraph in paragraphs(text):
        assert paragraph
        assert paragraph == tidy(paragraph)
        assert "\n" not in paragraph


def test_html_gives_the_same_kind_of_sections() -> None:
    """Boxes, references, captions and footers go; sections and sentences stay."""
    html = wikis.HTML["Tench"]
    kept = keep_sections(html_sections(html), DROPPED_SECTIONS["en"])
    assert [(s.heading, s.paragraphs) for s in kept] == [
        ("", ("The tench (Tinca tinca) is a fresh-water fish. It reaches 70 cm.",)),
        (
            "Appearance",
            (
                "Its tiny scales lie deep in a thick skin.",
                "The golden tench is an ornamental form of the fish.",
            ),
        ),
    ]
    assert revision_of(html) == "4711"
    assert revision_of("<p>nothing</p>") is None


def test_formulae_in_html_leave_their_mark() -> None:
    """So that the sentence can be left out whole."""
    html = '<p>It is <span class="mwe-math-element"><math>x</math><img></span> long.</p>'
    assert html_sections(html)[0].paragraphs == (f"It is {FORMULA} long.",)


@given(st.text(alphabet='<>/pulih2 ="a&;!-', max_size=60))
def test_any_html_is_read(text: str) -> None:
    """Broken HTML raises nothing."""
    assert all(p for section in html_sections(text) for p in section.paragraphs)


@pytest.mark.parametrize(
    ("title", "html", "expected"),
    [
        ("Crane", wikis.HTML["Crane"], True),
        ("Crane (disambiguation)", "<p>x</p>", True),
        ("Crane", '<table id="disambigbox"><tr></tr></table>', True),
        ("Crane", '<div class="dmbox dmbox-disambiguation">x</div>', True),
        ("Tench", wikis.HTML["Tench"], False),
        ("Tench", '<a class="mw-disambig" href="x">x</a><p>A fish.</p>', False),
    ],
)
def test_disambiguation_pages_are_recognised(title: str, html: str, expected: bool) -> None:
    """By their title, by their box, or by how they begin; a link to one makes none."""
    assert is_disambiguation(title, html) is expected


def test_near_duplicates_by_an_example() -> None:
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
    assert near_duplicates([]) == []


def naive(texts: list[str], known: list[str], threshold: float) -> list[int]:
    """Every text against every one that stays."""
    stay = [word_set(t) for t in known]
    found = []
    for i, words in enumerate(map(word_set, texts)):
        if any(len(words & o) >= threshold * len(words | o) for o in stay if words | o or words == o):
            found.append(i)
        else:
            stay.append(words)
    return found


_sentences = st.lists(
    st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=14).map(" ".join), max_size=12
)


@given(_sentences, _sentences, st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]))
def test_near_duplicates_are_those_of_all_pairs(texts: list[str], known: list[str], threshold: float) -> None:
    """The index over rare words finds just what comparing all pairs finds."""
    assert near_duplicates(texts, known, threshold) == naive(texts, known, threshold)
