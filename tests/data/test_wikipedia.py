"""Tests of `vlltr ingest wikipedia`: talking to a wiki, the choice of articles, and what comes into the workspace."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run
from tests.support.wikis import MAXLAG, FakeWiki, Trouble, refusal, serving
from vlltr_index.data.wikipedia import Wiki, match_class, own_titles
from vlltr_index.errors import InputError, MissingStepError, UnknownClassError, UsageError
from vlltr_index.pipelines.ingest import ingest_text
from vlltr_index.pipelines.wikipedia import ingest_wikipedia, open_wiki, parse_titles
from vlltr_index.schemas.config import Recipe
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def server() -> Iterator[FakeWiki]:
    """The small encyclopaedia on a local port."""
    with serving(FakeWiki()) as wiki:
        yield wiki


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have been waited before each request."""
    found: list[float] = []
    monkeypatch.setattr("vlltr_index.data.wikipedia.sleep", found.append)
    return found


@pytest.fixture
def wiki(server: FakeWiki, tmp_path: Path) -> Wiki:
    """The wiki with an empty cache."""
    return Wiki(server.url, tmp_path / "cache", "me@example.org")


def named(folder: Path, *names: str) -> Workspace:
    """A workspace with classes of these names."""
    workspace = Workspace.create(folder / "ws", Recipe(name="test", prompts=("a photo of a {}.",)))
    (folder / "names.json").write_text(
        json.dumps({name: [f"{name} is what this is about."] for name in names})
    )
    ingest_text(workspace, folder / "names.json")
    return workspace


def stored(workspace: Workspace) -> list[dict[str, Any]]:
    """Sentences from a wiki, by text."""
    rows: list[dict[str, Any]] = workspace.snapshot().table("sentences").to_pylist()
    return sorted((r for r in rows if r["source"].startswith("Wikipedia")), key=lambda r: r["text"])


# Talking to a wiki.


def test_requests_name_themselves_and_keep_a_pace(wiki: Wiki, server: FakeWiki, slept: list[float]) -> None:
    """Each says who asks, comes after a pause, and is made once: the answers are kept, a damaged one asked again."""
    for title in ("Tench", "Kite", "Tench"):
        wiki.pages([title])
    assert slept == [0.2, 0.2]
    (agent,) = set(server.agents)
    assert agent.startswith("vlltr-index/")
    assert "me@example.org" in agent
    for file in wiki.folder.iterdir():
        file.write_text("{")
    assert wiki.pages(["Tench"])["Tench"] is not None
    wiki.refresh = True
    wiki.pages(["Tench"])
    assert len(server.asked) == 4


def test_a_busy_server_is_asked_again_when_it_says(wiki: Wiki, server: FakeWiki, slept: list[float]) -> None:
    """429, 503 and maxlag are waited out."""
    server.troubles.extend([Trouble(429, headers={"Retry-After": "9"}), Trouble(503), MAXLAG])
    assert wiki.search("olive scales") == ["Tench"]
    assert slept == [0.2, 9, 5, 7]


@pytest.mark.parametrize(
    ("trouble", "message", "hint"),
    [
        (Trouble(429, headers={"Retry-After": "86400"}), "gives no answer: 429", "again later"),
        (Trouble(429, headers={"Retry-After": "9" * 5000}), "gives no answer: 429", "again later"),
        (Trouble(403), "gives no answer: 403: Forbidden", "--contact you@example.org"),
        (refusal("badvalue", "No."), "gives no answer: badvalue: No.", "--api"),
        (Trouble(200, b"[1]"), "does not answer as a MediaWiki API does", "the address of a wiki's api.php"),
    ],
)
def test_a_server_that_does_not_answer_is_named(
    wiki: Wiki, server: FakeWiki, trouble: Trouble, message: str, hint: str
) -> None:
    """What went wrong is said, and what to do; nothing of it is kept."""
    server.troubles.extend([trouble] * 4)
    with pytest.raises(InputError) as error:
        wiki.search("tench")
    assert error.value.message.startswith(f"{server.url} {message}")
    assert hint in str(error.value.hint)
    server.troubles.clear()
    assert wiki.search("olive scales") == ["Tench"]


def test_no_server_and_no_extension(tmp_path: Path, wiki: Wiki, server: FakeWiki) -> None:
    """Both are told apart from a page that is not there."""
    with pytest.raises(InputError, match=r"gives no answer: no connection: .*refused"):
        Wiki("http://127.0.0.1:9/w/api.php", tmp_path).search("tench")
    server.extracts = False
    page = wiki.pages(["Tench"])["Tench"]
    assert page is not None
    with pytest.raises(
        InputError, match="gives no text of the page 'Tench'\nThe wiki must have the extension"
    ):
        wiki.article(page)


