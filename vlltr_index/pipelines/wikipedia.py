"""Bring in an encyclopaedia article for each class, as sentences (`vlltr ingest wikipedia`): one commit a run."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.data.wikipedia import Article, Match, Wiki, match_class, mentions, own_titles
from vlltr_index.data.wikipedia_text import DROPPED_SECTIONS, article_sentences, near_duplicates
from vlltr_index.data.writing import write_file
from vlltr_index.errors import MissingStepError, UsageError
from vlltr_index.pipelines.ingest import write_prompts
from vlltr_index.schemas.fingerprint import short
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.store.ingestion import sentence_rows

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace

_URL = re.compile(r"https?://[\w-]+(\.[\w-]+)*(:\d+)?/\S*")


@dataclass
class ClassArticle:
    """Article of a class, or why it has none, with the candidates and the command that chooses one."""

    name: str
    title: str | None = None
    url: str | None = None
    revision: str | None = None
    timestamp: str | None = None  # of the revision
    licence: str | None = None
    sentences: int = 0  # found in the article, near duplicates left out
    added: int = 0
    near_duplicates: int = 0
    why: str = ""
    candidates: tuple[str, ...] = ()
    settle: str | None = None


@dataclass(frozen=True)
class WikipediaReport:
    """Report of an ingestion from a wiki, one row a class, in the order of class ids."""

    source: str
    rows: tuple[ClassArticle, ...]
    added: int
    prompts: int
    next_step: str | None

    @property
    def found(self) -> int:
        """Number of classes with an article."""
        return sum(not row.why for row in self.rows)


def open_wiki(workspace: Workspace, api: str | None, lang: str, contact: str | None, refresh: bool) -> Wiki:
    """Return the wiki whose API is at `api`, else Wikipedia in `lang`; its answers are cached in the workspace.

    Raises:
        UsageError: If `api` is no address, `lang` no code of a language, or `contact` more than a line.
    """
    url = api or f"https://{lang}.wikipedia.org/w/api.php"
    if not _URL.fullmatch(url):
        raise UsageError(
            f"{url!r} is no address of a wiki's api.php",
            "For example: --lang de, or --api https://de.wikipedia.org/w/api.php",
        )
    if contact is not None and not (contact.isascii() and contact.isprintable()):
        raise UsageError("--contact takes one line of ASCII", "For example: --contact you@example.org")
    return Wiki(url, workspace.path / "cache" / "wikipedia", contact, refresh)


def ingest_wikipedia(
    workspace: Workspace,
    wiki: Wiki,
    *,
    lang: str = "en",
    hint: str | None = None,
    titles: Mapping[str, str] | None = None,
    prompts: bool = True,
    choose: Callable[[str, Sequence[str]], str | None] | None = None,
    command: str = "vlltr ingest wikipedia",
    progress: Progress | None = None,
) -> WikipediaReport:
    """Bring in the sentences of the article about each class.

    Each sentence keeps its page, revision and licence. Near duplicates of another sentence of the article, or of one
    that the class has, are left out. Titles that are given or chosen are remembered for later runs.

    Args:
        workspace: The workspace to write to.
        wiki: The wiki to read from.
        lang: The wiki's language, which determines the sections to drop.
        hint: What all classes have in common, such as `bird`.
        titles: Titles of articles by class.
        prompts: Whether every class gets the recipe's prompts.
        choose: Called with a class's name and the candidates, where there are several; returns a title, or None to
            leave it open.
        command: Beginning of the commands in the report.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        MissingStepError: If there are no classes.
        UnknownClassError: If `titles` names a class that does not exist.
        InputError: If the wiki gives no answer.
    """
    classes = workspace.snapshot().class_table()
    if not classes.ids:
        raise MissingStepError(
            "the workspace has no classes, so there is nothing to look for",
            "Bring in training images first: vlltr ingest images PATH --split train",
        )
    wanted = {i: (classes.names[i], *classes.aliases.get(i, ())) for i in classes.ids}
    given = {classes.names[classes.lookup(name)]: title for name, title in (titles or {}).items()}
    settled = _remembered(wiki) | given
    looked_at = [title for names in wanted.values() for title in own_titles(names, hint)]
    own = wiki.pages([*looked_at, *settled.values()])
    rows: dict[int, ClassArticle] = {}
    texts: dict[int, list[str]] = {}
    for class_id, names in wanted.items():
        name = names[0]
        title = settled.get(name)
        match = Match(None) if title else match_class(names, own, wiki, hint)
        if choose and match.candidates and match.page is None:
            title = choose(name, match.candidates)
        if title:
            page = (own if title in own else wiki.pages([title]))[title]
            if page and not page.disambiguation:
                match = Match(page)
                _remember(wiki, name, page.title)
            else:
                match = Match(None, f"there is no article {title!r}", match.candidates)
        article = wiki.article(match.page) if match.page else None
        away = DROPPED_SECTIONS.get(lang, DROPPED_SECTIONS["en"])
        texts[class_id] = article_sentences(article.extract, away) if article else []
        rows[class_id] = row = _row(name, match, article, len(texts[class_id]), hint=None if title else hint)
        if row.why:
            one = shlex.quote(f"{name}={row.candidates[0] if row.candidates else 'TITLE'}")
            row.settle = f"{command} --title {one}"
        if progress:
            progress("read articles", len(rows), len(wanted))
    with workspace.transaction(f"ingest wikipedia ({wiki.url})") as tx:
        known: set[str] = set()
        had: dict[int, list[str]] = defaultdict(list)
        for batch in tx.scan("sentences", ["sentence_id", "class_id", "text"], batch_rows=8192):
            for key, class_id, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                known.add(key)
                had[class_id].append(text)
        found = {i: _records(row, texts[i], had[i]) for i, row in rows.items() if not row.why}
        table = sentence_rows(found, known)
        tx.upsert("sentences", table)
        made = write_prompts(tx, tx.class_table().ids) if prompts else 0
    next_step = "vlltr embed" if table.num_rows or made else None
    return WikipediaReport(wiki.url, tuple(rows.values()), table.num_rows, made, next_step=next_step)


def _remembered(wiki: Wiki) -> dict[str, str]:
    """Read the titles that earlier runs were given or chose, by class."""
    try:
        values: dict[str, str] = json.loads(_titles_file(wiki).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values


def _remember(wiki: Wiki, name: str, title: str) -> None:
    text = json.dumps(_remembered(wiki) | {name: title}, ensure_ascii=False, indent=1, sort_keys=True)
    write_file(_titles_file(wiki), f"{text}\n".encode())


def _titles_file(wiki: Wiki) -> Path:
    return wiki.folder / f"titles-{short(hashlib.sha256(wiki.url.encode()).hexdigest())}.json"


def _row(name: str, match: Match, article: Article | None, sentences: int, hint: str | None) -> ClassArticle:
    """Build a class's row from its article, before anything is written."""
    if article is None:
        return ClassArticle(name, why=match.why, candidates=match.candidates)
    if not sentences:
        return ClassArticle(name, why=f"no sentence is left of the article {article.title!r}")
    if hint and not mentions(hint, article.title, article.extract):
        why = f"the article {article.title!r} does not mention {hint!r}"
        return ClassArticle(name, why=why, candidates=(article.title,))
    return ClassArticle(
        name=name,
        title=article.title,
        url=article.url,
        revision=article.revision,
        timestamp=article.timestamp,
        licence=article.licence,
        sentences=sentences,
    )


def _records(row: ClassArticle, texts: Sequence[str], had: Sequence[str]) -> list[SentenceRecord]:
    """Return those of an article's sentences that are new to the class; set the row's counts."""
    old = {text.casefold() for text in had}
    new = [text for text in texts if text.casefold() not in old]
    near = set(near_duplicates(new, had))
    fresh = [text for position, text in enumerate(new) if position not in near]
    row.sentences = len(texts) - len(near)
    row.added = len(fresh)
    row.near_duplicates = len(near)
    return [
        SentenceRecord(
            class_name=row.name,
            text=text,
            source=f"Wikipedia: {row.title}",
            source_ref=row.url,
            licence=row.licence,
        )
        for text in fresh
    ]


def parse_titles(values: Sequence[str]) -> dict[str, str]:
    """Parse `CLASS=TITLE` values, split at the last `=`, into titles by class.

    Raises:
        UsageError: If there is no `=`, or nothing before or after it.
    """
    found: dict[str, str] = {}
    for value in values:
        name, _, title = map(str.strip, value.rpartition("="))
        if not name or not title:
            raise UsageError(
                f"--title takes CLASS=TITLE, got {value!r}", 'For example: --title "crane=Crane (bird)"'
            )
        found[name] = title
    return found
