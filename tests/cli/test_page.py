"""Tests of `vlltr_index.cli.ui` without a browser: what it does, what it says, what it refuses to serve."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run
from vlltr_index.classes import NewClass, add_classes
from vlltr_index.cli.render import report_lines
from vlltr_index.cli.ui import server
from vlltr_index.cli.ui import service as service_module
from vlltr_index.cli.ui.service import PageService, piece
from vlltr_index.errors import InputError, UsageError, WorkspaceError
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace

HOSTILE = '<img src=x onerror=alert(1)> & "quotes" \' ${1+1} {{value}}'
TEXT = "It has a long tail. The tail is striped."


@pytest.fixture
def desk(trained: Workspace) -> PageService:
    """On a copy of the trained workspace."""
    return PageService(trained)


def last(desk: PageService) -> int:
    """The newest commit."""
    return desk.workspace.history.ids()[-1]


def test_the_page_knows_how_common_classes_are(trained: Workspace, pictures: Path) -> None:
    """Its answers are those of `predict --prior`, with a part of their own; a class added since has one, too."""
    names = Recognizer.open(trained).classes_.tolist()
    desk = PageService(trained, prior={name: 1.0 + place for place, name in enumerate(names)})
    image = pictures / "known-1.png"
    for added in (False, True):
        if added:
            desk.add("okapi", TEXT)
        expected = (
            Recognizer.open(trained).predict([image], PredictOptions(top=3, prior=desk.prior))[0].classes
        )
        shown = desk.examine(image).best(3)
        assert [(one.name, one.prior_part) for one in shown] == [
            (one.name, pytest.approx(one.prior_part, abs=1e-4)) for one in expected
        ]
        assert any(one.prior_part for one in shown)
        assert "how common it is" in piece("best", shown, "")
    with pytest.raises(UsageError):
        PageService(trained, prior="estimated")


@pytest.mark.slow
def test_the_page_draws_how_common_classes_are(trained: Workspace, pictures: Path) -> None:
    """What a visitor sees of a picture is the answer under the prior."""
    from vlltr_index.cli.ui.blocks import Visit, build_page
    from vlltr_index.cli.ui.review_service import ReviewService

    names = Recognizer.open(trained).classes_.tolist()
    desk = PageService(trained, prior={name: 1.0 + place for place, name in enumerate(names)})
    page = build_page(desk, ReviewService(trained))
    (look,) = (one.fn for one in page.fns.values() if getattr(one.fn, "__name__", "") == "_look")
    drawn = look(Visit(), str(pictures / "known-1.png"))
    assert any("how common it is" in str(part) for part in drawn.values())


def test_a_class_is_added_used_and_taken_back(desk: PageService, pictures: Path) -> None:
    """One commit each way; its pictures live in the workspace; the answer is as it was; blanks around a name go."""
    before, number = desk.examine(pictures / "unseen" / "1.png").best(3), last(desk)
    assert desk.offer() == (None, "")
    report = desk.add(
        "  okapi ", TEXT, [(f"C:\\tmp\\{n}.png", pictures / "unseen" / f"{n}.png") for n in (0, 1)]
    )
    assert last(desk) == number + 1
    assert report.classes[0].images == 2
    assert report.effect.before is not None
    found = desk.examine(pictures / "unseen" / "1.png")
    assert "okapi" in {one.name for one in found.best(99)}
    assert {s.text for s in found.look("okapi").sentences} >= {"It has a long tail.", "The tail is striped."}
    rows = desk.workspace.snapshot().table("images", ["uri", "data"], "uri LIKE 'given#%'")
    assert sorted(rows["uri"].to_pylist()) == ["given#0.png", "given#1.png"]
    assert (pictures / "unseen" / "0.png").read_bytes() in rows["data"].to_pylist()
    assert desk.offer() == (number + 1, "okapi")
    undone = desk.undo(number + 1)
    assert (undone.target, undone.commit) == (number, number + 2)
    assert desk.examine(pictures / "unseen" / "1.png").best(3) == before
    assert desk.offer() == (None, "")


@pytest.mark.slow
def test_only_what_was_done_here_and_last_can_be_undone(desk: PageService) -> None:
    """Two additions are undone one after the other; one from elsewhere stands in the way."""
    for name in ("okapi", "dodo"):
        desk.add(name, TEXT)
    newest = last(desk)
    with pytest.raises(WorkspaceError) as error:
        desk.undo(newest - 1)
    assert str(error.value) == (
        f"commit {newest - 1} is not the newest any more, that is commit {newest} (classes add 'dodo'): nothing was"
        " undone\nOnly what was done last, and from this page, can be undone here. For anything else: vlltr history,"
        " then vlltr rollback"
    )
    for name in ("dodo", "okapi"):
        commit, offered = desk.offer()
        assert offered == name
        desk.undo(commit or 0)
    assert not {"dodo", "okapi"} & set(desk.model().names.values())
    desk.add("okapi", TEXT)
    mine = last(desk)
    add_classes(desk.workspace, [NewClass("dodo", (TEXT,))])
    assert desk.offer() == (None, "")
    with pytest.raises(WorkspaceError, match=f"commit {mine} is not the newest any more"):
        desk.undo(mine)
    assert "dodo" in service_module.names_of(desk.model())


def test_additions_that_are_refused(
    desk: PageService, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each limit, a broken picture, a name that is taken: said in words, and nothing is written."""
    bad = tmp_path / "secret-folder" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"\x89PNG nothing")
    number = last(desk)
    monkeypatch.setattr(service_module, "MAX_UPLOAD", 2**20)
    monkeypatch.setattr(service_module, "MAX_TOGETHER", 4 * 2**20)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2**20 + 1))
    good = ("a.png", pictures / "unseen" / "0.png")
    refused: list[tuple[tuple[Any, ...], str]] = [
        (("", TEXT), "the new class: the class name is empty"),
        (("okapi", ""), "nothing is known of class 'okapi': no sentence and no readable image"),
        (("okapi", "x" * 200_001), "200,001 characters; 200,000 are allowed here"),
        (("okapi", TEXT, [good] * 51), "51 pictures; 50 are allowed here"),
        (
            ("okapi", TEXT, [("large.png", large)] * 4),
            "4,194,308 bytes of pictures; 4,194,304 are allowed here",
        ),
        (
            ("okapi", TEXT, [("../x/bad.png", bad)]),
            "bad.png: cannot read the image of 12 bytes: not a JPEG, PNG, WebP, BMP, GIF or TIFF image, or damaged",
        ),
        (("okapi", TEXT, [("large.png", large)]), "a picture of 1.0 MiB; 1 are allowed"),
        ((next(iter(desk.model().names.values())), TEXT), "there is a class "),
    ]
    for arguments, message in refused:
        with pytest.raises(InputError) as error:
            desk.add(*arguments)
        assert error.value.message.startswith(message)
        assert "secret-folder" not in str(error.value)
    assert last(desk) == number


