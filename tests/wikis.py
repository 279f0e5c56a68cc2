"""A small encyclopaedia behind a local server that answers as the MediaWiki action API does, and in a ZIM file."""

from __future__ import annotations

import gzip
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGES: dict[str, str] = {
    "Tench": """{{Short description|Species of fish}}
{{Speciesbox | name = Tench | image = Tinca.jpg}}
[[File:Tinca tinca.jpg|thumb|A tench in a pond]]
The '''tench''' (''Tinca tinca'') is a fresh- and [[brackish water|brackish-water]] fish.<ref>{{cite web|url=x}}</ref>
It reaches {{convert|70|cm|in|abbr=on}} in length and {{cvt|5|to|7.5|kg|lb}} in weight.

== Appearance ==
The tench is olive green or brown. The tench is olive green, or brown! Its ''tiny'' scales lie deep in a thick skin.
{| class="wikitable"
! Weight || Year
|-
| 6.9 kg || 2001
|}
A formula such as <math>W = aL^b</math> gives its weight from its length.
* [[Golden tench]]
* The golden tench is an ornamental form of the fish.

=== Colour forms ===
Some ponds hold [http://example.org golden] tench.

== See also ==
* The list of fish is a list of all of them.
== References ==
{{reflist}}
Nobody reads this sentence here.
== Notes ==
This note is no description.
[[Category:Cyprinidae]]
[[de:Schleie]]
""",
    "Crane": "'''Crane''' may refer to:\n* [[Crane (bird)]], a large bird\n* [[Crane (machine)]], a machine\n"
    "{{disambiguation}}",
    "Crane (bird)": "'''Cranes''' are a family of long-legged birds. They fly with their necks stretched out.\n"
    "== Further reading ==\nA book about them was written once.",
    "Crane (machine)": "A '''crane''' is a machine that lifts things. It has ropes, chains and sheaves.",
    "Great grey owl": "The '''great grey owl''' is a very large owl. This bird hunts voles in the snow.",
    "Kite": "A '''kite''' is a tethered craft. It is flown on a string.",
    "Heron": "The '''heron''' is a bird with a long bill. It stands still in the water.",
}
REDIRECTS = {"Tinca tinca": "Tench", "Great gray owl": "Great grey owl"}
DESCRIPTIONS = {
    "Tench": "Species of fish",
    "Crane (bird)": "Family of birds",
    "Crane (machine)": "Type of machine",
    "Great grey owl": "Species of owl",
    "Kite": "Tethered aircraft",
    "Heron": "Bird",
}
LICENCE = {
    "url": "https://creativecommons.org/licenses/by-sa/4.0/",
    "text": "Creative Commons Attribution-Share Alike 4.0",
}


@dataclass
class Trouble:
    """An answer given once in place of the right one."""

    status: int = 200
    body: bytes = b"<!DOCTYPE html><title>Wikimedia Error</title>"
    headers: dict[str, str] = field(default_factory=dict)


MAXLAG = Trouble(
    200,
    json.dumps(
        {
            "error": {"code": "maxlag", "info": "Waiting for db1: 6.2 seconds lagged.", "lag": 6.2},
            "servedby": "mw1",
        }
    ).encode(),
    {"Retry-After": "5"},
)


