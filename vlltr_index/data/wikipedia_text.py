"""Sentences of an article, which the TextExtracts API gives as plain text with `== Headings ==`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vlltr_index.data.text import CLOSING, MAX_SENTENCE, WIDE_ENDS, normalise_text, split_sentences

DROPPED_SECTIONS: dict[str, tuple[str, ...]] = {
    "en": ("References", "External links", "Further reading", "Bibliography", "See also", "Notes"),
    "de": ("Einzelnachweise", "Weblinks", "Literatur", "Siehe auch", "Anmerkungen"),
    "fr": ("Références", "Liens externes", "Bibliographie", "Voir aussi", "Notes", "Notes et références"),
    "es": ("Referencias", "Enlaces externos", "Bibliografía", "Véase también", "Notas"),
}
"""Headings of the sections that describe nothing, by language."""

_MIN_WORDS = 3
_NEAR = 0.9
_HEADING = re.compile(r"(={2,})\s*(.*?)\s*=*")
# A formula occurs twice: as MathML on indented lines after a blank one, and then as TeX.
_FORMULA = re.compile(r"(?:\n[ \t]+(?=\n)(?:\n[ \t][^\n]*)*?)?\{\\[a-z]+style[^\n]*\}")
_MARK = "\ufffc"  # replaces a formula
_INDENTED = re.compile(r"\n[ \t]+")  # the line break that a formula left within a line
_GAPS = (  # brackets and punctuation that are left around something that was removed
    (re.compile(r"\(\s*(?:[,;:–—-]\s*|or\s+)*\)|\[\s*\]"), ""),
    (re.compile(r"\([\s,;:]+(?:or[\s,;:]*[,;:]\s*)?"), "("),
    (re.compile(r"[\s,;:]+\)"), ")"),
    (re.compile(r"\s+([,.;:!?])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;])(?:\s*[,;])+"), r"\1"),
)
_END = re.compile(rf"[.!?…{WIDE_ENDS}।۔։][{re.escape(CLOSING)}]*\Z")
_UNSPACED = re.compile(f"[{WIDE_ENDS}]")
_MARKUP = re.compile(rf"[{{}}\\{_MARK}]|\[\[|\]\]|</?\w")


def plain_text(extract: str) -> str:
    """Clean an extract: each paragraph and heading is on one line, formulae are U+FFFC, and gaps are repaired.

    Gaps are empty brackets, and double or loose punctuation, where the wiki left something out.
    """

    def mark(formula: re.Match[str]) -> str:
        ends = formula[0].rstrip("} ").endswith(".")
        return f"{_MARK}." if ends else _MARK

    marked = _FORMULA.sub(mark, extract)
    return "\n".join(map(_mend, _INDENTED.sub(" ", marked).splitlines())).rstrip("\n")


def _mend(line: str) -> str:
    """Repair the gaps of a line, until none is left."""
    before = None
    while line != before:
        before = line
        line = " ".join(line.split())
        for gap, mended in _GAPS:
            line = gap.sub(mended, line)
    return line


def sections(text: str, dropped: Sequence[str]) -> list[tuple[str, str]]:
    """Split an article into headings and bodies, without sections of `dropped` and their subsections.

    The heading of the introduction is empty.
    """
    away = set(map(str.casefold, dropped))
    found: list[tuple[str, list[str]]] = [("", [])]
    path: list[tuple[int, str]] = []  # the open headings with their levels
    kept = True
    for line in text.splitlines():
        match = _HEADING.fullmatch(line.strip())
        if match:
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
    """Return the different sentences of an extract, without the sections `dropped`.

    Left out are also sentences with a formula or markup in them, and pieces without punctuation at the end, such as
    items of lists, or of fewer than three words; Chinese and Japanese do not part words.
    """
    found: dict[str, str] = {}
    for _, body in sections(plain_text(extract), dropped):
        for line in body.splitlines():
            for sentence in split_sentences(line):
                long = len(sentence.split()) >= _MIN_WORDS or _UNSPACED.search(sentence)
                if (
                    long
                    and len(sentence) <= MAX_SENTENCE
                    and _END.search(sentence)
                    and not _MARKUP.search(sentence)
                ):
                    found.setdefault(sentence.casefold(), sentence)
    return list(found.values())


def near_duplicates(texts: Sequence[str], known: Iterable[str] = ()) -> list[int]:
    """Return the positions of texts that are near duplicates of an earlier text that is kept, or of one of `known`.

    Two texts are near duplicates if their sets of words, without case, have a Jaccard index of at least 0.9.
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
    """Return the set of a text's words, without case."""
    return frozenset(re.findall(r"\w+", text.casefold()))
