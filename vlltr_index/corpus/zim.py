"""An encyclopaedia in a ZIM file, for work without a network."""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from bs4 import BeautifulSoup

from vlltr_index.corpus.files import require
from vlltr_index.corpus.wikipedia import Article, Page
from vlltr_index.corpus.wikipedia_html import html_sections, is_disambiguation, revision_of
from vlltr_index.errors import InputError

__all__ = ["ZimWiki"]

_log = logging.getLogger(__name__)

_MAX_PAGE = 32 * 2**20
_HITS = 10
_LICENCE = "CC BY-SA 4.0"


class ZimWiki:
    """The articles of a ZIM file. Implements `corpus.wikipedia.Wiki`.

    Args:
        path: The file.

    Raises:
        InputError: If the file is missing or damaged, or `libzim` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = require(path)
        try:
            reader: Any = import_module("libzim.reader")
        except ImportError as error:
            raise InputError(
                f"reading {path} needs libzim, which is not installed ({error})",
                'Install it (its licence is GPL-3): pip install "vlltr-index[zim]"',
            ) from None
        try:
            self._archive: Any = reader.Archive(path)
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable ZIM file: {error}", "Fetch it again.") from None
        self._html = lru_cache(maxsize=16)(self._read)

    def pages(self, titles: Sequence[str]) -> dict[str, Page | None]:
        """See `Wiki.pages`: by title, then by path, also with a capital first letter as wikis have it."""
        return {title: self._page(title) for title in dict.fromkeys(titles)}

    def _page(self, title: str) -> Page | None:
        for form in dict.fromkeys((title, title[:1].upper() + title[1:])):
            entry = self._entry(form)
            if entry is None:
                continue
            item = entry.get_item()
            if not str(item.mimetype).startswith("text/html"):
                continue
            html = self._html(str(item.path))
            if html is not None:
                return Page(str(item.title), str(item.path), is_disambiguation(str(item.title), html))
        return None

    def _entry(self, title: str) -> Any:
        """The entry of a title, redirects followed; None where there is none."""
        archive = self._archive
        try:
            if archive.has_entry_by_title(title):
                entry = archive.get_entry_by_title(title)
            else:
                paths = [prefix + title.replace(" ", "_") for prefix in ("", "A/")]
                path = next((p for p in paths if archive.has_entry_by_path(p)), None)
                if path is None:
                    return None
                entry = archive.get_entry_by_path(path)
            for _ in range(5):
                if not entry.is_redirect:
                    return entry
                entry = entry.get_redirect_entry()
        except (RuntimeError, KeyError, ValueError) as error:
            _log.warning("%s: the entry %r cannot be read: %s", self.path, title, error)
        return None

    def _read(self, path: str) -> str | None:
        try:
            item = self._archive.get_entry_by_path(path).get_item()
            if item.size > _MAX_PAGE:
                return None
            return bytes(item.content).decode("utf-8", "replace")
        except (RuntimeError, KeyError, ValueError) as error:
            _log.warning("%s: the page %r cannot be read: %s", self.path, path, error)
            return None

    def links(self, page: Page) -> list[str]:
        """See `Wiki.links`."""
        soup = BeautifulSoup(self._html(page.key) or "", "html.parser")
        found: dict[str, None] = {}
        for anchor in soup.find_all("a", href=True):
            target = urllib.parse.urlsplit(str(anchor["href"]))
            if target.scheme or target.netloc or not target.path:
                continue
            path = normpath(join(dirname(page.key), urllib.parse.unquote(target.path)))
            if path == page.key or not self._archive.has_entry_by_path(path):
                continue
            entry = self._archive.get_entry_by_path(path)
            if entry.is_redirect or str(entry.get_item().mimetype).startswith("text/html"):
                found[str(entry.title)] = None
        return list(found)

    def search(self, words: str) -> list[str]:
        """See `Wiki.search`: by the file's full-text index, by its titles where it has none."""
        paths: list[str] = []
        try:
            if self._archive.has_fulltext_index:
                library: Any = import_module("libzim.search")
                found = library.Searcher(self._archive).search(library.Query().set_query(words))
                paths = list(found.getResults(0, _HITS))
            else:
                library = import_module("libzim.suggestion")
                paths = list(library.SuggestionSearcher(self._archive).suggest(words).getResults(0, _HITS))
        except RuntimeError as error:
            _log.warning("%s cannot be searched: %s", self.path, error)
        return [str(self._archive.get_entry_by_path(p).title) for p in paths]

    def articles(self, pages: Sequence[Page]) -> Iterator[tuple[Page, Article | None]]:
        """See `Wiki.articles`."""
        for page in pages:
            html = self._html(page.key)
            yield page, self._article(page, html) if html is not None else None

    def _article(self, page: Page, html: str) -> Article:
        revision = revision_of(html)
        base = self._meta("Source") or f"https://{self._meta('Language')[:2] or 'en'}.wikipedia.org"
        parts = urllib.parse.urlsplit(base if "//" in base else f"https://{base}")
        title = urllib.parse.quote(page.title.replace(" ", "_"), safe="()_,:")
        if revision:
            url = f"{parts.scheme}://{parts.netloc}/w/index.php?title={title}&oldid={revision}"
        else:
            url = f"{parts.scheme}://{parts.netloc}/wiki/{title}"
        return Article(page.title, revision or self._dated(), url, self.licence, tuple(html_sections(html)))

    def _dated(self) -> str | None:
        """What stands for the revision where the page names none: the file's date."""
        date = self._meta("Date")
        return f"ZIM file of {date}" if date else None

    @property
    def licence(self) -> str:
        """The licence that the file names; Wikipedia's where it names none."""
        return self._meta("License") or _LICENCE

    def _meta(self, key: str) -> str:
        if key not in self._archive.metadata_keys:
            return ""
        return bytes(self._archive.get_metadata(key)).decode("utf-8", "replace").strip()
