"""From the name of an icon to the noun that it draws."""

from __future__ import annotations

import re

from benchmarks.datasets.icons_lt.wordnet import WordNet

_STYLES = """
outline outlined filled fill solid line linear bold thin light duotone twotone two tone duo rounded round
sharp regular broken remix alt o baseline stroke glyph icon color flat mini small large tiny
"""
STYLES = frozenset(_STYLES.split())
"""Words at either end of a name that say how an icon is drawn; so do numbers at its end."""

_BRANDS = """
adobe amazon android apple asana atlas black_tie blackberry blender blogger bluetooth buffer chrome confluence
diaspora discourse docker dribble edge element ember empire fedora finder firebase foundation framer frigate
git hangout hive hornbill intercom java line mastodon medium messenger metro notion opera oracle periscope
perplexity pix pocket python republican ripple ruby safari shell sketch spring stripe stylus telegram tesla
threads tinder typescript unity vine windows yahoo
"""
BRANDS = frozenset(_BRANDS.split())
"""Nouns under which icon sets draw a firm's logo; found among the names of the package's logo sets."""


OTHERWISE = frozenset(["doc", "number"])
"""Nouns that sets mean otherwise: short for document, and a numbered series of different drawings."""


def noun_of(name: str, nouns: WordNet, logos: frozenset[str]) -> str | None:
    """The noun (underscores for spaces) of an icon's name such as `shopping-cart-2-fill`, or None.

    The name stands if it is a noun, or the plural of one and no logo's name; but "bus-line" is a bus in lines.
    Else one word of style or number is taken from its end or its start, and what is left is looked up again.
    """
    words = name.split("-")
    while words:
        word = "_".join(words)
        found = nouns.singular(word)
        if found in nouns.index and (found == word or word not in logos) and not word.endswith("_line"):
            taken = found in BRANDS or word in BRANDS or found in OTHERWISE
            return None if taken or not nouns.is_thing(found) else found
        if len(words) > 1 and (words[-1] in STYLES or re.fullmatch(r"\d+(px)?", words[-1])):
            words = words[:-1]
        elif len(words) > 1 and words[0] in STYLES:
            words = words[1:]
        else:
            return None
    return None
