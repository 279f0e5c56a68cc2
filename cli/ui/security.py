"""What stands before the page: whose requests it answers, and what the browser may do with its answers."""

from __future__ import annotations

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

_OURS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}
_FETCHING = ("/gradio_api/file=", "/gradio_api/proxy=")  # of other addresses, where what follows is one
_FILE = "/gradio_api/file=/"
_NAMES = ("127.0.0.1", "localhost", "[::1]")

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class Guard:
    """An ASGI application before another one, which has no websockets.

    Refused are requests to fetch another address, those that another site's page makes the browser send, and, where
    the page is for this machine alone, those that come under another name (a site whose name leads here).

    Args:
        app: The application.
        local: Whether the page is bound to a loopback address.
    """

    def __init__(self, app: _App, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Pass on, or refuse one request."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(n, v) for n, v in message.get("headers", []) if n.lower() not in _OURS]
                message["headers"] = [*kept, *_OURS.items()]
            await send(message)

        status = self._refusal(scope)
        if status is None:
            return await self._app(scope, receive, with_policy)
        await with_policy({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body"})

    def _refusal(self, scope: _Scope) -> int | None:
        """The status to refuse a request with; None to let it pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._local and host not in _NAMES and host.rpartition(":")[0] not in _NAMES:
            return 421
        if scope["path"].startswith(_FETCHING) and not scope["path"].startswith(_FILE):
            return 403
        origin = headers.get(b"origin")
        return 403 if origin is not None and origin.partition("://")[2] != host else None
