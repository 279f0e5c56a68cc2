"""Tests of `vlltr ingest wikipedia`: the client, the choice of articles, and what comes into the workspace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import wikis
from test_cli import run
from wikis import MAXLAG, FakeWiki, Trouble, serving, write_zim

from vlltr_index.corpus.wikipedia import Page, Wanted, match_classes, spellings
from vlltr_index.corpus.wikipedia_api import ApiClient, MediaWiki, agent
from vlltr_index.corpus.wikipedia_cache import AnswerCache
from vlltr_index.corpus.zim import ZimWiki
from vlltr_index.errors import InputError, MissingStepError, UnknownClassError, UsageError
from vlltr_index.schemas.config import Recipe
from vlltr_index.stages.ingest import ingest_text
from vlltr_index.stages.wikipedia import ingest_wikipedia, open_wiki, parse_titles
from vlltr_index.workspace import Workspace


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def server() -> Iterator[FakeWiki]:
    """The small encyclopaedia on a local port."""
    with serving(FakeWiki()) as wiki:
        yield wiki


@pytest.fixture
def clock() -> Clock:
    """A clock of the test's own."""
    return Clock()


@pytest.fixture
def client(server: FakeWiki, clock: Clock) -> ApiClient:
    """A client of the server that never really waits."""
    return ApiClient(server.url, agent("me@example.org"), sleep=clock.sleep, clock=clock)


@pytest.fixture
def wiki(client: ApiClient, tmp_path: Path) -> MediaWiki:
    """The wiki with an empty cache."""
    return MediaWiki(client, AnswerCache(tmp_path / "cache", client.url))


def named(folder: Path, names: Sequence[str]) -> Workspace:
    """A workspace with classes of these names."""
    workspace = Workspace.create(folder / "ws", Recipe(name="test", prompts=("a photo of a {}.",)))
    file = folder / "names.json"
    file.write_text(
        json.dumps({name: [f"{name} is what this is about."] for name in names}), encoding="utf-8"
    )
    ingest_text(workspace, file)
    return workspace


def stored(workspace: Workspace) -> list[dict[str, Any]]:
    """Sentences from a wiki, by text."""
    rows: list[dict[str, Any]] = workspace.snapshot().table("sentences").to_pylist()
    return sorted((r for r in rows if r["source"].startswith("Wikipedia")), key=lambda r: r["text"])


# The client.


def test_requests_name_themselves_and_keep_the_pace(
    client: ApiClient, server: FakeWiki, clock: Clock
) -> None:
    """Each carries the agent string and maxlag, and the second waits for its turn."""
    for _ in range(3):
        next(client.query(titles="Tench", redirects="1", prop="pageprops", ppprop="disambiguation"))
    assert clock.slept == [pytest.approx(0.2)] * 2
    assert set(server.agents) == {client.user_agent}
    assert client.user_agent.startswith("vlltr-index/")
    assert "me@example.org" in client.user_agent
    assert all(p["maxlag"] == "5" for p in server.asked)


@pytest.mark.parametrize(
    ("trouble", "pause"),
    [
        (Trouble(429, headers={"Retry-After": "7"}), 7.0),
        (Trouble(503), None),
        (MAXLAG, 5.0),
        (Trouble(200, json.dumps({"error": {"code": "ratelimited", "info": "Slow down."}}).encode()), None),
        (Trouble(429, headers={"Retry-After": "9999"}), 300.0),
        (Trouble(429, headers={"Retry-After": "soon"}), None),
    ],
)
def test_a_busy_server_is_asked_again_later(
    client: ApiClient, server: FakeWiki, clock: Clock, trouble: Trouble, pause: float | None
) -> None:
    """429, 503, maxlag and ratelimited are waited out: as long as the server asks, else longer each time."""
    server.troubles.extend([trouble, trouble])
    query = next(client.query(list="search", srsearch="tench"))
    assert [hit["title"] for hit in query["search"]] == ["Tench"]
    first, second = clock.slept
    if pause is None:
        assert 1 <= first <= 1.25
        assert 2 <= second <= 2.5
    else:
        assert (first, second) == (pause, pause)