@dataclass
class FakeWiki:
    """What the server holds and what it was asked.

    Attributes:
        url: Of its api.php.
        asked: The parameters of every request that was answered or refused, in order.
        agents: The agent string of each.
        troubles: Answered first, one a request.
        texts_at_once: Texts in one part of an answer; the rest comes by continuation.
    """

    url: str = ""
    pages: dict[str, str] = field(default_factory=lambda: dict(PAGES))
    asked: list[dict[str, str]] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    troubles: deque[Trouble] = field(default_factory=deque)
    texts_at_once: int = 2

    def numbers(self) -> dict[str, int]:
        """The page number of each title."""
        return {title: 100 + i for i, title in enumerate(self.pages)}

    def answer(self, params: dict[str, str]) -> dict[str, Any]:
        """What MediaWiki answers to a request, in format version 2."""
        assert params["action"] == "query"
        assert (params["format"], params["formatversion"]) == ("json", "2")
        assert params["maxlag"] == "5"
        if params.get("meta") == "siteinfo":
            general = {"server": self.url.rsplit("/w/", 1)[0], "script": "/w/index.php", "sitename": "Wiki"}
            return {"batchcomplete": True, "query": {"general": general, "rightsinfo": LICENCE}}
        if params.get("list") == "search":
            return {"batchcomplete": True, "query": {"search": self._hits(params["srsearch"])}}
        if params.get("prop") == "pageprops":
            return {"batchcomplete": True, "query": self._titles(params["titles"].split("|"))}
        if params.get("prop") == "links":
            return self._links(int(params["pageids"]), int(params.get("plcontinue", 0)))
        if params.get("prop") == "revisions":
            ids = [int(i) for i in params["pageids"].split("|")]
            return self._revisions(ids, int(params.get("rvcontinue", 0)))
        return {
            "error": {"code": "unknown_action", "info": "Unrecognized value for parameter."},
            "servedby": "mw1",
        }

    def _hits(self, words: str) -> list[dict[str, Any]]:
        wanted, numbers, hits = _stems(words), self.numbers(), list[dict[str, Any]]()
        redirects = {target: title for title, target in REDIRECTS.items()}
        for title, text in self.pages.items():
            hit = {"ns": 0, "title": title, "pageid": numbers[title]}
            if wanted <= _stems(f"{title} {text}"):
                hits.append(hit)
            elif wanted <= _stems(redirects.get(title, "")):
                hits.append(hit | {"redirecttitle": redirects[title]})
        return hits[:10]

    def _titles(self, titles: list[str]) -> dict[str, Any]:
        assert len(titles) <= 50
        normalized, redirects, pages = [], [], {}
        for title in titles:
            at = title.replace("_", " ")
            at = at[:1].upper() + at[1:]
            if at != title:
                normalized.append({"fromencoded": False, "from": title, "to": at})
            if at in REDIRECTS:
                redirects.append({"from": at, "to": REDIRECTS[at]})
                at = REDIRECTS[at]
            pages[at] = self._page(at)
        query: dict[str, Any] = {"pages": list(pages.values())}
        return (
            query
            | ({"normalized": normalized} if normalized else {})
            | ({"redirects": redirects} if redirects else {})
        )

    def _page(self, title: str) -> dict[str, Any]:
        if title not in self.pages:
            return {"ns": 0, "title": title, "missing": True}
        page: dict[str, Any] = {"pageid": self.numbers()[title], "ns": 0, "title": title}
        props = {}
        if "{{disambiguation}}" in self.pages[title]:
            props["disambiguation"] = ""
        if title in DESCRIPTIONS:
            props["wikibase-shortdesc"] = DESCRIPTIONS[title]
        return page | ({"pageprops": props} if props else {})

    def _links(self, number: int, start: int) -> dict[str, Any]:
        title = next(t for t, n in self.numbers().items() if n == number)
        targets = [t for t in self.pages if f"[[{t}]]" in self.pages[title]]
        page = {"pageid": number, "ns": 0, "title": title}
        page["links"] = [{"ns": 0, "title": t} for t in targets[start : start + 1]]
        query: dict[str, Any] = {"query": {"pages": [page]}}
        if start + 1 < len(targets):
            return query | {"continue": {"plcontinue": str(start + 1), "continue": "||"}}
        return query | {"batchcomplete": True}

    def _revisions(self, ids: list[int], start: int) -> dict[str, Any]:
        titles = {n: t for t, n in self.numbers().items()}
        pages = []
        for position, number in enumerate(ids):
            page: dict[str, Any] = {"pageid": number, "ns": 0, "title": titles[number]}
            if start <= position < start + self.texts_at_once:
                main = {"contentmodel": "wikitext", "contentformat": "text/x-wiki"}
                main["content"] = self.pages[titles[number]]
                page["revisions"] = [
                    {
                        "revid": 9000 + number,
                        "parentid": 1,
                        "timestamp": "2026-01-01T00:00:00Z",
                        "slots": {"main": main},
                    }
                ]
            pages.append(page)
        answer: dict[str, Any] = {"query": {"pages": pages}}
        if start + self.texts_at_once < len(ids):
            return answer | {"continue": {"rvcontinue": str(start + self.texts_at_once), "continue": "||"}}
        return answer | {"batchcomplete": True}


