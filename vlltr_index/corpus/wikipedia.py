"""Which encyclopaedia article is about a class: what a wiki has to answer, and how its answers are weighed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vlltr_index.corpus.wikipedia_text import Section

__all__ = ["Article", "Match", "Page", "Wanted", "Wiki", "match_classes", "mentions", "spellings"]

_ENOUGH = 0.75  # share of words that a title found by search must have in common with the name
_SHOWN = 12  # candidates reported
_FORBIDDEN = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f]")
_WORDNET = re.compile(r"n\d{8}\s+|\s*\(n\d{8}\)\Z")
_NUMBER = re.compile(r"(?:n?\d+|/.*)\Z")  # names of folders, not of things
_PARENTHESIS = re.compile(r"\s*\(([^()]*)\)\s*$")


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is there; redirects have been followed."""

    title: str
    key: str  # how the wiki finds it again: a page number, or a path in a ZIM file
    disambiguation: bool = False
    description: str | None = None  # the wiki's short description
    fragment: str | None = (
        None  # the section that a redirect led to: the page is about more than was asked for
    )


@dataclass(frozen=True, slots=True)
class Article:
    """A page's text without markup, and where exactly it is from."""

    title: str
    revision: str | None
    url: str  # of the revision, where it is known
    licence: str | None
    sections: tuple[Section, ...]


class Wiki(Protocol):
    """Where articles come from: the MediaWiki API, or a ZIM file."""

    def pages(self, titles: Sequence[str]) -> Mapping[str, Page | None]:
        """The page of each title, redirects followed; None where there is none."""
        ...

    def links(self, page: Page) -> list[str]:
        """Titles of the articles that a page links to, in its order where the wiki tells it."""
        ...

    def search(self, words: str) -> list[str]:
        """Titles of articles in which the words occur, best first; ten at most."""
        ...

    def articles(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Article | None]]:
        """The text of each page; None where it has none."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A class that needs an article; `title` settles which."""

    name: str
    aliases: tuple[str, ...] = ()
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """The article chosen for a class, or why there is none and which ones there are."""

    wanted: Wanted
    page: Page | None
    why: str = ""
    candidates: tuple[str, ...] = ()


@dataclass
class _Open:
    """A class that a look at its own names did not settle."""

    wanted: Wanted
    ambiguous: Page | None = None
    doubtful: Page | None = None  # of the right name, but nothing says that it is of the hinted kind
    candidates: list[str] = field(default_factory=list)


Choose = Callable[[Wanted, Sequence[str]], str | None]


def spellings(name: str, aliases: Sequence[str] = ()) -> list[str]:
    """Titles that a class's article may have, likeliest first.

    Underscores are spaces, a WordNet number is dropped, `a, b` may be called a or b, and `a/b` may be called `b a`
    or a. Aliases that are numbers or paths are left out.
    """
    found: list[str] = []
    for one in (name, *(alias for alias in aliases if not _NUMBER.match(alias))):
        plain = _title(_WORDNET.sub("", one.replace("_", " "), count=1))
        found.append(plain)
        if "," in plain:
            found += [_title(part) for part in plain.split(",")]
        if "/" in plain:
            parts = [_title(part) for part in plain.split("/")]
            found += [" ".join(reversed(parts)), parts[0]]
    return [title for title in dict.fromkeys(found) if title]


def _title(text: str) -> str:
    return " ".join(_FORBIDDEN.sub(" ", text).split())[:200].strip(" :")


def match_classes(
    wanted: Sequence[Wanted], wiki: Wiki, hint: str | None = None, choose: Choose | None = None
) -> list[Match]:
    """The best article of each class, in their order.

    A page called `name (hint)` is best, then one of the class's own names, then an alias; with a hint, a page whose
    title or short description has it goes first. A disambiguation page, and a name that only a search finds, are
    settled by the hint, or by a title of nearly the same words; what remains is asked of `choose`, else reported.

    Args:
        wanted: The classes.
        wiki: Where to look.
        hint: A word or two that all classes have in common, such as `bird`.
        choose: Called with a class and its candidates; returns a title, or None to leave it open.
    """
    facts = wiki.pages([title for w in wanted for title in _first_titles(w, hint)])
    settled: dict[str, Match] = {}
    unsettled: list[_Open] = []
    for one in wanted:
        found = _own_name(one, hint, facts)
        if isinstance(found, Match):
            settled[one.name] = found
        else:
            unsettled.append(found)
    for item in unsettled:
        settled[item.wanted.name] = _look_further(item, wiki, hint, choose)
    return [settled[one.name] for one in wanted]


