"""A polite client of the MediaWiki action API, over the standard library."""

from __future__ import annotations

import email.utils
import gzip
import http.client
import json
import logging
import random
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from vlltr_index import __version__
from vlltr_index.corpus.wikipedia import Article, Page
from vlltr_index.corpus.wikipedia_cache import AnswerCache
from vlltr_index.corpus.wikipedia_text import wikitext_sections
from vlltr_index.errors import InputError, UsageError

__all__ = ["ApiClient", "MediaWiki", "agent"]

_log = logging.getLogger(__name__)

_TITLES = 50  # titles a request: what the API takes from anybody
_TITLE_BYTES = 5_000  # of an address's length
_TEXTS = 20  # articles a request
_MAX_ANSWER = 128 * 2**20
_MAX_PAGES = 200  # continuations of one request
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGAIN_CODES = frozenset({"maxlag", "ratelimited", "readonly"})
_LONGEST_WAIT = 300.0
_OFFLINE = (
    "Run it again later: what has come is kept. Or use an offline copy: vlltr ingest wikipedia --zim FILE"
)
_LICENCES = (("by-sa/4.0", "CC BY-SA 4.0"), ("by-sa/3.0", "CC BY-SA 3.0"), ("publicdomain/zero", "CC0 1.0"))


def agent(contact: str | None = None) -> str:
    """How the client calls itself; wikis ask for a way to reach whoever runs it."""
    return f"vlltr-index/{__version__} ({contact or 'text for image recognition; no contact given'}) urllib"


