"""Wikitext to running text: sections, without tables, formulae, references, files and markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

__all__ = [
    "DROPPED_SECTIONS",
    "FORMULA",
    "Section",
    "is_sentence_like",
    "keep_sections",
    "tidy",
    "wikitext_sections",
]

DROPPED_SECTIONS: dict[str, tuple[str, ...]] = {
    "en": ("References", "External links", "Further reading", "Bibliography", "See also", "Notes"),
    "de": ("Einzelnachweise", "Weblinks", "Literatur", "Siehe auch", "Anmerkungen"),
    "fr": ("Références", "Liens externes", "Bibliographie", "Voir aussi", "Notes", "Notes et références"),
    "es": ("Referencias", "Enlaces externos", "Bibliografía", "Véase también", "Notas"),
}
"""Headings, by language, of the sections that do not describe anything."""

FORMULA = "\ufffc"
"""Stands where a formula was: a sentence is not whole without it."""

_MAX_TEXT = 8 * 2**20  # characters of wikitext; MediaWiki itself stops at 2 MiB
_SKIPPED_TAGS = frozenset({
    "caption", "categorytree", "code", "gallery", "graph", "hiero", "imagemap", "indicator", "inputbox",
    "mapframe", "maplink", "pre", "ref", "references", "score", "script", "source", "style",
    "syntaxhighlight", "table", "td", "templatestyles", "th", "timeline", "tr",
})  # fmt: skip
_NAMESPACES = frozenset({
    "archivo", "bild", "category", "categoría", "catégorie", "datei", "fichier", "file", "image", "imagen",
    "kategorie", "media",
})  # fmt: skip
_INTERWIKI = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*\Z|simple\Z")
_SENTENCE_END = (".", "!", "?", "…", '."', ".”", ".'", ".)")
_EMPTY_BRACKETS = re.compile(r"\(\s*(?:[,;:–—-]\s*|or\s+)*\)|\[\s*\]")
_OPENING = re.compile(r"\(\s*(?:[,;:]\s*)+")
_CLOSING = re.compile(r"\s*(?:[,;:]\s*)+\)")
_BEFORE_MARK = re.compile(r"\s+([,.;:!?)])(?=\s|$)")
_DOUBLE_MARK = re.compile(r"([,;])(?:\s*[,;])+")
_SWITCH = re.compile(r"__[A-Z]{3,}__|'{2,}")  # also quotes of bold and italics that were never closed


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of an article under one heading; the lead has level 1 and no heading."""

    heading: str
    level: int
    paragraphs: tuple[str, ...]


def keep_sections(
    sections: Iterable[Section], dropped: Sequence[str], only: Sequence[str] = ()
) -> list[Section]:
    """Leave out the sections of `dropped` with all below them; with `only`, keep just the lead and those.

    Headings are compared without regard to case.
    """
    away, wanted = {_fold(h) for h in dropped}, {_fold(h) for h in only}
    kept: list[Section] = []
    dropped_at: int | None = None
    wanted_at: int | None = None
    for section in sections:
        lead = section.level <= 1 and not section.heading
        if dropped_at is not None and section.level <= dropped_at:
            dropped_at = None
        if wanted_at is not None and section.level <= wanted_at:
            wanted_at = None
        if dropped_at is None and _fold(section.heading) in away:
            dropped_at = section.level
        if wanted_at is None and _fold(section.heading) in wanted:
            wanted_at = section.level
        if dropped_at is None and (lead or not wanted or wanted_at is not None):
            kept.append(section)
    return kept


def _fold(heading: str) -> str:
    return " ".join(heading.split()).casefold()