def test_retry_after_may_be_a_date(client: ApiClient, server: FakeWiki, clock: Clock) -> None:
    """A date is as good as a number of seconds."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.troubles.append(Trouble(503, headers={"Retry-After": later}))
    next(client.query(list="search", srsearch="tench"))
    assert 50 <= clock.slept[0] <= 60


@pytest.mark.parametrize(
    ("troubles", "message", "hint"),
    [
        (
            [Trouble(503)] * 6,
            "gave no answer in 6 tries; the last time: HTTP 503 Service Unavailable",
            "Run it again later: what has come is kept. Or use an offline copy: vlltr ingest wikipedia --zim FILE",
        ),
        ([MAXLAG] * 6, "the last time: maxlag: Waiting for db1: 6.2 seconds lagged.", "Run it again later"),
        ([Trouble(403)], "refused the request: HTTP 403 Forbidden", "--contact you@example.org"),
        ([Trouble(404)], "refused the request: HTTP 404 Not Found", "Check the address: --api https://"),
        (
            [Trouble(200, b'{"error": {"code": "badvalue", "info": "Unrecognized value."}}')],
            "refused the request: badvalue: Unrecognized value.",
            "Check --api",
        ),
        ([Trouble()], "does not answer as a MediaWiki API does: no JSON", "Give the address of api.php"),
        ([Trouble(200, b"[1]")], "JSON, but no object", "Give the address of api.php"),
        ([Trouble(200, b'{"query": []}')], "'query' is no object", "Give the address of api.php"),
        ([Trouble(200, b"x", {"Content-Encoding": "gzip"})] * 6, "gave no answer in 6 tries", "--zim FILE"),
    ],
)
def test_a_server_that_does_not_answer_is_named(
    client: ApiClient, server: FakeWiki, troubles: list[Trouble], message: str, hint: str
) -> None:
    """What went wrong is said, and what to do."""
    server.troubles.extend(troubles)
    with pytest.raises(InputError) as error:
        next(client.query(list="search", srsearch="tench"))
    assert error.value.message.startswith(server.url)
    assert message in error.value.message
    assert hint in str(error.value.hint)


def test_no_server_at_all(clock: Clock) -> None:
    """A refused connection is tried again, then reported with the way to do without a network."""
    client = ApiClient("http://127.0.0.1:9/w/api.php", sleep=clock.sleep, clock=clock, tries=3)
    with pytest.raises(InputError, match="gave no answer in 3 tries") as error:
        next(client.query(list="search", srsearch="tench"))
    assert "--zim FILE" in str(error.value.hint)
    assert len([s for s in clock.slept if s >= 1]) == 2


@pytest.mark.parametrize("url", ["file:///etc/passwd", "en.wikipedia.org", "ftp://x/api.php"])
def test_only_web_addresses_are_asked(url: str) -> None:
    """No file and no other protocol."""
    with pytest.raises(UsageError, match="--api takes the address"):
        ApiClient(url)


def test_titles_go_in_batches_and_come_from_the_cache(wiki: MediaWiki, server: FakeWiki) -> None:
    """Fifty titles a request; redirects and other spellings are followed; a second look asks nothing."""
    titles = ["tench", "tinca tinca", "Crane", *(f"nothing {i}" for i in range(100))]
    found = wiki.pages(titles)
    assert found["tench"] == found["tinca tinca"] == Page("Tench", "100", False, "Species of fish")
    assert found["Crane"] is not None
    assert found["Crane"].disambiguation
    assert found["nothing 7"] is None
    assert wiki.pages(["Tench|Crane", " "]) == {"Tench|Crane": None, " ": None}
    assert len(server.asked) == 3
    assert wiki.pages(titles) == found
    assert len(server.asked) == 3
    assert MediaWiki(wiki.client, AnswerCache(wiki.cache.folder, wiki.client.url)).pages(titles) == found
    assert len(server.asked) == 3
    MediaWiki(wiki.client, AnswerCache(wiki.cache.folder, wiki.client.url, refresh=True)).pages(["tench"])
    assert len(server.asked) == 4
    next(wiki.cache.folder.rglob("*.json")).write_text("{", encoding="utf-8")
    assert wiki.pages(titles) == found
    assert len(server.asked) == 5


def test_continued_answers_are_put_together(wiki: MediaWiki, server: FakeWiki) -> None:
    """Texts and links that come in parts are all there."""
    found = wiki.pages(["Tench", "Crane", "Crane (bird)", "Kite", "Heron"])
    pages = [p for p in found.values() if p is not None]
    articles = [article for _, article in wiki.articles(pages)]
    assert [a.title for a in articles if a is not None] == [p.title for p in pages]
    assert len([p for p in server.asked if p.get("prop") == "revisions"]) == 3
    crane = found["Crane"]
    assert crane is not None
    assert wiki.links(crane) == ["Crane (bird)", "Crane (machine)"]
    tench = articles[0]
    assert tench is not None
    assert (tench.revision, tench.licence) == ("9100", "CC BY-SA 4.0")
    assert tench.url == server.url.replace("api.php", "index.php") + "?title=Tench&oldid=9100"


# Which article.


@pytest.mark.parametrize(
    ("name", "aliases", "expected"),
    [
        ("great_grey_owl", (), ["great grey owl"]),
        ("n01440764 tench", ("n01440764", "12"), ["tench"]),
        ("crane (n02012849)", (), ["crane"]),
        ("owl, Strix", (), ["owl, Strix", "owl", "Strix"]),
        ("bazaar/indoor", (), ["bazaar/indoor", "indoor bazaar", "bazaar"]),
        ("a|b#[c]", (), ["a b c"]),
    ],
)
def test_spellings(name: str, aliases: tuple[str, ...], expected: list[str]) -> None:
    """Names as data sets write them, as titles."""
    assert spellings(name, aliases) == expected


@pytest.mark.parametrize(
    ("wanted", "hint", "title", "why"),
    [
        (Wanted("tench"), None, "Tench", ""),
        (Wanted("tench"), "fish", "Tench", ""),
        (Wanted("crane"), "bird", "Crane (bird)", ""),
        (Wanted("crane"), None, None, "'Crane' may mean several things"),
        (Wanted("crane", title="Crane (machine)"), "bird", "Crane (machine)", ""),
        (Wanted("crane", title="Crane (yoga)"), None, None, "there is no page 'Crane (yoga)'"),
        (Wanted("wader", ("heron",)), "bird", "Heron", ""),
        (Wanted("Great Gray Owl"), None, "Great grey owl", ""),
        (Wanted("great_grey_owls"), None, "Great grey owl", ""),
        (Wanted("unicorn"), None, None, "no article found"),
        (Wanted("owl"), None, None, "no article of that name"),
    ],
)
def test_the_best_article(
    wiki: MediaWiki, wanted: Wanted, hint: str | None, title: str | None, why: str
) -> None:
    """Own names first, then aliases, then the hint's word on a disambiguation page, then a search."""
    (match,) = match_classes([wanted], wiki, hint)
    assert (match.page.title if match.page else None, match.why) == (title, why)
    if wanted.name == "crane" and title is None and wanted.title is None:
        assert match.candidates == ("Crane (bird)", "Crane (machine)")


