"""Reading WordNet's nouns: senses with their glosses and relations, and how often a word is used as a noun."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DRAWN = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 25, 27})
"""Files of what can be seen: animal, artifact, body, food, object, person, phenomenon, plant, shape, substance."""
WRITTEN = frozenset({10, 21})
"""Communication and possession: calendar, ticket, coin."""
_PARTS = {"n": "1", "v": "2", "a": "3", "r": "4"}
_PLURALS = (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", ""))


@dataclass(frozen=True, slots=True)
class Synset:
    """One sense: its words, definition, examples, and the offsets of related noun synsets by pointer sign."""

    offset: str
    file: int
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]

    def related(self, *signs: str) -> list[str]:
        """Offsets behind pointers with one of the signs, such as `@` for hypernyms."""
        return [offset for sign, offset in self.pointers if sign in signs]


class WordNet:
    """The nouns of a folder with WordNet's `data.noun`, `index.*`, `noun.exc` and `cntlist.rev`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.synsets = dict(_synset(line) for line in self._lines("data.noun"))
        self.index = {fields[0]: fields[-int(fields[2]) :] for fields in self._fields("index.noun")}

    def _lines(self, name: str) -> list[str]:
        text = (self.folder / name).read_text(encoding="latin-1")
        return [line for line in text.splitlines() if line and not line.startswith("  ")]

    def _fields(self, name: str) -> list[list[str]]:
        return [line.split() for line in self._lines(name)]

    @cached_property
    def _other(self) -> frozenset[str]:
        return frozenset(f[0] for part in ("verb", "adj", "adv") for f in self._fields(f"index.{part}"))

    @cached_property
    def _counts(self) -> Counter[tuple[str, bool]]:
        """Tagged uses of a word as a noun (True) and as anything else (False)."""
        counts: Counter[tuple[str, bool]] = Counter()
        for key, _, count in self._fields("cntlist.rev"):
            word, _, rest = key.partition("%")
            counts[word, rest[0] == _PARTS["n"]] += int(count)
        return counts

    @cached_property
    def _irregular(self) -> dict[str, str]:
        return {fields[0]: fields[1] for fields in self._fields("noun.exc")}

    def senses(self, word: str) -> list[Synset]:
        """The noun senses of a word (underscores for spaces), most frequent first."""
        return [self.synsets[offset] for offset in self.index.get(word, [])]

    def singular(self, word: str) -> str:
        """The singular of a regular or irregular plural that is no noun itself; else the word."""
        if word in self.index:
            return word
        if self._irregular.get(word) in self.index:
            return self._irregular[word]
        for end, other in _PLURALS:
            if word.endswith(end) and word[: -len(end)] + other in self.index:
                return word[: -len(end)] + other
        return word

    def main_sense(self, word: str) -> Synset | None:
        """The first sense of what can be seen, else the first of what can be written or owned, else None."""
        for files in (DRAWN, WRITTEN):
            for sense in self.senses(word):
                if sense.file in files and word in sense.words:
                    return sense
        return None

    def is_thing(self, word: str) -> bool:
        """Whether a word of three letters or more is chiefly a noun, is written small, and names what can be drawn.

        Chiefly: at least half of its tagged uses are nouns; without tagged uses, it is no other part of speech.
        """
        if not re.fullmatch(r"[a-z]{3}[a-z_-]*", word) or self.main_sense(word) is None:
            return False
        noun, other = self._counts[word, True], self._counts[word, False]
        return noun >= other if noun or other else word not in self._other


def _synset(line: str) -> tuple[str, Synset]:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    pairs = fields[5 + 2 * count :]
    pointers = tuple((pairs[i], pairs[i + 1]) for i in range(0, len(pairs) - 3, 4) if pairs[i + 2] == "n")
    examples = tuple(re.findall(r'"([^"]+)"', gloss))
    definition = re.sub(r'\s*[;:,]?\s*(?:-- )?"[^"]*"', "", gloss).strip(" ;")
    words = tuple(fields[4 : 4 + 2 * count : 2])
    return fields[0], Synset(fields[0], int(fields[1]), words, definition, examples, pointers)
