"""What stands before the page: which requests it answers, and what the browser may do with its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["POLICY", "Guard"]

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio compiles its templates in the browser
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "manifest-src 'self'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
"""The Content-Security-Policy of every answer: nothing is fetched from, or sent to, another address."""

# All that the page asks for. Gradio also has routes that fetch other addresses, record, monitor and edit: not here.
_ANSWERED = re.compile(
    r"/(config|theme\.css|favicon\.ico|robots\.txt|static/.+|assets/.+|svelte/.+)?"
    r"|/gradio_api/(app_id|info|theme\.css|startup-events|upload|upload_progress|reset|cancel|heartbeat/\w+"
    r"|queue/(join|data)|file=/.+)"
)
_EVENT = "/gradio_api/queue/join"  # what a click or an input sends
_MANIFEST = b'{"name": "vlltr", "start_url": "/", "display": "browser"}'
_MAX_EVENT = 2 * 2**20  # bytes
_NAMES = ("127.0.0.1", "localhost", "[::1]")

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class Guard:
    """An ASGI application before another one.

    Refused are paths that the page has no use for, events that name a file which is no upload, requests that another
    site's page makes the browser send, and, where the page is for this machine alone, those that come under another
    name (a site whose name leads here).

    Args:
        app: The application.
        local: Whether the page is bound to a loopback address.
    """

    def __init__(self, app: _App, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer, pass on, or refuse one request."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        if scope["path"] == "/manifest.json":  # the page names one, and Gradio has none
            return await _answer(send, 200, _MANIFEST, b"application/manifest+json")
        status = self._refusal(scope)
        if status is not None:
            return await _answer(send, status, b"")

        if scope["path"] == _EVENT:
            body = await _body(receive)
            if body is None:
                return await _answer(send, 413, b"")
            if _names_another_place(body):
                return await _answer(send, 403, b"")
            receive = _Again(body, receive)

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _headers(message.get("headers", []))
            await send(message)

        await self._app(scope, receive, with_policy)

    def _refusal(self, scope: _Scope) -> int | None:
        """The status to refuse a request with; None to let it pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._local and re.sub(r":\d+$", "", host) not in _NAMES:
            return 421
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403
        return None if _ANSWERED.fullmatch(scope["path"]) else 404


class _Again:
    """Gives a body that was read already, then what else comes."""

    def __init__(self, body: bytes, receive: _Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _body(receive: _Receive) -> bytes | None:
    """The whole body of a request; None if it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MAX_EVENT:
            return None
    return body


def _names_another_place(body: bytes) -> bool:
    """Whether an event names a file that is not an upload: Gradio would fetch it if it is an address."""

    def foreign(value: Any) -> bool:
        if isinstance(value, dict):
            path = value.get("path")
            return (isinstance(path, str) and not path.startswith("/")) or any(map(foreign, value.values()))
        return isinstance(value, list) and any(map(foreign, value))

    try:
        return foreign(json.loads(body or b"null"))
    except (ValueError, RecursionError):
        return True


async def _answer(send: _Send, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
    headers = _headers([(b"content-type", kind), (b"content-length", str(len(body)).encode())])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer, with ours in place of those of the same name."""
    ours = {
        b"content-security-policy": POLICY.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"same-origin",
    }
    return [(n, v) for n, v in given if n.lower() not in ours] + list(ours.items())
