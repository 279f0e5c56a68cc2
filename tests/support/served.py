"""A server of `vlltr serve` at a port of this machine, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlltr_index.cli.listening import bind
from vlltr_index.cli.serve.server import http_server, serving
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace

__all__ = ["READ", "WRITE", "Served", "served"]

READ, WRITE = "r" * 32, "w" * 32


@dataclass
class Served:
    """A server, asked by a client of httpx."""

    client: Any
    port: int

    def predict(self, *pictures: Path, options: str | None = None, **how: Any) -> Any:
        """The answer to files, under JSON options."""
        files = [("images", (path.name, path.read_bytes())) for path in pictures]
        return self.client.post(
            "/predict", files=files, data={} if options is None else {"options": options}, **how
        )

    def change(
        self,
        method: str,
        path: str,
        form: Mapping[str, Sequence[str]] | None = None,
        pictures: Sequence[Path] = (),
        token: str = WRITE,
    ) -> Any:
        """The answer to a change by who has the token."""
        files: list[tuple[str, tuple[Any, ...]]] = [("images", (p.name, p.read_bytes())) for p in pictures]
        files += [(name, (None, text.encode())) for name, texts in (form or {}).items() for text in texts]
        how = {"files": files} if files else {}
        return self.client.request(method, path, headers={"Authorization": f"Bearer {token}"}, **how)

    def connect(self) -> socket.socket:
        """A connection without a client."""
        return socket.create_connection(("127.0.0.1", self.port), 30)


@contextmanager
def served(place: Workspace | Path, write: bool = False, **how: Any) -> Iterator[Served]:
    """A server of a workspace or an exported folder, as `vlltr serve` runs it."""
    import httpx

    space = place if isinstance(place, Workspace) else None
    recognizer = Recognizer.from_pretrained(place) if isinstance(place, Path) else Recognizer.open(place)
    token = WRITE if write else ""
    with (
        bind("127.0.0.1", 0) as listening,
        serving(recognizer, space if write else None, write_token=token, **how) as app,
    ):
        running = http_server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                timeout=60,
                trust_env=False,
                limits=httpx.Limits(max_connections=200),
            ) as client:
                yield Served(client, port)
        finally:
            running.should_exit = True
            thread.join()