def _stems(text: str) -> set[str]:
    return {word.strip("'.,").removesuffix("s") for word in text.casefold().split()}


@contextmanager
def serving(wiki: FakeWiki) -> Iterator[FakeWiki]:
    """Answer on a port of this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            params = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}
            wiki.asked.append(params)
            wiki.agents.append(self.headers["User-Agent"])
            if wiki.troubles:
                trouble = wiki.troubles.popleft()
                self._send(trouble.status, trouble.body, trouble.headers)
                return
            body = gzip.compress(json.dumps(wiki.answer(params)).encode())
            self._send(200, body, {"Content-Type": "application/json", "Content-Encoding": "gzip"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    wiki.url = f"http://127.0.0.1:{server.server_address[1]}/w/api.php"
    try:
        yield wiki
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


HTML: dict[str, str] = {
    "Tench": """<html><head><title>Tench</title><style>p {}</style></head><body>
<table class="infobox"><tr><td>Tench is in a box of facts.</td></tr></table>
<div class="hatnote">For the ship, see another page.</div>
<p>The <b>tench</b> (<i>Tinca tinca</i>) is a fresh-water fish.<sup class="reference">[1]</sup>
It reaches 70&nbsp;cm.</p>
<details open><summary><h2 id="Appearance">Appearance</h2></summary>
<p>Its tiny scales lie deep in a thick skin.<!-- why --></p><ul><li><a href="Golden_tench">Golden tench</a></li>
<li>The golden tench is an ornamental form of the fish.</li></ul>
<figure><figcaption>A tench lies in a boat.</figcaption></figure></details>
<h2>See also</h2><ul><li>The list of fish is a list of all of them.</li></ul>
<h3>Below it</h3><p>This is below a dropped section.</p>
<h2>References</h2><p>Nobody reads this sentence here.</p>
<div class="zim-footer">issued from <a href="https://en.wikipedia.org/w/index.php?title=Tench&amp;oldid=4711">Wikipedia</a></div>
</body></html>""",
    "Crane": '<html><body><p><b>Crane</b> may refer to:</p><ul><li><a href="Crane_(bird)">Crane (bird)</a></li>'
    '<li><a href="./Crane_(machine)">Crane (machine)</a></li><li><a href="https://x.org/">out</a></li></ul></body></html>',
    "Crane (bird)": "<html><body><p>Cranes are a family of long-legged birds.</p></body></html>",
    "Crane (machine)": "<html><body><p>A crane is a machine that lifts things.</p></body></html>",
}


def write_zim(path: Path) -> Path:
    """Write the pages of `HTML` as a ZIM file with a full-text index."""
    from libzim.writer import Creator, Hint, Item, StringProvider

    class Page(Item):
        def __init__(self, title: str) -> None:
            super().__init__()
            self.title = title

        def get_path(self) -> str:
            return self.title.replace(" ", "_")

        def get_title(self) -> str:
            return self.title

        def get_mimetype(self) -> str:
            return "text/html"

        def get_contentprovider(self) -> StringProvider:
            return StringProvider(HTML[self.title])

        def get_hints(self) -> dict[Hint, int]:
            return {Hint.FRONT_ARTICLE: True}

    with Creator(path).config_indexing(True, "eng") as creator:
        creator.set_mainpath("Tench")
        for title in HTML:
            creator.add_item(Page(title))
        creator.add_redirection("Tinca_tinca", "Tinca tinca", "Tench", {Hint.FRONT_ARTICLE: True})
        for name, value in {"Language": "eng", "Title": "Fish", "Date": "2026-01-01"}.items():
            creator.add_metadata(name, value)
        creator.add_metadata("Source", "en.wikipedia.org")
    return path