def test_a_page_and_its_text(wiki: Wiki, server: FakeWiki) -> None:
    """Redirects and other spellings are followed, twenty titles a request; a text has its revision and licence."""
    found = wiki.pages(["tinca_tinca", "golden tench", "Crane", *(f"nothing {i}" for i in range(100))])
    assert len(server.asked) == 6
    tench, golden, crane, nothing, *_ = found.values()
    assert None not in (tench, golden, crane)
    assert nothing is None
    assert (tench.title, tench.description, tench.fragment) == ("Tench", "Species of fish", None)
    assert (golden.title, golden.fragment) == ("Tench", "Colour forms")
    assert (crane.disambiguation, wiki.links(crane)) == (True, ["Crane (bird)", "Crane (machine)"])
    article = wiki.article(tench)
    assert (article.revision, article.timestamp) == ("9100", "2026-01-01T00:00:00Z")
    assert article.licence == "CC BY-SA 4.0"
    assert article.url == server.url.replace("api.php", "index.php") + "?title=Tench&oldid=9100"


# Which article.


@pytest.mark.parametrize(
    ("name", "aliases", "expected"),
    [
        ("n01440764 great_grey|owl", ("n01440764", "12", "/g/owl"), ["great grey owl"]),
        ("crane (n02012849)", ("stork",), ["crane", "stork"]),
        ("owl, Strix", (), ["owl, Strix", "owl", "Strix"]),
        ("bazaar indoor", ("bazaar/indoor",), ["bazaar indoor", "bazaar/indoor", "indoor bazaar", "bazaar"]),
    ],
)
def test_titles_of_a_class(name: str, aliases: tuple[str, ...], expected: list[str]) -> None:
    """Names as data sets write them, as titles."""
    assert own_titles((name, *aliases), None) == expected


@pytest.mark.parametrize(
    ("names", "hint", "title", "why"),
    [
        (["tench"], None, "Tench", ""),
        (["crane"], "bird", "Crane (bird)", ""),
        (["crane"], None, None, "'Crane' may mean several things"),
        (["wader", "heron"], "bird", "Heron", ""),
        (["grey_owl"], "bird", None, "no article of that name"),
        (["crane"], "birds", "Crane (bird)", ""),
        (["golden tench"], None, None, "no article of that name"),
    ],
)
def test_the_best_article(
    wiki: Wiki, names: list[str], hint: str | None, title: str | None, why: str
) -> None:
    """Own names first, then aliases, then the hint's word on a disambiguation page, then a search."""
    match = match_class(names, wiki.pages(own_titles(names, hint)), wiki, hint)
    assert (match.page.title if match.page else None, match.why) == (title, why)


# Into the workspace.


def test_articles_become_sentences_with_page_revision_and_licence(
    tmp_path: Path, wiki: Wiki, server: FakeWiki
) -> None:
    """One commit; a second run adds nothing and asks nothing; each sentence says where it is from."""
    workspace = named(tmp_path, "tench", "crane", "unicorn", "stub")
    commits = len(workspace.history.ids())
    report = ingest_wikipedia(workspace, wiki, hint="bird", titles={"tench": "Tinca tinca"})
    assert len(workspace.history.ids()) == commits + 1
    by_name = {row.name: row for row in report.rows}
    assert {name: (row.title, row.why) for name, row in by_name.items()} == {
        "tench": ("Tench", ""),
        "crane": ("Crane (bird)", ""),
        "unicorn": (None, "no article found"),
        "stub": (None, "no sentence is left of the article 'Stub'"),
    }
    assert by_name["unicorn"].settle == "vlltr ingest wikipedia --title unicorn=TITLE"
    assert (by_name["tench"].added, by_name["tench"].near_duplicates) == (7, 1)
    sentences = stored(workspace)
    assert {row["licence"] for row in sentences} == {"CC BY-SA 4.0"}
    assert {(row["source"], row["source_ref"].rpartition("?")[2]) for row in sentences} == {
        ("Wikipedia: Tench", "title=Tench&oldid=9100"),
        ("Wikipedia: Crane (bird)", "title=Crane_(bird)&oldid=9102"),
    }
    asked = len(server.asked)
    again = ingest_wikipedia(workspace, wiki, hint="bird", titles={"tench": "Tinca tinca"})
    assert (again.added, again.prompts, again.found, len(server.asked)) == (0, 0, 2, asked)
    assert len(workspace.history.ids()) == commits + 1


