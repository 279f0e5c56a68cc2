"""Attacks on `vlltr serve`: what a client can send, name and hold up, and what the others notice of it."""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.served import READ, WRITE, Served, served
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow  # FastAPI is of [test-all]

FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def site(trained_once: Path) -> Iterator[Served]:
    """A server that lets who has the token write, of a workspace that no attack changes."""
    before = Workspace.open(trained_once).history.ids()
    with served(Workspace.open(trained_once), write=True) as made:
        yield made
    assert Workspace.open(trained_once).history.ids() == before


def part(data: bytes, name: str = "images", filename: str | None = "a.png") -> bytes:
    """One part of a form with the boundary b."""
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def post(site: Served, body: Any, kind: str = FORM, path: str = "/predict", **headers: str) -> Any:
    """The answer to a body as it is."""
    return site.client.post(path, content=body, headers={"content-type": kind, **headers})


def head(site: Served, length: int, host: str | None = None) -> bytes:
    """The head of a request for predictions."""
    host = f"127.0.0.1:{site.port}" if host is None else host
    return (
        f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {FORM}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_forms_that_are_none(site: Served, pictures: Path) -> None:
    """Garbage, cut and wrongly described forms are refused with a reason, and the next one is answered."""
    data = (pictures / "known-0.png").read_bytes()
    good = part(data) + b"--b--\r\n"
    assert post(site, good).status_code == 200
    bodies = [
        (b"", FORM, 400),
        (b"\0\xff" * 1000, FORM, 400),
        (b"\r\n" * 100_000, FORM, 400),
        (good, "multipart/form-data", 400),
        (good, "multipart/form-data; boundary=" + "b" * 5000, 400),
        (good, "multipart/form-data; boundary=c", 400),
        (good, "application/json", 415),
        (good, "text/plain; multipart/form-data", 415),
        (good.replace(b'name="images"', b'name="files"'), FORM, 422),
        (good.replace(b'name="images"; ', b""), FORM, 400),
        (good.replace(b"Content-Disposition", b"X"), FORM, 400),
        (good.replace(b"Content-Disposition", b"X: 1\r\n" * 50 + b"Content-Disposition"), FORM, 400),
        (part(b"{}", "options", None) * 2 + good, FORM, 422),
        (part(b"\xff\xfe", "options", None) + good, FORM, 422),
        (part(b"[" * 100_000, "options", None) + good, FORM, 422),
        (part(b"{}", "options") + good, FORM, 422),
        (part(b"x" * 800_001, "options", None) + good, FORM, 400),
    ]
    for body, kind, status in bodies:
        answer = post(site, body, kind)
        assert answer.status_code == status, (kind[:50], body[:100], answer.text)
        assert answer.json()["detail"]
    for place in range(1, len(good) - 5, 37):
        assert post(site, good[:place]).json()["detail"].startswith("This form cannot be read: "), place
    assert post(site, good).status_code == 200


@settings(deadline=None)
@given(
    files=st.lists(
        st.tuples(st.text(st.characters(codec="ascii", exclude_characters='"\\')), st.binary()), max_size=5
    ),
    cuts=st.lists(st.integers(1, 50), min_size=1),
)
def test_a_form_is_read_however_it_comes(files: list[tuple[str, bytes]], cuts: list[int]) -> None:
    """In pieces of any size, with any bytes in its files; a part of it is no form."""
    from fastapi import HTTPException, Request

    from vlltr_index.cli.serve.forms import Forms

    names = [f"n{name}".translate(dict.fromkeys(range(32))) for name, _ in files]
    data = [content.replace(b"\n--b", b"") for _, content in files]
    body = (
        b"".join(part(*one) for one in zip(data, ["images"] * len(data), names, strict=True)) + b"--b--\r\n"
    )

    async def read(whole: bytes) -> Any:
        pieces = []
        sizes = cycle(cuts)
        while whole:
            size = next(sizes)
            pieces.append({"type": "http.request", "body": whole[:size], "more_body": len(whole) > size})
            whole = whole[size:]

        async def receive() -> Any:
            return pieces.pop(0) if pieces else {"type": "http.request", "body": b"", "more_body": False}

        request = Request({"type": "http", "headers": [(b"content-type", FORM.encode())]}, receive)
        async with Forms().read(request, (), "images") as form:
            return form.files

    assert asyncio.run(read(body)) == list(zip(names, data, strict=True))
    with pytest.raises(HTTPException):
        asyncio.run(read(body[: cuts[0] % (len(body) - 4)]))


def test_texts_are_utf_8(site: Served, pictures: Path) -> None:
    """Bytes of another encoding are refused, whatever encoding the form names, and not read as other letters."""
    picture = part((pictures / "known-0.png").read_bytes())
    for letter, status, said in (
        ("é".encode("latin-1"), 422, "is not UTF-8"),
        ("é".encode(), 422, "no class 'é'"),
    ):
        options = part(b'{"only": ["' + letter + b'"]}', name="options", filename=None)
        for kind in (FORM, f"{FORM}; charset=utf-8"):
            answer = post(site, picture + options + b"--b--\r\n", kind)
            assert (answer.status_code, said in answer.json()["detail"]) == (status, True)
    latin = post(
        site,
        picture + part(b"\xe9", name="options", filename=None) + b"--b--\r\n",
        f"{FORM}; charset=latin-1",
    )
    assert latin.json() == {"detail": "The field 'options' is not UTF-8."}


def test_options_are_read_beside_the_event_loop(
    site: Served, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While those of one client are read, others are answered."""
    from vlltr_index.cli.serve import app

    reading, answered = threading.Event(), threading.Event()
    no_twins = app.no_twins

    def slow(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        reading.set()
        assert answered.wait(30)
        return no_twins(pairs)

    monkeypatch.setattr(app, "no_twins", slow)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(site.predict, pictures / "known-0.png", options='{"top": 1}')
        assert reading.wait(30)
        assert site.client.get("/health").status_code == 200
        answered.set()
        assert answer.result().status_code == 200


def test_options_of_many_keys(site: Served, pictures: Path) -> None:
    """A client may name all of very many classes, and one of them twice, which would take quadratic time to find."""
    count = 60_000
    weights = ", ".join(f'"{number}": 1' for number in range(count))
    answer = site.predict(pictures / "known-0.png", options=f'{{"prior": {{{weights}, "{count - 1}": 1}}}}')
    assert (answer.status_code, answer.json()["detail"]) == (422, f"options: '{count - 1}' occurs twice")
    marks = "\u0301\u0316" * 190_000
    answer = site.predict(pictures / "known-0.png", options=f'{{"only": ["e{marks}"]}}')
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("no class 'e")


def test_names_are_no_paths(site: Served, pictures: Path) -> None:
    """A file's name is given back and opens nothing; a class's name is looked up and nothing else."""
    names = [
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.png",
        "a" * 3000,
        "",
    ]
    data = (pictures / "known-0.png").read_bytes()
    for name in names:
        (answer,) = post(site, part(data, filename=name) + b"--b--\r\n").json()
        assert (answer["image"], answer["problem"]) == (name, None)
        (answer,) = post(site, part(name.encode()) + b"--b--\r\n").json()
        assert "cannot read the image of" in answer["problem"]
    for name in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "a" * 5000, "' OR 1=1 --", "*"):
        assert site.change("DELETE", f"/classes?name={name}").status_code == 404, name
    for query, said in (
        ("name=a&name=b", "The parameter 'name' is given 2 times."),
        ("name=a&dry_run=true", "There is no parameter 'dry_run'."),
        ("name=caf%e9", "The query is not UTF-8."),
    ):
        answer = site.change("DELETE", f"/classes?{query}")
        assert (answer.status_code, answer.json()) == (422, {"detail": said})
    for path in ("/../etc/passwd", "//etc/passwd", "/static/x", "/docs", "/redoc", "/predict/x"):
        assert site.client.get(path).status_code == 404, path


def test_what_is_too_large_or_too_many(site: Served, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read by what a request says of its length, which it must say."""
    with site.connect() as connection:
        connection.sendall(head(site, 64 * 2**20 + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    data = (pictures / "known-0.png").read_bytes()
    pieces = post(site, iter([part(data), b"--b--\r\n"]))
    assert (pieces.status_code, pieces.headers["connection"]) == (411, "close")
    assert post(site, part(data) * 65 + b"--b--\r\n").status_code == 413
    assert post(site, part(b"") * 1001 + b"--b--\r\n").status_code == 413
    monkeypatch.setattr("vlltr_index.cli.serve.forms.MOST_TOGETHER", 2**17)
    refused = post(site, part(bytes(2**18)) + b"--b--\r\n")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert post(site, part(data) + b"--b--\r\n").status_code == 200
    monkeypatch.undo()
    long = {"name": ["okapi"], "sentences": ["x" * 100_001] * 2}
    assert site.change("POST", "/classes", long).status_code == 413


def test_nothing_is_written_to_the_disk(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files of a form stay in memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    answer = post(site, part(bytes(3 * 2**20)) + b"--b--\r\n")
    assert answer.json()[0]["problem"]


def test_who_may_ask(trained_once: Path, pictures: Path) -> None:
    """Each route with no token, that for reading, that for writing, and wrong ones."""
    data = part((pictures / "known-0.png").read_bytes()) + b"--b--\r\n"
    with served(Workspace.open(trained_once), write=True, token=READ) as site:

        def status(method: str, path: str, shown: str | None) -> int:
            headers = {"content-type": FORM} | ({} if shown is None else {"authorization": shown})
            body = data if path == "/predict" else b""
            code: int = site.client.request(method, path, content=body, headers=headers).status_code
            return code

        for path in ("/classes", "/predict", "/openapi.json"):
            method = "POST" if path == "/predict" else "GET"
            for wrong in (
                None,
                "",
                "Bearer",
                "Bearer x",
                f"Basic {READ}",
                READ,
                f"Bearer {READ}x",
            ):
                assert status(method, path, wrong) == 401, (path, wrong)
            for good in (f"Bearer {READ}", f"bearer  {READ}", f"Bearer {WRITE}"):
                assert status(method, path, good) == 200, (path, good)
        assert status("GET", "/health", None) == 200
        for method, path in (
            ("POST", "/classes"),
            ("DELETE", "/classes?name=a"),
            ("POST", "/sentences"),
            ("DELETE", "/sentences?name=a&matching=b"),
            ("PUT", "/health"),
            ("DELETE", "/health"),
        ):
            assert status(method, path, None) == 401, path
            assert status(method, path, f"Bearer {READ}") == 403, path
            assert status(method, path, f"Bearer {WRITE}") in (400, 404, 405, 422), path


def test_other_names_and_other_sites(trained_once: Path) -> None:
    """A Host header names this server, once; pages of other sites are refused."""
    with served(Workspace.open(trained_once), names={"lab"}) as site:
        own = f"127.0.0.1:{site.port}"
        for host, origin, status in (
            (own, None, 200),
            ("localhost", None, 200),
            ("LAB:80", None, 200),
            (own, f"http://{own}", 200),
            ("example.org", None, 421),
            ("lab.example.org", None, 421),
            ("192.0.2.1", None, 421),
            ("[", None, 421),
            (own, "http://example.org", 403),
            (own, "null", 403),
        ):
            headers = {"host": host} | ({} if origin is None else {"origin": origin})
            assert site.client.get("/health", headers=headers).status_code == status, (host, origin)
        with site.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
            assert connection.recv(100).split()[1] in (b"400", b"421")


def ended(connection: socket.socket) -> bytes:
    """What comes until the server ends a connection."""
    said = b""
    try:
        while piece := connection.recv(2**16):
            said += piece
    except ConnectionResetError:
        pass
    return said


def test_clients_that_stall(site: Served, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent from the beginning, in the head, in the body, or drop by drop: each is ended, and nobody waits for it."""
    monkeypatch.setattr("vlltr_index.cli.serve.guard.HEAD", 1.0)
    monkeypatch.setattr("vlltr_index.cli.serve.forms.READING", 1.0)
    whole = part((pictures / "known-0.png").read_bytes()) + b"--b--\r\n"
    begun = [b"", b"POST /pre", head(site, 1000), head(site, len(whole)) + whole[:-5]]
    stalled = [site.connect() for _ in begun]
    dropping = site.connect()

    def drop() -> None:
        try:
            for letter in head(site, 1000):
                dropping.sendall(bytes([letter]))
                time.sleep(0.05)
        except OSError:
            pass

    drops = threading.Thread(target=drop)
    drops.start()
    for connection, some in zip(stalled, begun, strict=True):
        connection.sendall(some)
    assert site.predict(pictures / "known-0.png").status_code == 200
    told = [ended(connection)[:12] for connection in stalled]
    assert told == [b"", b"", b"HTTP/1.1 408", b"HTTP/1.1 408"]
    drops.join()
    assert ended(dropping) == b""
    for connection in (*stalled, dropping):
        connection.close()


def test_a_client_that_takes_no_answer(site: Served, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is ended, and with it what waits for it."""
    monkeypatch.setattr("vlltr_index.cli.serve.guard.TAKING", 0.5)
    monkeypatch.setattr("vlltr_index.cli.serve.guard.HEAD", 0.5)
    picture = (pictures / "known-0.png").read_bytes()
    body = part(b'{"top": 100, "explain": 5}', "options", None) + part(picture) * 25 + b"--b--\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", site.port))
        connection.settimeout(0.1)
        with suppress(TimeoutError, ConnectionError):
            connection.sendall((head(site, len(body)) + body) * 100)
        end = time.monotonic() + 30
        while True:
            assert time.monotonic() < end
            time.sleep(0.1)
            try:
                connection.send(b"x")
            except TimeoutError:
                continue
            except ConnectionError:
                break


def test_more_connections_than_are_kept(
    site: Served, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have been silent for longest go, so that a client with something to ask is let in."""
    monkeypatch.setattr("vlltr_index.cli.serve.guard.MOST_CONNECTIONS", 20)
    silent = [site.connect() for _ in range(60)]
    assert site.predict(pictures / "known-0.png").status_code == 200
    assert ended(silent[0]) == b""
    for connection in silent:
        connection.close()


def test_clients_that_are_gone(site: Served, pictures: Path) -> None:
    """Who sends half a form, or all of it, and breaks the connection, is not waited for."""
    whole = part((pictures / "known-0.png").read_bytes()) + b"--b--\r\n"
    for body in (whole[:50], whole):
        for _ in range(100):
            with site.connect() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(head(site, len(whole)) + body)
    assert site.predict(pictures / "known-0.png").status_code == 200


def test_no_http(site: Served, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes of another protocol, and those after a request that is being answered, end their connection alone."""
    whole = part((pictures / "known-0.png").read_bytes()) + b"--b--\r\n"
    for said in (
        b"\x16\x03\x01\x02\0\x01\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"X" * 200_000,
        head(site, -1),
        head(site, len(whole)) + whole + b"\0" * 1000,
        head(site, 10).replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"zz\r\n",
        head(site, 10).replace(b"Content-Type", b"Upgrade: websocket\r\nConnection: upgrade\r\nX")
        + b"x" * 10,
    ):
        with site.connect() as connection:
            with suppress(OSError):  # it may be ended already
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
            assert ended(connection)[:10] in (b"", b"HTTP/1.1 4", b"HTTP/1.1 2"), said[:50]
    assert site.predict(pictures / "known-0.png").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_queue_and_a_late_answer(
    trained_once: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """429 where too much waits, 503 where the answer is late: both say when to come again; then all is well."""
    from vlltr_index.cli.serve import batcher

    going = threading.Event()
    answer_read = batcher.answer_read

    def slow(*args: Any) -> Any:
        going.wait(30)
        return answer_read(*args)

    monkeypatch.setattr(batcher, "answer_read", slow)
    monkeypatch.setattr(batcher, "MOST_WAITING", 8)
    monkeypatch.setattr(batcher, "DEADLINE", 1.0)
    picture = pictures / "known-0.png"
    with served(Workspace.open(trained_once)) as site, ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda _: site.predict(picture), range(20)))
        assert sorted(answer.status_code for answer in answers) == [429] * 12 + [503] * 8
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert site.predict(*[picture] * 9).status_code == 413  # it could never wait
        going.set()
        end = time.monotonic() + 30
        while site.predict(picture).status_code != 200:
            assert time.monotonic() < end