def test_asking_which_is_meant(wiki: MediaWiki) -> None:
    """The candidates are offered once; no answer leaves the class open, a wrong title says so."""
    asked: list[tuple[str, list[str]]] = []

    def choose(answer: str | None) -> str | None:
        def ask(one: Wanted, candidates: Sequence[str]) -> str | None:
            asked.append((one.name, list(candidates)))
            return answer

        (match,) = match_classes([Wanted("crane")], wiki, None, ask)
        return match.page.title if match.page else match.why

    assert choose("Crane (machine)") == "Crane (machine)"
    assert choose(None) == "'Crane' may mean several things"
    assert choose("Crane (yoga)") == "there is no article 'Crane (yoga)'"
    assert asked == [("crane", ["Crane (bird)", "Crane (machine)"])] * 3


# Into the workspace.


def test_articles_become_sentences_with_page_revision_and_licence(
    tmp_path: Path, wiki: MediaWiki, server: FakeWiki
) -> None:
    """One commit; a second run adds nothing and asks nothing; each sentence says where it is from."""
    workspace = named(tmp_path, ["tench", "crane", "unicorn"])
    commits = len(workspace.history.ids())
    report = ingest_wikipedia(workspace, wiki, server.url, hint="bird", titles={"tench": "Tinca tinca"})
    assert len(workspace.history.ids()) == commits + 1
    by_name = {row.name: row for row in report.rows}
    assert {n: (r.title, r.why) for n, r in by_name.items()} == {
        "tench": ("Tench", ""),
        "crane": ("Crane (bird)", ""),
        "unicorn": (None, "no article found"),
    }
    assert by_name["unicorn"].settle == "vlltr ingest wikipedia --title unicorn=TITLE"
    sentences = stored(workspace)
    texts = [row["text"] for row in sentences]
    assert texts == [
        "Cranes are a family of long-legged birds.",
        "It reaches 70 cm in length and 5 to 7.5 kg in weight.",
        "Its tiny scales lie deep in a thick skin.",
        "Some ponds hold golden tench.",
        "The golden tench is an ornamental form of the fish.",
        "The tench (Tinca tinca) is a fresh- and brackish-water fish.",
        "The tench is olive green or brown.",
        "They fly with their necks stretched out.",
    ]
    assert by_name["tench"].near_duplicates == 1
    assert {row["licence"] for row in sentences} == {"CC BY-SA 4.0"}
    assert {(row["source"], row["source_ref"].rpartition("?")[2]) for row in sentences} == {
        ("Wikipedia: Tench", "title=Tench&oldid=9100"),
        ("Wikipedia: Crane (bird)", "title=Crane_(bird)&oldid=9102"),
    }
    asked = len(server.asked)
    again = ingest_wikipedia(workspace, wiki, server.url, hint="bird")
    assert (again.added, again.prompts, again.found, len(server.asked)) == (0, 0, 2, asked)
    assert len(workspace.history.ids()) == commits + 1
    assert stored(workspace) == sentences