def wikitext_sections(text: str) -> list[Section]:
    """The sections of an article in wikitext, in order, with their paragraphs as plain text.

    What a reader would not read as a sentence is left out: tables, references, files, categories, list
    items that are no sentences, and templates other than those that stand for a few words ({{convert}} gives the
    value and unit it starts from). Where a formula was, `FORMULA` stands.
    """
    code = mwparserfromhell.parse(text[:_MAX_TEXT])
    sections: list[Section] = []
    heading, level, parts = "", 1, list[str]()

    def close() -> None:
        sections.append(Section(heading, level, tuple(_paragraphs("".join(parts)))))

    for node in code.nodes:
        if isinstance(node, nodes.Heading):
            close()
            heading, level, parts = tidy(_render(node.title)), int(node.level), []
        else:
            parts.append(_node(node))
    close()
    return [s for s in sections if s.heading or s.paragraphs]


def _paragraphs(text: str) -> Iterable[str]:
    """Lines with text; items of lists where they are sentences. A blank line or a new item ends one."""
    for block in re.split(r"\n\s*\n|\n(?=[*#:;])", text):
        item = block.lstrip("\n")[:1] in ("*", "#", ":", ";")
        line = tidy(block.lstrip("*#:; \n"))
        if line and (not item or is_sentence_like(line)):
            yield line


def is_sentence_like(line: str) -> bool:
    """Whether a list's item is a sentence: four words or more, and an end."""
    return line.endswith(_SENTENCE_END) and len(line.split()) >= 4


def tidy(text: str) -> str:
    """Mend what is left where something was taken out: brackets without content, doubled and loose marks."""
    text = " ".join(_SWITCH.sub("", text).split())
    for _ in range(3):  # brackets within brackets
        before = text
        text = _CLOSING.sub(")", _OPENING.sub("(", _EMPTY_BRACKETS.sub("", text)))
        if text == before:
            break
    return " ".join(_DOUBLE_MARK.sub(r"\1", _BEFORE_MARK.sub(r"\1", text)).split())


def _render(code: Wikicode | None) -> str:
    return "".join(_node(node) for node in code.nodes) if code is not None else ""


def _node(node: nodes.Node) -> str:
    """What a reader sees of one piece of wikitext."""
    if isinstance(node, nodes.Text):
        return str(node.value)
    if isinstance(node, nodes.Wikilink):
        return _link(node)
    if isinstance(node, nodes.Template):
        return _template(node)
    if isinstance(node, nodes.Tag):
        return _tag(node)
    if isinstance(node, nodes.ExternalLink):
        return _render(node.title) if node.title is not None and node.brackets else ""
    if isinstance(node, nodes.HTMLEntity):
        return str(node.normalize())
    if isinstance(node, nodes.Heading):
        return "\n\n"
    return ""  # comments, and arguments of templates


def _tag(tag: nodes.Tag) -> str:
    name = str(tag.tag).strip().casefold()
    if name in ("math", "chem", "ce"):
        return FORMULA
    if name in _SKIPPED_TAGS:
        return ""
    if name in ("br", "hr", "p", "div"):
        return " " + _render(tag.contents) if name == "br" else f"\n\n{_render(tag.contents)}\n\n"
    if name in ("li", "dd", "dt") and tag.wiki_markup:
        return str(tag.wiki_markup)
    return _render(tag.contents)


def _link(link: nodes.Wikilink) -> str:
    target = str(link.title).strip()
    prefix, colon, _ = target.partition(":")
    kind = prefix.strip().casefold()
    if colon and not target.startswith(":") and (kind in _NAMESPACES or _INTERWIKI.match(prefix.strip())):
        return ""
    return _render(link.text) if link.text is not None else target.removeprefix(":").partition("#")[0]


def _template(template: nodes.Template) -> str:
    name = " ".join(str(template.name).replace("_", " ").split()).casefold()
    values = [tidy(_render(p.value)) for p in template.params if not p.showkey]
    named = {str(p.name).strip(): tidy(_render(p.value)) for p in template.params if p.showkey}
    handler = _TEMPLATES.get(name)
    if handler is None and name.startswith("lang-"):
        return values[0] if values else ""
    return handler(values, named) if handler is not None else ""


