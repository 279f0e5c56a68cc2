"""Which article is about a class, and its text: from Wikipedia, or another wiki with the extension TextExtracts."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from vlltr_index.errors import InputError
from vlltr_index.version import VERSION

__all__ = ["Article", "Choose", "Match", "Page", "Wanted", "Wiki", "match_class", "mentions", "own_titles"]

_log = logging.getLogger(__name__)

_PAUSE, _WAIT, _LONGEST = 0.2, 5, 300  # seconds: before a request, until a busy server's next, and at most
_TRIES = 4
_TIMEOUT = 60
_TITLES, _LONG = (
    50,
    4000,
)  # titles a request: what the API takes from anybody; and their characters in an address
_BUSY = frozenset({429, 500, 502, 503, 504, "maxlag", "ratelimited", "readonly"})
_LATER = "Run it again later: what has come is kept."
_ADDRESS = "Give the address of a wiki's api.php: --api https://en.wikipedia.org/w/api.php"
_LICENCES = (("by-sa/4.0", "CC BY-SA 4.0"), ("by-sa/3.0", "CC BY-SA 3.0"), ("publicdomain/zero", "CC0 1.0"))
_ALWAYS = {"action": "query", "format": "json", "formatversion": "2", "maxlag": "5"}
_PAGE = {"redirects": "1", "prop": "pageprops", "ppprop": "disambiguation|wikibase-shortdesc"}
_ARTICLE = {
    "prop": "extracts|revisions|info", "explaintext": "1", "exsectionformat": "wiki", "exlimit": "1",
    "rvprop": "ids|timestamp", "inprop": "url", "meta": "siteinfo", "siprop": "rightsinfo",
}  # fmt: skip
_SEARCH = {"list": "search", "srnamespace": "0", "srlimit": "10", "srprop": "redirecttitle"}

_SHOWN = 12  # candidates
_ENOUGH = 0.75  # share of words that a title must have in common with the name
_FORBIDDEN = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f]")  # in titles
_WORDNET = re.compile(r"n\d{8}\s+|\s*\(n\d{8}\)\Z")
_NUMBER = re.compile(r"(?:n?\d+|/.*)\Z")  # names of folders, not of things
_PARENTHESIS = re.compile(r"\s*\(([^()]*)\)\s*$")


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
        for part in _batches(asked):
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
        raw, rights = query["pages"][0], query["rightsinfo"]
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
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(query, ensure_ascii=False), encoding="utf-8")
        return query

    def _ask(self, address: str) -> dict[str, Any]:
        contact = self.contact or "text for image recognition; no contact given"
        agent = f"vlltr-index/{VERSION} ({contact}) urllib"
        request = Request(address, headers={"User-Agent": agent, "Accept-Encoding": "gzip"})
        pause, why, trouble = _PAUSE, "", ""
        for _ in range(_TRIES):
            sleep(pause)
            code: int | str
            try:
                with urlopen(request, timeout=_TIMEOUT) as response:
                    data, headers = response.read(), response.headers
                answer = json.loads(gzip.decompress(data) if headers["Content-Encoding"] == "gzip" else data)
                if "error" not in answer:
                    query: dict[str, Any] = answer["query"]
                    return query
                code = answer["error"]["code"]
                why = f"{code}: {answer['error']['info']}"
            except HTTPError as error:
                error.close()
                code, headers, why = error.code, error.headers, f"HTTP {error.code} {error.reason}"
            except (OSError, EOFError, HTTPException) as error:
                pause, trouble = _WAIT, f"cannot be reached: {getattr(error, 'reason', None) or error}"
                continue
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.url} does not answer as a MediaWiki API does", _ADDRESS) from None
            if code not in _BUSY:
                hint = "Say how to reach you: --contact you@example.org" if code == 403 else _ADDRESS
                raise InputError(f"{self.url} refused the request: {why}", hint)
            asked = headers["Retry-After"] or ""
            pause, trouble = int(asked) if asked.isdecimal() else _WAIT, f"is busy; its last answer: {why}"
            _log.info("%s: %s; to be asked again in %d s", self.url, why, pause)
            if pause > _LONGEST:
                break
        raise InputError(f"{self.url} {trouble}", _LATER)


def _batches(titles: Sequence[str]) -> Iterator[list[str]]:
    """Titles for one request each: few enough for the API, and short enough for an address."""
    part: list[str] = []
    for title in titles:
        if part and (len(part) == _TITLES or len(quote("|".join([*part, title]))) > _LONG):
            yield part
            part = []
        part.append(title)
    if part:
        yield part


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
class Wanted:
    """A class that needs an article; `title` settles which."""

    name: str
    aliases: tuple[str, ...] = ()
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """The article chosen for a class, or why there is none and which ones there are."""

    page: Page | None
    why: str = ""
    candidates: tuple[str, ...] = ()
    settled: bool = False  # by a title that was given or chosen


Choose = Callable[[str, Sequence[str]], str | None]


def match_class(
    wanted: Wanted, own: Mapping[str, Page | None], wiki: Wiki, hint: str | None, choose: Choose | None
) -> Match:
    """The best article of a class.

    A page called `name (hint)` is best, then one of the class's own names, then an alias; with a hint, a page whose
    title or short description has it goes first. A disambiguation page, and a name that only a search finds, are
    settled by the hint, or by a title of nearly the same words; what remains is asked of `choose`, else reported.

    Args:
        wanted: The class.
        own: The pages of its `own_titles`.
        wiki: Where to look further.
        hint: A word or two that all classes have in common, such as `bird`.
        choose: Called with the class's name and the candidates; returns a title, or None to leave it open.
    """
    ambiguous = doubtful = None
    candidates: list[str] = []
    for title in own_titles(wanted, hint):
        page = own[title]
        if page is None:
            continue
        if page.disambiguation:
            ambiguous = ambiguous or page
        elif wanted.title:
            return Match(page, settled=True)
        elif page.fragment:
            candidates.append(page.title)
        elif not hint or mentions(hint, title, page.title, page.description):
            return Match(page)
        else:
            doubtful = doubtful or page
    if ambiguous:
        candidates += wiki.links(ambiguous)
    elif wanted.title:
        return Match(None, f"there is no page {wanted.title!r}")
    elif names := _spellings(wanted):
        candidates += wiki.search(f"{names[0]} {hint or ''}".strip())
    candidates = sorted(dict.fromkeys(candidates), key=lambda title: -_likeness(wanted, title))[:_SHOWN]
    page = _most_alike(wanted, candidates, wiki, hint) if hint or not ambiguous else None
    if page or doubtful:
        return Match(page or doubtful)
    why = f"{ambiguous.title!r} may mean several things" if ambiguous else "no article of that name"
    if candidates and choose and (chosen := choose(wanted.name, candidates)):
        page = wiki.pages([chosen])[chosen]
        if page and not page.disambiguation:
            return Match(page, settled=True)
        why = f"there is no article {chosen!r}"
    return Match(None, why if ambiguous or candidates else "no article found", tuple(candidates))


def own_titles(wanted: Wanted, hint: str | None) -> list[str]:
    """The titles to look at first, likeliest first: the one that was given, else the class's names."""
    names = _spellings(wanted)
    return [wanted.title] if wanted.title else [*(f"{name} ({hint})" for name in names if hint), *names]