def test_an_interrupted_run_goes_on(tmp_path: Path, wiki: MediaWiki, server: FakeWiki) -> None:
    """What was fetched before the server went away is not asked for again, and nothing was committed."""
    workspace = named(tmp_path, ["tench"])
    commits = len(workspace.history.ids())
    wiki.client.tries = 1
    wiki.pages(["tench"])
    server.troubles.append(Trouble(503))
    with pytest.raises(InputError, match="HTTP 503"):
        ingest_wikipedia(workspace, wiki, server.url)
    assert len(workspace.history.ids()) == commits
    ingest_wikipedia(workspace, wiki, server.url)
    assert [p.get("prop") or p.get("meta") for p in server.asked] == [
        "pageprops", "revisions", "revisions", "siteinfo",
    ]  # fmt: skip
    assert stored(workspace)


def test_an_article_of_another_kind_is_not_taken(tmp_path: Path, wiki: MediaWiki, server: FakeWiki) -> None:
    """A page of the right name that never says the hint is reported with the command that takes it all the same."""
    workspace = named(tmp_path, ["kite"])
    report = ingest_wikipedia(
        workspace, wiki, server.url, hint="bird", command="vlltr ingest wikipedia --hint bird"
    )
    (row,) = report.rows
    assert row.why == "the article 'Kite' does not mention 'bird'"
    assert row.settle == "vlltr ingest wikipedia --hint bird --title kite=Kite"
    taken = ingest_wikipedia(workspace, wiki, server.url, hint="bird", titles={"kite": "Kite"})
    assert (taken.found, taken.added) == (1, 2)
    assert ingest_wikipedia(workspace, wiki, server.url, hint="bird").found == 1


def test_only_some_classes_and_sections(tmp_path: Path, wiki: MediaWiki, server: FakeWiki) -> None:
    """`only` and `sections` narrow it down; unknown classes are refused."""
    workspace = named(tmp_path, ["tench", "crane"])
    report = ingest_wikipedia(workspace, wiki, server.url, only=["Tench"], sections=["colour forms"])
    assert [row.name for row in report.rows] == ["tench"]
    assert [row["text"] for row in stored(workspace)][1:] == [
        "Some ponds hold golden tench.",
        "The tench (Tinca tinca) is a fresh- and brackish-water fish.",
    ]
    with pytest.raises(UnknownClassError, match="no class 'tensch'"):
        ingest_wikipedia(workspace, wiki, server.url, only=["tensch"])
    with pytest.raises(MissingStepError, match="has no classes"):
        ingest_wikipedia(Workspace.create(tmp_path / "none", Recipe(name="x")), wiki, server.url)


def test_titles_on_the_command_line() -> None:
    """CLASS=TITLE, both of them there."""
    assert parse_titles(["crane=Crane (bird)", "a=b=C"]) == {"crane": "Crane (bird)", "a=b": "C"}
    for wrong in ("crane", "=Crane", "crane="):
        with pytest.raises(UsageError, match="--title takes CLASS=TITLE"):
            parse_titles([wrong])


def test_a_language_and_a_way_to_reach_you(tmp_path: Path) -> None:
    """What cannot be part of an address or of a header is refused before anything is asked."""
    workspace = named(tmp_path, ["tench"])
    for lang in ("../x", "EN", "e", ""):
        with pytest.raises(UsageError, match="is no code of a language"):
            open_wiki(workspace, lang=lang)
    for contact in ("a\nb", "café@example.org"):
        with pytest.raises(UsageError, match="--contact takes one line of ASCII"):
            open_wiki(workspace, contact=contact)
    assert open_wiki(workspace, lang="zh-min-nan", contact="you@example.org")[1].startswith(
        "https://zh-min-nan."
    )


