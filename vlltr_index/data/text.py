"""Text: normalised, hashed, split into sentences; names of classes and splits, and the prompts made from them."""

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

_KEY = re.compile(r" \(n\d{8}\)$")  # a WordNet id that tells two classes of one name apart
_SLOT = re.compile(r"(?:\b([Aa]n?|[Tt]he) )?\{\}")
_OWN_ARTICLE = re.compile(r"(?:a|an|the)\s", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:[aeiou]|hour|honest|honou?r|heir|8|11\b|18\b)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(
    r"(?:eu|ewe|one|once|u(?:ni(?![nm])|s[ae]|kulele|biqu|tensil|topi|r[aeiou]))", re.IGNORECASE
)


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
    long = [a for a in splitter.abbreviations if len(a) > 2 and a.isalpha()]
    for word in [a for a in long if not _COMMON.fullmatch(a)]:
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
        heading = _HEADING.fullmatch(line)
        wrapped = len(last) >= _WRAPPED and not last.endswith(_ENDS)
        if last and line and not heading and (wrapped or line[0].islower()):
            blocks[-1].append(line)
        elif not heading:
            blocks.append([line])
        last = "" if heading else line
    return [" ".join(block) for block in blocks if block[0]]


def class_prompts(class_name: str, templates: Literal["clip"] | Sequence[str]) -> list[SentenceRecord]:
    """One sentence for each template, with `a` or `an` as the name asks and underscores as spaces.

    Of `crane (n02012849)` the name is `crane`.

    Args:
        class_name: The class, as it is named in the workspace.
        templates: Each with one `{}`; "clip": the 80 that CLIP was evaluated with.

    Raises:
        ConfigError: If a template has no `{}`, or more than one.
    """
    spoken = " ".join(_KEY.sub("", class_name).replace("_", " ").split())
    if templates == "clip":
        from vlltr_index.encoders.openclip import clip_templates  # seconds, so only where prompts are made

        templates = clip_templates()
    return [SentenceRecord(class_name, _fill(template, spoken), "prompt") for template in templates]


def prompt_templates(which: str) -> Literal["clip"] | tuple[str, ...]:
    """What a recipe's `prompts` are: "clip" as it is, or the templates of a text file with one a line.

    Blank lines, and lines that start with `#`, are left out.

    Raises:
        InputError: If the file is missing or has no template.
        ConfigError: If a template does not have one `{}`.
    """
    if which == "clip":
        return "clip"
    path = Path(os.path.expanduser(which))
    lines = (normalise_text(line) for _, line in read_lines(require(path)))
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    if not templates:
        raise InputError(f"{path} has no template", "Write one a line, such as: a photo of a {}.")
    class_prompts("a class", templates)  # raises for one that cannot be filled
    return templates


def _fill(template: str, name: str) -> str:
    if template.count("{}") != 1:
        raise ConfigError(
            f"the prompt {template!r} must have one {{}}, where the class name goes",
            "For example: prompts = ['a photo of a {}.']",
        )
    return _SLOT.sub(lambda slot: _with_article(slot.group(1), name), template)


def _with_article(article: str | None, name: str) -> str:
    if article is None or _OWN_ARTICLE.match(name):
        return name
    if article.lower() == "the":
        return f"{article} {name}"
    vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"{article[0]}{'n' if vowel else ''} {name}"