def test_an_interrupted_run_goes_on(tmp_path: Path, wiki: Wiki, server: FakeWiki) -> None:
    """What was fetched before the server failed is not asked for again, and nothing was committed."""
    workspace = named(tmp_path, "tench", "heron")
    server.troubles.extend([None, None, Trouble(404)])
    with pytest.raises(InputError, match="404"):
        ingest_wikipedia(workspace, wiki)
    assert stored(workspace) == []
    assert ingest_wikipedia(workspace, wiki).found == 2
    assert len(server.asked) == 4


def test_an_article_of_another_kind_is_not_taken(tmp_path: Path, wiki: Wiki) -> None:
    """A page of the right name that never says the hint is reported with the command that takes it all the same."""
    workspace = named(tmp_path, "kite")
    command = "vlltr ingest wikipedia --hint bird"
    (row,) = ingest_wikipedia(workspace, wiki, hint="bird", command=command).rows
    assert row.why == "the article 'Kite' does not mention 'bird'"
    assert row.settle == f"{command} --title kite=Kite"
    taken = ingest_wikipedia(workspace, wiki, hint="bird", titles={"kite": "Kite"})
    assert (taken.found, taken.added) == (1, 2)
    assert ingest_wikipedia(workspace, wiki, hint="bird").found == 1  # it is remembered


def test_a_workspace_without_classes(tmp_path: Path, wiki: Wiki) -> None:
    """There is nothing to look for; nor for a class that is not there."""
    with pytest.raises(UnknownClassError, match="no class 'tensch'"):
        ingest_wikipedia(named(tmp_path, "tench"), wiki, titles={"tensch": "Tench"})
    with pytest.raises(MissingStepError, match="has no classes"):
        ingest_wikipedia(Workspace.create(tmp_path / "none", Recipe(name="x")), wiki)


def test_options_that_cannot_be_meant(tmp_path: Path) -> None:
    """What cannot be part of an address or of a header is refused before anything is asked."""
    assert parse_titles(["crane=Crane (bird)", "a=b=C"]) == {"crane": "Crane (bird)", "a=b": "C"}
    with pytest.raises(UsageError, match="--title takes CLASS=TITLE"):
        parse_titles(["crane"])
    workspace = named(tmp_path, "tench")
    for api, lang in ((None, "../x"), ("file:///etc/passwd", "en"), ("en.wikipedia.org", "en")):
        with pytest.raises(UsageError, match=r"is no address of a wiki's api\.php"):
            open_wiki(workspace, api, lang, None, False)
    with pytest.raises(UsageError, match="--contact takes one line of ASCII"):
        open_wiki(workspace, None, "en", "a\nb", False)
    assert open_wiki(workspace, None, "zh-min-nan", None, False).url.startswith("https://zh-min-nan.")


def test_the_command_shows_a_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeWiki
) -> None:
    """Class, article, sentences, or why not, and what settles it; as JSON too; exit code 1 if nothing was found."""
    workspace = named(tmp_path, "tench", "crane")
    command = ("-w", workspace.path, "ingest", "wikipedia", "--api", server.url)
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "1 of 2 classes has an article; 7 sentences added, 1 near duplicate left out." in out
    assert "crane: 'Crane' may mean several things: Crane (bird), Crane (machine)" in out
    assert f"Settle it: vlltr ingest wikipedia --api {server.url} --title 'crane=Crane (bird)'" in out
    assert "Next: vlltr embed" in out
    code, out, _ = run(capsys, "--json", *command, "--title", "crane=Crane (bird)")
    report = json.loads(out)
    assert (code, report["found"], report["added"]) == (0, 2, 2)
    assert {r["name"]: r["revision"] for r in report["rows"]} == {"tench": "9100", "crane": "9102"}
    (tmp_path / "other").mkdir()
    other = named(tmp_path / "other", "unicorn")
    assert run(capsys, "-w", other.path, *command[2:])[0] == 1


def test_the_command_asks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeWiki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --interactive a number or a title settles a class, and is remembered; a wrong one says so; without an answer
    it stops.
    """
    workspace = named(tmp_path, "crane")
    command: Sequence[object] = ("-w", workspace.path, "--json", "ingest", "wikipedia", "--api", server.url)
    for answer, why in (("\n", "'Crane' may mean"), ("Crane (yoga)\n", "there is no article 'Crane (yoga)'")):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert why in run(capsys, *command, "--interactive")[1]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, err = run(capsys, *command, "--interactive")
    assert (code, out, "Stopped. " in err, "--yes" in err) == (130, "", True, False)
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n"))
    code, out, err = run(capsys, *command, "--interactive")
    assert (code, json.loads(out)["rows"][0]["title"]) == (0, "Crane (machine)")
    assert "'crane' may be:\n   1  Crane (bird)\n   2  Crane (machine)" in err
    code, out, _ = run(capsys, *command)
    assert json.loads(out)["rows"][0]["title"] == "Crane (machine)"