@dataclass
class ApiClient:
    """Requests one at a time, never faster than `rate`, repeated with growing pauses while the server is busy.

    Attributes:
        url: Address of `api.php`.
        user_agent: See `agent`.
        rate: Requests a second, at most.
        tries: How often one request is sent before giving up.
        timeout: Seconds to wait for an answer.
        sleep: Waits.
        clock: Seconds that only grow.
        requests: How many have been sent.
    """

    url: str
    user_agent: str = field(default_factory=agent)
    rate: float = 5.0
    tries: int = 6
    timeout: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    requests: int = 0
    _last: float | None = None

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(
                f"--api takes the address of a wiki's api.php, got {self.url!r}",
                "For example: --api https://en.wikipedia.org/w/api.php",
            )

    def query(self, **params: str) -> Iterator[dict[str, Any]]:
        """The answers to `action=query`, followed through all continuations.

        Raises:
            InputError: If the wiki cannot be reached, stays busy, refuses, or answers no JSON.
        """
        asked = {"action": "query", "format": "json", "formatversion": "2", "maxlag": "5", **params}
        more: dict[str, str] = {}
        for _ in range(_MAX_PAGES):
            answer = self._ask({**asked, **more})
            query = answer.get("query", {})
            if not isinstance(query, dict):
                raise self._strange("'query' is no object")
            yield query
            following = answer.get("continue")
            if not isinstance(following, dict):
                return
            more = {str(k): str(v) for k, v in following.items()}
        raise self._strange(f"an answer in more than {_MAX_PAGES} parts")

    def _ask(self, params: Mapping[str, str]) -> dict[str, Any]:
        why = ""
        for attempt in range(self.tries):
            try:
                answer, headers = self._send(params)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _AGAIN:
                    raise self._refused(error) from None
                why, asked = f"HTTP {error.code} {error.reason}".strip(), _retry_after(dict(error.headers))
            except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
                why, asked = _reason(error), None
            else:
                fault = answer.get("error")
                if not isinstance(fault, dict):
                    return answer
                code = str(fault.get("code"))
                why, asked = f"{code}: {fault.get('info')}", _retry_after(headers)
                if code not in _AGAIN_CODES and not code.startswith("internal_api_error"):
                    raise InputError(f"{self.url} refused the request: {why}", "Check --api, or report this.")
            if attempt + 1 < self.tries:
                pause = min(asked if asked is not None else _backoff(attempt), _LONGEST_WAIT)
                _log.info("%s: %s; asking again in %.0f s", self.url, why, pause)
                self.sleep(pause)
        raise InputError(f"{self.url} gave no answer in {self.tries} tries; the last time: {why}", _OFFLINE)

    def _send(self, params: Mapping[str, str]) -> tuple[dict[str, Any], Mapping[str, str]]:
        now = self.clock()
        if self._last is not None and now - self._last < 1 / self.rate:
            self.sleep(1 / self.rate - (now - self._last))
        self._last = self.clock()
        self.requests += 1
        request = urllib.request.Request(
            f"{self.url}?{urllib.parse.urlencode(params)}",
            headers={"User-Agent": self.user_agent, "Accept-Encoding": "gzip", "Accept": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            data = _unpacked(response.read(_MAX_ANSWER + 1), response.headers.get("Content-Encoding"))
            headers = dict(response.headers)
        if len(data) > _MAX_ANSWER:
            raise self._strange(f"an answer of more than {_MAX_ANSWER >> 20} MiB")
        try:
            answer = json.loads(data)
        except ValueError:
            raise self._strange(f"no JSON: {data[:60]!r}") from None
        if not isinstance(answer, dict):
            raise self._strange("JSON, but no object")
        return answer, headers

    def _strange(self, what: str) -> InputError:
        return InputError(
            f"{self.url} does not answer as a MediaWiki API does: {what}",
            "Give the address of api.php: --api https://en.wikipedia.org/w/api.php",
        )

    def _refused(self, error: urllib.error.HTTPError) -> InputError:
        hint = "Check the address: --api https://en.wikipedia.org/w/api.php"
        if error.code == 403:
            hint = "Say how to reach you, which wikis ask for: --contact you@example.org"
        return InputError(f"{self.url} refused the request: HTTP {error.code} {error.reason}", hint)


def _backoff(attempt: int) -> float:
    return float(2**attempt) * (1 + random.random() / 4)


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Seconds that a server asks to be left alone: a number, or a date."""
    value = next((v for name, v in (headers or {}).items() if name.casefold() == "retry-after"), None)
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _unpacked(data: bytes, encoding: str | None) -> bytes:
    if encoding != "gzip":
        return data
    with gzip.GzipFile(fileobj=BytesIO(data)) as file:
        return file.read(_MAX_ANSWER + 1)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


class MediaWiki:
    """A wiki behind its API, with what it answered kept in `cache`. Implements `corpus.wikipedia.Wiki`."""

    def __init__(self, client: ApiClient, cache: AnswerCache) -> None:
        self.client, self.cache = client, cache
        self._site: dict[str, str] | None = None

    def pages(self, titles: Sequence[str]) -> dict[str, Page | None]:
        """See `Wiki.pages`; fifty titles a request."""
        found: dict[str, Page | None] = {}
        missing: list[str] = []
        for title in dict.fromkeys(titles):
            kept = self.cache.get("pages", title)
            if not title.strip() or "|" in title or "\x1f" in title:  # would be two titles
                found[title] = None
            elif kept is None:
                missing.append(title)
            else:
                found[title] = Page(**kept[0]) if kept[0] is not None else None
        for part in _batches(missing):
            asked = self._pages(part)
            for title in part:
                page = found[title] = asked.get(title)
                self.cache.put("pages", title, _facts(page))
        return found

    def _pages(self, titles: Sequence[str]) -> dict[str, Page | None]:
        leads: dict[str, str] = {}
        fragments: dict[str, str] = {}
        pages: dict[str, Page] = {}
        for query in self.client.query(
            titles="|".join(titles),
            redirects="1",
            prop="pageprops",
            ppprop="disambiguation|wikibase-shortdesc",
        ):
            for step in (*query.get("normalized", ()), *query.get("redirects", ())):
                leads[step["from"]] = step["to"]
                if step.get("tofragment"):
                    fragments[step["from"]] = step["tofragment"]
            for raw in query.get("pages", ()):
                if page := _page(raw, pages.get(raw.get("title", ""))):
                    pages[page.title] = page
        found: dict[str, Page | None] = {}
        for title in titles:
            at, fragment = title, None
            for _ in range(len(leads)):
                if at not in leads:
                    break
                fragment = fragments.get(at, fragment)
                at = leads[at]
            page = pages.get(at)
            if page is not None and fragment:
                page = Page(page.title, page.key, page.disambiguation, page.description, fragment)
            found[title] = page
        return found

    def links(self, page: Page) -> list[str]:
        """See `Wiki.links`; in alphabetical order, as the API gives them."""
        kept = self.cache.get("links", page.key)
        if kept is None:
            answers = self.client.query(pageids=page.key, prop="links", plnamespace="0", pllimit="max")
            titles = [
                str(link["title"])
                for query in answers
                for raw in query.get("pages", ())
                for link in raw.get("links", ())
            ]
            self.cache.put("links", page.key, titles)
            return titles
        return [str(title) for title in kept[0]]

    def search(self, words: str) -> list[str]:
        """See `Wiki.search`; the redirect's title where it is the redirect that has the words."""
        kept = self.cache.get("search", words)
        if kept is None:
            asked = {"srsearch": words, "srnamespace": "0", "srlimit": "10", "srprop": "redirecttitle"}
            query = next(self.client.query(list="search", **asked))
            titles = [str(hit.get("redirecttitle") or hit["title"]) for hit in query.get("search", ())]
            self.cache.put("search", words, titles)
            return titles
        return [str(title) for title in kept[0]]

    def articles(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Article | None]]:
        """See `Wiki.articles`; twenty texts a request, more requests where they are long."""
        waiting: list[Page] = []
        for page in pages:
            kept = self.cache.get("texts", page.key)
            if kept is not None:
                yield page, self._article(page, kept[0])
            else:
                waiting.append(page)
        for start in range(0, len(waiting), _TEXTS):
            part = waiting[start : start + _TEXTS]
            texts = self._texts(part)
            for page in part:
                raw = texts.get(page.key)
                self.cache.put("texts", page.key, raw)
                yield page, self._article(page, raw)

    def _texts(self, pages: Sequence[Page]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for query in self.client.query(
            pageids="|".join(page.key for page in pages),
            prop="revisions",
            rvprop="ids|timestamp|content",
            rvslots="main",
        ):
            for raw in query.get("pages", ()):
                for revision in raw.get("revisions", ()):
                    main = revision.get("slots", {}).get("main", {})
                    if main.get("contentmodel") == "wikitext" and isinstance(main.get("content"), str):
                        facts = {"title": str(raw["title"]), "revision": str(revision["revid"])}
                        found[str(raw["pageid"])] = {**facts, "text": main["content"]}
        return found

    def _article(self, page: Page, raw: Mapping[str, str] | None) -> Article | None:
        if raw is None:
            return None
        site = self._site_facts()
        address = urllib.parse.urlencode(
            {"title": raw["title"].replace(" ", "_"), "oldid": raw["revision"]}, safe="()"
        )
        sections = tuple(wikitext_sections(raw["text"]))
        return Article(
            raw["title"], raw["revision"], f"{site['index']}?{address}", site["licence"] or None, sections
        )

    def _site_facts(self) -> dict[str, str]:
        """Where the wiki's pages are, and their licence."""
        if self._site is None:
            kept = self.cache.get("site", "")
            if kept is None:
                query = next(self.client.query(meta="siteinfo", siprop="general|rightsinfo"))
                self._site = _site(query, self.client.url)
                self.cache.put("site", "", self._site)
            else:
                self._site = dict(kept[0])
        return self._site


def _site(query: Mapping[str, Any], api: str) -> dict[str, str]:
    general, rights = query.get("general", {}), query.get("rightsinfo", {})
    base = urllib.parse.urljoin(api, str(general.get("server") or ""))
    script = str(general.get("script") or "/w/index.php")
    url, text = str(rights.get("url") or ""), str(rights.get("text") or "")
    known = next((name for mark, name in _LICENCES if mark in url), None)
    return {"index": urllib.parse.urljoin(base, script), "licence": known or text or url}


def _page(raw: Mapping[str, Any], before: Page | None) -> Page | None:
    """A page out of an answer, put together with what an earlier part of it said."""
    if "pageid" not in raw or raw.get("missing") or raw.get("invalid") or raw.get("ns", 0) != 0:
        return None
    props = raw.get("pageprops", {})
    return Page(
        str(raw["title"]),
        str(raw["pageid"]),
        "disambiguation" in props or (before is not None and before.disambiguation),
        props.get("wikibase-shortdesc") or (before.description if before is not None else None),
    )


def _facts(page: Page | None) -> dict[str, Any] | None:
    if page is None:
        return None
    return {name: getattr(page, name) for name in Page.__dataclass_fields__}


def _batches(titles: Iterable[str]) -> Iterator[list[str]]:
    """Titles in parts that fit into one request."""
    part: list[str] = []
    size = 0
    for title in titles:
        length = len(urllib.parse.quote(title)) + 3
        if part and (len(part) == _TITLES or size + length > _TITLE_BYTES):
            yield part
            part, size = [], 0
        part.append(title)
        size += length
    if part:
        yield part
