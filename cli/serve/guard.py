"""Check each request before anything of it is read, and end connections whose clients stall."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import h11
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlltr_index.cli.listening import check_token, is_token, wrong_sender

MOST_CONNECTIONS = 900
"""Of more connections those go whose clients have been silent for longest."""
HEAD = 10.0
"""Seconds from the beginning of a connection, or the last answer, to the end of a request's head."""
TAKING = 30.0
"""Seconds in which a client must take something of an answer."""
_AT_ONCE = 16_384  # bytes of one connection that are looked through before others have their turn
_BESIDE = {401: {"WWW-Authenticate": "Bearer"}, 411: {"Connection": "close"}}
"""Headers of refusals, by status."""


class Guard:
    """The application as it is served: an ASGI application that lets in who may ask.

    Args:
        app: Answers.
        names: As for `wrong_sender`.
        token: Needed for all but `/health`; "": nothing is, and only this machine may ask.
        write_token: Needed to change something, and good for all else; "": nothing can be changed.
    """

    def __init__(self, app: Any, names: Collection[str] = (), token: str = "", write_token: str = "") -> None:
        self._app = app
        self._names = names
        self._token = token and check_token(token, "the token")
        self._write_token = write_token and check_token(write_token, "the writing token")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one request on, or refuse it."""
        headers = Headers(scope=scope)
        refused = (
            wrong_sender(headers, self._names, self._token != "")
            or self._not_let_in(scope, headers)
            or _unmeasured(headers)
        )
        app = self._app
        if refused is not None:
            status, why = refused
            app = JSONResponse({"detail": why}, status, _BESIDE.get(status))
        await app(scope, receive, send)

    def _not_let_in(self, scope: Any, headers: Headers) -> tuple[int, str] | None:
        """Return status and reason to refuse a request that lacks the token for what it asks."""
        kind, _, shown = headers.get("authorization", "").partition(" ")
        mine = shown.strip() if kind.lower() == "bearer" else None
        if self._write_token and is_token(mine, self._write_token):
            return None
        writes = bool(self._write_token) and scope["method"] != "GET" and scope["path"] != "/predict"
        if not writes and (scope["path"] == "/health" or not self._token):
            return None
        if self._token and is_token(mine, self._token):
            return (403, "This token is for reading alone.") if writes else None
        return 401, "Send a token: Authorization: Bearer TOKEN"


def _unmeasured(headers: Headers) -> tuple[int, str] | None:
    """Return status and reason to refuse a body that comes in pieces: each costs as much as a request."""
    return (411, "Say how long the body is: Content-Length.") if "transfer-encoding" in headers else None


class Connection(H11Protocol):  # type: ignore[misc]  # optional, so types are not looked for
    """A connection that is ended if its client sends no request, or does not take its answer."""

    _since = 0.0  # when its client was last waited for
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for a request; if there are too many connections, end the one that has been silent for longest."""
        super().connection_made(transport)
        transport.max_size = _AT_ONCE  # type: ignore[attr-defined] # of asyncio's own transports
        self._end_after(HEAD)
        if len(self.connections) > MOST_CONNECTIONS:
            silent = [one for one in self.connections if isinstance(one, Connection) and one._is_silent]
            min(silent, key=lambda one: one._since).transport.abort()

    @property
    def _is_silent(self) -> bool:
        """Whether it is the client's turn."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what is no HTTP ends the connection."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # there is no way to refuse it any more
            self.transport.abort()
        if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
            self._go_on()

    def on_response_complete(self) -> None:
        """Wait for the next request; the rest of one that was refused must come meanwhile, too."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._end_after(HEAD)

    def pause_writing(self) -> None:
        """Wait for the client to take what is written."""
        super().pause_writing()
        self._end_after(TAKING)

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        self._end_after(HEAD) if self.cycle.response_complete else self._go_on()

    def _end_after(self, seconds: float) -> None:
        self._go_on()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
