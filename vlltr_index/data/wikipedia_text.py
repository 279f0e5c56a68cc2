"""Sentences of an article, which the TextExtracts API gives as plain text with `== Headings ==`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice

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
_MOST = 5_000  # sentences of an article
_TEX = re.compile(r"\{\\[a-z]+style")  # the beginning of a formula
_MARK = "\ufffc"  # replaces a formula
_INDENTED = re.compile(r"\n[ \t]+")  # the line break that a formula left within a line
# Brackets and punctuation that are left around something that was removed. A run of them is read from its start alone,
# so that the time is linear in the length of a line.
_GAPS = (
    (re.compile(r"\(\s*(?:[,;:–—-]\s*|or\s+)*\)|\[\s*\]"), ""),
    (re.compile(r"\([\s,;:]+(?:or[\s,;:]*[,;:]\s*)?"), "("),
    (re.compile(r"(?<![\s,;:])[\s,;:]++\)"), ")"),
    (re.compile(r"(?<!\s)\s++([,.;:!?])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;])(?:\s*[,;])+"), r"\1"),
)
_PASSES = 50  # over a line; each removes one level of nested brackets, of which articles have two or three
_END = re.compile(rf"[.!?…{WIDE_ENDS}।۔։][{re.escape(CLOSING)}]*\Z")
_UNSPACED = re.compile(f"[{WIDE_ENDS}]")
_MARKUP = re.compile(rf"[{{}}\\{_MARK}]|\[\[|\]\]|</?\w")


def plain_text(extract: str) -> str:
    """Clean an extract: each paragraph and heading is on one line, formulae are U+FFFC, and gaps are repaired.

    Gaps are empty brackets, and double or loose punctuation, where the wiki left something out.
    """
    return "\n".join(map(_mend, _INDENTED.sub(" ", _marked(extract)).splitlines())).rstrip("\n")


def _marked(extract: str) -> str:
    """Replace each formula by U+FFFC, with a full stop if the formula ends with one.

    A formula occurs twice: as MathML on indented lines after a blank one, and then as TeX, which ends with the last
    curly bracket of its line.
    """
    pieces: list[str] = []
    first: int | None = None  # the piece of the blank line after which all lines are indented
    for line in extract.split("\n"):
        end = line.rfind("}") + 1
        formula = _TEX.search(line, 0, end)
        indented = line.startswith((" ", "\t"))
        if formula is None:
            if not indented:
                first = None
            elif first is None and pieces and not line.strip(" \t"):
                first = len(pieces)
            pieces += ["\n", line]
            continue
        if first is None or not indented:
            pieces += ["\n", line[: formula.start()]]
        else:
            del pieces[first:]
        stop = "." if line[:end].rstrip("} ").endswith(".") else ""
        pieces += [_MARK, stop, line[end:]]
        first = None
    return "".join(pieces[1:])


def _mend(line: str) -> str:
    """Repair the gaps of a line, until none is left or brackets are nested too deeply."""
    for _ in range(_PASSES):
        before = line
        line = " ".join(line.split())
        for gap, mended in _GAPS:
            line = gap.sub(mended, line)
        if line == before:
            break
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
        bare = line.strip()
        title = bare.lstrip("=")
        level = len(bare) - len(title)
        if level > 1:
            heading = normalise_text(title.rstrip("="))
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
    items of lists, or of fewer than three words; Chinese and Japanese do not part words. Of more than 5,000 sentences
    the first are returned, because `near_duplicates` compares each with all others.
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
    return list(islice(found.values(), _MOST))


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
