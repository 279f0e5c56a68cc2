"""Sentences about a character: prompts, and facts from the Unicode data and the tables of words and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.datasets.glyphs_lt.shapes import DIGITS, shape_of
from benchmarks.datasets.glyphs_lt.unicode_data import Character, full_decomposition
from benchmarks.datasets.glyphs_lt.words import ARROWS, MARKS, MODIFIERS, SIGNS

PROMPTS = (
    "{name}",
    "a picture of the {name}.",
    "the character {name}.",
    "a printed {name}.",
    "the {name}, drawn by a type designer.",
    "a glyph for the {name}.",
    "the {name} in a serif typeface.",
    "the {name} in a sans-serif typeface.",
    "a typewritten {name}.",
    "a small grey image of the {name}.",
    "one single character: {name}.",
    "a specimen of the {name} from a font.",
    "the {name}, typeset on a page.",
    "the {name} in a thin typeface.",
    "the {name} in a heavy typeface.",
    "the sign that is called {name}.",
)

CATEGORIES = {
    "Lu": "a capital letter",
    "Ll": "a small letter",
    "Lt": "a titlecase letter",
    "Lo": "a letter without case",
    "Lm": "a modifier letter",
    "Nd": "a decimal digit",
    "Po": "a punctuation mark",
    "Ps": "an opening bracket",
    "Pe": "a closing bracket",
    "Pd": "a dash",
    "Pc": "a connecting punctuation mark",
    "Sc": "a currency sign",
    "Sm": "a mathematical sign",
    "Sk": "a modifier sign",
    "So": "a symbol",
    "Pi": "an opening quotation mark",
    "Pf": "a closing quotation mark",
}
_PLACES = {
    "above": "above",
    "below": "below",
    "through": "through",
    "attached to": "attached to",
    "beside": "beside",
    "before": "in front of",
    "above or inside": "above or inside",
    "at the top of": "at the top of",
}
_NUMBERS = ("no", "one", "two", "three", "four")
_LANGUAGE = r"[A-Z][\w\-]+(?: [A-Z][\w\-]+)?"
_LANGUAGES = re.compile(rf"^{_LANGUAGE}(?:, (?:and )?(?:{_LANGUAGE}|many other languages))*$")
_CUT_OFF = re.compile(
    r"(?:^|\s)(?:of|with|for|to|from|and|or|as|by|in|is|are|the|a|at|than|also|see|letter|form)$"
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A letter's name taken apart: script, case, modifiers, the plain letter, and its marks in order."""

    script: str
    case: str
    modifiers: tuple[str, ...]
    letter: str
    marks: tuple[str, ...]


def parse_name(name: str) -> Parsed | None:
    """Take apart the name of a letter, or return None for a name of another kind.

    "latin small letter e with circumflex and acute" gives script latin, case small, letter e, marks circumflex, acute.
    """
    head, _, tail = name.partition(" with ")
    found = re.match(r"(latin|greek|cyrillic|armenian|georgian)(?: (.*?))? letter (.+)$", head)
    if found is None:
        return None
    script, case, letter = found.group(1), (found.group(2) or "").strip(), found.group(3)
    modifiers: list[str] = []
    words = sorted(MODIFIERS, key=len, reverse=True)
    while True:
        word = next((word for word in words if letter.startswith(word + " ")), None)
        if word is None:
            break
        modifiers.append(word)
        letter = letter[len(word) + 1 :]
    # "with upturn" is part of what makes the letter, not a mark, but reads the same.
    marks = tuple(piece.strip() for piece in re.split(r" and ", tail)) if tail else ()
    return Parsed(script, case.split()[-1] if case else "", tuple(modifiers), letter, marks)


