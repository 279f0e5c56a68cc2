"""Running text into sentences."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from vlltr_index.corpus.clean import normalise_text

if TYPE_CHECKING:
    from nupunkt import PunktSentenceTokenizer

__all__ = ["split_sentences"]

_ABBREVIATIONS = ["approx", "ca", "cf", "cv", "fig", "figs", "spp", "ssp", "subsp", "syn", "var"]
_HEADING = re.compile(r"=+[^=].*=+")  # as in wiki text: == Description ==
_UNBROKEN = re.compile(r"\S{500}")  # the splitter's time is quadratic in such a run
_WRAPPED = 60  # a line of that many characters that ends in mid-sentence was broken to fit the page
_ENDS = tuple(".!?…:;\"”’')]")


@lru_cache(maxsize=1)
def _splitter() -> PunktSentenceTokenizer:
    from nupunkt import load_default_model

    splitter = load_default_model()  # an instance of our own, so the abbreviations stay here
    splitter.add_abbreviations(_ABBREVIATIONS)
    return splitter


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, normalised; wiki headings and pieces without a letter or digit are left out.

    A line break ends a sentence, unless the line was broken only to fit a page: then the next one starts with a
    small letter, or the line is long and ends in mid-sentence.
    """
    found: list[str] = []
    for block in _blocks(text):
        pieces = [block] if _UNBROKEN.search(block) else _splitter().tokenize(block)
        found += [piece for piece in map(normalise_text, pieces) if any(map(str.isalnum, piece))]
    return found


def _blocks(text: str) -> list[str]:
    """Lines, those broken to fit a page joined again."""
    blocks: list[list[str]] = []
    last = ""
    for line in map(normalise_text, text.splitlines()):
        if _HEADING.fullmatch(line):
            last = ""
        elif not line or not last:
            blocks.append([line])
            last = line
        elif line[0].islower() or (len(last) >= _WRAPPED and not last.endswith(_ENDS)):
            blocks[-1].append(line)
            last = line
        else:
            blocks.append([line])
            last = line
    return [" ".join(block) for block in blocks if block[0]]
