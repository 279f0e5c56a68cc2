"""Attacks on the running page: what a client can name, send and ask for, beyond what the page itself does."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlltr_index.cli.ui import server
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
                yield Site(client, Path(os.environ["GRADIO_TEMP_DIR"]))
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
            data: list[Any] = [None] * len(inputs)
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
