"""Check requests before they reach the page: who may use it, and which requests are passed on to Gradio.

Gradio serves much that this page does not use, and opens any file that a call names. So only what the page itself asks
for is passed on, and a call is read here first: its files are those that were uploaded to this page.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

import gradio as gr
from fastapi import HTTPException, Request
from fastapi.responses import PlainTextResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlltr_index.cli.listening import check_token, is_token, wrong_sender
from vlltr_index.cli.ui.service import MAX_TOGETHER

POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; "  # Gradio compiles its templates in the browser
    "connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""The Content-Security-Policy of every answer: nothing is fetched from, or sent to, another address."""

_HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_FILE = "/gradio_api/file="
_CALL = "/gradio_api/queue/join"
_UPLOAD = "/gradio_api/upload"
_MANIFEST = "/manifest.json"  # browsers ask for it without a cookie
_PAGES = {
    *("/", "/theme.css", "/favicon.ico", "/robots.txt", _MANIFEST),
    *(f"/gradio_api/{name}" for name in ("queue/data", "upload_progress", "startup-events", "app_id")),
}
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/", _FILE)
_MAX_BODY = {_CALL: 4 * 2**20, _UPLOAD: MAX_TOGETHER + 2**20}
"""Most bytes of the body, for each path that takes one."""
_MAX_UPLOADS = 2 * 2**30  # bytes of all uploads that are still there
_LONGEST_NAME = 255  # bytes; file systems have no longer ones


class _Upload(BaseModel):
    """A file named by a call; its URL, size and kind, which a client could forge, are left out."""

    path: str
    meta: Mapping[Literal["_type"], Literal["gradio.FileData"]] = {"_type": "gradio.FileData"}


_Position = Annotated[int, Field(ge=0, le=1000)]  # such as a tab's


class _Call(BaseModel):
    """Fields of the page's own calls; all others that Gradio would accept are left out."""

    model_config = ConfigDict(strict=True)

    fn_index: int
    data: list[str | _Upload | list[_Upload] | None]
    session_hash: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    trigger_id: int | None = None
    event_data: dict[str, Annotated[str, Field(max_length=1000)] | bool | _Position] | None = None