# From a ZIM file.


def test_a_zim_file_answers_as_a_wiki_does(tmp_path: Path) -> None:
    """Titles, redirects, links, search, revision and licence come out of the file."""
    zim = ZimWiki(write_zim(tmp_path / "fish.zim"))
    found = zim.pages(["tench", "Tinca tinca", "Crane", "Nothing"])
    assert found["tench"] == found["Tinca tinca"] == Page("Tench", "Tench")
    assert found["Nothing"] is None
    crane = found["Crane"]
    assert crane is not None
    assert crane.disambiguation
    assert zim.links(crane) == ["Crane (bird)", "Crane (machine)"]
    assert zim.search("ornamental") == ["Tench"]
    (tench, bird) = [
        a for _, a in zim.articles([p for p in zim.pages(["Tench", "Crane (bird)"]).values() if p])
    ]
    assert tench is not None
    assert bird is not None
    assert (tench.revision, tench.licence) == ("4711", "CC BY-SA 4.0")
    assert tench.url == "https://en.wikipedia.org/w/index.php?title=Tench&oldid=4711"
    assert (bird.revision, bird.url) == (
        "ZIM file of 2026-01-01",
        "https://en.wikipedia.org/wiki/Crane_(bird)",
    )


def test_a_zim_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a damaged one, and a missing library each say so."""
    with pytest.raises(InputError, match="no such file"):
        ZimWiki(tmp_path / "none.zim")
    (tmp_path / "bad.zim").write_bytes(b"ZIM\x04" + b"\0" * 100)
    with pytest.raises(InputError, match="is not a readable ZIM file"):
        ZimWiki(tmp_path / "bad.zim")
    monkeypatch.setitem(__import__("sys").modules, "libzim.reader", None)
    with pytest.raises(InputError, match="needs libzim") as error:
        ZimWiki(tmp_path / "bad.zim")
    assert error.value.hint == 'Install it (its licence is GPL-3): pip install "vlltr-index[zim]"'


# The command.


def test_the_command_shows_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Class, article, sentences, or why not, and what settles it; as JSON too; exit code 1 if nothing was found."""
    workspace = named(tmp_path, ["tench", "crane"])
    zim = write_zim(tmp_path / "fish.zim")
    command = ("-w", workspace.path, "ingest", "wikipedia", "--zim", zim)
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "1 of 2 classes have an article; 4 sentences added." in out
    assert "crane: 'Crane' may mean several things: Crane (bird), Crane (machine)" in out
    assert f"Settle it: vlltr ingest wikipedia --zim {zim} --title 'crane=Crane (bird)'" in out
    assert "Next: vlltr embed" in out
    code, out, _ = run(capsys, "--json", *command, "--title", "crane=Crane (bird)")
    report = json.loads(out)
    assert (code, report["found"], report["added"]) == (0, 2, 1)
    assert {r["name"]: r["title"] for r in report["rows"]} == {"tench": "Tench", "crane": "Crane (bird)"}
    (tmp_path / "other").mkdir()
    other = named(tmp_path / "other", ["unicorn"])
    assert run(capsys, "-w", other.path, "ingest", "wikipedia", "--zim", zim)[0] == 1
    code, out, err = run(capsys, "-w", other.path, "ingest", "wikipedia", "--api", "x")
    assert (code, out) == (2, "")
    assert "--api takes the address of a wiki's api.php, got 'x'" in err


def test_the_command_asks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --interactive a number settles a class, and is remembered."""
    import io

    workspace = named(tmp_path, ["crane"])
    zim = write_zim(tmp_path / "fish.zim")
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n"))
    code, out, err = run(capsys, "-w", workspace.path, "ingest", "wikipedia", "--zim", zim, "--interactive")
    assert (code, "Crane (machine)" in out) == (0, True)
    assert "'crane' may be:\n   1  Crane (bird)\n   2  Crane (machine)" in err
    code, out, _ = run(capsys, "-w", workspace.path, "--json", "ingest", "wikipedia", "--zim", zim)
    assert json.loads(out)["rows"][0]["title"] == "Crane (machine)"


def test_fixture_pages_are_what_they_seem() -> None:
    """The HTML pages and the wikitext pages tell of the same things."""
    assert set(wikis.HTML) <= set(wikis.PAGES)