def test_a_page_for_reading_only(trained: Workspace) -> None:
    """Neither adds nor undoes, whoever asks."""
    desk, number = PageService(trained, read_only=True), trained.history.ids()[-1]
    for act in (lambda: desk.add("okapi", TEXT), lambda: desk.undo(number)):
        with pytest.raises(UsageError) as error:
            act()
        assert str(error.value) == (
            "this page is for reading only\nStart it without --read-only, or use the command line."
        )
    assert desk.offer() == (None, "")
    assert trained.history.ids()[-1] == number


def test_every_text_is_escaped(desk: PageService, pictures: Path) -> None:
    """A class's name and sentences, an error's words, and the workspace's name are shown as they are written."""
    report = desk.add(HOSTILE, f"{HOSTILE}.", [("a.png", pictures / "unseen" / "0.png")])
    found = desk.examine(pictures / "unseen" / "0.png")
    best = sorted(found.best(99), key=lambda one: one.name != HOSTILE)[:5]
    name = best[0].name
    assert name == HOSTILE
    one = found.look(name, {found.look(name).sentences[0].sentence_id})
    pieces = [
        piece("best", best, name),
        piece("sentences", one),
        piece("comparison", found.compare(name, best[1].name)),
        piece("comparison", found.compare(best[1].name, name)),
        piece("notice", report_lines(report)),
        piece("error", InputError(HOSTILE, HOSTILE)),
        piece("status", HOSTILE, 1, 2, True),
    ]
    for shown in pieces:
        assert "<img" not in shown
        assert "&lt;img src=x onerror=alert(1)&gt;" in shown
        assert 'alert(1)> & "' not in shown


