"""Attacks on the running page: what a client can name, send and ask for, beyond what the page itself does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from vlltr_index.cli.ui import server
from vlltr_index.errors import UsageError
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow  # Gradio is of [test-all]

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
META = {"_type": "gradio.FileData"}
SESSION = "0123456789"


@dataclass
class Site:
    """A page that is served at a port of this machine."""

    client: Any  # of httpx
    folder: Path
    app: Any  # behind what guards it

    def ask(self, method: str, path: str, **how: Any) -> Any:
        """One answer, whole."""
        return self.client.request(method, path, **how)

    def config(self) -> dict[str, Any]:
        """What the page tells of its components and functions."""
        found = re.search(
            r"window\.gradio_config = (\{.*?\});</script>", self.ask("GET", "/").text, re.DOTALL
        )
        assert found is not None
        read: dict[str, Any] = json.loads(found[1])
        return read

    def call(self, function: int, data: list[Any], **more: Any) -> Any:
        """Join the queue."""
        return self.ask(
            "POST", JOIN, json={"data": data, "fn_index": function, "session_hash": SESSION} | more
        )

    def upload(self, name: str, content: bytes, kind: str = "image/png") -> Any:
        """Give the page a file."""
        return self.ask("POST", UPLOAD, files={"files": (name, content, kind)})

    def messages(self, session: str = SESSION) -> list[dict[str, Any]]:
        """What the queue says to a session until nothing of it is waiting."""
        said = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}").text
        return [json.loads(line.removeprefix("data: ")) for line in said.splitlines() if line]

    def held(self) -> set[str]:
        """All files with content that lie in its folder; Gradio makes an empty one for each in a form."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size)
        return {str(path.relative_to(self.folder)) for path in files}


@contextmanager
def served(workspace: Workspace, **how: Any) -> Iterator[Site]:
    """The page at a free port, by the server that `vlltr ui` uses."""
    import httpx
    import uvicorn

    with server.bind("127.0.0.1", 0) as listening, server.page_app(workspace, **how) as app:
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                yield Site(client, Path(os.environ["GRADIO_TEMP_DIR"]), app._app)
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def site(trained_once: Path) -> Iterator[Site]:
    """The page of a workspace that no attack changes."""
    before = Workspace.open(trained_once).history.ids()
    with served(Workspace.open(trained_once)) as made:
        yield made
    assert Workspace.open(trained_once).history.ids() == before


@pytest.mark.parametrize("token", ["schl\u00fcssel", "two words", "\u200b"])
def test_a_token_that_no_request_can_have_is_refused(token: str) -> None:
    """Before the page is served."""
    from vlltr_index.cli.ui.guard import Guard

    with pytest.raises(UsageError, match="the token of the page has white space or a character beyond ASCII"):
        Guard(None, None, "", token)


def named(uploaded: str, foreign: Sequence[str]) -> Iterator[Any]:
    """Each foreign path as the page names a file, and the first one in all other ways, beside an upload in one."""
    for path in foreign:
        yield {"path": path, "meta": META}
        yield [{"path": path, "meta": META}]
    path = foreign[0]
    for file in ({"path": path}, {"path": path, "meta": META, "is_stream": True}):
        yield file
        yield [file]
        yield {"file": file}
    yield [{"path": uploaded, "meta": META}, {"path": path, "meta": META}]
    yield path
    yield [path]


