"""An article as HTML, as ZIM files hold it, to the same sections as wikitext gives."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup
from bs4.element import NavigableString, PreformattedString, Tag

from vlltr_index.corpus.wikipedia_text import FORMULA, Section, is_sentence_like, tidy

__all__ = ["html_sections", "is_disambiguation", "revision_of"]

_MAX_HTML = 32 * 2**20
_AWAY = (
    "table, style, script, noscript, figure, figcaption, svg, audio, video, form, nav, footer, "
    "sup.reference, .mw-references-wrap, ol.references, .reflist, .navbox, .infobox, .hatnote, .dablink, .rellink, "
    ".mw-editsection, .thumb, .gallery, .toc, #toc, .noprint, .metadata, .ambox, .sidebar, "
    ".noexcerpt, .shortdescription, .error, .zim-footer, .mw-empty-elt, .IPA"
)
_BLOCKS = ("h2", "h3", "h4", "h5", "h6", "p", "li", "dd", "blockquote")
_NESTED = frozenset({"ul", "ol", "dl", "p", "li", "dd"})
_DISAMBIGUATION = '[id*="disambig" i], [class*="disambig" i]'
_SEVERAL = re.compile(r"\b(?:may|can|could) (?:also )?refer to\W*$", re.IGNORECASE)
_REVISION = re.compile(r"[?&;]oldid=(\d+)")


def html_sections(html: str) -> list[Section]:
    """The sections of an article in HTML, in order, with their paragraphs as plain text.

    Left out is what `wikitext_sections` leaves out: tables, references, figures, boxes, list items that are no
    sentences; `FORMULA` stands for formulae.
    """
    soup = BeautifulSoup(html[:_MAX_HTML], "html.parser")
    for formula in soup.select(".mwe-math-element, .texhtml, math, .chemf"):
        formula.replace_with(FORMULA)
    for element in soup.select(_AWAY):
        element.decompose()
    sections: list[Section] = []
    heading, level, paragraphs = "", 1, list[str]()
    for block in soup.find_all(_BLOCKS):
        if block.name[0] == "h":
            sections.append(Section(heading, level, tuple(paragraphs)))
            heading, level, paragraphs = tidy(block.get_text()), int(block.name[1]), []
            continue
        line = tidy("".join(_own_text(block)))
        if line and (block.name in ("p", "blockquote") or is_sentence_like(line)):
            paragraphs.append(line)
    sections.append(Section(heading, level, tuple(paragraphs)))
    return [s for s in sections if s.heading or s.paragraphs]


def _own_text(element: Tag) -> Iterator[str]:
    """The element's text without that of blocks in it, which are read by themselves."""
    for child in element.children:
        if isinstance(child, PreformattedString):
            continue  # comments and the like
        if isinstance(child, NavigableString):
            yield str(child)
        elif isinstance(child, Tag) and child.name == "br":
            yield " "
        elif isinstance(child, Tag) and child.name not in _NESTED:
            yield from _own_text(child)


def is_disambiguation(title: str, html: str) -> bool:
    """Whether a page only lists what its title may mean: a box says so, or its first paragraph "may refer to"."""
    if title.casefold().endswith("(disambiguation)"):
        return True
    soup = BeautifulSoup(html[: 2**18], "html.parser")
    for element in soup.select(_DISAMBIGUATION):
        if element.name != "a" and not element.find_parent(class_="hatnote"):
            return True
    first = soup.find("p")
    return first is not None and bool(_SEVERAL.search(" ".join(first.get_text().split())))


def revision_of(html: str) -> str | None:
    """The revision that the page's footer names, if it does."""
    found = _REVISION.findall(html)
    return str(found[-1]) if found else None
