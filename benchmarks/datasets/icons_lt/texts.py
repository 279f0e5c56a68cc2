"""Sentences about a class: prompts, and what WordNet and the icon sets say, each with its source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.datasets.icons_lt.collect import Icon
from benchmarks.datasets.icons_lt.wordnet import Synset, WordNet

PROMPTS = (
    "{name}",
    "a picture of {a}.",
    "an icon of {a}.",
    "a small grey icon: {name}.",
    "{a}, drawn by an icon designer.",
    "a pictogram for {name}.",
    "{a} in outline.",
    "{a} as a solid shape.",
    "{a} drawn with thin lines.",
    "{a} drawn with heavy lines.",
    "{a} in a few simple strokes.",
    "the sign that stands for {name}.",
    "one single icon: {name}.",
    "{a} from a set of interface icons.",
    "a map symbol for {name}.",
    "{a} in two tones of grey.",
)
"""As many as Glyphs-LT has."""

MOST_RELATED, MOST_CATEGORIES = 8, 6

Sentence = tuple[str, str]
"""A sentence and its source: prompt, `wordnet:<part>:<sense number>`, category, alias or twin."""


def plain(word: str) -> str:
    """A word of WordNet as it is read: spaces for underscores."""
    return word.replace("_", " ")


def with_article(name: str) -> str:
    """The name after a or an."""
    sounds = re.match(r"[aeio]|u(?!ni|se|ti|ra|ku)", name.casefold()) and not re.match(r"eu|one\b|ewe", name)
    return f"{'an' if sounds else 'a'} {name}"


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _firsts(offsets: Iterable[str], nouns: WordNet) -> list[str]:
    return [plain(nouns.synsets[offset].words[0]) for offset in offsets][:MOST_RELATED]


def sense_facts(name: str, sense: Synset, number: int, nouns: WordNet) -> list[Sentence]:
    """What WordNet says of one sense: gloss, examples, synonyms, hypernyms, kinds, parts, substance, wholes."""
    facts: list[Sentence] = []

    def add(part: str, text: str) -> None:
        facts.append((_start(text), f"wordnet:{part}:{number}"))

    add("gloss", f"the word {name} means: {sense.definition}.")
    add("gloss", f"{sense.definition}.")
    pieces = [piece.strip() for piece in re.split(r"; (?![^(]*\))", sense.definition)]
    if len(pieces) > 1:
        for piece in pieces:
            add("gloss", f"it is described so: {piece}.")
    for example in sense.examples:
        add("example", f"{example.rstrip('.')}.")
    others = [plain(word) for word in sense.words if plain(word).casefold() != name]
    for word in others:
        add("synonym", f"another word for it is {word}.")
    above = sense.related("@", "@i")
    for word in _firsts(above, nouns):
        add("hypernym", f"{with_article(name)} is a kind of {word}.")
        add("hypernym", f"this is {with_article(word)}.")
    for offset in above:
        for word in _firsts(nouns.synsets[offset].related("@", "@i"), nouns):
            add("hypernym", f"it is, more widely, a kind of {word}.")
    for part, sign, text in (
        ("hyponym", "~", "one kind of it is the {}."),
        ("part", "%p", "it has this part: {}."),
        ("part", "%s", "it is made of {}."),
        ("whole", "#p", "it is a part of this: {}."),
    ):
        for word in _firsts(sense.related(sign), nouns):
            add(part, text.format(word))
    parts = _firsts(sense.related("%p"), nouns)
    if len(parts) > 1:
        add("part", f"{with_article(name)} has {_listing(parts)}.")
    return facts


def icon_facts(icons: Sequence[Icon], name: str, twins: Sequence[str]) -> list[Sentence]:
    """What the sets say of the icons of a class: categories, aliases, and nouns with a near-identical drawing."""
    facts: list[Sentence] = []
    categories = Counter(
        word
        for icon in icons
        for word in {
            re.sub(r"\s+", " ", re.sub(r"[&/_-]+", " and ", c)).strip().casefold() for c in icon.categories
        }
    )
    for category, _ in sorted(categories.items(), key=lambda item: (-item[1], item[0]))[:MOST_CATEGORIES]:
        facts.append((f"Icon sets file it under {category}.", "category"))
    aliases = {re.sub(r"[-_]+", " ", alias) for icon in icons for alias in icon.aliases}
    known = {re.sub(r"[-_]+", " ", icon.name) for icon in icons} | {name}
    facts += [(f"An icon set also calls it {alias}.", "alias") for alias in sorted(aliases - known)]
    facts += [(f"The same drawing also stands for {with_article(plain(twin))}.", "twin") for twin in twins]
    return facts


def sentences_of(
    noun: str, also: Sequence[str], icons: Sequence[Icon], twins: Sequence[str], nouns: WordNet
) -> list[Sentence]:
    """Every sentence about a class, each once, in a fixed order.

    Args:
        noun: The class's noun.
        also: Nouns merged into it.
        icons: Its icons, near-duplicates among them.
        twins: Nouns under which a near-identical drawing was found.
        nouns: WordNet.
    """
    name = plain(noun)
    found = [(prompt.format(name=name, a=with_article(name)), "prompt") for prompt in PROMPTS]
    for number, sense in enumerate(nouns.senses(noun), 1):
        found += sense_facts(name, sense, number, nouns)
    found += [(f"It is also called {plain(other)}.", "merged") for other in also]
    found += icon_facts(icons, name, twins)
    unique: dict[str, Sentence] = {}
    for text, source in found:
        unique.setdefault(text.casefold(), (text, source))
    return list(unique.values())


def secret_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the names as whole words, or their plurals, in a case-folded sentence."""
    spelled = sorted({re.escape(name).replace(r"\ ", r"[ -]?") for name in names})
    return re.compile(rf"(?<![a-z])(?:{'|'.join(spelled)})(?:e?s)?(?![a-z])")