def _first_titles(wanted: Wanted, hint: str | None) -> list[str]:
    if wanted.title is not None:
        return [wanted.title]
    names = spellings(wanted.name, wanted.aliases)
    return [*(f"{name} ({hint})" for name in names if hint), *names]


def _own_name(wanted: Wanted, hint: str | None, facts: Mapping[str, Page | None]) -> Match | _Open:
    """The page of a class's own names, or what they led to instead."""
    item = _Open(wanted)
    for title in _first_titles(wanted, hint):
        page = facts.get(title)
        if page is None:
            continue
        if wanted.title is not None and not page.disambiguation:
            return Match(wanted, page)
        if page.disambiguation:
            item.ambiguous = item.ambiguous or page
        elif page.fragment:
            item.candidates.append(page.title)
        elif hint is None or title.endswith(f"({hint})") or mentions(hint, page.title, page.description):
            return Match(wanted, page)
        else:
            item.doubtful = item.doubtful or page
    if wanted.title is not None and item.ambiguous is None:
        return Match(wanted, None, f"there is no page {wanted.title!r}")
    return item


def _look_further(item: _Open, wiki: Wiki, hint: str | None, choose: Choose | None) -> Match:
    """Through the links of a disambiguation page, then by a search."""
    wanted = item.wanted
    if item.ambiguous is not None:
        item.candidates += wiki.links(item.ambiguous)
    elif wanted.title is None:
        words = spellings(wanted.name)[:1]
        item.candidates += wiki.search(" ".join([*words, hint or ""]).strip()) if words else []
    titles = list(dict.fromkeys(item.candidates))
    if item.ambiguous is None or hint:
        page = _by_words(item, titles, wiki, hint)
        if page is not None:
            return Match(wanted, page)
    if item.doubtful is not None:
        return Match(wanted, item.doubtful)
    ordered = _likely_first(wanted, titles)
    chosen = choose(wanted, ordered) if choose and ordered else None
    if chosen is not None:
        page = wiki.pages([chosen]).get(chosen)
        if page is not None and not page.disambiguation:
            return Match(wanted, page)
        return Match(wanted, None, f"there is no article {chosen!r}", tuple(ordered[:_SHOWN]))
    if item.ambiguous is not None:
        why = f"{item.ambiguous.title!r} may mean several things"
    else:
        why = "no article of that name" if ordered else "no article found"
    return Match(wanted, None, why, tuple(ordered[:_SHOWN]))


def _by_words(item: _Open, titles: Sequence[str], wiki: Wiki, hint: str | None) -> Page | None:
    """The one candidate whose title has nearly the words of the name; with a hint, of that kind too."""
    names = [_words(s) for s in spellings(item.wanted.name, item.wanted.aliases)]
    near = {t: max(_overlap(_words(t), name) for name in names) for t in titles} if names else {}
    close = [t for t in titles if near[t] >= _ENOUGH]
    found = wiki.pages(close) if close else {}
    pages = {p.title: (near[t], p) for t in close if (p := found.get(t)) and not p.disambiguation}
    options = [(score, p) for score, p in pages.values() if not p.fragment]
    if hint:
        options = [(score, p) for score, p in options if mentions(hint, p.title, p.description)]
    best = max((score for score, _ in options), default=0.0)
    top = [page for score, page in options if score == best]
    if hint and len(top) > 1:  # the hint in the title says more than in the description
        top = [page for page in top if mentions(hint, page.title)] or top
    return top[0] if len(top) == 1 else None


def _likely_first(wanted: Wanted, titles: Sequence[str]) -> list[str]:
    names = [_words(s) for s in spellings(wanted.name, wanted.aliases)]
    return sorted(titles, key=lambda t: -max((_overlap(_words(t), n) for n in names), default=0.0))


def _words(title: str) -> frozenset[str]:
    """A title's words without case, accents, plural s, and what stands in parentheses at its end."""
    plain = unicodedata.normalize("NFKD", _PARENTHESIS.sub("", title)).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.findall(r"\w+", plain.replace("'", ""))
    return frozenset(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words)


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 0.0


def mentions(hint: str, *texts: str | None) -> bool:
    """Whether every word of the hint begins a word of one of the texts."""
    whole = " ".join(text for text in texts if text).casefold()
    return all(re.search(rf"\b{re.escape(word)}", whole) for word in hint.casefold().split())
