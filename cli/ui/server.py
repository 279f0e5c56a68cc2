"""`vlltr ui`: the page at an address of its own, with a temporary folder of its own; nothing leaves the machine."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.main import Context, device_option, pass_context
from vlltr_index.errors import MissingStepError, UsageError

if TYPE_CHECKING:
    from vlltr_index.store.workspace import Workspace

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
}
_FETCHING = ("/gradio_api/file=", "/gradio_api/proxy=")  # of other addresses, where what follows is one
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_MANIFEST = {"name": "vlltr", "start_url": "/", "display": "browser"}


@click.command("ui")
@click.option("--host", default="127.0.0.1", help="The address to listen at.")
@click.option("--port", default=7860, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--read-only", is_flag=True, help="Nothing can be added or undone on the page.")
@device_option
@pass_context
def ui_command(context: Context, host: str, port: int, open_browser: bool, read_only: bool) -> None:
    """Serve a page: drop a picture, strike sentences out, compare classes, add a class, undo.

    Ctrl-C ends it. Needs the extra `ui`.
    """
    if find_spec("gradio") is None:
        raise MissingStepError(
            "the page needs Gradio, which is not installed", 'Install it: pip install "vlltr-index[ui]"'
        )
    workspace = context.open()

    def ready(address: str) -> None:
        context.show({"address": address}, [address], always=True)
        if open_browser:
            click.launch(address)

    listening = bind(host, port)
    if not is_local(listening.getsockname()[0]):
        can = "see this workspace's classes and sentences" if read_only else "change this workspace"
        where = f"port {listening.getsockname()[1]} of this machine"
        click.echo(f"Warning: everyone who reaches {where} can {can}.", err=True)
        if not read_only:
            click.echo("With --read-only nothing can be added or undone.", err=True)
    serve(workspace, listening, read_only, ready)


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address that is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Take an address to listen at; port 0 takes a free one.

    Raises:
        UsageError: If it is in use, or not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port}: {str(error.strerror).partition(' (')[0]}",
            "Take another one: --port 0 finds a free port, --host 127.0.0.1 is this machine alone.",
        ) from None


@contextmanager
def page_app(workspace: Workspace, read_only: bool = False, local: bool = True) -> Iterator[Any]:
    """The page as an ASGI application; uploads lie in a temporary folder that is gone afterwards.

    Args:
        workspace: With a trained head.
        read_only: Nothing can be added or undone.
        local: Whether only this machine can reach it.

    Raises:
        MissingStepError: If a step before has not been run; the hint names what to do.
    """
    with tempfile.TemporaryDirectory(prefix="vlltr-ui-") as folder:
        folder = os.path.realpath(folder)
        os.environ |= {  # what Gradio reads: no telemetry, and files in `folder` alone
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_EXAMPLES_CACHE": os.path.join(folder, "examples"),
            "GRADIO_SHARE": "False",
            "GRADIO_MCP_SERVER": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        import gradio as gr
        from fastapi import FastAPI

        from vlltr_index.cli.ui.blocks import build_page
        from vlltr_index.cli.ui.service import MAX_UPLOAD, Desk

        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        app.get("/manifest.json")(lambda: _MANIFEST)  # the page names one, and Gradio has none
        gr.mount_gradio_app(
            app,
            build_page(Desk(workspace, read_only)),
            path="/",
            allowed_paths=[],
            blocked_paths=[str(workspace.path.resolve())],
            max_file_size=MAX_UPLOAD,
            show_error=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=files("vlltr_index.cli.ui").joinpath("page.css").read_text(encoding="utf-8"),
        )
        yield Guard(app, local)


def serve(
    workspace: Workspace, listening: socket.socket, read_only: bool, ready: Callable[[str], None]
) -> None:
    """Serve the page until it is interrupted.

    Args:
        workspace: With a trained head.
        listening: From `bind`; closed in the end.
        read_only: Nothing can be added or undone.
        ready: Called with the page's address; from then on it answers.

    Raises:
        MissingStepError: As for `page_app`.
    """
    host, port = listening.getsockname()[:2]
    with listening, page_app(workspace, read_only, is_local(host)) as app:
        import uvicorn

        # Open tabs hold connections: each that is cut off at the end would be logged with a traceback.
        quiet = {"log_level": "critical", "access_log": False, "ws": "none"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **quiet))
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # the way to end it
            return


class Guard:
    """What stands before the page: whose requests it answers, and what the browser may do with its answers.

    Refused are requests to fetch another address, those that another site's page makes the browser send, and, where
    the page is for this machine alone (`local`), those that come under another name (a site whose name leads here).
    """

    def __init__(self, app: Any, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, or refuse one request; not as middleware for answers, which holds up those that are streams."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [(n, v) for n, v in message.get("headers", []) if n.lower() not in _HEADERS]
                message["headers"] = [*kept, *_HEADERS.items()]
            await send(message)

        given = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status = refusal(scope["path"], given.get(b"host", ""), given.get(b"origin"), self._local)
        if status is None:
            await self._app(scope, receive, with_policy)
        else:
            await with_policy({"type": "http.response.start", "status": status})
            await send({"type": "http.response.body"})


def refusal(path: str, host: str, origin: str | None, local: bool) -> int | None:
    """The status to refuse a request with; None to let it pass."""
    if local and host not in _NAMES and host.rpartition(":")[0] not in _NAMES:
        return 421
    if path.startswith(_FETCHING) and not path.startswith(f"{_FETCHING[0]}/"):
        return 403
    return 403 if origin is not None and origin.partition("://")[2] != host else None
