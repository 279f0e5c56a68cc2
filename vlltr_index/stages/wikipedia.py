"""`vlltr ingest wikipedia`: an encyclopaedia article for each class, as sentences, in one commit."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.corpus.clean import normalise_text
from vlltr_index.corpus.duplicates import near_duplicates
from vlltr_index.corpus.prompts import class_prompts
from vlltr_index.corpus.split import split_sentences
from vlltr_index.corpus.wikipedia import Article, Match, Page, Wanted, Wiki, match_classes, mentions
from vlltr_index.corpus.wikipedia_text import DROPPED_SECTIONS, FORMULA, keep_sections
from vlltr_index.errors import MissingStepError, UnknownClassError, UsageError
from vlltr_index.ingestion import sentence_rows
from vlltr_index.schemas.records import SentenceRecord

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.transaction import Transaction
    from vlltr_index.workspace import Workspace

__all__ = [
    "ClassArticle",
    "WikipediaReport",
    "cache_folder",
    "ingest_wikipedia",
    "open_wiki",
    "parse_titles",
]

_LANGUAGE = re.compile(r"[a-z][a-z0-9-]{1,30}")  # as in en, de, zh-min-nan

_MIN_WORDS = 3  # fewer words are no sentence
_MAX_CHARACTERS = 4_000
_TITLES = "titles.json"
_BATCH = 20  # articles between two steps of the progress


@dataclass(frozen=True)
class ClassArticle:
    """A class's article, or why it has none, with the candidates and the command that settles it."""

    name: str
    title: str | None
    url: str | None
    revision: str | None
    licence: str | None
    sentences: int  # found in the article, near duplicates left out
    added: int
    near_duplicates: int
    why: str = ""
    candidates: tuple[str, ...] = ()
    settle: str | None = None


@dataclass(frozen=True)
class WikipediaReport:
    """What an ingestion from a wiki did, a row a class, in the order of the class numbers."""

    source: str
    rows: tuple[ClassArticle, ...]
    added: int
    prompts: int
    next_step: str | None = field(default=None)

    @property
    def found(self) -> int:
        """Classes with an article."""
        return sum(row.title is not None and not row.why for row in self.rows)

    @property
    def open(self) -> tuple[ClassArticle, ...]:
        """Classes without one."""
        return tuple(row for row in self.rows if row.why)


def cache_folder(workspace: Workspace) -> Path:
    """Where a workspace keeps what wikis answered, and which titles were settled."""
    return workspace.path / "cache" / "wikipedia"


def open_wiki(
    workspace: Workspace,
    zim: Path | None = None,
    api: str | None = None,
    lang: str = "en",
    contact: str | None = None,
    refresh: bool = False,
    rate: float = 5.0,
) -> tuple[Wiki, str]:
    """The wiki to ask, and what to call it: a ZIM file, else the API at `api`, else Wikipedia in `lang`.

    Raises:
        InputError: If the ZIM file cannot be read.
        UsageError: If `api` is no address, `lang` no code of a language, or `contact` more than a line.
    """
    if not _LANGUAGE.fullmatch(lang):
        raise UsageError(f"{lang[:40]!r} is no code of a language", "For example: --lang de")
    if contact is not None and not (contact.isascii() and contact.isprintable()):
        raise UsageError("--contact takes one line of ASCII", "For example: --contact you@example.org")
    if zim is not None:
        from vlltr_index.corpus.zim import ZimWiki

        return ZimWiki(zim), zim.name
    from vlltr_index.corpus.wikipedia_api import ApiClient, MediaWiki, agent
    from vlltr_index.corpus.wikipedia_cache import AnswerCache

    url = api or f"https://{lang}.wikipedia.org/w/api.php"
    client = ApiClient(url, agent(contact), rate)
    return MediaWiki(client, AnswerCache(cache_folder(workspace), url, refresh)), url


