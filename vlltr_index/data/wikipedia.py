"""Which article is about a class, and its text: from Wikipedia, or another wiki with the extension TextExtracts."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from vlltr_index.data.writing import write_file
from vlltr_index.errors import InputError
from vlltr_index.version import VERSION

_PAUSE, _WAIT, _LONGEST = 0.2, 5, 300  # seconds: before a request, until a busy server's next, and at most
_TRIES = 4
_TIMEOUT = 60
_TITLES = 20  # a request: the API takes 50, but an address must not grow too long
_BUSY = frozenset({429, 500, 502, 503, 504, "maxlag", "ratelimited", "readonly", "no connection"})
_LATER = "Run it again later: what has come is kept."
_ADDRESS = "Give the address of a wiki's api.php: --api https://en.wikipedia.org/w/api.php"
_CONTACT = "Say how to reach you: --contact you@example.org"
_LICENCES = (("by-sa/4.0", "CC BY-SA 4.0"), ("by-sa/3.0", "CC BY-SA 3.0"), ("publicdomain/zero", "CC0 1.0"))
_ALWAYS = {"action": "query", "format": "json", "formatversion": "2", "maxlag": "5"}
_PAGE = {"redirects": "1", "prop": "pageprops", "ppprop": "disambiguation|wikibase-shortdesc"}
_ARTICLE = {
    "prop": "extracts|revisions|info", "explaintext": "1", "exsectionformat": "wiki", "exlimit": "1",
    "rvprop": "ids|timestamp", "inprop": "url", "meta": "siteinfo", "siprop": "rightsinfo",
}  # fmt: skip
_SEARCH = {"list": "search", "srnamespace": "0", "srlimit": "10", "srprop": "redirecttitle"}

_SHOWN = 12  # candidates
_FORBIDDEN = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f]")  # in titles
_WORDNET = re.compile(r"n\d{8}\s+|\s*\(n\d{8}\)\Z")
_NUMBER = re.compile(r"(?:n?\d+|/.*)\Z")  # names of folders, not of things


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is there; redirects have been followed."""

    title: str
    pageid: int
    disambiguation: bool = False
    description: str | None = None  # the wiki's short description
    fragment: str | None = None  # the section that a redirect led to: the page is about more than that


@dataclass(frozen=True, slots=True)
class Article:
    """A page's text as TextExtracts gives it, and where exactly it is from."""

    title: str
    revision: str
    timestamp: str  # of the revision
    url: str  # of the revision
    licence: str | None
    extract: str


@dataclass
class Wiki:
    """A wiki's API: one request at a time, a pause before each; answers are kept on disk.

    Attributes:
        url: Address of its api.php.
        folder: Where answers are kept; made when the first comes.
        contact: How the wiki's operators can reach whoever runs this.
        refresh: Ask again for what is kept.
    """

    url: str
    folder: Path
    contact: str | None = None
    refresh: bool = False

    def pages(self, titles: Sequence[str]) -> dict[str, Page | None]:
        """The page of each title, other spellings and redirects followed; None where there is no article."""
        found: dict[str, Page | None] = {}
        asked = list(dict.fromkeys(titles))
        for start in range(0, len(asked), _TITLES):
            part = asked[start : start + _TITLES]
            query = self._query(_PAGE, titles="|".join(part))
            steps = {s["from"]: s for kind in ("normalized", "redirects") for s in query.get(kind, ())}
            pages = {page["title"]: page for page in query.get("pages", ())}
            found |= {title: _page(title, steps, pages) for title in part}
        return found

    def links(self, page: Page) -> list[str]:
        """Titles of the articles that a page links to, in alphabetical order, 500 at most."""
        asked = {"prop": "links", "plnamespace": "0", "pllimit": "max"}
        query = self._query(asked, pageids=str(page.pageid))
        return [link["title"] for link in query["pages"][0].get("links", ())]

    def search(self, words: str) -> list[str]:
        """Titles of articles, or of redirects to them, in which the words occur, best first; ten at most."""
        return [
            hit.get("redirecttitle") or hit["title"] for hit in self._query(_SEARCH, srsearch=words)["search"]
        ]

    def article(self, page: Page) -> Article:
        """A page's text with its revision and licence.

        Raises:
            InputError: If the wiki gives no text.
        """
        query = self._query(_ARTICLE, pageids=str(page.pageid))
        raw = query["pages"][0]
        rights = query["rightsinfo"]
        if "extract" not in raw:
            raise InputError(
                f"{self.url} gives no text of the page {page.title!r}",
                "The wiki must have the extension TextExtracts. If it has, the page was deleted: add --refresh.",
            )
        revision = raw["revisions"][0]
        known = next((name for mark, name in _LICENCES if mark in rights["url"]), None)
        licence = known or rights["text"] or rights["url"] or None
        url = raw["editurl"].replace("action=edit", f"oldid={revision['revid']}")
        return Article(
            raw["title"], str(revision["revid"]), revision["timestamp"], url, licence, raw["extract"]
        )

    def _query(self, params: Mapping[str, str], **more: str) -> dict[str, Any]:
        """The answer to `action=query`, from the disk if it is there; a damaged file counts as missing."""
        address = f"{self.url}?{urlencode({**_ALWAYS, **params, **more})}"
        file = self.folder / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"
        if not self.refresh:
            try:
                kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return kept
            except (OSError, ValueError):
                pass
        query = self._ask(address)
        write_file(file, json.dumps(query, ensure_ascii=False).encode())
        return query

    def _ask(self, address: str) -> dict[str, Any]:
        contact = self.contact or "text for image recognition; no contact given"
        agent = f"vlltr-index/{VERSION} ({contact}) urllib"
        request = Request(address, headers={"User-Agent": agent, "Accept-Encoding": "gzip"})
        code: int | str = ""
        pause = _PAUSE
        why = ""
        after = ""
        for _ in range(_TRIES):
            sleep(pause)
            try:
                with urlopen(request, timeout=_TIMEOUT) as response:
                    data = response.read()
                    after = response.headers["Retry-After"]
                    zipped = response.headers["Content-Encoding"] == "gzip"
                answer = json.loads(gzip.decompress(data) if zipped else data)
                if "error" not in answer:
                    query: dict[str, Any] = answer["query"]
                    return query
                code = answer["error"]["code"]
                why = answer["error"]["info"]
            except HTTPError as error:
                code = error.code
                why = error.reason
                after = error.headers["Retry-After"]
                error.close()
            except (OSError, EOFError, HTTPException) as error:
                code = "no connection"
                why = str(getattr(error, "reason", None) or error)
                after = ""
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.url} does not answer as a MediaWiki API does", _ADDRESS) from None
            pause = int(after) if str(after).isdecimal() else _WAIT
            if code not in _BUSY or pause > _LONGEST:
                break
        hint = _LATER if code in _BUSY else _CONTACT if code == 403 else _ADDRESS
        raise InputError(f"{self.url} gives no answer: {code}: {why}", hint)


