"""Text: normalising, hashing and splitting into sentences; names of classes and splits, and prompts for names."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlltr_index.data.files import read_lines, require
from vlltr_index.errors import ConfigError, InputError, UsageError
from vlltr_index.schemas.records import SentenceRecord

if TYPE_CHECKING:
    from nupunkt import PunktSentenceTokenizer

MAX_SENTENCE = 4_000
"""Most characters of a sentence; longer pieces are no sentences, and no encoder reads so far."""

_MAX_NAME = 200  # characters
_SPLIT = re.compile(r"[\w.-]{1,64}")

# Control characters that are not white space, surrogates, and invisible marks that carry no meaning in a sentence:
# soft hyphen, zero-width space, byte order mark, directional marks. The zero-width joiners stay: words need them.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
# Letters with the combining marks behind them; no letter is composed with a mark before it.
_PIECE = re.compile(r"[\w\x00-\x7f]*[^\w\x00-\x7f]{0,100}")
_SHORT = 1000
_ABBREVIATIONS = ["approx", "ca", "cf", "cv", "fig", "figs", "spp", "ssp", "subsp", "syn", "var"]
# Abbreviations of three letters and more that are kept; the splitter's list has thousands of plain words too.
_COMMON = re.compile(
    r"abb|alt|approx|apr|auct|aug|ave|avg|capt|col|cols|corp|dec|dept|diam|dist|ed|eds|elev|esp|esq|est|etc|"
    r"excl|feb|fig|figs|gen|gov|hon|ibid|illus|inc|incl|inst|jan|jul|jun|lat|lib|lieut|ltd|mar|max|med|messrs|"
    r"min|misc|mrs|mus|nat|nom|nov|oct|op|opp|orig|phil|pls|pop|poss|pref|prof|prov|pseud|pub|publ|ref|rep|rev|"
    r"sci|sec|sect|sen|sep|sept|ser|sgt|spec|spp|ssp|subsp|syn|temp|trans|univ|var|vars|viz|vol|vols"
)
_HEADING = re.compile(r"=+[^=].*=")  # as in wiki text: == Description ==
_OPENERS = (  # words that begin a sentence and are not names
    "It|Its|This|That|These|Those|They|Their|There|The|He|She|His|Her|We|An?|In|At|As|And|But|For|From|By|With|"
    "When|While|Where|After|Before|Although|Though|However|Because|If|Since|During|Then|Some|Many|Most|Both|Each|"
    "All|Other|Unlike|Such|Also"
)
# "vitamin C. It", "3 m. The": a sentence ends with a single letter, which the splitter takes for an initial.
_LETTER_END = re.compile(
    rf"(?:(?<=[^\W\d_] )[A-Z]|(?<=\d )[a-zA-Zµ]{{1,3}}|(?<=\d)[a-z])\.(?= (?:{_OPENERS})\s)"
)
# "two wings. Its": a sentence ends with a word, but the splitter knows the two words as a collocation.
_WORD_END = re.compile(rf"\b([a-z]{{3,}})\.(?= (?:{_OPENERS})\s)")
WIDE_ENDS = "。｡！？"
"""What ends a sentence in Chinese and Japanese, which part words and sentences by no space."""
CLOSING = "'\"”’»)]」』）》〉】］〕｣"
"""Quotes and brackets that close behind the end of a sentence."""
# The splitter needs a space. Before a closing quote the sentence may go on.
_WIDE_END = re.compile(rf"(?<=[{WIDE_ENDS}])(?![{WIDE_ENDS}!?\[{re.escape(CLOSING)}])")
_UNBROKEN = re.compile(r"\S{500}")  # the splitter's time is quadratic in the length of such a run
_WRAPPED = 60  # a line of so many characters that ends within a sentence is taken to be wrapped
_ENDS = tuple(f".!?…:;{WIDE_ENDS}{CLOSING}")

_KEY = re.compile(r" \(n\d{8}\)$")  # a WordNet id that distinguishes two classes of one name
_SLOT = re.compile(r"(?:\b([Aa]n?|[Tt]he) )?\{\}")
_OWN_ARTICLE = re.compile(r"(?:a|an|the)\s", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:[aeiou]|hour|honest|honou?r|heir|8|11\b|18\b)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(
    r"(?:eu|ewe|one|once|u(?:ni(?![nm])|s[ae]|kulele|biqu|tensil|topi|r[aeiou]))", re.IGNORECASE
)


def composed(text: str) -> str:
    """Return text in the form NFC, in linear time.

    The time of `unicodedata` is quadratic in the number of combining marks in a row. So a text of more than 1,000
    characters is composed in pieces with at most 100 of them at the end.
    """
    if len(text) <= _SHORT:
        return unicodedata.normalize("NFC", text)
    return "".join(unicodedata.normalize("NFC", piece) for piece in _PIECE.findall(text))


def normalise_text(text: str) -> str:
    """Normalise text: NFC, without control characters, white space as single spaces, none at the ends."""
    return " ".join(composed(_DROPPED.sub("", text)).split())


def text_hash(text: str) -> str:
    """Compute the SHA-256 of the normalised, case-folded text; sentences with equal hashes count as the same."""
    return hashlib.sha256(normalise_text(text).casefold().encode()).hexdigest()


def sentence_id(class_id: int, hashed: str) -> str:
    """Compute the key of the sentence with the `text_hash` `hashed` in the class `class_id`."""
    return hashlib.sha256(f"{class_id}\0{hashed}".encode()).hexdigest()[:32]


def clean_name(name: str, where: str) -> str:
    """Normalise a class name as text.

    Raises:
        InputError: Nothing is left of it, or it is longer than 200 characters; `where` is its place in the message.
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


