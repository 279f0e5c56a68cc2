"""Serving the page: an address of its own, a temporary folder of its own, and nothing that leaves the machine."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlltr_index.cli.ui.security import Guard
from vlltr_index.errors import MissingStepError, UsageError

if TYPE_CHECKING:
    from vlltr_index.store.workspace import Workspace

__all__ = ["Address", "bind", "is_local", "need_gradio", "page_app", "serve"]

Address = tuple[str, int]

_FONTS = ["system-ui", "sans-serif"]
_MONO = ["ui-monospace", "monospace"]
_MANIFEST = {"name": "vlltr", "start_url": "/", "display": "browser"}


def need_gradio() -> None:
    """See that Gradio is installed.

    Raises:
        MissingStepError: If it is not; the hint names the extra.
    """
    if find_spec("gradio") is None:
        raise MissingStepError(
            "the page needs Gradio, which is not installed", 'Install it: pip install "vlltr-index[ui]"'
        )


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
        number = error.errno or 0  # above 0 unless it comes from looking the name up
        why = os.strerror(number) if number > 0 else error.strerror
        raise UsageError(
            f"cannot listen at {host}, port {port}: {why}",
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
        MissingStepError: If Gradio is not installed, or a step before has not been run; the hint names what to do.
    """
    need_gradio()
    with tempfile.TemporaryDirectory(prefix="vlltr-ui-") as folder, _settings(folder):
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
            theme=gr.themes.Default(font=_FONTS, font_mono=_MONO),
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
        ready: Called with the page's address as soon as it answers.

    Raises:
        MissingStepError: As for `page_app`.
    """
    host, port = listening.getsockname()[:2]
    with listening, page_app(workspace, read_only, is_local(host)) as app:
        import uvicorn

        class Server(uvicorn.Server):  # type: ignore[misc]  # comes with Gradio: for the type checker it is Any
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                if self.started:
                    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                # Open tabs hold connections; each that is cut off now would be logged with a traceback.
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                await super().shutdown(sockets=sockets)

        config = uvicorn.Config(
            app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=1
        )
        try:
            Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # the way to end it
            return


@contextmanager
def _settings(folder: str) -> Iterator[None]:
    """What Gradio reads from the environment: no telemetry, and files in `folder` alone."""
    ours = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": os.path.realpath(folder),
        "GRADIO_EXAMPLES_CACHE": os.path.join(os.path.realpath(folder), "examples"),
        "GRADIO_SHARE": "False",
        "GRADIO_MCP_SERVER": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
