"""Finding the article about a class, and its text, in Wikipedia or another wiki with the extension TextExtracts."""

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

_PAUSE = 0.2  # seconds before a request
_WAIT = 5  # seconds before the next request to a busy server
_LONGEST = 300  # most seconds that are waited if a server asks for it
_TRIES = 4
_TIMEOUT = 60
_TITLES = 20  # titles in a request: the API allows 50, but the address must not become too long
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

_SHOWN = 12  # most candidates
_FORBIDDEN = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f]")  # in titles
_WORDNET = re.compile(r"n\d{8}\s+|\s*\(n\d{8}\)\Z")
_NUMBER = re.compile(r"(?:n?\d+|/.*)\Z")  # aliases that are numbers or paths


@dataclass(frozen=True, slots=True)
class Page:
    """An existing page, after redirects."""

    title: str
    pageid: int
    disambiguation: bool = False
    description: str | None = None  # the wiki's short description
    fragment: str | None = (
        None  # the section that a redirect led to; the page itself is about something wider
    )


@dataclass(frozen=True, slots=True)
class Article:
    """A page's text, as TextExtracts gives it, with its source."""

    title: str
    revision: str
    timestamp: str  # of the revision
    url: str  # of the revision
    licence: str | None
    extract: str


@dataclass
class Wiki:
    """API of a wiki, with one request at a time, a pause before each, and a cache of answers on disk.

    Attributes:
        url: Address of the wiki's api.php.
        folder: Folder of the cache, made with the first answer.
        contact: Contact of the user, for the wiki's operators.
        refresh: Request again what is in the cache.
    """

    url: str
    folder: Path
    contact: str | None = None
    refresh: bool = False

    def pages(self, titles: Sequence[str]) -> dict[str, Page | None]:
        """Find the page of each title, after normalisation and redirects; None if there is no article."""
        found: dict[str, Page | None] = {}
        asked = list(dict.fromkeys(titles))
        for start in range(0, len(asked), _TITLES):
            part = asked[start : start + _TITLES]
            query = self._query(_PAGE, titles="|".join(part))
            steps = {step["from"]: step for step in query.get("normalized", ())}
            steps |= {step["from"]: step for step in query.get("redirects", ())}
            pages = {page["title"]: page for page in query.get("pages", ())}
            found |= {title: _page(title, steps, pages) for title in part}
        return found

    def links(self, page: Page) -> list[str]:
        """List the titles of the articles that a page links to, in alphabetical order, 500 at most."""
        asked = {"prop": "links", "plnamespace": "0", "pllimit": "max"}
        query = self._query(asked, pageids=str(page.pageid))
        return [link["title"] for link in query["pages"][0].get("links", ())]

    def search(self, words: str) -> list[str]:
        """Search for words; return titles of articles, or of redirects to them, best first, ten at most."""
        hits = self._query(_SEARCH, srsearch=words)["search"]
        return [hit.get("redirecttitle") or hit["title"] for hit in hits]

    def article(self, page: Page) -> Article:
        """Fetch a page's text with its revision and licence.

        Raises:
            InputError: The wiki gives no text.
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
            title=raw["title"],
            revision=str(revision["revid"]),
            timestamp=revision["timestamp"],
            url=url,
            licence=licence,
            extract=raw["extract"],
        )

    def _query(self, params: Mapping[str, str], **more: str) -> dict[str, Any]:
        """Return the answer to `action=query`, from the cache if possible; a damaged file counts as missing."""
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
        """Send a request, again if the server is busy, and return the answer."""
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
            pause = float(after) if str(after).isdecimal() else _WAIT
            if code not in _BUSY or pause > _LONGEST:
                break
        hint = _ADDRESS
        if code in _BUSY:
            hint = _LATER
        elif code == 403:
            hint = _CONTACT
        raise InputError(f"{self.url} gives no answer: {code}: {why}", hint)


def _page(title: str, steps: Mapping[str, Any], pages: Mapping[str, Any]) -> Page | None:
    """Find the page of a title in an answer, which lists normalisations and redirects as steps."""
    fragment = None
    for _ in steps:  # at most so many, for redirects may form a cycle
        if title in steps:
            fragment = steps[title].get("tofragment", fragment)
            title = steps[title]["to"]
    raw = pages.get(title, {})
    if "pageid" not in raw or raw["ns"] != 0:
        return None
    props = raw.get("pageprops", {})
    return Page(
        title=title,
        pageid=raw["pageid"],
        disambiguation="disambiguation" in props,
        description=props.get("wikibase-shortdesc"),
        fragment=fragment,
    )


@dataclass(frozen=True, slots=True)
class Match:
    """The article chosen for a class, or the reason why there is none, with candidates."""

    page: Page | None
    why: str = ""
    candidates: tuple[str, ...] = ()


def match_class(names: Sequence[str], own: Mapping[str, Page | None], wiki: Wiki, hint: str | None) -> Match:
    """Choose the article of a class.

    A page with the title `name (hint)` is preferred, then one with the class's name, then one with an alias; with a
    hint, pages come first that have it in their title or short description. If there is a disambiguation page, or only
    a search finds the name, the hint decides if it fits just one of the articles with the name in their title.

    Args:
        names: The class's name and aliases.
        own: The pages of the class's `own_titles`.
        wiki: The wiki, for further requests.
        hint: A word or two that describe all classes, such as `bird`.
    """
    ambiguous = None
    doubtful = None
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
    """Return the titles to look up first for a class of these names, most likely first."""
    spelled = _spellings(names)
    return [*(f"{name} ({hint})" for name in spelled if hint), *spelled]


def _spellings(names: Sequence[str]) -> list[str]:
    """Turn a class's names into titles, most likely first, without underscores, WordNet ids, and aliases of `_NUMBER`.

    `a, b` gives also `a` and `b`, and `a/b` gives `b a` and `a`.
    """
    found: list[str] = []
    for one in (names[0], *(alias for alias in names[1:] if not _NUMBER.match(alias))):
        plain = _WORDNET.sub("", one.replace("_", " "), count=1)
        parts = plain.split("/")
        found += [plain, *plain.split(","), " ".join(reversed(parts)), parts[0]]
    titles = (" ".join(_FORBIDDEN.sub(" ", text).split()).strip(" :") for text in found)
    return [title for title in dict.fromkeys(titles) if title]


def mentions(hint: str, *texts: str | None) -> bool:
    """Say whether every word of the hint is the beginning of a word in one of the texts."""
    whole = " ".join(text for text in texts if text).casefold()
    return all(re.search(rf"\b{re.escape(word)}", whole) for word in hint.casefold().split())