def folded(name: str) -> str:
    """Normalise a name for comparison without regard to case: names that `clean_name` makes equal are equal here."""
    return normalise_text(normalise_text(name).casefold())  # a casefold may have parts that NFC composes


def check_split(split: str) -> str:
    """Check the name of a split, and return it.

    Raises:
        UsageError: It is not a valid name.
    """
    if not _SPLIT.fullmatch(split):
        raise UsageError(
            f"{split[:80]!r} is no name for a split: letters, digits, '_', '-' and '.', up to 64",
            "For example: --split train",
        )
    return split


@lru_cache(maxsize=1)
def _splitter() -> PunktSentenceTokenizer:
    """Load the sentence splitter, with our abbreviations."""
    from nupunkt import load_default_model

    splitter = load_default_model()  # a new instance, so that the abbreviations change only here
    long = [a for a in splitter.abbreviations if len(a) > 2 and a.isalpha()]
    for word in [a for a in long if not _COMMON.fullmatch(a)]:
        splitter.remove_abbreviation(word)
    splitter.add_abbreviations(_ABBREVIATIONS)
    return splitter


def split_sentences(text: str) -> list[str]:
    """Split text into normalised sentences; wiki headings and pieces without a letter or digit are left out.

    A line break ends a sentence unless the line is wrapped: the next one starts with a small letter, or the line is
    long and ends within a sentence. A Chinese or Japanese full stop needs no space after it.
    """
    found: list[str] = []
    for block in (piece for whole in _blocks(text) for piece in _WIDE_END.split(whole)):
        pieces = [block] if _UNBROKEN.search(block) else _splitter().tokenize(block)
        for whole in map(normalise_text, pieces):
            found += [piece for piece in _parted(whole) if any(map(str.isalnum, piece))]
    return found


def _parted(sentence: str) -> list[str]:
    """Split a sentence again after a single letter, a unit, or a word that is no abbreviation, if one ends there."""
    words = [match.end() for match in _WORD_END.finditer(sentence) if match[1] not in _ABBREVIATIONS]
    letters = [match.end() for match in _LETTER_END.finditer(sentence)]
    ends = sorted({0, *letters, *words, len(sentence)})
    return [sentence[start:end].strip() for start, end in pairwise(ends)]


def _blocks(text: str) -> list[str]:
    """Return the lines of a text, with wrapped ones joined."""
    blocks: list[list[str]] = []
    last = ""
    for line in map(normalise_text, text.splitlines()):
        heading = _HEADING.fullmatch(line)
        wrapped = len(last) >= _WRAPPED and not last.endswith(_ENDS)
        if last and line and not heading and (wrapped or line[0].islower()):
            blocks[-1].append(line)
        elif not heading:
            blocks.append([line])
        last = "" if heading else line
    return [" ".join(block) for block in blocks if block[0]]


def class_prompts(class_name: str, templates: Literal["clip"] | Sequence[str]) -> list[SentenceRecord]:
    """Make a prompt from each template, with `a` or `an` as the name requires and underscores as spaces.

    For `crane (n02012849)` the name in prompts is `crane`.

    Args:
        class_name: The class, as it is named in the workspace.
        templates: Templates with one `{}` each; "clip": the 80 that CLIP was evaluated with.

    Raises:
        ConfigError: A template has no `{}`, or more than one.
    """
    spoken = " ".join(_KEY.sub("", class_name).replace("_", " ").split())
    if templates == "clip":
        from vlltr_index.encoders.openclip import clip_templates  # this import takes seconds

        templates = clip_templates()
    return [SentenceRecord(class_name, _fill(template, spoken), "prompt") for template in templates]


def prompt_templates(which: str) -> Literal["clip"] | tuple[str, ...]:
    """Return the templates for a recipe's `prompts`: "clip" as it is, or those of a text file with one per line.

    Blank lines, and lines that start with `#`, are left out.

    Raises:
        InputError: The file is missing or has no template.
        ConfigError: A template does not have one `{}`.
    """
    if which == "clip":
        return "clip"
    path = Path(os.path.expanduser(which))
    lines = (normalise_text(line) for _, line in read_lines(require(path)))
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    if not templates:
        raise InputError(f"{path} has no template", "Write one a line, such as: a photo of a {}.")
    class_prompts("a class", templates)  # raises for a template that cannot be filled
    return templates


def _fill(template: str, name: str) -> str:
    """Put a name into a template, with `a` or `an` by its sound.

    Raises:
        ConfigError: The template does not have exactly one `{}`.
    """
    if template.count("{}") != 1:
        raise ConfigError(
            f"the prompt {template!r} must have one {{}}, where the class name goes",
            "For example: prompts = ['a photo of a {}.']",
        )
    return _SLOT.sub(lambda slot: _with_article(slot.group(1), name), template)


def _with_article(article: str | None, name: str) -> str:
    """Put the template's article before a name, `a` or `an` by its sound; none before a name that has its own."""
    if article is None or _OWN_ARTICLE.match(name):
        return name
    if article.lower() == "the":
        return f"{article} {name}"
    vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"{article[0]}{'n' if vowel else ''} {name}"
