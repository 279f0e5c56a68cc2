"""An article as the TextExtracts API gives it, in plain text with `== Headings ==`, to sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vlltr_index.data.text import MAX_SENTENCE, normalise_text, split_sentences

DROPPED_SECTIONS: dict[str, tuple[str, ...]] = {
    "en": ("References", "External links", "Further reading", "Bibliography", "See also", "Notes"),
    "de": ("Einzelnachweise", "Weblinks", "Literatur", "Siehe auch", "Anmerkungen"),
    "fr": ("Références", "Liens externes", "Bibliographie", "Voir aussi", "Notes", "Notes et références"),
    "es": ("Referencias", "Enlaces externos", "Bibliografía", "Véase también", "Notas"),
}
"""Headings, by language, of the sections that do not describe anything."""

_MIN_WORDS = 3
_NEAR = 0.9
_HEADING = re.compile(r"(={2,})\s*(.*?)\s*=*")
# A formula comes twice: its MathML on indented lines of its own, which a blank one opens, then its TeX.
_FORMULA = re.compile(r"(?:\n[ \t]+(?=\n)(?:\n[ \t][^\n]*)*?)?\{\\[a-z]+style[^\n]*\}")
_MARK = "\ufffc"  # stands where a formula was
_INDENTED = re.compile(r"\n[ \t]+")  # the rest of a line that a formula broke
_GAPS = (  # what is left around something that was taken out
    (re.compile(r"\(\s*(?:[,;:–—-]\s*|or\s+)*\)|\[\s*\]"), ""),
    (re.compile(r"\([\s,;:]+(?:or[\s,;:]*[,;:]\s*)?"), "("),
    (re.compile(r"[\s,;:]+\)"), ")"),
    (re.compile(r"\s+([,.;:!?])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;])(?:\s*[,;])+"), r"\1"),
)
_END = re.compile(r"[.!?…。！？।۔։]['\"”’»)]*\Z")
_MARKUP = re.compile(rf"[{{}}\\{_MARK}]|\[\[|\]\]|</?\w")


def plain_text(extract: str) -> str:
    """An extract with each paragraph and heading on one line, gaps mended, U+FFFC in place of formulae.

    Gaps are empty brackets, and doubled or loose marks, where the wiki left something out.
    """
    marked = _FORMULA.sub(lambda match: _MARK + "." * match[0].rstrip("} ").endswith("."), extract)
    return "\n".join(map(_mend, _INDENTED.sub(" ", marked).splitlines())).rstrip("\n")


def _mend(line: str) -> str:
    before = None
    while line != before:
        before = line
        line = " ".join(line.split())
        for gap, mended in _GAPS:
            line = gap.sub(mended, line)
    return line


def sections(text: str, dropped: Sequence[str]) -> list[tuple[str, str]]:
    """Headings and bodies of an article, without those of `dropped` and all below them; the lead has no heading."""
    away = set(map(str.casefold, dropped))
    found: list[tuple[str, list[str]]] = [("", [])]
    path: list[tuple[int, str]] = []  # the open headings with their levels
    kept = True
    for line in text.splitlines():
        if match := _HEADING.fullmatch(line.strip()):
            level = len(match[1])
            heading = normalise_text(match[2])
            path = [*(above for above in path if above[0] < level), (level, heading.casefold())]
            kept = not away.intersection(name for _, name in path)
            if kept:
                found.append((heading, []))
        elif kept:
            found[-1][1].append(line)
    return [(heading, "\n".join(lines)) for heading, lines in found]


def article_sentences(extract: str, dropped: Sequence[str]) -> list[str]:
    """The sentences of an extract, each different one once; see `sections` for what is left out.

    Left out too: what has fewer than three words or no end, as items of lists; and what is not whole, because a
    formula or markup is in it.
    """
    found: dict[str, str] = {}
    for _, body in sections(plain_text(extract), dropped):
        for sentence in (s for line in body.splitlines() for s in split_sentences(line)):
            whole = len(sentence.split()) >= _MIN_WORDS and len(sentence) <= MAX_SENTENCE
            if whole and _END.search(sentence) and not _MARKUP.search(sentence):
                found.setdefault(sentence.casefold(), sentence)
    return list(found.values())


def near_duplicates(texts: Sequence[str], known: Iterable[str] = ()) -> list[int]:
    """Positions of the texts that nearly repeat an earlier one that stays, or one of `known`; ascending.

    Two texts nearly repeat each other if their sets of words, without case, have a Jaccard index of 0.9 or more.
    """
    stay = [_words(text) for text in known]
    found = []
    for position, words in enumerate(map(_words, texts)):
        if any(_NEAR * len(words | other) <= len(words & other) for other in stay):
            found.append(position)
        else:
            stay.append(words)
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))
