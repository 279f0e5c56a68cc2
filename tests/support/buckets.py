"""An S3 server in this process, for workspaces in object storage."""

from __future__ import annotations

import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Bucket:
    """The bucket `birds` of a server of its own.

    Attributes:
        refuse: Whether requests are answered with 403 from now on.
        asked: How many requests came.
    """

    def __init__(self) -> None:
        self.refuse = False
        self.asked = 0
        self.url = ""
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self._writing = threading.Lock()

    def environment(self) -> dict[str, str]:
        """What programs that use it find in their environment."""
        return {
            "AWS_ENDPOINT": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def address(self) -> str:
        """A place that nothing is in yet."""
        return f"s3://birds/{uuid.uuid4().hex[:8]}"

    def put(self, address: str, files: dict[str, bytes]) -> None:
        """Place objects below an address."""
        import obstore
        from obstore.store import from_url

        for name, data in files.items():
            obstore.put(from_url(address), name, data)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request; writes one after the other, as moto looks at conditions before it writes."""
        self.asked += 1
        if self.refuse:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [_REFUSAL]
        if environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            with self._writing:
                return list(self._app(environ, start))
        return list(self._app(environ, start))


@contextmanager
def serve() -> Iterator[Bucket]:
    """Run the server while the block runs."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            """Say nothing of requests."""

    bucket = Bucket()
    server = make_server("127.0.0.1", 0, bucket, threaded=True, request_handler=Quiet)
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        urllib.request.urlopen(urllib.request.Request(f"{bucket.url}/birds", method="PUT")).close()
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