def _page(title: str, steps: Mapping[str, Any], pages: Mapping[str, Any]) -> Page | None:
    """The page of a title in an answer, which lists other spellings and redirects as steps."""
    fragment = None
    for _ in steps:  # redirects may run in a circle
        if title in steps:
            fragment = steps[title].get("tofragment", fragment)
            title = steps[title]["to"]
    raw = pages.get(title, {})
    if "pageid" not in raw or raw["ns"] != 0:
        return None
    props = raw.get("pageprops", {})
    return Page(title, raw["pageid"], "disambiguation" in props, props.get("wikibase-shortdesc"), fragment)


@dataclass(frozen=True, slots=True)
class Match:
    """The article chosen for a class, or why there is none and which ones there are."""

    page: Page | None
    why: str = ""
    candidates: tuple[str, ...] = ()


def match_class(names: Sequence[str], own: Mapping[str, Page | None], wiki: Wiki, hint: str | None) -> Match:
    """The best article of a class.

    A page called `name (hint)` is best, then one of the class's own names, then an alias; with a hint, a page whose
    title or short description has it goes first. A disambiguation page, and a name that only a search finds, are
    settled by the hint where it fits one of the articles that have the name in their title.

    Args:
        names: The class's name and aliases.
        own: The pages of its `own_titles`.
        wiki: Where to look further.
        hint: A word or two that all classes have in common, such as `bird`.
    """
    ambiguous = doubtful = None
    candidates: list[str] = []
    for title in own_titles(names, hint):
        page = own[title]
        if page is None:
            continue
        if page.disambiguation:
            ambiguous = ambiguous or page
        elif page.fragment:
            candidates.append(page.title)
        elif not hint or mentions(hint, title, page.title, page.description):
            return Match(page)
        else:
            doubtful = doubtful or page
    spelled = _spellings(names)
    if ambiguous:
        candidates += wiki.links(ambiguous)
    elif spelled:
        candidates += wiki.search(f"{spelled[0]} {hint or ''}".strip())
    candidates = list(dict.fromkeys(candidates))[:_SHOWN]
    near = wiki.pages([title for title in candidates if hint and mentions(spelled[0], title)])
    fitting = {p.title: p for p in near.values() if p and not (p.disambiguation or p.fragment)}
    of_kind = [p for p in fitting.values() if hint and mentions(hint, p.title, p.description)]
    if doubtful or len(of_kind) == 1:
        return Match(of_kind[0] if len(of_kind) == 1 else doubtful)
    why = f"{ambiguous.title!r} may mean several things" if ambiguous else "no article of that name"
    return Match(None, why if ambiguous or candidates else "no article found", tuple(candidates))


def own_titles(names: Sequence[str], hint: str | None) -> list[str]:
    """The titles to look at first for a class of these names, likeliest first."""
    spelled = _spellings(names)
    return [*(f"{name} ({hint})" for name in spelled if hint), *spelled]


def _spellings(names: Sequence[str]) -> list[str]:
    """A class's names as titles, likeliest first: without underscores, WordNet numbers, and aliases that are paths.

    `a, b` may be called a or b too, and `a/b` `b a` or a.
    """
    found: list[str] = []
    for one in (names[0], *(alias for alias in names[1:] if not _NUMBER.match(alias))):
        plain = _WORDNET.sub("", one.replace("_", " "), count=1)
        parts = plain.split("/")
        found += [plain, *plain.split(","), " ".join(reversed(parts)), parts[0]]
    titles = (" ".join(_FORBIDDEN.sub(" ", text).split()).strip(" :") for text in found)
    return [title for title in dict.fromkeys(titles) if title]


def mentions(hint: str, *texts: str | None) -> bool:
    """Whether every word of the hint begins a word of one of the texts."""
    whole = " ".join(text for text in texts if text).casefold()
    return all(re.search(rf"\b{re.escape(word)}", whole) for word in hint.casefold().split())
