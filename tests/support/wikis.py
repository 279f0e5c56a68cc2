"""A small encyclopaedia behind a local server that answers as the MediaWiki action API with TextExtracts does."""

from __future__ import annotations

import gzip
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

# A formula is its MathML, a symbol a line, then its TeX; the items of a list are lines.
FORMULA = "\n  \n    \n      \n        W\n        =\n        a\n      \n    \n    {\\displaystyle W=a%s}\n  "
PAGES: dict[str, str] = {
    "Tench": f"""The tench ( ; Tinca tinca) is a fresh- and brackish-water fish. It reaches 70 cm in length .


== Appearance ==
The tench is olive green or brown. The tench is olive green, or brown! Its tiny scales lie deep in a thick skin.
A formula such as {FORMULA % "L^{b}"} gives its weight. One is {FORMULA % "."} The exponent is near three.
Golden tench
The golden tench is an ornamental form of the fish.


=== Colour forms ===
Some ponds hold golden tench.


== See also ==
The list of fish is a list of all of them.


=== Below it ===
Nobody reads this sentence here.


== References ==""",
    "Crane": "Crane may refer to:\nCrane (bird), a large bird\nCrane (machine), a machine",
    "Crane (bird)": "Cranes are a family of long-legged birds. They fly with their necks stretched out.",
    "Crane (machine)": "A crane is a machine that lifts things. It has ropes, chains and sheaves.",
    "Great grey owl": "The great grey owl is a very large owl. This bird hunts voles in the snow.",
    "Kite": "A kite is a tethered craft. It is flown on a string.",
    "Heron": "The heron is a bird with a long bill. It stands still in the water.",
    "Stub": "",
}
LINKS = {"Crane": ["Crane (bird)", "Crane (machine)"]}
REDIRECTS = {"Tinca tinca": ("Tench", None), "Great gray owl": ("Great grey owl", None)}
REDIRECTS |= {"Golden tench": ("Tench", "Colour forms")}
DESCRIPTIONS = {"Tench": "Species of fish", "Crane (bird)": "Family of birds", "Heron": "Bird"}
RIGHTS = {
    "url": "https://creativecommons.org/licenses/by-sa/4.0/deed.en",
    "text": "Creative Commons Attribution-Share Alike 4.0",
}


@dataclass
class Trouble:
    """An answer given once in place of the right one."""

    status: int = 200
    body: bytes = b"<!DOCTYPE html><title>Wikimedia Error</title>"
    headers: dict[str, str] = field(default_factory=dict)


def refusal(code: str, info: str, **headers: str) -> Trouble:
    """What the API answers when it does not do what was asked."""
    return Trouble(
        200, json.dumps({"error": {"code": code, "info": info}, "servedby": "mw1"}).encode(), headers
    )


MAXLAG = refusal("maxlag", "Waiting for db1: 6.2 seconds lagged.", **{"Retry-After": "7"})


@dataclass
class FakeWiki:
    """What the server was asked, and what it shall answer."""

    url: str = ""  # of its api.php
    asked: list[dict[str, str]] = field(default_factory=list)  # the parameters of every request, in order
    agents: list[str] = field(default_factory=list)
    troubles: deque[Trouble | None] = field(default_factory=deque)  # one a request; None: the right answer
    extracts: bool = True  # whether the extension TextExtracts is there

    def answer(self, params: dict[str, str]) -> dict[str, Any]:
        """What MediaWiki answers to a request, in format version 2."""
        always = {"action": "query", "format": "json", "formatversion": "2", "maxlag": "5"}
        assert always.items() <= params.items()
        if params.get("list") == "search":
            return {"search": self._hits(params["srsearch"])}
        if params["prop"] == "pageprops":
            return self._titles(params["titles"].split("|"))
        title = list(PAGES)[int(params["pageids"]) - 100]
        if params["prop"] == "links":
            linked = [{"ns": 0, "title": to} for to in LINKS[title]]
            return {"pages": [{**self._page(title), "links": linked}]}
        asked = [
            params[key] for key in ("prop", "explaintext", "exsectionformat", "exlimit", "rvprop", "inprop")
        ]
        assert asked == ["extracts|revisions|info", "1", "wiki", "1", "ids|timestamp", "url"]
        assert (params["meta"], params["siprop"]) == ("siteinfo", "rightsinfo")
        return {"pages": [self._article(title)], "rightsinfo": RIGHTS}

    def _hits(self, words: str) -> list[dict[str, Any]]:
        found = [(title, {}) for title, text in PAGES.items() if _stems(words) <= _stems(f"{title} {text}")]
        found += [(t, {"redirecttitle": r}) for r, (t, _) in REDIRECTS.items() if _stems(words) <= _stems(r)]
        return [{"ns": 0, "title": title, "pageid": self._page(title)["pageid"], **by} for title, by in found]

    def _titles(self, titles: list[str]) -> dict[str, Any]:
        assert len(titles) <= 50
        query: dict[str, Any] = {"pages": [], "normalized": [], "redirects": []}
        pages: dict[str, dict[str, Any]] = {}
        for title in titles:
            at = title.replace("_", " ")
            at = at[:1].upper() + at[1:]
            if at != title:
                query["normalized"].append({"fromencoded": False, "from": title, "to": at})
            if at in REDIRECTS:
                to, section = REDIRECTS[at]
                query["redirects"].append(
                    {"from": at, "to": to, **({"tofragment": section} if section else {})}
                )
                at = to
            pages[at] = self._page(at)
        query["pages"] = list(pages.values())
        return {key: value for key, value in query.items() if value}

    def _page(self, title: str) -> dict[str, Any]:
        if title not in PAGES:
            return {"ns": 0, "title": title, "missing": True}
        props = {"disambiguation": ""} if title in LINKS else {}
        props |= {"wikibase-shortdesc": DESCRIPTIONS[title]} if title in DESCRIPTIONS else {}
        page: dict[str, Any] = {"pageid": 100 + list(PAGES).index(title), "ns": 0, "title": title}
        return {**page, "pageprops": props} if props else page

    def _article(self, title: str) -> dict[str, Any]:
        page = self._page(title)
        address, name = self.url.replace("api.php", "index.php"), quote(title.replace(" ", "_"), safe="()")
        revision = {"revid": 9000 + page["pageid"], "parentid": 1, "timestamp": "2026-01-01T00:00:00Z"}
        page |= {"contentmodel": "wikitext", "lastrevid": revision["revid"], "revisions": [revision]}
        page |= {"fullurl": f"{address}/{name}", "editurl": f"{address}?title={name}&action=edit"}
        return {**page, "extract": PAGES[title]} if self.extracts else page


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
            if wiki.troubles and (trouble := wiki.troubles.popleft()):
                self._send(trouble.status, trouble.body, trouble.headers)
                return
            body = json.dumps({"batchcomplete": True, "query": wiki.answer(params)}).encode()
            self._send(200, gzip.compress(body), {"Content-Encoding": "gzip"})

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