_Handler = Callable[[list[str], dict[str, str]], str]
_UNITS = {
    "C": "°C", "F": "°F", "km2": "km²", "m2": "m²", "cm2": "cm²", "ha": "ha", "sqmi": "sq mi", "sqft": "sq ft",
    "m3": "m³", "cm3": "cm³", "km/h": "km/h", "acre": "acres", "foot": "feet", "inch": "inches", "um": "µm",
}  # fmt: skip
_RANGES = {
    "to": " to ",
    "-": "–",
    "–": "–",
    "and": " and ",
    "or": " or ",
    "x": " × ",
    "by": " by ",
    "×": " × ",
}
_NUMBER = re.compile(r"[-+−±]?(?:\d[\d,.]*(?:/\d+)?|\.\d+)(?:[+ ]\d+/\d+)?(?:e[-+]?\d+)?\Z")


def _convert(values: list[str], named: dict[str, str]) -> str:
    """`{{convert|10|to|12|cm|in}}` as "10 to 12 cm": the value and unit that the writer gave."""
    if not values or not _NUMBER.match(values[0]):
        return " ".join(values[:2])
    text, at = values[0], 1
    while at + 1 < len(values) and values[at] in _RANGES and _NUMBER.match(values[at + 1]):
        text += _RANGES[values[at]] + values[at + 1]
        at += 2
    if at < len(values):
        text += f" {_UNITS.get(values[at], values[at])}"
        at += 1
    while at + 1 < len(values) and _NUMBER.match(values[at]):  # 5 ft 11 in; a lone number is the precision
        text += f" {values[at]} {_UNITS.get(values[at + 1], values[at + 1])}"
        at += 2
    return text


def _last(values: list[str], named: dict[str, str]) -> str:
    return values[-1] if values else ""


def _first(values: list[str], named: dict[str, str]) -> str:
    return values[0] if values else ""


def _second(values: list[str], named: dict[str, str]) -> str:
    return values[1] if len(values) > 1 else ""


def _value(values: list[str], named: dict[str, str]) -> str:
    unit = named.get("u") or named.get("ul") or named.get("up") or ""
    return " ".join(part for part in (_first(values, named), unit) if part)


def _fraction(values: list[str], named: dict[str, str]) -> str:
    if len(values) == 1:
        return f"1/{values[0]}"
    whole = f"{values[0]} " if len(values) == 3 else ""
    return whole + "/".join(values[-2:])


def _circa(values: list[str], named: dict[str, str]) -> str:
    return " ".join(["c.", *values[:1]])


def _sign(sign: str) -> _Handler:
    return lambda values, named: sign


_TEMPLATES: dict[str, _Handler] = {
    **dict.fromkeys(("convert", "cvt", "conv"), _convert),
    **dict.fromkeys(("lang", "transl", "transliteration"), _last),
    **dict.fromkeys(
        ("nowrap", "nobr", "small", "em", "strong", "sic", "linktext", "vanchor", "abbr"), _first
    ),
    **dict.fromkeys(("ill", "interlanguage link", "species", "nobold", "noitalic", "smallcaps"), _first),
    **dict.fromkeys(("tooltip", "gloss", "quote", "blockquote", "val/delimitnum"), _first),
    **dict.fromkeys(("math", "mvar", "chem", "chem2", "bigmath", "nummath"), _sign(FORMULA)),
    "val": _value,
    "frac": _fraction,
    "sfrac": _fraction,
    "fraction": _fraction,
    **dict.fromkeys(("circa", "c."), _circa),
    **dict.fromkeys(("snd", "spnd", "spaced en dash", "snds"), _sign(" – ")),
    **dict.fromkeys(("ndash", "en dash", "endash"), _sign("–")),
    **dict.fromkeys(("mdash", "em dash", "emdash"), _sign("—")),
    **dict.fromkeys(("nbsp", "space", "spaces", "thinsp", "thin space"), _sign(" ")),
    **dict.fromkeys(("'", "`"), _sign("'")),
    "'s": _sign("'s"),
    "times": _sign("×"),
    "hybrid": _sign("×"),
    "male": _sign("male"),
    "female": _sign("female"),
    "color": _second,
    "font color": _last,
}