def ingest_wikipedia(
    workspace: Workspace,
    wiki: Wiki,
    source: str,
    *,
    lang: str = "en",
    hint: str | None = None,
    titles: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    sections: Sequence[str] = (),
    dropped: Sequence[str] = (),
    prompts: bool = True,
    choose: Callable[[Wanted, Sequence[str]], str | None] | None = None,
    command: str = "vlltr ingest wikipedia",
    progress: Progress | None = None,
) -> WikipediaReport:
    """Find the best article of each class, and bring in its sentences with page, revision and licence.

    Again adds only what is new. A title that was given once is remembered. A sentence that nearly repeats one that
    the class has is left out (see `corpus.duplicates`).

    Args:
        workspace: With classes.
        wiki: Where to look; see `open_wiki`.
        source: What the commit and the report call it.
        lang: Whose headings of sections without a description are known.
        hint: What all classes have in common, such as `bird`.
        titles: Article by class, where it is known.
        only: Names of the classes to look at; none given: all.
        sections: Headings to keep beside the lead; none given: all but the dropped ones.
        dropped: More headings to drop.
        prompts: Whether every class gets the recipe's prompts.
        choose: Asked where there are several candidates; see `match_classes`.
        command: What the commands in the report start with.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        MissingStepError: If there are no classes.
        UnknownClassError: If `only` or `titles` name none.
        InputError: If the wiki gives no answer.
    """
    wanted = _wanted(workspace, only, titles or {})

    def ask(one: Wanted, candidates: Sequence[str]) -> str | None:
        title = choose(one, candidates) if choose is not None else None
        if title is not None:
            _remember(workspace, {one.name: title})
        return title

    if progress:
        progress("find articles", 0, len(wanted))
    matches = match_classes(list(wanted.values()), wiki, hint, ask if choose is not None else None)
    if progress:
        progress("find articles", len(wanted), len(wanted))
    articles = _read(matches, wiki, progress)
    away = (*DROPPED_SECTIONS.get(lang, DROPPED_SECTIONS["en"]), *dropped)
    with workspace.transaction(f"ingest wikipedia ({source})") as tx:
        run = _Run(tx, hint, away, sections, command)
        rows: list[ClassArticle] = []
        for class_id, match in zip(wanted, matches, strict=True):
            rows.append(run.take(class_id, match, articles.get(match.page.key) if match.page else None))
            if progress and (len(rows) % _BATCH == 0 or len(rows) == len(wanted)):
                progress("split into sentences", len(rows), len(wanted))
        added, made = run.write(workspace if prompts else None)
    _remember(workspace, {name: t for name, t in (titles or {}).items() if _is_taken(rows, name)})
    return WikipediaReport(source, tuple(rows), added, made, "vlltr embed" if added or made else None)


def _is_taken(rows: Iterable[ClassArticle], name: str) -> bool:
    return any(row.name == name and not row.why for row in rows)


def _wanted(workspace: Workspace, only: Sequence[str], titles: Mapping[str, str]) -> dict[int, Wanted]:
    """The classes to look at, by number, ascending."""
    table = workspace.snapshot().class_table()
    if not table.ids:
        raise MissingStepError(
            "the workspace has no classes, so there is nothing to look for",
            "Bring in training images first: vlltr ingest images PATH --split train",
        )
    earlier = {name: title for name, title in _remembered(workspace).items() if _known(table.find, name)}
    given = {table.names[table.lookup(name)]: title for name, title in {**earlier, **titles}.items()}
    ids = sorted({table.lookup(name) for name in only}) if only else table.ids
    return {
        i: Wanted(table.names[i], tuple(table.aliases.get(i, ())), given.get(table.names[i])) for i in ids
    }


def _known(find: Callable[[str], int | None], name: str) -> bool:
    try:
        return find(name) is not None
    except UnknownClassError:
        return False


def _remembered(workspace: Workspace) -> dict[str, str]:
    """Titles that were settled in earlier runs, by class."""
    try:
        values = json.loads((cache_folder(workspace) / _TITLES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in values.items()} if isinstance(values, dict) else {}


def _remember(workspace: Workspace, titles: Mapping[str, str]) -> None:
    if titles:
        file = cache_folder(workspace) / _TITLES
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_remembered(workspace) | dict(titles), ensure_ascii=False, indent=1, sort_keys=True)
        file.write_text(text + "\n", encoding="utf-8")


def _read(matches: Sequence[Match], wiki: Wiki, progress: Progress | None) -> dict[str, Article | None]:
    pages: dict[str, Page] = {match.page.key: match.page for match in matches if match.page is not None}
    found: dict[str, Article | None] = {}
    for done, (page, article) in enumerate(wiki.articles(list(pages.values())), 1):
        found[page.key] = article
        if progress and (done % _BATCH == 0 or done == len(pages)):
            progress("read articles", done, len(pages))
    return found


