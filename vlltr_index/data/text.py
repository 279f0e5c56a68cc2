"""Text: normalised, hashed, split into sentences; and the names of classes and splits."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from vlltr_index.errors import InputError, UsageError

if TYPE_CHECKING:
    from nupunkt import PunktSentenceTokenizer

MAX_SENTENCE = 4_000
"""Characters a sentence may have: more is no sentence, and no encoder reads so far."""

_MAX_NAME = 200  # characters
_SPLIT = re.compile(r"[\w.-]{1,64}")

# Control characters that are not white space, surrogates, and invisible marks that carry no meaning in a sentence:
# soft hyphen, zero-width space, byte order mark, directional marks. The zero-width joiners stay: words need them.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
_ABBREVIATIONS = ["approx", "ca", "cf", "cv", "fig", "figs", "spp", "ssp", "subsp", "syn", "var"]
# Abbreviations of three letters and more; the splitter's own list has thousands of plain words.
_COMMON = re.compile(
    r"abb|alt|approx|apr|auct|aug|ave|avg|capt|col|cols|corp|dec|dept|diam|dist|ed|eds|elev|esp|esq|est|etc|"
    r"excl|feb|fig|figs|gen|gov|hon|ibid|illus|inc|incl|inst|jan|jul|jun|lat|lib|lieut|ltd|mar|max|med|messrs|"
    r"min|misc|mrs|mus|nat|nom|nov|oct|op|opp|orig|phil|pls|pop|poss|pref|prof|prov|pseud|pub|publ|ref|rep|rev|"
    r"sci|sec|sect|sen|sep|sept|ser|sgt|spec|spp|ssp|subsp|syn|temp|trans|univ|var|vars|viz|vol|vols"
)
_HEADING = re.compile(r"=+[^=].*=+")  # as in wiki text: == Description ==
_OPENERS = (  # words that begin a sentence and are nobody's name
    "It|Its|This|That|These|Those|They|Their|There|The|He|She|His|Her|We|An?|In|At|As|And|But|For|From|By|With|"
    "When|While|Where|After|Before|Although|Though|However|Because|If|Since|During|Then|Some|Many|Most|Both|Each|"
    "All|Other|Unlike|Such|Also"
)
# "vitamin C. It", "3 m. The": a single letter that ends a sentence, where the splitter takes it for an initial.
_LETTER_END = re.compile(
    rf"(?:(?<=[^\W\d_] )[A-Z]|(?<=\d )[a-zA-Zµ]{{1,3}}|(?<=\d)[a-z])\.(?= (?:{_OPENERS})\s)"
)
# "two wings. Its": a whole word that ends a sentence, where the splitter knows the two words as a pair.
_WORD_END = re.compile(rf"\b([a-z]{{3,}})\.(?= (?:{_OPENERS})\s)")
_UNBROKEN = re.compile(r"\S{500}")  # the splitter's time is quadratic in such a run
_WRAPPED = 60  # a line of that many characters that ends in mid-sentence was broken to fit the page
_ENDS = tuple(".!?…:;\"”’')]")


def normalise_text(text: str) -> str:
    """`text` in NFC, without control characters, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", _DROPPED.sub("", text)).split())


def text_hash(text: str) -> str:
    """SHA-256 of the normalised text without regard to case: what makes two sentences the same."""
    return hashlib.sha256(normalise_text(text).casefold().encode()).hexdigest()


def sentence_id(class_id: int, hashed: str) -> str:
    """The key of the sentence with `text_hash` `hashed` in the class `class_id`."""
    return hashlib.sha256(f"{class_id}\0{hashed}".encode()).hexdigest()[:32]


def clean_name(name: str, where: str) -> str:
    """A class name, normalised as text is.

    Raises:
        InputError: If nothing is left of it or it is longer than 200 characters; `where` says where it stands.
    """
    cleaned = normalise_text(name)
    if not cleaned:
        raise InputError(f"{where}: the class name is empty", "Give every row a class name.")
    if len(cleaned) > _MAX_NAME:
        raise InputError(
            f"{where}: a class name of {len(cleaned):,} characters: {cleaned[:40]!r}...; {_MAX_NAME} are allowed",
            "Is the text where the class name should be?",
        )
    return cleaned


def check_split(split: str) -> str:
    """`split`, if it can be the name of one.

    Raises:
        UsageError: If it cannot.
    """
    if not _SPLIT.fullmatch(split):
        raise UsageError(
            f"{split[:80]!r} is no name for a split: letters, digits, '_', '-' and '.', up to 64",
            "For example: --split train",
        )
    return split


@lru_cache(maxsize=1)
def _splitter() -> PunktSentenceTokenizer:
    from nupunkt import load_default_model

    splitter = load_default_model()  # an instance of our own, so the abbreviations stay here
    for word in [
        a for a in splitter.abbreviations if len(a) > 2 and a.isalpha() and not _COMMON.fullmatch(a)
    ]:
        splitter.remove_abbreviation(word)
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
        for whole in map(normalise_text, pieces):
            found += [piece for piece in _parted(whole) if any(map(str.isalnum, piece))]
    return found


def _parted(sentence: str) -> list[str]:
    """A sentence, parted where a single letter, a unit, or a word that is no abbreviation ends one."""
    words = (match.end() for match in _WORD_END.finditer(sentence) if match[1] not in _ABBREVIATIONS)
    ends = sorted({0, *(match.end() for match in _LETTER_END.finditer(sentence)), *words, len(sentence)})
    return [sentence[start:end].strip() for start, end in pairwise(ends)]


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