@pytest.fixture
def app(trained: Workspace) -> Iterator[Any]:
    """The page, as it is served to this machine alone."""
    with server.page_app(trained) as made:
        yield made


def ask(
    app: Any, path: str, method: str = "GET", content: bytes = b"", query: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    sent: list[dict[str, Any]] = []
    given = {"host": "127.0.0.1:7860", "content-length": str(len(content))} | headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 7860),
    }

    received = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not received:
            await asyncio.Event().wait()  # who asks stays connected
        return received.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent)
    return sent[0]["status"], {n.decode().lower(): v.decode() for n, v in sent[0]["headers"]}, body


@pytest.mark.slow
def test_nothing_but_the_page_is_served(app: Any, trained: Workspace, tmp_path: Path) -> None:
    """No file of the workspace or the machine is served, and what the page may load is its own."""
    from vlltr_index.cli.ui.guard import POLICY

    status, headers, body = ask(app, "/")
    assert status == 200
    assert headers["content-security-policy"] == POLICY
    assert "http" not in POLICY
    assert b"fonts.googleapis.com" not in body
    config = trained.path / "vlltr.toml"
    assert ask(app, f"/gradio_api/file={config}")[0] == 403
    assert ask(app, "/gradio_api/file=/etc/passwd")[0] == 403
    upload = Path(os.environ["GRADIO_TEMP_DIR"])
    assert ask(app, f"/gradio_api/file={upload}/../{config.relative_to('/')}")[0] in (403, 404)
    (upload / "sub").mkdir()
    for link in (upload / "link.toml", upload / "sub" / "link.toml"):
        link.symlink_to(config)
        assert ask(app, f"/gradio_api/file={link}")[0] == 403
    given = upload / "sub" / "given.txt"
    given.write_text("given", encoding="utf-8")
    assert ask(app, f"/gradio_api/file={given}")[2] == b"given"
    for name in ("file=vlltr.toml", "file=https://example.org/x.png"):
        assert ask(app, f"/gradio_api/{name}")[0] == 403, name
    assert ask(app, "/gradio_api/proxy=https://example.org/")[0] == 404
    assert ask(app, "/docs")[0] == 404
    assert ask(app, "/monitoring")[0] == 404
    assert json.loads(ask(app, "/manifest.json")[2])["name"] == "vlltr"


@pytest.mark.slow
def test_requests_that_others_made_the_browser_send_are_refused(app: Any) -> None:
    """Another site's form, and another site's name that leads to this machine."""
    join = "/gradio_api/queue/join"
    assert ask(app, join, "POST", origin="http://example.org")[0] == 403
    assert ask(app, join, "POST", origin="null")[0] == 403
    assert ask(app, "/", host="example.org:7860")[0] == 421
    for host in ("localhost:7860", "[::1]:7860", "127.0.0.1", "127.0.0.2:1"):
        assert ask(app, "/", host=host)[0] == 200
    for host in ("192.0.2.1:7860", "0.0.0.0", "localhost.example.org", "example.org#localhost", "[::1", ""):
        assert ask(app, "/", host=host)[0] == 421, host