class _Run:
    """One ingestion: articles to sentences to rows."""

    def __init__(
        self,
        tx: Transaction,
        hint: str | None,
        dropped: Sequence[str],
        sections: Sequence[str],
        command: str,
    ) -> None:
        self._command = command
        self._tx, self._hint, self._dropped, self._sections = tx, hint, dropped, sections
        self._known: set[str] = set()
        self._texts: dict[int, list[str]] = {}
        self._owned: dict[int, list[SentenceRecord]] = {}
        for batch in tx.scan("sentences", ["sentence_id", "class_id", "text"], batch_rows=8192):
            self._known.update(batch.column(0).to_pylist())
            for class_id, text in zip(batch.column(1).to_pylist(), batch.column(2).to_pylist(), strict=True):
                self._texts.setdefault(class_id, []).append(text)

    def take(self, class_id: int, match: Match, article: Article | None) -> ClassArticle:
        """The sentences of a class's article, held until `write`; returns the row of the report."""
        why, candidates = match.why, match.candidates
        if match.page is not None and article is None:
            why = f"the page {match.page.title!r} has no text"
        sentences = self._sentences(article) if article is not None else []
        if article is not None and not sentences:
            why = f"no sentence is left of the article {article.title!r}"
        elif article is not None and self._is_other_kind(match.wanted, article):
            why = f"the article {article.title!r} does not mention {self._hint!r}"
            candidates = (article.title,)
        name = match.wanted.name
        if why or article is None:
            settle = f"{self._command} --title {_setting(name, candidates)}"
            return ClassArticle(name, None, None, None, None, 0, 0, 0, why, candidates, settle)
        known = {normalise_text(text).casefold() for text in self._texts.get(class_id, ())}
        new = [text for text in sentences if text.casefold() not in known]
        near = set(near_duplicates(new, self._texts.get(class_id, ())))
        records = [
            SentenceRecord(name, text, f"Wikipedia: {article.title}", article.url, article.licence)
            for position, text in enumerate(new)
            if position not in near
        ]
        self._owned[class_id] = records
        return ClassArticle(
            name,
            article.title,
            article.url,
            article.revision,
            article.licence,
            len(sentences) - len(near),
            len(records),
            len(near),
        )

    def _sentences(self, article: Article) -> list[str]:
        """Each different sentence once; those with a formula are not whole without it."""
        kept = keep_sections(article.sections, self._dropped, self._sections)
        found: dict[str, str] = {}
        for section in kept:
            for paragraph in section.paragraphs:
                for sentence in split_sentences(paragraph):
                    words = len(sentence.split())
                    if words >= _MIN_WORDS and len(sentence) <= _MAX_CHARACTERS and FORMULA not in sentence:
                        found.setdefault(sentence.casefold(), sentence)
        return list(found.values())

    def _is_other_kind(self, wanted: Wanted, article: Article) -> bool:
        """Whether a page that was not named by anybody never says the hint."""
        if self._hint is None or wanted.title is not None:
            return False
        return not mentions(self._hint, article.title, *(p for s in article.sections for p in s.paragraphs))

    def write(self, prompted: Workspace | None) -> tuple[int, int]:
        """Write all sentences, then the prompts of all classes; returns how many of each were new."""
        rows = sentence_rows(self._owned, self._known.__contains__)
        self._tx.upsert("sentences", rows)
        self._known.update(rows.column("sentence_id").to_pylist())
        if prompted is None:
            return rows.num_rows, 0
        table = self._tx.class_table()
        asked = {i: class_prompts(table.names[i], prompted.recipe.prompts) for i in table.ids}
        return rows.num_rows, self._tx.upsert("sentences", sentence_rows(asked, self._known.__contains__))


def _setting(name: str, candidates: Sequence[str]) -> str:
    """What settles which article a class has, quoted for a shell."""
    return shlex.quote(f"{name}={candidates[0] if candidates else 'TITLE'}")


def parse_titles(values: Sequence[str]) -> dict[str, str]:
    """`CLASS=TITLE`, parted at the last `=`, as article by class.

    Raises:
        UsageError: If there is no `=`, or nothing before or after it.
    """
    found: dict[str, str] = {}
    for value in values:
        name, sign, title = value.rpartition("=")
        if not sign or not name.strip() or not title.strip():
            raise UsageError(
                f"--title takes CLASS=TITLE, got {value!r}", 'For example: --title "crane=Crane (bird)"'
            )
        found[name.strip()] = title.strip()
    return found