def _spellings(wanted: Wanted) -> list[str]:
    """A class's names as titles, likeliest first: without underscores, WordNet numbers, and aliases that are paths.

    `a, b` may be called a or b too, and `a/b` `b a` or a.
    """
    found: list[str] = []
    for one in (wanted.name, *(alias for alias in wanted.aliases if not _NUMBER.match(alias))):
        plain = _WORDNET.sub("", one.replace("_", " "), count=1)
        parts = plain.split("/")
        found += [plain, *plain.split(","), " ".join(reversed(parts)), parts[0]]
    titles = (" ".join(_FORBIDDEN.sub(" ", text).split()).strip(" :") for text in found)
    return [title for title in dict.fromkeys(titles) if title]


def _most_alike(wanted: Wanted, titles: Sequence[str], wiki: Wiki, hint: str | None) -> Page | None:
    """The one page whose title has most of the name's words, nearly all at least; with a hint, of that kind too."""
    found: dict[tuple[float, bool], dict[str, Page]] = {}
    for title, page in wiki.pages([t for t in titles if _likeness(wanted, t) >= _ENOUGH]).items():
        if page is None or page.disambiguation or page.fragment:
            continue
        if not hint or mentions(hint, page.title, page.description):
            rank = _likeness(wanted, title), mentions(hint or "", page.title)
            found.setdefault(rank, {})[page.title] = page
    best = list(found[max(found)].values()) if found else []
    return best[0] if len(best) == 1 else None


def _likeness(wanted: Wanted, title: str) -> float:
    """The Jaccard index of a title's words and the class's, for the name or alias that fits best."""
    words, names = _words(title), map(_words, _spellings(wanted))
    return max((len(words & name) / len(words | name) for name in names if name), default=0.0)


def _words(title: str) -> frozenset[str]:
    """A title's words without case, accents, plural s, and what stands in parentheses at its end."""
    plain = unicodedata.normalize("NFKD", _PARENTHESIS.sub("", title)).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.findall(r"\w+", plain.replace("'", ""))
    return frozenset(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words)


def mentions(hint: str, *texts: str | None) -> bool:
    """Whether every word of the hint begins a word of one of the texts."""
    whole = " ".join(text for text in texts if text).casefold()
    return all(re.search(rf"\b{re.escape(word)}", whole) for word in hint.casefold().split())