def test_no_function_opens_a_file_that_was_not_uploaded(site: Site, pictures: Path, tmp_path: Path) -> None:
    """Every input of every function that the page lists refuses each way to name one, whether it exists or not; where
    files are taken at all, an upload passes, so that the refusals are of the file and not of the call.
    """
    private = tmp_path / "private.png"
    private.write_bytes((pictures / "known-1.png").read_bytes())
    uploaded = site.upload("a.png", (pictures / "known-0.png").read_bytes()).json()[0]
    link = Path(uploaded).with_name("link.png")
    link.symlink_to(private)
    above = str(site.folder / ".." / private.relative_to("/"))
    held = site.held()
    foreign = [str(private), str(tmp_path / "none.png"), str(link), above, f"{uploaded}/../../../etc/passwd"]
    foreign += [
        "http://127.0.0.1:1/x.png",
        f"file://{private}",
        "/proc/self/environ",
        str(site.folder),
        f"{uploaded}\0",
    ]
    config = site.config()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    taking = set()
    let_in = []
    for function in config["dependencies"]:
        inputs = function["inputs"]
        for place, component in enumerate(inputs):
            data: list[Any] = ["" if kinds[one] == "textbox" else None for one in inputs]
            for value in named(uploaded, foreign):
                if isinstance(value, str) and kinds[component] in ("textbox", "dropdown"):
                    continue  # a text like any other
                data[place] = value
                status = site.call(function["id"], data).status_code
                if not 400 <= status < 500:
                    let_in.append((function["id"], kinds[component], status, value))
            file = {"path": uploaded, "meta": META}
            for good in (file, [file]):
                data[place] = good
                if site.call(function["id"], data, session_hash="good").status_code == 200:
                    taking.add((function["id"], kinds[component]))
    assert let_in == []
    assert {kind for _, kind in taking} == {"image", "file"}
    assert site.held() == held


def test_only_what_the_page_asks_for_is_served(site: Site) -> None:
    """Of all that Gradio serves, listed from itself, a client reaches what the page uses and nothing else."""
    used = {
        *("/", "/assets/{path}", "/static/{path}", "/theme.css", "/favicon.ico", "/robots.txt"),
        *(
            "/gradio_api/queue/join",
            "/gradio_api/queue/data",
            "/gradio_api/upload",
            "/gradio_api/upload_progress",
        ),
        *(
            "/gradio_api/file={path_or_url}",
            "/gradio_api/heartbeat/{session_hash}",
            "/gradio_api/app_id",
        ),
        *("/gradio_api/startup-events", "/manifest.json"),
    }
    paths = site.app.routes[-1].app.openapi()["paths"]
    assert paths.keys() - {"/manifest.json"} > used - {"/manifest.json"}
    assert len(paths) > 60
    for path in paths.keys() - used:
        asked = re.sub(r"\{\w+\}", "x", path)
        answers = {site.ask(method.upper(), asked, json={}).status_code for method in paths[path]}
        assert answers == {404}, path
    for path in ("/openapi.json", "/gradio_api/openapi.json", "/docs", "/gradio_api/info", "/config"):
        assert site.ask("GET", path).status_code == 404, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "POST"):
        assert site.ask(method, "/", content=b"").status_code == 404, method


def test_paths_do_not_leave_their_folders(site: Site, pictures: Path) -> None:
    """Dots, encoded slashes and ends of strings lead nowhere; an upload's name is no path, and a page is no page."""
    uploaded = site.upload("a.png", (pictures / "known-0.png").read_bytes()).json()[0]
    for path in (
        *("/assets/%2e%2e/%2e%2e/%2e%2e/routes.py", "/static/..%2f..%2froutes.py", "/assets//etc/passwd"),
        *("/static/%2fetc%2fpasswd", "/gradio_api/file=%2fetc%2fpasswd", f"/gradio_api/file={uploaded}%00"),
        *(f"/gradio_api/file={site.folder}", "/gradio_api/file/etc/passwd", "//etc/passwd"),
    ):
        assert 400 <= site.ask("GET", path).status_code < 500, path
    assert site.ask("GET", f"/assets/{'a' * 5000}").status_code == 404
    assert site.upload("..", b"x").status_code == 400
    for name in ("../../x.html", "/etc/x.html", "x" * 400 + ".html", "..\\..\\x.html"):
        told = Path(site.upload(name, b"<script>alert(1)</script>", "text/html").json()[0])
        assert told.parent.parent == site.folder
        shown = site.ask("GET", f"/gradio_api/file={told}")
        assert shown.headers["content-disposition"].startswith("attachment"), name
        assert shown.headers["content-type"] == "application/octet-stream"