class Guard:
    """The page as it is served: an ASGI application, since response middleware would delay streams.

    Args:
        app: The application that has the page.
        page: The page.
        folder: Where its uploads lie, without links.
        token: Token that a browser must send once; without one, the page is for this machine only.
        names: With a token: host names of the page, in lower case, beside its addresses.
    """

    def __init__(
        self, app: Any, page: gr.Blocks, folder: str, token: str = "", names: Collection[str] = ()
    ) -> None:
        self._app = app
        self._page = page
        self._folder = folder
        self._token = token and check_token(token, "the token of the page")
        self._names = names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [(n, v) for n, v in message.get("headers", []) if n.lower() not in _HEADERS]
                message["headers"] = [*kept, *_HEADERS.items()]
            await send(message)

        request = Request(scope, receive)
        try:
            self._check_sender(request)
            answer = self._entry(request)
            self._check_asked(request)
            if answer is None and request.scope["path"] == _CALL:
                receive = _again(self._checked_call(await request.body()), receive)
        except HTTPException as refused:
            answer = PlainTextResponse(f"{refused.detail}\n", refused.status_code)
        app = self._upload if request.scope["path"] == _UPLOAD else self._app
        await (answer or app)(scope, receive, with_policy)

    async def _upload(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass an upload on; where Gradio cannot read its form, and the machine is not at fault, that is a 400."""
        failed = False

        async def unless_failed(message: Any) -> None:
            nonlocal failed
            failed = failed or message.get("status") == 500
            if not failed:
                await send(message)

        try:
            await self._app(scope, receive, unless_failed)
        except OSError:
            raise
        except Exception:  # of the parser, or of what reads the form as one of the page
            await PlainTextResponse("This is no upload of the page.\n", 400)(scope, receive, send)

    def _check_sender(self, request: Request) -> None:
        """Refuse requests under another host name, and requests that another site's page sent."""
        refused = wrong_sender(request.headers, self._names, self._token != "")
        if refused is not None:
            raise HTTPException(*refused)

    def _entry(self, request: Request) -> RedirectResponse | None:
        """Let in requests with the token; one with the link's token gets a cookie and is redirected to `/`.

        Raises:
            HTTPException: 403 for who has none.
        """
        if not self._token or request.scope["path"] == _MANIFEST:
            return None
        cookie = f"vlltr-{request.scope['server'][1]}"  # browsers do not keep those of several ports apart
        if is_token(request.query_params.get("token"), self._token):
            entered = RedirectResponse("/", 303)
            entered.set_cookie(cookie, self._token, httponly=True, samesite="lax")
            return entered
        if not is_token(request.cookies.get(cookie), self._token):
            raise HTTPException(403, "Open the link that vlltr ui printed: it has a token.")
        return None

    def _check_asked(self, request: Request) -> None:
        """Refuse what the page does not use, what is too large, and files that are no uploads."""
        path = request.scope["path"]
        if any(len(os.fsencode(name)) > _LONGEST_NAME for name in path.split("/")):
            raise HTTPException(404, "There is nothing here.")
        if request.method == "POST" and path in _MAX_BODY:
            length = request.headers.get("content-length", "")
            if "transfer-encoding" in request.headers or not length.isdecimal():
                raise HTTPException(411, "The request does not say how long it is.")
            if int(length) > _MAX_BODY[path]:
                raise HTTPException(413, f"More than {_MAX_BODY[path] >> 20} MiB in one request.")
            if path == _UPLOAD and _size(self._folder) + int(length) > _MAX_UPLOADS:
                raise HTTPException(507, "Too much was uploaded to the page; it is kept for some hours.")
        elif request.method not in ("GET", "HEAD") or not (path in _PAGES or path.startswith(_FOLDERS)):
            raise HTTPException(404, "There is nothing here.")
        if path.startswith(_FILE) and not self._is_upload(path.removeprefix(_FILE)):
            raise HTTPException(403, "This is no file of the page.")

    def _is_upload(self, path: str) -> bool:
        """Say whether `path` is an upload to this page and no link to another place; the file may be gone."""
        above = os.path.dirname(os.path.dirname(path))
        return above == self._folder and "\0" not in path and os.path.realpath(path) == path

    def _checked_call(self, body: bytes) -> bytes:
        """Check a call of one of the page's functions; return it with only the fields that the function takes.

        Raises:
            HTTPException: 400 if it is none, 404 if there is no such function, 403 if it names a file that was not
                uploaded.
        """
        try:
            call = _Call.model_validate_json(body)
        except ValidationError:
            raise HTTPException(400, "This is no call of the page.") from None
        function = self._page.fns.get(call.fn_index)
        if function is None:
            raise HTTPException(404, "There is no such function.")
        if len(call.data) != len(function.inputs) or not all(map(_fits, function.inputs, call.data)):
            raise HTTPException(400, "This is not what the function takes.")
        for value in call.data:
            for file in value if isinstance(value, list) else [value]:
                if isinstance(file, _Upload) and not self._is_upload(file.path):
                    raise HTTPException(403, "This is no file of the page.")
        return call.model_copy(update={"event_data": call.event_data or {}}).model_dump_json().encode()


def _fits(component: Any, value: str | _Upload | list[_Upload] | None) -> bool:
    """Say whether a component of the page can have a value; a component of a kind not listed here takes None only."""
    if isinstance(component, gr.Image):
        return value is None or isinstance(value, _Upload)
    if isinstance(component, gr.File):
        return value is None or isinstance(value, list)
    if isinstance(component, gr.Dropdown):
        return value is None or isinstance(value, str)
    return isinstance(value, str) if isinstance(component, gr.Textbox) else value is None


def _size(folder: str) -> int:
    """Sum the bytes of the files in a folder; files that go meanwhile do not count."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _again(body: bytes, receive: Any) -> Any:
    """Return a `receive` that first returns `body`, and then what the given one receives."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Any:
        return left.pop() if left else await receive()

    return receive_again