def phrases_of(name: str, table: Mapping[str, str]) -> list[str]:
    """Return the keys of a table found in a name as whole words, longest first, none overlapping, in name order."""
    taken = [False] * len(name)
    found: list[tuple[int, str]] = []
    for phrase in sorted(table, key=lambda p: (-len(p), p)):
        for match in re.finditer(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", name):
            if not any(taken[match.start() : match.end()]):
                taken[match.start() : match.end()] = [True] * (match.end() - match.start())
                found.append((match.start(), phrase))
    ordered = [phrase for _, phrase in sorted(found)]
    return list(dict.fromkeys(ordered))


def _a(words: str) -> str:
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _listing(pieces: Sequence[str]) -> str:
    return pieces[0] if len(pieces) == 1 else f"{', '.join(pieces[:-1])} and {pieces[-1]}"


def _closed(look: str) -> str:
    """End a look that holds a comma with one, so that the place can follow."""
    return look + "," if "," in look and not look.endswith(",") else look


def _plain_letter(parsed: Parsed) -> str:
    script = parsed.script.capitalize()
    return " ".join(word for word in (parsed.case, *parsed.modifiers, script, parsed.letter) if word)


def letter_facts(parsed: Parsed) -> list[str]:
    """Return sentences about the look of a letter: base, modifiers, marks, their places and number."""
    facts: list[str] = []
    plain = _plain_letter(parsed)
    shape = shape_of(parsed.script, parsed.case, parsed.letter)
    known = [(mark, _closed(MARKS[mark][0]), MARKS[mark][1]) for mark in parsed.marks if mark in MARKS]
    if shape:
        facts.append(f"The plain {parsed.letter} is {shape}.")
        if not parsed.marks and not parsed.modifiers:
            facts.append(f"It looks like this: {shape}.")
    facts += [f"The {parsed.letter} is {word}: {MODIFIERS[word]}." for word in parsed.modifiers]
    if not parsed.marks:
        facts.append(f"This is {_a(plain)} without any mark.")
        return facts
    base = " ".join(
        (parsed.script, *([parsed.case] if parsed.case else []), "letter", *parsed.modifiers, parsed.letter)
    )
    facts.append(f"Its base is the {base}.")
    facts.append(f"Take {_a(plain)} and add {_listing([_a(mark) for mark in parsed.marks])}.")
    facts.append(f"It is written as {parsed.letter} with {_listing(list(parsed.marks))}.")
    for mark, look, where in known:
        facts.append(f"It carries {_a(mark)}, {look} {_PLACES[where]} the letter.")
        facts.append(f"Look for {look} {_PLACES[where]} the {parsed.letter}.")
    if len(known) == len(parsed.marks):
        looks = _listing([f"{look} {_PLACES[where]} it" for _, look, where in known])
        facts.append(f"{_a(plain)[0].upper()}{_a(plain)[1:]} with {looks}.")
        if shape:
            facts.append(f"You see {shape}, and also {looks}.")
        places = [where for _, _, where in known]
        counts = [f"{_NUMBERS[places.count(place)]} {_PLACES[place]}" for place in dict.fromkeys(places)]
        number = f"{_NUMBERS[len(known)]} mark{'s' if len(known) > 1 else ''}"
        facts.append(f"It has {number}: {_listing(counts)} the {parsed.letter}.")
    return facts


def sign_facts(char: Character) -> list[str]:
    """Return sentences about the look of a digit, arrow, or other sign, from the words of its name."""
    facts: list[str] = []
    if char.name in DIGITS:
        facts.append(f"The {char.name} is drawn as {DIGITS[char.name]}.")
        facts.append(f"You see {DIGITS[char.name]}.")
    arrow = re.search(r"\b(arrows?|harpoons?|arrow-tail|fish tail)\b", char.name) is not None
    table = {**SIGNS, **ARROWS} if arrow else SIGNS
    found = phrases_of(char.name, table)
    kind = "arrow" if arrow else "sign"
    for phrase in found:
        facts.append(f"In its name, {phrase} means: {table[phrase]}.")
    if found:
        facts.append(f"The look of this {kind}: {'; '.join(table[phrase] for phrase in found)}.")
        facts.append(f"This {kind} is made of these parts: {', '.join(found)}.")
        facts += [f"Look at the {kind} called {char.name}: {table[phrase]}." for phrase in found]
    return facts


def note_facts(notes: Iterable[str]) -> list[str]:
    """Turn notes of the names list into sentences; a list of languages reads "Used in: ..."."""
    facts: list[str] = []
    for note in notes:
        text = re.sub(r"\b[0-9A-F]{4,6}\b", "", note)
        text = re.sub(r"\s+", " ", text).strip().rstrip(" .;,")
        if not text or _CUT_OFF.search(text):
            continue
        if any(ord(sign) > 0x24F and not sign.isascii() for sign in text):
            continue
        if _LANGUAGES.match(text) and len(text) > 3:
            facts.append(f"Used in: {text}.")
        else:
            facts.append(f"Note: {text}.")
    return facts


def relation_facts(char: Character, table: Mapping[int, Character], twins: Sequence[int]) -> list[str]:
    """Return sentences on decomposition, case partner, script, block, category, other names, cross references."""
    facts: list[str] = []
    parts = [table[int(piece, 16)].name for piece in char.decomposition.split() if not piece.startswith("<")]
    if len(parts) > 1:
        facts.append(f"It is composed of {_listing(parts)}.")
        full = [table[code].name for code in full_decomposition(dict(table), char.code)]
        if len(full) > len(parts):
            facts.append(f"Taken fully apart it is {_listing(full)}.")
    if char.lower is not None and char.lower in table:
        facts.append(f"Its small form is the {table[char.lower].name}.")
        facts.append(f"The {char.name} is a capital.")
    if char.upper is not None and char.upper in table:
        facts.append(f"Its capital form is the {table[char.upper].name}.")
        facts.append(f"The {char.name} is in lower case.")
    category = CATEGORIES.get(char.category, "a character")
    if char.script in ("Common", "Inherited", ""):
        facts.append(f"The {char.name} is {category}.")
    else:
        facts.append(f"The {char.name} is {category} of the {char.script} script.")
    facts.append(f"It belongs to the Unicode block {char.block}, as {char.name}.")
    facts += [f"It is also called {alias}." for alias in char.aliases if _is_plain(alias)]
    facts += [f"The same shape serves as the {table[code].name}." for code in twins if code in table]
    facts += [f"Compare the {table[code].name}." for code in char.crosses if code in table]
    return facts


def _is_plain(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9 '()\-]*", text))


def sentences_of(char: Character, table: Mapping[int, Character], twins: Sequence[int] = ()) -> list[str]:
    """Return every sentence about a character, each once, in a fixed order.

    Args:
        char: the character that stands for the class.
        table: all characters, for the names of partners.
        twins: other code points merged into the class, because they look the same.
    """
    sentences = [prompt.format(name=char.name) for prompt in PROMPTS]
    parsed = parse_name(char.name)
    sentences += letter_facts(parsed) if parsed else sign_facts(char)
    sentences += relation_facts(char, table, twins)
    sentences += note_facts(char.notes)
    for code in twins:
        if code in table:
            sentences += note_facts(table[code].notes)
    return unique(sentences)


def unique(sentences: Iterable[str]) -> list[str]:
    """Return the sentences in order, each once, without regard to case."""
    seen: dict[str, str] = {}
    for sentence in sentences:
        seen.setdefault(sentence.casefold(), sentence)
    return list(seen.values())


def gives_away(sentence: str, names: Iterable[str], char: str) -> bool:
    """Say whether a sentence holds one of the names as whole words, or the character itself beyond plain ASCII."""
    lowered = sentence.casefold()
    if ord(char) > 0x7F and char in sentence:
        return True
    return any(
        name.casefold() in lowered
        and re.search(rf"(?<![\w-]){re.escape(name.casefold())}(?![\w-])", lowered) is not None
        for name in names
    )