def test_sizes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a request says of its length is held against a limit before anything is read; without a length it is no
    request.
    """
    host = site.client.base_url.netloc
    for path, most in ((JOIN, 4 * 2**20), (UPLOAD, 201 * 2**20)):
        asked = b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (
            path.encode(),
            host,
            most + 1,
        )
        with socket.create_connection(("127.0.0.1", site.client.base_url.port), 60) as connection:
            connection.sendall(asked)
            assert connection.recv(100).startswith(b"HTTP/1.1 413 "), path
        assert site.ask("POST", path, content=iter([b"x"])).status_code == 411
    held = set(site.folder.rglob("*"))
    assert site.upload("large.png", bytes(20 * 2**20 + 1)).status_code == 413
    assert set(site.folder.rglob("*")) == held
    there = sum(path.stat().st_size for path in site.folder.rglob("*") if path.is_file())
    monkeypatch.setattr("vlltr_index.cli.ui.guard._MAX_UPLOADS", there + 3 * 2**20)
    assert site.upload("a.png", bytes(2**21)).status_code == 200
    assert site.upload("b.png", bytes(2**21)).status_code == 507


def test_forms_that_are_no_upload(site: Site) -> None:
    """A form that cannot be read, or has no file where the page sends one, is refused; nothing of it is kept."""
    file = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--b--\r\n'
    kind, told = "multipart/form-data; boundary=b", b'; filename="a.png"'
    assert site.ask("POST", UPLOAD, content=file, headers={"content-type": kind}).status_code == 200
    held = site.held()
    forms = [
        ("", file),
        ("text/plain", file),
        ("multipart/form-data", file),
        ("multipart/form-data; boundary=c", file),
        ("multipart/form-data; boundary=" + "b" * 5000, file),
        (kind, b"\0\xff"),
        (kind, file.replace(told, b"")),
        (kind, file.replace(told, b"").replace(b"x", b"\xff\xfe")),
        (kind, file.replace(b"filename=", b"filename*=utf-9''")),
        (kind, file.replace(b'name="files"; ', b"")),
        (kind, file.replace(b"Content-Disposition", b"X")),
    ]
    for kind, form in forms:
        answer = site.ask("POST", UPLOAD, content=form, headers={"content-type": kind})
        assert answer.status_code == 400, (kind[:50], form)
    assert site.held() == held


def test_calls_that_are_none(site: Site, pictures: Path) -> None:
    """A body that is not what the page sends is a 400, a function that there is not is a 404."""
    good = {"data": [None], "fn_index": 0, "session_hash": "a"}
    assert site.ask("POST", JOIN, json=good).status_code == 200
    wrong = [good | {"session_hash": hashed} for hashed in ("", "a" * 65, "../a", None, 1)]
    wrong += [good | {"fn_index": index} for index in (None, "0", True, 0.5)]
    wrong += [good | {"data": data} for data in ([], [None, None], None, {}, "x", [[[None]]], [1], [{}])]
    wrong += [good | {"event_data": event} for event in ("x", {"name": {"path": "x"}}, {"name": "x" * 1001})]
    bodies = [json.dumps(body).encode() for body in wrong]
    bodies += [
        b"",
        b"[",
        b"[" * 100_000,
        b"null",
        b'{"data": NaN}',
        b"\xff\xfe[\0",
        b'{"session_hash": "\\ud800"}',
    ]
    for body in bodies:
        answer = site.ask("POST", JOIN, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body[:100]
        assert answer.text in ("This is no call of the page.\n", "This is not what the function takes.\n")
    for index in (-1, 99, 10**30):
        assert site.call(index, [None]).status_code == 404


def test_nothing_else_of_a_file_counts(site: Site, pictures: Path) -> None:
    """An upload's address, kind and name as the client invents them: no other machine is asked, and it is read."""
    uploaded = site.upload("a.png", (pictures / "known-0.png").read_bytes()).json()[0]
    look = next(
        f for f in site.config()["dependencies"] if len(f["inputs"]) == 2 and f["targets"][0][1] == "change"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"http://127.0.0.1:{other.getsockname()[1]}/x.png"
        file = {
            "path": uploaded,
            "meta": META,
            "url": address,
            "is_stream": True,
            "orig_name": "../../x",
            "size": -1,
        }
        more = {"session_hash": "file", "event_id": "x", "batched": True, "trigger_id": 9999}
        assert site.call(look["id"], [None, file], **more).status_code == 200
        ended = next(said for said in site.messages("file") if said["msg"] == "process_completed")
        assert ended["success"]
        assert "vl-name" in json.dumps(ended["output"])
        other.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.accept()


def test_a_class_that_is_gone_is_no_error_of_the_page(site: Site, pictures: Path) -> None:
    """A name that is no choice, as of a class that another tab removed: the best class is shown instead."""
    uploaded = site.upload("a.png", (pictures / "known-0.png").read_bytes()).json()[0]
    kinds = {item["id"]: item["type"] for item in site.config()["components"]}
    asked = 0
    for function in site.config()["dependencies"]:
        inputs = [kinds[i] for i in function["inputs"]]
        if "dropdown" in inputs:
            picture = {"path": uploaded, "meta": META}
            data = [
                picture if kind == "image" else "nobody" if kind == "dropdown" else None for kind in inputs
            ]
            assert site.call(function["id"], data, session_hash="gone").status_code == 200
            ended = next(said for said in site.messages("gone") if said["msg"] == "process_completed")
            assert ended["success"], ended
            asked += 1
    assert asked == 3


def test_uploads_of_a_killed_page_are_removed(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next page, unless the lock is held; a closed terminal ends a page as Ctrl-C does."""
    tmp_path = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("vlltr-ui-killed", "vlltr-ui-runs"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a" / "private.png").write_bytes(b"x")
        (tmp_path / name / "lock").touch()
    with FileLock(tmp_path / "vlltr-ui-runs" / "lock"):
        server._sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["vlltr-ui-runs"]
    command = [sys.executable, "-m", "vlltr_index.cli", "-w", str(trained.path), "ui", "--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    # Whoever runs the tests may ignore SIGHUP, as nohup does. The page handles it by sending itself SIGTERM.
    restore = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, preexec_fn=restore) as page:
        try:
            assert page.stdout is not None
            assert page.stdout.readline()
            assert len(list(tmp_path.iterdir())) == 1, "the one that no page holds any more is removed"
            page.send_signal(signal.SIGHUP)
            page.wait(60)
        finally:
            page.kill()
    assert not list(tmp_path.glob("vlltr-ui-*"))


def test_sessions_are_apart(site: Site, pictures: Path) -> None:
    """What one tab looks at does not show in another, and nobody hears of events whose session he cannot name."""
    uploaded = site.upload("a.png", (pictures / "known-0.png").read_bytes()).json()[0]
    functions = {f["targets"][0][1]: f["id"] for f in site.config()["dependencies"] if f["targets"]}
    file = {"path": uploaded, "meta": META}
    assert site.call(functions["change"], [None, file], session_hash="mine").status_code == 200
    assert "vl-name" in json.dumps(site.messages("mine"))
    assert site.call(functions["load"], [None], session_hash="yours").status_code == 200
    assert "vl-name" not in json.dumps(site.messages("yours"))
    with site.client.stream("GET", "/gradio_api/queue/data?session_hash=nobodys") as answer:
        assert "unexpected_error" in next(answer.iter_lines())


def test_events_that_lack_what_they_should_tell(site: Site, pictures: Path) -> None:
    """They choose and strike nothing that is there; no function fails."""
    uploaded = site.upload("a.png", (pictures / "known-0.png").read_bytes()).json()[0]
    functions = {f["targets"][0][1]: f["id"] for f in site.config()["dependencies"] if f["targets"]}
    ids = [{"sentence": one, "struck": True} for one in ("none", "\0", "' OR 1=1 --")]
    for event in (None, {}, {"name": True}, {"name": "no class"}, *ids):
        for name in ("choose", "strike"):
            data = [None, {"path": uploaded, "meta": META}]
            assert site.call(functions[name], data, session_hash="event", event_data=event).status_code == 200
            (ended,) = [m["success"] for m in site.messages("event") if m["msg"] == "process_completed"]
            assert ended, (name, event)