@pytest.mark.slow
def test_others_need_the_link(trained: Workspace) -> None:
    """Where other machines can reach the page, its token is needed once, for everything; a name must be its own."""
    with server.page_app(trained, token="sesame", names={"lab"}) as app:
        for path in ("/", "/theme.css", "/gradio_api/queue/data", "/gradio_api/app_id", "/nothing"):
            status, headers, body = ask(app, path, host="192.0.2.1:7860")
            assert (status, body) == (403, b"Open the link that vlltr ui printed: it has a token.\n"), path
            assert "set-cookie" not in headers
        for wrong in ("token=", "token=sesam", "token=sesame1", "token=ses%C3%A4me", "Token=sesame"):
            assert ask(app, "/", query=wrong)[0] == 403, wrong
        status, headers, _ = ask(app, "/", query="token=sesame", host="Lab:7860")
        assert (status, headers["location"]) == (303, "/")
        assert headers["set-cookie"] == "vlltr-7860=sesame; HttpOnly; Path=/; SameSite=lax"
        cookie = headers["set-cookie"].partition(";")[0]
        for host in ("lab:7860", "192.0.2.1:7860", "[2001:db8::1]:7860", "localhost:7860"):
            assert ask(app, "/", host=host, cookie=cookie)[0] == 200, host
        assert ask(app, "/", host="lab:7860", cookie=f"{cookie}x")[0] == 403
        for host in ("example.org:7860", "lab.example.org", "xlab"):
            assert ask(app, "/", host=host, cookie=cookie)[0] == 421, host
            assert ask(app, "/", host=host, query="token=sesame")[0] == 421, host
        assert ask(app, "/manifest.json", host="lab")[0] == 200
        join = ask(
            app, "/gradio_api/queue/join", "POST", host="lab", cookie=cookie, origin="http://example.org"
        )
        assert join[0] == 403


@pytest.mark.slow
def test_uploads_lie_in_a_folder_that_goes_with_the_page(trained: Workspace) -> None:
    """Gradio is told so before it is loaded."""
    with server.page_app(trained, read_only=True):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not folder.exists()


def test_addresses() -> None:
    """What is this machine alone, and what cannot be listened at."""
    assert all(map(server.is_local, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(server.is_local, ("0.0.0.0", "192.0.2.1", "a.org")))
    with server.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as error:
            server.bind("127.0.0.1", port)
    assert str(error.value) == (
        f"cannot listen at 127.0.0.1, port {port}: Address already in use\n"
        "Take another one: --port 0 finds a free port, --host 127.0.0.1 is this machine alone."
    )


def test_the_command(
    trained_once: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address on stdout; a warning where others can reach it."""
    asked: list[tuple[str, bool, tuple[str, ...]]] = []

    def serve(
        workspace: Workspace,
        listening: socket.socket,
        host: str,
        only: bool,
        prior: str,
        folders: tuple[str, ...],
        ready: Any,
    ) -> None:
        assert prior == "balanced"
        asked.append((host, only, folders))
        ready("http://192.0.2.1:1/")
        listening.close()

    monkeypatch.setattr(server, "find_spec", lambda name: name)
    monkeypatch.setattr(server, "serve", serve)
    ui = ("-w", trained_once, "ui", "--port", "0")
    assert run(capsys, *ui, "--host", "127.0.0.1") == (0, "http://192.0.2.1:1/\n", "")
    code, out, err = run(capsys, "--json", *ui, "--host", "0.0.0.0")
    assert (code, out) == (0, '{\n  "address": "http://192.0.2.1:1/"\n}\n')
    assert err == (
        "Warning: who has the link can change this workspace, and nothing is encrypted on the way.\n"
        "With --read-only nothing can be added, decided or undone.\n"
    )
    code, _, err = run(capsys, *ui, "--prior", "estimated")
    assert code == 2
    assert "the page is asked one picture at a time" in err
    _, _, err = run(capsys, *ui, "--host", "0.0.0.0", "--read-only", "shots", "more")
    assert err == (
        "Warning: who has the link can see this workspace's classes, sentences and pictures, with their paths, and"
        " nothing is encrypted on the way.\n"
    )
    assert asked == [("127.0.0.1", False, ()), ("0.0.0.0", False, ()), ("0.0.0.0", True, ("shots", "more"))]


def test_without_gradio(
    trained_once: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named."""
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    code, _, err = run(capsys, "-w", trained_once, "ui")
    said = 'Error: the page needs Gradio, which is not installed\nInstall it: pip install "vlltr-index[ui]"\n'
    assert (code, err) == (1, said)
